"""The index: where each unit's cell lies and under which key, and the Merkle tree over all cells.

Two sealed files, both streams of FLOE (segment length 262,144) under the epoch key, with
aad = "privft-index-v1" or "privft-records-v1" || lineage (16) || epoch (8) || sequence (8):

index-*.floe      length of facts (4 bytes, big-endian) || facts, canonical JSON
                  || number of rows (8 bytes, big-endian) || unit rows || zeros up to the bucket
    unit row, 96 bytes, big-endian, sorted by tag, each tag once
    0    16  unit tag (`privft.vault.cells`)
    16   32  the key of the cell
    48   4   number of the segment file, in the manifest's order
    52   8   offset of the cell in it
    60   4   length of the cell
    64   32  SHA-256 of the cell

records-*.floe    number of rows (8 bytes, big-endian) || record rows || zeros up to the bucket;
                  read by writers and by `verify`, not to train
    record row, 64 bytes, big-endian, sorted by record tag, each tag once
    0    16  record tag: first 16 bytes of HMAC-SHA-256(tag key, "record:" || record id)
    16   16  tag of its unit
    32   32  four 8-byte bands of its MinHash sketch (`privft.vault.duplicates`)

Whoever reads one of the two holds it against the SHA-256 in the signed manifest too.  The seal
alone would show that somebody with the epoch key wrote it, which every recipient could; the
signature shows that it is what an operator made.

The bucket is that of cells: four steps to each power of two.  So the lengths of these files, which
whoever sees the disk or the manifest knows, say how many units and records there are to within a
quarter and no better.

In memory an open vault holds 64 bytes a unit (the hashes are only loaded to write or verify).

The tree (RFC 6962 hashes, `privft.budget.translog`) is what the signed manifest vouches for:

    leaf i       tag || SHA-256 of cell, sorted by tag
    first, last  two blank leaves, 16 bytes 00 or ff || 32 bytes 00

Sorted leaves make two things provable by a path of about log2(n) hashes: that a unit is in the
vault, and that it is not (two neighbours with the absent tag between them; the blank ends give
every tag two neighbours).  And "no unit twice" can be read off the leaves.  The root does not say
how large the tree is, and need not: that two leaves are neighbours follows from the turns of their
paths (one always right, the other always left, until they meet), whatever size is claimed.
Positions in such a proof betray about how many units there are, so proofs are private, and the root
is not.

Worked example: a unit row of tag 00 .. 0f, key 20 .. 3f, in file 0 at offset 32 with 426 bytes is
    000102030405060708090a0b0c0d0e0f | 2021 .. 3e3f | 00000000 | 0000000000000020 | 000001aa | hash
and an index with facts of 130 bytes and two such rows seals 4 + 130 + 8 + 192 bytes of text, and 50
of zeros, into 74 + 32 + 384 bytes.  Whole examples are in tests/vectors/vault_index.json.  The root
of an empty vault is
SHA-256(01 || SHA-256(00 || 00 x 16 || 00 x 32) || SHA-256(00 || ff x 16 || 00 x 32)).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.budget import translog
from privft.errors import IntegrityError
from privft.vault import floe
from privft.vault.cells import bucket_bytes
from privft.vault.digested import digested
from privft.vault.durable import FileFact, NewFile

SEGMENT_BYTES = 1 << 18
_MAX_FACTS_BYTES = 1 << 26
_ROWS_AT_ONCE = 1 << 14
_TAG = struct.Struct(">QQ")
_COUNT = struct.Struct(">Q")

UNIT_ROW = np.dtype(
    [
        ("tag_high", ">u8"),
        ("tag_low", ">u8"),
        ("key", "V32"),
        ("segment", ">u4"),
        ("offset", ">u8"),
        ("length", ">u4"),
        ("hash", "V32"),
    ]
)
RECORD_ROW = np.dtype(
    [
        ("tag_high", ">u8"),
        ("tag_low", ">u8"),
        ("unit_high", ">u8"),
        ("unit_low", ">u8"),
        ("bands", ">u8", (4,)),
    ]
)
_LEAF = np.dtype([(name, UNIT_ROW[name]) for name in ("tag_high", "tag_low", "hash")])
_OPEN_FIELDS = ["tag_high", "tag_low", "key", "segment", "offset", "length"]
OPEN_ROW = np.dtype([(name, UNIT_ROW[name].newbyteorder("=")) for name in _OPEN_FIELDS])
"""A unit row in memory without its hash: 64 bytes."""

Rows = NDArray[np.void]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which vault and which version of it a sealed file belongs to."""

    lineage: bytes
    epoch: int
    sequence: int

    def aad(self, domain: bytes) -> bytes:
        """The associated data of a sealed file."""
        return domain + self.lineage + struct.pack(">QQ", self.epoch, self.sequence)


_INDEX = b"privft-index-v1"
_RECORDS = b"privft-records-v1"


def write_index(folder: Path, key: bytes, place: Place, facts: bytes, rows: Rows) -> FileFact:
    """Seal facts and unit rows (dtype UNIT_ROW, sorted) into a new file."""
    file = NewFile.create(folder, "index", ".floe")
    sealer = floe.Sealer(key, place.aad(_INDEX), file, segment_bytes=SEGMENT_BYTES)
    sealer.write(struct.pack(">I", len(facts)) + facts)
    _write_rows(sealer, rows, UNIT_ROW, 4 + len(facts))
    return file.finish()


def write_records(folder: Path, key: bytes, place: Place, rows: Rows) -> FileFact:
    """Seal record rows (dtype RECORD_ROW, sorted) into a new file."""
    file = NewFile.create(folder, "records", ".floe")
    sealer = floe.Sealer(key, place.aad(_RECORDS), file, segment_bytes=SEGMENT_BYTES)
    _write_rows(sealer, rows, RECORD_ROW, 0)
    return file.finish()


def _write_rows(sealer: floe.Sealer, rows: Rows, stored: np.dtype[Any], before: int) -> None:
    """The number of rows, the rows, and the zeros, after `before` bytes of text."""
    sealer.write(_COUNT.pack(len(rows)))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        # numpy turns to the machine's byte order where it joins arrays; the format is big-endian
        sealer.write(rows[start : start + _ROWS_AT_ONCE].astype(stored).tobytes())
    used = before + _COUNT.size + len(rows) * stored.itemsize
    zeros = bucket_bytes(used) - used
    for start in range(0, zeros, SEGMENT_BYTES):
        sealer.write(bytes(min(SEGMENT_BYTES, zeros - start)))
    sealer.close()


def read_index(
    folder: Path, fact: FileFact, key: bytes, place: Place, *, hashes: bool = False
) -> tuple[bytes, Rows]:
    """Facts, and unit rows as OPEN_ROW (with `hashes`, as UNIT_ROW).

    Guarantees: the whole file was verified, and is the one that `fact` is about; the tags increase
    strictly, so no unit is in twice.
    """
    with digested(folder, fact) as source:
        opener = floe.Opener(key, place.aad(_INDEX), source)
        if opener.plaintext_bytes < 4:
            raise IntegrityError("an index without facts")
        head = bytearray(opener.segment(0))
        facts_bytes = struct.unpack_from(">I", head)[0]
        if facts_bytes > min(_MAX_FACTS_BYTES, opener.plaintext_bytes - 4):
            raise IntegrityError(f"an index that claims facts of {facts_bytes} bytes")
        position = 1
        while len(head) < 4 + facts_bytes:
            head += opener.segment(position)
            position += 1
        facts, rest = bytes(head[4 : 4 + facts_bytes]), bytes(head[4 + facts_bytes :])
        rows = _read_rows(opener, position, rest, UNIT_ROW, UNIT_ROW if hashes else OPEN_ROW)
    _check_order(rows)
    return facts, rows


def read_records(folder: Path, fact: FileFact, key: bytes, place: Place) -> Rows:
    """Record rows, with the guarantees of `read_index`: no record is in twice."""
    with digested(folder, fact) as source:
        opener = floe.Opener(key, place.aad(_RECORDS), source)
        rows = _read_rows(opener, 0, b"", RECORD_ROW, RECORD_ROW)
    _check_order(rows)
    return rows


def _read_rows(
    opener: floe.Opener, position: int, rest: bytes, stored: np.dtype[Any], wanted: np.dtype[Any]
) -> Rows:
    """What `_write_rows` wrote, in `rest` and in the segments from `position` on, as `wanted`.

    A row may lie across two segments: what is left of one is carried to the front of the next.
    """
    ahead = max(0, opener.plaintext_bytes - position * opener.inner_bytes)
    before = opener.plaintext_bytes - ahead - len(rest)
    while len(rest) < _COUNT.size and position < opener.segments:
        rest += opener.segment(position)
        position += 1
    if len(rest) < _COUNT.size:
        raise IntegrityError(f"rows without their number, in {len(rest)} bytes")
    (total,) = _COUNT.unpack_from(rest)
    if bucket_bytes(before + _COUNT.size + total * stored.itemsize) != opener.plaintext_bytes:
        raise IntegrityError(
            f"{total} rows of {stored.itemsize} bytes in {opener.plaintext_bytes} bytes"
        )
    rows = np.empty(total, dtype=wanted)
    rest = rest[_COUNT.size :]
    buffer = bytearray(rest).ljust(max(len(rest), stored.itemsize) + opener.inner_bytes, b"\0")
    view, held, filled = memoryview(buffer), len(rest), 0
    while True:
        count = min(held // stored.itemsize, total - filled)
        part = np.frombuffer(view, dtype=stored, count=count)
        for name in wanted.names or ():
            rows[name][filled : filled + count] = part[name]
        filled += count
        used = count * stored.itemsize
        if filled == total:
            if np.frombuffer(view[used:held], dtype=np.uint8).any():
                raise IntegrityError("something behind the last row")
            used = held
        view[: held - used] = view[used:held]
        held -= used
        if position >= opener.segments:
            return rows
        held += opener.segment_into(position, view[held:])
        position += 1


def _check_order(rows: Rows) -> None:
    for start in range(0, len(rows) - 1, _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE + 1]
        high, low = part["tag_high"], part["tag_low"]
        rising = (high[:-1] < high[1:]) | ((high[:-1] == high[1:]) & (low[:-1] < low[1:]))
        if not rising.all():
            raise IntegrityError("an index in which tags do not increase: a unit stands twice")


def tag_of(row: np.void) -> bytes:
    """The 16 bytes of a row's tag."""
    return tag_bytes(int(row["tag_high"]), int(row["tag_low"]))


def tag_bytes(high: int, low: int) -> bytes:
    """A tag from the two numbers that rows hold."""
    return _TAG.pack(high, low)


def tag_numbers(tag: bytes) -> tuple[int, int]:
    """A tag as the two numbers that rows hold."""
    high, low = _TAG.unpack(tag)
    return high, low


def find(rows: Rows, tag: bytes) -> int:
    """The position of a tag, or -1 (binary search; no copy of a column)."""
    place = _below(rows, tag)
    return place if place < len(rows) and tag_of(rows[place]) == tag else -1


def _below(rows: Rows, tag: bytes) -> int:
    """How many rows have a smaller tag."""
    wanted = tag_numbers(tag)
    low, high = 0, len(rows)
    while low < high:
        middle = (low + high) // 2
        row = rows[middle]
        if (int(row["tag_high"]), int(row["tag_low"])) < wanted:
            low = middle + 1
        else:
            high = middle
    return low


class Finder:
    """Positions of many tags: 8 bytes a row for a column that can be searched at once."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._high = rows["tag_high"].astype(np.uint64)

    def position(self, tag: bytes) -> int:
        """The position of a tag, or -1."""
        high = np.uint64(tag_numbers(tag)[0])
        place = int(np.searchsorted(self._high, high))
        while place < len(self._high) and self._high[place] == high:
            if tag_of(self._rows[place]) == tag:
                return place
            place += 1
        return -1


def make_row(tag: bytes, key: bytes, place: tuple[int, int, int], digest: bytes) -> bytes:
    """The 96 bytes of a unit row; a place is (segment file, offset, length)."""
    segment, offset, length = place
    return tag + key + struct.pack(">IQI", segment, offset, length) + digest


def sort_rows(rows: Rows) -> Rows:
    """The rows in the order of their tags."""
    return rows[np.lexsort((rows["tag_low"], rows["tag_high"]))]


def leaves(rows: Rows, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The leaves of the tree: one for each row (dtype UNIT_ROW), and the two blank ends; those from
    `start` up to `stop`."""
    end = len(rows) + 2 if stop is None else stop
    if start == 0 < end:
        yield _blank(b"\x00")
    last = min(end - 1, len(rows))
    for first in range(max(start - 1, 0), last, _ROWS_AT_ONCE):
        part = rows[first : min(first + _ROWS_AT_ONCE, last)]
        table = np.empty(len(part), dtype=_LEAF)
        for name in _LEAF.names or ():
            table[name] = part[name]
        data = table.tobytes()
        for offset in range(0, len(data), _LEAF.itemsize):
            yield data[offset : offset + _LEAF.itemsize]
    if start < end == len(rows) + 2:
        yield _blank(b"\xff")


def _blank(byte: bytes) -> bytes:
    return byte * 16 + bytes(32)


def merkle_root(rows: Rows) -> bytes:
    """The root over all cells, in memory that does not grow with their number."""
    return _root_over(leaves(rows))


def _root_over(chosen: Iterator[bytes]) -> bytes:
    frontier: translog.Frontier = ()
    for size, leaf in enumerate(chosen):
        frontier = translog.push(frontier, size, translog.leaf_hash(leaf))
    return translog.root_of(frontier)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """That a unit tag is in the tree of a root (one leaf) or is not (two neighbours)."""

    tag: bytes = field(repr=False)
    size: int
    position: int
    leaves: tuple[bytes, ...] = field(repr=False)
    paths: tuple[tuple[bytes, ...], ...] = field(repr=False)

    @property
    def present(self) -> bool:
        """Whether this proves presence, or absence."""
        return len(self.leaves) == 1


class _Hashes:
    """The hashes of the tree (`translog.HashReader`), made when asked for; few are, and kept."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._known: dict[tuple[int, int], bytes] = {}

    def node(self, level: int, index: int) -> bytes:
        if (level, index) not in self._known:
            chosen = leaves(self._rows, index << level, (index + 1) << level)
            self._known[level, index] = _root_over(chosen)
        return self._known[level, index]


def prove(rows: Rows, tag: bytes) -> Proof:
    """Proof that the tag is, or is not, among the rows (dtype UNIT_ROW), in little memory."""
    hashes, size, place = _Hashes(rows), len(rows) + 2, _below(rows, tag)
    present = place < len(rows) and tag_of(rows[place]) == tag
    chosen = [place + 1] if present else [place, place + 1]
    return Proof(
        tag=tag,
        size=size,
        position=chosen[0],
        leaves=tuple(next(leaves(rows, number, number + 1)) for number in chosen),
        paths=tuple(tuple(translog.inclusion_proof(hashes, number, size)) for number in chosen),
    )


def verify_proof(proof: Proof, root: bytes) -> None:
    """Return when the proof holds for this root; IntegrityError when not.

    Guarantees: with `proof.present`, a cell of this tag is in the tree; without, none is.
    """
    if len(proof.leaves) != len(proof.paths) or len(proof.leaves) not in (1, 2):
        raise IntegrityError("expected a proof of one leaf or two neighbours")
    for step, (leaf, path) in enumerate(zip(proof.leaves, proof.paths, strict=True)):
        if len(leaf) != 48:
            raise IntegrityError(f"a leaf of {len(leaf)} bytes, expected 48")
        place = proof.position + step
        translog.verify_inclusion(translog.leaf_hash(leaf), place, proof.size, path, root)
    if proof.present:
        if proof.leaves[0][:16] != proof.tag:
            raise IntegrityError("the proof is about another unit")
    elif not proof.leaves[0][:16] < proof.tag < proof.leaves[1][:16]:
        raise IntegrityError("the two neighbours do not enclose the absent unit")
