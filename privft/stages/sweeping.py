"""What a sweep costs, before any of its runs: `privft plan` on a sweep file.

The price is what the ledger would charge: the sum of all candidates run by run, or the one event of
random stopping.  The first has two accountants; the second has RDP alone, and says so.  Either is
asked of the Renyi filter as it stands now; a sweep that would not be admitted whole is refused with
how much of it would be.

A randomly stopped sweep with a `most` is a run: it is planned as one (`planning.make_plan`), and
not here.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from privft.budget.accounting import cost
from privft.budget.filter import Admission, admit
from privft.budget.history import BudgetView
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Mechanism
from privft.budget.priced import Cost
from privft.budget.selection import AnyEvent, is_single
from privft.config import RunConfig
from privft.errors import BudgetExceeded, ConfigError, PolicyRefused
from privft.plan import charged_for
from privft.stages.affording import mechanism_of
from privft.stages.data import dataset_entry, policy_of
from privft.stages.planning import check_declared
from privft.sweep import Sweep, candidates
from privft.workspace import Workspace

NO_END = (
    "nothing that runs this ends in a time that is known beforehand: stopping.most makes it a run"
)


@dataclass(frozen=True, kw_only=True)
class SweepPrice:
    """What the whole of a sweep costs.

    candidates: label, mechanism and cost of each by itself.  total: of everything that is charged;
    run by run it is the composition with parameters fixed in advance, which a sweep's are.
    """

    dataset: str
    charge: str
    candidates: tuple[tuple[str, Mechanism, Cost], ...]
    events: tuple[AnyEvent, ...]
    total: Cost
    before: BudgetView
    admission: Admission

    def to_dict(self) -> dict[str, Any]:
        """For `privft plan SWEEP --json`."""
        return {
            "sweep": self.charge,
            "dataset": self.dataset,
            "candidates": [
                {"varies": label, "mechanism": mechanism.to_dict(), "cost": alone.to_dict()}
                for label, mechanism, alone in self.candidates
            ],
            "events": [event.to_dict() for event in self.events],
            "total": self.total.to_dict(),
            "executable": not is_single(self.events),
            "budget": {
                "cap": self.before.cap.to_dict(),
                "epsilon_spent": self.before.epsilon_spent,
                "epsilon_after": self.admission.epsilon_after,
                "epsilon_left": self.before.epsilon_left,
            },
        }


def price(workspace: Workspace, ledger: Ledger, sweep: Sweep, base: RunConfig) -> SweepPrice:
    """Price a sweep; opens no record, writes nothing.

    Raises `PolicyRefused` when a candidate by itself is beyond what the policy gives a run, and
    `BudgetExceeded` when the budget does not admit the whole.
    """
    dataset = dataset_entry(ledger, base.dataset).body
    policy = policy_of(workspace, ledger, base.dataset)
    each = candidates(base, sweep.vary, source="the sweep")
    mechanisms, delta = _mechanisms(each), base.privacy.delta_value
    priced = []
    for (label, config), mechanism in zip(each, mechanisms, strict=True):
        check_declared(config, dataset)
        if (config.dataset, config.privacy.delta_value) != (base.dataset, delta):
            raise ConfigError("the candidates of a sweep share one data set and one delta")
        alone = cost(charged_for(config, mechanism), delta)
        if alone.epsilon > policy.max_epsilon_per_run.value:
            raise PolicyRefused(
                f"policy {policy.name!r} wants max_epsilon_per_run "
                f"{policy.max_epsilon_per_run.value:g}, and {label} has {alone.epsilon:.4g}"
            )
        priced.append((label, mechanism, alone))
    if base.selection is not None:
        runs = [charged_for(base, mechanisms[0])]
    else:
        runs = [
            charged_for(config, mechanism)
            for (_, config), mechanism in zip(each, mechanisms, strict=True)
        ]
    events = tuple(itertools.chain.from_iterable(runs))
    total = cost(events, delta)
    view = ledger.budget(dataset["lineage"])
    admission = _ask(view, events)
    if view.exhausted or not admission.admitted:
        raise BudgetExceeded(
            f"this sweep needs epsilon {admission.epsilon_needed:.2f} more of the budget, and "
            f"{view.epsilon_left:.2f} of {view.cap.epsilon:.2f} is left for dataset "
            f"{base.dataset}",
            hint=_hint(view, events, runs),
        )
    return SweepPrice(
        dataset=base.dataset,
        charge=sweep.charge,
        candidates=tuple(priced),
        events=events,
        total=total,
        before=view,
        admission=admission,
    )


def _mechanisms(candidates: Sequence[tuple[str, RunConfig]]) -> list[Mechanism]:
    """Of each candidate; what does not differ in what it is charged for is calibrated once."""

    @cache
    def at(position: int) -> Mechanism:
        return mechanism_of(candidates[position][1])

    sections = [(config.privacy, config.score_events()) for _, config in candidates]
    return [at(sections.index(section)) for section in sections]


def _ask(view: BudgetView, events: Sequence[AnyEvent]) -> Admission:
    return admit(view.cap, (*view.spent, *view.reserved), events)


def _hint(
    view: BudgetView, events: Sequence[AnyEvent], runs: Sequence[tuple[AnyEvent, ...]]
) -> str:
    if view.exhausted:
        return "the budget was spent whole by a recovery"
    if is_single(events):
        return "fewer repetitions on average, fewer steps, or more noise"
    fitting = next(
        (
            count
            for count in range(len(runs), 0, -1)
            if _ask(view, list(itertools.chain.from_iterable(runs[:count]))).admitted
        ),
        0,
    )
    return f"the first {fitting} of {len(runs)} candidates fit"
