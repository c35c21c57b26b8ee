"""Records -> units, in bounded memory: what does not fit is spilled, but only sealed.

The rows of one subject may lie anywhere in a source of many gigabytes.  They are sorted into 256
partitions by the first byte of their unit's tag; when the buffers of all partitions together exceed
the limit, each is sealed (FLOE) under a key that lives in this process's memory only and appended
to one spill file.  Then one partition at a time is read back, sorted and grouped.  Memory is the
limit, or the largest partition (about 1/256 of the source).

    frame = unit tag (16) || number (8) || lengths of unit id and record (4 + 4) || id || record

A process that dies leaves a file that nobody can open; the next writer removes it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from privft.errors import OrderError
from privft.vault import floe
from privft.vault.durable import NewFile

MEMORY_BYTES = 256 << 20
_PARTITIONS = 256
_SEGMENT_BYTES = 1 << 18
_FRAME = struct.Struct(">16sQII")


@dataclass(frozen=True, kw_only=True)
class NewRecords:
    """The new records of one unit, in the order of their numbers."""

    tag: bytes = field(repr=False)
    unit: str = field(repr=False)
    records: tuple[tuple[int, bytes], ...] = field(repr=False)


class Grouper:
    """Takes records in any order, gives them back unit by unit, units in the order of tags."""

    def __init__(self, folder: Path, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self._folder = folder
        self._limit = memory_bytes
        self._key = os.urandom(floe.KEY_BYTES)
        self._buffers = [bytearray() for _ in range(_PARTITIONS)]
        self._held = 0
        self._spill: NewFile | None = None
        self._spilled: list[list[tuple[int, int]]] = [[] for _ in range(_PARTITIONS)]

    def add(self, tag: bytes, number: int, unit: str, record: bytes) -> None:
        """Take one encoded record of the unit with this tag."""
        name = unit.encode()
        frame = _FRAME.pack(tag, number, len(name), len(record)) + name + record
        self._buffers[tag[0]] += frame
        self._held += len(frame)
        if self._held > self._limit:
            self._spill_all()

    def units(self) -> Iterator[NewRecords]:
        """All units; every record was verified if it had been on disk."""
        if self._spill is not None:
            self._spill.finish()
        for partition in range(_PARTITIONS):
            frames = b"".join([*self._read_back(partition), self._buffers[partition]])
            self._buffers[partition] = bytearray()
            items = sorted(_unframe(frames), key=lambda item: item[:2])
            for tag, group in groupby(items, key=lambda item: item[0]):
                same = list(group)
                records = tuple((number, record) for _, number, _, record in same)
                yield NewRecords(tag=tag, unit=same[0][2], records=records)

    def close(self) -> None:
        """Remove the spill file."""
        if self._spill is not None:
            self._spill.remove()
            self._spill = None

    def _spill_all(self) -> None:
        if self._spill is None:
            self._spill = NewFile.create(self._folder, "spill", ".floe")
        for partition, buffer in enumerate(self._buffers):
            if not buffer:
                continue
            aad = self._aad(partition, len(self._spilled[partition]))
            sealed = floe.seal(self._key, bytes(buffer), aad, segment_bytes=_SEGMENT_BYTES)
            self._spilled[partition].append((self._spill.size_bytes, len(sealed)))
            self._spill.write(sealed)
            self._buffers[partition] = bytearray()
        self._held = 0

    def _read_back(self, partition: int) -> Iterator[bytes]:
        if not self._spilled[partition]:
            return
        if self._spill is None:
            raise OrderError("records were asked for after the spill file was removed")
        with self._spill.path.open("rb") as file:
            for serial, (offset, length) in enumerate(self._spilled[partition]):
                file.seek(offset)
                sealed = file.read(length)
                yield floe.unseal(self._key, sealed, self._aad(partition, serial))

    def _aad(self, partition: int, serial: int) -> bytes:
        return b"privft-spill-v1" + struct.pack(">IQ", partition, serial)


def _unframe(frames: bytes) -> Iterator[tuple[bytes, int, str, bytes]]:
    offset = 0
    while offset < len(frames):
        tag, number, name_bytes, record_bytes = _FRAME.unpack_from(frames, offset)
        start = offset + _FRAME.size
        middle, offset = start + name_bytes, start + name_bytes + record_bytes
        yield tag, number, frames[start:middle].decode(), frames[middle:offset]
