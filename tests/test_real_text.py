"""The whole path on real text, reduced: the benchmark's own walk, and the release in plain tools.

`benchmarks/real_text.py` types the commands, each in a process of its own, and ends at the first
that fails; here it walks over a part of each corpus.  What the signed report says was gained is
then found again with plain transformers, peft and torch.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from privft.config import load_config
from privft.policy import load_policy
from privft.training import basemodel
from tests.conftest import SHARED

# Loaded by its path: some installed packages bring a `benchmarks` of their own.
_SPEC = importlib.util.spec_from_file_location(
    "real_text", Path(__file__).resolve().parents[1] / "benchmarks" / "real_text.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
real_text = importlib.util.module_from_spec(_SPEC)
sys.modules["real_text"] = real_text
_SPEC.loader.exec_module(real_text)

DATA = SHARED / "data"
PRESENT = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is absent")
# peft 0.21 asks transformers 5 for a name that it deprecates
PLAIN_PEFT = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def rows_of(task: str, name: str) -> list[dict[str, str]]:
    with (DATA / task / name).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def short(rows: list[dict[str, str]], *, characters: int) -> list[dict[str, str]]:
    """The rows whose dialogue and note have at most so many characters together."""
    return [r for r in rows if len(r["dialogue"]) + len(r["section_text"]) <= characters]


@pytest.mark.parametrize("name", sorted(real_text.TASKS))
def test_recipes_are_valid_and_within_their_policy(name: str) -> None:
    config = load_config(real_text.RECIPES / f"{name}.yaml")
    policy = load_policy(real_text.RECIPES / "open-data.yaml")
    privacy = config.privacy
    assert config.dataset == config.name == name
    assert privacy.target_epsilon is not None
    assert privacy.target_epsilon <= policy.max_epsilon_per_run.value
    assert privacy.delta_value * privacy.declared_units < policy.delta_factor.value
    assert privacy.declared_units >= policy.min_declared_units.value


@PRESENT
def test_the_recipe_for_banking77_lists_every_label() -> None:
    known = {row["category"] for row in rows_of("banking77", "train.csv")}
    assert set(real_text.recipe(real_text.TASKS["banking77"], {})["labels"]) == known


def card_code(released: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> dict[str, Any]:
    """What the model card's lines of Python leave behind, run in the released folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (released / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(released)
    name = real_text.recipe(real_text.TASKS[task], {})["model"]["name_or_path"]
    os.symlink(basemodel.find(name).folder, name)  # where the card says that the base model is
    given: dict[str, Any] = {}
    exec(code, given)  # noqa: S102
    return given


def plain_losses(given: dict[str, Any], rows: list[dict[str, str]]) -> list[float]:
    """Mean loss per completion token of each row, asked as the card says; plain peft."""
    tokenizer, model = given["tokenizer"], given["model"].eval()
    losses = []
    for row in rows:
        before, completion = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (given["question"](row["dialogue"]), row["section_text"])
        )
        ids = torch.tensor([[*before, *completion, tokenizer.eos_token_id]])
        labels = ids.clone()
        labels[0, : len(before)] = -100
        with torch.no_grad():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    return losses


@pytest.mark.slow
@PRESENT
@PLAIN_PEFT
def test_dialogues_to_notes_from_rows_to_a_release_that_plain_peft_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = tmp_path / "data" / "mts-dialog" / "TrainingSet.csv", "test.csv"
    write(train, short(rows_of("mts-dialog", "TrainingSet.csv"), characters=500)[:400])
    held_out = short(rows_of("mts-dialog", "ValidationSet.csv"), characters=500)
    write(train.with_name(test), held_out)
    row = real_text.walk(
        real_text.TASKS["mts-dialog"],
        data=tmp_path / "data",
        folder=tmp_path,
        changes={
            "model": {"dtype": "float32"},
            "max_length": 288,
            "privacy": {"declared_units": 400, "expected_batch_size": 32, "max_steps": 6},
            "evaluation": {"public_file": test},
        },
    )
    assert row["audit"]["verdict"] == "passed"
    assert 0 < row["epsilon"] <= 8
    assert row["n"] == len(held_out)
    assert row["interval"][1] < -0.05, row

    given = card_code(tmp_path / "released", monkeypatch, "mts-dialog")
    losses = plain_losses(given, held_out)
    assert sum(losses) / len(losses) == pytest.approx(row["trained"], abs=2e-3)


@pytest.mark.slow
@PRESENT
@PLAIN_PEFT
def test_messages_to_intents_from_rows_to_a_release_that_plain_torch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = tmp_path / "data" / "banking77" / "train.csv", "test.csv"
    write(train, rows_of("banking77", "train.csv")[::5][:2000])  # rows are sorted by intent
    held_out = rows_of("banking77", "test.csv")[::10]
    write(train.with_name(test), held_out)
    row = real_text.walk(
        real_text.TASKS["banking77"],
        data=tmp_path / "data",
        folder=tmp_path,
        changes={
            "privacy": {"declared_units": 2000, "expected_batch_size": 250, "max_steps": 12},
            "evaluation": {"public_file": test},
        },
    )
    assert row["audit"]["verdict"] == "passed"
    assert 0 < row["epsilon"] <= 8
    assert row["n"] == len(held_out)
    # one intent in 77 by chance
    assert row["base"] < 0.05
    assert row["trained"] > 0.3, row

    given = card_code(tmp_path / "released", monkeypatch, "banking77")
    with torch.no_grad():
        found = given["logits"]([each["text"] for each in held_out]).argmax(-1).tolist()
    right = [
        given["labels"][i] == each["category"] for i, each in zip(found, held_out, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(row["trained"], abs=0.011)
