"""What `privft plan` shows a person of a sweep: each candidate's price, and that of all together.

Data goes to stdout as a table, talk to stderr; the same numbers for scripts are `--json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from privft.cli.session import print_json, say, table

if TYPE_CHECKING:
    from privft.stages.sweeping import SweepPrice


def show_sweep(swept: SweepPrice, as_json: bool) -> None:
    """The price of a sweep."""
    from privft.stages.sweeping import NO_END

    if as_json:
        print_json(swept.to_dict())
        return
    rows = [
        [label, f"{alone.epsilon:.3f}", str(mechanism.steps), f"{mechanism.noise_multiplier:.4f}"]
        for label, mechanism, alone in swept.candidates
    ]
    table("Candidates", ["varies", "epsilon alone", "steps", "noise multiplier"], rows)
    total, budget = swept.total, swept.before
    if total.epsilon_pld is None:
        price = f"epsilon {total.epsilon:.3f} (RDP) for the best of a random, hidden number"
    else:
        price = f"epsilon {total.epsilon:.3f} (PLD) for all {len(swept.candidates)} together"
    click.echo(f"{price}, at delta {total.delta:g}")
    click.echo(
        f"budget: {budget.epsilon_spent:.2f} -> {swept.admission.epsilon_after:.2f} of "
        f"{budget.cap.epsilon:.2f}"
    )
    if total.epsilon_pld is None:
        say(str(total.note))
        say(NO_END)
    else:
        say("each candidate needs a plan of its own: privft plan, train, and then the next")
