"""Public texts for canaries: behind those that are evaluated, all of them or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privft.config import parse_config
from privft.stages.modelling import labelled_texts
from privft.vault.fields import FieldMap
from tests.stages.world import CLASSIFY, intent_rows

CONFIG = parse_config(CLASSIFY.format(lora="null"), source="test")


@pytest.mark.parametrize(("rows", "count"), [(30, 10), (29, 0), (5, 0)])
def test_labelled_texts_are_those_behind_the_evaluated_ones(
    tmp_path: Path, rows: int, count: int
) -> None:
    made = intent_rows()[:rows]
    text = "".join(json.dumps(row) + "\n" for row in made)
    (tmp_path / "intents.jsonl").write_text(text)
    fields = FieldMap(text="text", label="intent")
    found = labelled_texts(CONFIG, fields, relative_to=tmp_path, count=10)
    assert CONFIG.evaluation.max_records == 20
    assert found == [(row["text"], row["intent"]) for row in made[20 : 20 + count]]
