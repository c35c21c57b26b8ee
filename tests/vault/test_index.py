"""The index and the tree over it: order, uniqueness, presence and absence."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privft.errors import IntegrityError
from privft.vault import floe, index
from privft.vault.cells import bucket_bytes
from privft.vault.durable import FileFact, NewFile
from tests.vault.builders import VECTORS

CASES = json.loads((VECTORS / "vault_index.json").read_text())["cases"]
KEY = bytes(range(32))
PLACE = index.Place(lineage=bytes(16), epoch=1, sequence=1)


def tags(count: int) -> list[bytes]:
    return sorted({hashlib.sha256(bytes([1, i % 256, i >> 8])).digest()[:16] for i in range(count)})


def rows_of(chosen: list[bytes]) -> index.Rows:
    data = b"".join(
        index.make_row(tag, bytes(32), (0, 32 + i, 7), hashlib.sha256(tag).digest())
        for i, tag in enumerate(chosen)
    )
    return np.frombuffer(data, dtype=index.UNIT_ROW)


def test_rows_have_the_sizes_that_the_format_states() -> None:
    assert index.UNIT_ROW.itemsize == 96
    assert index.RECORD_ROW.itemsize == 64
    assert index.OPEN_ROW.itemsize == 64


def test_the_root_of_an_empty_vault_is_the_worked_example() -> None:
    low = hashlib.sha256(b"\0" + bytes(16) + bytes(32)).digest()
    high = hashlib.sha256(b"\0" + b"\xff" * 16 + bytes(32)).digest()
    root = index.merkle_root(np.empty(0, index.UNIT_ROW))
    assert root == hashlib.sha256(b"\1" + low + high).digest()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 40_000])
def test_index_and_records_come_back(tmp_path: Path, count: int) -> None:
    rows = rows_of(tags(count))
    fact = index.write_index(tmp_path, KEY, PLACE, b'{"facts":1}', rows)
    facts, again = index.read_index(tmp_path, fact, KEY, PLACE, hashes=True)
    assert facts == b'{"facts":1}'
    assert again.tobytes() == rows.tobytes()
    _, short = index.read_index(tmp_path, fact, KEY, PLACE)
    assert short.dtype.itemsize == 64
    assert all((short[name] == rows[name]).all() for name in short.dtype.names or ())


def test_rows_in_either_byte_order_are_written_alike(tmp_path: Path) -> None:
    rows = rows_of(tags(20))
    native = np.concatenate([rows[:10], rows[10:]])
    fact = index.write_index(tmp_path, KEY, PLACE, b"{}", native)
    assert index.read_index(tmp_path, fact, KEY, PLACE, hashes=True)[1].tobytes() == rows.tobytes()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_own_vectors(tmp_path: Path, case: dict[str, Any]) -> None:
    key, lineage, sealed = (bytes.fromhex(case[name]) for name in ("key", "lineage", "sealed"))
    place = index.Place(lineage=lineage, epoch=case["epoch"], sequence=case["sequence"])
    (tmp_path / "file").write_bytes(sealed)
    fact = FileFact(name="file", size_bytes=len(sealed), sha256=hashlib.sha256(sealed).hexdigest())

    def read() -> tuple[bytes, index.Rows]:
        if case["file"] == "records":
            return b"", index.read_records(tmp_path, fact, key, place)
        return index.read_index(tmp_path, fact, key, place, hashes=True)

    if case["expect"] == "refused":
        with pytest.raises(IntegrityError):
            read()
        return
    facts, rows = read()
    assert rows.tobytes().hex() == case["rows"]
    assert facts.hex() == case.get("facts", "")
    assert case["file"] == "records" or index.merkle_root(rows).hex() == case["root"]


def sealed_index(folder: Path, plaintext: bytes) -> FileFact:
    file = NewFile.create(folder, "index", ".floe")
    sealer = floe.Sealer(KEY, PLACE.aad(b"privft-index-v1"), file, segment_bytes=1 << 18)
    sealer.write(plaintext)
    sealer.close()
    return file.finish()


def padded(text: bytes) -> bytes:
    return text.ljust(bucket_bytes(len(text)), b"\0")


def body(count: int, chosen: bytes, facts: bytes = b"{}") -> bytes:
    return struct.pack(">I", len(facts)) + facts + struct.pack(">Q", count) + chosen


TWO = rows_of(tags(2)).tobytes()


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\5{}",
        b"\xff\xff\xff\xff{}",
        struct.pack(">I", 2) + b"{}" + bytes(7),
        padded(body(3, TWO)[:-1]),
        padded(body(1, TWO)),
        padded(body(2**64 - 1, TWO)),
        padded(body(2, TWO)) + b"\0",
        padded(body(2, TWO))[:-1],
        body(2, TWO),
        padded(body(2, TWO))[:-1] + b"\1",
        padded(body(2, rows_of(tags(2)[::-1]).tobytes())),
        padded(body(2, rows_of(tags(1) * 2).tobytes())),
    ],
    ids=[
        *("empty", "short", "facts cut", "facts huge", "no number", "rows missing", "too few rows"),
        *("number huge", "zeros too many", "zeros missing", "no zeros", "no zeros at the end"),
        *("out of order", "twice"),
    ],
)
def test_a_sealed_index_that_makes_no_sense_is_refused(tmp_path: Path, plaintext: bytes) -> None:
    with pytest.raises(IntegrityError):
        index.read_index(tmp_path, sealed_index(tmp_path, plaintext), KEY, PLACE)


def test_the_padded_text_by_hand_is_what_is_read(tmp_path: Path) -> None:
    """So that the faults above are the only ones."""
    fact = sealed_index(tmp_path, padded(body(2, TWO)))
    facts, again = index.read_index(tmp_path, fact, KEY, PLACE, hashes=True)
    assert (facts, again.tobytes()) == (b"{}", TWO)


def test_lengths_of_files_tell_counts_to_a_quarter_only(tmp_path: Path) -> None:
    records = np.zeros(400, dtype=index.RECORD_ROW)
    for sizes in (
        [index.write_index(tmp_path, KEY, PLACE, b"{}", rows_of(tags(n))) for n in range(300, 340)],
        [index.write_records(tmp_path, KEY, PLACE, records[:n]) for n in range(330, 380)],
    ):
        assert len({fact.size_bytes for fact in sizes}) == 1


def test_order_is_checked_across_every_boundary(tmp_path: Path) -> None:
    chosen = tags(40_000)
    for place in (0, 1, 16_383, 16_384, 16_385, 39_998):
        rows = rows_of(chosen)[: len(chosen)].copy()
        rows[[place, place + 1]] = rows[[place + 1, place]]
        fact = index.write_index(tmp_path, KEY, PLACE, b"{}", rows)
        with pytest.raises(IntegrityError, match="twice"):
            index.read_index(tmp_path, fact, KEY, PLACE)


@pytest.mark.parametrize(
    "other",
    [
        dataclasses.replace(PLACE, lineage=bytes(15) + b"\1"),
        dataclasses.replace(PLACE, epoch=2),
        dataclasses.replace(PLACE, sequence=2),
    ],
)
def test_an_index_opens_in_its_place_only(tmp_path: Path, other: index.Place) -> None:
    fact = index.write_index(tmp_path, KEY, PLACE, b"{}", rows_of(tags(3)))
    with pytest.raises(IntegrityError):
        index.read_index(tmp_path, fact, KEY, other)
    with pytest.raises(IntegrityError):
        index.read_records(tmp_path, fact, KEY, PLACE)


def test_presence_and_absence_in_every_small_tree() -> None:
    checked = 0
    for count in range(18):
        present = tags(count)
        rows, root = rows_of(present), index.merkle_root(rows_of(present))
        for tag in present:
            proof = index.prove(rows, tag)
            assert proof.present
            index.verify_proof(proof, root)
            checked += 1
        for tag in [hashlib.sha256(bytes([2, i])).digest()[:16] for i in range(12)]:
            proof = index.prove(rows, tag)
            assert not proof.present
            index.verify_proof(proof, root)
            checked += 1
    assert checked == 369


def test_leaves_between_any_two_places_are_those_of_all() -> None:
    rows = rows_of(tags(9))
    everything = list(index.leaves(rows))
    assert len(everything) == 11
    for start in range(12):
        for stop in range(start, 12):
            assert list(index.leaves(rows, start, stop)) == everything[start:stop]


def test_a_proof_in_a_large_tree() -> None:
    rows = rows_of(tags(40_000))
    root = index.merkle_root(rows)
    for tag in (tags(40_000)[17], bytes(16)[:-1] + b"\1", b"\xfe" * 16):
        index.verify_proof(index.prove(rows, tag), root)


def test_no_altered_proof_holds() -> None:
    rows = rows_of(tags(9))
    root = index.merkle_root(rows)
    absent = hashlib.sha256(b"absent").digest()[:16]
    refused = 0
    for tag in (tags(9)[4], absent):
        proof = index.prove(rows, tag)
        variants = [
            dataclasses.replace(proof, tag=bytes(16)),
            dataclasses.replace(proof, tag=hashlib.sha256(b"other").digest()[:16]),
            dataclasses.replace(proof, position=proof.position + 1),
            dataclasses.replace(proof, position=proof.position - 1),
            dataclasses.replace(proof, leaves=proof.leaves + proof.leaves),
            dataclasses.replace(proof, leaves=(), paths=()),
        ]
        for which in range(len(proof.leaves)):
            for byte in range(48):
                leaf = bytearray(proof.leaves[which])
                leaf[byte] ^= 1
                leaves = list(proof.leaves)
                leaves[which] = bytes(leaf)
                variants.append(dataclasses.replace(proof, leaves=tuple(leaves)))
            for step in range(len(proof.paths[which])):
                paths = [list(path) for path in proof.paths]
                paths[which][step] = bytes(32)
                variants.append(dataclasses.replace(proof, paths=tuple(map(tuple, paths))))
        for variant in variants:
            with pytest.raises((IntegrityError, ValueError)):
                index.verify_proof(variant, root)
            refused += 1
    assert refused > 150


def test_two_leaves_that_are_no_neighbours_prove_no_absence() -> None:
    rows = rows_of(tags(9))
    left, right = index.prove(rows, tags(9)[2]), index.prove(rows, tags(9)[4])
    forged = index.Proof(
        tag=tags(9)[3],
        size=left.size,
        position=left.position,
        leaves=left.leaves + right.leaves,
        paths=left.paths + right.paths,
    )
    with pytest.raises(IntegrityError):
        index.verify_proof(forged, index.merkle_root(rows))


def test_both_searches_find_every_tag_and_no_other() -> None:
    same_high = [bytes(8) + struct.pack(">Q", i) for i in range(0, 40, 2)]
    chosen = sorted(same_high + tags(200))
    rows = rows_of(chosen)
    finder = index.Finder(rows)
    for place, tag in enumerate(chosen):
        assert index.find(rows, tag) == finder.position(tag) == place
    rng = random.Random(1)
    for tag in [rng.randbytes(16) for _ in range(50)] + [bytes(15) + b"\1", b"\xff" * 16]:
        assert index.find(rows, tag) == finder.position(tag) == -1
