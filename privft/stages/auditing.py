"""The audit of a settled run: attack it, state the facts, sign them.

The verdict comes from canaries, the control, and the checks of the mechanism alone.  What the
attacks on real units find is sealed beside the run, as advice to a person inside the enclave, and
no file that may leave repeats it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import privft
from privft.audit.attacks import membership_attack
from privft.audit.canaries import make_candidates
from privft.audit.control import control
from privft.audit.extraction import extracted
from privft.audit.selfcheck import Check
from privft.audit.suite import Suite, load_suite
from privft.audit.verdict import AuditResult, run_audit
from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.errors import IntegrityError
from privft.plan import Plan
from privft.policy import Check as PolicyCheck
from privft.randomness import KeyedStreams
from privft.report import statement
from privft.report.release import STATEMENT
from privft.signing import Identity, SigningKey, canonical_json, dsse_sign, sha256_hex
from privft.stages import facts as run_facts
from privft.stages import seen
from privft.stages.data import open_vault
from privft.stages.heldout import score_rows
from privft.stages.meter import Meter
from privft.stages.modelling import (
    Workbench,
    check_base,
    evaluation_file,
    find_base,
    public_units,
    shape_of,
)
from privft.stages.planted import canaries_of
from privft.stages.published import published_values
from privft.stages.ranked import trained_on_ranks
from privft.stages.reporting import write_report
from privft.stages.retention import PRIVATE
from privft.stages.running import Watch, claim_of_plan, stored_plan
from privft.stages.sealedrun import SealedRun, forget_secrets
from privft.stages.selecting import selection_facts
from privft.training.checkpoint import platform_facts
from privft.training.losses import (
    Classifier,
    LanguageModel,
    TrainedModel,
    trained_parameters,
)
from privft.training.scoring import losses_of_both, unit_accuracies
from privft.vault.keys import KeyOpener
from privft.vault.store import Vault
from privft.workspace import Workspace, write_private

_LAST_DIGITS = ("threads", "processor", "kernel_settings")
_PACKAGES = ("torch", "opacus", "transformers", "peft", "dp-accounting", "cryptography", "numpy")


def audit(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    *,
    actor: Identity,
    opener: KeyOpener,
    checks: list[PolicyCheck],
    watch: Watch,
) -> AuditResult:
    """Audit `run`; writes and signs the report, records the verdict, returns the findings.

    The findings say what each part took, in seconds (`AuditResult.seconds`); the model's
    usefulness, the report, and the control where it was not kept are parts of their own.
    """
    folder, meter = workspace.run_path(run), Meter()
    plan, config_folder = stored_plan(workspace, ledger, run)
    forget_secrets(folder)  # of a kill between settlement and clean-up
    config = plan.the_config()
    suite, suite_sha256 = load_suite(plan.suite)
    if suite_sha256 != plan.suite_sha256:
        raise IntegrityError(
            f"the audit suite {suite.name} is not the one that run {run} was planned with",
            hint="audit with the suite file whose SHA-256 the plan names",
        )
    with meter.part("base model"):
        base = find_base(config, relative_to=config_folder)
        check_base(base, plan.model)
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        sealed = SealedRun(run=run, folder=folder, vault=vault)
        workbench = Workbench.of(config, base)
        files = sealed.unseal_adapter()
        _check_files(ledger, run, files)
        watch.say("attacking a model made to leak (the control)")
        workspace.cache.mkdir(mode=0o700, exist_ok=True)
        with meter.part("control"):
            twin = control(suite, suite_sha256, task=config.task, folder=workspace.cache)
        with meter.part("base model"):
            untrained, trained = workbench.before_and_after(files)
        canaries = canaries_of(plan, sealed, workbench)
        attempt = _begin(ledger, run, suite, suite_sha256, actor=actor)
        watch.say("attacking the canaries of the run")
        streams = KeyedStreams(sealed.unseal("canaries"))
        selfchecks = [Check(**row) for row in json.loads(sealed.unseal("selfcheck"))]
        with meter.part("bounds"):
            result = run_audit(
                suite,
                suite_sha256,
                task=config.task,
                canaries=canaries,
                score=meter.metered(
                    "canaries", partial(workbench.losses_of_both, untrained, trained)
                ),
                claim=claim_of_plan(plan, relatives=plan.suite != "quick"),
                control=twin,
                selfcheck=selfchecks,
                candidates=make_candidates(
                    suite,
                    streams,
                    task=config.task,
                    shape=shape_of(vault),
                    vocabulary=workbench.vocabulary(),
                    records_per_unit=plan.max_records_per_unit,
                ),
                extract=meter.metered(
                    "extraction", lambda units: extracted(trained, units, workbench.encode)
                )
                if isinstance(trained, LanguageModel)
                else None,
                attempt=attempt,
            )
        watch.say("attacking real units (for the enclave's eyes only)")
        with meter.part("real units"):
            private = _membership(
                vault, workbench, untrained, trained, suite, records=plan.max_records_per_unit
            )
        sealed.seal(PRIVATE, json.dumps(private).encode())
        with meter.part("usefulness"):
            utility = [
                *_utility(plan, vault, workbench, untrained, trained, config_folder, watch),
                *score_rows(sealed, config, plan.delta),
            ]
        run_key = SigningKey.from_bytes("run", sealed.unseal("run-key"))
        head = _head(plan, trained)
        trained_on = trained_on_ranks(sealed)
        selected = selection_facts(sealed, config)
    watch.say("holding the accountants against published values")
    with meter.part("published values"):
        reference = published_values(workspace.cache)
    with meter.part("report"):
        body = run_facts.gather(
            ledger,
            run,
            plan,
            checks=checks,
            result=result,
            utility=utility,
            files={name: sha256_hex(data) for name, data in files.items()},
            head=head,
            trained_parameters=sum(p.numel() for p in trained_parameters(untrained).values()),
            reference=reference,
            versions=_versions(),
            machine={"python": platform.python_version(), "machine": platform.machine()},
            trained_on=trained_on,
            selected=selected,
            audited=format_time(datetime.now(UTC)),
        )
        stated = statement.build(body)
        payload = statement.payload(stated)
        envelope = dsse_sign(payload, statement.PAYLOAD_TYPE, [run_key])
        write_private(folder / STATEMENT, canonical_json(envelope) + b"\n")
        write_report(folder, stated, envelope, say=watch.say)
    ledger.append(
        "run-audited",
        {
            "run": run,
            "attempt": attempt,
            "verdict": result.verdict,
            "findings": list(result.findings),
            "statement_sha256": statement.digest(stated),
            "suite": suite.name,
            "suite_digest": suite_sha256,
        },
        actor=actor.name,
    )
    seen.keep(folder, ledger)
    return replace(result, seconds=meter.seconds())


def upcoming_attempt(ledger: Ledger, run: str, suite_sha256: str) -> tuple[int, bool]:
    """The number of the audit that would be held now, and whether it began already.

    An audit that was broken off is the same one still where suite, software and machine are the
    same: it puts the same question to the same scores, so going on costs no significance, and
    breaking it off wins none.  Anywhere else another attempt begins.
    """
    started = ledger.entries(kind="audit-started", run=run)
    if not started:
        return 1, False
    last = started[-1].body
    same = (last["suite_digest"], last["software_sha256"]) == (suite_sha256, _software())
    if ledger.run(run).auditing and same:
        return int(last["attempt"]), True
    return int(last["attempt"]) + 1, False


def _begin(ledger: Ledger, run: str, suite: Suite, suite_sha256: str, *, actor: Identity) -> int:
    """Charge an audit to the run's significance before any score is seen; its number."""
    attempt, begun = upcoming_attempt(ledger, run, suite_sha256)
    if not begun:
        ledger.append(
            "audit-started",
            {
                "run": run,
                "attempt": attempt,
                "significance": suite.audit_significance(attempt),
                "suite": suite.name,
                "suite_digest": suite_sha256,
                "software_sha256": _software(),
            },
            actor=actor.name,
        )
    return attempt


def _software() -> str:
    """SHA-256 over what the scores of an audit depend on beside the run itself, but for what
    changes no more than the last digits."""
    facts = platform_facts()
    machine = {name: str(fact) for name, fact in facts.items() if name not in _LAST_DIGITS}
    return sha256_hex(canonical_json({"versions": _versions(), "platform": machine}))


def _versions() -> dict[str, str]:
    return {"privft": privft.__version__} | {name: version(name) for name in _PACKAGES}


def _check_files(ledger: Ledger, run: str, files: Mapping[str, bytes]) -> None:
    settled = ledger.entries(kind="run-settled", run=run)[0].body["adapter"]
    found = {name: sha256_hex(data) for name, data in files.items()}
    if found != settled:
        raise IntegrityError(f"the adapter of run {run} is not the one that was settled")


def _membership(
    vault: Vault,
    workbench: Workbench,
    untrained: TrainedModel,
    trained: TrainedModel,
    suite: Suite,
    *,
    records: int,
) -> dict[str, Any]:
    """Attacks on real units; {"skipped": reason} where no unit was held out.

    records: how many of a unit are scored at most: as many as one step takes of it, so that the
        time of an audit does not grow with how much a subject wrote.
    """
    held = np.flatnonzero(vault.held_out_mask())
    members = np.flatnonzero(~vault.held_out_mask())
    most = suite.membership.units
    if min(len(held), len(members)) < 2:
        return {"skipped": "no units are held out; vault create --held-out-share sets some aside"}
    members = members[np.linspace(0, len(members) - 1, min(most, len(members))).astype(int)]

    def losses(numbers: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        opened = [unit.to_dict() for unit in vault.read_many(numbers.tolist())]
        units = [{**unit, "records": unit["records"][:records]} for unit in opened]
        before, after = workbench.losses_of_both(untrained, trained, units)
        kept = np.isfinite(before) & np.isfinite(after)
        return before[kept], after[kept]

    member_base, member_trained = losses(members)
    held_out_base, held_out_trained = losses(held[:most])
    found = membership_attack(
        member_base=member_base,
        member_trained=member_trained,
        held_out_base=held_out_base,
        held_out_trained=held_out_trained,
        spec=suite.membership,
    )
    return found.private_dict()


def _utility(
    plan: Plan,
    vault: Vault,
    workbench: Workbench,
    untrained: TrainedModel,
    trained: TrainedModel,
    config_folder: Path,
    watch: Watch,
) -> list[dict[str, Any]]:
    """What the adapter gained on public or generated text: free, since no vault is read."""
    path = evaluation_file(workbench.config, relative_to=config_folder)
    if path is None:
        return []
    watch.say("measuring usefulness on public text")
    records = public_units(path, vault.fields, most=workbench.config.evaluation.max_records)
    source = "generated" if workbench.config.synthetic else "public"
    units = [workbench.encode(unit) for unit in records]
    before, after = losses_of_both(untrained, trained, units)
    rows = [
        _compared(
            source,
            "loss per token" if plan_is_text(plan) else "loss per record",
            "nats",
            before,
            after,
            better="lower",
        )
    ]
    if isinstance(trained, Classifier) and isinstance(untrained, Classifier):
        hits = [unit_accuracies(model, units) for model in (untrained, trained)]
        whole = _compared(source, "accuracy", None, *hits, better="higher")
        labels = np.array([str(unit["records"][0]["label"]) for unit in records])
        rows = [whole, *_by_label(source, labels, *hits), *rows]
    return rows


def _by_label(
    source: str,
    labels: np.ndarray[Any, Any],
    before: np.ndarray[Any, Any],
    after: np.ndarray[Any, Any],
) -> list[dict[str, Any]]:
    """The accuracy on each label's own records: noise costs small groups the most."""
    rows = []
    for label in sorted(set(labels.tolist())):
        own = (labels == label) & np.isfinite(before) & np.isfinite(after)
        if own.any():
            row = _compared(source, "accuracy", None, before[own], after[own], better="higher")
            rows.append({**row, "group": label})
    return rows


def plan_is_text(plan: Plan) -> bool:
    """Whether losses are per token."""
    return bool(plan.config["task"] == "causal-lm")


def _compared(
    source: str,
    metric: str,
    unit: str | None,
    before: np.ndarray[Any, Any],
    after: np.ndarray[Any, Any],
    *,
    better: str,
) -> dict[str, Any]:
    """A paired comparison with a 95% interval (normal approximation of the mean difference, which
    says nothing on fewer than ten records)."""
    kept = np.isfinite(before) & np.isfinite(after)
    before, after = before[kept], after[kept]
    change = after - before
    half = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5 if len(change) > 1 else 0.0
    middle = float(change.mean())
    return {
        "source": source,
        "metric": metric,
        "unit": unit,
        "base": float(before.mean()),
        "trained": float(after.mean()),
        "difference": middle,
        "interval": [middle - half, middle + half] if len(change) >= 10 else None,
        "n": len(change),
        "better": better,
    }


def _head(plan: Plan, trained: TrainedModel) -> dict[str, Any] | None:
    if not isinstance(trained, Classifier):
        return None
    return {
        "file": "head.safetensors",
        "weight": "head.weight",
        "bias": "head.bias",
        "pooling": "mean",
        "feature_scale": Classifier.FEATURE_SCALE,
        "max_length": plan.config["max_length"],
        "labels": list(plan.config["labels"]),
    }
