"""The sampler is the one that the accountant assumes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from privft.randomness import KeyedStreams
from privft.training.sampling import CHUNK_UNITS, poisson_sample

STREAMS = KeyedStreams(bytes(range(32)))


def sample(step: int, units: int = 500, probability: float = 0.1, population: str = "units"):
    return poisson_sample(
        STREAMS, step=step, units=units, probability=probability, population=population
    )


def test_batch_sizes_are_binomial() -> None:
    sizes = np.array([len(sample(step)) for step in range(4000)])
    assert abs(sizes.mean() - 50) < 4 * np.sqrt(45 / 4000)
    # A shuffled or fixed-size sampler has no variance, batches without replacement too little.
    assert stats.chi2.cdf((4000 - 1) * sizes.var(ddof=1) / 45, 3999) == pytest.approx(
        0.5, abs=0.4995
    )


def test_each_unit_has_its_own_independent_coin() -> None:
    taken = np.zeros((3000, 40), dtype=bool)
    for step in range(3000):
        taken[step, sample(step, units=40, probability=0.3)] = True
    rates = taken.mean(0)
    assert np.abs(rates - 0.3).max() < 4.5 * np.sqrt(0.21 / 3000)
    correlation = np.corrcoef(taken.T) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(3000)


def test_a_step_samples_the_same_units_whatever_else_was_drawn() -> None:
    first = sample(7)
    sample(8)
    assert (sample(7) == first).all()


def test_canaries_do_not_change_who_else_is_sampled() -> None:
    assert (sample(3) == sample(3)).all()
    assert not np.array_equal(sample(3), sample(3, population="canaries"))


def test_probability_one_takes_everybody_and_nobody_is_fine() -> None:
    assert (sample(0, units=9, probability=1.0) == np.arange(9)).all()
    assert len(sample(0, units=0)) == 0


def test_chunks_do_not_show() -> None:
    units = CHUNK_UNITS + 5
    got = sample(1, units=units, probability=1e-3)
    assert got.max() < units
    assert (np.diff(got) > 0).all()
    assert abs(len(got) - units * 1e-3) < 5 * np.sqrt(units * 1e-3)
