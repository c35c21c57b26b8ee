"""The meter counts every second once."""

from __future__ import annotations

import time

import pytest

from privft.stages.meter import Meter


def busy(seconds: float) -> float:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return seconds


def test_inner_parts_count_for_themselves_alone() -> None:
    meter = Meter()
    with meter.part("outer"):
        busy(0.02)
        for _ in range(2):
            assert meter.metered("inner", busy)(0.03) == 0.03
    with pytest.raises(KeyError), meter.part("failed"):
        raise KeyError
    found = meter.seconds()
    assert list(found) == ["inner", "outer", "failed"]
    assert found["inner"]["processor"] == pytest.approx(0.06, abs=0.02)
    assert found["outer"]["processor"] == pytest.approx(0.02, abs=0.02)
    assert found["inner"]["clock"] >= 0.06
    assert found["failed"]["processor"] < 0.01
