"""Entries: strict types, one form of bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.budget.entries import BODIES, Entry, make_entry, parse_entry
from privft.errors import IntegrityError, PrivftError
from privft.signing import canonical_json
from tests.budget.samples import HASH, LINEAGE, audit_bodies, dataset_body, reservation_body

TIME = "2026-11-23T20:15:24Z"
RUN = "r-0001-ab12cd"
SIGNATURES = [{"name": "ann", "signature": "x"}, {"name": "ben", "signature": "y"}]

EXAMPLES: dict[str, dict[str, Any]] = {
    "workspace-created": {"workspace": "ws-1", "log_key": HASH},
    "key-added": {
        "name": "ann",
        "roles": ["operator", "auditor"],
        "ed25519": HASH,
        "x25519": HASH,
        "expires": None,
    },
    "key-revoked": {"name": "ann", "reason": "left the ward"},
    "dataset-created": dataset_body(),
    "intake": {
        "dataset": "notes",
        "lineage": LINEAGE,
        "manifest_root": HASH,
        "manifest_digest": HASH,
        "provenance_sha256": HASH,
        "overlap": "none",
        "known": HASH,
    },
    "vault-rotated": {"dataset": "notes", "manifest_root": HASH, "manifest_digest": HASH},
    "vault-erased": {
        "dataset": "notes",
        "commitment": HASH,
        "manifest_root": HASH,
        "manifest_digest": HASH,
        "certificate_sha256": HASH,
    },
    "plan-approved": {"plan_sha256": HASH, "approver": "ben", "signature": "c2ln"},
    "run-reserved": {**reservation_body(), "run": RUN},
    "run-settled": {
        "run": RUN,
        "outcome": "completed",
        "reason": "all steps ran",
        "steps_charged": 40,
        "events": reservation_body()["events"],
        "journal_sha256": HASH,
        "adapter": {"adapter_model.safetensors": HASH},
    },
    "audit-started": audit_bodies(RUN, "passed")[0],
    "run-audited": audit_bodies(RUN, "passed")[1],
    "run-waived": {"run": RUN, "reason": "x", "expires": TIME, "signatures": SIGNATURES},
    "run-released": {"run": RUN, "files": {"a.safetensors": HASH}, "statement_sha256": HASH},
    "run-refused": {"plan_sha256": HASH, "code": 11, "reason": "x"},
    "witnessed": {
        "witness": "desk",
        "nonce": LINEAGE,
        "checkpoint": "x",
        "cosigned": "x",
        "signature": "x",
    },
    "recovered": {
        "known": ["x"],
        "lineages": [LINEAGE],
        "reason": "x",
        "signatures": SIGNATURES,
    },
}


def entry_of(kind: str, body: dict[str, Any] | None = None) -> Entry:
    return make_entry(
        index=3, kind=kind, time=TIME, actor="ann", body=EXAMPLES[kind] if body is None else body
    )


def test_every_kind_has_an_example_here() -> None:
    assert set(EXAMPLES) == set(BODIES)


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_an_entry_comes_back_from_its_bytes(kind: str) -> None:
    entry = entry_of(kind)
    assert parse_entry(entry.canonical) == entry
    assert entry.leaf_hash == parse_entry(entry.canonical).leaf_hash


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_every_field_is_needed_and_no_other_is_known(kind: str) -> None:
    example = EXAMPLES[kind]
    for field in example:
        missing = {name: value for name, value in example.items() if name != field}
        with pytest.raises(IntegrityError, match=field):
            entry_of(kind, missing)
    with pytest.raises(IntegrityError, match="surplus"):
        entry_of(kind, {**example, "surplus": 1})


@pytest.mark.parametrize("kind", sorted(BODIES))
def test_every_field_refuses_another_type(kind: str) -> None:
    for field in EXAMPLES[kind]:
        for wrong in ([1], {"x": ["x"]}, True):
            with pytest.raises(IntegrityError, match=field):
                entry_of(kind, {**EXAMPLES[kind], field: wrong})


@pytest.mark.parametrize(
    ("kind", "field", "wrong"),
    [
        ("dataset-created", "unit", "patient"),
        ("dataset-created", "cap", {"epsilon": 0.0, "delta": 1e-6, "orders": [4]}),
        ("dataset-created", "cap", {"epsilon": 8.0, "delta": 1e-6, "orders": []}),
        ("dataset-created", "declared_units", 0),
        ("dataset-created", "lineage", HASH),
        ("run-settled", "steps_charged", -1),
        ("run-settled", "steps_charged", 1.5),
        ("run-settled", "outcome", "refunded"),
        ("run-reserved", "events", []),
        ("run-reserved", "run_key", HASH.upper()),
        ("run-waived", "signatures", SIGNATURES[:1]),
        ("key-added", "roles", []),
        ("key-added", "roles", ["root"]),
        ("key-added", "expires", "tomorrow"),
        ("key-revoked", "name", "a b"),
        ("key-revoked", "name", "ann\n"),
    ],
)
def test_values_that_make_no_sense_are_refused(kind: str, field: str, wrong: Any) -> None:
    with pytest.raises(IntegrityError, match=field):
        entry_of(kind, {**EXAMPLES[kind], field: wrong})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "run-refunded"},
        {"kind": 3},
        {"index": -1},
        {"index": 1.5},
        {"index": True},
        {"time": "2026-11-23 20:15:24"},
        {"time": "2026-11-23T20:15:24+00:00"},
        {"time": "2026-02-30T00:00:00Z"},
        {"time": "2026-2-3T00:00:00Z"},
        {"time": "\u0662026-02-03T00:00:00Z"},
        {"time": None},
        {"actor": ""},
        {"actor": 1},
        {"body": []},
        {"more": 1},
    ],
)
def test_the_head_of_an_entry_is_as_strict(changes: dict[str, Any]) -> None:
    value = {"index": 3, "kind": "key-revoked", "time": TIME, "actor": "ann"}
    value["body"] = EXAMPLES["key-revoked"]
    parse_entry(canonical_json(value))
    with pytest.raises(PrivftError):
        parse_entry(canonical_json(value | changes))


def test_no_error_repeats_what_the_field_held() -> None:
    with pytest.raises(IntegrityError) as caught:
        entry_of("key-revoked", {"name": "secret name", "reason": "x"})
    assert "secret" not in caught.value.message


@given(st.data())
def test_parse_entry_raises_nothing_but_its_own_error(data: st.DataObject) -> None:
    good = entry_of(data.draw(st.sampled_from(sorted(BODIES)))).canonical
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, min(len(good), start + 8)))
    bad = good[:start] + data.draw(st.binary(max_size=8)) + good[stop:]
    try:
        assert parse_entry(bad).canonical == bad
    except IntegrityError:
        assert bad != good
