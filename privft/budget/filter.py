"""May this run be admitted?  A Renyi filter over everything that a data set has answered.

Later plans depend on earlier models: people look at a result and choose the next noise, the next
number of steps.  Adding up epsilons, or composing PLDs, is not valid then.  A *privacy filter* is:
it admits a mechanism only while a budget fixed in advance covers it, and the budget then holds for
the whole interaction, however each mechanism was chosen.

**One order.**  Fix alpha > 1 and B.  Feldman and Zrnic (2021, "Individual privacy accounting via a
Renyi filter", arXiv 2008.11193; the filter with all individual parameters at their worst case, see
also Lecuyer 2021, arXiv 2103.01379): if mechanism t, chosen after seeing all earlier answers, has
Renyi divergence at most rho_t at order alpha for every pair of neighbours, and the filter stops
before the sum of the rho_t exceeds B, the whole interaction is (alpha, B)-RDP.  A single guarantee
at one order converts to (epsilon, delta')-DP by Canonne, Kamath and Steinke (2020, arXiv
2004.00010, proposition 12):

    epsilon = B + conversion(alpha, delta')
    conversion(alpha, d) = log((alpha - 1) / alpha) - (log d + log alpha) / (alpha - 1)

so the budget at this order is B(alpha) = epsilon - conversion(alpha, delta').

**Several orders.**  A run is admitted when for *some* order of a small grid, fixed in the policy,
the sum stays within B(alpha).  Which order that will be at the end depends on the answers, so
each of k orders may only use delta' = delta / k.  The argument: for each alpha, let M_alpha be the
interaction cut off just before its sum at alpha would exceed B(alpha); by the theorem it is
(epsilon, delta/k)-DP.  All rho_t are functions of the transcript, so a transcript of the real
interaction determines the first order alpha* whose sum never exceeded its budget (sums only grow,
and the last admission found one).  Split an event E by alpha* into E_1, ..., E_k.  On E_i the real
interaction and M_i produce the same transcript with the same probability, hence

    P[M(D) in E] = sum_i P[M_i(D) in E_i] <= sum_i (e^epsilon P[M_i(D') in E_i] + delta/k)
                 = e^epsilon P[M(D') in E] + delta.

Granting the whole delta to every order would prove only k times delta.

A step is a mechanism of its own: its noise and sampling probability are fixed before it answers.
So a run that stops early is charged for the steps that drew noise, and the filter stays valid.  The
steps of runs that are open at the same time interleave into one such sequence; each of them counts
whole from its reservation on, so what was drawn is never above what was admitted.

**What the numbers mean.**  The guarantee of a data set is its cap (epsilon, delta), from the first
run to the last; it does not shrink while little is spent.  `epsilon_spent` is *the smallest cap
that would have admitted what was spent* under the same delta and orders: a gauge, 0 when nothing
was run, never above the cap.

Worked example, k = 1: alpha = 10, delta = 1e-5, epsilon = 2.  conversion = log(0.9) - (log(1e-5) +
log 10) / 9 = -0.105361 + 1.023371 (rounded: 0.918010), so B = 1.081990.  A Gaussian mechanism of
noise multiplier 10 has rho = 10 / (2 * 100) = 0.05: 21 of them fit (1.05), 22 do not (1.10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from privft.budget.mechanism import Event
from privft.errors import AccountingError

# Whole orders, because their RDP is a finite sum.  Over runs that cost epsilon 0.3 to 20 at delta
# 1e-5 to 1e-7, this grid with the divided delta asks for 14% more epsilon on average, and 41% at
# worst, than a dense grid with the whole delta would (measured; tests/budget/test_filter.py).
DEFAULT_ORDERS = (2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 24.0, 48.0)


@dataclass(frozen=True, kw_only=True)
class Cap:
    """The budget of a data set: its guarantee, and the orders that the filter may use."""

    epsilon: float
    delta: float
    orders: tuple[float, ...] = DEFAULT_ORDERS

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"expected a finite epsilon > 0, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise ValueError(f"expected 0 < delta < 1, got {self.delta}")
        if not self.orders or not all(order >= 2 and order % 1 == 0 for order in self.orders):
            raise ValueError(f"expected at least one whole order from 2 up, got {self.orders}")
        if list(self.orders) != sorted(set(self.orders)):
            raise ValueError(f"expected rising orders, each once, got {self.orders}")

    @property
    def delta_per_order(self) -> float:
        """What each order may use: the whole delta divided by how many orders there are."""
        return self.delta / len(self.orders)

    @property
    def conversions(self) -> tuple[float, ...]:
        """For each order, what the way from RDP to (epsilon, delta / k)-DP adds to epsilon."""
        return tuple(conversion(order, self.delta_per_order) for order in self.orders)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, fit for canonical JSON."""
        return {"epsilon": self.epsilon, "delta": self.delta, "orders": list(self.orders)}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Cap:
        """The inverse of `to_dict`; unknown or missing fields are an `AccountingError`."""
        if set(value) != {"epsilon", "delta", "orders"}:
            raise AccountingError(
                f"expected epsilon, delta and orders in a cap, got {sorted(value)}"
            )
        try:
            return Cap(
                epsilon=float(value["epsilon"]),
                delta=float(value["delta"]),
                orders=tuple(float(order) for order in value["orders"]),
            )
        except (ValueError, TypeError) as error:
            raise AccountingError(f"cap: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Admission:
    """What the filter says about adding some events to what is spent.

    order: the one whose budget is used least after the addition.
    used: for each order of the cap, the share of its budget that is used after the addition
    (above 1: exceeded; infinite: this order has no budget at all under the cap).
    epsilon_spent: the gauge before the addition, epsilon_after: after it (above the cap exactly
    when refused), epsilon_left: the cap less epsilon_spent.
    """

    admitted: bool
    order: float
    used: tuple[float, ...]
    epsilon_spent: float
    epsilon_after: float
    epsilon_left: float

    @property
    def epsilon_needed(self) -> float:
        """By how much the gauge rises: more than `epsilon_left` exactly when refused."""
        return self.epsilon_after - self.epsilon_spent


def merged(events: Sequence[Event]) -> tuple[Event, ...]:
    """The same events with equal ones counted together, in a fixed order.

    Guarantees: the composition is the same, since composition is commutative and associative.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.noise_multiplier, event.sampling_probability] += event.count
    return tuple(
        Event(noise_multiplier=noise, sampling_probability=probability, count=count)
        for (noise, probability), count in sorted(counts.items())
    )


def rdp(events: Sequence[Event], orders: Sequence[float]) -> tuple[float, ...]:
    """The sum of Renyi divergences at each whole order >= 2, under add/remove.

    This is what the filter adds up, in closed form (Mironov, Talwar and Zhang 2019, arXiv
    1908.10530, section 3.3) and without loading an accountant; `cost` holds it to dp_accounting's.
    Infinity is an answer: nothing fits.
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
    """What is added to RDP at this order to give epsilon at this delta (the module's docstring)."""
    return math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)


def gauge(cap: Cap, sums: Sequence[float]) -> float:
    """The smallest epsilon whose cap would have admitted these sums of RDP; 0 for nothing spent.

    sums: one for each order of the cap, as `rdp` gives them.
    """
    if not any(sums):
        return 0.0
    lowest = min(total + extra for total, extra in zip(sums, cap.conversions, strict=True))
    if math.isnan(lowest):
        raise AccountingError("a sum of RDP values is NaN")
    return max(0.0, lowest)


def admit(cap: Cap, spent: Sequence[Event], new: Sequence[Event]) -> Admission:
    """Whether `new` may be added to `spent` under `cap`.

    spent: everything charged so far on this lineage, reservations included.

    Guarantees: as long as every mechanism that touched the data was admitted here first, with
    spent complete, the whole interaction is (cap.epsilon, cap.delta)-DP under add/remove.
    """
    return admit_sums(cap, rdp(spent, cap.orders), rdp(new, cap.orders))


def admit_sums(cap: Cap, spent: Sequence[float], new: Sequence[float]) -> Admission:
    """`admit` on sums of RDP, one for each order of the cap: for a caller that keeps them."""
    after = [a + b for a, b in zip(spent, new, strict=True)]
    budgets = [cap.epsilon - extra for extra in cap.conversions]
    used = tuple(
        total / budget if budget > 0 else math.inf
        for total, budget in zip(after, budgets, strict=True)
    )
    best = min(range(len(used)), key=lambda at: after[at] - budgets[at])
    before = gauge(cap, spent)
    return Admission(
        admitted=any(total <= budget for total, budget in zip(after, budgets, strict=True)),
        order=cap.orders[best],
        used=used,
        epsilon_spent=before,
        epsilon_after=gauge(cap, after),
        epsilon_left=max(0.0, cap.epsilon - before),
    )


def fits(cap: Cap, spent: Sequence[Event], *run: Event) -> int:
    """How many more runs of exactly these events the cap admits after `spent` (at most 10^18)."""
    before, each = rdp(spent, cap.orders), rdp(run, cap.orders)

    def admits(times: int) -> bool:
        return admit_sums(cap, before, [times * cost for cost in each]).admitted

    rooms = [
        (cap.epsilon - extra - total) / cost
        for total, cost, extra in zip(before, each, cap.conversions, strict=True)
        if math.isfinite(cost)
    ]
    most = max([0, *(int(min(max(room, 0.0), 1e18) * (1 + 1e-9)) for room in rooms)])
    while most and not admits(most):  # rounding, by at most one or two
        most -= 1
    return most


def steps_that_fit(cap: Cap, spent: Sequence[Event], event: Event) -> int:
    """How many steps of `event`'s kind the cap admits after `spent` (its own count is ignored)."""
    return fits(cap, spent, replace(event, count=1))
