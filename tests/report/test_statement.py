"""The statement: strict, canonical, and unable to contradict itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privft.errors import IntegrityError, UsageError
from privft.report import statement
from privft.signing import canonical_json
from tests.report.made_up import hexes, made_up_facts


def test_built_statement_reads_back_byte_for_byte() -> None:
    built = statement.build(made_up_facts())
    data = statement.payload(built)
    assert statement.parse(data).predicate.run.id == "r-0012-ab12cd"
    assert canonical_json(json.loads(data)) == data


def test_statement_has_the_in_toto_form() -> None:
    built = statement.build(made_up_facts())
    assert list(built) == ["_type", "subject", "predicateType", "predicate"]
    assert built["_type"] == "https://in-toto.io/Statement/v1"
    assert built["subject"] == [
        {"name": name, "digest": {"sha256": hexes(name)}}
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]


def test_same_facts_have_the_same_digest_whatever_the_order() -> None:
    facts = made_up_facts()
    turned = dict(reversed(facts.items()))
    assert statement.digest(statement.build(facts)) == statement.digest(statement.build(turned))


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(facts: dict[str, Any]) -> None:
        *way, last = path.split(".")
        at: Any = facts
        for part in way:
            at = at[int(part)] if part.isdigit() else at[part]
        at[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("guarantee.epsilon", -0.1),
        ("guarantee.epsilon", float("nan")),
        ("guarantee.epsilon", "1.9"),
        ("guarantee.epsilon", 1.8),  # not what the accountant's cost says
        ("guarantee.delta", 1e-3),  # above 1 over the declared units
        ("guarantee.unit", "household"),
        ("guarantee.odds_percent", 49.0),
        ("mechanism.steps", 61),  # the event says 60
        ("mechanism.steps", True),
        ("data.lineage", "another"),
        ("run.reserved_time", "yesterday"),
        ("model.weights_sha256", "F" * 64),
        ("model.adapter_files", {}),
        ("audit.tests", []),
        ("audit.tests.0.correct", 101),
        ("audit.verdict", "fine"),
        ("audit.exposure.ranks_included", [1] * 128),  # the extraction says 129
        ("audit.exposure.ranks_excluded", [513] * 127),  # among 511 others
        ("audit.exposure.ranks_included", [2, 1] + [3] * 127),  # not in order
        ("audit.tests.0.kind", "secret"),  # 512 planted, 256 ranked
        ("events.0.kind", "laplace"),
        ("policy.checks", []),
        ("surprise", 1),
        ("guarantee.surprise", 1),
        ("run.actor", "two\nlines"),
        ("run.actor", b"bytes"),
    ],
)
def test_impossible_facts_are_refused(path: str, value: Any) -> None:
    facts = made_up_facts()
    _set(path, value)(facts)
    with pytest.raises(UsageError):
        statement.build(facts)


@pytest.mark.parametrize("section", sorted(set(made_up_facts()) - {"attestations"}))
def test_every_section_must_be_there(section: str) -> None:
    facts = made_up_facts()
    del facts[section]
    with pytest.raises(UsageError, match=section):
        statement.build(facts)


def test_error_does_not_quote_the_value_found() -> None:
    facts = made_up_facts()
    facts["run"]["actor"] = {"secret": "MRN 12345"}
    with pytest.raises(UsageError) as caught:
        statement.build(facts)
    assert "MRN" not in caught.value.message


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data + b"\n",
        lambda data: data.replace(b'"count":60', b'"count":60.0'),
        lambda data: data.replace(b'"synthetic":true', b'"synthetic":false,"synthetic":true'),
        lambda data: data.replace(b'"attestations":[', b'"attestations": ['),
    ],
)
def test_second_spelling_of_the_same_facts_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    data = statement.payload(statement.build(made_up_facts()))
    with pytest.raises(IntegrityError):
        statement.parse(spoil(data))


def test_default_left_out_is_refused() -> None:
    built = statement.build(made_up_facts())
    del built["predicate"]["attestations"]
    with pytest.raises(IntegrityError, match="canonical"):
        statement.parse(canonical_json(built))


@settings(max_examples=60)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_with_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        statement.parse(data)


def test_schema_knows_every_section_and_forbids_others() -> None:
    schema = statement.schema()
    facts = schema["$defs"]["Facts"]
    assert set(facts["properties"]) == {*made_up_facts(), "renderer"}
    assert facts["additionalProperties"] is False
    assert schema["$id"].startswith(statement.PREDICATE_TYPE)
    json.dumps(schema)
