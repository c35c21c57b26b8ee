"""Findings on real units go when the policy says so, and nothing else goes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privft.policy import load_policy
from privft.stages.retention import PRIVATE, expire
from tests.budget.samples import audit_bodies, new_ledger, run_to_the_end

AUDITED = "2030-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("policy", "now", "goes"),
    [
        ("hospital", "2030-01-30T23:59:59Z", False),
        ("hospital", "2030-01-31T00:00:01Z", True),
        ("default", "2030-01-31T00:00:01Z", False),
        ("research", "2999-01-01T00:00:00Z", False),
    ],
)
def test_sealed_findings_are_kept_as_long_as_the_policy_says(
    tmp_path: Path, policy: str, now: str, goes: bool
) -> None:
    workspace: Any = SimpleNamespace(run_path=lambda run: tmp_path / run)
    with new_ledger(tmp_path) as ledger:
        run = run_to_the_end(ledger)
        began, ended = audit_bodies(run, "passed")
        ledger.append("audit-started", began, actor="ann", time=AUDITED)
        ledger.append("run-audited", ended, actor="ann", time=AUDITED)
        (tmp_path / run).mkdir()
        names = (f"{PRIVATE}.sealed", "run-key.sealed", "statement.dsse.json")
        for name in names:
            (tmp_path / run / name).write_bytes(b"x")
        rules = load_policy(policy)
        assert expire(workspace, ledger, "another", rules, now=now) == []
        assert expire(workspace, ledger, "notes", rules, now=now) == ([run] if goes else [])
        assert expire(workspace, ledger, "notes", rules, now=now) == []
        left = {path.name for path in (tmp_path / run).iterdir()}
        assert left == {*names} - ({names[0]} if goes else set())
