"""The front door: creating, opening, reading, and what is said without a key."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from privft.errors import InputError, IntegrityError, NotForThisKey, SignatureError, UsageError
from privft.signing import Identity, SigningKey
from privft.vault.fields import FieldMap
from privft.vault.keys import agreement_opener, agreement_recipient, passphrase_opener
from privft.vault.store import Vault, inspect
from privft.vault.verify import verify_files
from tests.vault.builders import (
    PASSPHRASE,
    SIGNED,
    TRUSTED,
    add_rows,
    content,
    new_vault,
    opener,
    reopen,
    rows,
    ward,
)


@pytest.fixture
def filled(tmp_path: Path) -> Vault:
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(20, patients=8))
    return vault


def test_only_the_owner_can_read_the_files(filled: Vault) -> None:
    assert stat.S_IMODE(filled.path.stat().st_mode) == 0o700
    for file in filled.path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_reading_by_number(filled: Vault) -> None:
    units = list(filled)
    assert filled.read_many([3, 0, 3]) == [units[3], units[0], units[3]]
    for number in (-1, 8):
        with pytest.raises(ValueError, match="number"):
            filled.read(number)
    assert filled.number_of("nobody") is None


def test_a_wrong_passphrase_is_not_tampering(filled: Vault) -> None:
    with pytest.raises(NotForThisKey, match="does not open"):
        Vault.open(filled.path, passphrase_opener(b"wrong"), signer_keys=TRUSTED)


def test_a_stranger_may_not_have_signed(filled: Vault) -> None:
    other = SigningKey.generate("eve").public
    for keys in ({}, {other.keyid: other}):
        with pytest.raises(SignatureError):
            Vault.open(filled.path, opener(), signer_keys=keys)
        with pytest.raises(SignatureError):
            verify_files(filled.path, keys)


def test_key_files_open_too(tmp_path: Path) -> None:
    ada = Identity.generate("ada")
    public = bytes.fromhex(ada.public.x25519)
    vault = new_vault(tmp_path / "v", recipients=[ward(), agreement_recipient("ada", public)])
    add_rows(vault, tmp_path / "a.jsonl", rows(4, patients=2))
    opened = Vault.open(tmp_path / "v", agreement_opener("ada", ada.agreement), signer_keys=TRUSTED)
    assert content(opened) == content(vault)


def test_there_is_no_vault(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="no vault"):
            Vault.open(path, opener(), signer_keys=TRUSTED)
        with pytest.raises(InputError, match="no vault"):
            inspect(path)


def test_a_vault_is_made_in_an_empty_place_only(tmp_path: Path, filled: Vault) -> None:
    before = filled.manifest_digest
    with pytest.raises(UsageError, match="not empty"):
        new_vault(filled.path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        new_vault(tmp_path / "full")
    assert (tmp_path / "full" / "letter.txt").read_text() == "keep me"
    with pytest.raises(UsageError, match="no folder"):
        new_vault(tmp_path / "none" / "v")
    assert reopen(filled.path).manifest_digest == before


def test_what_cannot_be_created(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column is named"):
        new_vault(tmp_path / "a", fields=FieldMap(text="note"))
    with pytest.raises(UsageError, match="0 recipients"):
        new_vault(tmp_path / "a", recipients=[])
    with pytest.raises(UsageError, match="same label"):
        new_vault(tmp_path / "a", recipients=[ward(), ward()])
    assert not (tmp_path / "a").exists()


def test_inspect_shows_no_private_figure_without_the_key(filled: Vault) -> None:
    for shown in (inspect(filled.path), inspect(filled.path, signer_keys=TRUSTED)):
        assert "private" not in shown
        assert shown["recipients"][0]["label"] == "ward"
        assert shown["root"] == filled.manifest_root
        assert shown["strangers"] == []
        json.dumps(shown)
    assert inspect(filled.path)["signature"] == "not checked"
    private = filled.inspect()["private"]
    assert (private["units"], private["records"], private["erased"]) == (8, 20, 0)
    json.dumps(filled.inspect())


def test_no_unit_or_record_count_is_in_the_manifest(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(431, patients=137))
    numbers: list[object] = []

    def collect(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        else:
            numbers.append(value)

    collect(vault.manifest.model_dump())
    assert 137 not in numbers
    assert 431 not in numbers


def test_subkeys_differ_by_purpose_and_vault_and_survive(tmp_path: Path, filled: Vault) -> None:
    other = new_vault(tmp_path / "other")
    found = [*filled.subkeys("run"), *filled.subkeys("run2"), *other.subkeys("run")]
    keys = {*found, *filled.subkeys("")}
    assert len(keys) == 4
    assert all(len(key) == 32 for key in keys)
    before = filled.subkeys("run")
    filled.erase("p1", who="ada", **SIGNED)
    assert reopen(filled.path).subkeys("run") == before
    filled.rotate(**SIGNED, reencrypt=True)
    assert reopen(filled.path).subkeys("run")[1:] == before


@pytest.mark.parametrize("reencrypt", [False, True])
def test_who_left_cannot_derive_the_key_of_what_is_sealed_later(
    filled: Vault, reencrypt: bool
) -> None:
    with reopen(filled.path) as theirs:
        filled.rotate(**SIGNED, recipients=[ward()], reencrypt=reencrypt)
        assert filled.subkeys("run")[0] not in theirs.subkeys("run")
        facts = theirs.state.facts.model_dump_json()
        assert filled.state.facts.file_secrets[-1] not in facts


def test_the_root_says_which_data_it_is(tmp_path: Path, filled: Vault) -> None:
    root, digest = filled.manifest_root, filled.manifest_digest
    filled.rotate(**SIGNED)
    assert filled.manifest_root == root
    assert filled.manifest_digest != digest
    add_rows(filled, tmp_path / "b.jsonl", rows(1, patients=1, start=50))
    assert filled.manifest_root != root


def test_a_rollback_is_noticed_by_its_root(filled: Vault) -> None:
    with pytest.raises(IntegrityError, match="the ledger says"):
        Vault.open(filled.path, opener(), signer_keys=TRUSTED, expected_root="00" * 32)
    Vault.open(
        filled.path, opener(), signer_keys=TRUSTED, expected_root=filled.manifest_root
    ).close()


def test_opening_needs_neither_torch_nor_datasets() -> None:
    code = "import sys, privft.vault.store, privft.vault.verify; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "datasets", "pyarrow", "pandas"} & set(done.stdout.split())


def test_no_repr_shows_keys_or_facts(filled: Vault) -> None:
    state = filled._state
    shown = repr(state) + repr(state.facts) + repr(filled)
    assert state.epoch_key.hex() not in shown
    assert repr(state.epoch_key) not in shown
    assert not any(secret in shown for secret in (state.facts.secret, *state.facts.file_secrets))
    assert PASSPHRASE.decode() not in shown


def test_a_reader_does_not_mind_a_writer(tmp_path: Path, filled: Vault) -> None:
    reader = reopen(filled.path)
    before = content(reader)
    add_rows(filled, tmp_path / "b.jsonl", rows(5, patients=5, start=100))
    assert content(reader) == before


def test_files_are_closed(filled: Vault) -> None:
    def open_files() -> list[str]:
        links = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
        return [link for link in links if link.startswith(str(filled.path))]

    filled.close()
    with reopen(filled.path) as vault:
        vault.read(0)
        assert len(open_files()) == 1
        vault.rotate(**SIGNED, reencrypt=True)
        vault.read(0)
        vault.verify()
        assert len(open_files()) == 1
    assert open_files() == []
