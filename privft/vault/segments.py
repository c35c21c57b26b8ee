"""Segment files: many cells, one after another, written once and never changed.

    0    16  "privft-cells-v1\\n"
    16   16  lineage
    32   ...  cells, back to back, in no promised order

Worked example: two cells of 426 bytes make a file of 32 + 852 bytes; their places, as (number of
the file, offset, length), are (0, 32, 426) and (0, 458, 426).

Where a cell begins and ends, and under which key, is only in the sealed index.  A file ends at
256 MiB at the latest (or after one cell that is larger), so that what an erasure has to write again
are single files and not the vault.  A cell that is no longer in the index is dead: it cannot be
opened, since its key is gone, and compaction drops its bytes.

Reading uses `pread` at the place that the index names: a batch costs as many reads as it has
units, however large the vault is.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from privft.errors import IntegrityError, OrderError
from privft.vault.durable import FileFact, NewFile

MAGIC = b"privft-cells-v1\n"
HEADER_BYTES = 32
SEGMENT_FILE_BYTES = 256 << 20
_OPEN_FILES = 64


class SegmentWriter:
    """Append cells to new segment files; a place is (number of the file, offset, length)."""

    def __init__(self, folder: Path, lineage: bytes, first_number: int) -> None:
        self._folder = folder
        self._lineage = lineage
        self._first = first_number
        self._file: NewFile | None = None
        self._finished: list[FileFact] = []

    def append(self, cell: bytes) -> tuple[int, int, int]:
        """Write one sealed cell; return its place."""
        if self._file is not None and self._file.size_bytes + len(cell) > SEGMENT_FILE_BYTES:
            self._finished.append(self._file.finish())
            self._file = None
        if self._file is None:
            self._file = NewFile.create(self._folder, "cells", ".seg")
            self._file.write(MAGIC + self._lineage)
        place = (self._first + len(self._finished), self._file.size_bytes, len(cell))
        self._file.write(cell)
        return place

    def finish(self) -> list[FileFact]:
        """Make all files durable."""
        if self._file is not None:
            self._finished.append(self._file.finish())
            self._file = None
        return self._finished


class SegmentReader:
    """Cells by place, from the segment files of one version of a vault."""

    def __init__(self, folder: Path, lineage: bytes, files: Sequence[FileFact]) -> None:
        self._folder = folder
        self._lineage = lineage
        self._files = files
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, number: int, offset: int, length: int) -> bytes:
        """The sealed bytes at a place."""
        if not 0 <= number < len(self._files):
            raise IntegrityError(f"segment file {number} of {len(self._files)} does not exist")
        if offset < HEADER_BYTES or offset + length > self._files[number].size_bytes:
            raise IntegrityError(f"a cell of {length} bytes lies outside of its segment file")
        cell = os.pread(self._descriptor(number), length, offset)
        if len(cell) != length:
            raise IntegrityError(f"a segment file is cut off: {len(cell)} of {length} bytes")
        return cell

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _descriptor(self, number: int) -> int:
        descriptor = self._open.get(number)
        if descriptor is not None:
            self._open.move_to_end(number)
            return descriptor
        fact = self._files[number]
        try:
            descriptor = os.open(self._folder / fact.name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OrderError(
                f"segment file {fact.name} is gone: the vault was changed, or the file was removed",
                hint="open the vault again; if that fails too, privft vault verify says more",
            ) from None
        self._open[number] = descriptor
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        if os.pread(descriptor, HEADER_BYTES, 0) != MAGIC + self._lineage:
            raise IntegrityError(f"segment file {fact.name} is not one of this vault")
        return descriptor
