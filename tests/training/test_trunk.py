"""Two models score the same texts: each its own scores, and what both have in common runs once."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.losses import LanguageModel, TrainedModel, trained_parameters
from privft.training.recompute import transformer_layers
from privft.training.scoring import losses_of_both, unit_losses
from privft.training.trunk import Trunk
from tests.training.tiny import label_units, text_units, tiny_bert, tiny_llama

UPPER = LoraSpec(r=2, layers_to_transform=[1])
TEXTS = text_units([[5], [20, 9], [7], [40], []])
LABELS = label_units([[5], [20, 9], [7], []], labels=3)


def pair(base: nn.Module, spec: LoraSpec | None) -> tuple[TrainedModel, TrainedModel]:
    """A model with a new adapter or head, and one that was moved, on the tensors of one base."""
    tensors: dict[int, Any] = {id(t): t for t in (*base.parameters(), *base.buffers())}
    models: list[TrainedModel] = []
    for module in (base, copy.deepcopy(base, tensors)):
        if hasattr(base, "lm_head"):
            assert spec is not None
            models.append(attach_language_model(module, spec, seed=0, pad_id=0))
        else:
            models.append(attach_classifier(module, spec, seed=0, pad_id=0, labels=3).double())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained_parameters(models[1]).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return models[0], models[1]


@contextmanager
def runs_of_layers(*models: TrainedModel) -> Iterator[Counter[tuple[int, int]]]:
    """How often each layer of each model is computed, by (model, layer)."""
    runs: Counter[tuple[int, int]] = Counter()

    def count(key: tuple[int, int], *unused: Any) -> None:
        runs[key] += 1

    hooks = [
        layer.self_attn.register_forward_pre_hook(partial(count, (which, place)))  # type: ignore[union-attr, operator]
        for which, model in enumerate(models)
        for place, layer in enumerate(transformer_layers(model.module))
    ]
    yield runs
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("spec", [UPPER, LoraSpec(r=2)], ids=["upper layer", "all layers"])
def test_each_model_of_text_gets_its_own_scores(spec: LoraSpec) -> None:
    before, after = pair(tiny_llama(), spec)
    first, second = losses_of_both(before, after, TEXTS, token_budget=64)
    np.testing.assert_array_equal(first, unit_losses(before, TEXTS, token_budget=64))
    np.testing.assert_array_equal(second, unit_losses(after, TEXTS, token_budget=64))
    assert (first != second)[:4].all()
    assert np.isnan([first[4], second[4]]).all()


@pytest.mark.parametrize("spec", [UPPER, None], ids=["upper layer", "a head alone"])
def test_each_classifier_gets_its_own_scores(spec: LoraSpec | None) -> None:
    before, after = pair(tiny_bert(), spec)
    first, second = losses_of_both(before, after, LABELS)
    np.testing.assert_array_equal(first, unit_losses(before, LABELS))
    np.testing.assert_array_equal(second, unit_losses(after, LABELS))
    assert (first != second)[:3].all()


def test_layers_in_common_run_once() -> None:
    before, after = pair(tiny_llama(), UPPER)
    with runs_of_layers(before, after) as runs:
        losses_of_both(before, after, TEXTS[:1])
    assert runs == {(0, 0): 1, (0, 1): 1, (1, 1): 1}


def test_layers_of_equal_values_that_are_not_the_same_tensors_are_not_in_common() -> None:
    before, _ = pair(tiny_llama(), UPPER)
    _, after = pair(tiny_llama(), UPPER)
    with runs_of_layers(before, after) as runs:
        losses_of_both(before, after, TEXTS[:1])
    assert runs == {(0, 0): 1, (0, 1): 1, (1, 0): 1, (1, 1): 1}


def test_a_trained_embedding_makes_the_second_model_run_by_itself() -> None:
    spec = LoraSpec(r=2, layers_to_transform=[1], modules_to_save=["embed_tokens"])
    before, after = pair(tiny_llama(), spec)
    with runs_of_layers(before, after) as runs:
        first, second = losses_of_both(before, after, TEXTS)
    assert runs[1, 0] == runs[1, 1] == runs[0, 0]
    np.testing.assert_array_equal(first, unit_losses(before, TEXTS))
    np.testing.assert_array_equal(second, unit_losses(after, TEXTS))


def test_afterwards_the_models_are_what_they_were() -> None:
    before, after = pair(tiny_llama(), UPPER)
    with pytest.raises(RuntimeError, match="broken off"):
        _broken_off(before, after)
    for model in (before, after):
        assert not any("forward" in vars(layer) for layer in transformer_layers(model.module))


def _broken_off(before: TrainedModel, after: TrainedModel) -> None:
    trunk = Trunk(before.module, after.module)
    with trunk.kept(), trunk.handed():
        raise RuntimeError("broken off")


@pytest.mark.parametrize("label", [0, 1])
def test_a_record_is_written_when_every_label_has_the_largest_logit(label: int) -> None:
    model = attach_language_model(tiny_llama(), LoraSpec(r=2), seed=0, pad_id=0)
    assert isinstance(model, LanguageModel)
    (example,) = TEXTS[0].examples
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        chosen = model.module(input_ids=ids).logits[0].argmax(-1).tolist()
    labels = [-100, *chosen[:-1]]
    if label:
        labels[2] = (labels[2] + 1) % 7
    told = type(example)(input_ids=example.input_ids, labels=tuple(labels))
    with torch.no_grad():
        assert model.writes([told], 8).tolist() == [not label]


def test_of_two_largest_logits_the_first_is_written() -> None:
    model = attach_language_model(tiny_llama(), LoraSpec(r=2), seed=0, pad_id=0)
    (example,) = TEXTS[0].examples
    with torch.no_grad():
        model.output.weight.zero_()  # type: ignore[union-attr, operator]
        answers = [
            model.writes(
                [type(example)(input_ids=example.input_ids, labels=(-100, *[label] * 4))], 8
            )
            for label in (0, 1)
        ]
    assert [answer.tolist() for answer in answers] == [[True], [False]]
