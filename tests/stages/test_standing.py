"""What `privft policy check` lists beyond a plan's own rules, and that nothing is left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privft.policy import Age, Policy, load_policy
from privft.stages.retention import PRIVATE
from privft.stages.standing import check_standing
from tests.budget.samples import audit_bodies, new_ledger, run_to_the_end
from tests.stages.world import NOTES, SIZE, World, base, note_rows, write_rows

AUDITED = "2030-01-01T00:00:00Z"
NOT_ASKED_OF_A_PLAN = {"filter_orders", "may_show_private_metrics"}
RULES = set(Policy.model_fields) - {"version", "name", "based_on", "purpose"} - NOT_ASKED_OF_A_PLAN

OVERLAY = """\
version: 1
name: ward
extends: default
purpose: a ward that wants a witness and an approval
witness_within:
  value: {entries: 100, days: 7.0}
  why: a disk that was set back must be noticed within a week
  source: ward committee
approvals: {value: 1, why: nobody trains alone on this ward, source: ward committee}
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def test_every_rule_that_can_refuse_a_run_is_listed_with_its_fix_and_reason(world: World) -> None:
    rows = world.privft("policy", "check", world.planned(), "--json", code=0).json
    assert {row["rule"] for row in rows} == RULES
    assert all(row["fix"] and len(row["why"]) >= 20 for row in rows)


def test_every_refusal_is_explained_by_rule_reason_and_fix(world: World) -> None:
    overlay = world.folder / "ward.yaml"
    overlay.write_text(OVERLAY)
    rows = write_rows(world.folder / "r.jsonl", note_rows(patients=10, seed=4))
    world.privft("vault", "create", "ward", "--from", rows, *NOTES, *SIZE, "--policy", overlay)
    config = world.config("ward-run")
    config.write_text(config.read_text().replace("dataset: notes", "dataset: ward"))
    world.privft("plan", config)
    plan = world.folder / "ward-run.plan"
    refused = world.privft("policy", "check", plan, code=10)
    for words in (
        "approvals: nobody trains alone on this ward\n  fix: privft approve, by 1 in all",
        "witness_within: a disk that was set back must be noticed within a week\n"
        "  fix: privft ledger witness ask NAME",
    ):
        assert words in refused.out
    assert "2 of 15 rules broken: approvals, witness_within" in refused.err
    world.privft("approve", plan)
    again = world.privft("policy", "check", plan, code=10)
    assert "1 of 15 rules broken: witness_within" in again.err
    same = world.privft("train", plan, code=10)
    assert "wants a witness within 100 entries and 7 days" in same.err, "the gate refuses it too"


def test_what_is_kept_on_real_units_is_listed_with_its_age_and_refuses_nothing(
    tmp_path: Path,
) -> None:
    workspace: Any = SimpleNamespace(run_path=lambda run: tmp_path / run)
    policy = load_policy("hospital")
    with new_ledger(tmp_path) as ledger:
        run = run_to_the_end(ledger)
        for kind, body in zip(
            ("audit-started", "run-audited"), audit_bodies(run, "passed"), strict=True
        ):
            ledger.append(kind, body, actor="ann", time=AUDITED)

        def retention(now: str) -> Any:
            rows = check_standing(workspace, ledger, "notes", policy, now=now)
            (row,) = (row for row in rows if row.rule == "retention_days")
            assert row.ok
            return row.limit, row.got

        assert retention("2030-01-11T12:00:00Z") == (30, None)
        (tmp_path / run).mkdir()
        (tmp_path / run / f"{PRIVATE}.sealed").write_bytes(b"x")
        assert retention("2030-01-11T12:00:00Z") == (30, "oldest findings 10.5 days old")
        due = "oldest findings 31.0 days old, goes with the next verb"
        assert retention("2030-02-01T00:00:00Z") == (30, due)


def test_a_witness_is_listed_as_what_it_last_said(tmp_path: Path) -> None:
    workspace: Any = SimpleNamespace(run_path=lambda run: tmp_path / run)
    policy = load_policy("default")
    rule = policy.witness_within.model_copy(update={"value": Age(entries=2, days=7.0)})
    asking = policy.model_copy(update={"witness_within": rule})
    with new_ledger(tmp_path) as ledger:
        for asked, ok in ((policy, True), (asking, False)):
            row = check_standing(workspace, ledger, "notes", asked, now=AUDITED)[0]
            assert (row.rule, row.got, row.ok) == ("witness_within", None, ok)
