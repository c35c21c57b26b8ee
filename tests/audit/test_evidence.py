"""The committed evidence is about this code: its version, suites, faults, checks and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privft.audit.selfcheck import check_mechanism
from privft.audit.suite import load_suite
from privft.budget.reference import REFERENCES
from tests.audit import evidence
from tests.audit.test_selfcheck import CLAIM, FAULTS, MECHANISM, SPEC

AUDITS = Path(__file__).resolve().parents[2] / "audits"
COMMITTED: dict[str, Any] = json.loads((AUDITS / "evidence" / "evidence.json").read_text())
AGAIN = "make evidence writes it again"


def test_it_was_made_by_this_version_with_these_suites() -> None:
    assert COMMITTED["version"] == evidence.release_version(), AGAIN
    assert COMMITTED["suites"] == evidence.suites(), AGAIN
    held = {(row["suite"], row["task"]) for row in COMMITTED["controls"]}
    assert held == {(name, task) for name in evidence.suites() for task in evidence.TASKS}


def test_everything_in_it_held() -> None:
    assert evidence.sound(COMMITTED)
    assert len(COMMITTED["reference_values"]) == len(REFERENCES), AGAIN


def test_every_fault_of_the_table_was_planted_and_caught_by_what_the_tests_demand() -> None:
    caught = {row["fault"]: set(row["caught_by"]) for row in COMMITTED["faults"]}
    demanded = {str(plant.__doc__): checks for plant, checks in FAULTS}
    assert set(caught) == {*demanded, evidence.COINS_REUSED}, AGAIN
    for fault, checks in demanded.items():
        assert checks <= caught[fault], fault


def test_the_fault_table_takes_less_than_four_minutes() -> None:
    assert COMMITTED["faults_s"] < 240


def test_it_holds_every_check_of_the_mechanism_and_sees_most_of_theory() -> None:
    checks = check_mechanism(SPEC, bytes(32), mechanism=MECHANISM, claim=CLAIM)
    assert [row["check"] for row in COMMITTED["mechanism"]] == [check.check for check in checks]
    share = load_suite("strict")[0].selfcheck.share_of_theory
    (shift,) = [row for row in COMMITTED["mechanism"] if "full batch" in row["check"]]
    lower = float(shift["detail"].split("lower bound ")[1].split(",")[0])
    assert share * 2.0 <= lower <= 2.0


def test_the_page_shows_the_numbers_of_the_file() -> None:
    assert (AUDITS / "evidence" / "evidence.md").read_text() == evidence.page(COMMITTED)


def test_the_page_for_people_names_every_fault() -> None:
    lines = (AUDITS / "README.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    for name in (*(plant.__doc__ for plant, _ in FAULTS), evidence.COINS_REUSED):
        assert name in rows, name


def test_reused_coins_are_what_stops_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    (why,) = evidence.coins()["caught_by"]
    assert "not fair and independent" in why
    monkeypatch.setattr(evidence, "coins_reused", lambda patch: None)
    assert evidence.coins()["caught_by"] == []
