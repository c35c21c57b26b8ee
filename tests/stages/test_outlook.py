"""A plan says so when its noise leaves nothing to learn, by the rule that was measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean

import pytest

from privft.budget.accounting import calibrate_noise
from privft.budget.mechanism import auto_delta
from privft.stages.outlook import UNLIKELY, signal_to_noise, warnings
from tests.stages.world import base
from tests.training.tiny import mechanism

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "usefulness.json"


def ratio_at(*, units: int, epsilon: float, batch: int, steps: int) -> float:
    noise = calibrate_noise(
        target_epsilon=epsilon,
        delta=auto_delta(units),
        sampling_probability=batch / units,
        steps=steps,
    )
    run = mechanism(noise_multiplier=noise, steps=steps, expected_batch_size=float(batch))
    return signal_to_noise(run)


def test_the_ratio_is_that_of_the_rule() -> None:
    run = mechanism(noise_multiplier=2.0, steps=25, expected_batch_size=64.0)
    assert signal_to_noise(run) == 5 * 64 / 2
    adaptive = mechanism(noise_multiplier=2.0, clipping="adaptive", count_noise=1.25)
    assert signal_to_noise(adaptive) == pytest.approx(math.sqrt(6) * 4 * 0.6 / 2)


def test_the_warning_begins_where_the_rule_says() -> None:
    at = mechanism(noise_multiplier=1.0, steps=9, expected_batch_size=UNLIKELY / 3)
    below = mechanism(noise_multiplier=1.001, steps=9, expected_batch_size=UNLIKELY / 3)
    assert warnings(at) == []
    (said,) = warnings(below)
    assert said.startswith("a useful model is unlikely")


def test_units_and_epsilon_decide_and_the_shape_of_a_run_helps_a_little() -> None:
    """The four numbers of the module's docstring, and epsilon."""
    usual = ratio_at(units=3000, epsilon=1.0, batch=96, steps=50)
    assert usual == pytest.approx(593, abs=1)
    assert ratio_at(units=3000, epsilon=1.0, batch=300, steps=50) == pytest.approx(841, abs=1)
    assert ratio_at(units=3000, epsilon=1.0, batch=96, steps=200) == pytest.approx(804, abs=1)
    assert ratio_at(units=12000, epsilon=1.0, batch=384, steps=50) == pytest.approx(2221, abs=2)
    assert ratio_at(units=3000, epsilon=4.0, batch=96, steps=50) > 1.7 * usual


def test_few_units_at_a_small_epsilon_are_warned_of_and_the_demos_are_not() -> None:
    assert ratio_at(units=1000, epsilon=1.0, batch=64, steps=50) < UNLIKELY
    assert ratio_at(units=300, epsilon=5.0, batch=32, steps=30) < UNLIKELY
    assert ratio_at(units=6000, epsilon=3.0, batch=96, steps=14) > UNLIKELY


def test_the_threshold_is_what_was_measured() -> None:
    """The committed results: the share kept depends on the ratio, and is as the rule states it."""
    rows = [row for row in json.loads(RESULTS.read_text())["rows"] if row["ratio"] is not None]
    kept: dict[float, list[float]] = {}
    for row in rows:
        kept.setdefault(row["ratio"], []).append(row["share_kept"])
    means = {ratio: fmean(shares) for ratio, shares in kept.items()}
    assert [round(100 * means[r]) for r in sorted(means)] == [1, 3, 18, 64, 87, 94]
    assert means[UNLIKELY] < 0.2 < means[1000.0]
    assert all(max(shares) - min(shares) < 0.13 for shares in kept.values())


def test_privft_plan_says_it(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    hopeless = world.privft("plan", world.config(noise=8.0), "--dry-run", "--json").json
    assert [text.partition(":")[0] for text in hopeless["warnings"]] == [
        "a useful model is unlikely"
    ]
    assert (
        "warning: a useful model is unlikely" in world.privft("plan", world.config(noise=8.0)).err
    )
