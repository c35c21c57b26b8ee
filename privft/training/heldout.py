"""The mean of a measure over held-out units, as it may leave: cut, summed, noised, and charged.

A figure is the mean over the units that are set aside of something that each of them has between
0 and `bound` (a loss that is cut there, an accuracy).  It is let out as

    bound / 2  +  (sum over units of (value - bound / 2)  +  noise) / units

where `units` is the declared number of such units and never the live count.  One unit more or less
moves the sum by at most bound / 2 (the centre halves that: a value between 0 and `bound` by itself
has `bound`), and the noise has the standard deviation noise_multiplier * bound / 2: a Gaussian
mechanism of that noise multiplier, the event {"kind": "gaussian", "count": 1} of
`budget.mechanism` for each figure.  Where more or fewer units are set aside than declared, what is
let out is off by (count / units - 1) * (mean - bound / 2): the centre keeps that small as well.

As in training under `secure_noise` (`discrete`), everything between the cut and the noisy sum is a
whole number, always: the sum is exact, no unit adds more than floor(2^bits / noise_multiplier)
steps, and the noise is a discrete Gaussian of scale 2^bits steps.  Its Renyi divergence at whole
orders is at most the Gaussian's, and delta grows by less than 1e-17 a figure for the difference
between the two laws (`discrete` has the argument).

Guarantees: `noised_means` is (epsilon, delta)-differentially private for what `budget.accounting`
says of as many such events as there are figures.

Cutting losses at `bound` and the declared divisor make these figures coarser than the exact ones;
both are public and stated.  A unit whose value is no number counts as bound / 2, which is nothing.

The noise is keyed by (run secret, the digest of everything that the values depend on, figure): the
same inputs meet the same noise again after a crash, and other inputs, were there any, other noise.
The secret is destroyed at settlement, before which the result is sealed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from privft.randomness import KeyedStreams, Stream
from privft.training.discrete import discrete_gaussian

_BITS = 31


def noised_mean(
    values: NDArray[np.float64],
    *,
    bound: float,
    units: int,
    noise_multiplier: float,
    stream: Stream,
) -> float:
    """One figure; see the module's docstring.

    values: shape [U], one for each unit that is set aside, NaN for one that has none.
    """
    if not (0 < bound < math.inf and units >= 1):
        raise ValueError(f"expected bound > 0 and units >= 1, got {bound} and {units}")
    bits = _BITS + math.floor(math.log2(noise_multiplier))
    if not 0 <= bits <= 52:
        raise ValueError(f"expected a noise_multiplier of 2^-31 to 2^22, got {noise_multiplier}")
    step = noise_multiplier * (bound / 2) / 2.0**bits
    most = math.floor(Fraction(2**bits) / Fraction(noise_multiplier))
    centred = np.nan_to_num(np.clip(values, 0.0, bound) - bound / 2, nan=0.0)
    whole = np.clip(np.rint(centred / step).astype(np.int64), -most, most)
    total = sum(whole.tolist()) + int(discrete_gaussian(stream, bits, 1)[0])
    return float(bound / 2 + total * step / units)


def noised_means(
    values: Mapping[str, NDArray[np.float64]],
    bounds: Mapping[str, float],
    *,
    units: int,
    noise_multiplier: float,
    streams: KeyedStreams,
    inputs: str,
) -> dict[str, float]:
    """Every figure by its name, each with noise of its own.

    values: shape [U] each; bounds: of each; inputs: the digest of all that the values depend on.
    """
    return {
        name: noised_mean(
            measured,
            bound=bounds[name],
            units=units,
            noise_multiplier=noise_multiplier,
            stream=streams.stream("held-out", label=f"{inputs}/{name}"),
        )
        for name, measured in values.items()
    }
