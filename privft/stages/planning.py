"""Plans: priced, checked against policy and budget, approved; before any record is opened.

`make_plan` calibrates the noise where the config names a target epsilon, prices the mechanism with
both accountants, holds it against the policy, and asks the Renyi filter whether it would be
admitted now.  A refusal is an entry of the ledger too: what was asked for and denied belongs to
the record of a budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from privft.audit.suite import load_suite
from privft.budget.accounting import cost
from privft.budget.entries import format_time
from privft.budget.filter import Admission, fits, steps_that_fit
from privft.budget.history import BudgetView
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Mechanism
from privft.budget.priced import Cost
from privft.budget.selection import AnyEvent, is_single
from privft.config import RunConfig
from privft.errors import BudgetExceeded, ConfigError, PlanError, PolicyRefused, PrivftError
from privft.plan import Plan, approval_message, charged_for, stale_reasons
from privft.policy import Check, PlanFacts, Policy, check, enforce, let_out
from privft.report import claim
from privft.signing import Identity, canonical_json, sha256_hex
from privft.stages import outlook
from privft.stages.affording import affordable_epsilon, mechanism_of, mechanism_with
from privft.stages.data import check_extends, dataset_entry, newest_root, policy_of
from privft.stages.modelling import model_facts
from privft.stages.seen import check_runs
from privft.stages.standing import check_witnessed
from privft.sweep import candidates_of
from privft.training.basemodel import BaseModel
from privft.vault.manifest import read_manifest_text, unsigned_manifest
from privft.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class Priced:
    """A plan with what a person wants to see beside it."""

    plan: Plan
    base: BaseModel
    cost: Cost
    substitute: Cost | None
    checks: list[Check]
    before: BudgetView
    admission: Admission
    more_runs: int
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For `privft plan --json`."""
        return {
            "plan_sha256": self.plan.digest,
            "dataset": self.plan.dataset,
            "unit": self.plan.mechanism["unit"],
            "epsilon": self.cost.epsilon,
            "delta": self.plan.delta,
            "cost": self.cost.to_dict(),
            "substitute": self.substitute and self.substitute.to_dict(),
            "mechanism": self.plan.mechanism,
            "budget": {
                "cap": self.before.cap.to_dict(),
                "epsilon_spent": self.before.epsilon_spent,
                "epsilon_after": self.admission.epsilon_after,
                "epsilon_left": self.before.epsilon_left,
            },
            "more_runs_like_this": self.more_runs,
            "checks": [row.to_dict() for row in self.checks],
            "warnings": self.warnings,
        }


def recipient_kinds(workspace: Workspace, dataset: str) -> tuple[str, ...]:
    """How the keys of a vault are held, from its public manifest."""
    manifest = unsigned_manifest(read_manifest_text(workspace.vault_path(dataset)))
    kinds = {wrap.recipient.holding.kind for wrap in manifest.recipients}
    return tuple(sorted(kinds))


def plan_facts(
    workspace: Workspace, plan: Plan, *, operator: str, approvers: tuple[str, ...] | None
) -> PlanFacts:
    """What the policy's rules are about."""
    config = plan.the_config()
    return PlanFacts(
        epsilon=plan.epsilon,
        two_accountants=None not in (plan.cost["epsilon_pld"], plan.cost["epsilon_rdp"]),
        delta=plan.delta,
        unit=plan.mechanism["unit"],
        declared_units=config.privacy.declared_units,
        suite=plan.suite,
        secure_noise=plan.mechanism["noise"] == "discrete-gaussian",
        recipients=recipient_kinds(workspace, plan.dataset),
        outputs=let_out(noised=config.evaluation.held_out is not None),
        operator=operator,
        approvers=approvers,
    )


def make_plan(
    workspace: Workspace,
    ledger: Ledger,
    config: RunConfig,
    base: BaseModel,
    *,
    actor: Identity,
    record: bool = True,
) -> Priced:
    """Price a run; raises `PolicyRefused` or `BudgetExceeded` when it may not be, and makes that an
    entry of the ledger when it is to `record`.

    The config's numbers must agree with what was declared when the data set was created.
    """
    dataset = dataset_entry(ledger, config.dataset).body
    policy = policy_of(workspace, ledger, config.dataset)
    check_declared(config, dataset)
    _check_form(workspace, config)
    mechanism = mechanism_of(config)
    events = charged_for(config, mechanism)
    priced = cost(events, config.privacy.delta_value)
    substitute = _substitute(events, config.privacy.delta_value)
    view = ledger.budget(dataset["lineage"])
    plan = Plan(
        created=format_time(datetime.now(UTC)),
        operator=actor.name,
        dataset=config.dataset,
        lineage=dataset["lineage"],
        manifest_root=newest_root(ledger, config.dataset),
        mechanism=mechanism.to_dict(),
        delta=config.privacy.delta_value,
        max_records_per_unit=config.privacy.records_per_unit,
        cost=priced.to_dict(),
        substitute=None if substitute is None else substitute.to_dict(),
        config=config.to_dict(),
        config_sha256=config.digest,
        policy=policy.to_dict(),
        policy_sha256=policy.digest,
        model=model_facts(base),
        suite=config.audit.suite,
        suite_sha256=load_suite(config.audit.suite)[1],
        budget_sha256=view.digest,
        checkpoint=ledger.checkpoint(),
    )
    checks = check(
        policy, plan_facts(workspace, plan, operator=actor.name, approvers=None), view.cap
    )
    admission = ledger.admission(view.lineage, events)
    try:
        enforce(policy, checks)
        if not admission.admitted:
            raise _exceeded(config, policy, view, admission, mechanism)
    except (PolicyRefused, BudgetExceeded) as refusal:
        if record:
            _record_refusal(ledger, plan, refusal, actor.name)
        raise
    spent = (*view.spent, *view.reserved)
    return Priced(
        plan=plan,
        base=base,
        cost=priced,
        substitute=substitute,
        checks=checks,
        before=view,
        admission=admission,
        more_runs=fits(view.cap, (*spent, *events), *events),
        warnings=outlook.warnings(mechanism),
    )


def _substitute(events: Sequence[AnyEvent], delta: float) -> Cost | None:
    """What replacing a unit costs, where an accountant knows that."""
    return None if is_single(events) else cost(events, delta, adjacency="substitute")


def check_declared(config: RunConfig, dataset: Mapping[str, Any]) -> None:
    """Raise `ConfigError` when the config declares other things than the data set was made with."""
    declared = {"unit": config.privacy.unit, "declared_units": config.privacy.declared_units}
    for name, value in declared.items():
        if dataset[name] != value:
            raise ConfigError(
                f"privacy.{name} is {value}, and data set {config.dataset} was created with "
                f"{dataset[name]}",
                hint=f"privacy.{name}: {dataset[name]}",
            )


def _check_form(workspace: Workspace, config: RunConfig) -> None:
    """Raise `ConfigError` when the task is not for records of the data set's form, or a score is
    asked for and no units are set aside."""
    manifest = unsigned_manifest(read_manifest_text(workspace.vault_path(config.dataset)))
    labelled = manifest.fields.form == "text-label"
    if labelled is not (config.task == "sequence-classification"):
        raise ConfigError(
            f"task {config.task} is not for records of the form {manifest.fields.form}, which data "
            f"set {config.dataset} has",
            hint="sequence-classification needs text and label, causal-lm needs no label",
        )
    if config.instruction is not None and manifest.fields.form != "prompt-completion":
        raise ConfigError(
            f"instruction asks for completions, and data set {config.dataset} has records of the "
            f"form {manifest.fields.form}",
            hint="it goes with --prompt and --completion of privft vault create; leave it out",
        )
    scored = config.evaluation.held_out or (config.selection and config.selection.held_out)
    if scored and manifest.caps.held_out_share == 0:
        raise ConfigError(
            f"a score on held-out units is asked for, and data set {config.dataset} sets no units "
            "aside",
            hint="a vault made with --held-out-share has some",
        )


def _record_refusal(ledger: Ledger, plan: Plan, refusal: PrivftError, actor: str) -> None:
    body = {"plan_sha256": plan.digest, "code": refusal.exit_code, "reason": refusal.message}
    ledger.append("run-refused", body, actor=actor)


def _exceeded(
    config: RunConfig,
    policy: Policy,
    view: BudgetView,
    admission: Admission,
    mechanism: Mechanism,
) -> BudgetExceeded:
    if view.exhausted:
        return BudgetExceeded(
            f"the budget of data set {config.dataset} is spent: a recovery gave entries up, and "
            "what they held counts as all that was left",
            hint="nothing more can be trained on it; privft ledger show says what is known",
        )
    needs = (
        f"this run needs epsilon {admission.epsilon_needed:.2f} more of the budget, and policy "
        f"{policy.name!r} has {view.epsilon_left:.2f} of {view.cap.epsilon:.2f} left for dataset "
        f"{config.dataset}"
    )
    if config.selection is not None:
        return BudgetExceeded(
            needs, hint="fewer repetitions on average, fewer steps, or more noise"
        )
    spent = (*view.spent, *view.reserved, *config.score_events())
    steps = steps_that_fit(view.cap, spent, mechanism.event())
    affordable = affordable_epsilon(config, policy, view)
    choices = []
    if affordable is not None:
        choices.append(f"--target-epsilon {affordable:.2f}")
    if steps:
        choices.append(f"{steps} steps instead of {mechanism.steps}")
    return BudgetExceeded(
        needs,
        hint=(" or ".join(choices) + " (privft plan --fit)")
        if choices
        else "nothing of this kind fits any more: the data set's budget is used up",
    )


def approve(ledger: Ledger, plan: Plan, *, approver: Identity) -> None:
    """Sign a plan; raises `PolicyRefused` when the ring does not name this person an approver."""
    ledger.keyring().may_with(approver.public, "approver", format_time(datetime.now(UTC)))
    signature = approver.signing.sign(approval_message(plan.digest)).hex()
    ledger.append(
        "plan-approved",
        {"plan_sha256": plan.digest, "approver": approver.name, "signature": signature},
        actor=approver.name,
    )


def approvals_of(ledger: Ledger, plan_sha256: str) -> list[dict[str, str]]:
    """Valid approvals of a plan: name, key id, time, signature."""
    ring = ledger.keyring()
    found = []
    for entry in ledger.entries(kind="plan-approved"):
        if entry.body["plan_sha256"] != plan_sha256:
            continue
        person = ring.may(entry.body["approver"], "approver", entry.time)
        key = person.verify_key
        key.verify(bytes.fromhex(entry.body["signature"]), approval_message(plan_sha256))
        found.append(
            {
                "name": person.name,
                "keyid": key.keyid,
                "time": entry.time,
                "signature": entry.body["signature"],
            }
        )
    return found


def check_unedited(plan: Plan) -> None:
    """Raise `PlanError` unless the plan says what follows from its own config and policy.

    An edit that leaves the file canonical changes the digest, which only a missing approval would
    show; so everything that follows is worked out again.  (Noise that was calibrated is held to
    its target: its last digits may differ between machines.)
    """
    config, mechanism = plan.the_config(), plan.the_mechanism()
    events, privacy = plan.events(), config.privacy
    priced = cost(events, plan.delta)
    substitute = _substitute(events, plan.delta)
    if config.selection is not None:
        candidates_of(config)  # every one of them is a config
    noise = privacy.noise_multiplier or mechanism.noise_multiplier
    stated = {
        "mechanism": (mechanism, mechanism_with(config, noise)),
        "delta": (plan.delta, privacy.delta_value),
        "max_records_per_unit": (plan.max_records_per_unit, privacy.records_per_unit),
        "dataset": (plan.dataset, config.dataset),
        "suite": (plan.suite, config.audit.suite),
        "policy": (sha256_hex(canonical_json(plan.policy)), plan.policy_sha256),
        "cost": (claim.compare(plan.cost, priced.to_dict()), []),
        "substitute": (claim.compare(plan.substitute, substitute and substitute.to_dict()), []),
    }
    wrong = [name for name, (says, follows) in stated.items() if says != follows]
    alone = cost([mechanism.event()], plan.delta) if config.selection is not None else priced
    if privacy.target_epsilon is not None and alone.epsilon > privacy.target_epsilon * (1 + 1e-6):
        wrong.append("target_epsilon")
    if wrong:
        raise PlanError(
            f"the plan was edited: its {' and '.join(wrong)} does not follow from its config",
            hint="make it again: privft plan",
        )


def check_fresh(workspace: Workspace, ledger: Ledger, plan: Plan) -> Policy:
    """Raise `PlanError` when something that the plan is bound to has changed; the policy.

    Raises `IntegrityError` when the ledger did not grow out of the checkpoint in the plan, or of
    one that an earlier run has seen.
    """
    if dataset_entry(ledger, plan.dataset).body["lineage"] != plan.lineage:
        raise PlanError(f"the plan names another lineage than that of {plan.dataset}")
    if (ran := ledger.run_of_plan(plan.digest)) is not None:
        if ledger.run(ran).settled is None:
            raise PlanError(
                f"this plan is reserved already, as run {ran}, which has not ended",
                hint=f"privft train --resume {ran} goes on with it",
            )
        raise PlanError(
            f"this plan was trained already, as run {ran}",
            hint="one plan is one run, and so is its approval: privft plan makes another",
        )
    check_extends(ledger, plan.checkpoint, "the plan")
    check_runs(workspace, ledger)
    policy = policy_of(workspace, ledger, plan.dataset)
    reasons = stale_reasons(
        plan,
        manifest_root=newest_root(ledger, plan.dataset),
        policy_sha256=policy.digest,
        budget_sha256=ledger.budget(plan.lineage).digest,
        suite_sha256=load_suite(plan.suite)[1],
    )
    if reasons:
        raise PlanError(
            f"the plan is stale: {' and '.join(reasons)} changed since it was made",
            hint="make it again: privft plan",
        )
    check_witnessed(ledger, policy, now=format_time(datetime.now(UTC)))
    return policy


def check_approved(
    workspace: Workspace, ledger: Ledger, plan: Plan, policy: Policy, *, operator: str
) -> list[Check]:
    """All policy checks, approvals included; raises `PlanError` where approval is missing."""
    names = tuple(row["name"] for row in approvals_of(ledger, plan.digest))
    facts = plan_facts(workspace, plan, operator=operator, approvers=names)
    checks = check(policy, facts, ledger.budget(plan.lineage).cap)
    missing = [row for row in checks if not row.ok and row.rule in ("approvals", "four_eyes")]
    if missing:
        others = replace(facts, approvers=None)
        enforce(policy, check(policy, others, ledger.budget(plan.lineage).cap))
        raise PlanError(
            f"policy {policy.name!r} wants {missing[0].rule} {missing[0].limit}, and the plan has "
            f"{len(names)} approval(s): {', '.join(names) or 'nobody'}",
            hint="privft approve PLAN --key FILE, by somebody who may",
        )
    enforce(policy, checks)
    return checks
