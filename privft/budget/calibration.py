"""The noise of a whole list of events, from a target epsilon: `accounting.cost` the other way.

`accounting.calibrate_noise` knows one kind of event.  Here the list may be heterogeneous and the
one number that is sought may scale all of it or fill its gaps; `cost` of the result is computed
again and lies on the private side of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from privft.budget.accounting import cost
from privft.budget.mechanism import Adjacency, Event
from privft.errors import AccountingError

_CLOSE = 1e-3  # how far below the target, relative, is close enough
_MOST_TRIES = 60


def calibrate_list(
    events_at: Callable[[float], Sequence[Event]],
    *,
    target_epsilon: float,
    delta: float,
    adjacency: Adjacency = "add-remove",
) -> float:
    """The least value, to about one part in a thousand of epsilon, whose events meet the target.

    events_at: the list for a value (a noise multiplier, or a factor on all of them); more must
    mean more noise.  The value is rounded up to four decimals.

    Guarantees: `cost(events_at(value), delta)` is at most `target_epsilon`.
    Raises `AccountingError` when no value does, because what the list fixes costs more already.
    """
    if not 0 < target_epsilon < math.inf:
        raise ValueError(f"expected a finite epsilon > 0, got {target_epsilon}")

    def excess(value: float) -> float:
        epsilon = cost(events_at(value), delta, adjacency=adjacency).epsilon
        return math.log(max(epsilon, 1e-9) / target_epsilon)

    def rounded(value: float) -> float:
        return math.ceil(value * 1e4) / 1e4

    low = high = 1.0
    at_low = at_high = excess(1.0)
    while at_high > 0:
        low, at_low = high, at_high
        high = rounded(high * 2)
        if high > 1e5:
            raise AccountingError(
                f"no noise brings this list to epsilon {target_epsilon:g}: what is fixed in it "
                "costs as much already"
            )
        at_high = excess(high)
    while at_low <= 0 and low > 1e-2:
        high, at_high = low, at_low
        low /= 2
        at_low = excess(low)
    for _ in range(_MOST_TRIES):  # log epsilon over log noise is nearly a straight line
        if at_high >= -_CLOSE or at_low <= 0 or high - low <= 1e-4:
            break
        share = (at_low + _CLOSE / 2) / (at_low - at_high)
        share = min(max(share, 0.05), 0.95)
        middle = rounded(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
        if not low < middle < high:
            break
        found = excess(middle)
        low, at_low, high, at_high = (
            (middle, found, high, at_high) if found > 0 else (low, at_low, middle, found)
        )
    return high
