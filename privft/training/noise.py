"""The noise of the Gaussian mechanism, keyed by step and parameter.

Standard deviation `gradient_noise_multiplier * clip_norm` on the *sum* of clipped unit gradients
(one draw a step; never a draw a microbatch or a rank).  Two kinds, which the mechanism names:

    gaussian            drawn and added in float64: open to Mironov 2012, and labelled so
    discrete-gaussian   whole numbers on whole numbers: see `discrete`
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training.discrete import discrete_gaussian, extra_delta, grid_of


def add_noise(
    sums: Mapping[str, torch.Tensor], mechanism: Mechanism, *, streams: KeyedStreams, step: int
) -> dict[str, torch.Tensor]:
    """`sums` (any shapes, by parameter name) plus noise of the stated scale, float64.

    sums: all trained parameters, as `loop.clipped_sum` gives them: float64, or whole numbers of
        grid steps for a discrete mechanism.

    Guarantees: independent between names and steps; the same (secret, step, name) gives the same
    bits, on every device, since the draw happens on the host.
    """
    scale = mechanism.gradient_noise_multiplier * mechanism.clip_norm
    noisy = {}
    if mechanism.noise == "discrete-gaussian":
        grid = grid_of(mechanism, sum(total.numel() for total in sums.values()))
        for name, total in sums.items():
            stream = streams.stream("discrete-noise", step=step, label=name)
            drawn = torch.from_numpy(discrete_gaussian(stream, grid.bits, total.numel()))
            whole = total + drawn.reshape(total.shape).to(total.device)
            noisy[name] = whole.to(torch.float64) * grid.step
        return noisy
    for name, total in sums.items():
        deviates = streams.stream("noise", step=step, label=name).gaussian(total.numel())
        noise = torch.from_numpy(deviates).mul_(scale).reshape(total.shape)
        noisy[name] = total + noise.to(total.device)
    return noisy


def describe(
    mechanism: Mechanism, *, numbers: int, epsilon: float, repetitions: int = 1
) -> dict[str, Any]:
    """What a report says of the noise of a run that trained so many numbers, so many times over."""
    generator = "AES-256-CTR keyed by HMAC-SHA-256 of (run secret, step, parameter)"
    if mechanism.noise == "gaussian":
        return {
            "generator": generator,
            "precision": "plain float64",
            "secure": False,
            "caveat": "noise is drawn and added in floating point; the guarantee is proved for "
            "real numbers, and an attacker who sees exact bits of noisy sums could in principle "
            "do better (Mironov 2012; Jin et al. 2022); only rounded, accumulated adapter weights "
            "are ever released",
        }
    bits = grid_of(mechanism, numbers).bits
    added = repetitions * extra_delta(mechanism, numbers, epsilon)
    return {
        "generator": generator,
        "precision": f"whole numbers: gradients rounded to a grid, exact sums, discrete Gaussian "
        f"noise of scale 2^{bits} grid steps",
        "secure": True,
        "caveat": "admission to the budget (RDP at whole orders) holds for this noise as it "
        "stands; every other pair of epsilon and delta here is the Gaussian's, and delta grows by "
        f"at most {added:.1e} for the difference; the time that a draw takes is not hidden from "
        "the host",
    }
