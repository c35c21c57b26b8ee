"""Per-unit gradients are exact, bounded, and blind to their companions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from privft.errors import InputError
from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.clipping import (
    UnitGradients,
    add_clipped,
    clip_factors,
    unit_factors,
    unit_norms,
)
from privft.training.examples import IGNORED, UnitExamples
from privft.training.loop import clipped_sum
from privft.training.losses import TrainedModel, trained_parameters
from tests.training.tiny import (
    float64_norms,
    label_units,
    text_units,
    tiny_bert,
    tiny_llama,
)

LENGTHS = [[5, 9, 3], [12], [21, 17], [12, 12], [2], [33]]


def llama(dtype: torch.dtype = torch.float64, *, tied: bool = True) -> TrainedModel:
    model = attach_language_model(
        tiny_llama(dtype=dtype, tied=tied), LoraSpec(r=2), seed=1, pad_id=0
    )
    randomise(model)
    return model


def bert(dtype: torch.dtype = torch.float64, *, lora: bool = True) -> TrainedModel:
    spec = LoraSpec(r=2) if lora else None
    model = attach_classifier(tiny_bert(dtype=dtype), spec, seed=1, pad_id=0, labels=5)
    model.head.to(dtype)
    randomise(model)
    return model


def randomise(model: TrainedModel, *, b: float = 0.2) -> None:
    """B of LoRA and heads start at zero, where half of all gradients vanish: move them away, B by
    numbers of size `b`."""
    model.module.eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in trained_parameters(model).items():
        with torch.no_grad():
            parameter.normal_(std=b if ".lora_B." in name else 0.2, generator=generator)


def one_by_one(model: TrainedModel, unit: UnitExamples) -> dict[str, torch.Tensor]:
    """The unit's gradient by plain autograd: one record at a time, no padding, no hooks."""
    parameters = trained_parameters(model)
    losses = []
    for example in unit.examples:
        ids = torch.tensor([example.input_ids])
        if hasattr(model, "head"):
            logits = model(ids, torch.ones_like(ids))
            losses.append(nn.functional.cross_entropy(logits, torch.tensor(example.labels)))
            continue
        logits = model.module(input_ids=ids).logits[0, :-1]
        targets = torch.tensor(example.labels[1:])
        losses.append(nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED))
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(parameters.values()))
    return dict(zip(parameters, gradients, strict=True))


def apart(some: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> float:
    """The length of the difference of two gradients; names that are missing count as zero."""
    parts = [(some.get(name, 0.0) - g.double()).square().sum() for name, g in wanted.items()]
    return float(torch.stack(parts).sum().sqrt())


CASES = {
    "llama": (lambda: llama(), lambda: text_units(LENGTHS)),
    "llama untied": (lambda: llama(tied=False), lambda: text_units(LENGTHS)),
    "bert with head": (lambda: bert(), lambda: label_units(LENGTHS, labels=5)),
    "bert head only": (lambda: bert(lora=False), lambda: label_units(LENGTHS, labels=5)),
}


@pytest.mark.parametrize("case", CASES)
def test_clipped_sum_equals_one_by_one_backward_in_float64(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    float64_norms(monkeypatch)
    make_model, make_units = CASES[case]
    model, units = make_model(), make_units()
    expected = {n: torch.zeros_like(p) for n, p in trained_parameters(model).items()}
    clip_norm = 0.3
    clipped = 0
    for unit in units:
        gradient = one_by_one(model, unit)
        norm = torch.sqrt(sum((g**2).sum() for g in gradient.values()))
        clipped += bool(norm > clip_norm)
        for name, value in gradient.items():
            expected[name] += value * min(1.0, clip_norm / float(norm))
    assert clipped > 0, "the case must exercise clipping"
    got = clipped_sum(UnitGradients(model), units, clip_norm=clip_norm, token_budget=64)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12)


def test_adding_a_unit_changes_the_sum_by_at_most_the_clip_norm() -> None:
    model = llama()
    units = text_units(LENGTHS)
    gradients_of = UnitGradients(model)
    clip_norm = 0.05
    total = clipped_sum(gradients_of, units, clip_norm=clip_norm, token_budget=64)
    for left_out in range(len(units)):
        rest = units[:left_out] + units[left_out + 1 :]
        without = clipped_sum(gradients_of, rest, clip_norm=clip_norm, token_budget=64)
        change = torch.sqrt(sum(((total[n] - without[n]) ** 2).sum() for n in total))
        assert 0 < float(change) <= clip_norm * (1 + 1e-12)


def test_an_empty_sample_sums_to_zero() -> None:
    total = clipped_sum(UnitGradients(llama()), [], clip_norm=1.0, token_budget=64)
    assert total
    assert all(not value.any() for value in total.values())


def test_a_non_finite_gradient_counts_as_zero() -> None:
    totals = {"w": torch.zeros(3, dtype=torch.float64)}
    bad = torch.tensor([[1.0, float("nan"), 0.0], [float("inf"), 0, 0], [3.0, 4.0, 0.0]]).double()
    add_clipped(totals, {"w": bad}, clip_norm=1.0)
    torch.testing.assert_close(totals["w"], torch.tensor([0.6, 0.8, 0.0]).double())


def test_a_clipped_gradient_never_exceeds_the_clip_norm_in_floating_point() -> None:
    torch.manual_seed(0)
    gradients = {"w": torch.randn(2000, 7, dtype=torch.float64) * 10}
    norms = unit_norms(gradients)
    clipped = gradients["w"] * clip_factors(norms, 0.1)[:, None]
    assert float(clipped.norm(dim=1).max()) <= 0.1
    assert float(clipped.norm(dim=1).min()) > 0.0999999


def test_a_short_gradient_is_left_alone() -> None:
    assert clip_factors(torch.tensor([0.0, 0.5, 1.0]).double(), 1.0).tolist() == [1.0, 1.0, 1.0]


def test_trained_parameters_of_other_kinds_of_layers_are_refused() -> None:
    model = llama()
    model.module.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(InputError, match="parameters of a LlamaRMSNorm are trained"):
        UnitGradients(model)


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per-layer"])
def test_every_kind_of_clipping_keeps_to_the_clip_norm(clipping: str) -> None:
    torch.manual_seed(0)
    for scale in (0.0, 1e-6, 0.01, 1.0, 1e6, 1e30):
        gradients = {
            "a.weight": torch.randn(40, 30, 5) * scale,
            "a.bias": torch.randn(40, 30) * scale,
            "b.weight": torch.randn(40, 7) * scale * 20,
        }
        norms = torch.zeros(40, dtype=torch.float64)
        for name, factors in unit_factors(gradients, 0.1, clipping).items():
            clipped = (
                gradients[name].double().flatten(1)
                * torch.tensor(factors, dtype=torch.float64)[:, None]
            )
            norms += clipped.square().sum(1)
        assert float(norms.max().sqrt()) <= 0.1
        if scale >= 1:
            assert float(norms.min().sqrt()) > 0.095


def test_automatic_clipping_is_auto_s() -> None:
    gradients = {"w": torch.tensor([[3.0, 4.0], [0.03, 0.04]])}
    long, short = unit_factors(gradients, 2.0, "automatic")["w"]
    assert long == pytest.approx(2 / 5.01)
    assert short == pytest.approx(2 / 0.06)


def test_per_layer_clipping_gives_each_layer_its_part() -> None:
    gradients = {
        "a.weight": torch.tensor([[3.0]]),
        "a.bias": torch.tensor([[4.0]]),
        "b.weight": torch.tensor([[0.1]]),
    }
    factors = unit_factors(gradients, 1.0, "per-layer")
    assert factors["a.weight"] == factors["a.bias"] == [pytest.approx(1 / math.sqrt(2) / 5)]
    assert factors["b.weight"] == [1.0]


@pytest.mark.parametrize("clipping", ["flat", "automatic", "per-layer"])
def test_one_layer_that_is_not_finite_takes_the_unit_out(clipping: str) -> None:
    gradients = {"a.weight": torch.tensor([[1.0]]), "b.weight": torch.tensor([[math.nan]])}
    assert unit_factors(gradients, 1.0, clipping) == {"a.weight": [0.0], "b.weight": [0.0]}
