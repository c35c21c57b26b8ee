"""The order of the stages: the one file that knows it, and the only way to them.

    plan -> (approve) -> train -> audit -> release
                           |        |
                         resume   waive, countersign

A run's state is a pure function of the ledger's entries about it (`state_of`); no flag on disk
can move it.  What may be done in which state stands in `_MAY`, and `require` refuses the rest with
`OrderError`, `AuditFailed` or `PlanError`; the ledger's own rules (`budget.history`) do so again.

    reserved    charged, not settled: being trained, or stopped in the middle
    closed      settled without an adapter; charged in full; nothing can follow
    trained     settled with a sealed adapter; not audited yet
    auditing    an audit began and has no verdict: only an audit can follow
    passed      the newest audit passed
    unproven    the newest audit's control failed, so it says nothing: it may be held again
    failed      an audit contradicted the run, for good: the adapter stays sealed
    waived      failed or unproven, and two people took it on themselves until a date
    released    left through the door; may be written out again, byte for byte

A missing audit is never a pass: `release` asks for `passed` or `waived` and for nothing less, and
a waiver is held once more against the ring of people as it is at the release.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from privft.budget.entries import format_time, parse_time
from privft.budget.judged import RunRecord
from privft.budget.ledger import Ledger
from privft.budget.signed import check_waiver
from privft.errors import AuditFailed, OrderError
from privft.signing import Identity
from privft.workspace import Workspace

if TYPE_CHECKING:  # these load torch; commands that need them import them when they run
    from privft.audit.verdict import AuditResult
    from privft.config import RunConfig
    from privft.plan import Plan
    from privft.policy import Check as PolicyCheck
    from privft.report.countersigned import Countersigned
    from privft.stages.planning import Priced
    from privft.stages.running import Watch
    from privft.stages.sweeping import SweepPrice
    from privft.sweep import Sweep
    from privft.training.ranks import Ranks
    from privft.vault.keys import KeyOpener

State = Literal[
    "reserved",
    "closed",
    "trained",
    "auditing",
    "passed",
    "unproven",
    "failed",
    "waived",
    "released",
]
Action = Literal["resume", "close", "audit", "waive", "countersign", "release"]

_MAY: dict[Action, frozenset[State]] = {
    "resume": frozenset({"reserved"}),
    "close": frozenset({"reserved"}),
    "audit": frozenset({"trained", "auditing", "passed", "unproven"}),
    "waive": frozenset({"failed", "unproven"}),
    "countersign": frozenset({"passed", "waived"}),
    "release": frozenset({"passed", "waived", "released"}),
}
_NEXT: dict[State, str] = {
    "reserved": "privft train --resume {run}",
    "closed": "make a new plan: privft plan",
    "trained": "privft audit {run}",
    "auditing": "privft audit {run} goes on with the audit that was broken off",
    "passed": "privft release {run} --to DIR",
    "unproven": "privft audit {run} again, where its control succeeds",
    "failed": "the adapter stays sealed; privft waive needs two people and a reason",
    "waived": "privft release {run} --to DIR",
    "released": "privft release {run} --to DIR writes the same folder again",
}
_SEALED: dict[State, str] = {
    "trained": "has not been audited",
    "auditing": "has an audit without an end",
    "unproven": "has an audit that proves nothing",
    "failed": "failed its audit",
}


def state_of(record: RunRecord, *, now: str) -> State:
    """The state of a run from what the ledger has heard of it, at a moment (ISO time)."""
    if record.settled is None:
        return "reserved"
    if record.outcome == "closed":
        return "closed"
    if record.released is not None:
        return "released"
    if record.auditing:
        return "auditing"
    if record.verdict is None:
        return "trained"
    if record.verdict == "passed":
        return "passed"
    until = record.waived_until
    if until is not None and parse_time(now) < parse_time(until):
        return "waived"
    return "failed" if record.contradicted else "unproven"


def next_step(state: State, run: str) -> str:
    """What a person does next."""
    return _NEXT[state].format(run=run)


def require(record: RunRecord, action: Action, *, now: str) -> State:
    """The run's state if `action` may be done in it; raises otherwise.

    Errors: `AuditFailed` when release lacks a passed audit, `OrderError` for everything else.
    """
    state = state_of(record, now=now)
    if state in _MAY[action]:
        return state
    hint = next_step(state, record.run)
    if action == "release" and state in _SEALED:
        raise AuditFailed(f"run {record.run} {_SEALED[state]}: its adapter stays sealed", hint=hint)
    raise OrderError(f"run {record.run} is {state}: this is not the time to {action} it", hint=hint)


def _now() -> str:
    return format_time(datetime.now(UTC))


def _may_operate(ledger: Ledger, actor: Identity) -> None:
    ledger.keyring().may_with(actor.public, "operator", _now())


def _expire(workspace: Workspace, ledger: Ledger, dataset: str) -> None:
    """What the policy lets be kept no longer goes before anything new is made."""
    from privft.stages import data, retention

    policy = data.policy_of(workspace, ledger, dataset)
    retention.expire(workspace, ledger, dataset, policy, now=_now())


def plan(
    workspace: Workspace,
    ledger: Ledger,
    config: RunConfig,
    *,
    config_folder: Path,
    actor: Identity,
    fit: bool = False,
    record: bool = True,
) -> Priced:
    """Price a run; with `fit`, at the largest epsilon that the budget still admits.

    record: whether a refusal becomes an entry of the ledger.
    """
    from privft.stages import affording, modelling, planning

    _may_operate(ledger, actor)
    if fit:
        config = affording.fitted(workspace, ledger, config)
    base = modelling.find_base(config, relative_to=config_folder)
    modelling.evaluation_file(config, relative_to=config_folder)
    return planning.make_plan(workspace, ledger, config, base, actor=actor, record=record)


def price_sweep(
    workspace: Workspace, ledger: Ledger, sweep: Sweep, base: RunConfig, *, actor: Identity
) -> SweepPrice:
    """What all runs of a sweep cost together; nothing is written."""
    from privft.stages import sweeping

    _may_operate(ledger, actor)
    return sweeping.price(workspace, ledger, sweep, base)


def check_approve(ledger: Ledger, *, approver: Identity) -> None:
    """Return when this person may approve plans, and sign reports, now."""
    ledger.keyring().may_with(approver.public, "approver", _now())


def approve(ledger: Ledger, the_plan: Plan, *, approver: Identity) -> None:
    """Sign a plan as an approver."""
    from privft.stages import planning

    planning.approve(ledger, the_plan, approver=approver)


def check_train(
    workspace: Workspace, ledger: Ledger, the_plan: Plan, *, actor: Identity
) -> list[PolicyCheck]:
    """The policy's rules, all kept, when this plan may be trained now by this person."""
    from privft.stages import planning

    _may_operate(ledger, actor)
    planning.check_unedited(the_plan)
    policy = planning.check_fresh(workspace, ledger, the_plan)
    return planning.check_approved(workspace, ledger, the_plan, policy, operator=actor.name)


def train(
    workspace: Workspace,
    ledger: Ledger,
    the_plan: Plan,
    *,
    config_folder: Path,
    actor: Identity,
    opener: KeyOpener,
    watch: Watch,
    ranks: Ranks,
) -> str:
    """Reserve and train; the run's id.  The plan must be fresh, allowed and approved."""
    from privft.stages import running

    check_train(workspace, ledger, the_plan, actor=actor)
    _expire(workspace, ledger, the_plan.dataset)
    return running.start(
        workspace,
        ledger,
        the_plan,
        actor=actor,
        opener=opener,
        config_folder=config_folder,
        watch=watch,
        ranks=ranks,
    )


def follow(
    workspace: Workspace,
    ledger: Ledger,
    the_plan: Plan,
    *,
    config_folder: Path | None,
    actor: Identity,
    opener: KeyOpener,
    ranks: Ranks,
) -> None:
    """Lend a hand to a run that rank 0 of `ranks` trains or resumes, and that it answers for."""
    from privft.stages import ranked

    _may_operate(ledger, actor)
    ranked.follow(
        workspace, ledger, the_plan, opener=opener, config_folder=config_folder, ranks=ranks
    )


def plan_of(workspace: Workspace, ledger: Ledger, run: str, by: Identity | None = None) -> Plan:
    """The plan of a run; if it was changed and somebody (`by`) would go on, that closes the run."""
    from privft.stages import running

    ledger.run(run)  # an unknown run is named as such
    if by is not None:
        check_open(ledger, run, "resume", actor=by)
    return running.stored_plan(workspace, ledger, run, by=by)[0]


def check_open(ledger: Ledger, run: str, action: Action, *, actor: Identity) -> None:
    """Return when this person may do this with a run that was stopped in the middle."""
    _may_operate(ledger, actor)
    require(ledger.run(run), action, now=_now())


def resume(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    *,
    actor: Identity,
    opener: KeyOpener,
    watch: Watch,
    ranks: Ranks,
) -> None:
    """Go on with a run that was stopped in the middle."""
    from privft.stages import running

    check_open(ledger, run, "resume", actor=actor)
    running.resume(workspace, ledger, run, actor=actor, opener=opener, watch=watch, ranks=ranks)


def close(workspace: Workspace, ledger: Ledger, run: str, *, actor: Identity, reason: str) -> None:
    """Give up a run that was stopped in the middle; it stays charged in full."""
    from privft.stages.sealedrun import forget_secrets

    check_open(ledger, run, "close", actor=actor)
    forget_secrets(workspace.run_path(run))
    ledger.settle(
        run, actor=actor.name, outcome="closed", reason=reason, steps_drawn=0, adapter=None
    )


def check_audit(
    workspace: Workspace, ledger: Ledger, run: str, *, actor: Identity
) -> list[PolicyCheck]:
    """The policy's rules, all kept, when this run may be audited now by this person."""
    from privft.stages import data, planning

    _may_operate(ledger, actor)
    record = ledger.run(run)
    require(record, "audit", now=_now())
    the_plan = plan_of(workspace, ledger, run)
    policy = data.policy_of(workspace, ledger, the_plan.dataset)
    return planning.check_approved(workspace, ledger, the_plan, policy, operator=record.actor)


def audit(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    *,
    actor: Identity,
    opener: KeyOpener,
    watch: Watch,
) -> AuditResult:
    """Attack a trained run and sign the report; a failed verdict is returned, not raised.

    An audit that was broken off is gone on with, as the same attempt at the same significance.
    """
    from privft.stages import auditing

    checks = check_audit(workspace, ledger, run, actor=actor)
    _expire(workspace, ledger, ledger.run(run).dataset)
    return auditing.audit(
        workspace, ledger, run, actor=actor, opener=opener, checks=checks, watch=watch
    )


def waive(
    ledger: Ledger, run: str, *, people: Sequence[Identity], reason: str, expires: str
) -> None:
    """Two people take a failed audit on themselves until `expires` (ISO time)."""
    body = waiver(ledger, run, people=people, reason=reason, expires=expires)
    ledger.append("run-waived", body, actor=people[0].name)


def waiver(
    ledger: Ledger, run: str, *, people: Sequence[Identity], reason: str, expires: str
) -> dict[str, Any]:
    """The body of the waiver that these people sign; raises where it would not hold."""
    from privft.stages import waiving

    now = _now()
    require(ledger.run(run), "waive", now=now)
    return waiving.signed(ledger, run, people=people, reason=reason, expires=expires, now=now)


def check_standing_waiver(ledger: Ledger, run: str, *, now: str) -> None:
    """Return when the newest waiver of a run holds today.

    Its signatures are checked over the statement of the audit that it waives, with the keys of the
    time when it was given; and everybody who signed must still be an approver with the same key
    now, since a person who was revoked answers for nothing any more.
    Errors: SignatureError, PolicyRefused or OrderError that says what is missing.
    """
    waived = ledger.entries(kind="run-waived", run=run)[-1]
    audited = ledger.entries(kind="run-audited", run=run)[-1]
    ring, statement_sha256 = ledger.keyring(), audited.body["statement_sha256"]
    if waived.index < audited.index:
        raise OrderError(f"the waiver of run {run} is older than its newest audit")
    for moment in (waived.time, now):
        check_waiver(waived.body, ring, moment, statement_sha256=statement_sha256)


def check_release(ledger: Ledger, run: str, *, actor: Identity) -> State:
    """The run's state when this person may release it now."""
    _may_operate(ledger, actor)
    now = _now()
    state = require(ledger.run(run), "release", now=now)
    if state == "waived":
        check_standing_waiver(ledger, run, now=now)
    return state


def countersign(
    workspace: Workspace, ledger: Ledger, run: str, *, person: Identity, dry_run: bool = False
) -> tuple[str, Countersigned]:
    """An approver signs the report of an audited run; the statement's digest, and who signed."""
    from privft.stages import releasing

    require(ledger.run(run), "countersign", now=_now())
    check_approve(ledger, approver=person)
    return releasing.countersign(workspace, ledger, run, person=person, dry_run=dry_run)


def release(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    target: Path,
    *,
    actor: Identity,
    opener: KeyOpener,
    merge: bool,
    say: Callable[[str], None],
) -> dict[str, str]:
    """The only exit: write adapter and report into `target`, with `merge` a merged model too."""
    from privft.stages import releasing

    check_release(ledger, run, actor=actor)
    _expire(workspace, ledger, ledger.run(run).dataset)
    return releasing.release(
        workspace, ledger, run, target, actor_name=actor.name, opener=opener, merge=merge, say=say
    )
