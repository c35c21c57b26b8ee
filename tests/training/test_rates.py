"""The rates of a machine are the work that was done over the time that it took."""

from __future__ import annotations

import itertools

import pytest

from privft.training import rates


@pytest.mark.parametrize("discrete", [False, True])
def test_rates_are_work_over_seconds(monkeypatch: pytest.MonkeyPatch, discrete: bool) -> None:
    ticks = itertools.count(step=2.0)  # every timed call takes two seconds
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(ticks))
    found = rates.measure_rates(inputs=16, outputs=24, rows=8, dtype="bfloat16", discrete=discrete)
    assert found.products == 2 * (2 * 8 * 16 * 24) / 2
    assert found.traffic == 11 * 12 * 8 * 24 * 2 / 2
    assert found.calls == 2 * 200 / 2
    assert found.draws == 65536 / 2
