"""Published values: worked out once a workspace and software, with their time, never a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privft.budget.reference import REFERENCES
from privft.stages import published
from privft.stages.published import published_values


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the working out, which takes seconds, and notes how often it is asked for."""
    times: list[int] = []

    def selftest() -> list[dict[str, Any]]:
        times.append(1)
        return [{"ok": True}] * len(REFERENCES)

    monkeypatch.setattr(published, "run_selftest", selftest)
    return times


def test_they_are_worked_out_once_and_keep_the_time_when_they_were(
    tmp_path: Path, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published_values(tmp_path)
    assert (first["passed"], first["of"]) == (len(REFERENCES), len(REFERENCES))
    monkeypatch.setattr(published, "format_time", lambda _: "2031-01-01T00:00:00Z")
    assert published_values(tmp_path) == first
    assert len(asked) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"software": {}},
        {"held": "yesterday"},
        {"passed": 0},
        {"of": 1, "passed": 1},
        {"format": "privft-published-v0"},
        {"more": 1},
    ],
)
def test_a_file_of_another_form_or_other_software_is_not_believed(
    tmp_path: Path, asked: list[int], change: dict[str, Any]
) -> None:
    whole = published_values(tmp_path)
    path = tmp_path / "published.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert published_values(tmp_path)["passed"] == whole["passed"]
    assert len(asked) == 2


def test_a_failure_is_reported_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"ok": True}] * (len(REFERENCES) - 1) + [{"ok": False}]
    monkeypatch.setattr(published, "run_selftest", lambda: rows)
    assert published_values(tmp_path)["passed"] == len(REFERENCES) - 1
    monkeypatch.setattr(published, "run_selftest", lambda: [{"ok": True}] * len(REFERENCES))
    assert published_values(tmp_path)["passed"] == len(REFERENCES)
