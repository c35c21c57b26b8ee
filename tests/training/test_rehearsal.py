"""A rehearsal tells the parts of a step apart, trains what the run trains, and stays short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privft.modelshape import shape_of
from privft.sizing import AdapterShape, Microbatch, Setting
from privft.training.adapter import LoraSpec
from privft.training.basemodel import BaseModel
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.rehearsal import Rehearsal, _MadeUp, _shortened

CPU = torch.device("cpu")
LLAMA = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 80,
    "num_hidden_layers": 5, "num_attention_heads": 4, "architectures": ["LlamaForCausalLM"],
}  # fmt: skip
BERT = LLAMA | {"model_type": "bert", "architectures": ["BertModel"], "type_vocab_size": 2,
                "max_position_embeddings": 64}  # fmt: skip
BATCH = Microbatch(units=3, rows=6, length=16, labels=15)


def rehearsal(
    folder: Path,
    facts: dict[str, Any] = LLAMA,
    *,
    layers: tuple[int, ...] | None = None,
    **changes: Any,
) -> Rehearsal:
    (folder / "config.json").write_text(json.dumps(facts))
    shape = shape_of(facts)
    assert shape is not None
    head = changes.get("classes") and layers == ()
    adapter = None if head else AdapterShape(rank=2, layers=layers)
    return Rehearsal(
        base=BaseModel(name="made-up", folder=folder, weights_sha256="", tokenizer_sha256=""),
        setting=Setting(shape=shape, adapter=adapter, dtype="float32", **changes),
        spec=None if head else LoraSpec(r=2, layers_to_transform=layers),
        batch=BATCH,
        token_budget=256,
        device=CPU,
    )


def clocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which each part of a step takes a known time."""

    def step(self: Rehearsal, model: TrainedModel, batch: Microbatch | None) -> float:
        trained = trained_parameters(model)
        seconds = 1e-3 * sum(p.numel() for p in trained.values())
        if batch is None:
            return seconds
        names = [n for n, _ in model.module.named_modules() if n.endswith("mlp.up_proj")]
        adapted = sum(any(name in each for each in trained) for name in names)
        return seconds + 7.0 + 2.0 * adapted + 0.5 * (len(names) - adapted)

    monkeypatch.setattr(Rehearsal, "_step_seconds", step)


def test_parts_of_a_step_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch)
    given = rehearsal(tmp_path, layers=(3, 4))
    pace = given.pace()
    assert (pace.fixed, pace.below, pace.layer) == pytest.approx((7.0, 0.5, 2.0))
    assert pace.number == pytest.approx(1e-3)
    numbers = given.setting.trained_numbers
    one = pace.seconds(given.setting, tokens=BATCH.tokens)
    assert one == pytest.approx(7 + 3 * 0.5 + 2 * 2 + 1e-3 * numbers)
    two = pace.seconds(given.setting, tokens=2 * BATCH.tokens)
    assert two - one == pytest.approx(7 + 3 * 0.5 + 2 * 2)


def test_layers_that_all_have_an_adapter_have_none_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(monkeypatch)
    pace = rehearsal(tmp_path).pace()
    assert (pace.fixed, pace.below, pace.layer) == pytest.approx((7.0, 0.0, 2.0))


def test_a_model_of_one_layer_is_rehearsed_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked(monkeypatch)
    given = rehearsal(tmp_path, LLAMA | {"num_hidden_layers": 1})
    pace = given.pace()
    assert pace.seconds(given.setting, tokens=BATCH.tokens) == pytest.approx(
        9.0 + 1e-3 * given.setting.trained_numbers
    )


@pytest.mark.parametrize(
    ("facts", "layers", "changes"),
    [
        (LLAMA, None, {}),
        (LLAMA, (4,), {"checkpointing": True}),
        (LLAMA, None, {"discrete": True, "adam": False}),
        (BERT, (3, 4), {"classes": 3}),
        (BERT, (), {"classes": 3}),
    ],
)
def test_real_steps_are_rehearsed_from_the_config_of_the_model_alone(
    tmp_path: Path, facts: dict[str, Any], layers: tuple[int, ...] | None, changes: dict[str, Any]
) -> None:
    given = rehearsal(tmp_path, facts, layers=layers, **changes)
    assert given.pace().seconds(given.setting, tokens=1000) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_head_meets_no_record_twice(tmp_path: Path) -> None:
    units = _MadeUp(rehearsal(tmp_path, BERT, classes=3).setting, BATCH)
    steps = [units.examples(np.arange(3)) for _ in range(2)]
    records = [e.input_ids for step in steps for unit in step for e in unit.examples]
    assert len(units) == 3
    assert len(set(records)) == len(records) == 12
    assert {len(ids) for ids in records} == {16}
    assert max(map(max, records)) < 97


@pytest.mark.parametrize("operations", [1.0, 1e9, 1e15])
@pytest.mark.parametrize("batch", [BATCH, replace(BATCH, length=4096), replace(BATCH, rows=3)])
def test_a_rehearsal_is_short_and_keeps_units_whole(batch: Microbatch, operations: float) -> None:
    short = _shortened(batch, operations, CPU)
    assert short.tokens <= 1024
    assert short.rows % short.units == 0
    assert short.rows // short.units == batch.rows // batch.units
    assert short.length <= batch.length
