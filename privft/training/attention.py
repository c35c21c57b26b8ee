"""Causal attention in bfloat16 on CPUs, in one of two ways that the CPU's instructions choose.

torch's own kernel multiplies tiles through BLAS.  Its backward pass is slower in bfloat16 than in
float32, two to three times as slow for short records, and its forward pass is faster only where
there is AMX.

With AMX: torch's forward pass in bfloat16 and its backward pass in float32.  For a record or two
they take 0.4 to 0.9 times as long as the other way together, and are no less exact than torch's own
in bfloat16.  Each is called for a record at a time: how it packs and shares out work depends on how
many records there are, and its sums, where torch's number of threads was changed before, on the
thread.

Without: oneDNN's batched products, which on AMD's CPUs (where BLAS has no kernels of its own for
them) take 0.3 to 0.9 times as long as torch's kernel, least for short records.  Here, as there, a
block of queries meets all keys up to its own end, weights are formed anew in the backward pass (Dao
et al. 2022, arXiv 2205.14135), and scores have more digits than bfloat16: oneDNN rounds a product
to bfloat16, so what is exponentiated or subtracted is taken as a product and, by a second one, what
its rounding took away (`_wide_product`).

A record's result has the same bits in every company: blocks are cut by its own shape, softmax works
row by row, and a matrix in a batch of oneDNN's products has the same bits in a batch of any size
(measured; tests).  `products` calls this in training where `takes` says so.

Shape suffixes: R records, H query heads, K key heads (each serves H / K = G query heads), T
positions, D features a head, B = R K matrices of a batch, L = G times the queries of a block, E
keys up to a block's end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from privft.training.kernels import has_tiles, multiplies

_QUERIES = 128  # of a block, at most
_FEWEST = 32
_SCORES = 1 << 20  # that are held at once, about
_NOTHING = torch.zeros((), dtype=torch.bfloat16)
_SMALLEST = 16**3  # for so few multiplications torch does not call oneDNN
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def takes(
    query_RHTD: torch.Tensor,
    key_RKTD: torch.Tensor,
    value_RKTD: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    causal: bool,
) -> bool:
    """Whether `causal_attention` is the way to attend so."""
    length, features = query_RHTD.shape[-2:]
    return (
        query_RHTD.dtype == torch.bfloat16
        and query_RHTD.device.type == "cpu"
        and query_RHTD.dim() == 4
        and multiplies(torch.bfloat16)
        and causal
        and mask is None
        and dropout == 0
        and key_RKTD.shape == value_RKTD.shape
        and key_RKTD.shape[-2:] == query_RHTD.shape[-2:]
        and query_RHTD.shape[1] % key_RKTD.shape[1] == 0
        and min(length, _FEWEST // 2) ** 2 * features > _SMALLEST
    )


def causal_attention(
    query_RHTD: torch.Tensor,
    key_RKTD: torch.Tensor,
    value_RKTD: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale Q K^T) V, each position over itself and those before it, [R, H, T, D].

    scale: 1 / sqrt(D) where it is None.
    """
    scale = 1 / math.sqrt(query_RHTD.shape[-1]) if scale is None else scale
    way = _TorchsAttention if has_tiles() else _BatchedAttention
    found: torch.Tensor = way.apply(  # type: ignore[no-untyped-call]
        query_RHTD, key_RKTD, value_RKTD, scale
    )
    return found


class _TorchsAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_RHTD: torch.Tensor,
        key_RKTD: torch.Tensor,
        value_RKTD: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        found = [
            _FORWARD(*record, 0.0, True, scale=scale)
            for record in _one_by_one(query_RHTD, key_RKTD, value_RKTD)
        ]
        result_RHTD, logsumexp_RTH = map(_joined, zip(*found, strict=True))
        ctx.scale = scale
        ctx.save_for_backward(query_RHTD, key_RKTD, value_RKTD, result_RHTD, logsumexp_RTH)
        return result_RHTD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        *inputs, logsumexp_RTH = ctx.saved_tensors  # read once, see `recompute`
        found = []
        for *narrow, logsumexp in _one_by_one(gradients[0], *inputs, logsumexp_RTH):
            wide = (each.float() for each in narrow)
            of_record = _BACKWARD(*wide, logsumexp, 0.0, True, scale=ctx.scale)
            found.append([each.to(narrow[0].dtype) for each in of_record])
        return *map(_joined, zip(*found, strict=True)), None


def _one_by_one(*of_records: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Each record's part of some tensors [R, ...], as [1, ...]."""
    return zip(*(torch.split(each, 1) for each in of_records), strict=True)


def _joined(of_records: Sequence[torch.Tensor]) -> torch.Tensor:
    """[R, ...] from the parts."""
    return of_records[0] if len(of_records) == 1 else torch.cat(list(of_records))


class _BatchedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_RHTD: torch.Tensor,
        key_RKTD: torch.Tensor,
        value_RKTD: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        ctx.scale = scale
        ctx.save_for_backward(query_RHTD, key_RKTD, value_RKTD)
        groups = query_RHTD.shape[1] // key_RKTD.shape[1]
        result_RHTD = _positions_first(query_RHTD)
        for records in _parts(query_RHTD):
            query_RHtD, result_RHtD = query_RHTD[records], result_RHTD[records]
            key_BTD, value_BTD = _by_head(key_RKTD[records]), _by_head(value_RKTD[records])
            for block, end in _blocks(query_RHTD):
                query_BLD = _by_group(query_RHtD[:, :, block], groups)
                weight_BLE = _weights(query_BLD, key_BTD[:, :end], groups, scale)
                own_BLD = torch.bmm(weight_BLE.to(value_BTD.dtype), value_BTD[:, :end])
                result_RHtD[:, :, block] = own_BLD.view_as(query_RHtD[:, :, block])
        return result_RHTD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        query_RHTD, key_RKTD, value_RKTD = ctx.saved_tensors  # read once, see `recompute`
        groups, scale = query_RHTD.shape[1] // key_RKTD.shape[1], ctx.scale
        by_query, by_key, by_value = map(_positions_first, (query_RHTD, key_RKTD, value_RKTD))
        for records in _parts(query_RHTD):
            query_RHtD, gradient_RHtD = query_RHTD[records], gradients[0][records]
            key_BTD, value_BTD = _by_head(key_RKTD[records]), _by_head(value_RKTD[records])
            of_keys_BTD = torch.zeros(key_BTD.shape, dtype=torch.float32)
            of_values_BTD = torch.zeros(key_BTD.shape, dtype=torch.float32)
            for block, end in _blocks(query_RHTD):
                query_BLD = _by_group(query_RHtD[:, :, block], groups)
                gradient_BLD = _by_group(gradient_RHtD[:, :, block], groups)
                weight_BLE = _weights(query_BLD, key_BTD[:, :end], groups, scale)
                by_weight_BLE = _wide_product(gradient_BLD, value_BTD[:, :end].mT)
                by_score_BLE = torch._softmax_backward_data(
                    by_weight_BLE, weight_BLE, -1, torch.float32
                ).to(key_BTD.dtype)
                of_queries_BLD = _scaled_product(by_score_BLE, key_BTD[:, :end], scale)
                by_query[records][:, :, block] = of_queries_BLD.view_as(query_RHtD[:, :, block])
                of_keys_BTD[:, :end] += _scaled_product(by_score_BLE.mT, query_BLD, scale)
                of_values_BTD[:, :end] += torch.bmm(weight_BLE.to(key_BTD.dtype).mT, gradient_BLD)
            by_key[records] = of_keys_BTD.view_as(by_key[records])
            by_value[records] = of_values_BTD.view_as(by_value[records])
        return by_query, by_key, by_value, None


def _weights(
    query_BLD: torch.Tensor, key_BED: torch.Tensor, groups: int, scale: float
) -> torch.Tensor:
    """[B, L, E] in float32; the last keys are the block's own positions."""
    score_BLE = _wide_product(query_BLD, key_BED.mT, scale)
    queries = score_BLE.shape[1] // groups
    later = torch.full((queries, queries), -math.inf).triu_(1)
    score_BLE.view(len(score_BLE), groups, queries, -1)[..., -queries:].add_(later)
    return torch.softmax(score_BLE, -1)


def _wide_product(left: torch.Tensor, right: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Batched product of two bfloat16 factors times `scale`, with 16 bits, in float32."""
    rounded = _scaled_product(left, right, scale)
    rest = torch.baddbmm(rounded, left, right, beta=-1, alpha=scale)
    return rounded.float().add_(rest)


def _scaled_product(left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    """The same in bfloat16, rounded once."""
    return torch.baddbmm(_NOTHING, left, right, beta=0, alpha=scale)


def _parts(query_RHTD: torch.Tensor) -> Iterator[slice]:
    """Records whose scores are held at once."""
    records, heads, length, _ = query_RHTD.shape
    step = max(1, _SCORES // (heads * min(_QUERIES, length) * length))
    return (slice(start, start + step) for start in range(0, records, step))


def _blocks(query_RHTD: torch.Tensor) -> Iterator[tuple[slice, int]]:
    """Queries that are taken at once, in blocks of one size, give or take one; where each ends."""
    _, heads, length, _ = query_RHTD.shape
    count = math.ceil(length / max(_FEWEST, min(_QUERIES, _SCORES // (heads * length))))
    ends = [length * number // count for number in range(count + 1)]
    return ((slice(start, end), end) for start, end in pairwise(ends))


def _by_head(of_records: torch.Tensor) -> torch.Tensor:
    """[B, T, D] from [R, K, T, D]."""
    return of_records.flatten(0, 1).contiguous()


def _by_group(of_block: torch.Tensor, groups: int) -> torch.Tensor:
    """[B, L, D] from [R, H, queries, D]: queries of all heads that share a key, one after the
    other."""
    records, heads, queries, features = of_block.shape
    return of_block.reshape(records * heads // groups, groups * queries, features)


def _positions_first(like: torch.Tensor) -> torch.Tensor:
    """An empty [R, heads, T, D] that lies in memory as [R, T, heads, D], as layers want it."""
    return like.new_empty(like.transpose(1, 2).shape).transpose(1, 2)
