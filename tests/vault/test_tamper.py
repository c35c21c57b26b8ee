"""A vault on disk, damaged at every structural position: each damage is noticed.

Cells give nothing before they are whole and right; an altered manifest or index stops the opening;
what an opening does not look at (record rows, dead cells) stops the verification.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from privft.errors import IntegrityError
from privft.signing import canonical_json
from privft.vault.index import write_index, write_records
from privft.vault.segments import HEADER_BYTES
from privft.vault.state import State, record_rows
from privft.vault.store import Vault
from privft.vault.verify import verify_files
from tests.vault.builders import (
    SIGNED,
    TRUSTED,
    add_rows,
    content,
    new_vault,
    opener,
    reopen,
    rows,
)
from tests.vault.tally import NOTICED, TRIED, noticed


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]


@pytest.fixture
def filled(tmp_path: Path) -> Vault:
    """Two segment files, six units in seven cells, one of them dead."""
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(5, patients=5))
    add_rows(
        vault,
        tmp_path / "b.jsonl",
        [
            {"id": "x", "patient": "p0", "note": "a later note"},
            {"id": "y", "patient": "p9", "note": "of somebody else"},
        ],
    )
    return vault


def live_cells(state: State) -> list[tuple[int, int, int, int]]:
    """(unit number, segment file, offset, length) of every cell."""
    return [
        (number, int(row["segment"]), int(row["offset"]), int(row["length"]))
        for number, row in enumerate(state.rows)
    ]


def test_every_byte_of_every_cell_counts(filled: Vault) -> None:
    cases = 0
    for number, segment, offset, length in live_cells(filled._state):
        path = filled.path / filled.manifest.segments[segment].name
        whole = path.read_bytes()
        for place in range(offset, offset + length):
            path.write_bytes(flipped(whole, place, place % 8))
            assert noticed("cell: flip", lambda: filled.read(number)), (number, place)  # noqa: B023
            cases += 1
        path.write_bytes(whole)
        filled.read(number)
    assert cases == 6 * 362


def test_cells_cannot_change_places(filled: Vault, tmp_path: Path) -> None:
    other = new_vault(tmp_path / "other")
    add_rows(other, tmp_path / "a.jsonl", rows(5, patients=5))
    foreign = [
        other._reader.read(segment, offset, length)
        for _, segment, offset, length in live_cells(other._state)
    ]
    segments = [filled.path / file.name for file in filled.manifest.segments]
    whole = [path.read_bytes() for path in segments]
    dead = whole[0][HEADER_BYTES:]
    cells = live_cells(filled._state)
    cases = 0
    for number, segment, offset, length in cells:
        candidates = [
            whole[other_segment][other_offset : other_offset + other_length]
            for _, other_segment, other_offset, other_length in cells
            if (other_segment, other_offset) != (segment, offset)
        ]
        # cells of a file that are older versions of live ones are among these windows
        candidates += [dead[i : i + length] for i in range(0, len(dead) - length, 97)]
        candidates += [*foreign, bytes(length), b""]
        mine = whole[segment][offset : offset + length]
        for candidate in candidates:
            data = candidate[:length].ljust(length, b"\0")
            if data == mine:
                continue
            segments[segment].write_bytes(
                whole[segment][:offset] + data + whole[segment][offset + length :]
            )
            assert noticed("cell: swap, splice", lambda: filled.read(number)), number  # noqa: B023
            assert noticed("cell: swap, splice", lambda: verify_files(filled.path, TRUSTED))
            cases += 1
        segments[segment].write_bytes(whole[segment])
    assert cases > 150
    filled.verify()


def test_a_cell_of_an_older_version_of_the_same_unit_is_refused(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    note = "exactly as long as the other"
    add_rows(vault, tmp_path / "a.jsonl", [{"id": "1", "patient": "p", "note": note}])
    ((_, _, offset, length),) = live_cells(vault._state)
    old = (tmp_path / "v" / vault.manifest.segments[0].name).read_bytes()[offset : offset + length]
    add_rows(vault, tmp_path / "b.jsonl", [{"id": "2", "patient": "p", "note": note}])
    ((_, segment, offset, new_length),) = live_cells(vault._state)
    assert new_length == length
    path = tmp_path / "v" / vault.manifest.segments[segment].name
    whole = path.read_bytes()
    path.write_bytes(whole[:offset] + old + whole[offset + length :])
    with pytest.raises(IntegrityError):
        vault.read(0)


def test_every_byte_of_the_index_stops_the_opening(filled: Vault) -> None:
    path = filled.path / filled.manifest.index.name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place, place % 8))
        assert noticed("index: flip, cut", lambda: reopen(filled.path)), place
    for data in (b"", whole[:-1], whole + b"\0", whole[: len(whole) // 2]):
        path.write_bytes(data)
        assert noticed("index: flip, cut", lambda: reopen(filled.path))
    assert len(whole) > 900


def test_a_recipient_who_is_no_signer_cannot_replace_index_or_records(filled: Vault) -> None:
    """The epoch key seals a file that opens; the manifest signs another one of the same length."""
    state = filled._state
    rows, facts = filled._state.rows, canonical_json(state.facts.model_dump())
    writes = {
        state.manifest.index: lambda: write_index(
            filled.path, state.epoch_key, state.place(), facts, rows
        ),
        state.manifest.records: lambda: write_records(
            filled.path, state.epoch_key, state.place(), record_rows(state)
        ),
    }
    for named, write in writes.items():
        path = filled.path / named.name
        whole, made = path.read_bytes(), write()
        assert made.size_bytes == len(whole)
        (filled.path / made.name).rename(path)
        assert noticed("index, records: forged", lambda: record_rows(reopen(filled.path)._state))
        path.write_bytes(whole)
    filled.verify()


def test_every_byte_of_the_records_stops_the_verification(filled: Vault) -> None:
    path = filled.path / filled.manifest.records.name
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place, place % 8))
        assert noticed("records: flip", filled.verify), place
        assert noticed("records: flip", lambda: verify_files(filled.path, TRUSTED)), place
    assert len(whole) > 500


def test_every_byte_of_a_segment_file_stops_the_verification(filled: Vault) -> None:
    for file in filled.manifest.segments:
        path = filled.path / file.name
        whole = path.read_bytes()
        for place in range(0, len(whole), 3):
            path.write_bytes(flipped(whole, place, place % 8))
            assert noticed("segment file: flip", lambda: verify_files(filled.path, TRUSTED)), place
        path.write_bytes(whole)


def test_every_byte_of_the_manifest_counts(filled: Vault) -> None:
    path = filled.path / "manifest.json"
    whole = path.read_bytes()
    payload = json.loads(whole)["payload"]
    cases = 0
    for place in range(len(whole)):
        path.write_bytes(flipped(whole, place, place % 8))
        try:
            vault = reopen(filled.path)
        except NOTICED:
            cases += 1
            TRIED["manifest: flip"] += 1
        else:
            # only what is not signed (spaces of the envelope) may differ
            assert vault.manifest == filled.manifest
            assert place < whole.index(payload.encode()) or place > whole.index(b"payloadType")
    assert cases > len(payload)
    for data in (b"", b"{}", b"[]", whole[:-3], b"\xff" * 9, b"[" * 100_000):
        path.write_bytes(data)
        assert noticed("manifest: cut", lambda: reopen(filled.path))


def test_files_cannot_be_dropped_truncated_extended_or_exchanged(
    filled: Vault, tmp_path: Path
) -> None:
    other = new_vault(tmp_path / "other")
    add_rows(other, tmp_path / "a.jsonl", rows(5, patients=5))
    files = [*filled.manifest.segments, filled.manifest.index, filled.manifest.records]
    foreign = [*other.manifest.segments, other.manifest.index, other.manifest.records]
    wholes = [(filled.path / file.name).read_bytes() for file in files]
    strangers = [(other.path / file.name).read_bytes() for file in foreign]
    for file, whole in zip(files, wholes, strict=True):
        path = filled.path / file.name
        path.unlink()
        assert noticed("file: drop, cut, swap", lambda: reopen(filled.path)), file.name
        rng = random.Random(1)
        changed = [whole[: rng.randrange(len(whole))] for _ in range(20)]
        changed += [whole + bytes(count) for count in (1, 32, 4096)]
        changed += [data for data in (*wholes, *strangers) if data != whole]
        for data in changed:
            path.write_bytes(data)
            assert noticed("file: drop, cut, swap", lambda: reopen(filled.path).verify()), file.name
            assert noticed("file: drop, cut, swap", lambda: verify_files(filled.path, TRUSTED)), (
                file.name
            )
        path.write_bytes(whole)
    filled.verify()


def test_segment_files_cannot_change_names(filled: Vault) -> None:
    one, two = (filled.path / file.name for file in filled.manifest.segments)
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    assert noticed("file: rename", lambda: reopen(filled.path))
    assert noticed("file: rename", lambda: verify_files(filled.path, TRUSTED))


def test_versions_cannot_be_mixed(tmp_path: Path) -> None:
    path = tmp_path / "v"
    vault = new_vault(path)
    add_rows(vault, tmp_path / "a.jsonl", rows(4, patients=4))
    shutil.copytree(path, tmp_path / "old")
    old = vault.manifest
    vault.rotate(**SIGNED)
    root = vault.manifest_root
    add_rows(vault, tmp_path / "b.jsonl", rows(4, patients=4, start=10))
    new = vault.manifest
    texts = {"old": (tmp_path / "old" / "manifest.json").read_bytes()}
    texts["new"] = (path / "manifest.json").read_bytes()
    # the old manifest over the new files
    (path / "manifest.json").write_bytes(texts["old"])
    assert noticed("versions: mix", lambda: reopen(path))
    # the old index or records under the new manifest's names
    (path / "manifest.json").write_bytes(texts["new"])
    for was, now in ((old.index, new.index), (old.records, new.records)):
        whole = (path / now.name).read_bytes()
        (path / now.name).write_bytes((tmp_path / "old" / was.name).read_bytes())
        assert noticed("versions: mix", lambda: reopen(path).verify())
        (path / now.name).write_bytes(whole)
    assert content(reopen(path)) == content(vault)
    # the whole old version is as well signed as ever: only the ledger's root tells
    assert len(reopen(tmp_path / "old")) == 4
    with pytest.raises(IntegrityError, match="ledger"):
        Vault.open(
            tmp_path / "old", opener(), signer_keys=TRUSTED, expected_root=vault.manifest_root
        )
    assert root == old.root
