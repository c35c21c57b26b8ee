"""Noise that is safe in floating point: whole numbers from the clipped gradient to the noisy sum.

Plain float noise is open to attacks on its least significant bits (Mironov 2012; Haney et al.
2022; Jin et al. 2022, on the Gaussian and on DP-SGD), and float sums depend on their order.  Here,
after Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism" (arXiv 2102.06387),
without its rotation and its modulus, with rounding to the nearest in place of their random one,
and with the noise added once:

    1  a unit's clipped gradient is rounded to the nearest point of a grid of width `step`;
    2  the unit's whole numbers z are let in only if |z|^2 <= 4^bits / noise_multiplier^2, which
       is compared in whole numbers and rational numbers, so no rounding of anything before it
       matters; else the unit counts as zero;
    3  whole numbers are summed: exactly, in any order, in any microbatches;
    4  a discrete Gaussian N_Z(0, 4^bits) is added to each number (Canonne, Kamath, Steinke 2020,
       "The discrete Gaussian for differential privacy", arXiv 2004.00010);
    5  numbers times `step` are the noisy sum; all that follows is post-processing.

Rounding's part.  Rounding to the nearest moves a gradient of d numbers by at most step*sqrt(d)/2,
so gradients are clipped to `clip_norm` less that much, and step 2 then lets every unit in.  With
`step` = noise_multiplier * clip_norm / 2^bits and the bits of `grid_of` that is less than
sqrt(d) / 2^31 of the clip norm: under a millionth for four million parameters.

What the accountant's number means for it.  One unit moves the sum by whole numbers of norm at most
2^bits / noise_multiplier, and the noise has the scale 2^bits.
    - Renyi, without sampling: D_a(N_Z(z, s^2) || N_Z(0, s^2)) = a |z|^2 / (2 s^2) for whole z (CKS
      2020, on the Renyi divergence of two discrete Gaussians), which is the Gaussian's.  With
      Poisson sampling, at whole orders: the moment of the mixture is a sum with positive weights of
      such terms (Mironov, Talwar, Zhang 2019, arXiv 1908.10530, section 3.3).  The other direction
      is the smaller one by their symmetry argument, which here is a sum over pairs x, z - x: the
      reflection exchanges the two laws.  So the Gaussian's RDP at whole orders, which is all that
      admission uses, holds as it stands; a test sums both directions up.
    - PLD: the Gaussian rounded to whole numbers is post-processing of the Gaussian, and differs
      from N_Z(0, s^2) by at most 1/(20 s^2) in total variation a number.  So T steps on d numbers
      give (epsilon, delta + (1 + e^epsilon) T d / (20 s^2)) wherever the Gaussian gives (epsilon,
      delta); `extra_delta` is that addition, and reports state it.

The sampler (Karney 2016, arXiv 1303.6257, Algorithm D, for a scale of 2^bits; CKS 2020 propose from
a discrete Laplace instead). y = k 2^bits + i has the weight exp(-y^2 / 2s^2) = exp(-k^2/2)
exp(-x(2k + x)/2) with x = i / 2^bits: choose k by a table, i by `bits` fair bits, a sign, and
accept by the last factor; minus zero is refused. Both choices compare a uniform number with a real
one. They are exact: 64 bits are compared first, and where those do not decide beyond all rounding
(2^-44; once in 10^12 draws), 256 more bits are drawn and compared with 120 decimal digits. What is
left undecided then has a probability below 2^-300 a draw.

With adaptive clipping the count of unclipped units is one more whole number, on a grid of its own
(`count_grid`); the divergences of independent numbers add up, so what is said above holds for both
together with the noise multiplier of `budget.mechanism`.

Not covered: how long a draw takes depends on what is drawn (Jin et al. 2022); who can time single
draws inside the enclave can do better than the proof says.
"""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray

from privft.budget.mechanism import Clipping, Mechanism
from privft.randomness import Stream
from privft.training.clipping import add_count, unit_factors

_CLIP_BITS = 31  # the clip norm is between 2^30 and 2^31 steps, so squares fit into int64
_SLACK = 1.0 - 2.0**-20  # for rounding in norms and factors; step 2 above is what decides
_CHUNK = 1 << 16
_MARGIN = 2.0**-44
_MORE_WORDS = 4
_DIGITS = 120
_LARGEST_K = 20  # all beyond has a chance below 2^-300


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Where the numbers live: the noise has the scale 2^bits steps of width `step`.

    target: what gradients are clipped to before they are rounded.
    most_squared: the largest squared norm of a unit's whole numbers.
    """

    bits: int
    step: float
    target: float
    most_squared: int


def grid_of(mechanism: Mechanism, numbers: int) -> Grid:
    """The grid of a mechanism that trains so many parameters."""
    sigma = mechanism.gradient_noise_multiplier
    bits = _CLIP_BITS + math.floor(math.log2(sigma))
    if not 0 <= bits <= 52:
        raise ValueError(f"expected a noise_multiplier between 2^-31 and 2^22, got {sigma}")
    step = sigma * mechanism.clip_norm / 2.0**bits
    return Grid(
        bits=bits,
        step=step,
        target=(mechanism.clip_norm - step * math.sqrt(numbers) / 2) * _SLACK,
        most_squared=math.floor(Fraction(4**bits) / Fraction(sigma) ** 2),
    )


def count_grid(count_noise: float) -> tuple[int, int]:
    """(bits, weight): noise of scale 2^bits on a count that a unit moves by `weight` up or down.

    What a unit's 1/2 meets is then 2^bits / (2 weight): `count_noise`, or less than 2^-30 above.
    """
    bits = _CLIP_BITS + math.floor(math.log2(2 * count_noise))
    if not 0 <= bits <= 52:
        raise ValueError(f"expected a count_noise between 2^-32 and 2^20, got {count_noise}")
    return bits, math.floor(Fraction(2**bits) / (2 * Fraction(count_noise)))


def extra_delta(mechanism: Mechanism, numbers: int, epsilon: float) -> float:
    """What the step from a Gaussian to a discrete one adds to delta at most (module docstring)."""
    distance = numbers / (20 * 4.0 ** grid_of(mechanism, numbers).bits)
    if mechanism.count_noise is not None:
        distance += 1 / (20 * 4.0 ** count_grid(mechanism.count_noise)[0])
    return (1 + math.exp(epsilon)) * mechanism.steps * distance


def add_rounded(
    totals: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    grid: Grid,
    clipping: Clipping = "flat",
) -> None:
    """Add each unit's clipped and rounded gradient to `totals` (int64, by name), in place.

    Guarantees: a unit adds whole numbers whose squared norm is at most `grid.most_squared`.
    """
    factors = unit_factors(gradients, grid.target, clipping)
    add_count(totals, factors)
    for unit in range(len(next(iter(factors.values())))):
        # a unit whose gradient is not finite has factors of 0
        rounded = {
            name: (gradient[unit].double() * factors[name][unit]).div_(grid.step).round_()
            for name, gradient in gradients.items()
            if factors[name][unit]
        }
        # In floating point first, so that squares of whole numbers cannot overflow below.
        roughly = sum(float(value.square().sum()) for value in rounded.values())
        if not roughly <= 1.001 * grid.most_squared:
            continue
        whole = {name: value.to(torch.int64) for name, value in rounded.items()}
        if sum(int(value.square().sum()) for value in whole.values()) > grid.most_squared:
            continue
        for name, value in whole.items():
            totals[name].add_(value)


def discrete_gaussian(stream: Stream, bits: int, count: int) -> NDArray[np.int64]:
    """`count` whole numbers from N_Z(0, 4^bits), 0 <= bits <= 52; see the module's docstring."""
    found = np.empty(count, dtype=np.int64)
    filled = 0
    while filled < count:
        size = min(_CHUNK, (count - filled) * 3 // 2 + 16)
        drawn = _candidates(stream, bits, size)[: count - filled]
        found[filled : filled + len(drawn)] = drawn
        filled += len(drawn)
    return found


def _candidates(stream: Stream, bits: int, size: int) -> NDArray[np.int64]:
    """What is accepted of `size` proposals."""
    for_k, for_place, for_accept = stream.uint64(3 * size).reshape(3, size)
    tops, thresholds = _table()
    k = np.searchsorted(tops, for_k)
    for at in np.flatnonzero(tops[np.minimum(k, len(tops) - 1)] == for_k):
        uniform = _longer(stream, int(for_k[at]))
        k[at] = sum(threshold <= uniform for threshold in thresholds)
    place = (for_place & np.uint64((1 << bits) - 1)).astype(np.int64)
    minus = for_place >> np.uint64(63) == 1
    x = place * 2.0**-bits
    chance = np.exp(-0.5 * x * (2.0 * k + x))
    uniform_53 = (for_accept >> np.uint64(11)) * 2.0**-53
    accepted = uniform_53 < chance
    for at in np.flatnonzero(np.abs(uniform_53 - chance) <= _MARGIN):
        accepted[at] = _longer(stream, int(for_accept[at])) < _chance(int(k[at]), place[at], bits)
    accepted &= ~(minus & (k == 0) & (place == 0))
    values = (k.astype(np.int64) << bits) + place
    chosen: NDArray[np.int64] = np.where(minus, -values, values)[accepted]
    return chosen


def _longer(stream: Stream, word: int) -> int:
    """A uniform number of 64 + 256 bits that starts with `word`."""
    for more in stream.uint64(_MORE_WORDS):
        word = word << 64 | int(more)
    return word


_ONE = 1 << (64 * (1 + _MORE_WORDS))


def _chance(k: int, place: int, bits: int) -> int:
    """exp(-x(2k + x)/2) as a whole number of 2^-320."""
    with decimal.localcontext(prec=_DIGITS):
        x = decimal.Decimal(int(place)) / (1 << bits)
        return int((-x * (2 * k + x) / 2).exp() * _ONE)


@functools.cache
def _table() -> tuple[NDArray[np.uint64], tuple[int, ...]]:
    """Cumulative chances of k = 0, 1, ... in proportion to exp(-k^2/2): their leading 64 bits,
    and all 320."""
    with decimal.localcontext(prec=_DIGITS):
        weights = [(-decimal.Decimal(k * k) / 2).exp() for k in range(_LARGEST_K + 1)]
        whole = sum(weights)
        cumulative = [sum(weights[: k + 1]) / whole for k in range(_LARGEST_K)]
        thresholds = tuple(int(value * _ONE) for value in cumulative)
    tops = np.array([threshold >> (64 * _MORE_WORDS) for threshold in thresholds], dtype=np.uint64)
    return tops, thresholds
