"""Random stopping in plain words, for plan and report: what ran, what stays hidden, the cost.

Everything here follows from the event that is charged and from the public config; how many of the
repetitions counted is known to nobody, this page included.
"""

from __future__ import annotations

from privft.budget.selection import Selection, chance_of_none
from privft.evaluating import SelectionConfig
from privft.report.facts import Facts

_LAWS = {None: "Poisson", 0.0: "logarithmic", 1.0: "geometric"}


def brief(selection: Selection) -> str:
    """One line for a table."""
    other = f"truncated negative binomial of shape {selection.shape}"
    law = _LAWS.get(selection.shape, other)
    return (
        f"the best of a hidden number of {selection.most} repetitions "
        f"({law}, mean {selection.mean:g} before it is cut)"
    )


def paragraphs(selection: Selection, asked: SelectionConfig, *, will: bool) -> list[str]:
    """Random stopping explained to whoever approves a plan or reads a report.

    asked: as the config has it.  will: the training is still to come.
    """
    names = ", ".join(asked.vary)
    scored = (
        "its loss on public text, which costs nothing; since the same text chose it, what it "
        "gained there looks a little better than it is"
        if asked.held_out is None
        else "its loss on held-out units, with noise of its own in each repetition, which the "
        "epsilon includes"
    )
    none = (
        " The number can be 0, with a chance of "
        f"{chance_of_none(selection):.2g}: then nothing is kept, and the charge stays."
        if selection.shape is None
        else ""
    )
    was, were = ("will be", "will be") if will else ("was", "were")
    return [
        f"Random stopping (Papernot and Steinke 2022): {selection.most} trainings {were} run from "
        f"the start, each with settings drawn at random ({names}) and with noise and samples of "
        f"its own. How many of them count, K, {was} drawn at random; the "
        f"best of the first K {was} kept, by {scored}. The others "
        f"{were} destroyed.{none}",
        f"K stays hidden: all {selection.most} trainings take place, in time, journal and ledger, "
        "whatever it is, and neither the scores nor the settings of the others are told. The price "
        "of choosing holds only because of that: whoever reads the memory of the machine while it "
        "trains is outside of the guarantee.",
        "The whole is charged as one event, by one accountant (Rényi differential privacy), since "
        "no other knows it. It costs more than one training, by the law of K, and no more for the "
        "trainings that do not count. What is said of odds and of the trade-off curve follows from "
        "the same Rényi divergences, and is more cautious than an exact curve would be.",
    ]


def selected(facts: Facts) -> str:
    """The line for a table, of a run that was trained; nothing of one training."""
    event = facts.accounting_events()[0]
    return brief(event) if isinstance(event, Selection) else ""


def stopped(facts: Facts) -> list[str]:
    """The same of a run that was trained, and which settings were kept; [] of one training."""
    event, asked = facts.accounting_events()[0], facts.asked
    if facts.selection is None or asked is None or not isinstance(event, Selection):
        return []
    names = "; ".join(facts.selection.candidates)
    return [
        *paragraphs(event, asked, will=False),
        f"In the draw were, with equal chances: {names}. Kept was: {facts.selection.chosen}.",
    ]
