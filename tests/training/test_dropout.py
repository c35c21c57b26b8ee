"""Masks belong to a step, a unit, a record and a layer; nothing drops where nothing should."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from privft.errors import IntegrityError
from privft.randomness import KeyedStreams
from privft.training.adapter import LoraSpec, adapter_files, attach_language_model, load_adapter
from privft.training.clipping import UnitGradients
from privft.training.dropout import Masks, UnitDropout, dropout_layers, masked
from privft.training.examples import UnitExamples
from privft.training.loop import Optimisation, Performance, train
from privft.training.losses import LanguageModel, trained_parameters
from privft.training.scoring import unit_losses
from tests.training.test_clipping import one_by_one, randomise
from tests.training.tiny import ListUnits, float64_norms, mechanism, text_units, tiny_llama

STREAMS = KeyedStreams(bytes(range(32)))
UNITS = text_units([[5, 9, 3], [12], [21, 17], [8], [2], [33], [7, 7]])


def model(rate: float = 0.3, dtype: torch.dtype = torch.float64) -> LanguageModel:
    spec = LoraSpec(r=2, lora_dropout=rate)
    return attach_language_model(tiny_llama(dtype=dtype), spec, seed=1, pad_id=0)


class ByHand(nn.Module):
    """Dropout of one record, written out from the description in `dropout`."""

    def __init__(self, layer: str, rate: float) -> None:
        super().__init__()
        self.layer, self.level = layer, round(rate * 65536)
        self.step, self.unit, self.record = 0, "", 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        assert inputs.shape[0] == 1, "one record at a time"
        stream = STREAMS.stream(
            "dropout", step=self.step, label=f"{self.record}/{self.layer}/{self.unit}"
        )
        drawn = np.frombuffer(stream.bytes(2 * inputs.numel()), dtype="<u2").reshape(inputs.shape)
        return inputs * torch.from_numpy(drawn >= self.level) / (1 - self.level / 65536)


def by_hand(reference: LanguageModel, rate: float) -> list[ByHand]:
    """Put such dropout in place of the model's own."""
    layers = []
    for name, module in list(reference.module.named_modules()):
        if name.endswith(".lora_dropout"):
            layers.append(ByHand(name.removesuffix(".lora_dropout"), rate))
            module["default"] = layers[-1]
    return layers


def test_a_unit_has_the_gradient_of_one_by_one_backward_with_the_same_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    float64_norms(monkeypatch)
    ours, reference = model(), model()
    randomise(ours)
    randomise(reference)
    layers = by_hand(reference, 0.3)
    assert len(layers) == 14
    gradients_of = UnitGradients(ours).at(STREAMS, 4)
    plain = UnitGradients(model(0.0))
    for unit in UNITS:
        expected = {n: torch.zeros_like(p) for n, p in trained_parameters(reference).items()}
        for record, example in enumerate(unit.examples):
            for layer in layers:
                layer.step, layer.unit, layer.record = 4, unit.key, record
            alone = UnitExamples(key=unit.key, examples=(example,))
            for name, value in one_by_one(reference, alone).items():
                expected[name] += value / len(unit.examples)
        got = gradients_of([unit])
        apart = 0.0
        without = plain([unit])
        for name, value in expected.items():
            torch.testing.assert_close(got[name][0], value, rtol=1e-9, atol=1e-12)
            apart += float((without[name][0] - value).abs().max())
        assert apart > 1e-3, "the masks must matter"


def test_masks_are_those_of_the_step_the_unit_the_record_and_the_layer() -> None:
    unit = UnitExamples(key="u", examples=UNITS[0].examples)
    other = UnitExamples(key="v", examples=UNITS[0].examples)

    def mask(units: list[UnitExamples], step: int = 0, layer: str = "q") -> torch.Tensor:
        masks = Masks(units, streams=STREAMS, step=step)
        return masks.dropped(layer, level=20000, shape=(16, 8))

    seen = mask([unit])
    assert seen.shape == (3, 16, 8)
    assert torch.equal(mask([other, unit])[3:], seen), "never the row"
    assert torch.equal(mask([unit, other])[:3], seen)
    longer = Masks([unit], streams=STREAMS, step=0).dropped("q", level=20000, shape=(24, 8))
    assert torch.equal(longer[:, :16], seen), "never the padding"
    different = [seen[0], seen[1], seen[2], mask([other])[0], mask([unit], 1)[0]]
    different.append(mask([unit], layer="k")[0])
    for place, one in enumerate(different):
        assert not any(torch.equal(one, another) for another in different[:place])


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_a_mask_drops_its_share_and_the_rest_makes_up_for_it(rate: float) -> None:
    layer = UnitDropout(rate, layer="q")
    unit = UnitExamples(key="u", examples=UNITS[1].examples)
    ones = torch.ones(1, 500, 400, dtype=torch.float64)
    with masked([layer], Masks([unit], streams=STREAMS, step=0)):
        dropped = layer(ones)
    count = ones.numel()
    zeros = int((dropped == 0).sum())
    assert abs(zeros - count * rate) < 5 * (count * rate * (1 - rate)) ** 0.5 + count / 65536
    assert float(dropped.max()) == pytest.approx(1 / (1 - rate), rel=2e-4)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.03)
    assert torch.equal(layer(ones), ones), "nothing drops afterwards"


def test_scoring_drops_nothing() -> None:
    with_dropout, without = model(0.9), model(0.0)
    randomise(with_dropout)
    randomise(without)
    assert (unit_losses(with_dropout, UNITS) == unit_losses(without, UNITS)).all()


def test_gradients_without_a_step_are_refused_where_there_is_dropout() -> None:
    with pytest.raises(ValueError, match="expected streams and a step"):
        UnitGradients(model())([UNITS[0]])


def test_no_other_dropout_is_left_in_the_model_and_the_release_states_the_rate() -> None:
    trained = model(0.25)
    inner = [m for n, m in trained.module.named_modules() if ".lora_dropout." in n]
    assert {type(layer) for layer in inner} == {UnitDropout}
    assert len({layer.layer for layer in dropout_layers(trained.module)}) == len(inner) == 14
    files = adapter_files(trained, base_name="tiny")
    assert json.loads(files["adapter_config.json"])["lora_dropout"] == 0.25
    again = load_adapter(tiny_llama(dtype=torch.float64), files, pad_id=0)
    assert len(dropout_layers(again.module)) == 14


class Killed(Exception):
    pass


def run(journal, *, save=lambda state: None, resume=None):  # type: ignore[no-untyped-def]
    trained = model(0.5, torch.float32)
    train(
        trained,
        units=ListUnits(UNITS),
        canaries=[],
        mechanism=mechanism(noise_multiplier=1e-3),
        max_records_per_unit=2,
        optimisation=Optimisation(learning_rate=1e-2),
        performance=Performance(token_budget=64, checkpoint_every=2),
        streams=STREAMS,
        context={},
        journal=journal,
        save=save,
        resume=resume,
    )
    return {n: p.detach().clone() for n, p in trained_parameters(trained).items()}


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_resumed_run_drops_what_the_killed_one_dropped(stop_at: int) -> None:
    digests: dict[int, str] = {}
    saved: list[bytes] = []

    def journal(step: int, digest: str) -> None:
        if digests.setdefault(step, digest) != digest:
            raise IntegrityError(f"step {step} was journalled with another digest")

    def journal_then_die(step: int, digest: str) -> None:
        journal(step, digest)
        if step == stop_at:
            raise Killed

    whole = run(lambda step, digest: None)
    with pytest.raises(Killed):
        run(journal_then_die, save=saved.append)
    resumed = run(journal, resume=saved[-1] if saved else None)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert sorted(digests) == list(range(6))
