"""Matrix products whose bits do not depend on how many rows are multiplied, and what a unit's own
part of a trained layer's gradient is.

Why.  The BLAS that torch uses for float32 picks its kernels and splits its sums by the number of
rows of the whole product, so a unit's activations would carry the trace of its companions in the
last bits (measured: SmolLM2 on AVX-512, one and two threads).  oneDNN's products, which torch
uses for bfloat16 anyway, give each row the same bits beside 1 and beside 4000 others, at the same
speed (one row alone goes another way, so it is given a twin).  They are used here on CPUs; float64,
which oneDNN lacks and only tests use, is multiplied a record at a time.  Other devices multiply
as torch does, and `audit.stepcheck` says what that costs.

How.  `UnitProducts` is a mode, active during one forward and backward pass, that takes over
`torch.nn.functional.linear`.  The backward of a frozen layer gives the gradient of its input and
nothing else.  That of a trained layer also gives, in one product a unit, the unit's gradient
    G_u = sum over the unit's records and positions of  (output gradient) (input)^T
and never the sum over units that autograd would form.  Activations that are computed twice
(gradient checkpointing) change nothing: only backward records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_ALIGNMENT_BYTES = 64
_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class UnitProducts(TorchFunctionMode):
    """Linear layers as in the module's docstring, for rows (records) that lie in order of units.

    parameters: the trained parameters, by name.
    records: how many records each unit has, [U]; their sum is the number of rows.

    Afterwards `gradients` holds, by name, the gradients of the units, each [U, *parameter].
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], records: Sequence[int]) -> None:
        super().__init__()
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._records = list(records)
        self.gradients: dict[str, torch.Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is nn.functional.linear:
            return self._linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _linear(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Any:
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        return _Linear.apply(  # type: ignore[no-untyped-call]
            input, weight, bias, self._record if trained else None
        )

    def _record(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        gradient: torch.Tensor,
    ) -> None:
        if weight.requires_grad:
            self._add(weight, _weight_gradients(input, gradient, self._records))
        if bias is not None and bias.requires_grad:
            self._add(bias, _bias_gradients(gradient, self._records))

    def _add(self, parameter: torch.Tensor, of_units: torch.Tensor) -> None:
        name = self._names[id(parameter)]
        known = self.gradients.get(name)
        self.gradients[name] = of_units if known is None else known + of_units


class _Linear(torch.autograd.Function):
    """x W^T + b, with x of shape [R, ..., K]; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        record: Callable[..., None] | None,
    ) -> torch.Tensor:
        ctx.record = record
        if record is None:
            ctx.save_for_backward(weight)
        else:
            ctx.save_for_backward(weight, input)
            ctx.bias = bias
        return product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        gradient = gradients[0]
        if ctx.record is None:
            (weight,) = ctx.saved_tensors
        else:
            weight, input = ctx.saved_tensors
            ctx.record(input, weight, ctx.bias, gradient)
        wanted = product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        return wanted, None, None, None


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """input [R, ..., K] times weight [N, K] transposed, plus bias [N].

    Guarantees (on CPUs with oneDNN; measured, see `audit.stepcheck`): the bits of a row of the
    result depend on that row of `input`, on its shape, `weight` and `bias` alone.
    """
    if input.device.type != "cpu" or input.shape[:-1].numel() == 0:
        return nn.functional.linear(input, weight, bias)
    if input.dtype == torch.float64 or not _ONEDNN:
        rows = [nn.functional.linear(_aligned(row[None]), weight, bias) for row in input]
        return torch.cat(rows)
    flat = input.reshape(-1, input.shape[-1])
    count = flat.shape[0]
    if count == 1:
        flat = flat.expand(2, -1).contiguous()
    result = torch.ops.mkldnn._linear_pointwise(flat, weight, bias, "none", [], "")
    whole: torch.Tensor = result[:count].reshape(*input.shape[:-1], weight.shape[0])
    return whole


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor at an address of which kernels need not take notice."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT_BYTES == 0 else tensor.clone()


def _weight_gradients(
    input: torch.Tensor, gradient: torch.Tensor, records: Sequence[int]
) -> torch.Tensor:
    """[U, N, K] from input [R, ..., K] and gradient [R, ..., N]."""
    input = input.to(gradient.dtype)
    if input.device.type != "cpu" or input.dim() == 2:
        # one outer product (or one batched product) a record, then a sum a unit
        of_rows = torch.einsum("r...n,r...k->rnk", gradient, input)
        return _sum_by_unit(of_rows, records)
    found = []
    start = 0
    for count in records:
        rows = slice(start, start + count)
        left = _aligned(gradient[rows].reshape(-1, gradient.shape[-1]))
        right = _aligned(input[rows].reshape(-1, input.shape[-1]))
        found.append(left.t() @ right)
        start += count
    return torch.stack(found)


def _bias_gradients(gradient: torch.Tensor, records: Sequence[int]) -> torch.Tensor:
    """[U, N] from gradient [R, ..., N]."""
    of_rows = gradient
    while of_rows.dim() > 2:
        of_rows = of_rows.sum(1)
    return _sum_by_unit(of_rows, records)


def _sum_by_unit(of_rows: torch.Tensor, records: Sequence[int]) -> torch.Tensor:
    """[U, ...] from [R, ...]; records of a unit are added in their order."""
    if all(count == 1 for count in records):
        return of_rows
    counts = torch.tensor(records)
    unit_of_row = torch.repeat_interleave(torch.arange(len(records)), counts)
    joined = of_rows.new_zeros((len(records), *of_rows.shape[1:]))
    return joined.index_add_(0, unit_of_row.to(of_rows.device), of_rows)
