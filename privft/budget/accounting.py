"""What a list of events costs: epsilon by two accountants, and the trade-off curve.

Two independent accountants of dp_accounting look at everything that both support:

* **PLD** (privacy loss distributions; Doroshenko et al. 2022, "Connect the dots") is the one whose
  number is stated.  Losses are discretised so that every estimate is pessimistic: a coarse grid
  costs sharpness, never truth.  Up to 8 different events are composed on a grid of 1e-4, up to 64
  on 1e-3, more on 2e-3; equal events are merged first.
* **RDP** (Renyi differential privacy; Mironov 2017, Mironov, Talwar and Zhang 2019) is looser and
  shares none of that code.  PLD above RDP by more than `TOLERANCE` means that one of them is wrong,
  and so does anything negative, infinite or NaN: an `AccountingError`, never a warning.

A list that holds a random-stopping selection has RDP alone, and its `Cost` says so (`priced`).

Under **substitution** of one unit (the pair of distributions that differ by twice the clip norm, as
dp_accounting's REPLACE_ONE has it) PLD is held against itself on two grids.  Where nothing is
sampled, that is a Gaussian mechanism of half the noise and RDP prices it too; with Poisson sampling
RDP does not support the relation, and `epsilon_rdp` is None with a reason.

Calibration searches on the coarse grid, confirms on the fine one, and returns a value that lies on
the private side: the returned noise is rounded up, the returned steps down, and `cost` of the
result is at most the target.

dp_accounting and riskcal are imported where they are used (1 second): importing this room is free,
and `get_ready` imports them beforehand.
Everything expensive is cached in the process, keyed by the event.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from privft.budget.mechanism import Adjacency, Event
from privft.budget.priced import Cost, single_cost, single_curve
from privft.budget.renyi import rdp
from privft.budget.selection import AnyEvent, is_single, merged
from privft.budget.tradeoff import Losses, TradeOff, deltas, from_losses
from privft.errors import AccountingError

FINE, COARSE, COARSEST = 1e-4, 1e-3, 2e-3
TOLERANCE = 2e-3  # absolute, and half of it again relative
_QUICK_ORDERS = tuple(float(order) for order in (*range(2, 17), 20, 24, 32, 48, 64, 128))
_ALL_ORDERS = tuple(order / 10 for order in range(11, 110)) + tuple(
    float(order) for order in (*range(11, 64), 128, 256, 512, 1024)
)
_RELATIONS = {"add-remove": "ADD_OR_REMOVE_ONE", "substitute": "REPLACE_ONE"}
_CHECKED_ORDERS = (2.0, 8.0, 32.0)
_SUBSTITUTE_NOTE = "no RDP accountant for Poisson sampling under substitution; PLD on two grids"


def get_ready() -> None:
    """Import what pricing will import, before it is needed."""
    for name in ("dp_accounting.pld", "dp_accounting.rdp", "riskcal.analysis", "scipy.optimize"):
        importlib.import_module(name)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ValueError(f"expected a finite epsilon > 0, got {epsilon}")


def _grid(distinct: int) -> float:
    return FINE if distinct <= 8 else COARSE if distinct <= 64 else COARSEST


@lru_cache(maxsize=256)
def _one_step(noise: float, probability: float, adjacency: Adjacency, grid: float) -> Any:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution

    if adjacency not in _RELATIONS:
        raise AccountingError(f"no accountant for adjacency {adjacency!r}")
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        sampling_prob=probability,
        value_discretization_interval=grid,
        neighboring_relation=NeighboringRelation[_RELATIONS[adjacency]],
    )


@lru_cache(maxsize=256)
def _one_event(event: Event, adjacency: Adjacency, grid: float) -> Any:
    noise, probability, count = event.noise_multiplier, event.sampling_probability, event.count
    if probability == 1.0:  # a sum of Gaussians is one Gaussian, without a convolution
        return _one_step(noise / math.sqrt(count), 1.0, adjacency, grid)
    step = _one_step(noise, probability, adjacency, grid)
    return step if count == 1 else step.self_compose(count)


@lru_cache(maxsize=8)
def _composed(events: tuple[Event, ...], adjacency: Adjacency, grid: float) -> Any:
    """The PLD of `merged` events, at least one."""
    parts = [_one_event(event, adjacency, grid) for event in events]
    while len(parts) > 1:  # in pairs, so that most convolutions are short
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [a.compose(b) for a, b in pairs] + parts[len(parts) // 2 * 2 :]
    return parts[0]


def _trusted(value: float, what: str) -> float:
    if not math.isfinite(value) or value < 0:
        hint = "more noise, fewer steps, or a delta that is not below 1e-12"
        raise AccountingError(f"{what} is {value}", hint=hint)
    return float(value)


def _epsilon_pld(
    events: tuple[Event, ...], delta: float, adjacency: Adjacency, grid: float
) -> float:
    value = _composed(events, adjacency, grid).get_epsilon_for_delta(delta)
    return _trusted(value, f"PLD epsilon at delta {delta:g}")


def _epsilon_rdp(
    events: tuple[Event, ...], delta: float, orders: tuple[float, ...] | None = None
) -> tuple[float, float, bool]:
    """Epsilon, the order that gives it, and whether that is the grid's first or last."""
    grid = orders or (_ALL_ORDERS if len(events) <= 8 else _QUICK_ORDERS)
    whole = tuple(order for order in grid if order.is_integer())
    epsilon, best = _rdp_at(events, delta, whole)
    # Fractional orders are sharper and slow.  Along the orders epsilon falls, then rises, so those
    # beside the best whole one are enough; were they not, the answer would be looser, not wrong.
    near = tuple(order for order in grid if 0 < abs(order - best) < 1)
    if near:
        epsilon, best = min((epsilon, best), _rdp_at(events, delta, near))
    return _trusted(epsilon, "RDP epsilon"), best, best in (grid[0], grid[-1])


def _rdp_at(
    events: tuple[Event, ...], delta: float, orders: tuple[float, ...]
) -> tuple[float, float]:
    """Epsilon and the order that gives it, of these."""
    from dp_accounting.rdp import compute_epsilon

    totals = [0.0] * len(orders)
    for event in events:
        step = _their_rdp(event.noise_multiplier, event.sampling_probability, orders)
        totals = [total + event.count * value for total, value in zip(totals, step, strict=True)]
    epsilon, best = compute_epsilon(orders, totals, delta)
    return float(epsilon), float(best)


@lru_cache(maxsize=4096)
def _their_rdp(noise: float, probability: float, orders: tuple[float, ...]) -> tuple[float, ...]:
    """RDP of one step as dp_accounting has it, held to the filter's closed form."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    event = Event(noise_multiplier=noise, sampling_probability=probability)
    theirs: Any = dp_accounting.GaussianDpEvent(noise)
    if probability != 1.0:
        theirs = dp_accounting.PoissonSampledDpEvent(probability, theirs)
    # it warns of orders whose series does not converge; they count as infinite, so never as best
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        values = tuple(float(value) for value in RdpAccountant(orders).compose(theirs).rdp)
    finally:
        logger.setLevel(level)
    if not all(value >= 0 for value in values):
        raise AccountingError(f"an RDP value of one step is {min(values)}")
    for order, value in zip(orders, values, strict=True):
        if order in _CHECKED_ORDERS:
            (ours,) = rdp([event], [order])
            if not math.isclose(ours, value, rel_tol=1e-6, abs_tol=1e-12):
                raise AccountingError(f"RDP at order {order:g} is {ours} here, {value} there")
    return values


def cost(events: Sequence[AnyEvent], delta: float, *, adjacency: Adjacency = "add-remove") -> Cost:
    """What the composition of `events` costs at `delta`; nothing costs nothing.

    Guarantees: the mechanism is (epsilon, delta)-differentially private under `adjacency`, also
    when each event was fixed only after the earlier ones had answered, but with parameters that
    did not depend on the answers; parameters that did are the filter's business.
    Raises `AccountingError` when the accountants disagree or one gives what cannot be.
    """
    _check_delta(delta)
    if is_single(events):
        _add_remove_alone(adjacency)
        return single_cost(events, delta)
    return _cost(_plain(events), delta, adjacency)


def _plain(events: Sequence[AnyEvent]) -> tuple[Event, ...]:
    """The events, equal ones counted together; `AccountingError` for what has no distribution."""
    parts = merged(events)
    plain = tuple(event for event in parts if isinstance(event, Event))
    if len(plain) < len(parts):
        raise AccountingError("no privacy loss distribution is known for random stopping")
    return plain


def _add_remove_alone(adjacency: Adjacency) -> None:
    if adjacency != "add-remove":
        raise AccountingError("random stopping is priced under add-remove only")


@lru_cache(maxsize=256)
def _cost(events: tuple[Event, ...], delta: float, adjacency: Adjacency) -> Cost:
    answer = partial(Cost, delta=delta, adjacency=adjacency)
    if not events:
        return answer(epsilon_pld=0.0, epsilon_rdp=0.0, note="nothing was run")
    grid = _grid(len(events))
    pld = _epsilon_pld(events, delta, adjacency, grid)
    if adjacency == "substitute":
        other = _epsilon_pld(events, delta, adjacency, 10 * grid)
        check_agreement(pld, other, f"PLD on a grid of {grid:g}", f"PLD on {10 * grid:g}")
        if any(event.sampling_probability < 1 for event in events):
            return answer(epsilon_pld=pld, epsilon_rdp=None, note=_SUBSTITUTE_NOTE)
        events = tuple(
            replace(event, noise_multiplier=event.noise_multiplier / 2) for event in events
        )
    looser, best, edge = _epsilon_rdp(events, delta)
    check_agreement(pld, looser, "PLD", "RDP")
    return answer(epsilon_pld=pld, epsilon_rdp=looser, best_order=best, order_at_edge=edge)


def check_agreement(sharper: float, looser: float, sharp_name: str, loose_name: str) -> None:
    """Raise `AccountingError` when the sharper of two upper bounds is above the looser one."""
    allowed = TOLERANCE + TOLERANCE / 2 * looser
    if not sharper <= looser + allowed:
        raise AccountingError(
            f"{sharp_name} says epsilon {sharper:.6g} and {loose_name} {looser:.6g}, "
            f"{sharper - looser:.2g} apart where {allowed:.2g} is allowed",
            hint="one accountant is wrong about these events: do not run them, report them",
        )


def delta_for(
    events: Sequence[Event], epsilon: float, *, adjacency: Adjacency = "add-remove"
) -> float:
    """The delta at which the composition of `events` has this epsilon, by PLD, held to RDP's."""
    _check_epsilon(epsilon)
    parts = _plain(events)
    if not parts:
        return 0.0
    value = _composed(parts, adjacency, _grid(len(parts))).get_delta_for_epsilon(epsilon)
    delta = min(1.0, _trusted(float(value), f"PLD delta at epsilon {epsilon:g}"))
    if adjacency == "add-remove" and 1e-9 < delta < 1:  # below it PLD's own truncation shows
        looser = _epsilon_rdp(parts, delta)[0]
        check_agreement(epsilon, looser, f"PLD at delta {delta:g}", "RDP")
    return delta


def calibrate_noise(
    *,
    target_epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    adjacency: Adjacency = "add-remove",
) -> float:
    """The least noise multiplier, to about one part in a thousand, that meets the target.

    Guarantees: `cost` of the result is at most `target_epsilon`.
    """
    _check_delta(delta)
    _check_epsilon(target_epsilon)

    from scipy.optimize import brentq

    def event(noise: float) -> Event:
        return Event(noise_multiplier=noise, sampling_probability=sampling_probability, count=steps)

    def log_excess(log_noise: float, grid: float = COARSE) -> float:  # nearly a straight line
        pld = _composed((event(math.exp(log_noise)),), adjacency, grid)
        epsilon = max(pld.get_epsilon_for_delta(delta), 1e-9)
        return min(math.log(epsilon / target_epsilon), 99.0)

    # bracket from the RDP answer, which is cheap and on the private side of PLD's
    high = math.log(0.1)
    while _epsilon_rdp((event(math.exp(high)),), delta, _QUICK_ORDERS)[0] > target_epsilon:
        high += 0.25
    while log_excess(high) > 0:  # substitution, of which RDP knows nothing, needs more
        high += 0.5
    low = high - 0.4
    while log_excess(low) <= 0 and low > -4:
        low, high = low - 0.4, low
    if log_excess(low) > 0 > log_excess(high) + 5e-4:
        high = brentq(lambda x: log_excess(x) + 5e-4, low, high, xtol=2e-4)
    noise = math.exp(high)
    for _ in range(6):  # confirm on the fine grid, and follow it where the coarse one misleads
        noise = math.ceil(noise * 1e4) / 1e4
        fine = log_excess(math.log(noise), FINE)
        if -2e-3 <= fine <= 0:
            break
        noise *= math.exp(fine + 5e-4)
    while cost([event(noise)], delta, adjacency=adjacency).epsilon > target_epsilon:
        noise = math.ceil(noise * 1.002 * 1e4) / 1e4
    return noise


def max_steps(
    *,
    target_epsilon: float,
    delta: float,
    noise_multiplier: float,
    sampling_probability: float,
    adjacency: Adjacency = "add-remove",
) -> int:
    """The most steps that meet the target, 0 when not even one does (at most 2**24).

    Guarantees: `cost` of that many steps is at most `target_epsilon`, of one more above it.
    """
    _check_delta(delta)
    _check_epsilon(target_epsilon)

    one = Event(noise_multiplier=noise_multiplier, sampling_probability=sampling_probability)

    def fits(steps: int, grid: float) -> bool:
        pld = _composed((replace(one, count=steps),), adjacency, grid)
        return bool(pld.get_epsilon_for_delta(delta) <= target_epsilon)

    most = 1
    while most <= 1 << 24 and fits(most, COARSE):
        most *= 2
    low, high = most // 2, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle, COARSE) else (low, middle)
    while low and not fits(low, FINE):
        low -= max(1, low // 1000)
    while low < 1 << 24 and fits(low + 1, FINE):  # the coarse grid is the more cautious one
        low += 1
    while (
        low and cost([replace(one, count=low)], delta, adjacency=adjacency).epsilon > target_epsilon
    ):
        low -= 1  # asked of both accountants, as for everything that is stated
    return low


def tradeoff(events: Sequence[AnyEvent], adjacency: Adjacency = "add-remove") -> TradeOff:
    """The trade-off curve of the composition of `events`, at least one (`budget.tradeoff`).

    Held against Kulynych et al. 2024 (arXiv 2407.02191), algorithm 1, as riskcal has it; that of a
    selection follows from RDP (`budget.priced`).
    """
    if not events:
        raise ValueError("expected at least one event, got none")
    if is_single(events):
        _add_remove_alone(adjacency)
        return single_curve(events)
    return _tradeoff(_plain(events), adjacency)


@lru_cache(maxsize=64)
def _tradeoff(parts: tuple[Event, ...], adjacency: Adjacency) -> TradeOff:
    import numpy as np
    from riskcal.analysis import get_beta_from_pld

    pld = _composed(parts, adjacency, _grid(len(parts)))
    farthest = min(pld.get_epsilon_for_delta(1e-10), 50.0)
    directions = _directions(pld)
    for epsilon in (0.0, farthest / 7, farthest / 2):
        ours = max(float(deltas(one, epsilon)) for one in directions)
        theirs = float(pld.get_delta_for_epsilon(epsilon))
        if not math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-12):
            raise AccountingError(f"delta at epsilon {epsilon:g} is {ours} here, {theirs} there")
    curve = from_losses(
        directions,
        farthest=farthest,
        advantage=_trusted(float(pld.get_delta_for_epsilon(0.0)), "advantage"),
        adjacency=adjacency,
    )
    # Below the other curve is cautious, and happens between our lines where noise is very low.
    above = np.array(curve.fnr) - get_beta_from_pld(pld, alpha=np.array(curve.fpr))
    if not -10 * TOLERANCE < float(above.min()) <= float(above.max()) < TOLERANCE:
        raise AccountingError(
            f"two trade-off curves of the same events are apart by {above.min():.2g} to "
            f"{above.max():.2g}"
        )
    return curve


def _directions(pld: Any) -> list[Losses]:
    """The distribution's arrays: dp_accounting's own evaluation at many epsilons walks them in
    Python, half a second each.  They are its private fields, so `_tradeoff` checks the outcome."""
    import numpy as np

    distributions = [pld._pmf_remove] if pld._symmetric else [pld._pmf_remove, pld._pmf_add]
    dense = [one.to_dense_pmf() for one in distributions]
    return [
        Losses(
            losses=(np.arange(one.size) + one._lower_loss) * one._discretization,
            probabilities=one._probs,
            infinity_mass=one._infinity_mass,
        )
        for one in dense
    ]
