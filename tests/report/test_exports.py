"""Exports: drafts that say so, true to the statement, and that never claim compliance."""

from __future__ import annotations

import re

import pytest
import yaml

from privft.errors import UsageError
from privft.report import statement
from privft.report.exports import PACKS, TODO, export
from tests.report.made_up import made_up_facts
from tests.report.test_page import MARKUP


@pytest.mark.parametrize("name", PACKS)
def test_export_is_a_dated_draft_with_the_numbers_of_the_statement(name: str) -> None:
    built = statement.build(made_up_facts())
    text = export(built, name)
    plain = " ".join(text.split())
    assert "DRAFT for a person to finish" in plain
    assert PACKS[name].as_of in plain
    assert TODO in text
    assert statement.digest(built) in text
    assert "1.91" in text or "1.9018042357527423" in text
    assert text == export(built, name)


@pytest.mark.parametrize("name", PACKS)
def test_export_never_claims_compliance(name: str) -> None:
    text = export(statement.build(made_up_facts()), name).lower()
    assert not re.search(r"\b(complies|compliant|conforms|certified|in compliance)\b", text)


@pytest.mark.parametrize("name", [name for name in PACKS if name != "registry"])
def test_markup_in_names_stays_text(name: str) -> None:
    facts = made_up_facts()
    facts["model"]["name"] = facts["run"]["actor"] = facts["policy"]["name"] = MARKUP
    assert "<script" not in export(statement.build(facts), name)


def test_registry_entry_is_yaml_of_the_registrys_layout() -> None:
    entry = yaml.safe_load(export(statement.build(made_up_facts()), "registry"))
    assert list(entry) == ["url_slug", "status", "tier", "deployment"]
    assert entry["deployment"]["privacy_loss"]["privacy_parameters"] == {
        "epsilon": 1.9018042357527423,
        "delta": 1e-5,
    }
    assert entry["deployment"]["model"]["model_name"] == "Central"


def test_open_hazards_and_failures_are_not_left_out() -> None:
    facts = made_up_facts()
    facts["policy"]["checks"][0]["ok"] = False
    built = statement.build(facts)
    assert "| NO |" in export(built, "dpia")
    assert "Not passed" in export(built, "annex-iv")
    assert "Floating-point noise has gaps" in export(built, "model-risk")


def test_unknown_export_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        export(statement.build(made_up_facts()), "iso")
    assert "annex-iv" in str(caught.value.hint)
