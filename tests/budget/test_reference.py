"""The self-test: quick, whole, and able to fail."""

from __future__ import annotations

import math
import time

import pytest

from privft.budget import accounting, reference
from privft.budget.reference import REFERENCES, run_selftest
from privft.errors import AccountingError


def test_every_published_number_is_reproduced_in_half_a_minute() -> None:
    start = time.process_time()
    rows = run_selftest()
    assert time.process_time() - start < 30
    assert [row["name"] for row in rows if not row["ok"]] == []
    assert len(rows) >= 50
    assert all(row["source"] for row in rows)


def test_a_row_that_does_not_hold_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    row = REFERENCES[0]
    monkeypatch.setattr(reference, "REFERENCES", (row,))
    for wrong in (row.expected + 2 * row.tolerance, -row.expected, math.nan):
        monkeypatch.setattr(reference.Reference, "compute", lambda self, value=wrong: value)
        (answer,) = run_selftest()
        assert not answer["ok"]


def test_an_accountant_that_gives_up_is_a_failed_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise AccountingError("no")

    monkeypatch.setattr(accounting, "cost", refuse)
    monkeypatch.setattr(reference, "REFERENCES", REFERENCES[:1])
    assert [(row["ok"], row["got"]) for row in run_selftest()] == [(False, None)]
