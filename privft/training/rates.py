"""How fast this machine does what a training step is made of; for the time that a plan states.

Four rates (`sizing.Rates`), each the median of a few short rounds, a second in all: products of
the model's own shape by `training.products`, forward and for the gradient of the input; an
element-wise operation; an operation of no size, with its part in the backward pass; and the draw
of Gaussian numbers, or of whole ones where the noise is discrete.  They are what the machine gives
at the moment: where it is busy, or its processors slow down when warm, so do the rates.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from privft.randomness import KeyedStreams
from privft.sizing import Rates
from privft.training.discrete import discrete_gaussian
from privft.training.products import product

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ROUNDS = 5
_CHAIN = 200
_KEPT, _KEPT_BYTES = 12, 1 << 28
_PASSES = 11.0  # tensors that such an operation reads and writes: 5 forward, 6 backward
_DRAWS = 1 << 16
_BITS = 40  # of the grid; how long a draw takes does not depend on it


def measure_rates(
    *,
    inputs: int,
    outputs: int,
    rows: int,
    dtype: str,
    discrete: bool = False,
    device: torch.device | None = None,
) -> Rates:
    """Rates for matrices [outputs, inputs] and `rows` tokens in a microbatch; about a second."""
    device = torch.device("cpu") if device is None else device
    x, y, weight = (
        torch.ones(shape, dtype=_DTYPES[dtype], device=device)
        for shape in ((1, rows, inputs), (1, rows, outputs), (outputs, inputs))
    )

    layers = max(1, min(_KEPT, _KEPT_BYTES // (2 * y.nbytes)))

    def both() -> None:
        product(x, weight, None)
        product(y, weight.t(), None)

    def gated() -> None:
        # As in a step: what the forward pass keeps is written to memory that was not touched
        # before, and read once more by the backward pass, whose own results take what became free.
        # On the same few megabytes again and again this would come out several times too fast.
        kept = []
        for _ in range(layers):
            kept.append(nn.functional.silu(y))
            kept.append(kept[-1] * y)
        gradient = y
        while kept:
            gradient = gradient * kept.pop()

    def chain() -> None:
        start = torch.ones(8, device=device, requires_grad=True)
        value = start
        for _ in range(_CHAIN):
            value = value * 1.5
        value.sum().backward()  # type: ignore[no-untyped-call]

    def draw() -> None:
        stream = KeyedStreams(bytes(32)).stream("rates")
        if discrete:
            discrete_gaussian(stream, _BITS, _DRAWS)
        else:
            stream.gaussian(_DRAWS)

    return Rates(
        products=4.0 * rows * inputs * outputs / _seconds(both, device),
        traffic=_PASSES * layers * y.numel() * y.element_size() / _seconds(gated, device),
        calls=2 * _CHAIN / _seconds(chain, device),
        draws=_DRAWS / _seconds(draw, device),
    )


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """The median of a few rounds, after one that does not count."""
    took = []
    for _ in range(_ROUNDS + 1):
        _wait(device)
        started = time.perf_counter()
        call()
        _wait(device)
        took.append(time.perf_counter() - started)
    return statistics.median(took[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
