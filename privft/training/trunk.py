"""The trunk of two models: the lower layers that they have in common, run once for both.

Base and trained model are the same below the first layer that an adapter touches, and an audit asks
both about the same texts.  So the states that come out of the trunk of the one are handed to the
other: of 30 layers with LoRA in the upper 10, a pair of passes costs 40 instead of 60.

Common is what consists of the very same tensors (`Workbench.before_and_after` makes such models),
and states are handed over only where those that went in are equal to the bit, so that a trained
embedding, say, makes the second model run by itself.  What else a layer is given (masks, positions)
is made from the rows alone in every architecture whose gradients of units are known (`products`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from privft.training.recompute import instead, transformer_layers


class Trunk:
    """Of a first and a second model; of no layer where they have none in common."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        layers = zip(transformer_layers(first), transformer_layers(second), strict=False)
        common = list(takewhile(lambda two: _tensors(two[0]) == _tensors(two[1]), layers))
        self._first = [one for one, _ in common]
        self._second = [other for _, other in common]
        self._entered: torch.Tensor | None = None
        self._left: Any = None
        self._handing = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A pass of the first model, whose states are kept for the next one of the second."""
        with instead(self._first, self._keep):
            yield

    @contextmanager
    def handed(self) -> Iterator[None]:
        """The second model's pass over the same rows; afterwards nothing is kept."""
        try:
            with instead(self._second, self._hand):
                yield
        finally:
            self._entered = self._left = None

    def _keep(self, place: int, forward: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
        if place == 0:
            self._entered = _states(inputs, settings)
        self._left = forward(*inputs, **settings)
        return self._left

    def _hand(self, place: int, forward: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
        if place == 0:
            entering = _states(inputs, settings)
            self._handing = self._entered is not None and torch.equal(entering, self._entered)
        return self._left if self._handing else forward(*inputs, **settings)


def _states(inputs: tuple[Any, ...], settings: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a layer is given, [R, T, D]."""
    states: torch.Tensor = inputs[0] if inputs else settings["hidden_states"]
    return states


def _tensors(layer: nn.Module) -> dict[str, int]:
    """Which tensors a layer consists of, by name."""
    held = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: id(tensor) for name, tensor in held}
