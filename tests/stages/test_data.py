"""A change of a vault, its entry in the ledger, and what a kill in between leaves."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privft.budget.ledger import Ledger
from privft.stages import data
from privft.stages.overlap import enter
from privft.workspace import opener_of
from tests.stages.world import (
    NOTES,
    SIZE,
    World,
    base,
    note_rows,
    privft,
    released,
    write_rows,
)


class Killed(BaseException):
    """Stands in for a kill: nothing on the way out is to catch it."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def die_before(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    append = Ledger.append

    def dying(self: Ledger, its_kind: str, *args: Any, **kwargs: Any) -> Any:
        if its_kind == kind:
            raise Killed
        return append(self, its_kind, *args, **kwargs)

    monkeypatch.setattr(Ledger, "append", dying)


def erased(world: World) -> tuple[str | Path, ...]:
    unit = world.folder / "unit"
    unit.write_text("p0-3\n")
    return ("vault", "erase", "notes", "--unit-file", unit)


CHANGES: dict[str, Callable[[World], tuple[str | Path, ...]]] = {
    "intake": lambda world: ("vault", "add", "notes", world.folder / "public.jsonl"),
    "vault-rotated": lambda world: ("vault", "rotate", "notes"),
    "vault-erased": erased,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_that_was_killed_before_its_entry_is_noticed_and_completed(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    command = CHANGES[kind](world)
    with monkeypatch.context() as patch:
        die_before(kind, patch)
        with pytest.raises(Killed):
            world.privft(*command)
    plan = world.planned()
    refused = world.privft("train", plan, code=13)
    assert "is not the version that the ledger names" in refused.err
    assert "privft vault verify notes --adopt" in refused.err
    adopted = world.privft("vault", "verify", "notes", "--adopt")
    assert f"the ledger has its {kind} entry" in adopted.err
    assert world.kinds()[-1] == kind
    assert ("certificates" in adopted.err) == (kind == "vault-erased")
    assert "nothing was missing" in world.privft("vault", "verify", "notes", "--adopt").err
    assert "notes: whole" in world.privft("vault", "verify", "notes").out


def test_the_hashes_of_an_intake_that_was_killed_still_count(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded before the vault commits: rather a few too many than one too few."""
    with monkeypatch.context() as patch:
        die_before("intake", patch)
        with pytest.raises(Killed):
            world.privft("vault", "add", "notes", world.folder / "public.jsonl")
    making = ("vault", "create", "copy", "--from", world.folder / "public.jsonl", *NOTES, *SIZE)
    assert "in data set notes already" in world.privft(*making, code=2).err


def test_nothing_is_taken_in_where_what_a_data_set_holds_is_not_known(world: World) -> None:
    """A workspace that lost the hashes, or another enclave's, which lacks the newest ones."""
    known = world.folder / "workspace" / "overlap" / "notes"
    older = known.read_bytes()
    world.privft("vault", "add", "notes", world.folder / "public.jsonl")
    newer = known.read_bytes()
    rows = write_rows(world.folder / "more.jsonl", note_rows(patients=3, seed=5))
    making = ("vault", "create", "more", "--from", rows, *NOTES, *SIZE)
    for held in (None, older, newer[:-1] + bytes([newer[-1] ^ 1])):
        known.unlink()
        if held is not None:
            known.write_bytes(held)
        for command in (making, (*making, "--dry-run"), ("vault", "add", "notes", rows)):
            refused = world.privft(*command, code=13)
            assert "does not know what data set notes holds" in refused.err
            assert "overlap/notes" in refused.err
        known.write_bytes(older)
    known.write_bytes(newer)
    world.privft(*making)


@pytest.mark.parametrize("same", [True, False])
def test_of_two_intakes_at_once_the_later_one_sees_the_other(
    world: World, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """The first one comes between the comparison of the second and its entry."""
    rows = write_rows(world.folder / "more.jsonl", note_rows(patients=3, seed=5))
    other = write_rows(world.folder / "other.jsonl", note_rows(patients=3, seed=6))
    real, sizes = enter, list[int]()

    def late(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(data, "enter", real)
        source = rows if same else other
        world.privft("vault", "create", "first", "--from", source, *NOTES, *SIZE)
        with world.ledger() as ledger:
            sizes.append(ledger.size)
        return real(*args, **kwargs)

    monkeypatch.setattr(data, "enter", late)
    making = ("vault", "create", "second", "--from", rows, *NOTES, *SIZE)
    done = world.privft(*making, code=2 if same else 0)
    with world.ledger() as ledger:
        assert ledger.size == sizes[0] + (0 if same else 2)
    if same:
        assert "in data set first already" in done.err
        assert not (world.folder / "workspace" / "vaults" / "second").exists()
        assert not (world.folder / "workspace" / "overlap" / "second").exists()
    else:
        assert world.kinds()[-4:] == ["dataset-created", "intake"] * 2


def test_a_creation_that_was_killed_before_its_entry_leaves_no_budget(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(world.folder / "more.jsonl", note_rows(patients=3, seed=5))
    making = ("vault", "create", "more", "--from", rows, *NOTES, *SIZE)
    with monkeypatch.context() as patch:
        die_before("dataset-created", patch)
        with pytest.raises(Killed):
            world.privft(*making)
    assert len(world.privft("ledger", "show", "--json").json) == 2
    assert "look, remove it, try again" in world.privft(*making, code=2).err


def test_a_creation_that_was_killed_between_its_entries_is_completed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_rows(world.folder / "more.jsonl", note_rows(patients=3, seed=5))
    with monkeypatch.context() as patch:
        die_before("intake", patch)
        with pytest.raises(Killed):
            world.privft("vault", "create", "more", "--from", rows, *NOTES, *SIZE)
    world.privft("vault", "verify", "more", code=13)
    world.privft("vault", "verify", "more", "--adopt")
    assert world.kinds()[-2:] == ["dataset-created", "intake"]
    assert "more: whole" in world.privft("vault", "verify", "more").out


def test_an_erased_unit_is_out_of_the_vault_and_its_certificate_names_nobody(world: World) -> None:
    done = world.privft(*erased(world))
    assert done.json["payloadType"]
    assert "p0-3" not in done.out
    workspace = world.workspace
    opener = opener_of(workspace.identity())
    with workspace.ledger() as ledger, data.open_vault(workspace, ledger, "notes", opener) as vault:
        assert vault.number_of("p0-3") is None
        assert vault.number_of("p0-4") is not None
        (entry,) = ledger.entries(kind="vault-erased")
    assert "p0-3" not in str(entry.body)
    (kept,) = (world.folder / "workspace" / "certificates").iterdir()
    assert kept.name == f"erasure-{entry.body['commitment'][:16]}.json"
    again = world.privft(*erased(world), code=2)
    assert "p0-3" not in again.err


def test_an_outsider_sees_that_an_erased_unit_is_in_no_later_version(
    world: World, tmp_path: Path
) -> None:
    unit = world.folder / "unit"
    unit.write_text("p0-3\n")
    prove = ("vault", "prove", "notes", "--unit-file", unit)
    certificate, proof = tmp_path / "certificate.json", tmp_path / "proof.json"
    proof.write_text(world.privft(*prove).out)
    assert "a unit is in version 2 of notes" in world.privft("vault", "check-proof", proof).out
    certificate.write_text(world.privft(*erased(world)).out)
    world.privft("vault", "rotate", "notes")
    (tmp_path / "trust.json").write_text(world.privft("ledger", "trust").out)
    check = (
        *("vault", "check-proof", proof, "--certificate", certificate),
        *("--trust", tmp_path / "trust.json"),
    )
    assert "before the erasure" in privft(*check, code=13).err
    done = world.privft(*prove)
    assert "p0-3" not in done.out + done.err
    proof.write_text(done.out)
    assert "the unit that the certificate says was erased is not in version 4" in privft(*check).out
    facts = privft(*check, "--json").json
    assert (facts["present"], facts["certificate"], facts["sequence"]) == (False, True, 4)
    (tmp_path / "trust.json").write_text("{}")
    assert "not a trust root" in privft(*check, code=13).err
    certificate.write_text("[")
    assert "no envelope" in world.privft(*check[:-2], code=13).err


def test_a_recipient_who_was_added_opens_the_vault_and_one_removed_does_not(world: World) -> None:
    world.privft("keys", "create", "bob")
    as_bob = ("vault", "verify", "notes", "--as", "bob")
    world.privft(*as_bob, code=1)
    world.privft("vault", "recipients", "add", "notes", "bob", "--as", "ada")
    assert "notes: whole" in world.privft(*as_bob).out
    world.privft("vault", "recipients", "remove", "notes", "bob", "--as", "ada")
    world.privft(*as_bob, code=1)
    last = ("vault", "recipients", "remove", "notes", "ada", "--as", "ada")
    world.privft(*last, code=2)
    assert "notes: whole" in world.privft("vault", "verify", "notes", "--as", "ada").out


def test_a_vault_is_checked_without_its_key(world: World) -> None:
    world.privft("keys", "create", "bob")
    check = ("vault", "verify", "notes", "--without-key", "--as", "bob")
    assert "notes: files are whole (version 2, " in world.privft(*check).out
    world.privft(*check, "--adopt", code=2)
    (folder,) = (world.folder / "workspace" / "vaults").glob("notes")
    (cells,) = folder.glob("*.seg")
    whole = cells.read_bytes()
    cells.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "was altered" in world.privft(*check, code=13).err
    cells.write_bytes(whole)
    (folder / "cells-0000000000000000.seg").write_bytes(b"")
    assert "1 files do not belong to it" in world.privft(*check).err
    world.privft("vault", "rotate", "notes", "--as", "ada")
    assert "(version 3, " in world.privft(*check).out


def test_a_certificate_names_the_runs_that_may_have_seen_the_unit(tmp_path: Path) -> None:
    done = released()
    world = done.world.copied(tmp_path / "world")
    envelope = world.privft(*erased(world)).json
    body = json.loads(base64.b64decode(envelope["payload"]))
    assert body["runs"] == [done.run]
    with world.ledger() as ledger:
        (entry,) = ledger.entries(kind="vault-erased")
    assert body["ledger_entry"] == {
        "kind": "vault-erased",
        "commitment": entry.body["commitment"],
    }
