"""What a plan says of memory and time holds for every length that a record may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from privft.config import RunConfig, parse_config
from privft.sizing import Microbatch, memory
from privft.stages import foreseeing
from privft.training import kernels
from privft.training.basemodel import BaseModel
from privft.training.rehearsal import Pace, Rehearsal
from tests.stages.world import CLASSIFY, RUN

LLAMA = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 32, "intermediate_size": 80,
    "num_hidden_layers": 3, "num_attention_heads": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _still_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def pace(self: Rehearsal) -> Pace:
        return Pace(tokens=self.batch.tokens, fixed=1.0, below=0.1, layer=0.2, number=1e-6)

    monkeypatch.setattr(Rehearsal, "pace", pace)


def base(folder: Path, facts: dict[str, Any]) -> BaseModel:
    """A folder with a config and not one weight."""
    (folder / "config.json").write_text(json.dumps(facts))
    return BaseModel(name="made-up", folder=folder, weights_sha256="", tokenizer_sha256="")


def config(**changes: Any) -> RunConfig:
    text = RUN.format(price="noise_multiplier: 1.0", steps=4)
    plain = parse_config(text, source="test").to_dict()
    return parse_config(json.dumps(plain | changes), source="test")


def takes(folder: Path, given: RunConfig, *, ranks: int = 1) -> foreseeing.Takes:
    found = foreseeing.foresee(given, base(folder, LLAMA), ranks=ranks).takes
    assert found is not None
    return found


def seconds(found: foreseeing.Takes) -> float:
    assert found.seconds_a_step is not None
    return found.seconds_a_step


def test_memory_is_foreseen_for_every_length_up_to_the_longest(tmp_path: Path) -> None:
    given = config()
    setting = foreseeing.setting_of(given, LLAMA, ranks=1)
    assert setting is not None
    most = takes(tmp_path, given).memory.peak
    for length in (8, 16, 24, 32):
        for units in range(1, 50):  # of one record each, or of two
            for rows in (units, 2 * units):
                if rows * length <= given.performance.tokens_per_microbatch:
                    batch = Microbatch(units=units, rows=rows, length=length, labels=length - 1)
                    assert memory(setting, batch).peak <= most


def test_longer_records_take_more_time_and_no_less_memory(tmp_path: Path) -> None:
    short, long = takes(tmp_path, config()), takes(tmp_path, config(max_length=256))
    assert seconds(long) > seconds(short)
    assert long.memory.peak >= short.memory.peak


def test_ranks_share_the_time_and_not_the_memory(tmp_path: Path) -> None:
    one, four = takes(tmp_path, config()), takes(tmp_path, config(), ranks=4)
    assert seconds(one) / 4 < seconds(four) < seconds(one) / 2
    assert four.memory == one.memory


def test_what_ranks_send_each_other_is_said(tmp_path: Path) -> None:
    alone = foreseeing.foresee(config(), base(tmp_path, LLAMA))
    two = foreseeing.foresee(config(), base(tmp_path, LLAMA), ranks=2)
    shared = foreseeing.foresee(config(ranks={"shard_base": True}), base(tmp_path, LLAMA), ranks=2)
    setting = foreseeing.setting_of(config(), LLAMA, ranks=2)
    assert setting is not None
    assert [row[0] for row in alone.rows()] == ["memory", "time"]
    assert [row[0] for row in two.rows()] == ["memory", "time", "wire"]
    assert two.to_dict()["wire_bytes_a_step"] == 8 * setting.trained_numbers + 32
    assert shared.to_dict()["wire_bytes_a_step"] > two.to_dict()["wire_bytes_a_step"]


def test_the_runs_own_options_are_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Rehearsal] = []
    monkeypatch.setattr(Rehearsal, "pace", lambda self: asked.append(self))
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    plain = config().to_dict()
    given = config(
        privacy=plain["privacy"] | {"secure_noise": True},
        training=plain["training"] | {"gradient_checkpointing": True, "optim": "sgd"},
        lora=plain["lora"] | {"lora_dropout": 0.1, "r": 3},
        performance=plain["performance"] | {"threads": 2},
    )
    with pytest.raises(AttributeError):  # there is no pace
        takes(tmp_path, given)
    (rehearsal,) = asked
    setting, spec = rehearsal.setting, rehearsal.spec
    assert spec is not None
    assert (setting.discrete, setting.checkpointing, setting.adam) == (True, True, False)
    assert (spec.lora_dropout, spec.r, threads) == (0.1, 3, [2])
    assert rehearsal.token_budget == given.performance.tokens_per_microbatch


def test_a_run_that_does_not_fit_is_not_rehearsed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreseeing, "_memory_of", lambda device: 1000)
    found = foreseeing.foresee(config(), base(tmp_path, LLAMA))
    assert found.takes is not None
    assert found.takes.memory.peak > 1000
    assert found.to_dict()["seconds_a_step_at_most"] is None
    assert found.to_dict()["seconds_at_most"] is None
    assert "too little memory" in found.rows()[1][1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_without_instructions_for_bfloat16_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(kernels, "multiplies", lambda asked: asked == torch.float32)
    given = config(model=config().to_dict()["model"] | {"dtype": dtype})
    found = foreseeing.foresee(given, base(tmp_path, LLAMA))
    assert found.to_dict()["bfloat16_as_float32"] == (dtype == "bfloat16")
    assert ("multiplies bfloat16 as float32" in found.rows()[1][1]) == (dtype == "bfloat16")


def test_nothing_but_the_config_of_the_model_is_read(tmp_path: Path) -> None:
    takes(tmp_path, config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_unknown_architecture_is_said_to_be_unknown(tmp_path: Path) -> None:
    found = foreseeing.foresee(config(), base(tmp_path, {"model_type": "mamba"}))
    assert found.to_dict() == {"ranks": 1, "known": False}
    assert "not known" in found.rows()[0][1]


def test_layers_that_are_trained_whole_are_said_to_be_unknown(tmp_path: Path) -> None:
    given = config()
    changed = config(lora=given.to_dict()["lora"] | {"modules_to_save": ["lm_head"]})
    assert foreseeing.setting_of(given, LLAMA, ranks=1) is not None
    assert foreseeing.foresee(changed, base(tmp_path, LLAMA)).to_dict()["known"] is False


def test_dropout_takes_more_memory_and_computing_again_takes_less(tmp_path: Path) -> None:
    given = config()
    drops = config(lora=given.to_dict()["lora"] | {"lora_dropout": 0.1})
    again = config(training=given.to_dict()["training"] | {"gradient_checkpointing": True})
    plain = takes(tmp_path, given)
    assert takes(tmp_path, drops).memory.peak > plain.memory.peak
    assert takes(tmp_path, again).memory.peak < plain.memory.peak


def test_a_head_alone_is_foreseen_too(tmp_path: Path) -> None:
    given = parse_config(CLASSIFY.format(lora="null"), source="test")
    facts = LLAMA | {"model_type": "bert", "max_position_embeddings": 64}
    found = foreseeing.foresee(given, base(tmp_path, facts)).to_dict()
    assert found["memory_terms"]["trained"] == 4 * 3 * (32 + 1)
    assert found["memory_terms"]["features"] == 4 * 32 * given.privacy.declared_units
    assert found["seconds_at_most"] == pytest.approx(3 * found["seconds_a_step_at_most"])
