"""--dry-run says what would happen, fails where the real thing fails, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from privft.cli.session import Session
from privft.errors import OrderError
from tests.cli.test_recipients import service
from tests.stages.world import World, base, files_below


def revoke(world: World) -> tuple[str | Path, ...]:
    world.privft("keys", "create", "bob")
    return ("keys", "revoke", "bob", "--reason", "left", "--as", "ada")


VERBS: dict[str, Callable[[World], tuple[str | Path, ...]]] = {
    "rotate": lambda world: ("vault", "rotate", "notes"),
    "keys create": lambda world: ("keys", "create", "bob"),
    "keys revoke": revoke,
    "reencrypt": lambda world: ("vault", "rotate", "notes", "--reencrypt"),
    "recipient": lambda world: (
        *("vault", "recipients", "add", "notes"),
        *("--recipient-service", service(world.folder)),
    ),
}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


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


def test_the_ledger_of_a_dry_run_takes_no_entry(world: World) -> None:
    dry = Session(workspace=world.workspace, no_input=True, dry_run=True)
    body = {"name": "ada", "reason": "left"}
    with dry.ledger() as ledger, pytest.raises(OrderError, match="for reading only"):
        ledger.append("key-revoked", body, actor="ada")
