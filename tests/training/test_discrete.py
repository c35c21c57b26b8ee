"""Whole numbers from the clipped gradient to the noisy sum: exact, bounded, rightly distributed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import special, stats

from privft.budget.mechanism import Event
from privft.budget.renyi import rdp
from privft.randomness import KeyedStreams
from privft.training import discrete
from privft.training.clipping import UnitGradients
from privft.training.discrete import add_rounded, discrete_gaussian, extra_delta, grid_of
from privft.training.loop import clipped_sum, grid_for
from privft.training.noise import add_noise, describe
from tests.training.test_clipping import llama
from tests.training.tiny import mechanism, text_units

SECURE = mechanism(noise="discrete-gaussian", noise_multiplier=1.7, clip_norm=0.3)
STREAMS = KeyedStreams(b"test only stream, never of a run")


def law(bits: int, reach: int) -> np.ndarray:
    """The probabilities of -reach..reach, straight from the definition."""
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * 4.0**bits))
    return weights / weights.sum()


def fits(values: np.ndarray, probabilities: np.ndarray, reach: int) -> float:
    """The chi-square test's p-value, cells with few expected counts joined."""
    counts = np.bincount(values + reach, minlength=2 * reach + 1).astype(float)
    expected = probabilities * len(values)
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return float(stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("bits", [0, 1, 3])
def test_small_scales_have_the_probabilities_of_the_definition(bits: int) -> None:
    reach = 12 << bits
    values = discrete_gaussian(STREAMS.stream("law", step=bits), bits, 400_000)
    assert fits(values, law(bits, reach), reach) > 1e-4
    # A rounded Gaussian, or one of the next scale, is told apart.
    wrong = np.rint(STREAMS.stream("wrong", step=bits).gaussian(400_000) * 2**bits * 1.02)
    assert fits(wrong.astype(np.int64), law(bits, reach), reach) < 1e-4


@pytest.mark.parametrize("bits", [31, 44, 52])
def test_large_scales_look_normal_and_use_their_low_bits(bits: int) -> None:
    values = discrete_gaussian(STREAMS.stream("large", step=bits), bits, 200_000)
    assert stats.kstest(values / 2.0**bits, "norm").pvalue > 1e-4
    assert stats.chisquare(np.bincount(values & 7, minlength=8)).pvalue > 1e-4


class Words:
    """A stream that deals out chosen words."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)

    def uint64(self, count: int) -> np.ndarray:
        dealt, self.words = self.words[:count], self.words[count:]
        assert len(dealt) == count, "more was drawn than this case needs"
        return np.array(dealt, dtype=np.uint64)


LAST = (1 << 64) - 1


def leading(number: int) -> list[int]:
    return [number >> (64 * place) & LAST for place in range(4, -1, -1)]


@pytest.mark.parametrize(("below", "k"), [(1, 0), (0, 1)])
def test_a_choice_that_64_bits_leave_open_is_made_by_256_more(below: int, k: int) -> None:
    threshold = discrete._table()[1][0]
    first, *more = leading(threshold - below)
    assert discrete._candidates(Words(first, 0, 0, *more), 4, 1).tolist() == [k << 4]


@pytest.mark.parametrize(("below", "kept"), [(1, [3]), (0, [])])
def test_acceptance_that_64_bits_leave_open_is_exact(below: int, kept: list[int]) -> None:
    chance = discrete._chance(0, 3, 4)
    assert abs(chance / 2**320 - math.exp(-((3 / 16) ** 2) / 2)) < 1e-15
    first, *more = leading(chance - below)
    assert discrete._candidates(Words(0, 3, first, *more), 4, 1).tolist() == kept


def test_the_far_tail_is_reached_by_its_own_chance_only() -> None:
    _, thresholds = discrete._table()
    first, *more = leading(thresholds[15])
    assert first == LAST
    assert discrete._candidates(Words(first, 0, 0, *more), 4, 1).tolist() == [16 << 4]


def test_minus_zero_is_refused() -> None:
    minus = 1 << 63
    assert discrete._candidates(Words(0, minus, 0), 4, 1).tolist() == []
    assert discrete._candidates(Words(0, minus | 1, 0), 4, 1).tolist() == [-1]
    assert discrete._candidates(Words(0, 0, 0), 4, 1).tolist() == [0]


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.999, 1.0, 1.7, 4.0, 1e4])
def test_whole_numbers_of_the_largest_norm_have_the_stated_noise_multiplier(sigma: float) -> None:
    grid = grid_of(mechanism(noise="discrete-gaussian", noise_multiplier=sigma), 3_000_000)
    assert 2**60 <= grid.most_squared <= 2**62
    assert Fraction(4**grid.bits, grid.most_squared) >= Fraction(sigma) ** 2
    assert grid.target > (1 - 2e-6) * 0.1


def test_a_unit_is_bounded_in_whole_numbers_and_none_is_lost() -> None:
    torch.manual_seed(0)
    numbers = 5000
    grid = grid_of(SECURE, numbers)
    for scale in (1e-3, 1.0, 1e6, 1e30):
        gradients = {"a": torch.randn(20, 4000) * scale, "b": torch.randn(20, 10, 100) * scale}
        for unit in range(20):
            totals = {
                "a": torch.zeros(4000, dtype=torch.int64),
                "b": torch.zeros(10, 100, dtype=torch.int64),
            }
            add_rounded(totals, {n: g[unit : unit + 1] for n, g in gradients.items()}, grid)
            squared = sum(int(x) ** 2 for total in totals.values() for x in total.flatten())
            assert squared <= grid.most_squared
            if scale >= 1:
                assert squared >= (1 - 1e-5) * grid.most_squared


def test_what_exceeds_the_bound_or_is_not_finite_counts_as_zero() -> None:
    grid = grid_of(SECURE, 2)
    loose = discrete.Grid(
        bits=grid.bits, step=grid.step, target=1.01 * SECURE.clip_norm,
        most_squared=grid.most_squared,
    )  # fmt: skip
    for bad in ([[3.0, 4.0]], [[math.nan, 1.0]], [[math.inf, 0.0]]):
        totals = {"w": torch.zeros(2, dtype=torch.int64)}
        add_rounded(totals, {"w": torch.tensor(bad)}, loose)
        assert not totals["w"].any()


def test_sums_have_the_same_bits_in_any_order_and_any_microbatches() -> None:
    model = llama(torch.float32)
    units = text_units([[5, 9, 3], [12], [21, 17], [12, 12], [2], [33], [11], [10]])
    gradients_of = UnitGradients(model)
    grid = grid_for(SECURE, gradients_of)
    assert grid is not None

    def total(some, budget):
        return clipped_sum(gradients_of, some, clip_norm=0.3, token_budget=budget, grid=grid)

    whole = total(units, 64)
    for some, budget in ((units[::-1], 64), (units, 8), (units[3:] + units[:3], 4096)):
        for name, value in total(some, budget).items():
            assert torch.equal(value, whole[name])
    plain = clipped_sum(gradients_of, units, clip_norm=0.3, token_budget=64)
    for name, value in whole.items():
        torch.testing.assert_close(value.double() * grid.step, plain[name], rtol=1e-5, atol=1e-8)


def test_the_noise_has_the_stated_scale_and_wrong_scales_are_rejected() -> None:
    """For every parameter of a model, pooled over steps; the smallest has 32 numbers."""
    shapes = {n: p.shape for n, p in UnitGradients(llama(torch.float32)).parameters.items()}
    zero = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in shapes.items()}
    noisy = [add_noise(zero, SECURE, streams=STREAMS, step=step) for step in range(60)]
    for name in zero:
        values = np.concatenate([n[name].numpy().ravel() for n in noisy])
        for factor, right in ((1.0, True), (2 / 3, False), (3 / 2, False)):
            statistic = float((values**2).sum()) / (1.7 * 0.3 * factor) ** 2
            chance = float(stats.chi2.cdf(statistic, len(values)))
            assert bool(5e-6 < chance < 1 - 5e-6) is right, name
    again = add_noise(zero, SECURE, streams=STREAMS, step=0)
    assert all(torch.equal(again[name], noisy[0][name]) for name in zero)
    assert not any(torch.equal(noisy[0][name], noisy[1][name]) for name in zero)


def divergence(log_p: np.ndarray, log_q: np.ndarray, order: int) -> float:
    """The Renyi divergence of two laws on the same points."""
    return float(special.logsumexp(order * log_p + (1 - order) * log_q)) / (order - 1)


@pytest.mark.parametrize("order", [2, 3, 4, 6, 10])
@pytest.mark.parametrize("probability", [0.01, 0.3, 1.0])
@pytest.mark.parametrize(("scale", "moved"), [(1.0, 1), (4.0, 3), (8.0, 16)])
def test_with_sampling_its_renyi_divergence_is_the_gaussians_at_whole_orders(
    order: int, probability: float, scale: float, moved: int
) -> None:
    """In both directions, summed over all whole numbers that matter; what admission rests on."""
    reach = int(60 * scale) + order * moved
    places = np.arange(-reach, reach + 1)
    without = -((places / scale) ** 2) / 2
    with_it = -(((places - moved) / scale) ** 2) / 2
    without -= special.logsumexp(without)
    with_it -= special.logsumexp(with_it)
    mixture = np.logaddexp(
        without + (np.log1p(-probability) if probability < 1 else -np.inf),
        with_it + np.log(probability),
    )
    event = Event(noise_multiplier=scale / moved, sampling_probability=probability)
    (gaussian,) = rdp((event,), (float(order),))
    assert divergence(mixture, without, order) == pytest.approx(gaussian, rel=1e-9)
    assert divergence(without, mixture, order) <= gaussian * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0, 20.0])
def test_total_variation_from_the_rounded_gaussian_is_within_the_bound(scale: float) -> None:
    places = np.arange(-int(40 * scale), int(40 * scale) + 1)
    weights = np.exp(-(places**2) / (2 * scale**2))
    rounded = np.diff(stats.norm.cdf(np.append(places, places[-1] + 1) - 0.5, scale=scale))
    distance = 0.5 * np.abs(weights / weights.sum() - rounded).sum()
    assert 0 < distance <= 1 / (20 * scale**2)


def test_reports_say_which_noise_it_was_and_what_it_adds_to_delta() -> None:
    facts = describe(SECURE, numbers=2_000_000, epsilon=3.0)
    assert facts["secure"]
    assert extra_delta(SECURE, 2_000_000, 3.0) < 1e-11
    plain = describe(mechanism(), numbers=2_000_000, epsilon=3.0)
    assert not plain["secure"]
    assert "Mironov" in plain["caveat"]
