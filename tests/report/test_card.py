"""The model card: readable by the hub, safe in Markdown, and true to the statement."""

from __future__ import annotations

import ast
import re
from typing import Any

import yaml

from privft.report import card, statement
from tests.report.made_up import hexes, made_up_facts

HEAD: dict[str, Any] = {
    "file": "head.safetensors",
    "weight": "head.weight",
    "bias": "head.bias",
    "pooling": "mean",
    "feature_scale": 10.0,
    "max_length": 64,
    "labels": ["card lost", 'odd "label"\\'],
}


def classifier_facts() -> dict[str, Any]:
    facts = made_up_facts()
    facts["run"]["task"] = "sequence-classification"
    facts["model"]["head"] = dict(HEAD)
    facts["model"]["adapter_files"]["head.safetensors"] = hexes("head.safetensors")
    return facts


def metadata_of(text: str) -> dict[str, Any]:
    assert text.startswith("---\n")
    loaded: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return loaded


def test_metadata_is_what_the_hub_reads() -> None:
    metadata = metadata_of(card.render_card(statement.build(made_up_facts())))
    assert metadata["base_model"] == "SmolLM2-135M-Instruct"
    assert metadata["library_name"] == "peft"
    assert metadata["pipeline_tag"] == "text-generation"
    assert metadata["license"] == "apache-2.0"
    assert metadata["privacy"]["epsilon"] == 1.9018042357527423
    assert "differential-privacy" in metadata["tags"]


def test_python_lines_parse_whatever_the_names() -> None:
    for facts in (made_up_facts(), classifier_facts()):
        facts["model"]["name"] = 'a"); import os; os.system("x") #'
        text = card.render_card(statement.build(facts))
        (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
        tree = ast.parse(code)
        assert "os" not in {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def test_the_card_says_how_prompts_were_put_in_training() -> None:
    facts = made_up_facts()
    assert "def question" not in card.render_card(statement.build(facts))
    facts["config"]["body"]["instruction"] = 'Sum "it" up.'
    (code,) = re.findall(
        r"```python\n(.*?)```", card.render_card(statement.build(facts)), flags=re.DOTALL
    )
    (function,) = (node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))
    asked = [node.value for node in ast.walk(function) if isinstance(node, ast.Constant)]
    assert 'Sum "it" up.' in asked


def test_names_cannot_break_out_of_their_line() -> None:
    facts = made_up_facts()
    facts["data"]["dataset"] = facts["run"]["dataset"] = "<script>x</script> | [a](http://b) `c`"
    facts["limits"] = ["# not a heading", "first\n\n---\n# second"]
    text = card.render_card(statement.build(facts))
    assert "<script" not in text
    assert "[a](" not in text
    assert not re.search(r"^-? ?# (not|second)", text, flags=re.MULTILINE)


def test_yaml_block_survives_odd_names() -> None:
    facts = made_up_facts()
    facts["model"]["name"] = "---: {evil: [yes"
    assert metadata_of(card.render_card(statement.build(facts)))["base_model"] == "---: {evil: [yes"


def test_failed_run_is_not_carded_as_passed() -> None:
    facts = made_up_facts()
    facts["audit"] |= {"verdict": "failed", "findings": ["control-failed"]}
    text = card.render_card(statement.build(facts))
    assert "Not passed" in text
    assert "audit suite standard failed" in text


def test_licence_note_names_the_base_model_and_its_terms() -> None:
    text = card.render_licence_note(statement.build(made_up_facts()))
    assert "SmolLM2-135M-Instruct" in text
    assert "apache-2.0" in text
