"""A head on a frozen encoder: what is remembered of a record changes the speed and no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from privft.randomness import KeyedStreams
from privft.training.adapter import LoraSpec, attach_classifier
from privft.training.clipping import UnitGradients
from privft.training.examples import UnitExamples
from privft.training.loop import Optimisation, Performance, clipped_sum, train
from privft.training.losses import Classifier, trained_parameters
from tests.training.tiny import ListUnits, label_units, mechanism, tiny_bert

LENGTHS = [[5], [20, 9], [7], [12, 12, 3], [40], [6], [5], [5], [8, 8], [21]]


def head_alone(*, lora: bool = False) -> Classifier:
    spec = LoraSpec(r=2) if lora else None
    return attach_classifier(tiny_bert(dtype=torch.float32), spec, seed=0, pad_id=0, labels=3)


def encoded_rows(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each run of the encoder had, from now on."""
    rows: list[int] = []
    own = model.encoder.forward

    def forward(*, input_ids: torch.Tensor, **rest: Any) -> Any:
        rows.append(len(input_ids))
        return own(input_ids=input_ids, **rest)

    monkeypatch.setattr(model.encoder, "forward", forward)
    return rows


def trained(model: Classifier, units: list[UnitExamples]) -> list[torch.Tensor]:
    train(
        model,
        units=ListUnits(units),
        canaries=[],
        mechanism=mechanism(steps=6, sampling_probability=0.6, expected_batch_size=6.0),
        max_records_per_unit=2,
        optimisation=Optimisation(learning_rate=0.05),
        performance=Performance(token_budget=48),
        streams=KeyedStreams(bytes(32)),
        context={},
        journal=lambda step, digest: None,
        save=lambda state: None,
    )
    return [p.detach().clone() for p in trained_parameters(model).values()]


@pytest.mark.parametrize("kept_records", [0, 3, 1000])
def test_a_run_has_the_same_bits_however_much_is_remembered(kept_records: int) -> None:
    units = label_units(LENGTHS, labels=3)
    without, model = head_alone(), head_alone()
    without.KEPT_BYTES = 0
    model.KEPT_BYTES = kept_records * 4 * 16
    for one, other in zip(trained(without, units), trained(model, units), strict=True):
        assert torch.equal(one, other)
    assert len(model._kept) <= kept_records


def test_a_record_goes_through_the_encoder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    units = label_units(LENGTHS, labels=3)
    model = head_alone()
    rows = encoded_rows(model, monkeypatch)
    trained(model, units)
    assert 0 < sum(rows) <= sum(len(unit) for unit in LENGTHS)


def test_the_same_tokens_in_another_length_are_another_record() -> None:
    """Bits may depend on the padded length, which is the unit's own."""
    short, long = label_units([[5], [5, 40]], labels=3)
    first = short.examples[0]
    wide = UnitExamples(key="wide", examples=(first, long.examples[1]))
    model = head_alone()
    gradients_of = UnitGradients(model)
    clipped_sum(gradients_of, [short, wide], clip_norm=1.0, token_budget=64)
    assert len(model._kept) == 3


def test_an_encoder_that_is_trained_is_run_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head_alone(lora=True)
    units = label_units(LENGTHS, labels=3)
    trained(model, units)
    assert not model._kept
