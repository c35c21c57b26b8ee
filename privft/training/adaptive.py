"""A clip norm that follows a quantile of the units' gradient norms, at a price that is counted.

Andrew, Thakkar, McMahan, Ramaswamy 2021, "Differentially private learning with adaptive clipping"
(arXiv 1905.03871), with Poisson sampling.  In step t, with clip norm C_t and expected batch B:

    b = 1 for a sampled unit whose gradient has a norm of at most C_t, else 0
    S = sum of (b - 1/2) + Normal(0, count_noise^2)         kept beside the noisy sum of gradients
    share = 1/2 + S / B                                      of units that were not clipped
    C_{t+1} = C_t * exp(-learning_rate * (share - target_quantile))

Why (b - 1/2): adding or removing a unit then moves the count by 1/2 whether it was clipped or not,
and the plain b by 1.  Why B and not how many were sampled: that number is private.  Why it costs
nothing beyond `Mechanism.noise_multiplier`: sum and count are one Gaussian event, whose formula is
in `budget.mechanism`; all that follows from S is post-processing, C_{t+1} too, so the clip norm may
be known to everybody, and it is part of a run's state.

The count travels with the sums under the name `clipping.COUNT`, as the whole number sum of
(2b - 1), which is exact in any order.  Its noise is of the mechanism's own kind: a float64 deviate,
or a discrete Gaussian on whole numbers (`discrete.count_grid`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training.clipping import COUNT
from privft.training.discrete import count_grid, discrete_gaussian


def noisy_count(
    count: torch.Tensor, mechanism: Mechanism, *, streams: KeyedStreams, step: int
) -> float:
    """S of the module's docstring, from the sum of (2b - 1) over the sampled units.

    Guarantees: noise of standard deviation `mechanism.count_noise`, keyed by step, independent of
    the gradients'.
    """
    assert mechanism.count_noise is not None
    if mechanism.noise == "discrete-gaussian":
        bits, weight = count_grid(mechanism.count_noise)
        stream = streams.stream("discrete-count-noise", step=step)
        whole = int(count) * weight + int(discrete_gaussian(stream, bits, 1)[0])
        return whole / (2 * weight)
    deviate = float(streams.stream("count-noise", step=step).gaussian(1)[0])
    return int(count) / 2 + mechanism.count_noise * deviate


def next_clip_norm(
    clip_norm: float,
    noisy: float,
    *,
    expected_batch_size: float,
    target_quantile: float,
    learning_rate: float,
) -> float:
    """The clip norm of the next step, from the noisy count S of this one."""
    share = 0.5 + noisy / expected_batch_size
    return clip_norm * math.exp(-learning_rate * (share - target_quantile))


def joint_influence(
    change: Mapping[str, torch.Tensor], mechanism: Mechanism, clip_norm: float
) -> float:
    """How far sums (and count) moved, where 1 is the most that one unit may move them.

    change: differences of float64 sums by name; the count's as the sum of (2b - 1).
    """
    squares = [value.double().square().sum() for name, value in change.items() if name != COUNT]
    moved = float(torch.stack(squares).sum().sqrt()) / clip_norm
    if mechanism.count_noise is None:
        return moved
    gradients = moved / mechanism.gradient_noise_multiplier
    counted = float(change[COUNT].abs()) / 2 / mechanism.count_noise
    return mechanism.noise_multiplier * math.hypot(gradients, counted)
