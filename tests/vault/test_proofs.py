"""Proofs about a unit: what they show to somebody without the vault, and what they cannot be made
to show."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from privft.errors import IntegrityError, SignatureError
from privft.signing import SigningKey, VerifyKey, canonical_json
from privft.vault.proofs import check
from privft.vault.store import Vault
from tests.vault.builders import SIGNED, TRUSTED, VECTORS, add_rows, new_vault, rows

CASES = json.loads((VECTORS / "vault_proofs.json").read_text())["cases"]


@pytest.fixture
def filled(tmp_path: Path) -> Vault:
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(20, patients=8))
    return vault


def test_presence_and_absence_can_be_shown(filled: Vault) -> None:
    for unit, present in (("p3", True), ("nobody", False)):
        shown = check(filled.prove(unit), TRUSTED)
        assert (shown.present, shown.certificate) == (present, None)
        assert shown.manifest == filled.manifest


def test_every_version_after_an_erasure_proves_that_the_unit_is_not_in_it(
    tmp_path: Path, filled: Vault
) -> None:
    before = filled.prove("p1")
    envelope = filled.erase("p1", who="ada", **SIGNED).envelope
    versions = [filled.prove("p1")]
    filled.rotate(**SIGNED)
    versions.append(filled.prove("p1"))
    add_rows(filled, tmp_path / "b.jsonl", rows(5, patients=2, start=100)[::2])  # p0 alone
    versions.append(filled.prove("p1"))
    filled.rotate(**SIGNED, reencrypt=True)
    versions.append(filled.prove("p1"))
    for document in versions:
        shown = check(document, TRUSTED, certificate=envelope)
        assert not shown.present
        assert shown.certificate is not None
        assert shown.certificate["commitment"] == filled.commitment("p1")
    with pytest.raises(IntegrityError, match="before the erasure"):
        check(before, TRUSTED, certificate=envelope)
    with pytest.raises(IntegrityError, match="another unit or vault"):
        check(filled.prove("p2"), TRUSTED, certificate=envelope)
    add_rows(filled, tmp_path / "c.jsonl", rows(1, patients=8, start=1))
    assert check(filled.prove("p1"), TRUSTED, certificate=envelope).present


def test_the_certificate_of_another_vault_does_not_fit(tmp_path: Path, filled: Vault) -> None:
    other = new_vault(tmp_path / "other")
    add_rows(other, tmp_path / "a.jsonl", rows(20, patients=8))
    envelope = other.erase("p1", who="ada", **SIGNED).envelope
    filled.erase("p1", who="ada", **SIGNED)
    with pytest.raises(IntegrityError, match="another unit or vault"):
        check(filled.prove("p1"), TRUSTED, certificate=envelope)


def test_only_known_signatures_count(filled: Vault) -> None:
    eve = SigningKey.generate("eve")
    document = filled.prove("nobody")
    for keys in ({}, {eve.public.keyid: eve.public}):
        with pytest.raises(SignatureError):
            check(document, keys)


def test_no_altered_proof_is_taken(filled: Vault) -> None:
    refused = 0
    for unit in ("p3", "nobody"):
        whole: dict[str, Any] = json.loads(filled.prove(unit))
        leaf, path = whole["leaves"][0], whole["paths"][0]
        changes: list[dict[str, Any]] = [
            {"tag": "00" * 16},
            {"position": whole["position"] + 1},
            {"leaves": [leaf[:-1] + ("1" if leaf[-1] == "0" else "0"), *whole["leaves"][1:]]},
            {"leaves": whole["leaves"] * 2},
            {"leaves": [], "paths": []},
            {"paths": [[*path, "00" * 32], *whole["paths"][1:]]},
            {"paths": [path[1:], *whole["paths"][1:]]},
            {"paths": []},
            {"format": "privft-unit-proof-v2"},
            {"more": 1},
            {"size": -1},
            {"manifest": {}},
            {"manifest": {**whole["manifest"], "payload": "e30="}},
        ]
        for change in changes:
            with pytest.raises(IntegrityError):
                check(canonical_json({**whole, **change}), TRUSTED)
            refused += 1
    assert refused == 26
    for text in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(IntegrityError, match="no proof"):
            check(text, TRUSTED)


def test_a_proof_names_nobody(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    name = "Marker-7f3a"
    add_rows(vault, tmp_path / "a.jsonl", [{"id": "1", "patient": name, "note": "stable"}])
    document = vault.prove(name)
    assert check(document, TRUSTED).present
    payload = base64.b64decode(json.loads(document)["manifest"]["payload"])
    assert name.encode() not in document + payload


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_own_vectors(case: dict[str, Any]) -> None:
    signer = VerifyKey.from_hex(case["signer"], case["public"])
    trusted, text = {signer.keyid: signer}, bytes.fromhex(case["text"])
    told = case["certificate"]
    certificate = None if told is None else json.loads(bytes.fromhex(told))
    if case["expect"] in ("present", "absent"):
        shown = check(text, trusted, certificate=certificate)
        assert shown.present == (case["expect"] == "present")
        return
    with pytest.raises(IntegrityError) as caught:
        check(text, trusted, certificate=certificate)
    assert isinstance(caught.value, SignatureError) == (case["expect"] == "signature")
