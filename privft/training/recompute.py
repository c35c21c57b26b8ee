"""Gradient checkpointing: a layer's activations are not kept but computed again for its backward.

Memory then grows with one layer's activations instead of all layers', for about a third more work
(Chen et al. 2016, arXiv 1604.06174).  Second time and first give the same bits: products do not
depend on companions (`kernels`), masks are keyed (`dropout`), nothing else is random.

Why not the model's own switch (`activation_checkpointing_enable`): it works in training mode only,
and there a base model's own dropout would draw from torch's generator, which knows neither unit nor
step.  Here everything stays in evaluation mode, and the layers are those that transformers
marks as fit for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from privft.errors import InputError
from privft.training.products import UnitProducts


def transformer_layers(module: nn.Module) -> list[nn.Module]:
    """The layers that a model runs one after the other, in that order, as transformers marks them;
    [] where it marks none."""
    return [layer for layer in module.modules() if isinstance(layer, GradientCheckpointingLayer)]


def recomputable_layers(module: nn.Module) -> list[nn.Module]:
    """The layers whose activations can be computed again.  Errors: `InputError` where none is."""
    found = transformer_layers(module)
    if not found:
        raise InputError(
            "this architecture has no layers that can be computed again",
            hint="training.gradient_checkpointing: false, and a smaller "
            "performance.tokens_per_microbatch",
        )
    return found


@contextmanager
def recomputed(layers: Sequence[nn.Module], products: UnitProducts) -> Iterator[None]:
    """While it lasts, `layers` keep their inputs only; forward and backward both belong inside.

    products: the mode under which the first pass runs; the second enters it again, because torch
        suspends modes during a backward, which may also have a thread of its own (CUDA).
    """
    with instead(layers, partial(_forward, products)):
        yield


@contextmanager
def instead(layers: Sequence[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, `forward` runs for these layers: it is given a layer's place among them, its
    own `forward`, and what that would be given."""
    for place, layer in enumerate(layers):
        layer.forward = partial(forward, place, layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(
    products: UnitProducts, place: int, forward: Callable[..., Any], *inputs: Any, **settings: Any
) -> Any:
    return checkpoint(
        forward,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), products),
        **settings,
    )
