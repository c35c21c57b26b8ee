"""What an intake remembers of every record until its commit, and of the rows that it left out.

A record is sealed and forgotten; what stays is its row in the records file of the new version
(`privft.vault.index`: tags and sketch, 64 bytes), its place in the sources (8), and the keyed hash
of its text (16), and a hash a unit (16).  So the memory of an intake grows with the number of
records, by these 88 bytes and what sorting them takes, and not with their text.

The place of a record is one number: that of its source, from 1, times 2^44, and its line.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from privft.errors import InputError
from privft.vault import duplicates
from privft.vault.index import RECORD_ROW, Rows
from privft.vault.overlap import HashSet

_REPORTED = 20
_LINE_BITS = 44
_CHARACTERS_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A row that was left out: where, and a reason without content."""

    source: str
    line: int
    reason: str


@dataclass(repr=False)
class Arrivals:
    """What came in, in the order in which it came.  (No repr: a few texts wait in it.)"""

    names: list[str] = field(default_factory=list)
    rows_seen: int = 0
    numbers: array[int] = field(default_factory=lambda: array("Q"))
    skipped: int = 0
    examples: list[Skipped] = field(default_factory=list)
    units: bytearray = field(default_factory=bytearray)
    contents: bytearray = field(default_factory=bytearray)
    _table: bytearray = field(default_factory=bytearray)
    _tags: bytearray = field(default_factory=bytearray)
    _texts: list[str] = field(default_factory=list)
    _characters: int = 0

    def number(self, line: int) -> int:
        """The number that stands for a line of the newest source."""
        return len(self.names) << _LINE_BITS | line

    def place(self, number: int) -> tuple[str, int]:
        """Source and line of a number."""
        if number == 0:
            return "the vault", 0
        return self.names[(number >> _LINE_BITS) - 1], number & ((1 << _LINE_BITS) - 1)

    def take(self, number: int, record_tag: bytes, unit_tag: bytes, text: str) -> None:
        """Remember a record; texts are sketched many at once, and forgotten."""
        self.numbers.append(number)
        self._tags += record_tag + unit_tag
        self._texts.append(text)
        self._characters += len(text)
        if self._characters >= _CHARACTERS_AT_ONCE:
            self._sketch()

    def _sketch(self) -> None:
        if self._texts:
            rows = np.empty((len(self._texts), RECORD_ROW.itemsize), dtype=np.uint8)
            rows[:, :32] = np.frombuffer(self._tags, np.uint8).reshape(-1, 32)
            bands = duplicates.bands(self._texts)
            rows[:, 32:] = np.ascontiguousarray(bands, dtype=">u8").view(np.uint8)
            self._table += rows.tobytes()
        self._tags, self._texts, self._characters = bytearray(), [], 0

    def refuse(self, number: int, reason: str, skip_bad: bool) -> None:
        """Stop at a bad row, or count it."""
        source, line = self.place(number)
        if not skip_bad:
            raise InputError(
                f"row {line} of {source}: {reason}; nothing was added",
                hint="mend the row, or leave bad rows out with --skip-bad",
            )
        self.skipped += 1
        if len(self.examples) < _REPORTED:
            self.examples.append(Skipped(source=source, line=line, reason=reason))

    def hand_over(self) -> tuple[Rows, NDArray[np.uint64]]:
        """The record rows and their numbers, in the order in which they came; not kept here."""
        self._sketch()
        rows = np.frombuffer(self._table, dtype=RECORD_ROW)
        numbers = np.frombuffer(self.numbers, dtype=np.uint64)
        self._table, self.numbers = bytearray(), array("Q")
        return rows, numbers

    def hashes_of_units(self) -> HashSet:
        """The keyed hashes of the ids of all units that came."""
        return HashSet.of(self.units)

    def hashes_of_contents(self) -> HashSet:
        """The keyed hashes of all text that came."""
        return HashSet.of(self.contents)
