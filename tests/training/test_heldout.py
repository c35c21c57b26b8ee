"""Figures on held-out units: bounded influence, noise of the stated size, the stated mean."""

from __future__ import annotations

import numpy as np
import pytest

from privft.randomness import KeyedStreams
from privft.training.heldout import noised_mean, noised_means

STREAMS = KeyedStreams(bytes(range(32)))
ODD = (0.0, 8.0, 3.3, -5.0, 1e30, np.inf, -np.inf, np.nan, 7.999999999)


def mean(values: list[float], *, draw: int = 0, noise: float = 4.0, units: int = 100) -> float:
    stream = STREAMS.stream("test", step=draw)
    return noised_mean(
        np.array(values), bound=8.0, units=units, noise_multiplier=noise, stream=stream
    )


@pytest.mark.parametrize("unit", ODD)
@pytest.mark.parametrize("noise", [0.5, 3.0, 4.0, 77.7])
def test_one_unit_moves_the_sum_by_at_most_half_the_bound_whatever_it_holds(
    unit: float, noise: float
) -> None:
    others = [2.0, 6.5, 4.0, np.nan]
    with_it, without = (mean(v, noise=noise) for v in ([*others, unit], others))
    assert abs(with_it - without) * 100 <= 4.0 * (1 + 1e-9)


def test_an_extreme_unit_moves_it_by_all_of_that_and_a_middling_one_by_nothing() -> None:
    nothing = mean([])
    assert mean([8.0]) - nothing == pytest.approx(0.04, rel=1e-6)
    assert mean([-1.0]) - nothing == pytest.approx(-0.04, rel=1e-6)
    assert mean([4.0]) == nothing
    assert mean([float("nan")]) == nothing


def scaled(values: list[float], *, noise: float) -> np.ndarray:
    """Many figures on the same values, less the true mean, in units of the stated deviation."""
    true = 4.0 + np.sum(np.clip(values, 0, 8) - 4.0) / 100
    draws = np.array([mean(values, draw=draw, noise=noise) for draw in range(3000)])
    return np.asarray((draws - true) / (noise * 4.0 / 100))


@pytest.mark.parametrize("noise", [0.7, 12.5])
def test_noise_has_the_stated_deviation_and_no_bias(noise: float) -> None:
    z = scaled([1.0, 2.0, 3.0, 9.0] * 20, noise=noise)
    assert abs(z.mean()) < 4 / np.sqrt(len(z))
    # the variance of n normal deviates is within 4 sqrt(2/n) of 1 but for one time in 10^4; a
    # deviation that is a tenth too small or too large is 5 and 6 such steps away
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / len(z))
    for wrong in (0.9, 1.1):
        assert abs((z * wrong).var() - 1) > 4 * np.sqrt(2 / len(z))


def test_declared_and_true_number_of_units_differ_by_as_much_as_the_docstring_says() -> None:
    values = [3.0] * 120
    noise = mean([], draw=1) - 4.0  # of the same draw
    off = (120 / 100 - 1) * (3.0 - 4.0)
    assert mean(values, draw=1) - noise == pytest.approx(3.0 + off, abs=1e-6)


def test_same_inputs_meet_the_same_noise_and_all_others_another() -> None:
    values = {"a": np.array([1.0]), "b": np.array([1.0])}
    bounds = {"a": 8.0, "b": 8.0}

    def drawn(streams: KeyedStreams = STREAMS, inputs: str = "x") -> dict[str, float]:
        return noised_means(
            values, bounds, units=10, noise_multiplier=5.0, streams=streams, inputs=inputs
        )

    assert drawn() == drawn()
    everything = [
        value
        for found in (drawn(), drawn(inputs="y"), drawn(KeyedStreams(bytes(32))))
        for value in found.values()
    ]
    assert len(set(everything)) == 6


@pytest.mark.parametrize(
    "wrong", [{"bound": 0.0}, {"bound": np.inf}, {"units": 0}, {"noise_multiplier": 1e8}]
)
def test_figures_that_cannot_be_noised_as_stated_are_refused(wrong: dict[str, float]) -> None:
    given = {"bound": 8.0, "units": 10, "noise_multiplier": 5.0} | wrong
    with pytest.raises(ValueError, match="expected"):
        noised_mean(np.array([1.0]), stream=STREAMS.stream("test"), **given)  # type: ignore[arg-type]
