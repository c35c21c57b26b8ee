"""What the entries of a ledger add up to, and which entry may come next.

The ledger keeps no balance: a balance could be edited.  Everything that matters is a fold over the
entries in order, kept here with no file in sight: `History.check` says whether an entry may follow
(and raises), `History.apply` adds it.  `Ledger` checks before it writes, and `replay` checks again
from scratch when a ledger is verified, so the two cannot come to differ.

    workspace-created   first, once
    key-added/-revoked  as `keyring` has it
    dataset-created     a new name; a lineage that has a budget already keeps its unit and cap
    intake, vault-*     for a data set that exists
    run-reserved        on an existing data set, at its unit; admitted by the Renyi filter; a plan
                        that no run was reserved for yet
    run-settled         once a run; charges the mechanism's steps that ran, or all of them when the
                        run was closed; everything else that was reserved is charged whole, and so
                        is a selection, whose number of steps says nothing
    audit-started, run-audited, run-waived, run-released
                        as `judged` has it
    recovered           signed by two approvers; exhausts every budget that there is, for what was
                        lost may have used it
    plan-approved       signed by an approver
    witnessed           signed by a witness
    run-refused         at any time

An entry out of order is the caller's mistake (`OrderError`), a plan that was used is a `PlanError`,
a run beyond the cap is `BudgetExceeded`; found in a ledger, any of them means that it was not made
by this program.  Signatures inside entries are checked as `signed` has it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from privft.budget import judged
from privft.budget.entries import Entry
from privft.budget.filter import Admission, Cap, admit_sums, gauge, steps_that_fit
from privft.budget.judged import RunRecord
from privft.budget.mechanism import Event, Mechanism
from privft.budget.selection import AnyEvent, Selection, event_from_dict, merged, total_rdp
from privft.budget.signed import check_approval, check_recovery, check_witnessed
from privft.errors import BudgetExceeded, IntegrityError, OrderError, PlanError, PolicyRefused
from privft.keyring import Keyring
from privft.signing import canonical_json, sha256_hex


@dataclass(frozen=True, kw_only=True)
class BudgetView:
    """The budget of one lineage at one moment.

    spent: what settled runs were charged, reserved: what open runs hold; equal events merged.
    epsilon_spent: the filter's gauge over both (`filter` says what it means), the cap when the
    budget is exhausted; epsilon_left: the rest of the cap.
    digest: changes exactly when the cap, what is spent, or what is reserved does.
    """

    lineage: str
    unit: str
    cap: Cap
    spent: tuple[AnyEvent, ...]
    reserved: tuple[AnyEvent, ...]
    exhausted: bool
    runs: int
    epsilon_spent: float
    epsilon_left: float
    digest: str


@dataclass
class _Budget:
    unit: str
    cap: Cap
    runs: int = 0
    exhausted: bool = False
    steps: Counter[tuple[float, float]] = field(default_factory=Counter)  # of settled runs
    selections: list[Selection] = field(default_factory=list)  # of settled runs
    open: dict[str, tuple[AnyEvent, ...]] = field(default_factory=dict)
    summed: list[float] = field(default_factory=list)  # RDP of settled runs
    to_sum: list[AnyEvent] = field(default_factory=list)  # but for these: nobody has asked since

    def charge(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            if isinstance(event, Selection):
                self.selections.append(event)
            else:
                self.steps[event.noise_multiplier, event.sampling_probability] += event.count
        self.to_sum.extend(events)

    def spent(self) -> tuple[AnyEvent, ...]:
        plain = (
            Event(noise_multiplier=noise, sampling_probability=probability, count=count)
            for (noise, probability), count in self.steps.items()
        )
        return merged([*plain, *self.selections])

    def reserved(self) -> list[AnyEvent]:
        return [event for events in self.open.values() for event in events]

    def committed_rdp(self) -> list[float]:
        """The sums over settled runs, which only grow, and over open ones."""
        self.summed = _plus(self.summed, total_rdp(self.to_sum, self.cap.orders))
        self.to_sum = []
        return _plus(self.summed, total_rdp(self.reserved(), self.cap.orders))


def _plus(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x + y for x, y in zip(a, b, strict=True)] if a else list(b)


class History:
    """The fold: grows by `apply`, asks `check` first, answers questions in between."""

    def __init__(self) -> None:
        self.size = 0
        self.last_time = ""
        self.workspace: Mapping[str, Any] = {}
        self.datasets: dict[str, str] = {}  # data set -> lineage
        self._runs: dict[str, dict[str, Any]] = {}  # run -> the fields of its record
        self._plans: dict[str, str] = {}  # digest of a plan -> its run
        self.positions: dict[tuple[str, str], list[int]] = defaultdict(list)
        self.recovered_notes: set[str] = set()
        self._budgets: dict[str, _Budget] = {}
        self._ring: list[Entry] = []

    def keyring(self) -> Keyring:
        """Everybody who is or was on the ring."""
        return Keyring.from_entries(self._ring)

    def open_runs(self) -> list[str]:
        """The runs that are reserved and not settled, oldest first."""
        return [run for budget in self._budgets.values() for run in budget.open]

    def lineages(self) -> list[str]:
        """Every lineage that has a budget, oldest first."""
        return list(self._budgets)

    @property
    def runs(self) -> Collection[str]:
        """The names of all runs, oldest first."""
        return self._runs.keys()

    def run(self, run: str) -> RunRecord:
        """The record of a run; raises `OrderError` for one that was never reserved."""
        if run not in self._runs:
            raise OrderError(f"run {run} is not in the ledger")
        return RunRecord(**self._runs[run])

    def run_of_plan(self, plan_sha256: str) -> str | None:
        """The run that was reserved for a plan, if there is one."""
        return self._plans.get(plan_sha256)

    def cap(self, lineage: str) -> Cap:
        """The cap of a lineage; raises `OrderError` when it has no budget."""
        return self._budget(lineage).cap

    def budget(self, lineage: str) -> BudgetView:
        """The budget of a lineage; raises `OrderError` when it has none."""
        budget = self._budget(lineage)
        spent = gauge(budget.cap, budget.committed_rdp())
        if budget.exhausted:
            spent = budget.cap.epsilon
        settled, reserved = budget.spent(), merged(budget.reserved())
        state = {
            "lineage": lineage,
            "unit": budget.unit,
            "cap": budget.cap.to_dict(),
            "spent": [event.to_dict() for event in settled],
            "reserved": [event.to_dict() for event in reserved],
            "exhausted": budget.exhausted,
        }
        return BudgetView(
            lineage=lineage,
            unit=budget.unit,
            cap=budget.cap,
            spent=settled,
            reserved=reserved,
            exhausted=budget.exhausted,
            runs=budget.runs,
            epsilon_spent=spent,
            epsilon_left=max(0.0, budget.cap.epsilon - spent),
            digest=sha256_hex(canonical_json(state)),
        )

    def admission(self, lineage: str, new: Sequence[AnyEvent]) -> Admission:
        """What the filter says about `new` on top of all that is spent and reserved."""
        budget = self._budget(lineage)
        answer = admit_sums(budget.cap, budget.committed_rdp(), total_rdp(new, budget.cap.orders))
        if budget.exhausted:
            cap = budget.cap.epsilon
            return replace(answer, admitted=False, epsilon_spent=cap, epsilon_left=0.0)
        return answer

    def _budget(self, lineage: str) -> _Budget:
        if lineage not in self._budgets:
            raise OrderError(f"lineage {lineage} has no budget in the ledger")
        return self._budgets[lineage]

    def check(self, entry: Entry) -> None:
        """Return when `entry` may come next; raises as the module's docstring says."""
        if entry.index != self.size:
            raise OrderError(f"expected entry {self.size}, got {entry.index}")
        if (entry.kind == "workspace-created") != (self.size == 0):
            raise OrderError(f"a {entry.kind} entry cannot be number {entry.index}")
        if entry.time < self.last_time:
            raise OrderError(f"time runs back from {self.last_time} to {entry.time}")
        body = entry.body
        if entry.kind in ("key-added", "key-revoked"):
            Keyring.from_entries([*self._ring, entry])
        elif entry.kind == "dataset-created":
            self._check_dataset(body)
        elif entry.kind in ("intake", "vault-rotated", "vault-erased"):
            self._check_lineage(body["dataset"], body.get("lineage"))
        elif entry.kind == "run-reserved":
            self._check_reservation(body)
        elif entry.kind == "run-settled":
            self._check_settlement(body)
        elif entry.kind in judged.KINDS:
            judged.check_judgement(entry, self.run(body["run"]), self.keyring())
        elif entry.kind == "plan-approved":
            check_approval(body, self.keyring(), entry.time)
        elif entry.kind == "witnessed":
            check_witnessed(body, self.keyring(), entry.time)
        elif entry.kind == "recovered":
            self._check_recovery(entry)

    def _check_recovery(self, entry: Entry) -> None:
        named, here = sorted(entry.body["lineages"]), sorted(self._budgets)
        if named != here:
            raise OrderError(f"a recovery exhausts all {len(here)} budgets, and names {len(named)}")
        check_recovery(entry.body, self.keyring(), entry.time)

    def _check_dataset(self, body: Mapping[str, Any]) -> None:
        if body["dataset"] in self.datasets:
            raise OrderError(f"data set {body['dataset']} exists already")
        known = self._budgets.get(body["lineage"])
        cap = Cap.from_dict(body["cap"])
        if known is not None and (known.unit, known.cap) != (body["unit"], cap):
            raise PolicyRefused(
                f"lineage {body['lineage']} has a budget of epsilon {known.cap.epsilon:g} for "
                f"each {known.unit}, and this asks for {cap.epsilon:g} for each {body['unit']}",
                hint="a copy joins the budget of its lineage as it is",
            )

    def _check_lineage(self, dataset: str, lineage: str | None) -> None:
        if dataset not in self.datasets:
            raise OrderError(f"data set {dataset} is not in the ledger")
        if lineage not in (None, self.datasets[dataset]):
            raise OrderError(f"data set {dataset} belongs to another lineage than {lineage}")

    def _check_reservation(self, body: Mapping[str, Any]) -> None:
        self._check_lineage(body["dataset"], body["lineage"])
        if body["run"] in self._runs:
            raise OrderError(f"run {body['run']} was reserved before")
        if (ran := self.run_of_plan(body["plan_sha256"])) is not None:
            raise PlanError(
                f"this plan was reserved before, as run {ran}",
                hint="one plan is one run, and so is its approval: privft plan makes another",
            )
        mechanism = Mechanism.from_dict(body["mechanism"])
        budget = self._budget(body["lineage"])
        if mechanism.unit != budget.unit:
            raise PolicyRefused(
                f"this run protects each {mechanism.unit}, and the budget of {body['dataset']} is "
                f"for each {budget.unit}"
            )
        charged = judged.charged_by(body)
        answer = self.admission(body["lineage"], charged)
        if not answer.admitted:
            raise BudgetExceeded(
                f"this run needs epsilon {answer.epsilon_needed:.4g} and "
                f"{answer.epsilon_left:.4g} of {budget.cap.epsilon:g} is left for "
                f"data set {body['dataset']}",
                hint=_what_fits(budget, charged),
            )

    def _check_settlement(self, body: Mapping[str, Any]) -> None:
        record = self.run(body["run"])
        if record.settled is not None:
            raise OrderError(f"run {record.run} was settled by entry {record.settled}")
        if body["outcome"] == "closed" and body["steps_charged"] != record.steps:
            raise OrderError(f"run {record.run} is closed, so all {record.steps} steps are charged")
        expected = self.charge_for(record.run, body["steps_charged"])
        if [event_from_dict(event) for event in body["events"]] != list(expected):
            raise IntegrityError(f"run {record.run} is charged for other events than it reserved")

    def charge_for(self, run: str, steps: int) -> tuple[AnyEvent, ...]:
        """What a reserved run costs when `steps` of its steps drew noise.

        A selection costs all that it reserved, and only all of its steps settle it: a smaller
        number would say something about how many repetitions there were.
        """
        if run not in self._runs:
            raise OrderError(f"run {run} is not in the ledger")
        charged: tuple[AnyEvent, ...] = self._runs[run]["charged"]
        main, *others = charged
        if isinstance(main, Selection):
            if steps != self._runs[run]["steps"]:
                raise OrderError(
                    f"run {run} is a selection of {self._runs[run]['steps']} steps, which are "
                    f"charged whole, and {steps} are"
                )
            return charged
        if not 0 <= steps <= main.count:
            raise OrderError(f"run {run} reserved {main.count} steps, and {steps} are charged")
        if steps == main.count:
            return charged
        return (replace(main, count=steps), *others) if steps else tuple(others)

    def apply(self, entry: Entry) -> None:
        """Add an entry that was checked, or that a signed root vouches for."""
        body = entry.body
        self.positions["kind", entry.kind].append(entry.index)
        for name in ("run", "dataset"):
            if name in body:
                self.positions[name, body[name]].append(entry.index)
        if entry.kind == "workspace-created":
            self.workspace = body
        elif entry.kind in ("key-added", "key-revoked"):
            self._ring.append(entry)
        elif entry.kind == "dataset-created":
            self._add_dataset(body)
        elif entry.kind == "run-reserved":
            self._add_run(entry)
        elif entry.kind == "run-settled":
            self._settle(entry)
        elif entry.kind in judged.KINDS:
            self._runs[body["run"]].update(judged.judgement(entry))
        elif entry.kind == "recovered":
            self.recovered_notes.update(body["known"])
            for lineage in body["lineages"]:
                self._budgets[lineage].exhausted = True
        self.size = entry.index + 1
        self.last_time = entry.time

    def pass_over(self, kind: str, index: int, time: str) -> None:
        """What `apply` does for kinds that change nothing but where things stand."""
        self.positions["kind", kind].append(index)
        self.size = index + 1
        self.last_time = time

    def _add_dataset(self, body: Mapping[str, Any]) -> None:
        self.datasets[body["dataset"]] = body["lineage"]
        if body["lineage"] not in self._budgets:
            cap = Cap.from_dict(body["cap"])
            self._budgets[body["lineage"]] = _Budget(unit=body["unit"], cap=cap)

    def _add_run(self, entry: Entry) -> None:
        body = entry.body
        charged = judged.charged_by(body)
        self._runs[body["run"]] = {
            "run": body["run"],
            "dataset": body["dataset"],
            "lineage": body["lineage"],
            "actor": entry.actor,
            "steps": judged.steps_of(charged[0]),
            "charged": charged,
            "reserved": entry.index,
        }
        self._plans[body["plan_sha256"]] = body["run"]
        budget = self._budgets[body["lineage"]]
        budget.open[body["run"]] = charged
        budget.runs += 1

    def _settle(self, entry: Entry) -> None:
        body = entry.body
        charged = self.charge_for(body["run"], body["steps_charged"])
        facts = self._runs[body["run"]]
        budget = self._budgets[facts["lineage"]]
        del budget.open[body["run"]]
        budget.charge(charged)
        facts.update(settled=entry.index, outcome=body["outcome"], charged=charged)


def _what_fits(budget: _Budget, charged: Sequence[AnyEvent]) -> str:
    main, *beside = charged
    none = "the budget is spent: no further run on this data set is covered by its cap"
    if budget.exhausted:
        return none
    if isinstance(main, Selection):
        return "fewer repetitions on average, fewer steps, or more noise"
    spent = [*budget.spent(), *budget.reserved(), *beside]
    steps = steps_that_fit(budget.cap, spent, main)
    fewer = f"{steps} steps instead of {main.count}, or more noise (privft plan --fit)"
    return fewer if steps else none
