"""privft vault: what an operator is told of an intake, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.world import World, base, note_rows, write_rows

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
