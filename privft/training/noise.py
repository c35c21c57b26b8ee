"""The noise of the Gaussian mechanism, keyed by step and parameter.

Standard deviation `noise_multiplier * clip_norm` on the *sum* of clipped unit gradients, drawn in
float64 and added in float64 (one draw a step; never a draw a microbatch or a rank).  Deviates are
floating-point numbers, which is open to Mironov 2012; `PRECISION` is what reports print.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams

PRECISION = "plain float64"
CAVEAT = (
    "noise is drawn and added in floating point; the guarantee is proved for real numbers, and an "
    "attacker who sees exact bits of noisy sums could in principle do better (Mironov 2012); "
    "only rounded, accumulated adapter weights are ever released"
)


def add_noise(
    sums: Mapping[str, torch.Tensor], mechanism: Mechanism, *, streams: KeyedStreams, step: int
) -> dict[str, torch.Tensor]:
    """`sums` (float64, any shapes, by parameter name) plus noise of the stated scale.

    Guarantees: independent between names and steps; the same (secret, step, name) gives the same
    bits, on every device, since the draw happens on the host.
    """
    scale = mechanism.noise_multiplier * mechanism.clip_norm
    noisy = {}
    for name, total in sums.items():
        deviates = streams.stream("noise", step=step, label=name).gaussian(total.numel())
        noise = torch.from_numpy(deviates).mul_(scale).reshape(total.shape)
        noisy[name] = total + noise.to(total.device)
    return noisy
