"""Scores of units: in their order, the same one by one, and the head's own learning rate."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.examples import UnitExamples
from privft.training.loop import Optimisation, make_optimizer
from privft.training.losses import Classifier, trained_parameters
from privft.training.scoring import unit_accuracies, unit_losses
from tests.training.tiny import label_units, text_units, tiny_bert, tiny_llama

LENGTHS = [[5], [20, 9], [7], [12, 12, 3], [40], [6]]


def classifier() -> Classifier:
    model = attach_classifier(tiny_bert(), LoraSpec(r=2), seed=0, pad_id=0, labels=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        model.head.weight.copy_(torch.randn(model.head.weight.shape, generator=generator))
    return model.double()


def test_losses_come_in_the_order_of_units_and_as_if_each_were_alone() -> None:
    model = attach_language_model(tiny_llama(), LoraSpec(r=2), seed=0, pad_id=0)
    units = text_units(LENGTHS)
    together = unit_losses(model, units, token_budget=64)
    alone = np.array([unit_losses(model, [unit])[0] for unit in units])
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert len(set(together)) == len(units)


def test_accuracy_of_a_unit_is_the_share_of_its_records_that_are_right() -> None:
    model, units = classifier(), label_units(LENGTHS, labels=3)
    expected = []
    for unit in units:
        right = [
            int(model(torch.tensor([e.input_ids]), torch.ones(1, len(e.input_ids))).argmax())
            == e.labels[0]
            for e in unit.examples
        ]
        expected.append(float(np.mean(right)))
    found = unit_accuracies(model, units, token_budget=64)
    np.testing.assert_array_equal(found, expected)
    assert 0 < found.mean() < 1


def test_a_unit_without_examples_has_no_score() -> None:
    units = [*label_units([[5]], labels=3), UnitExamples(key="bare", examples=())]
    assert np.isnan(unit_accuracies(classifier(), units)).tolist() == [False, True]
    assert np.isnan(unit_losses(classifier(), units)).tolist() == [False, True]


def test_the_head_has_its_own_learning_rate_where_one_is_given() -> None:
    def rates(plan: Optimisation) -> dict[str, float]:
        parameters = trained_parameters(classifier())
        names: dict[nn.Parameter, str] = {p: name for name, p in parameters.items()}
        groups = make_optimizer(parameters, plan).param_groups
        return {names[p]: group["lr"] for group in groups for p in group["params"]}

    own = rates(Optimisation(learning_rate=1e-3, head_learning_rate=0.03))
    assert {name: rate for name, rate in own.items() if rate == 0.03}.keys() == {
        "head.weight",
        "head.bias",
    }
    assert set(own.values()) == {1e-3, 0.03}
    assert set(rates(Optimisation(learning_rate=1e-3)).values()) == {1e-3}
