"""One-run bounds: published values, ceilings, and the confidence that they state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from privft.audit.bounds import (
    bound_report,
    fdp_gaussian_epsilon,
    fdp_gaussian_mu,
    fdp_rejects,
    gaussian_curve,
    gaussian_epsilon,
    one_run_ceiling,
    one_run_epsilon,
    one_run_p_value,
    profile_curve,
)
from privft.audit.rates import clopper_pearson_lower, epsilon_from_rates
from tests.conftest import SHARED

VECTORS = SHARED / "vectors" / "audit_bounds.json"


@pytest.mark.skipif(not VECTORS.exists(), reason="../shared is absent")
def test_published_bounds_hold() -> None:
    for row in json.loads(VECTORS.read_text()):
        assert got_for(row) == pytest.approx(row["epsilon_lower"], abs=row["tolerance"]), row


def got_for(row: dict[str, Any]) -> float:
    if row["test"].startswith("one-run"):
        return one_run_epsilon(
            canaries=row["canaries"],
            guesses=row["guesses"],
            correct=row["correct"],
            delta=row["delta"],
            significance=row["significance"],
        )
    if row["test"].startswith("Clopper-Pearson"):
        hits, positives = map(int, row["true_positives"].split("/"))
        alarms, negatives = map(int, row["false_positives"].split("/"))
        return epsilon_from_rates(
            true_positives=hits,
            positives=positives,
            false_positives=alarms,
            negatives=negatives,
            significance=row["significance"],
        )
    assert row["test"].startswith("ceiling")
    return one_run_ceiling(
        canaries=row["guesses"],
        guesses=row["guesses"],
        delta=0.0,
        significance=row["significance"],
    )


def test_a_single_published_value_holds_without_the_shared_folder() -> None:
    # ml_privacy_meter, audit.py, get_eps_audit(1000, 100, 95, 1e-5, 0.05)
    got = one_run_epsilon(canaries=1000, guesses=100, correct=95, delta=1e-5, significance=0.05)
    assert got == pytest.approx(2.16517, abs=1e-4)


# jax_privacy, auditing_test.py, test_epsilon_one_run_close: 10,000 in, 10,000 out, deterministic
# normal quantiles as scores, one-sided guesses, significance 0.05 divided among the vertices of
# the convex hull of the ROC.  The second number of each row is the score that, used as threshold,
# attains the published bound.
JAX_PRIVACY = [
    (1, 1.13346, 1.580911650291843, one_run_epsilon),
    (2, 2.311945, 2.1260403304996465, one_run_epsilon),
    (4, 4.395568, 3.0760262826551314, one_run_epsilon),
    (1, 2.164749, 2.776199746767372, fdp_gaussian_epsilon),
    (2, 4.7218075, 3.3204045059104423, fdp_gaussian_epsilon),
    (4, 9.133752, 3.890618617811632, fdp_gaussian_epsilon),
]


def jax_privacy_value(shift: float, threshold: float, bound: Any) -> float:
    """What `bound` gives for jax_privacy's scores at this threshold."""
    n = 10_000
    outside = special.ndtri((np.arange(n) + 0.5) / n)
    inside = outside + shift
    thresholds = np.append(np.union1d(inside, outside), np.inf)
    counts = np.stack(
        [np.searchsorted(inside, thresholds), np.searchsorted(outside, thresholds)], axis=1
    )
    correct = int(np.sum(inside >= threshold - 1e-9))
    wrong = int(np.sum(outside >= threshold - 1e-9))
    value: float = bound(
        canaries=2 * n,
        guesses=correct + wrong,
        correct=correct,
        delta=1e-6,
        significance=0.05 / hull_size(counts),
    )
    return value


@pytest.mark.parametrize(("shift", "expected", "threshold", "bound"), JAX_PRIVACY)
def test_the_values_of_jax_privacy_hold(
    shift: float, expected: float, threshold: float, bound: Any
) -> None:
    assert jax_privacy_value(shift, threshold, bound) == pytest.approx(expected, rel=1e-5)


def hull_size(points: NDArray[np.int64]) -> int:
    """Vertices of the upper convex hull, ends included."""
    kept = np.arange(len(points))
    while len(kept) > 2:
        step = np.diff(points[kept], axis=0)
        turn = step[:-1, 1] * step[1:, 0] - step[1:, 1] * step[:-1, 0]
        if not np.any(turn <= 0):
            break
        kept = kept[np.r_[True, turn > 0, True]]
    return len(kept)


def test_the_ceiling_at_delta_zero_is_the_closed_form() -> None:
    for guesses, significance in ((10, 0.05), (100, 0.05), (1000, 0.01)):
        chance = significance ** (1 / guesses)
        expected = math.log(chance / (1 - chance))
        got = one_run_ceiling(canaries=guesses, guesses=guesses, delta=0, significance=significance)
        assert got == pytest.approx(expected, abs=1e-6)


def test_the_p_value_is_the_definition_summed_term_by_term() -> None:
    for m, r, v, epsilon, delta in ((50, 20, 15, 0.7, 1e-3), (100, 100, 60, 0.0, 0.01)):
        q = 1 / (1 + math.exp(-epsilon))
        beta = sum(stats.binom.pmf(k, r, q) for k in range(v, r + 1))
        alpha, total = 0.0, 0.0
        for i in range(1, v + 1):
            total += stats.binom.pmf(v - i, r, q)
            alpha = max(alpha, total / i)
        got = one_run_p_value(canaries=m, guesses=r, correct=v, epsilon=epsilon, delta=delta)
        assert got == pytest.approx(min(1.0, beta + 2 * m * delta * alpha), rel=1e-9)


@given(
    guesses=st.integers(2, 200),
    wrong=st.integers(0, 60),
    extra=st.integers(0, 200),
    delta=st.sampled_from([0.0, 1e-6, 1e-4]),
)
@settings(max_examples=60)
def test_more_right_guesses_never_lower_a_bound_and_none_passes_its_ceiling(
    guesses: int, wrong: int, extra: int, delta: float
) -> None:
    correct = max(1, guesses - wrong)
    given = {"canaries": guesses + extra, "guesses": guesses, "significance": 0.05}
    lower = one_run_epsilon(correct=correct, delta=delta, **given)  # type: ignore[arg-type]
    fewer = one_run_epsilon(correct=correct - 1, delta=delta, **given)  # type: ignore[arg-type]
    ceiling = one_run_ceiling(delta=delta, **given)  # type: ignore[arg-type]
    assert fewer <= lower + 1e-6 <= ceiling + 2e-6


def test_a_larger_delta_gives_a_smaller_bound() -> None:
    bounds = [
        one_run_epsilon(canaries=1000, guesses=100, correct=95, delta=delta, significance=0.05)
        for delta in (0, 1e-5, 1e-3)
    ]
    assert bounds[0] >= bounds[1] > bounds[2] + 1


def false_alarms(alarms: int, runs: int) -> float:
    """What the false alarm rate is at least, at 99.9% confidence."""
    return clopper_pearson_lower(alarms, runs, 0.001)


def test_the_one_run_bound_keeps_its_confidence_on_randomised_response() -> None:
    # Randomised response at epsilon is the worst (epsilon, 0)-private mechanism there is.
    random, epsilon, runs = np.random.default_rng(1), 1.0, 4000
    right = random.binomial(100, special.expit(epsilon), runs)
    threshold = {
        int(v): one_run_epsilon(
            canaries=100, guesses=100, correct=int(v), delta=0, significance=0.05
        )
        for v in np.unique(right)
    }
    alarms = sum(threshold[int(v)] > epsilon for v in right)
    assert false_alarms(alarms, runs) <= 0.05
    assert alarms > 0.01 * runs, "so blunt a bound would be of no use"


def sum_of_canaries(random: np.random.Generator, mu: float, canaries: int, guesses: int) -> int:
    """Right guesses against independent Gaussian canaries of shift mu."""
    included = random.integers(2, size=canaries).astype(bool)
    scores = random.normal(size=canaries) + mu * included
    order = np.argsort(scores)
    half = guesses // 2
    return int(included[order[-half:]].sum() + (~included[order[:half]]).sum())


def test_the_f_dp_bound_keeps_its_confidence_and_has_power() -> None:
    random, runs = np.random.default_rng(2), 400
    right = [sum_of_canaries(random, 1.0, 300, 60) for _ in range(runs)]

    def rejections(mu: float) -> int:
        curve = gaussian_curve(mu)
        verdicts = {
            v: fdp_rejects(curve, canaries=300, guesses=60, correct=v, significance=0.05)
            for v in set(right)
        }
        return sum(verdicts[v] for v in right)

    assert false_alarms(rejections(1.0), runs) <= 0.05
    assert rejections(0.4) > 0.5 * runs


def test_the_f_dp_bound_tests_a_curve_that_is_not_gaussian() -> None:
    # A mechanism that tells all with probability 1/2 and nothing otherwise.
    def half_of_the_time(x: float) -> float:
        return max(0.0, 0.5 - x)

    given = {"canaries": 200, "guesses": 200, "significance": 0.05}
    assert fdp_rejects(lambda x: 1 - x, correct=140, **given)  # type: ignore[arg-type]
    assert not fdp_rejects(half_of_the_time, correct=140, **given)  # type: ignore[arg-type]


def test_the_gaussian_inversion_is_the_largest_mu_that_is_rejected() -> None:
    given = {"canaries": 500, "guesses": 100, "correct": 90, "significance": 0.05}
    mu = fdp_gaussian_mu(**given)  # type: ignore[arg-type]
    assert fdp_rejects(gaussian_curve(mu - 1e-4), **given)  # type: ignore[arg-type]
    assert not fdp_rejects(gaussian_curve(mu + 1e-4), **given)  # type: ignore[arg-type]


def test_gaussian_epsilon_is_the_value_of_dp_accounting() -> None:
    # dp_accounting.get_epsilon_gaussian(sigma, delta), to nine digits
    import dp_accounting

    for mu, delta in ((0.1, 1e-5), (1.0, 1e-6), (5.0, 1e-3)):
        expected = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
        assert gaussian_epsilon(mu, delta) == pytest.approx(expected, abs=1e-6)


def test_a_profile_curve_never_exceeds_the_true_curve_and_comes_close() -> None:
    true = gaussian_curve(1.0)
    epsilons = np.linspace(0, 6, 60)
    deltas = [special.ndtr(0.5 - e) - math.exp(e) * special.ndtr(-0.5 - e) for e in epsilons]
    safe = profile_curve(list(epsilons), deltas)
    for x in np.linspace(0.001, 0.999, 97):
        assert safe(float(x)) <= true(float(x)) + 1e-12
        assert safe(float(x)) == pytest.approx(true(float(x)), abs=2e-3)


@pytest.mark.parametrize("curve", [lambda x: 1.0, lambda x: x * 0.5, lambda x: -0.1])
def test_what_is_no_trade_off_curve_is_refused(curve: Any) -> None:
    with pytest.raises(ValueError, match="trade-off curve"):
        fdp_rejects(curve, canaries=10, guesses=10, correct=9, significance=0.05)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "significance", "delta"),
    [(10, 11, 5, 0.05, 0), (10, 5, 6, 0.05, 0), (10, 0, 0, 0.05, 0), (10, 5, 5, 0, 0),
     (10, 5, 5, 1, 0), (10, 5, 5, 0.05, 1), (10, 5, 5, 0.05, -1e-9), (10, 5, -1, 0.05, 0)],
)  # fmt: skip
def test_impossible_counts_are_refused(
    canaries: int, guesses: int, correct: int, significance: float, delta: float
) -> None:
    with pytest.raises(ValueError, match="expected"):
        one_run_epsilon(
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            significance=significance,
            delta=delta,
        )


def test_the_report_for_counts_by_hand_agrees_with_the_bounds() -> None:
    report = bound_report(canaries=1000, guesses=100, correct=95, delta=1e-5, significance=0.05)
    assert report["epsilon_lower"] == pytest.approx(2.16517, abs=1e-4)
    assert report["ceiling"] == pytest.approx(3.46537, abs=1e-4)
    assert report["gaussian_epsilon_lower"] < report["gaussian_ceiling"]
    no_delta = bound_report(canaries=100, guesses=100, correct=95, delta=0, significance=0.05)
    assert no_delta["gaussian_ceiling"] is None
