"""Exports: drafts that say so, true to the statement, and that never claim compliance."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from privft.errors import UsageError
from privft.report import registry, statement
from privft.report.exports import PACKS, TODO, export
from tests.report.made_up import made_up_facts
from tests.report.test_page import MARKUP, waived_facts


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


# The registry's schema (github.com/opendp/deployments-registry-data, the file
# schemas/deployments-schema.yaml) at the commit that `registry.SCHEMA_COMMIT` names, restated in
# short: the fields of each section, those that it requires marked with "!", and the type of each.
# "word(...)" is an enumeration.  The original has descriptions beside them, and one more section of
# `administrative`, `evidence_sources`, which the export does not write.
REGISTRY_COMMIT = "057e5d81cf60150dd3307e0cf4504b957802fb3b"
SECTORS = "Technology|Healthcare|Education|Government|Energy|Finance"
REGISTRY: dict[str, Any] = {
    "url_slug!": "string",
    "deployment!": {
        "basic!": {
            "name!": "string",
            "data_curators!": [
                {
                    "data_curator_name!": "string",
                    "data_curator_type!": "word(Government|Industry|Nonprofit)",
                }
            ],
            "description!": "string",
            "intended_use!": "string",
            "data_product_type!": "word(Summary statistics|Machine learning model|Dataset|"
            "Synthetic data|Interactive API|SQL queries)",
            "data_product_region!": "string",
            "data_product_sector": f"word({SECTORS})",
            "publication_date!": "date",
        },
        "dp_variant": {
            "variant_name": "word(Pure DP|Approximate DP|Zero-concentrated DP|Renyi DP|Custom)",
            "data_domain": "string",
            "unprotected_quantities": "string",
        },
        "privacy_loss": {
            "privacy_unit": "string",
            "privacy_unit_details": "string",
            "number_of_privacy_units": "integer",
            "privacy_parameters": {"epsilon": "number", "delta": "number|string", "rho": "number"},
            "privacy_parameters_details": "any",
        },
        "deployment_model": {
            "model_name": "word(Local|Central|Shuffle|Federated|Varies)",
            "model_name_details": "string",
            "trust_assumptions": "string",
            "actors": "any",
            "release_type": "word(One release|Many releases)",
            "release_type_details": "string",
            "data_source_type": "word(Static|Dynamic)",
            "data_source_type_details": "string",
            "access_type": "word(Interactive|Non-interactive)",
            "access_type_details": "string",
        },
        "implementation": {
            "preprocessing_and_hyperparameter_tuning": "string",
            "mechanisms": "string",
            "composition": "string",
            "post_processing": "string",
            "justification": "string",
            "utility": "any",
            "additional_information": "any",
        },
        "administrative!": {
            "status!": "word(Converted|Draft|Pending|Changes Required|Approved|"
            "Approved (Update Requested)|Approved (Pending))",
            "registry_authors!": ["string"],
            "tier!": "tier",
        },
    },
}


def as_schema(short: Any) -> dict[str, Any]:
    """The JSON schema that a short form stands for."""
    if isinstance(short, dict):
        return {
            "type": "object",
            "additionalProperties": False,
            "required": [key[:-1] for key in short if key.endswith("!")],
            "properties": {key.rstrip("!"): as_schema(value) for key, value in short.items()},
        }
    if isinstance(short, list):
        return {"type": "array", "minItems": 1, "items": as_schema(short[0])}
    if short.startswith("word("):
        return {"type": "string", "enum": short[5:-1].split("|")}
    plain: dict[str, dict[str, Any]] = {
        "any": {},
        "date": {"type": "string", "format": "date"},
        "tier": {"type": "integer", "enum": [1, 2, 3]},
    }
    return plain[short] if short in plain else {"type": short.split("|")}


VALIDATOR = jsonschema.Draft7Validator(
    as_schema(REGISTRY), format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
)


@pytest.fixture
def entry() -> dict[str, Any]:
    text = export(statement.build(made_up_facts()), "registry")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_registry_entry_fits_the_published_schema(entry: dict[str, Any]) -> None:
    assert registry.SCHEMA_COMMIT == REGISTRY_COMMIT
    VALIDATOR.check_schema(VALIDATOR.schema)
    assert [error.message for error in VALIDATOR.iter_errors(entry)] == []
    assert entry["deployment"]["privacy_loss"]["privacy_parameters"] == {
        "epsilon": 1.9018042357527423,
        "delta": 1e-5,
    }
    assert entry["deployment"]["privacy_loss"]["number_of_privacy_units"] == 4000
    assert entry["deployment"]["deployment_model"]["model_name"] == "Central"


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a nested value but its root."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*at, key))


ANYTHING = {"privacy_parameters_details", "actors", "utility", "additional_information"}


def changed(
    entry: dict[str, Any], place: tuple[Any, ...], change: Callable[[Any, Any], None]
) -> Any:
    """A copy of an entry in which `change` was done to the holder of a place and its key."""
    copied = copy.deepcopy(entry)
    holder: Any = copied
    for key in place[:-1]:
        holder = holder[key]
    change(holder, place[-1])
    return copied


def test_the_schema_refuses_another_type_at_every_place(entry: dict[str, Any]) -> None:
    def spoil(holder: Any, key: Any) -> None:
        holder[key] = {"no": "such value"}

    for place in places(entry):
        assert VALIDATOR.is_valid(changed(entry, place, spoil)) is (place[-1] in ANYTHING), place


def test_the_schema_refuses_an_unknown_field_in_every_section(entry: dict[str, Any]) -> None:
    def add(holder: Any, _: Any) -> None:
        holder["surprise"] = ""

    sections = [place for place in places(entry) if isinstance(place[-1], str)]
    assert len(sections) > 30
    for place in sections:
        assert not VALIDATOR.is_valid(changed(entry, place, add)), place


def test_the_schema_refuses_an_entry_without_what_it_requires(entry: dict[str, Any]) -> None:
    def drop(holder: Any, key: Any) -> None:
        del holder[key]

    refused = {
        place[-1] for place in places(entry) if not VALIDATOR.is_valid(changed(entry, place, drop))
    }
    assert refused == {
        "url_slug", "deployment", "basic", "administrative", "name", "data_curators", 0,
        "data_curator_name", "data_curator_type", "description", "intended_use",
        "data_product_type", "data_product_region", "publication_date", "status",
        "registry_authors", "tier",
    }  # fmt: skip


@pytest.mark.parametrize("place", ["data_curator_type", "publication_date"])
def test_what_a_person_must_choose_in_the_registry_entry_says_so(place: str) -> None:
    text = export(statement.build(made_up_facts()), "registry")
    (line,) = [line for line in text.splitlines() if f"{place}: " in line]
    assert f"# {TODO}" in line


def test_a_name_that_looks_like_a_field_stays_a_name() -> None:
    facts = made_up_facts()
    facts["model"]["name"] = "x " * 40 + "publication_date: y"
    text = export(statement.build(facts), "registry")
    entry = yaml.safe_load(text)
    assert entry["deployment"]["basic"]["name"].startswith(facts["model"]["name"])
    assert VALIDATOR.is_valid(entry)


def test_open_hazards_and_failures_are_not_left_out() -> None:
    facts = made_up_facts()
    facts["policy"]["checks"][0]["ok"] = False
    built = statement.build(facts)
    assert "| NO |" in export(built, "dpia")
    assert "Not passed" in export(built, "annex-iv")
    assert "Floating-point noise has gaps" in export(built, "model-risk")


@pytest.mark.parametrize("name", ["registry", "model-risk"])
def test_no_further_run_fits_a_budget_that_a_recovery_used_up(name: str) -> None:
    facts = waived_facts()
    facts["ledger"]["more_runs_like_this"] = 7
    text = " ".join(export(statement.build(facts), name).split())
    assert re.search(r"\b0 more", text)
    assert "7 more" not in text


def test_unknown_export_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        export(statement.build(made_up_facts()), "iso")
    assert "annex-iv" in str(caught.value.hint)
