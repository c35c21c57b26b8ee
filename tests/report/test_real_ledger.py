"""The proof from the real ledger: what `budget.ledger` logs is what `report.proof` proves."""

from __future__ import annotations

from pathlib import Path

from privft.budget.filter import Cap
from privft.budget.ledger import Ledger
from privft.report.proof import build_proof, check_proof
from tests.report.made_up import hexes
from tests.report.released import LOG, ORIGIN, true_facts


def test_entries_of_a_run_in_the_real_ledger_are_proven(tmp_path: Path) -> None:
    facts = true_facts()
    cap = Cap.from_dict(facts["ledger"]["cap"])
    with Ledger.create(
        tmp_path / "ledger.db", log_key=LOG, origin=ORIGIN, workspace_id="ward-7"
    ) as ledger:
        ledger.append(
            "dataset-created",
            {"dataset": "notes-2026", "lineage": facts["run"]["lineage"], "unit": "subject",
             "cap": cap.to_dict(), "declared_units": 4000, "policy": "hospital",
             "policy_digest": hexes("policy"), "manifest_root": hexes("manifest"),
             "manifest_digest": hexes("version")},
            actor="mira-okafor",
        )  # fmt: skip
        before = ledger.checkpoint()
        body = {
            "dataset": "notes-2026", "lineage": facts["run"]["lineage"],
            "plan_sha256": facts["plan"]["sha256"], "mechanism": facts["mechanism"],
            "events": facts["events"], "run_key": facts["run"]["run_key"],
            "policy_digest": hexes("policy"), "config_sha256": hexes("config"),
            "model_sha256": hexes("model"), "epsilon": facts["guarantee"]["cost"],
        }  # fmt: skip
        run = ledger.reserve(actor="mira-okafor", body=body, cap=cap).body["run"]
        ledger.settle(run, actor="mira-okafor", outcome="completed", reason="done",
                      steps_drawn=60, adapter={"adapter_config.json": hexes("a")})  # fmt: skip
        proof = build_proof(ledger, run=run, log_key=LOG.public, checkpoint_before=before)
        proven = check_proof(proof, LOG.public)
    assert [entry.kind for entry in proven.entries] == ["run-reserved", "run-settled"]
    assert proven.only("run-settled").body["events"] == facts["events"]
    assert proven.extends == before
