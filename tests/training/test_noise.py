"""The noise has the stated scale for every parameter, and is never the same twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from privft.randomness import KeyedStreams
from privft.training.losses import trained_parameters
from privft.training.noise import add_noise
from tests.training.test_clipping import llama
from tests.training.tiny import mechanism

MECHANISM = mechanism(noise_multiplier=1.7, clip_norm=0.3)
SHAPES = {"a": (20, 30), "b": (7,), "c": (3, 5, 11)}
ZERO = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}


def draws(steps: int = 40) -> dict[str, np.ndarray]:
    streams = KeyedStreams(b"test only stream, never of a run")
    noisy = [add_noise(ZERO, MECHANISM, streams=streams, step=step) for step in range(steps)]
    return {name: np.concatenate([n[name].numpy().ravel() for n in noisy]) for name in SHAPES}


def accepted(values: np.ndarray, scale: float) -> bool:
    """Two-sided chi-square test of the variance at 1 in 10,000."""
    statistic = float((values**2).sum()) / scale**2
    p = stats.chi2.cdf(statistic, len(values))
    return 5e-5 < p < 1 - 5e-5


def test_every_parameter_of_a_model_has_the_stated_scale_and_no_other() -> None:
    """Pooled over steps; none is so small that wrong scales would pass."""
    zero = {
        name: torch.zeros(parameter.shape, dtype=torch.float64)
        for name, parameter in trained_parameters(llama(torch.float32)).items()
    }
    streams = KeyedStreams(b"test only stream, never of a run")
    noisy = [add_noise(zero, MECHANISM, streams=streams, step=step) for step in range(60)]
    scale = MECHANISM.noise_multiplier * MECHANISM.clip_norm
    for name in zero:
        values = np.concatenate([n[name].numpy().ravel() for n in noisy])
        assert accepted(values, scale), name
        assert not accepted(values, scale * 2 / 3), name
        assert not accepted(values, scale * 3 / 2), name


@pytest.mark.parametrize("name", SHAPES)
def test_scale_is_right_and_wrong_scales_are_rejected(name: str) -> None:
    values, scale = draws()[name], MECHANISM.noise_multiplier * MECHANISM.clip_norm
    assert accepted(values, scale)
    assert not accepted(values, scale * 2 / 3)
    assert not accepted(values, scale * 3 / 2)
    assert stats.kstest(values / scale, "norm").pvalue > 1e-4


def test_noise_differs_between_steps_and_parameters_and_repeats_by_name() -> None:
    streams = KeyedStreams(bytes(32))
    sums = {"a": torch.zeros(9, dtype=torch.float64), "b": torch.zeros(9, dtype=torch.float64)}
    first = add_noise(sums, MECHANISM, streams=streams, step=0)
    again = add_noise(sums, MECHANISM, streams=streams, step=0)
    later = add_noise(sums, MECHANISM, streams=streams, step=1)
    assert torch.equal(first["a"], again["a"])
    assert not torch.equal(first["a"], first["b"])
    assert not torch.equal(first["a"], later["a"])


def test_the_sum_is_kept_under_the_noise() -> None:
    streams = KeyedStreams(bytes(32))
    sums = {"a": torch.arange(9.0, dtype=torch.float64)}
    zero = {"a": torch.zeros(9, dtype=torch.float64)}
    difference = (
        add_noise(sums, MECHANISM, streams=streams, step=0)["a"]
        - add_noise(zero, MECHANISM, streams=streams, step=0)["a"]
    )
    torch.testing.assert_close(difference, sums["a"])
