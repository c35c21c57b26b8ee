"""Trade-off curves: the errors that every attack on a mechanism must make.

A mechanism's privacy loss distribution says, for each epsilon, the least delta for which it is
(epsilon, delta)-private.  Each such pair is two straight lines that no attack gets below in the
plane of its two errors (Dong, Roth and Su 2022, proposition 2.12), and the curve is the highest of
them at each false positive rate.  `from_profile` draws it from as many pairs as are needed to hide
the corners; fewer would be looser, never wrong.

The distribution comes in as arrays, one pair for each direction (a unit removed, a unit added),
from `accounting`, which holds the curve against a second implementation (`from_losses`).  Where
there is no such distribution, `priced` has pairs of another origin.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from privft.budget.mechanism import Adjacency

_EPSILONS = 1600


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """Lower bound on the errors of any attack (Dong, Roth and Su 2022): FNR at each FPR.

    fpr: ascending from 0 to 1; fnr: descending; both of the same length.
    advantage: the largest TPR - FPR that any attack can have.
    mu_nearest: the Gaussian trade-off curve that is nearest in the largest difference, which is
    `mu_gap`: a description in one number and not a bound.
    """

    fpr: tuple[float, ...]
    fnr: tuple[float, ...]
    advantage: float
    mu_nearest: float
    mu_gap: float
    adjacency: Adjacency

    @property
    def max_accuracy(self) -> float:
        """The odds of winning a bet on whether one unit was in the data, at even stakes."""
        return (1 + self.advantage) / 2

    def tpr_bound(self, fpr: float) -> float:
        """The largest TPR that an attack with this FPR can have.

        Between the points of the curve it is bounded from above: the curve is convex, so its
        neighbouring chords, drawn further, stay below it.
        """
        if not 0 <= fpr <= 1:
            raise ValueError(f"expected 0 <= fpr <= 1, got {fpr}")
        right = bisect_right(self.fpr, fpr)
        if right == len(self.fpr) or self.fpr[right - 1] == fpr:
            return 1 - self.fnr[right - 1]
        lowest = self.fnr[right]
        chords = [at for at in (right - 2, right + 1) if 0 <= at < len(self.fpr) - 1]
        for at in chords:
            slope = (self.fnr[at + 1] - self.fnr[at]) / (self.fpr[at + 1] - self.fpr[at])
            lowest = max(lowest, self.fnr[at] + slope * (fpr - self.fpr[at]))
        return min(1.0, 1 - lowest)

    def to_dict(self) -> dict[str, Any]:
        """A plain mapping, fit for canonical JSON."""
        return {**asdict(self), "fpr": list(self.fpr), "fnr": list(self.fnr)}


@dataclass(frozen=True, kw_only=True)
class Losses:
    """One direction of a discrete privacy loss distribution.

    losses: ascending, shape (n,), in nats; probabilities: of each, shape (n,); infinity_mass: the
    probability of a loss without bound.
    """

    losses: Any
    probabilities: Any
    infinity_mass: float


def deltas(direction: Losses, epsilons: Any) -> Any:
    """The least delta at each of the epsilons (all >= 0), shape (k,).

    delta = infinity_mass + the sum of p (1 - exp(epsilon - loss)) over all losses above epsilon.
    """
    import numpy as np

    positive = direction.losses > 0
    losses, probabilities = direction.losses[positive], direction.probabilities[positive]
    # From the top down: small masses add up before they meet large ones.
    mass = np.concatenate([[direction.infinity_mass], probabilities[::-1]]).cumsum()
    scaled = np.concatenate([[0.0], (probabilities * np.exp(-losses))[::-1]]).cumsum()
    above = losses.size - np.searchsorted(losses, epsilons, side="right")
    return mass[above] - np.exp(epsilons) * scaled[above]


def spread(farthest: float) -> Any:
    """Epsilons from 0 to the largest of interest, shape (k,); small ones shape a curve most, so
    they lie closest."""
    import numpy as np

    return farthest * np.linspace(0, 1, _EPSILONS) ** 2


def from_losses(
    directions: Sequence[Losses], *, farthest: float, advantage: float, adjacency: Adjacency
) -> TradeOff:
    """The curve of a mechanism from its privacy loss distribution.

    farthest: the largest epsilon of interest.  advantage: delta at epsilon 0, from outside.
    """
    import numpy as np

    epsilons = spread(farthest)
    delta = np.max([deltas(direction, epsilons) for direction in directions], axis=0)
    return from_profile(epsilons, delta, advantage=advantage, adjacency=adjacency)


def from_profile(epsilons: Any, delta: Any, *, advantage: float, adjacency: Adjacency) -> TradeOff:
    """The curve of a mechanism that is (epsilon, delta)-private for each of these pairs.

    epsilons, delta: shape (k,).  advantage: an upper bound on TPR - FPR.
    """
    import numpy as np
    from scipy.optimize import minimize_scalar
    from scipy.special import ndtr, ndtri

    tails = np.logspace(-8, -1, 141)
    fpr = np.unique(np.concatenate([[0.0], tails, np.linspace(0.1, 1, 181), 1 - tails]))
    delta, grown = delta[:, None], np.exp(epsilons)[:, None]
    lines = [1 - delta - grown * fpr, (1 - delta - fpr) / grown]
    fnr = np.maximum(0.0, np.max(np.concatenate(lines), axis=0))

    def gap(mu: float) -> float:
        return float(np.max(np.abs(fnr - ndtr(-ndtri(fpr) - mu))))

    found = minimize_scalar(gap, bounds=(0, 20), method="bounded", options={"xatol": 1e-6})
    return TradeOff(
        fpr=tuple(fpr.tolist()),
        fnr=tuple(fnr.tolist()),
        advantage=min(1.0, advantage),
        mu_nearest=float(found.x),
        mu_gap=gap(float(found.x)),
        adjacency=adjacency,
    )
