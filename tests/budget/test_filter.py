"""The Renyi filter, held to cases worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.budget.filter import (
    DEFAULT_ORDERS,
    Cap,
    admit,
    fits,
    gauge,
    steps_that_fit,
)
from privft.budget.mechanism import Event
from privft.budget.renyi import conversion, rdp
from privft.errors import AccountingError

TEN = Cap(epsilon=2.0, delta=1e-5, orders=(10.0,))
GAUSSIAN = Event(noise_multiplier=10.0)

EVENTS = st.builds(
    Event,
    noise_multiplier=st.floats(0.5, 20),
    sampling_probability=st.floats(1e-4, 1.0),
    count=st.integers(1, 500),
)


def test_one_order_by_hand() -> None:
    # log(9/10) - (log(1e-5) + log(10)) / 9 = -0.1053605 + 1.0233711
    assert conversion(10.0, 1e-5) == pytest.approx(0.9180106, abs=1e-7)
    # rho of one Gaussian of noise 10 at order 10 is 10 / 200; 21 * 0.05 <= 1.08199 < 22 * 0.05
    assert fits(TEN, [], GAUSSIAN) == 21
    assert admit(TEN, [GAUSSIAN] * 20, [GAUSSIAN]).admitted
    refused = admit(TEN, [GAUSSIAN] * 21, [GAUSSIAN])
    assert not refused.admitted
    assert refused.used == pytest.approx((1.1 / 1.0819894,))
    assert refused.epsilon_spent == pytest.approx(1.05 + 0.9180106)
    assert refused.epsilon_after == pytest.approx(1.10 + 0.9180106)
    assert refused.epsilon_needed > refused.epsilon_left


def test_two_orders_by_hand_get_half_the_delta_each() -> None:
    cap = Cap(epsilon=2.0, delta=1e-5, orders=(10.0, 20.0))
    assert cap.delta_per_order == 5e-6
    # order 10: -0.1053605 + (12.2060726 - 2.3025851)/9 = 0.9950270, room 1.0049730, 0.05 each: 20
    # order 20: -0.0512933 + (12.2060726 - 2.9957323)/19 = 0.4334615, room 1.5665385, 0.10 each: 15
    assert cap.conversions == pytest.approx((0.9950270, 0.4334615), abs=1e-7)
    assert fits(cap, [], GAUSSIAN) == 20
    assert admit(cap, [GAUSSIAN] * 19, [GAUSSIAN]).order == 10.0


def test_the_whole_delta_is_never_granted_to_every_order() -> None:
    both = Cap(epsilon=2.0, delta=1e-5, orders=(10.0, 20.0))
    alone = Cap(epsilon=2.0, delta=1e-5, orders=(10.0,))
    twenty_one = [GAUSSIAN] * 21
    # with all of delta, order 10 would admit 21; it has half of it here, and must refuse
    assert admit(alone, twenty_one[:-1], twenty_one[-1:]).admitted
    assert not admit(both, twenty_one[:-1], twenty_one[-1:]).admitted


def test_more_orders_never_help_an_order_that_was_best_alone() -> None:
    for count in range(1, 60):
        events = [Event(noise_multiplier=10.0, count=count)]
        alone = Cap(epsilon=2.0, delta=1e-5, orders=(10.0,))
        more = Cap(epsilon=2.0, delta=1e-5, orders=(9.0, 10.0, 11.0))
        at_ten = admit(more, [], events).used[1]
        assert at_ten > admit(alone, [], events).used[0]


def test_rdp_of_a_sampled_gaussian_by_hand() -> None:
    # order 2: A = 1 + q^2 (exp(1/sigma^2) - 1); order 3 adds 3 q^2 (1-q) and q^3 terms
    q, sigma = 0.1, 2.0
    a2 = 1 + q**2 * math.expm1(1 / 4)
    a3 = 1 + 3 * q**2 * (1 - q) * math.expm1(1 / 4) + q**3 * math.expm1(3 / 4)
    event = Event(noise_multiplier=sigma, sampling_probability=q, count=7)
    assert rdp([event], (2.0, 3.0)) == pytest.approx((7 * math.log(a2), 7 * math.log(a3) / 2))


def test_rdp_of_fifty_sampled_gaussians_is_the_published_one() -> None:
    """dp_accounting, rdp_privacy_accountant_test.py: noise 2.5, sampling 0.01, 50 times."""
    event = Event(noise_multiplier=2.5, sampling_probability=0.01, count=50)
    published = (2.18075656e-03, 2.38460375e-02, 1.67416308e02)
    assert rdp([event], (5.0, 50.0, 100.0)) == pytest.approx(published, rel=1e-6)


def test_rdp_keeps_its_digits_when_sampling_is_tiny() -> None:
    q = 1e-9
    (value,) = rdp([Event(noise_multiplier=1.0, sampling_probability=q)], (2.0,))
    assert value == pytest.approx(q * q * math.expm1(1.0), rel=1e-9)


@pytest.mark.parametrize("noise", [1e-200, 1e200])
def test_numbers_beyond_floats_are_errors(noise: float) -> None:
    with pytest.raises(AccountingError):
        rdp([Event(noise_multiplier=noise, sampling_probability=0.5)], (2.0,))


def test_nothing_is_free_because_its_cost_is_below_the_smallest_float() -> None:
    with pytest.raises(AccountingError):
        rdp([Event(noise_multiplier=1.0, sampling_probability=1e-170)], (2.0,))
    barely = Event(noise_multiplier=1.0, sampling_probability=1e-160)
    assert fits(Cap(epsilon=8.0, delta=1e-6, orders=(32.0,)), [], barely) >= 10**18
    assert fits(Cap(epsilon=8.0, delta=1e-6, orders=(2.0,)), [], barely) == 0


@pytest.mark.parametrize("orders", [(1.0,), (2.5,), (1.5, 2.0), (math.inf,)])
def test_only_whole_orders_from_two_up_are_known(orders: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        Cap(epsilon=1.0, delta=1e-5, orders=orders)
    with pytest.raises((AccountingError, OverflowError)):
        rdp([GAUSSIAN], orders)


@pytest.mark.parametrize(
    "changes",
    [
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"orders": ()},
        {"orders": (4.0, 2.0)},
        {"orders": (2.0, 2.0)},
    ],
)
def test_a_cap_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Cap(**{"epsilon": 1.0, "delta": 1e-5, **changes})  # type: ignore[arg-type]


def test_a_cap_comes_back_from_its_mapping_and_no_other() -> None:
    cap = Cap(epsilon=3.0, delta=1e-6)
    assert Cap.from_dict(cap.to_dict()) == cap
    for wrong in ({}, {**cap.to_dict(), "more": 1}, {**cap.to_dict(), "orders": ["x"]}):
        with pytest.raises(AccountingError):
            Cap.from_dict(wrong)


@given(st.lists(EVENTS, max_size=4), EVENTS)
def test_the_gauge_is_the_smallest_cap_that_admits(spent: list[Event], event: Event) -> None:
    cap = Cap(epsilon=5.0, delta=1e-6)
    answer = admit(cap, spent, [event])
    assert answer.admitted == (answer.epsilon_after <= cap.epsilon)
    assert answer.epsilon_after >= answer.epsilon_spent
    wide = Cap(epsilon=answer.epsilon_after * (1 + 1e-9), delta=1e-6)
    assert admit(wide, spent, [event]).admitted
    tight = Cap(epsilon=answer.epsilon_after * (1 - 1e-9), delta=1e-6)
    assert not admit(tight, spent, [event]).admitted


@given(st.lists(EVENTS, max_size=3), EVENTS)
def test_what_fits_is_admitted_and_one_more_is_not(spent: list[Event], event: Event) -> None:
    cap = Cap(epsilon=8.0, delta=1e-6)
    more = fits(cap, spent, event)
    if more:
        whole = Event(
            noise_multiplier=event.noise_multiplier,
            sampling_probability=event.sampling_probability,
            count=event.count * more,
        )
        assert admit(cap, spent, [whole]).epsilon_after <= cap.epsilon * (1 + 1e-9)
    over = Event(
        noise_multiplier=event.noise_multiplier,
        sampling_probability=event.sampling_probability,
        count=event.count * (more + 1),
    )
    assert admit(cap, spent, [over]).epsilon_after > cap.epsilon * (1 - 1e-9)


@given(st.permutations([Event(noise_multiplier=n, sampling_probability=0.02, count=9) for n in
                        (0.8, 1.0, 1.3, 2.0)]))  # fmt: skip
def test_the_order_of_runs_does_not_matter(events: list[Event]) -> None:
    cap = Cap(epsilon=8.0, delta=1e-6)
    whole = gauge(cap, rdp(events, cap.orders))
    assert whole == pytest.approx(gauge(cap, rdp(sorted(events, key=repr), cap.orders)), rel=1e-12)


def test_nothing_spent_is_nothing() -> None:
    cap = Cap(epsilon=8.0, delta=1e-6)
    answer = admit(cap, [], [])
    assert (answer.admitted, answer.epsilon_spent, answer.epsilon_left) == (True, 0.0, 8.0)


def test_steps_that_fit_counts_single_steps() -> None:
    run = Event(noise_multiplier=1.0, sampling_probability=0.02, count=1000)
    cap = Cap(epsilon=3.0, delta=1e-6)
    steps = steps_that_fit(cap, [], run)
    assert 0 < steps < 1000
    assert fits(cap, [], run) == 0


def test_the_default_grid_costs_little_more_than_a_dense_one() -> None:
    dense = tuple(float(order) for order in range(2, 257))
    ratios = []
    for delta in (1e-5, 1e-7):
        for q, steps in ((0.1, 50), (0.03, 100), (0.01, 1000), (0.002, 10000)):
            for noise in (0.7, 1.0, 1.5, 3.0):
                event = Event(noise_multiplier=noise, sampling_probability=q, count=steps)
                best = min(
                    value + conversion(order, delta)
                    for order, value in zip(dense, rdp([event], dense), strict=True)
                )
                if 0.3 <= best <= 20:
                    cap = Cap(epsilon=1.0, delta=delta, orders=DEFAULT_ORDERS)
                    ratios.append(gauge(cap, rdp([event], cap.orders)) / best)
    assert len(ratios) > 20
    assert min(ratios) > 1
    assert sum(ratios) / len(ratios) < 1.2
    assert max(ratios) < 1.45
