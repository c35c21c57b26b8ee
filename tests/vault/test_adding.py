"""Adding records: all or nothing, units that grow, ids that are taken, text that is shared."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privft.errors import InputError, OrderError, PolicyRefused, UsageError
from privft.vault import adding
from privft.vault.fields import FieldMap
from privft.vault.manifest import Caps
from privft.vault.overlap import HashSet, overlap_hash
from privft.vault.store import Vault
from tests.vault.builders import (
    SIGNED,
    add_rows,
    content,
    new_vault,
    reopen,
    rows,
    write_jsonl,
)

MARK = "Marker-7f3a"


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_rows_of_one_subject_are_one_unit(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    summary = add_rows(vault, tmp_path / "a.jsonl", rows(30, patients=7))
    assert (summary.rows, summary.records_added, summary.units_new) == (30, 30, 7)
    assert len(vault) == 7
    expected: dict[str, list[str]] = {}
    for row in rows(30, patients=7):
        expected.setdefault(row["patient"], []).append(row["note"])
    assert content(vault) == content(reopen(tmp_path / "v")) == expected
    assert sorted(content(vault)) == sorted(expected)
    assert vault.verify().dead_bytes == 0


def test_a_later_add_joins_the_unit_under_a_new_key(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(10, patients=5))
    number = vault.number_of("p1")
    assert number is not None
    key_before = vault._state.rows[number]["key"].tobytes()
    summary = add_rows(vault, tmp_path / "b.jsonl", rows(3, patients=3, start=100))
    assert (summary.units_new, summary.units_grown, len(vault)) == (0, 3, 5)
    number = vault.number_of("p1")
    assert number is not None
    assert [record["id"] for record in vault.read(number).records] == ["n1", "n6", "n100"]
    assert vault._state.rows[number]["key"].tobytes() != key_before
    check = vault.verify()
    assert check.records == 13
    assert check.dead_bytes is not None
    assert check.dead_bytes > 0


def test_the_unit_is_the_record_where_that_was_chosen(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v", unit="record")
    add_rows(vault, tmp_path / "a.jsonl", rows(10, patients=2))
    assert sorted(content(vault)) == sorted(f"n{number}" for number in range(10))


def test_a_made_id_makes_the_same_file_known_again(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v", unit="record", fields=FieldMap(text="note"))
    add_rows(vault, tmp_path / "a.jsonl", rows(4, patients=2))
    with pytest.raises(InputError, match=r"row 1 of b.jsonl: its record id is already taken"):
        add_rows(vault, tmp_path / "b.jsonl", rows(4, patients=2))


@pytest.mark.parametrize("where", ["same file", "other file", "earlier add", "other unit"])
def test_a_record_id_seen_twice_is_refused(tmp_path: Path, where: str) -> None:
    vault = new_vault(tmp_path / "v")
    first, second = rows(3, patients=3), rows(2, patients=2, start=10)
    clash = {**second[1], "id": "n0"}
    if where == "other unit":
        clash["patient"] = "p9"
    items = [second[0], clash]
    sources = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    if where == "earlier add":
        add_rows(vault, sources[0], first)
        sources = sources[1:]
        write_jsonl(sources[0], items)
    elif where == "other file":
        write_jsonl(sources[0], first)
        write_jsonl(sources[1], items)
    else:
        sources = sources[1:]
        write_jsonl(sources[0], [*first, *items])
    before = files_of(tmp_path / "v")
    with pytest.raises(InputError, match="already taken; nothing was added"):
        vault.add(sources, who="ada", **SIGNED)
    assert files_of(tmp_path / "v") == before
    summary = vault.add(sources, who="ada", skip_bad=True, **SIGNED)
    assert summary.rows_skipped == 1
    assert summary.skipped[0].source == "b.jsonl"
    assert vault.verify().records == 4
    kept = [r["text"] for unit in vault for r in unit.records if r["id"] == "n0"]
    assert kept == [first[0]["note"]]


def bad_items() -> list[dict[str, Any]]:
    items = rows(5, patients=5)
    items[1]["note"] = [MARK]
    items[3]["patient"] = None
    return items


def test_a_bad_row_stops_the_intake_and_adds_nothing(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    before = files_of(tmp_path / "v")
    with pytest.raises(InputError) as caught:
        add_rows(vault, tmp_path / "a.jsonl", bad_items())
    assert "row 2 of a.jsonl: column 'note' is not text; nothing was added" in str(caught.value)
    assert MARK not in "".join(traceback.format_exception(caught.value))
    assert files_of(tmp_path / "v") == before
    assert len(vault) == len(reopen(tmp_path / "v")) == 0


def test_skip_bad_counts(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    summary = add_rows(vault, tmp_path / "a.jsonl", bad_items(), skip_bad=True)
    assert (summary.rows, summary.records_added, summary.rows_skipped) == (5, 3, 2)
    assert [(skip.line, skip.reason) for skip in summary.skipped] == [
        (2, "column 'note' is not text"),
        (4, "column 'patient' is missing or empty"),
    ]
    assert MARK not in repr(summary)


def test_a_unit_has_at_most_its_cap_of_records(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v", caps=Caps(max_records_per_unit=3))
    add_rows(vault, tmp_path / "a.jsonl", rows(2, patients=1))
    with pytest.raises(InputError, match=r"row 2 of b.jsonl: its unit already has 3 records"):
        add_rows(vault, tmp_path / "b.jsonl", rows(2, patients=1, start=10))
    summary = vault.add([tmp_path / "b.jsonl"], who="ada", skip_bad=True, **SIGNED)
    assert (summary.records_added, summary.rows_skipped) == (1, 1)
    check = vault.verify()
    assert check.records == 3
    # the id that was left out is free again
    assert add_rows(vault, tmp_path / "c.jsonl", [{"id": "n11", "patient": "q", "note": "x"}])


def test_grouping_does_not_depend_on_memory(tmp_path: Path) -> None:
    contents = []
    for name, limit in (("roomy", 1 << 30), ("tight", 2_000)):
        vault = new_vault(tmp_path / name)
        source = write_jsonl(tmp_path / "a.jsonl", rows(300, patients=40))
        state, summary = adding.add(vault._state, [source], who="ada", memory_bytes=limit, **SIGNED)
        assert summary.records_added == 300
        opened = Vault(state)
        opened.verify()
        contents.append(content(opened))
        assert not list((tmp_path / name).glob("spill-*"))
    assert contents[0] == contents[1]


def test_spilled_records_are_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vault = new_vault(tmp_path / "v")
    items = [
        {name: f"{MARK} {value}" for name, value in row.items()} for row in rows(200, patients=40)
    ]
    seen: list[bytes] = []
    units = adding.Grouper.units

    def spy(self: Any) -> Any:
        yield from units(self)
        seen.extend(path.read_bytes() for path in (tmp_path / "v").glob("spill-*"))

    monkeypatch.setattr(adding.Grouper, "units", spy)
    source = write_jsonl(tmp_path / "a.jsonl", items)
    adding.add(vault._state, [source], who="ada", memory_bytes=2_000, **SIGNED)
    assert len(seen) == 1
    assert len(seen[0]) > 10_000
    assert MARK.encode() not in seen[0]


def test_shared_text_is_reported_and_kept(tmp_path: Path) -> None:
    note = "The patient came in with a cough and fever on day 3 and was sent home with paracetamol."
    items = rows(20, patients=20)
    items[4]["note"] = note
    items[9]["note"] = note.upper().replace("3", "7")
    vault = new_vault(tmp_path / "v")
    summary = add_rows(vault, tmp_path / "a.jsonl", items)
    assert (summary.shared_text_units, summary.shared_text_records) == (2, 2)
    assert summary.shared_text_pairs == (("a.jsonl:5", "a.jsonl:10"),)
    assert len(vault) == 20
    later = [{"id": "later", "patient": "p99", "note": note.title()}]
    again = add_rows(vault, tmp_path / "b.jsonl", later)
    assert again.shared_text_units == 3
    assert ("the vault", "b.jsonl:1") in again.shared_text_pairs


def test_text_that_one_unit_repeats_is_not_shared(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    items = [{"id": f"n{i}", "patient": "p", "note": "same words every day"} for i in range(5)]
    assert add_rows(vault, tmp_path / "a.jsonl", items).shared_text_units == 0


def test_held_out_units_stay_held_out(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v", caps=Caps(held_out_share=0.25))
    add_rows(vault, tmp_path / "a.jsonl", rows(400, patients=400))
    mask = vault.held_out_mask()
    assert 60 < mask.sum() < 140
    ids = list(content(vault))
    out = {ids[number] for number in np.flatnonzero(mask)}
    add_rows(vault, tmp_path / "b.jsonl", rows(200, patients=600, start=400))
    vault.rotate(**SIGNED)
    later = dict(zip(content(vault), vault.held_out_mask(), strict=True))
    assert {name for name in ids if later[name]} == out


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1 - 2**-53, 50)])
def test_extreme_shares(tmp_path: Path, share: float, expected: int) -> None:
    vault = new_vault(tmp_path / "v", caps=Caps(held_out_share=share))
    add_rows(vault, tmp_path / "a.jsonl", rows(50, patients=50))
    assert vault.held_out_mask().sum() == expected


def test_overlap_can_veto_before_anything_changes(tmp_path: Path) -> None:
    key = bytes(range(32))
    first = new_vault(tmp_path / "one")
    add_rows(first, tmp_path / "a.jsonl", rows(6, patients=3))
    known_units, known_contents = first.unit_hashes(key), first.content_hashes(key)
    assert HashSet.of(overlap_hash(key, "unit", "p1")) <= known_units
    assert not HashSet.of(overlap_hash(key, "unit", "p7")) <= known_units
    assert (len(known_units), len(known_contents)) == (3, 6)

    def refuse(units: HashSet, contents: HashSet) -> None:
        if units & known_units or contents & known_contents:
            raise PolicyRefused("overlap")

    second = new_vault(tmp_path / "two")
    before = files_of(tmp_path / "two")
    options = {"overlap_key": key, "on_overlap": refuse}
    same_person = [{"id": "z", "patient": "p1", "note": "new text"}]
    same_text = [{"id": "z", "patient": "q", "note": rows(1, patients=1)[0]["note"].upper()}]
    for items in (same_person, same_text):
        with pytest.raises(PolicyRefused):
            add_rows(second, tmp_path / "b.jsonl", items, **options)
        assert files_of(tmp_path / "two") == before
    add_rows(second, tmp_path / "b.jsonl", rows(2, patients=9, start=50), **options)
    assert len(second) == 2
    assert second.unit_hashes(key) != second.unit_hashes(bytes(32))


def test_provenance_is_recorded_and_private(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    summary = add_rows(vault, tmp_path / "patients.jsonl", rows(3, patients=3))
    (fact,) = reopen(tmp_path / "v").inspect()["private"]["intakes"]
    assert fact["name"] == "patients.jsonl"
    assert fact["who"] == "ada"
    assert fact["sha256"] == summary.provenance[0].sha256
    assert summary.to_shred == (str(tmp_path / "patients.jsonl"),)
    assert b"patients.jsonl" not in b"".join(files_of(tmp_path / "v").values())


def test_a_source_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = new_vault(tmp_path / "v")
    source = write_jsonl(tmp_path / "a.jsonl", rows(3, patients=3))
    stream = adding.stream_rows

    def meddling(path: Path, **options: Any) -> Any:
        yield from stream(path, **options)
        write_jsonl(path, rows(4, patients=3))

    monkeypatch.setattr(adding, "stream_rows", meddling)
    with pytest.raises(InputError, match="changed while"):
        vault.add([source], who="ada", **SIGNED)
    assert len(reopen(tmp_path / "v")) == 0


def test_a_stale_object_does_not_overwrite_a_newer_version(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    stale = reopen(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(3, patients=3))
    with pytest.raises(OrderError, match="changed since"):
        add_rows(stale, tmp_path / "b.jsonl", rows(3, patients=3))
    assert reopen(tmp_path / "v").manifest_root == vault.manifest_root


def test_no_source_is_refused(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    with pytest.raises(UsageError, match="no source"):
        vault.add([], who="ada", **SIGNED)
