"""What a verb of the path would do and what it would cost: the words of `--dry-run`.

Each function asks the same questions as the verb itself, through the same checks of `gate`, and
raises the same errors.  What it cannot know without doing it (whether every sealed cell opens, what
the attacks find) it does not say.  Nothing is written; the ledger is open for reading only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from privft import gate
from privft.budget.filter import fits
from privft.budget.ledger import Ledger
from privft.errors import BudgetExceeded, IntegrityError, UsageError
from privft.plan import Plan
from privft.signing import Identity
from privft.workspace import Workspace


def of_approve(ledger: Ledger, plan: Plan, *, approver: Identity) -> list[str]:
    """What `privft approve` would do."""
    from privft.stages.planning import approvals_of

    gate.check_approve(ledger, approver=approver)
    names = {row["name"] for row in approvals_of(ledger, plan.digest)} | {approver.name}
    needed = int(plan.policy["approvals"]["value"])
    return [
        f"{approver.name} would approve plan {plan.digest[:16]}, which then has {len(names)} of "
        f"{needed} approvals"
    ]


def of_train(
    workspace: Workspace, ledger: Ledger, plan: Plan, *, actor: Identity, config_folder: Path
) -> list[str]:
    """What `privft train PLAN` would reserve."""
    from privft.stages.modelling import check_base, evaluation_file, find_base

    gate.check_train(workspace, ledger, plan, actor=actor)
    config = plan.the_config()
    check_base(find_base(config, relative_to=config_folder), plan.model)
    evaluation_file(config, relative_to=config_folder)
    view, events = ledger.budget(plan.lineage), plan.events()
    admission = ledger.admission(plan.lineage, events)
    if not admission.admitted:
        raise BudgetExceeded(
            f"this run needs epsilon {admission.epsilon_needed:.4g} and {view.epsilon_left:.4g} of "
            f"{view.cap.epsilon:g} is left for data set {plan.dataset}",
            hint="privft plan --fit",
        )
    selection = plan.the_selection()
    times = f", {selection.most} times over," if selection else ""
    more = fits(view.cap, (*view.spent, *view.reserved, *events), *events)
    return [
        f"{actor.name} would train {plan.mechanism['steps']} steps{times} on {plan.dataset}, "
        "reserving "
        f"epsilon {plan.epsilon:.3f} at delta {plan.delta:g} before the first",
        f"the budget would go from {view.epsilon_spent:.2f} to {admission.epsilon_after:.2f} of "
        f"{view.cap.epsilon:.2f}; then {more} more such runs fit",
        "first every sealed cell and the mechanism would be checked, at no charge",
    ]


def of_resume(ledger: Ledger, plan: Plan, run: str, *, actor: Identity) -> list[str]:
    """What `privft train --resume RUN` would go on with."""
    gate.check_open(ledger, run, "resume", actor=actor)
    return [
        f"{actor.name} would go on with run {run} on {plan.dataset}; its epsilon of "
        f"{plan.epsilon:.3f} is reserved already, and nothing is added to it"
    ]


def of_audit(workspace: Workspace, ledger: Ledger, run: str, *, actor: Identity) -> list[str]:
    """What `privft audit` would attack, and how much of the run's significance it would spend."""
    from privft.audit.bounds import one_run_ceiling
    from privft.audit.suite import load_suite
    from privft.stages.auditing import upcoming_attempt

    gate.check_audit(workspace, ledger, run, actor=actor)
    plan = gate.plan_of(workspace, ledger, run)
    suite, digest = load_suite(plan.suite)
    if digest != plan.suite_sha256:
        raise IntegrityError(f"the audit suite {suite.name} is not the one that was planned")
    attempt, begun = upcoming_attempt(ledger, run, digest)
    specs = suite.specs(plan.the_config().task)
    significance = suite.test_significance(plan.the_config().task, attempt)
    ceiling = max(
        one_run_ceiling(
            canaries=spec.count, guesses=guesses, delta=plan.delta, significance=significance
        )
        for spec in specs
        for guesses in spec.guesses
    )
    spends = "which is spent already" if begun else "spent from its beginning on"
    return [
        f"{actor.name} would {'go on with' if begun else 'begin'} audit {attempt} of run {run}: "
        f"suite {suite.name}, {sum(spec.count for spec in specs)} canaries",
        f"it has a significance of {suite.audit_significance(attempt):g} of the run's "
        f"{suite.significance:g}, {spends}; a perfect attack would show epsilon {ceiling:.2f}",
        "no epsilon is charged: what decides is computed from the private model and made-up text",
    ]


def of_waive(
    ledger: Ledger, run: str, *, people: Sequence[Identity], reason: str, expires: str
) -> list[str]:
    """What `privft waive` would sign."""
    body = gate.waiver(ledger, run, people=people, reason=reason, expires=expires)
    names = " and ".join(row["name"] for row in body["signatures"])
    return [
        f"{names} would waive the failed audit of run {run} until {expires}; it could be released "
        "then, and page one of the report would say so"
    ]


def of_release(ledger: Ledger, run: str, target: Path, *, actor: Identity) -> list[str]:
    """What `privft release` would write."""
    state = gate.check_release(ledger, run, actor=actor)
    if target.exists():
        raise UsageError(f"{target} exists", hint="name a folder that does not exist yet")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent} to release into")
    how = {
        "passed": "for the first time",
        "waived": "under a waiver",
        "released": "once more, byte for byte",
    }[state]
    return [f"{actor.name} would release run {run} into {target}, {how}"]


def of_close(ledger: Ledger, run: str, *, actor: Identity) -> list[str]:
    """What `privft runs close` would give up."""
    gate.check_open(ledger, run, "close", actor=actor)
    return [f"{actor.name} would close run {run}, which stays charged in full"]
