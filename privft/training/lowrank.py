"""A linear layer with LoRA as one step of the backward graph, where gradients of units are taken.

    y = x W^T + bias + s (x A^T) B^T        x [R, ..., K], W [N, K], A [r, K], B [N, r], s a number

peft spells it as five steps over whole outputs: three products, a scaling and a sum, and in the
backward another scaling and another sum.  Here the scaling is taken at width r, and the sums are
part of the narrow products, so that a layer costs little more than its wide product.  The products
are those of `kernels`, with the same guarantee about their bits; the gradients of A and B are
recorded by `products`, unit by unit.  Over a base of a narrower type, what passes between A and B
is rounded to that type, as all activations of such a base are, where peft makes it float32; A and B
themselves stay float32, and 16 of their bits count, as each is taken as the sum of two numbers of
the narrow type.

`adapter` calls this for layers without dropout on a base that is not quantised; all others go
peft's way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from privft.training.kernels import product, sum_of_products
from privft.training.products import UnitProducts


def lora_linear(
    products: UnitProducts,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    a: torch.Tensor,
    b: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The layer's output [R, ..., N] in the type of `input`; `products` is the mode in force."""
    recorders = products.recorder(a), products.recorder(b)
    with torch._C.DisableTorchFunction():  # `products` asks for none of what is inside
        result: torch.Tensor = _LoraLinear.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, a, b, scaling, *recorders
        )
    return result


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        record_a: Callable[..., None] | None,
        record_b: Callable[..., None] | None,
    ) -> torch.Tensor:
        ctx.scaling, ctx.rank = scaling, len(a)
        ctx.wide = torch.promote_types(input.dtype, a.dtype)
        ctx.record_a, ctx.record_b = record_a, record_b
        a, b = _split(a, input.dtype, 0), _split(b, input.dtype, 1)
        narrow = _joined(product(input, a, None), ctx.rank)
        ctx.save_for_backward(input, weight, a, b, narrow)
        return sum_of_products(input, weight, bias, _repeated(narrow, b), b, scaling)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        with torch._C.DisableTorchFunction():  # as in `lora_linear`
            gradient, scaling = gradients[0], ctx.scaling
            input, weight, a, b, narrow = ctx.saved_tensors  # read once, see `recompute`
            back = _joined(product(gradient, b.t(), None), ctx.rank)
            if ctx.record_a is not None:
                ctx.record_a(input, back.to(ctx.wide) * scaling)
            if ctx.record_b is not None:
                ctx.record_b(narrow.to(ctx.wide) * scaling, gradient)
            wanted = None
            if ctx.needs_input_grad[0]:
                back = _repeated(back, a.t())
                wanted = sum_of_products(gradient, weight.t(), None, back, a.t(), scaling)
            return wanted, None, None, None, None, None, None, None


def _split(weight: torch.Tensor, dtype: torch.dtype, dimension: int) -> torch.Tensor:
    """The weight in this type; where that is narrower, as one of twice the rank, along `dimension`,
    whose first half is the weight, rounded, and the other what rounding took away."""
    high = weight.to(dtype)
    if dtype.itemsize >= weight.dtype.itemsize:
        return high
    return torch.cat((high, (weight - high).to(dtype)), dimension)


def _joined(narrow: torch.Tensor, rank: int) -> torch.Tensor:
    """[R, ..., r] from products with a weight that `_split` gave."""
    if narrow.shape[-1] == rank:
        return narrow
    return narrow[..., :rank] + narrow[..., rank:]


def _repeated(narrow: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[R, ..., r or 2 r], for a product with a weight [N, r or 2 r] that `_split` gave."""
    return narrow if narrow.shape[-1] == weight.shape[-1] else torch.cat((narrow, narrow), -1)
