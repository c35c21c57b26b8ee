"""Renyi divergences of plain events in closed form, and the way from them to (epsilon, delta).

This is arithmetic alone: no accountant is loaded, so a ledger can be read and a budget asked for in
no time.  `filter` adds these numbers up, `selection` builds the divergence of random stopping on
them, and `accounting` holds them to dp_accounting's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from privft.budget.mechanism import Event
from privft.errors import AccountingError


def rdp(events: Sequence[Event], orders: Sequence[float]) -> tuple[float, ...]:
    """The sum of Renyi divergences at each whole order >= 2, under add/remove.

    This is what the filter adds up for plain events, in closed form (Mironov, Talwar and Zhang
    2019, arXiv 1908.10530, section 3.3) and without loading an accountant; `accounting.cost` holds
    it to dp_accounting's.  Infinity is an answer: nothing fits.
    """
    grid = tuple(int(order) for order in orders)
    if list(grid) != list(orders) or not all(order >= 2 for order in grid):
        raise AccountingError(f"expected whole orders from 2 up, got {list(orders)}")
    totals = [0.0] * len(grid)
    for event in events:
        try:
            step = _rdp_step(event.noise_multiplier, event.sampling_probability, grid)
            if not all(step):
                raise ArithmeticError("nothing is free")
        except (ValueError, ArithmeticError) as error:
            raise AccountingError(f"no RDP for {event}: outside of what floats can hold") from error
        totals = [total + event.count * value for total, value in zip(totals, step, strict=True)]
    return tuple(totals)


@lru_cache(maxsize=65536)
def _rdp_step(noise: float, probability: float, orders: tuple[int, ...]) -> tuple[float, ...]:
    """log(A) / (order - 1), A = sum_k C(order, k) (1-q)^(order-k) q^k exp((k^2 - k) / 2 sigma^2).

    The binomial weights add up to 1 and the first two exponents are 0, so A - 1 is the same sum
    with exp(x) - 1 in place of exp(x), all terms positive: nothing cancels when q is tiny.
    """
    if probability == 1.0:
        return tuple(order / (2 * noise**2) for order in orders)
    odds, rest = math.log(probability) - math.log1p(-probability), math.log1p(-probability)
    powers = [0.0, 0.0]  # log of (q / (1-q))^k (exp(x) - 1), the same for every order
    for k in range(2, max(orders) + 1):
        exponent = (k * k - k) / (2 * noise**2)
        powers.append(k * odds + exponent + math.log(-math.expm1(-exponent)))
    return tuple(_rdp_order(order, powers, order * rest) for order in orders)


def _rdp_order(order: int, powers: Sequence[float], log_scale: float) -> float:
    combinations = _log_combinations(order)
    logs = [a + b for a, b in zip(combinations[2:], powers[2 : order + 1], strict=True)]
    largest = max(logs)
    log_sum = largest + log_scale + math.log(math.fsum([math.exp(x - largest) for x in logs]))
    if log_sum > 0:
        return (log_sum + math.log1p(math.exp(-log_sum))) / (order - 1)
    return math.log1p(math.exp(log_sum)) / (order - 1)


@lru_cache(maxsize=64)
def _log_combinations(order: int) -> tuple[float, ...]:
    return tuple(math.log(math.comb(order, k)) for k in range(order + 1))


def conversion(order: float, delta: float) -> float:
    """What is added to RDP at this order to give epsilon at this delta (`filter` has the proof)."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
