"""Matrix products whose bits do not depend on how many rows are multiplied.

The BLAS that torch uses for float32 picks its kernels and splits its sums by the number of rows of
the whole product, so a unit's activations would carry the trace of its companions in the last bits
(measured: SmolLM2 on AVX-512, one and two threads).  oneDNN's products, which torch uses for
bfloat16 anyway, give each row the same bits beside 1 and beside 4000 others (one row alone goes
another way, so it is given a twin).  They are used here on CPUs, and where weights are `aligned`
they are about as fast as BLAS, but for what a call costs; they read a weight as it lies, so one
that begins within a cache line, as a mapped file's do, costs up to half their speed.  Where a CPU
has no instructions that oneDNN could multiply bfloat16 with (AVX2 alone, for one), both factors are
cast to float32 and the product is rounded: the same promise, at less than float32's speed.
float64, which oneDNN lacks and only tests use, and CPUs without oneDNN multiply a record, or a tile
of `_TILE` rows, at a time.  Other devices multiply as torch does, and `audit.stepcheck` says what
that costs.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn

_ALIGNMENT_BYTES = 64
_TILE = 64
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
    if not multiplies(input.dtype):
        return _by_record(input, weight, bias)
    flat = input.reshape(-1, input.shape[-1])
    if flat.shape[0] == 1:
        flat = flat.expand(2, -1).contiguous()
    result = _ONEDNN_LINEAR(flat, weight, bias, "none", [], "")
    return _shaped(result, input, weight)


def sum_of_products(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    narrow: torch.Tensor,
    narrow_weight: torch.Tensor,
) -> torch.Tensor:
    """`product` of the first three plus narrow [R, ..., r] times narrow_weight [N, r] transposed,
    in the type of `input`; the same guarantee.

    Where that type is bfloat16 and narrow is float32, each number of the narrow factors is taken as
    the sum of two of bfloat16, so 16 bits of it count, which is more than the sum has.
    """
    own = product(input, weight, bias)
    if own.device.type != "cpu" or not multiplies(own.dtype):
        return (own + product(narrow, narrow_weight, None)).to(own.dtype)
    if own.numel() == 0:
        return own
    if own.dtype != narrow.dtype:
        high, low = _halves(narrow, own.dtype)
        weight_high, weight_low = _halves(narrow_weight, own.dtype)
        narrow = torch.cat((high, low, high), -1)
        narrow_weight = torch.cat((weight_high, weight_high, weight_low), -1)
    flat, other = narrow.reshape(-1, narrow.shape[-1]), own.reshape(-1, own.shape[-1])
    if flat.shape[0] == 1:
        flat, other = flat.expand(2, -1).contiguous(), other.expand(2, -1).contiguous()
    result = _ONEDNN_LINEAR.binary(flat, other, narrow_weight, None, "add")
    return _shaped(result, narrow, narrow_weight)


def _halves(wide: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two numbers of a narrower type for each of `wide`, whose sum has both their digits."""
    high = wide.to(dtype)
    return high, (wide - high).to(dtype)


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


def _by_record(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The product for each record by itself; rows that belong to no record in tiles of one size."""
    tiles = input
    if input.dim() == 2:
        filled = nn.functional.pad(input, (0, 0, 0, -len(input) % _TILE))
        tiles = filled.reshape(-1, _TILE, input.shape[-1])
    found = [nn.functional.linear(aligned(tile[None]), weight, bias) for tile in tiles]
    whole = torch.cat(found)
    return whole if input.dim() > 2 else whole.flatten(0, 1)[: len(input)]


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


def _shaped(result: torch.Tensor, input: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[R, ..., N], without the twin of a row that was alone."""
    shape = (*input.shape[:-1], weight.shape[0])
    return (result if result.numel() == math.prod(shape) else result[:1]).view(shape)


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor at an address of which kernels need not take notice."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT_BYTES == 0 else tensor.clone()
