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
    exposure_of_ranks,
    exposure_rank,
    gaussian_mu_interval,
    rates_from_scores,
    share_interval,
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


def test_a_secret_is_ranked_below_the_candidates_that_are_at_least_as_likely() -> None:
    candidates = np.arange(1.0, 8.0)
    assert exposure_rank(0.5, candidates) == 1
    assert exposure_rank(9.0, candidates) == 8
    assert exposure_rank(1.0, candidates) == 2, "a tie counts against the attack"


def test_exposure_is_log2_of_the_places_over_the_rank_and_knows_its_ceiling() -> None:
    found = exposure_of_ranks([1, 2, 4, 8], 7)
    assert (found.bits, found.most, found.ceiling, found.secrets) == (1.5, 3.0, 3.0, 4)
    assert found.interval is None, "four secrets say nothing of their spread"
    assert exposure_of_ranks([8] * 20, 7).interval == (0.0, 0.0)


@pytest.mark.parametrize("candidates", [3, 31, 255])
def test_chance_is_the_average_over_all_ranks(candidates: int) -> None:
    found = exposure_of_ranks(list(range(1, candidates + 2)), candidates)
    assert found.chance == pytest.approx(found.bits, abs=1e-9)
    assert found.chance < 1 / math.log(2)


def test_a_secret_unknown_to_the_model_is_exposed_by_chance_only() -> None:
    random = np.random.default_rng(6)
    ranks = [exposure_rank(random.uniform(), random.uniform(size=127)) for _ in range(4000)]
    found = exposure_of_ranks(ranks, 127)
    assert found.bits == pytest.approx(found.chance, abs=0.12)
    for level in (1, 3, 5):
        share = np.mean(np.log2(128 / np.array(ranks)) >= level)
        assert share == pytest.approx(2.0**-level, abs=0.025)


def test_the_interval_of_an_average_exposure_keeps_its_confidence() -> None:
    random = np.random.default_rng(12)
    missed = 0
    for _ in range(2000):
        found = exposure_of_ranks(random.integers(1, 33, 22).tolist(), 31)
        assert found.interval is not None
        missed += not found.interval[0] <= found.chance <= found.interval[1]
    # so skew a variable at n = 22: Student's interval misses a little more than its 5%
    assert 0.03 < missed / 2000 < 0.09


@pytest.mark.parametrize("ranks", [[], [0], [9]])
def test_ranks_that_cannot_be_are_refused(ranks: list[int]) -> None:
    with pytest.raises(ValueError, match="expected ranks"):
        exposure_of_ranks(ranks, 7)


def test_the_interval_of_a_share_is_clopper_and_pearson_s() -> None:
    assert share_interval(0, 22) == pytest.approx((0.0, 1 - 0.025 ** (1 / 22)))
    low, high = share_interval(3, 20)  # table of Clopper and Pearson: 3.21% and 37.89%
    assert (low, high) == pytest.approx((0.03207, 0.37893), abs=1e-4)


@pytest.mark.parametrize("bad", [[], [math.nan, 1.0], [[1.0]]])
def test_scores_that_are_no_list_of_numbers_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        rates_from_scores(bad, [1.0, 2.0], significance=0.05)
    with pytest.raises(ValueError, match="expected"):
        exposure_rank(1.0, bad)


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
