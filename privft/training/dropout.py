"""Dropout on what goes into LoRA, with masks that belong to a unit and to nothing else.

A mask is drawn anew for each step, unit, record of the unit and layer, and depends on nothing else:

    stream  "dropout", step, label "RECORD/LAYER/UNIT" of `randomness.KeyedStreams`
    read    16-bit little-endian numbers, one for each number of the layer's input [T, K], position
            by position; what is below round(rate * 65536) drops its number
    scale   what stays is multiplied by 65536 / (65536 - round(rate * 65536))

Never the rank, the row or the microbatch: so a unit's companions cannot change its mask, a step
that is done again after a crash has the masks that it had, activations that are computed twice
(gradient checkpointing) drop the same numbers, and positions that pad a record draw last and so
change nothing.

Guarantees: given the run's secret, a unit's clipped gradient is a function of the unit, the step
and the parameters alone, as without dropout, so that adding or removing a unit moves the sum by at
most the clip norm.  Masks come from a stream of their own and are independent of the noise.

Only LoRA's own dropout exists here (peft's `lora_dropout`).  That of the base model stays off, and
scoring drops nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from privft.randomness import KeyedStreams
from privft.training.examples import UnitExamples

_LEVELS = 1 << 16


class Masks:
    """The masks of one step for the rows (records) of `units`, in their order."""

    def __init__(self, units: Sequence[UnitExamples], *, streams: KeyedStreams, step: int) -> None:
        self._streams = streams
        self._step = step
        self._rows = [(unit.key, record) for unit in units for record in range(len(unit.examples))]

    def dropped(self, layer: str, *, level: int, shape: Sequence[int]) -> torch.Tensor:
        """Where `layer` drops, [R, *shape]: true with a chance of `level` / 65536."""
        count = int(np.prod(shape))
        drawn = np.stack(
            [
                np.frombuffer(
                    self._streams.stream(
                        "dropout", step=self._step, label=f"{record}/{layer}/{unit}"
                    ).bytes(2 * count),
                    dtype="<u2",
                )
                for unit, record in self._rows
            ]
        )
        return torch.from_numpy(drawn < level).reshape(len(self._rows), *shape)


class UnitDropout(nn.Module):
    """Dropout of an input [R, ..., K] by the masks in force; without any it passes everything on.

    rate: the chance of a number to be dropped, at least 0 and below 1, rounded to 1/65536.
    layer: the name that keys its masks.
    """

    def __init__(self, rate: float, *, layer: str) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"expected 0 <= rate < 1, got {rate}")
        self.level = min(round(rate * _LEVELS), _LEVELS - 1)
        self.layer = layer
        self.masks: Masks | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The input, thinned out and scaled up."""
        if self.masks is None:
            return input
        dropped = self.masks.dropped(self.layer, level=self.level, shape=input.shape[1:])
        kept = input.masked_fill(dropped.to(input.device), 0.0)
        return kept * (_LEVELS / (_LEVELS - self.level))

    def extra_repr(self) -> str:
        """What torch prints of it."""
        return f"rate={self.level / _LEVELS}, layer={self.layer!r}"


def dropout_layers(module: nn.Module) -> list[UnitDropout]:
    """Every dropout layer inside that can drop anything."""
    found = [layer for layer in module.modules() if isinstance(layer, UnitDropout)]
    return [layer for layer in found if layer.level]


@contextmanager
def masked(layers: Sequence[UnitDropout], masks: Masks | None) -> Iterator[None]:
    """While it lasts, `layers` drop by these masks; before and afterwards they drop nothing."""
    for layer in layers:
        layer.masks = masks
    try:
        yield
    finally:
        for layer in layers:
            layer.masks = None
