"""What is trained on a quantised base is exact for the base that its numbers stand for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from privft.errors import InputError
from privft.modelshape import shape_of
from privft.sizing import AdapterShape, Microbatch, Setting, memory
from privft.training.adapter import LoraSpec, attach_language_model
from privft.training.clipping import UnitGradients
from privft.training.losses import LanguageModel, trained_parameters
from privft.training.quantised import Bits, QuantisedLinear, quantise
from tests.training.tiny import text_units

CONFIG: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS: tuple[Bits, ...] = ("8-bit", "4-bit")
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.15}
"""Relative; the two bases take their sums in another order (`training.lowrank`).  In bfloat16
either is 3 to 12% off what float64 gives with this model of random weights (measured)."""


def plain(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).to(dtype).requires_grad_(False)


def quantised(bits: Bits, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    base = plain(dtype)
    quantise(base, bits)
    return base


def stood_for(base: LlamaForCausalLM) -> LlamaForCausalLM:
    """An ordinary base with the numbers that the quantised ones stand for."""
    made = plain(base.dtype)
    for name, module in base.named_modules():
        if isinstance(module, QuantisedLinear):
            made.get_submodule(name).weight.data = module.whole()
    return made


def trained(base: LlamaForCausalLM) -> LanguageModel:
    model = attach_language_model(base, LoraSpec(r=2), seed=1, pad_id=0)
    for parameter in trained_parameters(model).values():  # beside integers peft makes them float32
        parameter.data = parameter.data.to(torch.promote_types(base.dtype, torch.float32))
    with torch.no_grad():  # off its start, where A has no gradient
        for name, parameter in trained_parameters(model).items():
            torch.manual_seed(len(name))
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bits", KINDS)
def test_the_gradients_of_units_are_those_on_the_base_that_is_stood_for(
    bits: Bits, dtype: torch.dtype
) -> None:
    base = quantised(bits, dtype)
    ours, theirs = trained(copy.deepcopy(base)), trained(stood_for(base))
    for name, parameter in trained_parameters(theirs).items():  # peft starts A in the base's type
        parameter.data = trained_parameters(ours)[name].data.clone()
    units = text_units([[12], [9]])
    found, expected = UnitGradients(ours)(units), UnitGradients(theirs)(units)
    assert all(bool(gradient.any()) for gradient in found.values())
    for name, gradient in expected.items():
        apart = float((found[name] - gradient).abs().max() / gradient.abs().max())
        assert apart <= ROUNDING[dtype], name


@pytest.mark.parametrize("bits", KINDS)
def test_companions_change_no_bit(bits: Bits) -> None:
    of_units = UnitGradients(trained(quantised(bits, torch.bfloat16)))
    first, second = text_units([[12], [9]])
    alone, beside = of_units([first]), of_units([second, first])
    assert all(torch.equal(alone[name][0], beside[name][1]) for name in alone)


def test_eight_bits_are_off_by_half_a_step_at_most() -> None:
    base, original = quantised("8-bit"), plain()
    for name, module in base.named_modules():
        if isinstance(module, QuantisedLinear):
            weight = original.get_submodule(name).weight
            step = weight.abs().amax(1, keepdim=True) / 127
            assert ((module.whole() - weight).abs() <= 0.501 * step).all()


def test_four_bits_lose_a_tenth_of_the_size_of_a_matrix() -> None:
    layer = nn.Linear(256, 64, bias=False)
    nn.init.normal_(layer.weight)  # what NormalFloat is made for
    error = QuantisedLinear(layer, "4-bit").whole() - layer.weight.detach()
    assert 0.05 < float(error.norm() / layer.weight.detach().norm()) < 0.12


def test_four_bits_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="no bitsandbytes")
    layer = nn.Linear(256, 64, bias=False)
    packed, state = functional.quantize_4bit(layer.weight.data, blocksize=64, quant_type="nf4")
    ours = QuantisedLinear(layer, "4-bit")
    assert torch.equal(ours.weight.flatten(), packed.flatten())
    assert torch.equal(ours.scales.flatten(), state.absmax)
    assert torch.equal(ours.whole(), functional.dequantize_4bit(packed, state))


def test_eight_bits_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional", reason="no bitsandbytes")
    layer = nn.Linear(256, 64, bias=False).to(torch.float16)
    stored, scales, _ = functional.int8_vectorwise_quant(layer.weight.data)
    ours = QuantisedLinear(layer, "8-bit")
    assert torch.equal(ours.scales.flatten(), scales.float())
    assert torch.equal(ours.weight, stored)


@pytest.mark.parametrize("bits", KINDS)
def test_a_quantised_base_takes_the_bytes_that_a_plan_reckons(bits: Bits) -> None:
    base = quantised(bits, torch.bfloat16)
    held = sum(p.numel() * p.element_size() for p in base.parameters())
    shape = shape_of(CONFIG | {"model_type": "llama"})
    assert shape is not None
    setting = Setting(shape=shape, adapter=AdapterShape(rank=2), dtype="bfloat16", quantised=bits)
    batch = Microbatch(units=1, rows=1, length=8, labels=7)
    assert memory(setting, batch).weights == pytest.approx(held, rel=0.01)


def test_rows_that_are_not_whole_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="rows of 96 numbers"):
        QuantisedLinear(nn.Linear(96, 64), "4-bit")
