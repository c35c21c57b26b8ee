"""privft vault recipients: services, tokens and passphrases come, open, and go."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.stages.world import NOTES, SIZE, World, base, note_rows
from tests.vault.columnkeys import write_columns
from tests.vault.softhsm import PIN, new_token
from tests.vault.test_services import PROGRAM


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def descriptor(secret: bytes) -> str:
    """A file descriptor from which the secret can be read once."""
    read, write = os.pipe()
    os.write(write, secret + b"\n")
    os.close(write)
    return str(read)


def service(folder: Path, key: bytes = bytes(32)) -> str:
    """NAME=COMMAND of the example program, whose key is a file."""
    path = folder / f"{key.hex()[-2:]}.key"
    path.write_bytes(key)
    return f"kms={shlex.join([sys.executable, str(PROGRAM), str(path)])}"


def labels(world: World) -> list[str]:
    facts = world.privft("vault", "inspect", "notes", "--json").json
    return [recipient["label"] for recipient in facts["recipients"]]


ADD = ("vault", "recipients", "add", "notes")
REMOVE = ("vault", "recipients", "remove", "notes")
VERIFY = ("vault", "verify", "notes")


def test_a_key_service_opens_the_vault_once_it_is_a_recipient(world: World, tmp_path: Path) -> None:
    kms = service(tmp_path)
    world.privft(*VERIFY, "--service", kms, code=1)
    added = world.privft(*ADD, "--recipient-service", kms, "--label", "cloud")
    assert "sealed for ada, cloud" in added.err
    assert labels(world) == ["ada", "cloud"]
    assert "notes: whole" in world.privft(*VERIFY, "--service", kms).out
    world.privft(*VERIFY, "--service", service(tmp_path, bytes(31) + b"\1"), code=1)
    world.privft(*REMOVE, "cloud", "--service", kms)
    world.privft(*VERIFY, "--service", kms, code=1)


def test_a_token_opens_the_vault_once_it_is_a_recipient(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = new_token(tmp_path, monkeypatch)
    uri = f"pkcs11:token={token.token};object=vault?module-path={token.module}"
    add = (*ADD, "--recipient-pkcs11", uri, "--recipient-pin-fd")
    missing = world.privft(*add, descriptor(PIN), code=1)
    assert "has no key" in missing.err
    world.privft(*add, descriptor(PIN), "--make-key")
    assert labels(world) == ["ada", f"pkcs11:{token.token}/vault"]
    verify = (*VERIFY, "--pkcs11", uri)
    assert "notes: whole" in world.privft(*verify, "--pin-fd", descriptor(PIN)).out
    wrong = world.privft(*verify, "--pin-fd", descriptor(b"0000"), code=1)
    assert "0000" not in wrong.err
    world.privft(*verify, code=2)  # nobody can be asked for the PIN
    world.privft(*add, descriptor(PIN), code=2)  # the same label twice


def test_a_new_vault_may_have_a_service_and_a_passphrase(world: World, tmp_path: Path) -> None:
    kms = service(tmp_path)
    world.privft(
        *("vault", "create", "more", *NOTES, *SIZE, "--recipient-service", kms),
        *("--recipient-passphrase-fd", descriptor(b"seven words")),
    )
    for way in (("--service", kms), ("--passphrase-fd", descriptor(b"seven words")), ()):
        assert "more: whole" in world.privft("vault", "verify", "more", *way).out


def test_what_makes_no_sense_is_refused(world: World, tmp_path: Path) -> None:
    kms = service(tmp_path)
    for words in (
        ADD,
        (*ADD, "ada", "--recipient-service", kms),
        (*ADD, "--recipient-service", "kms"),
        (*ADD, "--recipient-service", kms, "--label", ""),
        (*ADD, "--recipient-service", kms, "--label", "ada"),
        (*ADD, "--recipient-service", kms, "--make-key"),
        (*ADD, "--recipient-pkcs11", "pkcs11:token=a"),
        (*VERIFY, "--service", kms, "--pkcs11", "pkcs11:token=a"),
    ):
        refused = world.privft(*words, code=2)
        assert refused.err.startswith("error: ")
    assert labels(world) == ["ada"]


def test_encrypted_parquet_is_taken_with_its_key_from_a_descriptor(
    world: World, tmp_path: Path
) -> None:
    import pyarrow.parquet
    from pyarrow.parquet.encryption import create_encryption_properties

    path, key = tmp_path / "sealed.parquet", bytes(range(16))
    rows = pyarrow.Table.from_pylist(note_rows(patients=3, seed=7))
    sealed = create_encryption_properties(key)
    pyarrow.parquet.write_table(rows, path, encryption_properties=sealed)
    add = ("vault", "add", "notes", path)
    assert "--parquet-key-fd" in world.privft(*add, code=2).err
    world.privft(*add, "--parquet-key-fd", descriptor(b"short"), code=2)
    for words in (("--dry-run",), ()):
        hexed = descriptor(key.hex().encode())
        done = world.privft(*add, "--parquet-key-fd", hexed, *words)
        assert f"{rows.num_rows} records" in done.err


def test_parquet_with_keys_of_its_columns_is_taken_through_a_key_service(
    world: World, tmp_path: Path
) -> None:
    rows = note_rows(patients=3, seed=7)
    columns = {name: [row[name] for row in rows] for name in ("patient", "id", "note")}
    keys = {f"of-{name}": [name] for name in columns}
    path = write_columns(tmp_path / "sealed.parquet", columns, keys)
    add = ("vault", "add", "notes", path)
    assert "--parquet-service" in world.privft(*add, code=2).err
    both = ("--parquet-service", service(tmp_path), "--parquet-key-fd", "9")
    assert "more than one way" in world.privft(*add, *both, code=2).err
    another = service(tmp_path, bytes(31) + b"\1")
    assert "does not know" in world.privft(*add, "--parquet-service", another, code=1).err
    for words in (("--dry-run",), ()):
        done = world.privft(*add, "--parquet-service", service(tmp_path), *words)
        assert f"{len(rows)} records" in done.err


def test_a_person_sees_what_a_vault_is(world: World) -> None:
    facts = world.privft("vault", "inspect", "notes", "--json").json
    shown = " ".join(world.privft("vault", "inspect", "notes").out.split())
    with world.ledger() as ledger:
        before_the_intake = ledger.size - 4  # two data sets with two entries each; intents is last
        assert f"checkpoint {before_the_intake} entries of privft.workspace, root " in shown
    assert f"epoch {facts['epoch']}" in shown
    assert f"size_bytes {facts['size_bytes']}" in shown
    assert facts["recipients"][0]["fingerprint"] in shown
    assert "units" not in shown.replace("units_", "").replace("per_unit", "")
    private = " ".join(world.privft("vault", "inspect", "notes", "--private").out.split())
    assert "units 40, records" in private
