"""Linear layers with LoRA as one step of the backward graph, where gradients of units are taken.

    y = x W^T + bias + s (x A^T) B^T        x [R, ..., K], W [N, K], A [r, K], B [N, r], s a number

peft spells it as five steps over whole outputs: three products, a scaling and a sum, and in the
backward another scaling and another sum.  Here the scaling is taken at width r, and the sums are
part of the narrow products, so that a layer costs little more than its wide product.  The products
are those of `kernels`, with the same guarantee about their bits; the gradients of A and B are
recorded by `products`, unit by unit.  Over a base of a narrower type, what passes between A and B
is rounded to that type, as all activations of such a base are, where peft makes it float32; A and B
themselves stay float32, and 16 of their bits count, as each is taken as the sum of two numbers of
the narrow type.

Layers that are given the same input (the queries, keys and values of an attention, the gate and the
rest of a block) are taken in one step, `Siblings`: their A lie one below the other, so that there
is one product with all of them, one gradient of all of them, and one sum for the gradient of the
input, which autograd would make of several tensors.  The outputs are the same to rounding.

`adapter` calls this for layers without dropout on a base that is not quantised; all others go
peft's way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from privft.training.kernels import product, sum_of_products
from privft.training.products import UnitProducts


class Lora(NamedTuple):
    """The tensors of one layer: W [N, K], bias [N], A [r, K], B [N, r]."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    a: torch.Tensor
    b: torch.Tensor


class Siblings:
    """Layers that are given one and the same tensor, one after the other: the first that is asked
    computes the outputs of all, and the others hand out theirs.

    A layer that is asked with another tensor than the first, or twice, computes anew, so an
    architecture that gives its layers different inputs costs time and nothing else.
    """

    def __init__(self) -> None:
        self._input: torch.Tensor | None = None
        self._outputs: dict[str, torch.Tensor] = {}

    def output(
        self,
        name: str,
        input: torch.Tensor,
        compute: Callable[[], Mapping[str, torch.Tensor]],
    ) -> torch.Tensor:
        """The output of the layer `name`, of what `compute` gives for all; kept until it is asked
        for, and no longer."""
        if input is not self._input or name not in self._outputs:
            self._input, self._outputs = input, dict(compute())
        found = self._outputs.pop(name)
        if not self._outputs:
            self._input = None
        return found


def lora_linears(
    products: UnitProducts, input: torch.Tensor, layers: Sequence[Lora], scaling: float
) -> tuple[torch.Tensor, ...]:
    """The layers' outputs [R, ..., N] in the type of `input`; `products` is the mode in force."""
    record_a = products.stack_recorder([layer.a for layer in layers])
    records_b = [products.recorder(layer.b) for layer in layers]
    tensors = [tensor for layer in layers for tensor in layer]
    with torch._C.DisableTorchFunction():  # `products` asks for none of what is inside
        a = _split(products, [layer.a for layer in layers], input.dtype, 0)
        bs = [_split(products, [layer.b], input.dtype, 1) for layer in layers]
        outputs: tuple[torch.Tensor, ...] = _LoraLinears.apply(  # type: ignore[no-untyped-call]
            input, scaling, (a, bs), record_a, records_b, *tensors
        )
    return outputs


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        scaling: float,
        split: tuple[torch.Tensor, Sequence[torch.Tensor]],
        record_a: Callable[..., None] | None,
        records_b: Sequence[Callable[..., None] | None],
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        # A and B as they are tell autograd that there is something to come back for
        weights, biases, parts_a, _ = (tensors[place::4] for place in range(4))
        a, bs = split
        ctx.scaling, ctx.record_a, ctx.records_b = scaling, record_a, records_b
        ctx.ranks = [len(each) for each in parts_a]
        ctx.wide = torch.promote_types(input.dtype, parts_a[0].dtype)
        narrow = _joined(product(input, a, None), sum(ctx.ranks))
        ctx.save_for_backward(input, narrow, a, *weights, *bs)
        return tuple(
            sum_of_products([(input, weight)], bias, _repeated(own, b), b, scaling)
            for weight, bias, own, b in zip(
                weights, biases, narrow.split_with_sizes(ctx.ranks, -1), bs, strict=True
            )
        )

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        with torch._C.DisableTorchFunction():  # as in `lora_linears`
            input, narrow, a, *others = ctx.saved_tensors  # read once, see `recompute`
            weights, bs = others[: len(gradients)], others[len(gradients) :]
            gradients = tuple(gradient.contiguous() for gradient in gradients)
            backs = [
                _joined(product(gradient, b.t(), None), rank)
                for gradient, b, rank in zip(gradients, bs, ctx.ranks, strict=True)
            ]
            back = torch.cat(backs, -1) if len(backs) > 1 else backs[0]
            if ctx.record_a is not None:
                ctx.record_a(input, back.to(ctx.wide) * ctx.scaling)
            scaled = (narrow.to(ctx.wide) * ctx.scaling).split_with_sizes(ctx.ranks, -1)
            for record, own, gradient in zip(ctx.records_b, scaled, gradients, strict=True):
                if record is not None:
                    record(own, gradient)
            wanted = None
            if ctx.needs_input_grad[0]:
                turned = [weight.t() for weight in weights]
                wanted = sum_of_products(
                    list(zip(gradients, turned, strict=True)),
                    None,
                    _repeated(back, a.t()),
                    a.t(),
                    ctx.scaling,
                )
            return wanted, *[None] * (4 + 4 * len(gradients))


def _split(
    products: UnitProducts, weights: Sequence[torch.Tensor], dtype: torch.dtype, dimension: int
) -> torch.Tensor:
    """The weights, one below the other, in this type; where that is narrower, as one matrix of
    twice the rank, along `dimension`, whose first half is the weights, rounded, and the other what
    rounding took away.  Made once for as long as `products` says that they stay what they are."""
    key = (dtype, *map(id, weights))
    if key not in products.kept:
        whole = torch.cat(list(weights)).detach() if len(weights) > 1 else weights[0].detach()
        high = whole.to(dtype)
        if dtype.itemsize < whole.dtype.itemsize:
            high = torch.cat((high, (whole - high).to(dtype)), dimension)
        products.kept[key] = high
    return products.kept[key]


def _joined(narrow: torch.Tensor, rank: int) -> torch.Tensor:
    """[R, ..., r] from products with a weight that `_split` gave."""
    if narrow.shape[-1] == rank:
        return narrow
    return narrow[..., :rank] + narrow[..., rank:]


def _repeated(narrow: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[R, ..., r or 2 r], for a product with a weight [N, r or 2 r] that `_split` gave."""
    return narrow if narrow.shape[-1] == weight.shape[-1] else torch.cat((narrow, narrow), -1)
