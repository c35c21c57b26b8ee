"""The run itself: reserve, train under the journal, settle; and going on after a crash.

The order is a law (DESIGN.md, invariants 3 and 4):

    1  check the vault and, on generated units, the
       mechanism; look at the plan once more          nothing is reserved when one of them fails
    2  reserve the worst case in the ledger           exclusive, durable
    3  seal the run's secrets                         fresh operating-system randomness
    4  per step: journal the intent, then draw noise
       (a randomly stopped sweep: all steps of all
       repetitions, as `selecting` has it)
    5  seal the adapter, and a score on held-out units with its noise where one was asked for
    6  settle                                         charges what ran
    7  destroy the run secret and the checkpoints

A kill between 2 and 3 leaves a reservation without secrets, which can only be closed and charged.
A kill anywhere later is gone on with by `resume`: from the newest checkpoint, under the same
secret, replaying steps whose journalled digests must match.  Where they do not match, the run is
closed and charged whole, because the same noise on two different sums would cancel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from privft.audit.attacks import Claim, claim_of
from privft.audit.selfcheck import Check, check_mechanism
from privft.audit.stepcheck import check_step
from privft.audit.suite import load_suite
from privft.budget.accounting import cost
from privft.budget.ledger import Ledger
from privft.errors import InputError, IntegrityError, OrderError, PlanError, PrivftError
from privft.plan import Plan, parse_plan
from privft.randomness import KeyedStreams, fresh_secret
from privft.signing import Identity, SigningKey, sha256_hex
from privft.stages import seen
from privft.stages.data import open_vault
from privft.stages.heldout import seal_score
from privft.stages.modelling import VaultUnits, Workbench, check_base, evaluation_file, find_base
from privft.stages.planning import check_fresh
from privft.stages.planted import canaries_of, drafted
from privft.stages.ranked import hand_over, step_context
from privft.stages.sealedrun import SealedRun, config_folder_of, forget_secrets
from privft.stages.selecting import NOTHING, train_repetitions
from privft.training import adapter
from privft.training.loop import StepReport, train
from privft.training.losses import TrainedModel
from privft.training.ranks import ALONE, Ranks
from privft.training.sharding import shard_base
from privft.vault.keys import KeyOpener
from privft.vault.store import Vault
from privft.workspace import Workspace, write_private


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who is told what: `say` gets lines for people, `step` the loop's reports (private parts
    are shown only where the policy says so, which the caller decides)."""

    say: Callable[[str], None] = lambda line: None
    step: Callable[[StepReport], None] = lambda report: None


def start(
    workspace: Workspace,
    ledger: Ledger,
    plan: Plan,
    *,
    actor: Identity,
    opener: KeyOpener,
    config_folder: Path,
    watch: Watch,
    ranks: Ranks = ALONE,
) -> str:
    """Reserve and train, as rank 0 of `ranks`; the id of the settled run."""
    config = plan.the_config()
    base = find_base(config, relative_to=config_folder)
    check_base(base, plan.model)
    evaluation_file(config, relative_to=config_folder)
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        workbench = Workbench.of(config, base)
        watch.say("checking every sealed cell of the data")
        vault.verify()
        _rehearse(plan, vault, workbench, config_folder)
        watch.say("checking the mechanism on generated units")
        checks = _self_check(plan, workbench)
        run_key = SigningKey.generate("run")
        check_fresh(workspace, ledger, plan)  # the checks took a while: another run may be there
        entry = ledger.reserve(
            actor=actor.name,
            body={
                "dataset": plan.dataset,
                "lineage": plan.lineage,
                "plan_sha256": plan.digest,
                "mechanism": plan.mechanism,
                "events": [event.to_dict() for event in plan.events()],
                "run_key": run_key.public.hex,
                "policy_digest": plan.policy_sha256,
                "config_sha256": plan.config_sha256,
                "model_sha256": plan.model.weights_sha256,
                "epsilon": plan.cost,
            },
            cap=ledger.budget(plan.lineage).cap,
            budget_sha256=plan.budget_sha256,
        )
        run = str(entry.body["run"])
        watch.say(f"reserved as run {run}")
        sealed = SealedRun(run=run, folder=workspace.run_path(run), vault=vault)
        write_private(sealed.folder / "plan.json", plan.to_bytes() + b"\n")
        seen.keep(sealed.folder, ledger)
        place = {"config_folder": os.fspath(config_folder.resolve())}
        write_private(sealed.folder / "place.json", json.dumps(place).encode() + b"\n")
        sealed.seal("run-key", run_key.private_bytes())
        sealed.seal("canaries", fresh_secret())
        sealed.seal("selfcheck", json.dumps([c.to_dict() for c in checks]).encode())
        sealed.seal("secret", fresh_secret())  # last: with it the run can be gone on with
        _train_and_settle(ledger, plan, sealed, workbench, actor=actor, watch=watch, ranks=ranks)
    return run


def resume(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    *,
    actor: Identity,
    opener: KeyOpener,
    watch: Watch,
    ranks: Ranks = ALONE,
) -> None:
    """Go on with a reserved run after a crash, or close it where that cannot be done."""
    folder = workspace.run_path(run)
    plan, config_folder = stored_plan(workspace, ledger, run, by=actor)
    seen.check_runs(workspace, ledger)
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        sealed = SealedRun(run=run, folder=folder, vault=vault)
        if not sealed.has("secret"):
            reason = "stopped before its secrets were sealed"
            close(ledger, run, folder=folder, actor=actor, reason=reason)
        base = find_base(plan.the_config(), relative_to=config_folder)
        try:
            check_base(base, plan.model)
            if vault.manifest_root != plan.manifest_root:
                raise OrderError("the data changed since the plan was made")
        except PrivftError as error:
            close(ledger, run, folder=folder, actor=actor, reason=error.message)
        workbench = Workbench.of(plan.the_config(), base)
        state = sealed.unseal("checkpoint") if sealed.has("checkpoint") else None
        watch.say("going on from the newest checkpoint" if state else "starting over, same secret")
        _train_and_settle(
            ledger, plan, sealed, workbench, actor=actor, watch=watch, ranks=ranks, resume=state
        )


def close(ledger: Ledger, run: str, *, folder: Path, actor: Identity, reason: str) -> NoReturn:
    """Settle a run that cannot be gone on with: charged whole.  Always raises."""
    forget_secrets(folder)  # first: a kill in between leaves a run that can only be closed
    ledger.settle(
        run, actor=actor.name, outcome="closed", reason=reason, steps_drawn=0, adapter=None
    )
    seen.keep(folder, ledger)
    raise OrderError(
        f"run {run} is closed and charged in full: {reason}",
        hint="make a new plan: privft plan",
    )


def stored_plan(
    workspace: Workspace, ledger: Ledger, run: str, *, by: Identity | None = None
) -> tuple[Plan, Path]:
    """The plan of a run, and the folder that paths in its config are relative to.

    Errors: `PlanError` or `IntegrityError` when it is not the plan that the reservation names.
    Where somebody (`by`) would go on with the run, that closes it: another sampling probability,
    batch, clip norm or microbatch under the same secret is another sum under the same noise.
    """
    folder = workspace.run_path(run)
    (reserved,) = ledger.entries(kind="run-reserved", run=run)
    try:
        plan = parse_plan((folder / "plan.json").read_bytes())
        place = config_folder_of(folder)
        if plan.digest != reserved.body["plan_sha256"]:
            raise IntegrityError(
                f"{folder / 'plan.json'} is not the plan that run {run} was reserved for"
            )
    except FileNotFoundError as error:
        raise OrderError(
            f"run {run} was stopped before anything of it was kept",
            hint=f"privft runs close {run} --reason TEXT",
        ) from error
    except (PlanError, IntegrityError):
        if by is None:
            raise
        reason = "its plan is not the one that it was reserved for"
        close(ledger, run, folder=folder, actor=by, reason=reason)
    return plan, place


def claim_of_plan(plan: Plan, *, relatives: bool = False) -> Claim:
    """What the run promises, for attacks to contradict: its own trade-off curve.

    relatives: also the curves at other noise multipliers (seconds each), which turn the f-DP test
        from a yes or no into a bound.
    """
    return claim_of(
        plan.events(),
        epsilon=plan.epsilon,
        delta=plan.delta,
        relatives=relatives,
    )


def _claim_of_training(plan: Plan) -> Claim:
    """What one training promises: the whole run, or one repetition of a randomly stopped sweep."""
    selection = plan.the_selection()
    if selection is None:
        return claim_of_plan(plan)
    alone = cost(selection.events, plan.delta).epsilon
    return claim_of(selection.events, epsilon=alone, delta=plan.delta, relatives=False)


def _self_check(plan: Plan, workbench: Workbench) -> list[Check]:
    suite, _ = load_suite(plan.suite)
    mechanism = plan.the_mechanism()
    checks = check_mechanism(
        suite.selfcheck, fresh_secret(), mechanism=mechanism, claim=_claim_of_training(plan)
    )
    checks += check_step(
        workbench.fresh(),
        workbench.encode,
        workbench.vocabulary(),
        mechanism=mechanism,
        task=workbench.config.task,
        max_length=workbench.config.max_length,
        gradient_checkpointing=workbench.performance().gradient_checkpointing,
    )
    failed = [check for check in checks if not check.ok]
    if failed:
        raise IntegrityError(
            f"self-check failed: {failed[0].check}: {failed[0].detail}",
            hint="nothing was charged; do not train on this machine before it is understood",
        )
    return checks


def _rehearse(plan: Plan, vault: Vault, workbench: Workbench, config_folder: Path) -> None:
    """Raise `InputError` or `UsageError` for what would stop the run after its reservation: labels
    that the config does not list, a form of record or canaries that the tokenizer cannot do."""
    labels = workbench.config.labels
    if labels and any(r["label"] not in labels for unit in vault for r in unit.records):
        raise InputError(
            "a record carries a label that the config's `labels` does not list",
            hint="labels come from the config, never from the records: list them all",
        )
    asks = (
        "the records are conversations"
        if vault.fields.form == "messages"
        else (workbench.config.instruction and "the config has an instruction")
    )
    if asks and not workbench.tokenizer.chat_template:
        raise InputError(
            f"{asks}, and the tokenizer has no chat template",
            hint="save one beside the tokenizer: chat_template.jinja",
        )
    suite, _ = load_suite(plan.suite)
    streams = KeyedStreams(fresh_secret())
    for canary in drafted(plan, suite, streams, workbench, vault, config_folder):
        workbench.encode(canary.unit)


def _train_and_settle(
    ledger: Ledger,
    plan: Plan,
    sealed: SealedRun,
    workbench: Workbench,
    *,
    actor: Identity,
    watch: Watch,
    ranks: Ranks,
    resume: bytes | None = None,
) -> None:
    run, secret = sealed.run, sealed.unseal("secret")
    included = [canary for canary in canaries_of(plan, sealed, workbench) if canary.included]
    canaries = [workbench.encode(canary.unit) for canary in included]
    hand_over(ranks, sealed, plan, secret=secret, canaries=canaries, state=resume)

    def give_up(reason: str) -> NoReturn:
        close(ledger, run, folder=sealed.folder, actor=actor, reason=reason)

    def journal(step: int, digest: str) -> None:
        try:
            ledger.journal(run, step, digest)
        except OrderError as error:
            # Another state than the one whose noise may be known already.
            give_up(error.message)

    def train_one(
        bench: Workbench,
        streams: KeyedStreams,
        *,
        save: Callable[[bytes], None],
        resume: bytes | None,
        first: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> TrainedModel:
        model = bench.fresh()
        if bench.config.ranks.shard_base:
            shard_base(model, ranks)
        untrained = adapter.trained_snapshot(model)
        train(
            model,
            units=VaultUnits(sealed.vault, bench),
            canaries=canaries,
            mechanism=plan.the_mechanism(),
            max_records_per_unit=plan.max_records_per_unit,
            optimisation=bench.optimisation(),
            performance=bench.performance(),
            streams=streams,
            context={**step_context(plan, bench, ranks), **(context or {})},
            journal=lambda step, digest: journal(first + step, digest),
            save=save,
            resume=resume,
            tell=lambda report: watch.step(replace(report, step=first + report.step)),
            ranks=ranks,
        )
        if not adapter.has_moved(model, untrained):
            give_up("the adapter did not move")
        return model

    selection = plan.the_selection()
    if selection is None:
        kept: TrainedModel | None = train_one(
            workbench,
            KeyedStreams(secret),
            save=lambda state: sealed.seal("checkpoint", state),
            resume=resume,
        )
    else:
        watch.say(f"training {selection.most} repetitions; how many of them count stays hidden")
        kept = train_repetitions(
            plan,
            selection,
            sealed,
            workbench,
            secret=secret,
            train_one=train_one,
            resume=resume,
        )
    if kept is None:
        give_up(NOTHING)
    files = adapter.adapter_files(kept, base_name=workbench.base.name)
    sealed.seal_adapter(files)
    if workbench.config.evaluation.held_out is not None:
        watch.say("measuring the units that are set aside; what is kept of it is noised")
        seal_score(sealed, workbench, files, context=step_context(plan, workbench, ranks))
    ledger.settle(
        run,
        actor=actor.name,
        outcome="completed",
        reason="all steps ran",
        steps_drawn=ledger.run(run).steps,
        adapter={name: sha256_hex(data) for name, data in files.items()},
    )
    forget_secrets(sealed.folder)
    seen.keep(sealed.folder, ledger)
