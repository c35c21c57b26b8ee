"""--dry-run says what would happen, fails where the real thing fails, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from privft.cli.session import Session
from privft.errors import OrderError
from tests.cli.test_recipients import service
from tests.stages.world import (
    NOTES,
    SIZE,
    World,
    base,
    fail_the_control,
    files_below,
    note_rows,
    write_rows,
)


def revoke(world: World) -> tuple[str | Path, ...]:
    world.privft("keys", "create", "bob")
    return ("keys", "revoke", "bob", "--reason", "left", "--as", "ada")


def unit_file(world: World) -> Path:
    path = world.folder / "unit"
    path.write_text("p0-3\n")
    return path


def failed(world: World) -> str:
    """A run whose audit proves nothing, with somebody to waive it."""
    world.privft("keys", "create", "bob", "--role", "approver", "--as", "ada")
    run = world.trained()
    fail_the_control(world)
    world.privft("audit", run, "--as", "ada", code=12)
    return run


def waive(world: World) -> tuple[str | Path, ...]:
    run = failed(world)
    keys = [world.folder / "workspace" / "keys" / f"{name}.key" for name in ("ada", "bob")]
    said = ("--reason", "urgent", "--until", "2999-01-01T00:00:00Z")
    return ("waive", run, "--key", keys[0], "--key", keys[1], *said)


def release(world: World) -> tuple[str | Path, ...]:
    world.privft(*waive(world))
    return ("release", world.runs()[0], "--to", world.folder / "out", "--as", "ada")


VERBS: dict[str, Callable[[World], tuple[str | Path, ...]]] = {
    "rotate": lambda world: ("vault", "rotate", "notes"),
    "keys create": lambda world: ("keys", "create", "bob"),
    "keys revoke": revoke,
    "approve": lambda world: ("approve", world.planned()),
    "train": lambda world: ("train", world.planned()),
    "audit": lambda world: ("audit", world.trained()),
    "waive": waive,
    "release": release,
    "reencrypt": lambda world: ("vault", "rotate", "notes", "--reencrypt"),
    "create": lambda world: (
        *("vault", "create", "more", "--from", world.folder / "public.jsonl", *NOTES, *SIZE),
    ),
    "add": lambda world: ("vault", "add", "notes", world.folder / "public.jsonl"),
    "erase": lambda world: ("vault", "erase", "notes", "--unit-file", unit_file(world)),
    "remove": lambda world: ("vault", "recipients", "remove", "two", "night"),
    "recipient": lambda world: (
        *("vault", "recipients", "add", "notes"),
        *("--recipient-service", service(world.folder)),
    ),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With a second vault that opens for two, so that one can be taken away."""
    world = base().copied(tmp_path / "world")
    night = ("--recipient-service", service(world.folder))
    world.privft("vault", "create", "two", *NOTES, *SIZE)
    world.privft("vault", "recipients", "add", "two", *night, "--label", "night")
    return world


def durable_files(world: World) -> dict[str, bytes]:
    """All files but the two that SQLite makes for every reader of a ledger."""
    found = files_below(world.folder / "workspace")
    return {
        name: data for name, data in found.items() if name not in ("ledger.db-wal", "ledger.db-shm")
    }


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_changes_nothing_and_the_real_thing_does(world: World, verb: str) -> None:
    command = VERBS[verb](world)
    before = durable_files(world)
    done = world.privft(*command, "--dry-run")
    assert done.out == ""
    assert "would" in done.err
    assert done.err.endswith("dry run: nothing was changed\n")
    assert durable_files(world) == before
    real = world.privft(*command)
    assert "dry run" not in real.err
    assert durable_files(world) != before


def test_a_dry_run_of_the_path_fails_with_the_words_of_the_real_thing(world: World) -> None:
    run = world.trained()
    ada = world.folder / "workspace" / "keys" / "ada.key"
    stale = world.folder / "run.plan"
    out = world.folder / "out"
    for command in (
        ("train", "--resume", run),
        ("train", stale),
        ("runs", "close", run, "--reason", "x"),
        ("waive", run, "--key", ada, "--reason", "x", "--until", "2999-01-01T00:00:00Z"),
        ("release", run, "--to", out),
        ("audit", "r-9"),
    ):
        real = world.privft(*command, code=None)
        dry = world.privft(*command, "--dry-run", code=None)
        assert (dry.code, dry.out) == (real.code, real.out), command
        assert real.code != 0
        said = [line for line in dry.err.splitlines() if line.startswith(("error: ", "hint: "))]
        assert said[0].startswith("error: ")
        assert all(line in real.err for line in said), command


def test_the_ledger_of_a_dry_run_takes_no_entry(world: World) -> None:
    dry = Session(workspace=world.workspace, no_input=True, dry_run=True)
    body = {"name": "ada", "reason": "left"}
    with dry.ledger() as ledger, pytest.raises(OrderError, match="for reading only"):
        ledger.append("key-revoked", body, actor="ada")


def test_the_numbers_of_a_dry_run_are_those_of_the_intake(world: World) -> None:
    new = note_rows(patients=4, seed=3)
    grown = [
        row | {"id": f"later-{row['id']}", "note": "other words"} for row in note_rows(patients=2)
    ]
    bad = [{"patient": "p", "id": "x"}, new[0]]
    source = write_rows(world.folder / "mixed.jsonl", [*new, *grown, *bad])
    command = ("vault", "add", "notes", source, "--skip-bad")
    expected = world.privft(*command, "--dry-run").err
    done = world.privft(*command).err
    counts = f"{len(new) + len(grown)} records"
    assert f"{counts} would come in: 4 new units, 2 grown; 2 bad rows would be left out" in expected
    assert f"{counts}: 4 new units, 2 grown" in done
    assert "2 bad rows were left out" in done


def test_a_dry_run_fails_where_the_real_thing_fails(world: World) -> None:
    more = note_rows(patients=2, seed=3)
    sources = {
        "a bad row": [{"patient": "p", "id": "x"}],
        "an id twice": [*more, more[0]],
        "an id that is taken": note_rows(patients=1),
    }
    for name, rows in sources.items():
        command = ("vault", "add", "notes", write_rows(world.folder / "bad.jsonl", rows))
        dry, real = (world.privft(*command, *flag, code=2).err for flag in (("--dry-run",), ()))
        assert dry == real, name
    overlapping = ("vault", "create", "copy", "--from", world.folder / "notes.jsonl", *NOTES, *SIZE)
    joined = (*overlapping, "--join", "notes")
    for command in (
        overlapping,
        ("vault", "create", "notes", *NOTES, *SIZE),
        ("vault", "create", "UPPER", *NOTES, *SIZE),
        ("vault", "recipients", "remove", "notes", "ada"),
        ("vault", "recipients", "remove", "notes", "nobody"),
    ):
        dry, real = (world.privft(*command, *flag, code=2).err for flag in (("--dry-run",), ()))
        assert dry == real
    assert "would be made with the budget of notes" in world.privft(*joined, "--dry-run").err
