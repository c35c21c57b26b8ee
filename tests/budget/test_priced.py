"""Trade-off curves from Renyi divergences: looser than the exact ones, never wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privft.budget.accounting import cost, tradeoff
from privft.budget.mechanism import Event
from privft.budget.priced import Cost, curve_from_rdp, single_cost, single_curve, stated_epsilon
from privft.budget.selection import GRID, Selection
from privft.budget.tradeoff import TradeOff
from privft.errors import AccountingError
from tests.budget.test_selection import RATIOS, RUN, SCORE, SHAPES, WEIGHTS, best_of, renyi

RATES = (1e-6, 1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
CHOSEN = Selection(events=(RUN, SCORE), mean=4.0, shape=1.0, most=24)


def is_sane(curve: TradeOff) -> None:
    fpr, fnr = np.array(curve.fpr), np.array(curve.fnr)
    assert (fpr[0], fpr[-1], fnr[-1]) == (0.0, 1.0, 0.0)
    assert (np.diff(fnr) <= 1e-12).all(), "it falls"
    slopes = np.diff(fnr) / np.diff(fpr)
    assert (np.diff(slopes) >= -1e-6 * np.abs(slopes[:-1]) - 1e-9).all(), "it is convex"
    assert (fnr <= 1 - fpr + 1e-12).all(), "no attack is worse than a coin"
    assert (1 - fpr - fnr).max() <= curve.advantage + 1e-9
    for rate in RATES:
        assert rate <= curve.tpr_bound(rate) <= 1


@pytest.mark.parametrize("noise", [0.8, 2.0, 8.0])
@pytest.mark.parametrize(("probability", "count"), [(1.0, 1), (0.05, 100)])
def test_the_curve_of_plain_events_is_never_above_their_exact_one(
    noise: float, probability: float, count: int
) -> None:
    event = Event(noise_multiplier=noise, sampling_probability=probability, count=count)
    ours, exact = single_curve([event]), tradeoff([event])
    is_sane(ours)
    assert ours.advantage >= exact.advantage
    for rate in RATES:
        assert ours.tpr_bound(rate) >= exact.tpr_bound(rate) - 1e-9


def test_a_selection_gives_more_away_than_one_of_its_repetitions() -> None:
    ours, once = tradeoff([CHOSEN]), tradeoff(CHOSEN.events)
    is_sane(ours)
    assert ours.adjacency == "add-remove"
    for rate in RATES:
        assert ours.tpr_bound(rate) > once.tpr_bound(rate)


def test_the_curve_meets_the_epsilon_that_is_stated() -> None:
    """No attack beats e^epsilon fpr + delta for the stated pairs, and the curve says so itself."""
    curve = tradeoff([CHOSEN])
    for delta in (1e-6, 1e-4, 1e-2):
        epsilon = cost([CHOSEN], delta).epsilon
        for rate in RATES:
            allowed = math.exp(epsilon) * rate + delta
            assert curve.tpr_bound(rate) <= min(1.0, allowed * 1.02 + 1e-9)


@settings(max_examples=60)
@given(
    WEIGHTS,
    RATIOS,
    st.floats(1.2, 12.0),
    SHAPES,
)
def test_no_attack_on_the_best_of_many_gets_below_the_curve(
    weights: list[float], ratios: list[float], mean: float, shape: float | None
) -> None:
    """All tests of a mechanism with few outcomes, against the curve of its exact divergences."""
    p = np.array(weights) / sum(weights)
    q = p * ratios[: len(p)]
    one, other = (best_of(outcomes, mean, shape, 40) for outcomes in (p, q / q.sum()))
    grid = tuple(float(order) for order in (*range(2, 33), 64))
    sums = [max(renyi(one, other, order), renyi(other, one, order)) for order in grid]
    curve = curve_from_rdp(grid, sums, farthest=20.0)
    for null, alternative in ((one, other), (other, one)):
        likely = np.argsort(-alternative / np.maximum(null, 1e-300))
        fpr, tpr = null[likely].cumsum(), alternative[likely].cumsum()
        for false, true in zip(fpr, tpr, strict=True):
            assert true <= curve.tpr_bound(min(1.0, float(false))) + 1e-9
        assert (tpr - fpr).max() <= curve.advantage + 1e-9


def test_one_accountant_says_so_and_prices_no_other_relation() -> None:
    found = cost([CHOSEN], 1e-6)
    assert found == single_cost([CHOSEN], 1e-6)
    assert found.epsilon_pld is None
    assert found.epsilon == found.epsilon_rdp == stated_epsilon(found.to_dict())
    assert "one accountant" in (found.note or "")
    with pytest.raises(AccountingError, match="add-remove only"):
        cost([CHOSEN], 1e-6, adjacency="substitute")
    with pytest.raises(AccountingError, match="add-remove only"):
        tradeoff([CHOSEN], "substitute")


def test_the_stated_epsilon_is_that_of_pld_where_there_is_one() -> None:
    plain = cost([RUN], 1e-6)
    assert plain.epsilon == plain.epsilon_pld < (plain.epsilon_rdp or 0)
    nothing = Cost(epsilon_pld=None, epsilon_rdp=None, delta=1e-6, adjacency="add-remove")
    with pytest.raises(AccountingError, match="no accountant"):
        _ = nothing.epsilon


def test_the_grid_is_whole_orders() -> None:
    assert all(order == int(order) >= 2 for order in GRID), "discrete noise is proved at these"
