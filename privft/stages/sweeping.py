"""What a sweep costs, before any of its runs: `privft plan` on a sweep file.

The price is what the ledger would charge: the sum of all candidates run by run, or the one event of
random stopping.  The first has two accountants; the second has RDP alone, and says so.  Either is
asked of the Renyi filter as it stands now; a sweep that would not be admitted whole is refused with
how much of it would be.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from privft.budget.accounting import Cost, cost
from privft.budget.filter import Admission, admit_sums, rdp
from privft.budget.history import BudgetView
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event, Mechanism
from privft.budget.selection import AnyEvent, Selection, SingleCost, single_cost, total_rdp
from privft.config import RunConfig
from privft.errors import BudgetExceeded, ConfigError, PolicyRefused
from privft.stages.affording import mechanism_of
from privft.stages.data import dataset_entry, policy_of
from privft.stages.planning import check_declared
from privft.sweep import Sweep
from privft.workspace import Workspace

NOT_RUN = "privft does not run a randomly stopped sweep: this is its price"


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
    total: Cost | SingleCost
    before: BudgetView
    admission: Admission

    def to_dict(self) -> dict[str, Any]:
        """For `privft plan SWEEP --json`."""
        single = isinstance(self.total, SingleCost)
        return {
            "sweep": self.charge,
            "dataset": self.dataset,
            "candidates": [
                {"varies": label, "mechanism": mechanism.to_dict(), "cost": alone.to_dict()}
                for label, mechanism, alone in self.candidates
            ],
            "events": [event.to_dict() for event in self.events],
            "total": {**({"epsilon_pld": None} if single else {}), **self.total.to_dict()},
            "executable": not single,
            "budget": {
                "cap": self.before.cap.to_dict(),
                "epsilon_spent": self.before.epsilon_spent,
                "epsilon_after": self.admission.epsilon_after,
                "epsilon_left": self.before.epsilon_left,
            },
        }


def price(
    workspace: Workspace,
    ledger: Ledger,
    sweep: Sweep,
    candidates: Sequence[tuple[str, RunConfig]],
) -> SweepPrice:
    """Price a sweep; opens no record, writes nothing.

    Raises `PolicyRefused` when a candidate by itself is beyond what the policy gives a run, and
    `BudgetExceeded` when the budget does not admit the whole.
    """
    first = candidates[0][1]
    dataset = dataset_entry(ledger, first.dataset).body
    policy = policy_of(workspace, ledger, first.dataset)
    mechanisms, delta = _mechanisms(candidates), first.privacy.delta_value
    priced = []
    for (label, config), mechanism in zip(candidates, mechanisms, strict=True):
        check_declared(config, dataset)
        if (config.dataset, config.privacy.delta_value) != (first.dataset, delta):
            raise ConfigError("the candidates of a sweep share one data set and one delta")
        alone = cost([mechanism.event(), *config.score_events()], delta)
        if alone.epsilon > policy.max_epsilon_per_run.value:
            raise PolicyRefused(
                f"policy {policy.name!r} wants max_epsilon_per_run "
                f"{policy.max_epsilon_per_run.value:g}, and {label} has {alone.epsilon:.4g}"
            )
        priced.append((label, mechanism, alone))
    runs = [
        (mechanism.event(), *config.score_events())
        for (_, config), mechanism in zip(candidates, mechanisms, strict=True)
    ]
    events: tuple[AnyEvent, ...] = tuple(itertools.chain.from_iterable(runs))
    total: Cost | SingleCost
    if sweep.charge == "random-stopping":
        if len(set(mechanisms)) > 1:
            raise ConfigError(
                "the candidates of a randomly stopped sweep cost different amounts",
                hint="vary only what costs nothing, or charge: run-by-run",
            )
        if any(config.score_events() for _, config in candidates):
            raise ConfigError(
                "a randomly stopped sweep has a score of its own, and lets out no other",
                hint="no evaluation.held_out in its base",
            )
        events = (sweep.selection(mechanisms[0].event()),)
        total = single_cost(events, delta)
    else:
        total = cost([event for event in events if isinstance(event, Event)], delta)
    view = ledger.budget(dataset["lineage"])
    admission = _ask(view, events)
    if view.exhausted or not admission.admitted:
        raise BudgetExceeded(
            f"this sweep needs epsilon {admission.epsilon_needed:.2f} more of the budget, and "
            f"{view.epsilon_left:.2f} of {view.cap.epsilon:.2f} is left for dataset "
            f"{first.dataset}",
            hint=_hint(view, events, runs),
        )
    return SweepPrice(
        dataset=first.dataset,
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
    orders = view.cap.orders
    spent = rdp((*view.spent, *view.reserved), orders)
    return admit_sums(view.cap, spent, total_rdp(events, orders))


def _hint(view: BudgetView, events: Sequence[AnyEvent], runs: Sequence[tuple[Event, ...]]) -> str:
    if view.exhausted:
        return "the budget was spent whole by a recovery"
    if isinstance(events[0], Selection):
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
