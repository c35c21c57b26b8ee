"""A linear layer with LoRA as one step of the backward graph, where gradients of units are taken.

    y = x W^T + bias + s (x A^T) B^T        x [R, ..., K], W [N, K], A [r, K], B [N, r], s a number

peft spells it as five steps over whole outputs: three products, a scaling and a sum, and in the
backward another scaling and another sum.  Here the scaling is taken at width r, and the sums are
part of the narrow products, so that a layer costs little more than its wide product.  The products
are those of `kernels`, with the same guarantee about their bits; the gradients of A and B are
recorded by `products`, unit by unit.  Over a base
of a narrower type than A and B the narrow products are peft's, in the type of A and B, and the
sum is rounded once, in the base's (`kernels.sum_of_products`).

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
        ctx.scaling, ctx.record_a, ctx.record_b = scaling, record_a, record_b
        narrow = product(input.to(a.dtype), a, None).mul_(scaling)
        ctx.save_for_backward(input, weight, a, b, narrow)
        return sum_of_products(input, weight, bias, narrow, b)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        with torch._C.DisableTorchFunction():  # as in `lora_linear`
            gradient = gradients[0]
            input, weight, a, b, narrow = ctx.saved_tensors  # read once, see `recompute`
            wide = gradient.to(a.dtype)
            back = product(wide, b.t(), None).mul_(ctx.scaling)
            if ctx.record_a is not None:
                ctx.record_a(input.to(a.dtype), back)
            if ctx.record_b is not None:
                ctx.record_b(narrow, wide)
            wanted = None
            if ctx.needs_input_grad[0]:
                wanted = sum_of_products(gradient, weight.t(), None, back, a.t())
            return wanted, None, None, None, None, None, None, None
