"""What a unit's own part of a trained layer's gradient is, taken during one backward pass.

`UnitProducts` is a mode, active during one forward and backward pass, that takes over
`linear`, also `embedding` and `layer_norm` where they are trained, and attention where `attention`
is faster.  The backward of a frozen layer gives the gradient of its input and nothing else.  That
of a trained layer also gives each unit's gradient, from the unit's own records and by sums of
shapes that are the unit's own:
    linear      (output gradient)^T (input), and the output gradient for a bias
    embedding   the output gradient, added to the rows of the tokens
    layer norm  output gradient times normalised input, and the output gradient for the bias
and never the sum over units that autograd would form.  Products are those of `kernels`, so what
else is in a microbatch changes no bit.  A loss that multiplies by a trained weight itself, a record
at a time, reports its part through `active` (`losses`).  Activations that are computed twice
(`recompute`) change nothing: only backward records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar, Token
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from privft.errors import InputError
from privft.training.attention import causal_attention, takes
from privft.training.kernels import aligned, product

_ACTIVE: ContextVar[UnitProducts | None] = ContextVar("privft-unit-products", default=None)


def has_unit_gradients(layer: nn.Module) -> bool:
    """Whether the gradient of each unit by the layer's own parameters is known here."""
    if isinstance(layer, nn.Embedding):
        return layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return isinstance(layer, (nn.Linear, nn.LayerNorm))


def active() -> UnitProducts | None:
    """The mode that is in force in this thread."""
    return _ACTIVE.get()


class UnitProducts(TorchFunctionMode):
    """Trained layers as in the module's docstring, for rows (records) that lie in order of units.

    parameters: the trained parameters, by name.
    records: how many records each unit has, [U]; their sum is the number of rows.
    kept: what layers make of the parameters and may make once, for modes under which these stay
        what they are.

    Afterwards `gradients` holds, by name, the gradients of the units, each [U, *parameter].
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        records: Sequence[int],
        kept: dict[tuple[object, ...], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.kept = {} if kept is None else kept
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._records = list(records)
        self._unit_of_row = [unit for unit, count in enumerate(records) for _ in range(count)]
        self._tokens: list[Token[UnitProducts | None]] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def __enter__(self) -> UnitProducts:
        super().__enter__()  # type: ignore[no-untyped-call]
        self._tokens.append(_ACTIVE.set(self))
        return self

    def __exit__(self, *raised: Any) -> None:
        _ACTIVE.reset(self._tokens.pop())
        super().__exit__(*raised)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        own = _TAKEN_OVER.get(func)
        return (func if own is None else partial(own, self))(*args, **(kwargs or {}))

    def row_recorder(self, parameter: torch.Tensor, row: int) -> Callable[[torch.Tensor], None]:
        """What takes in the gradient of one row's loss by a trained parameter, [*parameter]."""
        name, unit = self._names[id(parameter)], self._unit_of_row[row]

        def record(gradient: torch.Tensor) -> None:
            if name not in self.gradients:
                shape = (len(self._records), *gradient.shape)
                self.gradients[name] = gradient.new_zeros(shape)
            self.gradients[name][unit] += gradient

        return record

    def recorder(
        self, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor, torch.Tensor], None] | None:
        """What takes in (input, output gradient) of a linear layer, or None where it is frozen."""
        names = self._name(weight), self._name(bias)
        return partial(self._record_linear, *names) if any(names) else None

    def stack_recorder(
        self, weights: Sequence[torch.Tensor]
    ) -> Callable[[torch.Tensor, torch.Tensor], None] | None:
        """What takes in (input, output gradient) of linear layers on one input whose weights lie
        one below the other, or None where all are frozen."""
        names = [self._name(weight) for weight in weights]
        rows = [len(weight) for weight in weights]
        return partial(self._record_stack, names, rows) if any(names) else None

    def _linear(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> Any:
        record = self.recorder(weight, bias)
        return _Linear.apply(input, weight, bias, record)  # type: ignore[no-untyped-call]

    def _embedding(
        self,
        input: torch.Tensor,
        weight: torch.Tensor,
        padding_idx: int | None = None,
        *settings: Any,
        **named: Any,
    ) -> Any:
        name = self._name(weight)
        if name is None:
            return nn.functional.embedding(input, weight, padding_idx, *settings, **named)
        record = partial(self._record_embedding, name, padding_idx, weight.shape[0])
        return _Embedding.apply(input, weight, record)  # type: ignore[no-untyped-call]

    def _layer_norm(
        self,
        input: torch.Tensor,
        normalized_shape: Sequence[int],
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        eps: float = 1e-5,
    ) -> Any:
        names = self._name(weight), self._name(bias)
        if not any(names):
            return nn.functional.layer_norm(input, normalized_shape, weight, bias, eps)
        record = partial(self._record_layer_norm, *names)
        return _LayerNorm.apply(  # type: ignore[no-untyped-call]
            input, list(normalized_shape), weight, bias, eps, record
        )

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if takes(query, key, value, attn_mask, dropout_p, is_causal):
            return causal_attention(query, key, value, scale)
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _name(self, parameter: torch.Tensor | None) -> str | None:
        """The parameter's name if it is trained."""
        return self._names.get(id(parameter)) if parameter is not None else None

    def _record_linear(
        self,
        weight: str | None,
        bias: str | None,
        input: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        self._check(gradient)
        if weight is not None:
            self._add(weight, _weight_gradients(input, gradient, self._records))
        if bias is not None:
            self._add(bias, _sums(gradient, self._records, dimensions=1))

    def _record_stack(
        self,
        names: Sequence[str | None],
        rows: Sequence[int],
        input: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        self._check(gradient)
        whole = _weight_gradients(input, gradient, self._records)
        for name, own in zip(names, whole.split_with_sizes(list(rows), 1), strict=True):
            if name is not None:
                self._add(name, own)

    def _record_embedding(
        self,
        name: str,
        padding: int | None,
        rows: int,
        input: torch.Tensor,
        gradient: torch.Tensor,
    ) -> None:
        self._check(gradient)
        if padding is not None:  # torch trains no row of padding either
            gradient = gradient.masked_fill((input == padding % rows)[..., None], 0.0)
        found = gradient.new_zeros((len(self._records), rows, gradient.shape[-1]))
        tokens = _of_units(input, self._records, 0)
        for unit, part in enumerate(_of_units(gradient, self._records)):
            found[unit].index_add_(0, tokens[unit], part)
        self._add(name, found)

    def _record_layer_norm(
        self,
        weight: str | None,
        bias: str | None,
        normalised: torch.Tensor,
        gradient: torch.Tensor,
        dimensions: int,
    ) -> None:
        self._check(gradient)
        if weight is not None:
            self._add(weight, _sums(gradient * normalised, self._records, dimensions=dimensions))
        if bias is not None:
            self._add(bias, _sums(gradient, self._records, dimensions=dimensions))

    def _check(self, gradient: torch.Tensor) -> None:
        if gradient.shape[0] != len(self._unit_of_row):
            raise InputError(
                f"a trained layer sees {gradient.shape[0]} rows for {len(self._unit_of_row)} "
                "records: what it computes belongs to no single record",
                hint="leave it out of lora.target_modules and lora.modules_to_save (embeddings of "
                "positions are such a layer)",
            )

    def _add(self, name: str, of_units: torch.Tensor) -> None:
        known = self.gradients.get(name)
        self.gradients[name] = of_units if known is None else known + of_units


_TAKEN_OVER: dict[Callable[..., Any], Callable[..., Any]] = {
    nn.functional.linear: UnitProducts._linear,
    nn.functional.embedding: UnitProducts._embedding,
    nn.functional.layer_norm: UnitProducts._layer_norm,
    nn.functional.scaled_dot_product_attention: UnitProducts._attend,
}
"""Functions, not methods of one mode: a mode that held its own methods would be a cycle, and keep
its units' gradients until Python looks for cycles, which may be many steps later."""


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
        return product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        gradient = gradients[0]
        weight, *input = ctx.saved_tensors  # read once: what is computed again is handed out once
        if ctx.record is not None:
            ctx.record(*input, gradient)
        wanted = product(gradient, weight.t(), None) if ctx.needs_input_grad[0] else None
        return wanted, None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of the weight [V, D] by number, [R, ..., D]."""

    @staticmethod
    def forward(
        ctx: Any, input: torch.Tensor, weight: torch.Tensor, record: Callable[..., None]
    ) -> torch.Tensor:
        ctx.record = record
        ctx.save_for_backward(input)
        return nn.functional.embedding(input, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        ctx.record(ctx.saved_tensors[0], gradients[0])
        return None, None, None


class _LayerNorm(torch.autograd.Function):
    """Normalised over the last dimensions (those of `shape`), times the weight, plus the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        input: torch.Tensor,
        shape: list[int],
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        record: Callable[..., None],
    ) -> torch.Tensor:
        output, mean, reciprocal = torch.native_layer_norm(input, shape, weight, bias, eps)
        ctx.shape, ctx.record = shape, record
        ctx.save_for_backward(input, mean, reciprocal, weight, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        gradient = gradients[0]
        input, mean, reciprocal, weight, bias = ctx.saved_tensors
        ctx.record((input - mean) * reciprocal, gradient, len(ctx.shape))
        wanted = None
        if ctx.needs_input_grad[0]:
            wanted = torch.ops.aten.native_layer_norm_backward(
                gradient, input, ctx.shape, mean, reciprocal, weight, bias, [True, False, False]
            )[0]
        return wanted, None, None, None, None, None


def _weight_gradients(
    input: torch.Tensor, gradient: torch.Tensor, records: Sequence[int]
) -> torch.Tensor:
    """[U, N, K] from input [R, ..., K] and gradient [R, ..., N], in the wider type of both."""
    if input.device.type != "cpu" or input.dim() == 2:
        # one outer product (or one batched product) a record, then a sum a unit
        wide = torch.promote_types(input.dtype, gradient.dtype)
        of_rows = torch.einsum("r...n,r...k->rnk", gradient.to(wide), input.to(wide))
        return _sum_by_unit(of_rows, records)
    if gradient.shape[-1] > input.shape[-1]:  # the narrow side first: up to twice as fast for LoRA
        return _sums_of_outer(input, gradient, records).mT.contiguous()
    return _sums_of_outer(gradient, input, records)


def _sums_of_outer(left: torch.Tensor, right: torch.Tensor, records: Sequence[int]) -> torch.Tensor:
    """[U, M, N] from left [R, ..., M] and right [R, ..., N], a product of its own for each unit, in
    the wider type of both."""
    wide = torch.promote_types(left.dtype, right.dtype)
    pairs = zip(_of_units(left.to(wide), records), _of_units(right.to(wide), records), strict=True)
    found = [aligned(rows).t() @ aligned(columns) for rows, columns in pairs]
    return torch.stack(found) if len(found) > 1 else found[0][None]


def _sums(values: torch.Tensor, records: Sequence[int], *, dimensions: int) -> torch.Tensor:
    """[U, *last dimensions] from [R, ..., *last dimensions]: over each unit's records and
    positions, a unit at a time, because torch sums by the size of the whole."""
    if values.dim() == 1 + dimensions:
        return _sum_by_unit(values, records)
    parts = _of_units(values, records, dimensions)
    return torch.stack([aligned(part).sum(0) for part in parts])


def _of_units(
    values: torch.Tensor, records: Sequence[int], dimensions: int = 1
) -> tuple[torch.Tensor, ...]:
    """Each unit's part of [R, ..., *last dimensions], its records and positions in one row after
    the other."""
    rows = values.flatten(0, -1 - dimensions)
    if len(records) == 1:
        return (rows,)
    positions = rows.shape[0] // values.shape[0]
    return rows.split_with_sizes([count * positions for count in records])


def _sum_by_unit(of_rows: torch.Tensor, records: Sequence[int]) -> torch.Tensor:
    """[U, ...] from [R, ...]; records of a unit are added in their order."""
    if all(count == 1 for count in records):
        return of_rows
    counts = torch.tensor(records)
    unit_of_row = torch.repeat_interleave(torch.arange(len(records)), counts)
    joined = of_rows.new_zeros((len(records), *of_rows.shape[1:]))
    return joined.index_add_(0, unit_of_row.to(of_rows.device), of_rows)
