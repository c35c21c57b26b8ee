"""Matrix products whose bits do not depend on how many rows are multiplied.

The BLAS that torch uses for float32 picks its kernels and splits its sums by the number of rows of
the whole product, so a unit's activations would carry the trace of its companions in the last bits
(measured: SmolLM2 on AVX-512, one and two threads).  oneDNN's float32 products give each row the
same bits beside 1 and beside 4000 others (one row alone goes another way, so it is given a twin).
They are used here on CPUs, and where weights are `aligned` they are about as fast as BLAS, but for
what a call costs; they read a weight as it lies, so one that begins within a cache line, as a
mapped file's do, costs up to half their speed.  BLAS gives a record the same bits where it is
called for that record alone, whatever others there are (measured: 0 of 3,840 cases differed).  With
Intel's AMX, where BLAS is at home, that is the faster way for records of `_LONG` tokens or more,
and for all where the weight is as narrow as LoRA's B.

In bfloat16 oneDNN too sums by the number of rows where the CPU has AMX (measured: output
embeddings, and layers from 2,048 wide on).  So narrow types are multiplied in tiles, whose number
of rows is that of a record, or of as many short ones as `_TILE` holds: all rows of all companies
then go through one and the same kernel, in which their place does not matter (measured).  Where a
CPU has no instructions that oneDNN could multiply bfloat16 with (AVX2 alone, for one), both factors
are cast to float32 and the product is rounded: the same promise, at less than float32's speed.

float64, which oneDNN lacks and only tests use, and CPUs without oneDNN multiply a record, or a tile
of `_TILE` rows, at a time.  Other devices multiply as torch does, and `audit.stepcheck` says what
that costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import nn

_ALIGNMENT_BYTES = 64
_TILE = 64
_LONG = 320  # tokens of a record
_WIDENED = 1 << 22  # numbers of a weight that are held in float32 at once
_ONEDNN = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
_ONEDNN_LINEAR = torch.ops.mkldnn._linear_pointwise


def use_reproducible_kernels() -> None:
    """From now on torch runs kernels that give the same bits each time, or none.

    In that mode it also fills fresh memory with NaN, which helps to find reads of what was never
    written and costs a pass over every output; nothing here reads such memory, so it is off.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """input [R, ..., K] times weight [N, K] transposed, plus bias [N].

    Guarantees (on CPUs with oneDNN; measured, see `audit.stepcheck`): the bits of a row of the
    result depend on that row of `input`, on its shape, `weight` and `bias` alone.
    """
    if input.device.type != "cpu" or input.numel() == 0:
        return nn.functional.linear(input, weight, bias)
    if widens(input.dtype):
        return _widened(input, weight, bias)
    if not _multiplies_whole(input):
        return _in_tiles([(input, weight)], bias)
    result = _ONEDNN_LINEAR(_rows(input), weight, bias, "none", [], "")
    return _shaped(result, input, weight)


def sum_of_products(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
    bias: torch.Tensor | None,
    narrow: torch.Tensor,
    narrow_weight: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The sum over `factors`, each an input [R, ..., K] and a weight [N, K] (K may differ), of
    their `product`, plus the bias, plus `scaling` times narrow [R, ..., r] times narrow_weight
    [N, r] transposed; all of one type; the same guarantee."""
    (input, weight), *others = factors
    if input.device.type != "cpu" or input.numel() == 0 or widens(input.dtype):
        result = product(input, weight, bias)
        for other, its_weight in others:
            result.add_(product(other, its_weight, None))
        return result.add_(product(narrow, narrow_weight, None), alpha=scaling)
    if not _multiplies_whole(input):
        return _in_tiles(factors, bias, narrow, narrow_weight, scaling)
    result = _ONEDNN_LINEAR(_rows(input), weight, bias, "none", [], "")
    for other, its_weight in others:
        result = _ONEDNN_LINEAR.binary(_rows(other), result, its_weight, None, "add")
    if not has_tiles() or input.dim() == 2:
        narrow = _rows(narrow * scaling)
        result = _ONEDNN_LINEAR.binary(narrow, result, narrow_weight, None, "add")
        return _shaped(result, input, weight)
    result = _shaped(result, input, weight)
    turned = narrow_weight.t()
    for own, its_narrow in zip(result.unbind(), narrow.unbind(), strict=True):
        own.flatten(0, -2).addmm_(its_narrow.flatten(0, -2), turned, alpha=scaling)
    return result


def _in_tiles(
    factors: Sequence[tuple[torch.Tensor, torch.Tensor]],
    bias: torch.Tensor | None,
    narrow: torch.Tensor | None = None,
    narrow_weight: torch.Tensor | None = None,
    scaling: float = 1.0,
) -> torch.Tensor:
    """The sum of products for some rows at a time, always as many: those of a record, or of as
    many short ones as fill a tile, as their place in it does not matter to oneDNN; `_TILE` where
    rows belong to no record."""
    input, weight = factors[0]
    size = _TILE if input.dim() == 2 else input.shape[1:-1].numel()
    if size < _TILE and multiplies(input.dtype):
        size *= _TILE // size
    pairs = [(_filled(each, size), its_weight.t()) for each, its_weight in factors]
    others = None if narrow is None or narrow_weight is None else _filled(narrow, size)
    turned = None if narrow_weight is None else narrow_weight.t()
    result = input.new_empty((len(pairs[0][0]), weight.shape[0]))
    for start in range(0, len(result), size):
        part = slice(start, start + size)
        own = result[part]
        for place, (rows, columns) in enumerate(pairs):
            tile = aligned(rows[part])
            if place > 0:
                own.addmm_(tile, columns)
            elif bias is None:
                torch.mm(tile, columns, out=own)
            else:
                torch.addmm(bias, tile, columns, out=own)
        if others is not None and turned is not None:
            own.addmm_(others[part], turned, alpha=scaling)
    whole = result[: input.shape[:-1].numel()]
    return whole.view(*input.shape[:-1], -1)


def _filled(values: torch.Tensor, size: int) -> torch.Tensor:
    """Rows [n, K] from [R, ..., K], with zeros up to a whole number of tiles."""
    rows = values.reshape(-1, values.shape[-1])
    missing = -rows.shape[0] % size
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _widened(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product in float32, rounded; a few rows of the weight at a time, as a float32 copy of an
    output embedding would be the largest thing in memory."""
    wide, count = input.float(), max(1, _WIDENED // weight.shape[1])
    result = input.new_empty((*input.shape[:-1], weight.shape[0]))
    for start in range(0, weight.shape[0], count):
        part = slice(start, start + count)
        own = None if bias is None else bias[part].float()
        result[..., part] = product(wide, weight[part].float(), own)
    return result


def widens(dtype: torch.dtype) -> bool:
    """Whether CPUs multiply this type as float32 here."""
    return dtype.itemsize < 4 and not multiplies(dtype) and multiplies(torch.float32)


@cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this type here, found by trying: it depends on the CPU, and on what
    oneDNN was told to use of it."""
    if not _ONEDNN:
        return False
    try:
        rows = torch.zeros(2, 8, dtype=dtype)
        _ONEDNN_LINEAR(rows, rows, None, "none", [], "")
    except RuntimeError:
        return False
    return True


@cache
def has_tiles() -> bool:
    """Whether this CPU has AMX: Intel's, for which torch's BLAS (MKL) is made."""
    return bool(torch.cpu._is_amx_tile_supported())


def _multiplies_whole(input: torch.Tensor) -> bool:
    """Whether oneDNN gives these rows the same bits among any number of others, and BLAS is no
    faster for a record at a time."""
    if input.dtype != torch.float32 or not multiplies(torch.float32):
        return False
    return not has_tiles() or input.dim() == 2 or input.shape[1:-1].numel() < _LONG


def _rows(values: torch.Tensor) -> torch.Tensor:
    """[n, K] from [R, ..., K]; a row that is alone gets a twin."""
    flat = values.reshape(-1, values.shape[-1])
    return flat.expand(2, -1).contiguous() if len(flat) == 1 else flat


def _shaped(result: torch.Tensor, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[R, ..., N], without the twin of a row that was alone."""
    shape = (*input.shape[:-1], weight.shape[0])
    return (result if result.numel() == math.prod(shape) else result[:1]).view(shape)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor at an address of which kernels need not take notice."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT_BYTES == 0 else tensor.clone()
