"""A workspace is private, found upward, whole or not at all, and tells when it was edited."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privft import workspace as module
from privft.errors import IntegrityError, NotForThisKey, UsageError
from privft.policy import load_policy
from privft.signing import Identity, SigningKey
from privft.vault.overlap import HashSet
from privft.workspace import Workspace, read_canonical, write_private

ADA = Identity.generate("ada")


@pytest.fixture
def made(tmp_path: Path) -> Workspace:
    umask = os.umask(0o022)  # whatever the caller's is, what is made is private
    try:
        return Workspace.create(tmp_path / "ward", owner=ADA, roles=("operator", "approver"))
    finally:
        os.umask(umask)


def test_a_new_workspace_is_its_owners_alone(made: Workspace) -> None:
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for path in made.folder.rglob("*"):
        if path.is_file():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_its_first_person_is_on_the_ring_with_keys_on_this_machine(made: Workspace) -> None:
    with made.ledger() as ledger:
        assert [entry.kind for entry in ledger.entries()] == ["workspace-created", "key-added"]
        person = ledger.keyring().person("ada")
        assert person.public == ADA.public
        assert person.roles == ("operator", "approver")
        assert made.signer_keys(ledger) == {person.verify_key.keyid: person.verify_key}
    assert made.identity().public == ADA.public
    assert made.identity(name="ada").agreement == ADA.agreement


def test_a_workspace_is_found_from_any_folder_inside(made: Workspace) -> None:
    inside = made.folder / "a" / "b"
    inside.mkdir(parents=True)
    assert Workspace.find(inside) == Workspace.find(made.folder) == Workspace.open(made.folder)


def test_there_is_no_workspace_where_none_was_made(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no privft workspace here or above"):
        Workspace.find(tmp_path)
    with pytest.raises(UsageError, match="is not a privft workspace"):
        Workspace.open(tmp_path)


def test_a_workspace_is_not_made_over_anything(made: Workspace, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    for folder in (made.folder, tmp_path / "full"):
        with pytest.raises(UsageError, match="is not empty"):
            Workspace.create(folder, owner=ADA, roles=("operator",))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["x"]


def test_a_creation_that_was_interrupted_is_no_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(path: Path, data: bytes) -> None:
        if path.name == "workspace.json":
            raise KeyboardInterrupt
        write_private(path, data)

    monkeypatch.setattr(module, "write_private", stop)
    with pytest.raises(KeyboardInterrupt):
        Workspace.create(tmp_path / "ward", owner=ADA, roles=("operator",))
    with pytest.raises(UsageError):
        Workspace.open(tmp_path / "ward")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda marker: {**marker, "format": "privft-workspace-v2"}, "is not of format"),
        (lambda marker: {**marker, "log_key": "00" * 32}, "do not belong together"),
        (lambda marker: [marker], "is not of format"),
    ],
)
def test_an_edited_marker_is_noticed(made: Workspace, change: Any, words: str) -> None:
    path = made.folder / "workspace.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(IntegrityError, match=words):
        Workspace.open(made.folder)


def test_a_marker_or_key_that_is_cut_off_is_noticed(made: Workspace) -> None:
    key = made.folder / "keys" / "log.key"
    whole = key.read_bytes()
    key.write_bytes(whole[:40])
    with pytest.raises(IntegrityError):
        Workspace.open(made.folder)
    key.write_bytes(whole)
    (made.folder / "workspace.json").write_text('{"format"')
    with pytest.raises(IntegrityError, match="is not readable"):
        Workspace.open(made.folder)


# -- people ----------------------------------------------------------------------------------------


def test_who_acts_must_be_said_where_several_could(made: Workspace) -> None:
    with made.ledger() as ledger:
        bob = Identity.generate("bob")
        made.add_person(ledger, bob, roles=("operator",), actor="ada")
    with pytest.raises(UsageError, match="2 people have keys on this machine: ada, bob"):
        made.identity()
    assert made.identity(name="bob").public == bob.public
    with pytest.raises(UsageError, match="eve has no keys on this machine"):
        made.identity(name="eve")
    with pytest.raises(NotForThisKey, match="holds the keys of bob, not of ada"):
        made.identity(name="ada", key_file=made.folder / "keys" / "bob.key")


def test_keys_are_never_overwritten(made: Workspace, tmp_path: Path) -> None:
    with made.ledger() as ledger:
        size = ledger.size
        for path in (None, tmp_path / "kept"):
            (tmp_path / "kept").write_text("mine")
            with pytest.raises(UsageError, match="exists"):
                made.add_person(
                    ledger,
                    Identity.generate("ada"),
                    roles=("operator",),
                    actor="ada",
                    key_file=path,
                )
        assert ledger.size == size
    assert (tmp_path / "kept").read_text() == "mine"
    assert made.identity().public == ADA.public


def test_a_person_whom_the_ledger_refuses_leaves_no_key_file(
    made: Workspace, tmp_path: Path
) -> None:
    path = tmp_path / "second.key"
    key = SigningKey.from_bytes("bob", ADA.signing.private_bytes())
    posing = Identity(name="bob", signing=key, agreement=ADA.agreement)
    with made.ledger() as ledger, pytest.raises(IntegrityError, match="another person's key"):
        made.add_person(ledger, posing, roles=("operator",), actor="ada", key_file=path)
    assert not path.exists()


def test_a_name_is_given_once(made: Workspace, tmp_path: Path) -> None:
    twin, path = Identity.generate("ada"), tmp_path / "second.key"
    with made.ledger() as ledger, pytest.raises(UsageError, match="ada is on the ring already"):
        made.add_person(ledger, twin, roles=("operator",), actor="ada", key_file=path)
    assert not path.exists()


# -- policies and overlap --------------------------------------------------------------------------


def test_a_policy_is_kept_whole_and_an_edit_of_it_noticed(made: Workspace) -> None:
    policy = load_policy("hospital")
    made.keep_policy(policy)
    assert made.policy(policy.digest) == policy
    (path,) = (made.folder / "policies").iterdir()
    body = json.loads(path.read_text())
    body["total_epsilon"]["value"] = 99.0
    path.write_text(json.dumps(body))
    with pytest.raises(IntegrityError, match="was edited after it came into force"):
        made.policy(policy.digest)
    path.write_text("{}")
    with pytest.raises(IntegrityError, match="that the ledger names is not in"):
        made.policy(policy.digest)
    path.unlink()
    with pytest.raises(IntegrityError):
        made.policy(policy.digest)


def test_what_is_known_of_a_data_set_grows_by_groups_and_a_cut_file_is_noticed(
    made: Workspace,
) -> None:
    first, second = (
        HashSet.of(b"".join(bytes([i]) * 16 for i in some)) for some in ((4, 0, 2, 3, 2), (1, 2, 9))
    )
    assert len(made.overlap_known("notes").hashes) == 0
    made.record_overlap_hashes("notes", first)
    before = made.overlap_known("notes")
    made.record_overlap_hashes("notes", second)
    after = made.overlap_known("notes")
    assert (before.hashes, after.hashes) == (first, first | second)
    assert len(after.hashes) == 6
    assert after.commitments[:1] == before.commitments
    assert len(set(after.commitments)) == 2
    assert made.overlap_datasets() == ["notes"]
    path = made.folder / "overlap" / "notes"
    whole = path.read_bytes()
    for end in (1, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(IntegrityError, match=f"are cut off: {end} bytes"):
            made.overlap_known("notes")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert made.overlap_known("notes").commitments[1] != after.commitments[1]
    made.forget_overlap_hashes("notes")
    assert made.overlap_known("notes").commitments == ()


# -- files -----------------------------------------------------------------------------------------


def test_a_private_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "file"
    write_private(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["file"]
    write_private(path, b"new")
    assert path.read_bytes() == b"new"


def test_only_a_canonical_object_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b'{"a":1}\n')
    assert read_canonical(path, "the file") == {"a": 1}
    for text in (b'{"a": 1}', b"[1]", b'{"a":1,"a":1}', b""):
        path.write_bytes(text)
        with pytest.raises(IntegrityError):
            read_canonical(path, "the file")
    with pytest.raises(UsageError, match="cannot read the file"):
        read_canonical(tmp_path / "no", "the file")


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_marker_or_an_integrity_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_private(folder / "keys" / "log.key", bytes(64))
    (folder / "workspace.json").write_bytes(data)
    with pytest.raises(IntegrityError):
        Workspace.open(folder)
