"""Own attention in bfloat16 is as exact as torch's, and nobody's company changes a bit of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from privft.training import attention, products
from privft.training.adapter import LoraSpec, attach_language_model
from privft.training.attention import causal_attention, takes
from privft.training.clipping import UnitGradients
from privft.training.kernels import multiplies
from tests.training.tiny import text_units, tiny_llama

needs_instructions = pytest.mark.skipif(
    not multiplies(torch.bfloat16), reason="this CPU has no instructions for bfloat16"
)
SHAPES = [
    (9, 3, 64),  # SmolLM2's heads, heads of keys, features
    (3, 3, 64),
    (8, 1, 32),
    (8, 2, 128),
    (3, 1, 80),  # the scale is no power of two
]
LENGTHS = [16, 40, 128, 144, 320, 1024]  # one block; more; blocks of unlike sizes


@pytest.fixture(autouse=True, params=[True, False], ids=["torch's", "batched"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways, whichever this CPU would take."""
    monkeypatch.setattr(attention, "has_tiles", lambda: request.param)


def made(records: int, length: int, shape: tuple[int, int, int]) -> list[torch.Tensor]:
    """Queries, keys, values and gradients as layers make them: positions before heads."""
    heads, of_keys, features = shape
    torch.manual_seed(length)
    return [
        torch.randn(records, length, count, features).mul_(2).bfloat16().transpose(1, 2)
        for count in (heads, of_keys, of_keys, heads)
    ]


def both_ways(attend, query, key, value, gradient) -> list[torch.Tensor]:
    """The result and the gradients by query, key and value."""
    leaves = [each.detach().requires_grad_() for each in (query, key, value)]
    result = attend(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, gradient)]


def torchs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


@needs_instructions
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_exact_as_torchs_own(length: int, shape: tuple[int, int, int]) -> None:
    """Against float64; measured: 0.002 forwards, and backwards 0.005 by torch's kernels and 0.003
    by oneDNN's products, where torch's own backward in bfloat16 is off by 0.005 to 0.008."""
    given = made(2, length, shape)
    exact = both_ways(torchs, *(each.double() for each in given))
    for got, wanted in zip(both_ways(causal_attention, *given), exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.double() - wanted).norm() < 0.005 * wanted.norm()


@needs_instructions
def test_large_scores_keep_the_digits_that_bfloat16_lacks() -> None:
    """Scores of about 300 differ by ones, which is what a bfloat16 of that size rounds to.  (By
    torch's kernels the gradient by queries is off by 0.013, as the result is rounded before it is
    multiplied with its gradient; torch's own backward in bfloat16: 0.014.)"""
    query, key, value, gradient = made(1, 128, (3, 3, 64))
    query[..., 0], key[..., 0] = 48.0, 48.0
    exact = both_ways(torchs, *(each.double() for each in (query, key, value, gradient)))
    found = both_ways(causal_attention, query, key, value, gradient)
    for got, wanted in zip(found, exact, strict=True):
        allowed = 0.015 if attention.has_tiles() else 0.006
        assert (got.double() - wanted).norm() < allowed * wanted.norm()


@needs_instructions
def test_no_position_sees_a_later_one() -> None:
    query, key, value, _ = made(1, 320, (9, 3, 64))
    before = causal_attention(query, key, value)
    for changed in (key, value):
        changed[:, :, 200:] = 7.0
    after = causal_attention(query, key, value)
    assert torch.equal(before[:, :, :200], after[:, :, :200])
    assert not torch.equal(before[:, :, 200:], after[:, :, 200:])


@needs_instructions
def test_its_scale_is_what_is_asked_for() -> None:
    query, key, value, _ = made(1, 40, (3, 3, 80))
    assert torch.equal(
        causal_attention(query, key, value), causal_attention(query, key, value, 1 / math.sqrt(80))
    )
    found = causal_attention(query, key, value, 0.03).double()
    exact = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, scale=0.03
    )
    assert (found - exact).norm() < 0.004 * exact.norm()


@needs_instructions
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_record_has_the_same_bits_in_every_company(
    shape: tuple[int, int, int], threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for length in LENGTHS:
            many = 40 if length < 64 else 3  # from 320 on records are taken in several parts
            given = made(many, length, shape)
            whole = both_ways(causal_attention, *given)
            for first, last in ((0, 1), (many - 1, many), (1, 3)):
                some = both_ways(causal_attention, *(each[first:last] for each in given))
                for got, wanted in zip(some, whole, strict=True):
                    assert torch.equal(got, wanted[first:last])
    finally:
        torch.set_num_threads(before)


@needs_instructions
def test_memory_grows_with_the_length_and_not_its_square() -> None:
    """Scores of 4096 positions would take 600 MB in float32, and what is kept of them too."""
    query, key, value, gradient = made(1, 4096, (9, 3, 64))
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        both_ways(causal_attention, query, key, value, gradient)
    held = largest = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            largest = max(largest, held)
    assert 0 < largest < 100e6


def test_other_ways_to_attend_are_left_to_torch() -> None:
    query, key, value, _ = made(2, 40, (9, 3, 64))
    assert takes(query, key, value, None, 0.0, True) == multiplies(torch.bfloat16)
    mask = torch.ones(40, 40, dtype=torch.bool)
    assert not takes(query, key, value, mask, 0.0, True)
    assert not takes(query, key, value, None, 0.1, True)
    assert not takes(query, key, value, None, 0.0, False)
    assert not takes(query.float(), key.float(), value.float(), None, 0.0, True)
    assert not takes(query[:, :, -1:], key, value, None, 0.0, True)  # a cache of keys
    few = [each[:, :, :8] for each in (query, key, value)]  # too small for oneDNN
    assert not takes(*few, None, 0.0, True)


@needs_instructions
def test_training_in_bfloat16_goes_this_way_and_scoring_does_not(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        products,
        "causal_attention",
        lambda *given: (calls.append(given), causal_attention(*given))[1],
    )
    monkeypatch.setattr(products, "takes", lambda *given: given[-1] and given[3] is None)
    model = attach_language_model(tiny_llama(dtype=torch.bfloat16), LoraSpec(r=2), seed=1, pad_id=0)
    units = text_units([[12], [10]])
    UnitGradients(model)(units)
    assert len(calls) == model.module.config.num_hidden_layers
    calls.clear()
    model.record_losses(units[0].examples, 16)
    assert not calls
