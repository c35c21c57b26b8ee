"""Random stopping: held to the exact divergence of small mechanisms, to dp_accounting, by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from privft.budget import selection as room
from privft.budget.mechanism import Event
from privft.budget.priced import single_cost
from privft.budget.renyi import conversion, rdp
from privft.budget.selection import (
    GRID,
    Selection,
    chance_of_none,
    draw_repetitions,
    event_from_dict,
    stopped_rdp,
    total_rdp,
)
from privft.errors import AccountingError
from privft.randomness import KeyedStreams, Stream

RUN = Event(noise_multiplier=4.0, sampling_probability=0.05, count=100)
SCORE = Event(noise_multiplier=20.0)
WEIGHTS = st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6)
RATIOS = st.lists(st.floats(0.6, 1.7), min_size=6, max_size=6)
SHAPES = st.one_of(st.none(), st.just(0.0), st.floats(0.1, 4.0))


def renyi(p: np.ndarray, q: np.ndarray, order: float) -> float:
    return float(logsumexp(order * np.log(p) + (1 - order) * np.log(q)) / (order - 1))


def best_of(p: np.ndarray, mean: float, shape: float | None, most: int | None = None) -> np.ndarray:
    """The distribution of the best of K outcomes (the last is best): the generating function of K
    at the distribution function of one, differenced.  Nothing at all, where K is 0, comes first."""
    below = np.concatenate([[0.0], np.cumsum(p)])
    below[-1] = 1.0
    if most is not None:
        chances = chances_of(mean, shape, most)
        chances /= chances.sum()
        made = np.array([np.sum(chances * x ** np.arange(most + 1)) for x in below])
        return np.diff(np.concatenate([[0.0], made]) if shape is None else made)
    if shape is None:
        made = np.exp(mean * (below - 1))
        return np.diff(np.concatenate([[0.0], made]))
    gamma = gamma_of(mean, shape)
    if shape == 0:
        made = np.log(1 - (1 - gamma) * below) / math.log(gamma)
    else:
        made = ((1 - (1 - gamma) * below) ** -shape - 1) / (gamma**-shape - 1)
    return np.diff(made)


def chances_of(mean: float, shape: float | None, most: int) -> np.ndarray:
    """P[K = 0], ..., P[K = most] of the whole distribution, from its definition."""
    if shape is None:
        logs = [k * math.log(mean) - mean - math.lgamma(k + 1) for k in range(most + 1)]
        return np.exp(logs)
    gamma = gamma_of(mean, shape)
    chances = np.zeros(most + 1)
    for k in range(1, most + 1):
        if shape == 0:
            chances[k] = (1 - gamma) ** k / (k * math.log(1 / gamma))
        else:
            rising = math.lgamma(k + shape) - math.lgamma(shape) - math.lgamma(k + 1)
            chances[k] = (1 - gamma) ** k / (gamma**-shape - 1) * math.exp(rising)
    return chances


def gamma_of(mean: float, shape: float) -> float:
    gamma = 1.0
    low, high = 1e-9, 1 - 1e-9
    for _ in range(200):
        gamma = (low + high) / 2
        if shape == 0:
            expected = (1 / gamma - 1) / math.log(1 / gamma)
        else:
            expected = shape * (1 - gamma) / (gamma * (1 - gamma**shape))
        low, high = (gamma, high) if expected > mean else (low, gamma)
    return gamma


@settings(max_examples=60)
@given(
    WEIGHTS,
    RATIOS,
    st.floats(1.2, 20.0),
    SHAPES,
)
def test_the_bound_holds_for_mechanisms_whose_divergence_is_known(
    weights: list[float], ratios: list[float], mean: float, shape: float | None
) -> None:
    p = np.array(weights) / sum(weights)
    q = p * ratios[: len(p)]
    q = q / q.sum()
    grid = tuple(float(order) for order in (*range(2, 33), 64))
    for one, other in ((p, q), (q, p)):
        bound = stopped_rdp(
            lambda order: max(renyi(p, q, order), renyi(q, p, order)),
            grid,
            mean=mean,
            shape=shape,
        )
        for order in (2.0, 3.0, 8.0, 32.0):
            exact = renyi(best_of(one, mean, shape), best_of(other, mean, shape), order)
            assert exact <= bound[order] + 1e-9


@settings(max_examples=60)
@given(
    WEIGHTS,
    RATIOS,
    st.floats(1.2, 12.0),
    SHAPES,
    st.floats(1.5, 8.0),
)
def test_the_bound_holds_for_a_number_that_is_cut(
    weights: list[float], ratios: list[float], mean: float, shape: float | None, far: float
) -> None:
    most = math.ceil(mean * far)
    p = np.array(weights) / sum(weights)
    q = p * ratios[: len(p)]
    q = q / q.sum()
    grid = tuple(float(order) for order in (*range(2, 33), 64))
    try:
        bound = stopped_rdp(
            lambda order: max(renyi(p, q, order), renyi(q, p, order)),
            grid,
            mean=mean,
            shape=shape,
            most=most,
        )
    except AccountingError:
        reject()  # most of it was cut away
    for one, other in ((p, q), (q, p)):
        for order in (2.0, 3.0, 8.0, 32.0):
            cut = [best_of(outcomes, mean, shape, most) for outcomes in (one, other)]
            assert renyi(cut[0], cut[1], order) <= bound[order] + 1e-9


@pytest.mark.parametrize("shape", [None, 0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("mean", "most"), [(2.0, 6), (8.0, 64), (8.0, 400), (50.0, 90)])
def test_what_a_cut_costs_is_what_lies_beyond_it(
    shape: float | None, mean: float, most: int
) -> None:
    grid = (2.0, 5.0)
    every = chances_of(mean, shape, 5000)
    k = np.arange(len(every))
    beyond = every[most + 1 :].sum()
    by_size = (k * every)[most + 1 :].sum() / mean

    def at(most: int | None) -> dict[float, float]:
        return stopped_rdp(lambda _: 0.01, grid, mean=mean, shape=shape, most=most)

    if max(beyond, by_size) > 0.5:
        with pytest.raises(AccountingError, match="more than half"):
            at(most)
        return
    added = at(most)[5.0] - at(None)[5.0]
    exact = -math.log1p(-beyond) / 4 - math.log1p(-by_size)
    assert exact - 1e-12 <= added <= exact * 1.003 + 1e-9


def test_a_cut_at_64_of_a_geometric_number_of_mean_8_costs_2_thousandths() -> None:
    far, near = (
        single_cost([Selection(events=(RUN,), mean=8.0, shape=1.0, most=most)], 1e-6).epsilon_rdp
        for most in (None, 64)
    )
    assert 0.001 < near - far < 0.0025


LAWS = [(None, 3.0, 9), (0.0, 3.0, 12), (0.5, 4.0, 20), (1.0, 8.0, 64), (3.0, 50.0, 90)]


@pytest.mark.parametrize(("shape", "mean", "most"), LAWS)
def test_the_weights_of_a_drawn_number_are_its_chances(
    shape: float | None, mean: float, most: int
) -> None:
    weights = room._weights(mean, shape, most)
    chances = chances_of(mean, shape, most)[shape is not None :]
    chances /= chances.sum()
    total = sum(weights)
    assert [weight / total for weight in weights] == pytest.approx(list(chances), rel=1e-9)


def drawn(shape: float | None, mean: float, most: int, *, times: int) -> np.ndarray:
    chosen = Selection(events=(RUN,), mean=mean, shape=shape, most=most)
    streams = KeyedStreams(bytes(range(32)))
    numbers = [draw_repetitions(chosen, streams.stream("k", step=i)) for i in range(times)]
    return np.bincount(numbers, minlength=most + 1)


@pytest.mark.parametrize(("shape", "mean", "most"), LAWS)
def test_numbers_are_drawn_by_their_chances_and_by_no_others(
    shape: float | None, mean: float, most: int
) -> None:
    from scipy.stats import chisquare

    seen = drawn(shape, mean, most, times=4000)
    assert seen.sum() == 4000
    assert seen[0] == 0 or shape is None
    for other, right in ((mean, True), (mean * 1.25, False)):
        chances = chances_of(other, shape, most)
        expected = 4000 * chances / chances.sum()
        often = expected >= 5
        pairs = [[*each[often], each[~often].sum()] for each in (seen, expected)]
        found = chisquare(*(np.array(pair)[np.array(pairs[1]) > 0] for pair in pairs)).pvalue
        assert bool(found > 1e-3) is right


def test_the_same_stream_gives_the_same_number() -> None:
    chosen = Selection(events=(RUN,), mean=8.0, shape=1.0, most=64)
    one, other = (KeyedStreams(bytes(32)).stream("k") for _ in range(2))
    assert draw_repetitions(chosen, one) == draw_repetitions(chosen, other)


class Ends(Stream):
    """Answers with all zeros, or all ones first and then all zeros."""

    def __init__(self, *answers: int) -> None:
        self._answers = list(answers)

    def bytes(self, count: int) -> bytes:
        return bytes([self._answers.pop(0)]) * count


def test_the_ends_of_the_range_are_never_passed() -> None:
    law = Selection(events=(RUN,), mean=2.0, shape=1.0, most=6)
    assert draw_repetitions(law, Ends(0)) == 1
    assert draw_repetitions(law, Ends(255, 0)) == 1, "what is too large is drawn again"
    assert draw_repetitions(Selection(events=(RUN,), mean=2.0, shape=None, most=6), Ends(0)) == 0


def test_only_a_poisson_number_can_be_none() -> None:
    poisson = Selection(events=(RUN,), mean=3.0, shape=None, most=30)
    assert chance_of_none(poisson) == pytest.approx(math.exp(-3), rel=1e-9)
    assert chance_of_none(Selection(events=(RUN,), mean=3.0, shape=0.0, most=30)) == 0


def test_a_bound_without_its_terms_does_not_hold() -> None:
    """The test above can fail: one run's own divergence is no bound for the best of many."""
    p, q = np.array([0.9, 0.1]), np.array([0.95, 0.05])
    exact = renyi(best_of(p, 10.0, 1.0), best_of(q, 10.0, 1.0), 2.0)
    assert exact > 2 * renyi(p, q, 2.0)


@pytest.mark.parametrize("shape", [0.0, 0.5, 1.0, 3.0, None])
@pytest.mark.parametrize("mean", [1.5, 8.0, 100.0])
def test_the_numbers_are_those_of_dp_accounting(shape: float | None, mean: float) -> None:
    import dp_accounting
    from dp_accounting.dp_event import RepeatAndSelectDpEvent
    from dp_accounting.rdp import RdpAccountant

    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(4.0)), 100
    )
    theirs = RdpAccountant(list(GRID)).compose(
        RepeatAndSelectDpEvent(event, mean, math.inf if shape is None else shape)
    )
    selection = Selection(events=(RUN,), mean=mean, shape=shape)
    ours = dict(zip(GRID, total_rdp([selection], GRID), strict=True))
    for order, value in zip(GRID, theirs.rdp, strict=True):
        # theirs does not use larger orders to bound smaller ones where K is Poisson
        assert ours[order] <= value * (1 + 1e-6)
        if shape is not None:
            assert ours[order] == pytest.approx(value, rel=1e-6)


def test_a_geometric_number_of_gaussians_by_hand() -> None:
    # rdp(a) = a rho with rho = 1/(2 20^2) = 0.00125; gamma = 1/mean = 1/4; eta = 1
    selection = Selection(events=(SCORE,), mean=4.0, shape=1.0)
    rho, mean = 0.00125, 4.0
    least = min((1 - 1 / b) * b * rho + math.log(mean) / b for b in GRID)
    for order in (2.0, 10.0, 30.0):
        by_hand = min(a * rho + 2 * least + math.log(mean) / (a - 1) for a in GRID if a >= order)
        assert total_rdp([selection], (order,)) == pytest.approx((by_hand,))


def test_a_selection_costs_more_than_one_run_and_less_than_all_of_them() -> None:
    mean = 10.0
    chosen = single_cost([Selection(events=(RUN, SCORE), mean=mean, shape=1.0)], 1e-6)
    once, all_of_them = single_cost([RUN, SCORE], 1e-6), single_cost([RUN, SCORE] * 10, 1e-6)
    assert once.epsilon_rdp < chosen.epsilon_rdp < all_of_them.epsilon_rdp
    assert "one accountant" in (chosen.note or "")


@settings(max_examples=20)
@given(st.floats(1.1, 50.0), SHAPES, st.floats(1.05, 2.0))
def test_epsilon_is_monotone_in_mean_noise_steps_and_delta(
    mean: float, shape: float | None, more: float
) -> None:
    def epsilon(m: float, noise: float, count: int, delta: float) -> float:
        run = Event(noise_multiplier=noise, sampling_probability=0.05, count=count)
        return single_cost([Selection(events=(run,), mean=m, shape=shape)], delta).epsilon_rdp

    base = epsilon(mean, 4.0, 100, 1e-6)
    assert epsilon(mean * more, 4.0, 100, 1e-6) >= base - 1e-9
    assert epsilon(mean, 4.0 * more, 100, 1e-6) <= base + 1e-9
    assert epsilon(mean, 4.0, math.ceil(100 * more), 1e-6) >= base - 1e-9
    assert epsilon(mean, 4.0, 100, 1e-6 * more) <= base + 1e-9


def test_a_score_on_private_records_is_charged() -> None:
    without = single_cost([Selection(events=(RUN,), mean=5.0, shape=0.0)], 1e-6)
    with_score = single_cost([Selection(events=(RUN, SCORE), mean=5.0, shape=0.0)], 1e-6)
    assert with_score.epsilon_rdp > without.epsilon_rdp


def test_plain_events_add_to_a_selection() -> None:
    selection = Selection(events=(RUN,), mean=5.0, shape=0.0)
    alone, both = total_rdp([selection], (3.0, 9.0)), total_rdp([SCORE, selection], (3.0, 9.0))
    score = rdp([SCORE], (3.0, 9.0))
    assert both == pytest.approx([alone[0] + score[0], alone[1] + score[1]])
    cost = single_cost([SCORE], 1e-6)
    sums = rdp([SCORE], GRID)
    by_hand = min(total + conversion(order, 1e-6) for total, order in zip(sums, GRID, strict=True))
    assert cost.epsilon_rdp == pytest.approx(by_hand)


@pytest.mark.parametrize("most", [None, 40])
@pytest.mark.parametrize("shape", [None, 0.0, 2.5])
def test_a_selection_survives_json(shape: float | None, most: int | None) -> None:
    selection = Selection(events=(RUN, SCORE), mean=5.0, shape=shape, most=most)
    text = json.dumps(selection.to_dict(), allow_nan=False)
    assert event_from_dict(json.loads(text)) == selection
    assert event_from_dict(RUN.to_dict()) == RUN


GOOD: dict[str, Any] = Selection(events=(RUN,), mean=5.0, shape=1.0).to_dict()


@pytest.mark.parametrize(
    "wrong",
    [
        {**GOOD, "more": 1},
        {**GOOD, "distribution": "geometric"},
        {**GOOD, "mean": 0.5},
        {**GOOD, "mean": 1.0},
        {**GOOD, "mean": math.inf},
        {**GOOD, "mean": "5"},
        {**GOOD, "shape": -0.5},
        {**GOOD, "shape": None},
        {**GOOD, "shape": math.nan},
        {**GOOD, "most": 4},
        {**GOOD, "most": 40.0},
        {**GOOD, "most": True},
        {**GOOD, "most": None},
        {**GOOD, "most": 10**9},
        {**GOOD, "events": []},
        {**GOOD, "events": "x"},
        {**GOOD, "events": [GOOD]},
        {**GOOD, "distribution": "poisson"},
        {name: value for name, value in GOOD.items() if name != "shape"},
    ],
)
def test_a_malformed_selection_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(AccountingError):
        event_from_dict(wrong)
