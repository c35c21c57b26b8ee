"""Public texts for canaries: behind those that are evaluated, all of them or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from privft.config import parse_config
from privft.errors import UsageError
from privft.stages.modelling import Workbench, find_base, labelled_texts, write_merged
from privft.training.adapter import adapter_files
from privft.training.clipping import UnitGradients
from privft.training.quantised import QuantisedLinear
from privft.vault.fields import FieldMap
from tests.stages.world import CLASSIFY, RUN, base, intent_rows

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


def test_a_quantised_base_is_what_is_trained_and_what_is_scored(tmp_path: Path) -> None:
    text = RUN.format(price="noise_multiplier: 1.0", steps=2)
    text = text.replace("name_or_path: llama", "name_or_path: llama, quantization: 8-bit")
    config = parse_config(text, source="test")
    found = find_base(config, relative_to=base().folder)
    workbench = Workbench.of(config, found)
    fresh = workbench.fresh()
    before, after = workbench.before_and_after(adapter_files(fresh, base_name="llama"))
    for model in (fresh, before, after):
        layers = [m for m in model.module.modules() if isinstance(m, QuantisedLinear)]
        assert len(layers) == 7 * len(fresh.module.get_base_model().model.layers)
    unit = workbench.encode({"unit": "u", "records": [{"text": "bababa dedeba fifiba"}]})
    assert all(bool(g.any()) for n, g in UnitGradients(fresh)([unit]).items() if "lora_B" in n)
    with pytest.raises(UsageError, match="8-bit base"):
        write_merged(config, found, {}, tmp_path)
