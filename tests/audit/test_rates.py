"""Bounds from independent runs: exactness, stated confidence, exposure."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privft.audit.rates import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    epsilon_from_rates,
    exposure,
    gaussian_mu_interval,
    rates_from_scores,
)


def test_clopper_pearson_gives_the_published_epsilon() -> None:
    # tensorflow/privacy, research/audit_2020/audit_test.py: 500 of 500 against 0 of 500
    got = epsilon_from_rates(
        true_positives=500, positives=500, false_positives=0, negatives=500, significance=0.01
    )
    assert got == pytest.approx(4.541915810, abs=1e-8)


def test_clopper_pearson_is_exact_at_its_own_bound() -> None:
    for successes, trials in ((0, 10), (3, 10), (40, 100), (99, 100)):
        upper = clopper_pearson_upper(successes, trials, 0.05)
        assert stats.binom.cdf(successes, trials, upper) == pytest.approx(0.05, abs=1e-9)
    assert clopper_pearson_upper(7, 7, 0.05) == 1.0
    assert clopper_pearson_lower(0, 7, 0.05) == 0.0


@pytest.mark.parametrize("correction", ["bonferroni", "split"])
def test_picking_the_threshold_is_paid_for(correction: str) -> None:
    # Scores that say nothing: any positive bound is a false alarm.
    random, runs = np.random.default_rng(3), 1000
    alarms = sum(
        rates_from_scores(
            random.normal(size=60),
            random.normal(size=60),
            significance=0.05,
            correction=correction,  # type: ignore[arg-type]
        ).epsilon
        > 0
        for _ in range(runs)
    )
    assert clopper_pearson_lower(alarms, runs, 0.001) <= 0.05


@pytest.mark.parametrize("correction", ["bonferroni", "split"])
def test_rates_find_a_shift_without_assuming_normal_scores(correction: str) -> None:
    random = np.random.default_rng(4)
    inside, outside = random.normal(2, 1, 3000), random.normal(0, 1, 3000)
    for transform in (lambda x: x, lambda x: np.exp(3 * x)):
        bound = rates_from_scores(
            transform(inside),
            transform(outside),
            significance=0.05,
            correction=correction,  # type: ignore[arg-type]
        )
        assert 1.3 < bound.mu <= 2.0
        assert bound.epsilon > 1.5


def test_the_mu_interval_covers_the_truth_as_often_as_it_says() -> None:
    random, runs, mu = np.random.default_rng(5), 600, 1.3
    intervals = [
        gaussian_mu_interval(random.normal(mu, 1, 30), random.normal(0, 1, 40), significance=0.05)
        for _ in range(runs)
    ]
    above = sum(interval.lower > mu for interval in intervals)
    below = sum(interval.upper < mu for interval in intervals)
    for misses in (above, below):
        assert clopper_pearson_lower(misses, runs, 0.001) <= 0.05
        assert clopper_pearson_upper(misses, runs, 0.001) >= 0.05, "wider than it need be"


def test_the_mu_interval_is_that_of_the_non_central_t_distribution() -> None:
    inside, outside = np.array([1.0, 2.0, 4.0, 5.0]), np.array([0.0, 1.0, 1.5])
    interval = gaussian_mu_interval(inside, outside, significance=0.1)
    statistic = stats.ttest_ind(inside, outside).statistic
    scale = math.sqrt(1 / 4 + 1 / 3)
    assert stats.nct.sf(statistic, 5, interval.lower / scale) == pytest.approx(0.1, abs=1e-5)
    assert stats.nct.cdf(statistic, 5, interval.upper / scale) == pytest.approx(0.1, abs=1e-5)


def test_exposure_counts_candidates_below_and_knows_its_ceiling() -> None:
    candidates = np.arange(1.0, 8.0)
    first = exposure(0.5, candidates)
    assert (first.rank, first.bits, first.ceiling) == (1, 3.0, 3.0)
    assert exposure(9.0, candidates).bits == 0.0
    assert exposure(1.0, candidates).rank == 2, "a tie counts against the attack"


def test_a_secret_unknown_to_the_model_is_exposed_by_chance_only() -> None:
    random = np.random.default_rng(6)
    bits = [exposure(random.uniform(), random.uniform(size=127)).bits for _ in range(4000)]
    assert np.mean(bits) == pytest.approx(1 / math.log(2), abs=0.12)
    for level in (1, 3, 5):
        assert np.mean(np.array(bits) >= level) == pytest.approx(2.0**-level, abs=0.025)


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [[1.0]]])
def test_scores_that_are_no_list_of_numbers_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        rates_from_scores(bad, [1.0, 2.0], significance=0.05)
    with pytest.raises(ValueError, match="expected"):
        exposure(1.0, bad)


def test_scores_without_spread_have_no_interval() -> None:
    with pytest.raises(ValueError, match="vary"):
        gaussian_mu_interval([1.0, 1.0], [0.0, 0.0], significance=0.05)


@pytest.mark.parametrize("correction", ["bonferroni", "split"])
def test_every_bound_carries_what_perfect_scores_would_have_given(correction: str) -> None:
    random = np.random.default_rng(11)
    outside = random.normal(size=200)
    made = {"significance": 0.05, "correction": correction}
    weak = rates_from_scores(random.normal(0.5, 1, 200), outside, **made)  # type: ignore[arg-type]
    perfect = rates_from_scores(random.normal(99, 1, 200), outside, **made)  # type: ignore[arg-type]
    assert weak.epsilon < weak.ceiling
    assert weak.mu < weak.mu_ceiling
    assert perfect.epsilon == perfect.ceiling
    assert perfect.mu == perfect.mu_ceiling
    if correction == "bonferroni":
        assert weak.ceiling == perfect.ceiling
