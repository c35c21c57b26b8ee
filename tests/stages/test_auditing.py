"""An audit counts from its beginning, is gone on with when broken off, and keeps to its suite."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from privft.audit.canaries import PREFIX
from privft.stages import auditing
from privft.stages.auditing import upcoming_attempt
from privft.stages.modelling import Workbench
from tests.budget.samples import HASH, audit_bodies, new_ledger, run_to_the_end
from tests.stages.world import World, base, released

NOW = "2030-01-01T00:00:00Z"


class Killed(Exception):
    """The process died."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def test_a_broken_off_audit_is_gone_on_with_as_the_same_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.trained()
    out = ("--to", world.folder / "out")

    def dies(*_: Any) -> None:
        raise Killed  # the scores are known, and no verdict is recorded

    with monkeypatch.context() as patch:
        patch.setattr(auditing, "published_values", dies)
        world.privft("audit", run, code=None)
    assert world.privft("runs", "show", run, "--json").json["state"] == "auditing"
    refused = world.privft("release", run, *out, code=12)
    assert "has an audit without an end" in refused.err
    assert "would go on with audit 1" in world.privft("audit", run, "--dry-run").err
    world.privft("audit", run)
    kinds = [kind for kind in world.kinds() if "audit" in kind]
    assert kinds == ["audit-started", "run-audited"]
    world.privft("release", run, *out)


def test_a_suite_that_was_edited_after_the_plan_is_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = world.trained()
    suite, _ = auditing.load_suite("quick")
    blunt = suite.model_copy(update={"significance": 1e-9})
    monkeypatch.setattr(auditing, "load_suite", lambda _: (blunt, "cd" * 32))
    refused = world.privft("audit", run, code=13)
    assert "is not the one that run" in refused.err
    assert "audit-started" not in world.kinds()


def test_only_the_same_audit_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "_software", lambda: HASH)
    with new_ledger(tmp_path) as ledger:
        run = run_to_the_end(ledger)
        assert upcoming_attempt(ledger, run, HASH) == (1, False)
        began, ended = audit_bodies(run, "passed")
        ledger.append("audit-started", began, actor="ann", time=NOW)
        assert upcoming_attempt(ledger, run, HASH) == (1, True)
        assert upcoming_attempt(ledger, run, "cd" * 32) == (2, False)
        with monkeypatch.context() as patch:
            patch.setattr(auditing, "_software", lambda: "cd" * 32)
            assert upcoming_attempt(ledger, run, HASH) == (2, False)
        ledger.append("run-audited", ended, actor="ann", time=NOW)
        assert upcoming_attempt(ledger, run, HASH) == (2, False)


def test_the_software_of_an_audit_is_its_versions_and_machine_but_not_what_moves_last_digits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    facts: dict[str, Any] = {"machine": "x86_64", "torch": "2.13.0", "threads": 1}
    monkeypatch.setattr(auditing, "platform_facts", lambda: facts)
    first = auditing._software()
    facts |= {
        "threads": 2,
        "processor": {"amx_tile": True},
        "kernel_settings": {"MKL_CBWR": "AVX2"},
    }
    assert auditing._software() == first
    facts["machine"] = "aarch64"
    assert auditing._software() != first


def test_a_real_unit_is_scored_by_as_many_records_as_a_step_takes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sound, seen = world.trained(), Workbench.losses_of_both, []

    def counted(bench: Workbench, before: Any, after: Any, units: Any) -> Any:
        real = [unit for unit in units if not unit["unit"].startswith((PREFIX, "public"))]
        seen.extend(len(unit["records"]) for unit in real)
        return sound(bench, before, after, units)

    monkeypatch.setattr(Workbench, "losses_of_both", counted)
    world.privft("audit", run)
    assert max(seen) == 2, "patients have up to three notes, and the config says two"


def test_an_audit_says_what_each_part_took_and_its_statement_does_not() -> None:
    done = released()
    seconds = done.said["audit"]["seconds"]
    parts = {"base model", "control", "canaries", "extraction", "bounds", "real units"}
    assert parts | {"usefulness", "published values", "report"} == set(seconds)
    assert all(took["clock"] >= 0 and took["processor"] >= 0 for took in seconds.values())
    assert seconds["canaries"]["processor"] > 0
    envelope = json.loads((done.folder / "statement.dsse.json").read_text())
    assert b"processor" not in base64.b64decode(envelope["payload"])


def test_the_statement_holds_what_became_of_planted_secrets_and_the_card_says_it() -> None:
    done = released()
    envelope = json.loads((done.folder / "statement.dsse.json").read_text())
    audit = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["audit"]
    (planted,) = {row["canaries"] for row in audit["tests"] if row["kind"] == "secret"}
    ranks, out = audit["exposure"], audit["extraction"]
    assert len(ranks["ranks_included"]) == out["included"]
    assert len(ranks["ranks_excluded"]) == out["excluded"] == planted - out["included"]
    card = (done.folder / "README.md").read_text()
    assert f"of {out['included']} (95% interval" in card
    assert "may get more out of the model" in card
