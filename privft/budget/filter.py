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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from privft.budget.mechanism import Event
from privft.budget.renyi import conversion
from privft.budget.selection import AnyEvent, total_rdp
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


def gauge(cap: Cap, sums: Sequence[float]) -> float:
    """The smallest epsilon whose cap would have admitted these sums of RDP; 0 for nothing spent.

    sums: one for each order of the cap, as `selection.total_rdp` gives them.
    """
    if not any(sums):
        return 0.0
    lowest = min(total + extra for total, extra in zip(sums, cap.conversions, strict=True))
    if math.isnan(lowest):
        raise AccountingError("a sum of RDP values is NaN")
    return max(0.0, lowest)


def admit(cap: Cap, spent: Sequence[AnyEvent], new: Sequence[AnyEvent]) -> Admission:
    """Whether `new` may be added to `spent` under `cap`.

    spent: everything charged so far on this lineage, reservations included.

    Guarantees: as long as every mechanism that touched the data was admitted here first, with
    spent complete, the whole interaction is (cap.epsilon, cap.delta)-DP under add/remove.
    """
    return admit_sums(cap, total_rdp(spent, cap.orders), total_rdp(new, cap.orders))


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


def fits(cap: Cap, spent: Sequence[AnyEvent], *run: AnyEvent) -> int:
    """How many more runs of exactly these events the cap admits after `spent` (at most 10^18)."""
    before, each = total_rdp(spent, cap.orders), total_rdp(run, cap.orders)

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


def steps_that_fit(cap: Cap, spent: Sequence[AnyEvent], event: Event) -> int:
    """How many steps of `event`'s kind the cap admits after `spent` (its own count is ignored)."""
    return fits(cap, spent, replace(event, count=1))
