"""What a list of events costs, as a value; and all of it where RDP alone knows an event.

`accounting` prices plain events with two accountants.  Random stopping (`selection.Selection`) is
known to RDP alone: `single_cost` gives its epsilon, `single_curve` the errors that every attack on
it must make.

**A trade-off curve from RDP.**  If a mechanism has Renyi divergence at most rho(a) at each order a
of a grid, both ways, it is (epsilon, delta)-private for every epsilon >= 0 with

    delta(epsilon) = min over a of  exp((a - 1) (rho(a) - epsilon)) (1 - 1/a)^(a - 1) / a

(Canonne, Kamath and Steinke 2020, arXiv 2004.00010, proposition 12), and each such pair is two
lines that no attack gets below (Wasserman and Zhou 2010, theorem 2.4; Dong, Roth and Su 2022,
proposition 2.12): `tradeoff` draws the highest of them.  It is a looser curve than the mechanism's
own, and never a wrong one.  The advantage is bounded by the corner of each pair of lines,
(e^epsilon - 1 + 2 delta) / (e^epsilon + 1) (Kairouz, Oh and Viswanath 2015, theorem 2.1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from privft.budget.mechanism import Adjacency
from privft.budget.renyi import conversion
from privft.budget.selection import GRID, SINGLE_NOTE, AnyEvent, merged, total_rdp
from privft.budget.tradeoff import TradeOff, from_profile, spread
from privft.errors import AccountingError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a list of events costs at one delta, under one relation.

    epsilon_pld, epsilon_rdp: by either accountant; None where it does not know the events, and
    `note` then says why.
    best_order: the order that gave `epsilon_rdp`; order_at_edge: whether it is the first or last
    of the grid, so that a better one may lie outside.
    """

    epsilon_pld: float | None
    epsilon_rdp: float | None
    note: str | None = None
    delta: float
    adjacency: Adjacency
    best_order: float | None = None
    order_at_edge: bool = False

    @property
    def epsilon(self) -> float:
        """The value to state."""
        return stated_epsilon(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, fit for canonical JSON."""
        return asdict(self)


def stated_epsilon(cost: Mapping[str, Any]) -> float:
    """The value to state of a `Cost` in JSON: PLD's, or RDP's where that is the only one."""
    pld, rdp = cost["epsilon_pld"], cost["epsilon_rdp"]
    if pld is None and rdp is None:
        raise AccountingError("no accountant priced these events")
    return float(rdp if pld is None else pld)


def single_cost(events: Sequence[AnyEvent], delta: float) -> Cost:
    """Epsilon of a list that holds a selection, from the best order of `selection.GRID`."""
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
    sums = total_rdp(events, GRID)
    costs = [total + conversion(order, delta) for total, order in zip(sums, GRID, strict=True)]
    best = min(range(len(GRID)), key=costs.__getitem__)
    if not math.isfinite(costs[best]):
        raise AccountingError(f"RDP epsilon at delta {delta:g} is {costs[best]}")
    return Cost(
        epsilon_pld=None,
        epsilon_rdp=max(0.0, costs[best]),
        note=SINGLE_NOTE,
        delta=delta,
        adjacency="add-remove",
        best_order=GRID[best],
        order_at_edge=best in (0, len(GRID) - 1),
    )


def single_curve(events: Sequence[AnyEvent]) -> TradeOff:
    """The trade-off curve of a list that holds a selection (the module's docstring)."""
    return _single_curve(merged(events))


@lru_cache(maxsize=64)
def _single_curve(events: tuple[AnyEvent, ...]) -> TradeOff:
    farthest = min(max(single_cost(events, 1e-10).epsilon, 1e-3), 50.0)
    return curve_from_rdp(GRID, total_rdp(events, GRID), farthest=farthest)


def curve_from_rdp(orders: Sequence[float], sums: Sequence[float], *, farthest: float) -> TradeOff:
    """The curve that Renyi divergences at these orders imply (the module's docstring).

    farthest: the largest epsilon that a line is drawn for.
    """
    import numpy as np

    epsilons = spread(farthest)
    order, rho = np.array(orders)[:, None], np.array(sums)[:, None]
    logs = (order - 1) * (rho - epsilons + np.log1p(-1 / order)) - np.log(order)
    deltas = np.exp(np.minimum(0.0, logs.min(axis=0)))
    corners = (np.expm1(epsilons) + 2 * deltas) / (np.exp(epsilons) + 1)
    return from_profile(epsilons, deltas, advantage=float(corners.min()), adjacency="add-remove")
