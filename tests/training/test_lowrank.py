"""A layer with LoRA in one step is peft's own layer, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from privft.training import lowrank
from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.clipping import UnitGradients
from privft.training.losses import TrainedModel, trained_parameters
from tests.training.test_clipping import randomise
from tests.training.tiny import label_units, text_units, tiny_bert, tiny_llama

SIZES = [[12], [11, 9], [10]]


def made(kind: str, dtype: torch.dtype, spec: LoraSpec) -> TrainedModel:
    if kind == "llama":
        return attach_language_model(tiny_llama(dtype=dtype), spec, seed=1, pad_id=0)
    model = attach_classifier(tiny_bert(dtype=dtype), spec, seed=1, pad_id=0, labels=5)
    return model.to(dtype)


@pytest.fixture
def calls(monkeypatch):
    """Every layer that goes the short way."""
    found = []
    whole = lowrank._LoraLinear.apply
    monkeypatch.setattr(
        lowrank._LoraLinear, "apply", lambda *inputs: (found.append(inputs), whole(*inputs))[1]
    )
    return found


@pytest.mark.parametrize("freeze_a", [False, True], ids=["A trained", "A frozen"])
@pytest.mark.parametrize("kind", ["llama", "bert"])  # BERT's layers have biases
def test_unit_gradients_are_those_of_one_backward_a_unit(kind, freeze_a, calls) -> None:
    spec = LoraSpec(r=2, lora_alpha=6, freeze_a=freeze_a)
    model = made(kind, torch.float64, spec)
    randomise(model)
    units = text_units(SIZES) if kind == "llama" else label_units(SIZES, labels=5)
    together = UnitGradients(model)(units)
    assert len(calls) == sum(".lora_B." in name for name in together) > 0
    for place, unit in enumerate(units):
        loss = model.record_losses(unit.examples, unit.bucket).mean()
        wanted = torch.autograd.grad(loss, list(trained_parameters(model).values()))
        for name, gradient in zip(trained_parameters(model), wanted, strict=True):
            torch.testing.assert_close(together[name][place], gradient, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str
)
def test_both_ways_agree_to_rounding(dtype, tolerance, calls) -> None:
    model = made("llama", dtype, LoraSpec(r=2))
    randomise(model)
    short = UnitGradients(model)(text_units(SIZES))
    assert calls
    for layer in model.module.modules():
        if hasattr(layer, "lora_dropout"):  # anything but no dropout goes peft's way
            layer.lora_dropout["default"] = torch.nn.Dropout(0.0)
    calls.clear()
    long = UnitGradients(model)(text_units(SIZES))
    assert not calls
    for name, gradient in short.items():
        assert (gradient - long[name]).norm() <= tolerance * long[name].norm(), name


def test_scoring_takes_pefts_own_way(calls) -> None:
    model = made("llama", torch.float32, LoraSpec(r=2))
    model.record_losses(text_units(SIZES)[0].examples, 16)
    assert not calls
