"""The manifest: exactly one form, signed, and a parser that survives anything."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privft.errors import IntegrityError, SignatureError
from privft.signing import VerifyKey, canonical_json, dsse_sign
from privft.vault.manifest import (
    PAYLOAD_TYPE,
    open_manifest,
    parse_payload,
    sign_manifest,
    unsigned_manifest,
)
from privft.vault.state import parse_facts
from tests.vault.builders import SIGNER, TRUSTED, VECTORS, add_rows, new_vault, rows

CASES = json.loads((VECTORS / "vault_manifest.json").read_text())["cases"]


@pytest.fixture(scope="module")
def value(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("manifest")
    vault = new_vault(folder / "v")
    add_rows(vault, folder / "a.jsonl", rows(5, patients=2))
    return vault.manifest.model_dump(mode="json")


def test_a_manifest_comes_back(value: dict[str, Any]) -> None:
    manifest = parse_payload(canonical_json(value))
    assert manifest.payload() == canonical_json(value)
    assert open_manifest(sign_manifest(manifest, SIGNER), TRUSTED) == manifest
    assert unsigned_manifest(sign_manifest(manifest, SIGNER)) == manifest


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_own_vectors(case: dict[str, str]) -> None:
    signer, text = VerifyKey.from_hex(case["signer"], case["public"]), bytes.fromhex(case["text"])
    if case["expect"] == "opens":
        assert open_manifest(text, {signer.keyid: signer}).digest == case["digest"]
        return
    with pytest.raises(IntegrityError) as caught:
        open_manifest(text, {signer.keyid: signer})
    assert isinstance(caught.value, SignatureError) == (case["expect"] == "signature")


def test_a_manifest_signed_as_something_else_is_refused(value: dict[str, Any]) -> None:
    payload = canonical_json(value)
    for kind, signature_holds in ((PAYLOAD_TYPE, True), ("application/vnd.in-toto+json", False)):
        text = json.dumps(dsse_sign(payload, kind, [SIGNER])).encode()
        if signature_holds:
            open_manifest(text, TRUSTED)
        else:
            with pytest.raises(SignatureError):
                open_manifest(text, TRUSTED)


def test_other_spellings_of_the_same_json_are_refused(value: dict[str, Any]) -> None:
    for payload in (
        json.dumps(value).encode(),
        canonical_json(value) + b"\n",
        canonical_json(value).replace(b'"epoch":1', b'"epoch":1,"epoch":1'),
        canonical_json(value).replace(b'"epoch":1', b'"epoch":1.0'),
    ):
        with pytest.raises(IntegrityError):
            parse_payload(payload)


def paths(value: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [trail] if trail else []
    if isinstance(value, dict):
        for key in value:
            found += paths(value[key], (*trail, key))
    elif isinstance(value, list):
        for place in range(len(value)):
            found += paths(value[place], (*trail, place))
    return found


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    value = copy.deepcopy(value)
    target = value
    for step in path[:-1]:
        target = target[step]
    if new is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = new
    return value


def test_every_field_has_its_type(value: dict[str, Any]) -> None:
    texts = {("dataset",), ("checkpoint",), ("time",), ("signer",)}
    texts |= {path for path in paths(value) if path[0] == "fields" or path[-1] == "label"}
    refused = 0
    for path in paths(value):
        for new in (None, True, -1, 1.5, "", "x" * 70_000, [], [1], {}, {"x": 1}, KeyError):
            allowed = new == "" and path in texts
            allowed |= new is None and path[0] == "fields"
            allowed |= new in ([], KeyError) and path in {("segments",), ("segments", 0)}
            if allowed or changed(value, path, new) == value:
                continue
            with pytest.raises(IntegrityError):
                parse_payload(canonical_json(changed(value, path, new)))
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("index", "name"), "../index-0000000000000000.floe"),
        (("index", "name"), "manifest.json"),
        (("index", "name"), "index-0000000000000000.floe\n"),
        (("segments", 0, "name"), "/etc/passwd"),
        (("dataset",), "../x"),
        (("dataset",), "x\n"),
        (("unit",), "patient"),
        (("format",), "privft-vault-v2"),
        (("epoch",), 0),
        (("sequence",), 0),
        (("epoch",), 2**53),
        (("root",), "A" * 64),
        (("recipients",), []),
        (("fields", "text"), None),
        (("fields", "prompt"), "p"),
        (("fields", "note"), "p"),
        (("caps", "held_out_share"), 1),
        (("caps", "max_records_per_unit"), 0),
    ],
)
def test_values_outside_the_format_are_refused(
    value: dict[str, Any], path: tuple[Any, ...], new: object
) -> None:
    altered = changed(value, path, new)
    if new == 2**53:
        payload = canonical_json(value).replace(b'"epoch":1', b'"epoch":9007199254740992')
    else:
        payload = canonical_json(altered)
    with pytest.raises(IntegrityError):
        parse_payload(payload)


def test_files_and_recipients_are_named_once(value: dict[str, Any]) -> None:
    twice = {**value, "segments": value["segments"] * 2}
    with pytest.raises(IntegrityError, match="file twice"):
        parse_payload(canonical_json(twice))
    twice = {**value, "recipients": value["recipients"] * 2}
    with pytest.raises(IntegrityError, match="recipient twice"):
        parse_payload(canonical_json(twice))


plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(data=st.data(), new=json_value)
def test_any_value_in_any_place_is_parsed_or_refused(
    value: dict[str, Any], data: st.DataObject, new: object
) -> None:
    path = data.draw(st.sampled_from(paths(value)))
    payload = canonical_json(changed(value, path, new))
    with contextlib.suppress(IntegrityError):
        assert parse_payload(payload).payload() == payload


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    for parse in (parse_payload, parse_facts, unsigned_manifest):
        with pytest.raises(IntegrityError):
            parse(data)
    with pytest.raises(IntegrityError):
        open_manifest(data, TRUSTED)


@given(json_value)
def test_any_json_is_no_manifest(new: object) -> None:
    text = json.dumps(new).encode()
    for parse in (parse_payload, parse_facts, unsigned_manifest):
        with pytest.raises(IntegrityError):
            parse(text)


def test_a_huge_manifest_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from privft.vault import manifest

    vault = new_vault(tmp_path / "v")
    monkeypatch.setattr(manifest, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(IntegrityError, match="more than 100"):
        manifest.read_manifest_text(vault.path)
