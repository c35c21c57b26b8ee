"""Private selection by random stopping: the best of an unknown number of runs, at a known price.

Trying k settings and keeping the best costs k runs, unless the number of tries is itself random
and hidden.  Papernot and Steinke (2022, "Hyperparameter tuning with Renyi differential privacy",
arXiv 2110.03620): draw K, repeat a mechanism K times, and publish the best output alone, best by a
score that is part of the mechanism.  If one repetition has Renyi divergence rdp(a) at order a, the
selection has, with K from the truncated negative binomial distribution of shape eta and parameter
gamma (theorem 2; eta = 0 is logarithmic, 1 geometric), for every order b of a grid

    rdp(a) + (1 + eta) (1 - 1/b) rdp(b) + (1 + eta) log(1/gamma) / b + log(E[K]) / (a - 1)

and with K from the Poisson distribution of mean m (theorem 6), if one repetition is also
(log(1 + 1/(a - 1)), delta)-DP,

    rdp(a) + m delta + log(m) / (a - 1).

Larger orders bound smaller ones, since Renyi divergence grows with the order.

**Stopping at a most.**  Both distributions have no largest value, so nothing that runs them ends
in a time that can be fixed beforehand.  With K drawn again until it is at most m (`most`), m times
the time of one repetition is always enough, and can always be taken.  What that costs: let Z be
P[K <= m] and rho be E[K; K > m] / E[K], both of the whole distribution.  Both theorems bound, by
the paper's lemma 7,

    log(f'(q)^a f'(q')^(1-a)) / (a - 1)

for the generating function f of K and the probabilities q and q' that one test has under the two
neighbours.  For the cut distribution, f' becomes h / Z with f' = h + t, where h has the powers
below m and t the others.  h(q) <= f'(q), and t / f' grows up to t(1) / f'(1) = rho, so
h(q') >= (1 - rho) f'(q').  The whole expression therefore grows by no more than

    log(1/Z) / (a - 1) + log(1 / (1 - rho))

which is 0.002 for a geometric K of mean 8 that is cut at 64.

What has to stay hidden is K: in what is published, in the ledger (one reservation and one
settlement for the whole selection, never one for each repetition) and in time.  A repetition is
therefore priced with its score: an event of its own where it is computed from private records,
nothing where it is computed from public text.

    {"kind": "random-stopping", "distribution": "truncated-negative-binomial", "shape": 1.0,
     "mean": 8.0, "events": [{"kind": "poisson-gaussian", ...}, ...]}
    {"kind": "random-stopping", "distribution": "poisson", "mean": 8.0, "most": 64, "events": [...]}

No PLD accountant knows this event, so it has one accountant and says so (`SINGLE_NOTE`); and only
under add/remove.  What is run has a `most`: `draw_repetitions` draws K, and `stages.selecting`
trains `most` times whatever it is.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any, Protocol

from privft.budget.mechanism import Event
from privft.budget.renyi import rdp
from privft.errors import AccountingError
from privft.signing import canonical_json

KIND = "random-stopping"
TRUNCATED, POISSON = "truncated-negative-binomial", "poisson"
SINGLE_NOTE = "one accountant only (RDP): no PLD accountant supports random stopping"
_WEIGHT_BITS = 512
MOST = 100_000
GRID = tuple(float(order) for order in (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024))
"""Orders among which the best one is sought; whole, because their RDP is a finite sum."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The best of K repetitions of `events`, where K is random and nobody learns it.

    events: one whole repetition, the score included where it is computed from private records.
    mean: E[K], at least 1, before it is cut.  shape: eta of the truncated negative binomial, None
    for Poisson.  most: the largest K that is not drawn again; None for a K without end.
    """

    events: tuple[Event, ...]
    mean: float
    shape: float | None
    most: int | None = None

    def __post_init__(self) -> None:
        if not self.events:
            raise ValueError("expected at least one event in a repetition")
        if not (math.isfinite(self.mean) and self.mean >= 1):
            raise ValueError(f"expected a finite mean >= 1, got {self.mean}")
        if self.most is not None and not self.mean <= self.most <= MOST:
            raise ValueError(f"expected mean <= most <= {MOST}, got {self.mean} and {self.most}")
        if self.shape is None:
            return
        if not 0 <= self.shape <= 100:
            raise ValueError(f"expected 0 <= shape <= 100, got {self.shape}")
        if self.mean < 1 + 1e-9:
            raise ValueError("expected a mean above 1: one repetition needs no selection")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as in the module's docstring."""
        shape = {} if self.shape is None else {"shape": self.shape}
        most = {} if self.most is None else {"most": self.most}
        return {
            "kind": KIND,
            "distribution": POISSON if self.shape is None else TRUNCATED,
            **shape,
            "mean": self.mean,
            **most,
            "events": [event.to_dict() for event in self.events],
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Selection:
        """The inverse of `to_dict`; raises `AccountingError` on anything that it does not know."""
        distribution = value.get("distribution")
        more = {TRUNCATED: {"shape"}, POISSON: set[str]()}.get(str(distribution))
        if value.get("kind") != KIND or more is None:
            raise AccountingError(f"expected a known way of stopping, got {distribution!r}")
        expected = {"kind", "distribution", "mean", "events"} | more
        numbers = [value.get(name) for name in ("mean", *more)]
        most = value.get("most")
        if "most" in value and type(most) is not int:
            raise AccountingError(f"expected a whole most in a {KIND} event, got {most!r}")
        if set(value) - {"most"} != expected or not isinstance(value["events"], list):
            raise AccountingError(
                f"expected the fields {sorted(expected)} in a {KIND} event, got {sorted(value)}"
            )
        if not all(type(number) in (int, float) for number in numbers):
            raise AccountingError(f"expected numbers in a {KIND} event, got {numbers}")
        try:
            return Selection(
                events=tuple(Event.from_dict(event) for event in value["events"]),
                mean=float(value["mean"]),
                shape=float(value["shape"]) if more else None,
                most=most,
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise AccountingError(f"{KIND} event: {error}") from error


AnyEvent = Event | Selection


class Stream(Protocol):
    """Where a number is drawn from: `randomness.Stream`."""

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""


def is_single(events: Sequence[AnyEvent]) -> bool:
    """Whether a selection is among the events, so that RDP alone can price them."""
    return any(isinstance(event, Selection) for event in events)


def event_from_dict(value: Mapping[str, Any]) -> AnyEvent:
    """An event of any kind; raises `AccountingError` for an unknown one."""
    return Selection.from_dict(value) if value.get("kind") == KIND else Event.from_dict(value)


def merged(events: Sequence[AnyEvent]) -> tuple[AnyEvent, ...]:
    """The same events with equal plain ones counted together, in a fixed order, selections last.

    Guarantees: the composition is the same, since composition is commutative and associative.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        if isinstance(event, Event):
            counts[event.noise_multiplier, event.sampling_probability] += event.count
    plain = (
        Event(noise_multiplier=noise, sampling_probability=probability, count=count)
        for (noise, probability), count in sorted(counts.items())
    )
    stopped = [event for event in events if isinstance(event, Selection)]
    return (*plain, *sorted(stopped, key=lambda event: canonical_json(event.to_dict())))


def total_rdp(events: Sequence[AnyEvent], orders: Sequence[float]) -> tuple[float, ...]:
    """The sum of Renyi divergences at each whole order >= 2 from `GRID` or beside it."""
    sums = list(rdp([event for event in events if isinstance(event, Event)], orders))
    for event in events:
        if isinstance(event, Selection):
            sums = [a + b for a, b in zip(sums, _selection_rdp(event, tuple(orders)), strict=True)]
    return tuple(sums)


@lru_cache(maxsize=256)
def _selection_rdp(selection: Selection, orders: tuple[float, ...]) -> tuple[float, ...]:
    grid = tuple(sorted({*orders, *GRID}))
    each = dict(zip(grid, rdp(selection.events, grid), strict=True))
    found = stopped_rdp(
        each.__getitem__,
        grid,
        mean=selection.mean,
        shape=selection.shape,
        most=selection.most,
    )
    return tuple(found[order] for order in orders)


def stopped_rdp(
    each: Callable[[float], float],
    grid: Sequence[float],
    *,
    mean: float,
    shape: float | None,
    most: int | None = None,
) -> dict[float, float]:
    """The bounds of the module's docstring at each order of a rising grid.

    each: Renyi divergence of one repetition at an order of the grid.
    """
    if shape is None:
        bounds = {
            order: each(order)
            + mean * _delta_at(math.log1p(1 / (order - 1)), each, grid)
            + math.log(mean) / (order - 1)
            for order in grid
        }
    else:
        log_inverse_gamma, exact_mean = _gamma(shape, mean)
        extra = (1 + shape) * min(
            (1 - 1 / order) * each(order) + log_inverse_gamma / order for order in grid
        )
        bounds = {order: each(order) + extra + math.log(exact_mean) / (order - 1) for order in grid}
    if most is not None:
        beyond, beyond_by_size = _cut(mean, shape, most)
        for order in grid:
            bounds[order] -= math.log1p(-beyond) / (order - 1) + math.log1p(-beyond_by_size)
    lowest = math.inf
    for order in reversed(grid):  # a divergence grows with its order
        lowest = min(lowest, bounds[order])
        bounds[order] = lowest
    return bounds


def _delta_at(epsilon: float, each: Callable[[float], float], grid: Sequence[float]) -> float:
    """The delta that RDP gives at this epsilon: proposition 12 of Canonne, Kamath and Steinke."""
    logs = [
        (order - 1) * (each(order) - epsilon + math.log1p(-1 / order)) - math.log(order)
        for order in grid
    ]
    return min(1.0, math.exp(min(0.0, *logs)))


def draw_repetitions(selection: Selection, stream: Stream) -> int:
    """K, from a keyed stream: how many of `most` repetitions count; 0 is possible with Poisson.

    The law is that of the module's docstring, cut at `most`, in whole numbers: each weight follows
    from the one before by an exact ratio, rounded down to a whole multiple of 2^-512 of the first,
    and a whole number below their sum is drawn without bias (rejection).  So the chance of each
    K is its exact one up to a factor of 1 +- 1e-9 while the exact one is above 1e-100, and what is
    rarer than that stays so; the price has the same gamma up to the last digits of a float.
    """
    assert selection.most is not None, "only a number that is cut is ever drawn"
    weights = _weights(selection.mean, selection.shape, selection.most)
    sums = list(accumulate(weights))
    length = (sums[-1].bit_length() + 7) // 8
    surplus = 8 * length - sums[-1].bit_length()
    while True:
        drawn = int.from_bytes(stream.bytes(length), "big") >> surplus
        if drawn < sums[-1]:
            return bisect_right(sums, drawn) + (selection.shape is not None)


def chance_of_none(selection: Selection) -> float:
    """P[K = 0], at which nothing is kept at all."""
    if selection.shape is not None:
        return 0.0
    assert selection.most is not None
    weights = _weights(selection.mean, None, selection.most)
    return float(Fraction(weights[0], sum(weights)))


@lru_cache(maxsize=8)
def _weights(mean: float, shape: float | None, most: int) -> tuple[int, ...]:
    """Whole numbers in proportion to P[K = k], for k from 0 (Poisson) or 1 up to `most`."""
    weights = [1 << _WEIGHT_BITS]
    if shape is None:
        rate = Fraction(mean)
        ratios = (rate / (k + 1) for k in range(most))
    else:
        keep, eta = Fraction(-math.expm1(-_gamma(shape, mean)[0])), Fraction(shape)
        ratios = (keep * (k + eta) / (k + 1) for k in range(1, most))
    for ratio in ratios:
        weights.append(weights[-1] * ratio.numerator // ratio.denominator)
    return tuple(weights)


def _gamma(shape: float, mean: float) -> tuple[float, float]:
    """log(1/gamma) of the distribution with at least this mean, and its mean.

    E[K] is eta (1 - gamma) / (gamma (1 - gamma^eta)), and for eta = 0 its limit; it falls as
    gamma rises, and the end of the bisection with the larger mean is the private one.
    """

    def expected(log_inverse: float) -> float:
        inverse = math.exp(log_inverse)
        if shape == 0:
            return math.expm1(log_inverse) / log_inverse
        return shape * (inverse - 1) / -math.expm1(-shape * log_inverse)

    low, high = 1e-12, 1.0
    while expected(high) < mean:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < mean else (low, middle)
    return high, expected(high)


def _cut(mean: float, shape: float | None, most: int) -> tuple[float, float]:
    """P[K > most] and E[K; K > most] / E[K] of the whole distribution, neither of them too small.

    Raises `AccountingError` where more than half of either lies beyond `most`.
    """
    if shape is None:
        log_chance, whole = math.log(mean) - mean, mean
        keep = mean

        def ratio(k: int) -> float:
            return keep / (k + 1)

    else:
        log_inverse_gamma, whole = _gamma(shape, mean)
        keep = -math.expm1(-log_inverse_gamma)
        start = log_inverse_gamma if shape == 0 else math.expm1(shape * log_inverse_gamma) / shape
        log_chance = math.log(keep / start)

        def ratio(k: int) -> float:
            return keep * (k + shape) / (k + 1)

    log_chance += sum(math.log(ratio(k)) for k in range(1, most + 1))
    k, chance, beyond, by_size = most + 1, math.exp(log_chance), 0.0, 0.0
    while True:
        beyond += chance
        by_size += k * chance
        falls = ratio(k) * (k + 1) / k  # of one k times its chance to the next; it only falls
        rest = k * chance * falls / (1 - falls) if falls < 1 else math.inf
        if rest <= 1e-3 * by_size or not chance:
            break
        chance *= ratio(k)
        k += 1
    beyond, by_size = beyond + rest / (k + 1), (by_size + rest) / whole
    if max(beyond, by_size) > 0.5:
        raise AccountingError(
            f"more than half of a random number of mean {mean:g} lies beyond {most}",
            hint="a larger most, or a smaller mean",
        )
    return beyond, by_size
