"""Two accountants, held to published numbers, to closed forms, and to each other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from privft.budget import accounting
from privft.budget.accounting import (
    calibrate_noise,
    check_agreement,
    cost,
    delta_for,
    max_steps,
    tradeoff,
)
from privft.budget.mechanism import Event
from privft.budget.renyi import rdp
from privft.budget.selection import merged
from privft.budget.tradeoff import deltas
from privft.errors import AccountingError
from tests.conftest import SHARED


def event(noise: float, probability: float = 1.0, count: int = 1) -> Event:
    return Event(noise_multiplier=noise, sampling_probability=probability, count=count)


def published() -> list[dict[str, Any]]:
    path = SHARED / "vectors" / "accounting.json"
    return json.loads(path.read_text()) if path.exists() else []  # type: ignore[no-any-return]


def events_of(row: dict[str, Any]) -> list[Event]:
    if "composition" not in row:
        return [event(row["noise_multiplier"], row["sampling_probability"], row["steps"])]
    parts = row["composition"]
    if "linspace" in str(parts[0]["noise_multiplier"]):
        noises, probabilities = np.linspace(1.6, 1.8, 10), np.linspace(0.05, 0.06, 10)
        return [event(float(n), float(p), 10) for n, p in zip(noises, probabilities, strict=True)]
    return [
        event(part["noise_multiplier"], part["sampling_probability"], part["steps"])
        for part in parts
    ]


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
def test_every_published_value_holds_within_its_tolerance() -> None:
    rows = published()
    assert len(rows) >= 12
    for row in rows:
        answer = cost(events_of(row), row["delta"], adjacency=row.get("adjacency", "add-remove"))
        got = answer.epsilon_pld if row["accountant"] == "pld" else answer.epsilon_rdp
        assert got == pytest.approx(row["epsilon"], abs=row["tolerance"]), row


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Balle and Wang 2018, theorem 8."""
    return float(ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("noise", [0.7, 1.0, 3.0])
def test_the_plain_gaussian_is_its_closed_form(noise: float) -> None:
    for epsilon in (0.1, 1.0, 2.5):
        exact = gaussian_delta(epsilon, 1 / noise)
        assert delta_for([event(noise)], epsilon) == pytest.approx(exact, rel=1e-4)
        assert delta_for([event(noise)], epsilon) >= exact * (1 - 1e-9)
        assert cost([event(noise)], exact).epsilon >= epsilon - 1e-9


def test_equal_gaussians_are_one_with_less_noise() -> None:
    one = cost([event(2.0, 1.0, 16)], 1e-5)
    other = cost([event(0.5)], 1e-5)
    assert one.epsilon_pld == pytest.approx(other.epsilon_pld, abs=1e-6)


def test_composing_k_equal_events_is_k_times_one_mechanism() -> None:
    once = cost([event(1.1, 0.02, 60)], 1e-5)
    assert cost([event(1.1, 0.02, 20)] * 3, 1e-5) == once
    assert cost([event(1.1, 0.02, 20), event(1.1, 0.02, 40)], 1e-5) == once


def test_the_order_of_composition_does_not_matter() -> None:
    parts = [event(1.1, 0.02, 20), event(0.9, 0.01, 5), event(4.0)]
    assert cost(parts, 1e-5) == cost(parts[::-1], 1e-5)
    assert merged([*parts, *parts]) == merged([*parts[::-1], *parts])


NOISE, PROBABILITY, STEPS = st.floats(0.7, 4.0), st.floats(0.001, 0.3), st.integers(1, 300)


@settings(max_examples=8)
@given(NOISE, PROBABILITY, STEPS, st.floats(1e-8, 1e-3), st.floats(1.1, 2.0))
def test_epsilon_is_monotone_in_each_argument(
    noise: float, probability: float, steps: int, delta: float, more: float
) -> None:
    def epsilon(n: float, p: float, s: int, d: float) -> float:
        return accounting._epsilon_pld((event(n, p, s),), d, "add-remove", 1e-3)

    base = epsilon(noise, probability, steps, delta)
    slack = 2e-3 + 1e-3 * base  # of the grid
    assert epsilon(noise * more, probability, steps, delta) <= base + slack
    assert epsilon(noise, min(1.0, probability * more), steps, delta) >= base - slack
    assert epsilon(noise, probability, math.ceil(steps * more), delta) >= base - slack
    assert epsilon(noise, probability, steps, delta * more) <= base + 1e-12


@settings(max_examples=30)
@given(NOISE, PROBABILITY)
def test_the_closed_form_of_rdp_is_that_of_dp_accounting(noise: float, probability: float) -> None:
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    orders = [2, 3, 8, 33, 128]
    theirs = RdpAccountant(orders).compose(
        dp_accounting.PoissonSampledDpEvent(probability, dp_accounting.GaussianDpEvent(noise))
    )
    ours = rdp([event(noise, probability)], orders)
    assert ours == pytest.approx(list(theirs.rdp), rel=1e-7, abs=1e-13)


def test_nothing_costs_nothing() -> None:
    assert cost([], 1e-5).epsilon == 0.0
    assert delta_for([], 1.0) == 0.0


def test_substitution_has_one_accountant_and_says_so() -> None:
    answer = cost([event(2.0, 0.05, 50)], 1e-6, adjacency="substitute")
    assert answer.epsilon_rdp is None
    assert "substitution" in (answer.note or "")
    assert answer.epsilon_pld > cost([event(2.0, 0.05, 50)], 1e-6).epsilon_pld


def test_substitution_of_a_plain_gaussian_is_twice_the_sensitivity_for_both_accountants() -> None:
    double = cost([event(2.0), event(6.0, count=3)], 1e-6, adjacency="substitute")
    alone = cost([event(1.0), event(3.0, count=3)], 1e-6)
    assert double.epsilon == pytest.approx(alone.epsilon, abs=1e-3)
    assert double.epsilon_rdp == alone.epsilon_rdp
    assert double.note is None
    mixed = cost([event(2.0), event(2.0, 0.05, 50)], 1e-6, adjacency="substitute")
    assert mixed.epsilon_rdp is None
    assert "Poisson" in (mixed.note or "")


def test_an_unknown_relation_is_an_error() -> None:
    with pytest.raises(AccountingError):
        cost([event(1.0)], 1e-6, adjacency="swap")  # type: ignore[arg-type]


def test_a_cost_fits_canonical_json() -> None:
    value = cost([event(1.1, 0.03, 40)], 1e-6).to_dict()
    assert set(value) == {
        "epsilon_pld",
        "epsilon_rdp",
        "note",
        "delta",
        "adjacency",
        "best_order",
        "order_at_edge",
    }
    json.dumps(value, allow_nan=False)


def test_a_best_order_at_the_edge_of_the_grid_is_noted() -> None:
    assert cost([event(200.0, 0.001)], 1e-6).order_at_edge
    assert not cost([event(1.1, 0.03, 400)], 1e-6).order_at_edge


@pytest.mark.parametrize(("pld", "looser"), [(1.01, 1.0), (math.nan, 1.0), (10.1, 10.0)])
def test_pld_above_rdp_is_an_error(pld: float, looser: float) -> None:
    with pytest.raises(AccountingError):
        check_agreement(pld, looser, "PLD", "RDP")
    check_agreement(1.0, 1.0, "PLD", "RDP")


@pytest.mark.parametrize("wrong", [math.nan, -1.0, math.inf])
def test_an_accountant_that_answers_nonsense_stops_everything(
    wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def get_epsilon_for_delta(self, delta: float) -> float:
            return wrong

        def get_delta_for_epsilon(self, epsilon: float) -> float:
            return wrong

    monkeypatch.setattr(accounting, "_composed", lambda *arguments: Broken())
    with pytest.raises(AccountingError):
        cost([event(1.234567, 0.01)], 1e-5)
    with pytest.raises(AccountingError):
        delta_for([event(1.234567, 0.01)], 1.0)


def test_a_wrong_rdp_formula_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "rdp", lambda events, orders: [0.1] * len(orders))
    with pytest.raises(AccountingError, match="order"):
        cost([event(1.345678, 0.01)], 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_makes_no_sense_is_refused(delta: float) -> None:
    with pytest.raises(ValueError):
        cost([event(1.0)], delta)


@pytest.mark.parametrize(
    ("target", "delta", "probability", "steps", "adjacency"),
    [
        (3.0, 1e-5, 0.03, 40, "add-remove"),
        (0.5, 1e-6, 0.01, 1000, "add-remove"),
        (8.0, 1e-5, 0.1, 200, "add-remove"),
        (1.0, 1e-6, 1.0, 5, "add-remove"),
        (2.0, 1e-6, 0.02, 100, "substitute"),
    ],
)
def test_calibrated_noise_meets_the_target_from_the_private_side(
    target: float, delta: float, probability: float, steps: int, adjacency: Any
) -> None:
    noise = calibrate_noise(
        target_epsilon=target,
        delta=delta,
        sampling_probability=probability,
        steps=steps,
        adjacency=adjacency,
    )
    got = cost([event(noise, probability, steps)], delta, adjacency=adjacency).epsilon
    assert target * 0.99 < got <= target


def test_steps_meet_the_target_and_one_more_does_not() -> None:
    arguments: dict[str, Any] = {"noise_multiplier": 1.1, "sampling_probability": 0.02}
    steps = max_steps(target_epsilon=1.5, delta=1e-6, **arguments)
    assert cost([event(1.1, 0.02, steps)], 1e-6).epsilon <= 1.5
    assert cost([event(1.1, 0.02, steps + 1)], 1e-6).epsilon > 1.5
    assert max_steps(target_epsilon=0.01, delta=1e-9, **arguments) == 0


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_makes_no_sense_is_refused(target: float) -> None:
    with pytest.raises(ValueError):
        calibrate_noise(target_epsilon=target, delta=1e-5, sampling_probability=0.1, steps=5)


def test_the_trade_off_curve_of_a_gaussian_is_its_closed_form() -> None:
    from scipy.special import ndtri

    curve = tradeoff([event(1.0)])
    for fpr in (0.001, 0.01, 0.0137, 0.1, 0.5):
        exact = float(ndtr(ndtri(fpr) + 1.0))
        assert exact - 1e-9 <= curve.tpr_bound(fpr) <= exact * 1.01 + 1e-4
    assert curve.mu_nearest == pytest.approx(1.0, abs=1e-3)
    assert curve.mu_gap < 1e-3
    assert curve.max_accuracy == pytest.approx(float(ndtr(0.5)), abs=1e-4)


@pytest.mark.parametrize(
    "events",
    [
        [event(0.9, 0.024, 60)],
        [event(0.6, 0.2, 3), event(4.0, 0.01, 900)],
        [event(30.0, 1.0, 2)],
        [event(0.5, 0.9, 40)],
    ],
)
def test_deltas_are_those_of_the_distribution_at_every_epsilon(events: list[Event]) -> None:
    pld = accounting._composed(merged(events), "add-remove", 1e-3)
    epsilons = np.linspace(0, 8, 2001)
    ours = [deltas(one, epsilons) for one in accounting._directions(pld)]
    assert np.max(ours, axis=0) == pytest.approx(pld.get_delta_for_epsilon(epsilons), abs=1e-13)


def test_deltas_that_differ_from_the_accountants_are_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accounting, "deltas", lambda one, at: deltas(one, at) + 1e-6)
    with pytest.raises(AccountingError, match="delta at epsilon 0 is"):
        tradeoff([event(1.37)])


@pytest.mark.parametrize("noise", [0.5, 0.9, 4.0])
@pytest.mark.parametrize("probability", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 300])
def test_orders_beside_the_best_whole_one_are_enough(
    noise: float, probability: float, steps: int
) -> None:
    for delta in (1e-3, 1e-9):
        events = (event(noise, probability, steps),)
        found = accounting._epsilon_rdp(events, delta)
        assert found[:2] == accounting._rdp_at(events, delta, accounting._ALL_ORDERS)


def test_the_trade_off_curve_is_a_trade_off_curve() -> None:
    curve = tradeoff([event(1.1, 0.05, 200)])
    fpr, fnr = np.array(curve.fpr), np.array(curve.fnr)
    assert fpr[0] == 0
    assert fpr[-1] == 1
    assert np.all(np.diff(fpr) > 0)
    assert np.all(np.diff(fnr) <= 0)
    assert np.all(fnr <= 1 - fpr + 1e-12)
    # every (epsilon, delta) that the PLD gives is a line below the curve
    for epsilon in (0.5, 1.5):
        delta = delta_for([event(1.1, 0.05, 200)], epsilon)
        assert np.all(fnr >= 1 - delta - math.exp(epsilon) * fpr - 1e-6)
    points = [curve.tpr_bound(float(at)) for at in np.linspace(0, 1, 501)]
    assert np.all(np.diff(points) >= -1e-9)
    assert curve.tpr_bound(1.0) == 1.0
    json.dumps(curve.to_dict(), allow_nan=False)
    with pytest.raises(ValueError):
        curve.tpr_bound(1.5)


def test_importing_the_room_loads_no_accountant() -> None:
    code = "import sys, privft.budget.accounting, privft.budget.reference; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "scipy", "dp_accounting", "riskcal"}


@pytest.mark.slow
def test_two_hundred_different_runs_and_a_calibration_are_quick() -> None:
    rng = np.random.default_rng(7)
    runs = [
        event(float(rng.uniform(2, 6)), float(rng.uniform(0.005, 0.03)), int(rng.integers(20, 200)))
        for _ in range(200)
    ]
    start = time.process_time()
    cost(runs, 1e-6)
    assert time.process_time() - start < 10  # 5 s on a quiet machine
    start = time.process_time()
    calibrate_noise(target_epsilon=3.1, delta=1e-6, sampling_probability=0.021, steps=333)
    assert time.process_time() - start < 4
    start = time.process_time()
    tradeoff([event(1.23, 0.021, 333)])
    assert time.process_time() - start < 4
