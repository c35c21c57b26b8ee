"""Cells: padding, binding to unit and vault, and our own vectors."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.errors import IntegrityError
from privft.vault import cells
from tests.vault.builders import VECTORS

CASES = json.loads((VECTORS / "vault_cells.json").read_text())["cases"]
KEY, LINEAGE, TAG_KEY = bytes(range(32)), bytes(range(16)), bytes(range(32, 64))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_own_vectors(case: dict[str, Any]) -> None:
    key, lineage, tag, cell, tag_key = (
        bytes.fromhex(case[name]) for name in ("key", "lineage", "tag", "cell", "tag_key")
    )
    if case["expect"] == "opens":
        assert cells.open_cell(key, lineage, tag, cell, tag_key).to_dict() == case["unit"]
    else:
        with pytest.raises(IntegrityError):
            cells.open_cell(key, lineage, tag, cell, tag_key)


@given(st.integers(0, 1 << 26))
def test_a_bucket_fits_and_costs_at_most_a_quarter(length: int) -> None:
    bucket = cells.bucket_bytes(length)
    assert bucket >= max(length, 256)
    assert bucket == 256 or bucket < length * 1.25 + 1
    assert cells.bucket_bytes(bucket) == bucket


def test_there_are_four_buckets_to_each_power_of_two() -> None:
    found = sorted({cells.bucket_bytes(length) for length in range(4097)})
    assert found[:9] == [256, 320, 384, 448, 512, 640, 768, 896, 1024]
    assert found[-4:] == [2560, 3072, 3584, 4096]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(unit=text, records=st.lists(st.fixed_dictionaries({"id": text, "text": text}), max_size=4))
def test_a_unit_comes_back_as_it_was(unit: str, records: list[dict[str, str]]) -> None:
    tag = cells.unit_tag(TAG_KEY, unit)
    body = cells.encode_body(unit, [cells.encode_record(record) for record in records])
    cell = cells.seal_cell(KEY, LINEAGE, tag, body)
    opened = cells.open_cell(KEY, LINEAGE, tag, cell, TAG_KEY)
    assert opened.to_dict() == {"unit": unit, "records": records}
    assert repr(opened) == f"UnitRecords({len(records)} records)"


def test_cells_of_one_bucket_have_one_length() -> None:
    lengths = {
        len(cells.seal_cell(KEY, LINEAGE, bytes(16), bytes(length))) for length in range(253)
    }
    assert len(lengths) == 1


@given(st.binary(max_size=200))
def test_any_body_is_a_unit_or_refused(body: bytes) -> None:
    with contextlib.suppress(IntegrityError):
        assert isinstance(cells.decode_body(body).unit, str)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["unit", "records", "x"]), json_value) | json_value)
def test_any_json_is_a_unit_or_refused(value: object) -> None:
    try:
        unit = cells.decode_body(json.dumps(value).encode())
    except IntegrityError:
        return
    assert isinstance(value, dict)
    assert set(value) == {"unit", "records"}
    assert all(isinstance(record, dict) for record in unit.records)
