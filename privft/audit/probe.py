"""A model whose gradients are known exactly, trained by the very same loop as real ones.

The probe has one weight a coordinate and a loss that is linear in it, so a record's gradient is
a known multiple of a unit vector, whatever the weights (a Dirac canary, Nasr et al. 2023, arXiv
2302.07956).  `observe` runs `training.loop.train` on it, with that loop's sampler, clipping,
noise and divisor, and hands back the sums that an attacker with full sight would see.

Clip norm and divisor are odd numbers on purpose: a factor that is forgotten, or a divisor taken
from the realised batch, shows in the scale of what is observed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privft.budget.mechanism import Clipping, Mechanism
from privft.randomness import KeyedStreams
from privft.training import loop
from privft.training.examples import Example, UnitExamples
from privft.training.optimiser import Optimisation

Array = NDArray[np.float64]

CLIP_NORM = 0.7
EXPECTED_BATCH = 37.0
BACKGROUND = 12
"""Coordinates below this belong to background units, the others to one canary each."""

OPTIMISATION = Optimisation(optim="sgd", learning_rate=1.0)
"""Plain SGD: weights are sums of noisy means, with a minus sign."""

SCALES = (1.0, 3.0, 1e6, math.nan)
"""Gradient norms that a record can have, by its scale number; all reach the clip norm."""


class Probe:
    """A model of two linear layers, `signal` and `quiet`, with one weight a coordinate each.

    A record (coordinate, scale) has the loss -scale * signal[coordinate]: its gradient is known,
    and does not depend on the weights.  `quiet` gets gradients of zero, but from a record with the
    label 1: it loses the same there once more.
    """

    task = "causal-lm"

    def __init__(self, width: int) -> None:
        self.width = width
        self.module = nn.Module()
        for name in ("signal", "quiet"):
            layer = nn.Linear(width, 1, bias=False, dtype=torch.float64)
            nn.init.zeros_(layer.weight)
            self.module.add_module(name, layer)

    @property
    def device(self) -> torch.device:
        """Where the weights are: the host, since keyed noise is drawn there."""
        return torch.device("cpu")

    def record_losses(self, examples: Sequence[Example], length: int) -> torch.Tensor:
        """Loss of each record, shape [R]; padding to `length` plays no part."""
        inputs = torch.zeros((len(examples), self.width), dtype=torch.float64)
        for row, example in enumerate(examples):
            inputs[row, example.input_ids[0]] = 1.0
        scales = torch.tensor([SCALES[example.input_ids[1]] for example in examples]).double()
        signal = self.module.get_submodule("signal")(inputs).squeeze(1)
        quiet = self.module.get_submodule("quiet")(inputs).squeeze(1)
        in_both = torch.tensor([example.labels[0] == 1 for example in examples])
        losses: torch.Tensor = -scales * signal - torch.where(in_both, scales, 0.0) * quiet
        return losses

    def weights(self, layer: str) -> Array:
        """The weights of one layer, shape [width]."""
        values = self.module.get_parameter(f"{layer}.weight").detach().numpy()[0]
        return np.array(values, dtype=np.float64)


class _Units:
    """Units in memory, as the loop takes them."""

    def __init__(self, units: Sequence[UnitExamples]) -> None:
        self._units = units

    def __len__(self) -> int:
        return len(self._units)

    def examples(self, positions: NDArray[np.int64]) -> list[UnitExamples]:
        return [self._units[i] for i in positions.tolist()]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the attacker sees of one run, scaled back to sums of gradients."""

    signal: Array
    quiet: Array
    batch_sizes: tuple[int, ...]
    clip_norms: tuple[float, ...]
    """Before the first step and after each."""


def probe_unit(
    key: str, coordinate: int, *, scale: int, records: int, in_both: bool = False
) -> UnitExamples:
    """A unit of equal records; their lengths differ between units, so microbatches do too.

    in_both: whether it has a gradient in `quiet` as well as in `signal`.
    """
    padding = (0,) * (coordinate % 3 * 8)
    example = Example(input_ids=(coordinate, scale, *padding), labels=(int(in_both),))
    return UnitExamples(key=key, examples=(example,) * records)


def background() -> list[UnitExamples]:
    """Units of one to three records, among them huge and non-finite gradients."""
    return [
        probe_unit(f"background:{i}", i, scale=i % len(SCALES), records=1 + i % 3)
        for i in range(BACKGROUND)
    ]


def observe(
    mechanism: Mechanism,
    included: NDArray[np.bool_],
    streams: KeyedStreams,
    *,
    units: Sequence[UnitExamples],
) -> Observed:
    """One run of the real loop with these canaries in; plain SGD sums the noisy means."""
    probe = Probe(BACKGROUND + len(included))
    canaries = [
        probe_unit(f"canary:{i}", BACKGROUND + i, scale=1, records=1 + i % 2)
        for i in np.flatnonzero(included).tolist()
    ]
    reports: list[loop.StepReport] = []
    loop.train(
        probe,  # type: ignore[arg-type]
        units=_Units(units),
        canaries=canaries,
        mechanism=mechanism,
        max_records_per_unit=4,
        optimisation=OPTIMISATION,
        performance=loop.Performance(token_budget=256, checkpoint_every=1 << 30),
        streams=streams,
        context={},
        journal=lambda step, digest: None,
        save=lambda state: None,
        tell=reports.append,
    )
    scale = mechanism.expected_batch_size
    return Observed(
        signal=probe.weights("signal") * scale,
        quiet=probe.weights("quiet") * scale,
        batch_sizes=tuple(report.sampled_units for report in reports),
        clip_norms=(mechanism.clip_norm, *(report.clip_norm for report in reports)),
    )


def probe_mechanism(
    noise_multiplier: float,
    probability: float,
    steps: int,
    noise: Literal["gaussian", "discrete-gaussian"] = "gaussian",
    *,
    clipping: Clipping = "flat",
    count_noise: float | None = None,
) -> Mechanism:
    """A mechanism of the probe's own clip norm and divisor; `count_noise` for adaptive clipping."""
    return Mechanism(
        unit="subject",
        sampling_probability=probability,
        noise_multiplier=noise_multiplier,
        clip_norm=CLIP_NORM,
        steps=steps,
        expected_batch_size=EXPECTED_BATCH,
        noise=noise,
        clipping=clipping,
        count_noise=count_noise,
    )
