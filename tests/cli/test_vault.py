"""privft vault: what an operator is told of an intake, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_recipients import service
from tests.stages.world import NOTES, SIZE, World, base, note_rows, write_rows

MARK = "Zanzibar-4471"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def test_an_intake_tells_of_text_that_units_share_and_of_what_to_shred(
    world: World, tmp_path: Path
) -> None:
    rows = note_rows(patients=4, seed=7)
    shared = f"{MARK} was seen today with a cough and is to come back in two weeks"
    for serial, place in enumerate((1, len(rows) - 1)):
        rows[place] = {**rows[place], "note": f"{shared.upper() if serial else shared}."}
    source = write_rows(tmp_path / "more.jsonl", rows)
    done = world.privft("vault", "add", "notes", source)
    assert "warning: 2 units share text with others" in done.err
    assert f"  more.jsonl:2 and more.jsonl:{len(rows)}\n" in done.err
    assert f"destroy it when nothing else needs it:\n  {source}\n" in done.err
    assert MARK.lower() not in (done.out + done.err).lower()
    assert done.out == ""


def test_bad_rows_are_named_by_line_and_left_out_on_demand(world: World, tmp_path: Path) -> None:
    rows = [*note_rows(patients=3, seed=7), {"patient": "p", "id": "x", "note": [MARK]}]
    source = write_rows(tmp_path / "bad.jsonl", rows)
    add = ("vault", "add", "notes", source)
    before = world.privft("vault", "inspect", "notes", "--json").json
    refused = world.privft(*add, code=2)
    reason = "column 'note' is not text"
    assert f"error: row {len(rows)} of bad.jsonl: {reason}; nothing was added" in refused.err
    assert "--skip-bad" in refused.err
    assert world.privft("vault", "inspect", "notes", "--json").json == before
    done = world.privft(*add, "--skip-bad")
    assert f"1 bad rows were left out:\n  bad.jsonl line {len(rows)}: {reason}\n" in done.err
    assert MARK not in refused.err + done.err + done.out


def test_an_erasure_names_the_other_data_sets_that_the_person_came_into(
    world: World, tmp_path: Path
) -> None:
    rows = note_rows(patients=2, seed=7)
    first, last = (
        write_rows(tmp_path / f"{name}.jsonl", [{**rows[0], "patient": "P-77", "id": name}])
        for name in ("first", "last")
    )
    world.privft("vault", "add", "notes", first)
    world.privft("vault", "create", "more", *NOTES, *SIZE, "--join", "notes", "--from", last)
    unit = tmp_path / "unit"
    unit.write_text(" P-77\r\n")
    erase = ("vault", "erase", "notes", "--unit-file", unit)
    for words in (("--dry-run",), ()):
        done = world.privft(*erase, *words)
        assert "the same id came into more once: erase it there too" in done.err
        assert "P-77" not in done.err + done.out
    unit.write_text("p0-3\n")
    assert "the same id" not in world.privft(*erase, "--dry-run").err


def test_a_file_with_an_id_is_text_and_is_not_quoted(world: World, tmp_path: Path) -> None:
    unit = tmp_path / "unit"
    unit.write_bytes(MARK.encode() + b"\xff")
    for verb in ("erase", "prove"):
        refused = world.privft("vault", verb, "notes", "--unit-file", unit, code=2)
        assert f"error: {unit} is not UTF-8" in refused.err
        assert MARK not in refused.err
    unit.unlink()
    for verb in ("erase", "prove"):
        assert (
            "cannot read" in world.privft("vault", verb, "notes", "--unit-file", unit, code=2).err
        )


def test_a_person_does_not_push_out_another_recipient_of_the_same_name(
    world: World, tmp_path: Path
) -> None:
    add = ("vault", "recipients", "add", "notes")
    world.privft("keys", "create", "bob", "--as", "ada")
    world.privft(*add, "--recipient-service", service(tmp_path), "--label", "bob", "--as", "ada")
    refused = world.privft(*add, "bob", "--as", "ada", code=2)
    assert "two recipients with the same label" in refused.err
    world.privft(*add, "ada", "--as", "ada")
    facts = world.privft("vault", "inspect", "notes", "--json").json
    kinds = [(recipient["label"], recipient["kind"]) for recipient in facts["recipients"]]
    assert sorted(kinds) == [("ada", "x25519"), ("bob", "service")]
