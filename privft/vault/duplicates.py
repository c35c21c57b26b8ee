"""Text that several units share, found by sketches; counted and reported, never removed.

The guarantee of one unit covers what that unit adds.  Where the same note stands in the files of
two patients, removing one of them leaves the note in the other: the guarantee holds as stated, and
means less than a reader thinks.  So the operator is told.  Nothing is dropped, since whether one
unit's record stays would then depend on another unit, which breaks the guarantee itself.

Sketch of a record (MinHash, Broder 1997, with banding):
    words      lower case, letters and digits, every digit read as 0
    shingles   every 3 words in a row (one shingle of all words when there are fewer)
    MinHash    16 hash functions a * h + b (mod 2^64, a odd) on 64-bit shingle hashes; the least of
               each
    bands      4 bands of 4 minima, each hashed to 8 bytes
Two records are near-duplicates when a band agrees: with probability 1 - (1 - s^4)^4 at similarity
s (Jaccard, of shingle sets): 0.23 at 0.5, 0.88 at 0.8, 0.99 at 0.9, 1 at 1.

The sketch is in the sealed index only; it is as private as the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.vault.index import Rows

BANDS = 4
_PER_BAND = 4
_SHINGLE_WORDS = 3
_WORD = re.compile(r"\w+")
_DIGIT = re.compile(r"\d")
_ASCII = bytes(
    ord("0") if (char := chr(code)).isdigit() else ord(char.lower()) if _WORD.match(char) else 32
    for code in range(128)
).ljust(256, b" ")


def _constants(name: str, count: int) -> NDArray[np.uint64]:
    """Fixed odd numbers: the sketch must be the same in every process."""
    data = hashlib.shake_256(b"privft-sketch-v1:" + name.encode()).digest(8 * count)
    return np.frombuffer(data, dtype="<u8") | np.uint64(1)


_PLACE = _constants("place", _SHINGLE_WORDS)
_SCALE = _constants("scale", BANDS * _PER_BAND)[:, None]
_SHIFT = _constants("shift", BANDS * _PER_BAND)[:, None]
_FOLD = _constants("fold", _PER_BAND)
_OF_BYTE = _constants("byte", 256)
_OF_PLACE = _constants("letter", 64)
_MIX = _constants("mix", 1)


def bands(texts: Sequence[str]) -> NDArray[np.uint64]:
    """The four bands of each of T > 0 texts, shape (T, 4).

    Many texts at once cost less than one by one.  Memory: about 40 bytes a letter of all of them,
    and 300 a word.
    """
    hashes, counts = _hashes_of_words([_folded(text) for text in texts])
    # words that are not there, with hash 0, make one shingle of less than three words
    room = np.maximum(counts, _SHINGLE_WORDS)
    starts, old = _sums(room), _sums(counts)
    padded = np.zeros(starts[-1], dtype=np.uint64)
    padded[np.arange(len(hashes)) + np.repeat((starts - old)[:-1], counts)] = hashes
    length = len(padded) - _SHINGLE_WORDS + 1
    shingles = padded[:length] * _PLACE[0]
    for step in range(1, _SHINGLE_WORDS):
        shingles += padded[step : step + length] * _PLACE[step]
    shingles ^= shingles >> np.uint64(29)
    spread = shingles * _SCALE  # (16, shingles)
    spread += _SHIFT
    # the shingles of a text, then the two that reach over into the next one and are left out
    bounds = np.ravel([starts[:-1], starts[1:] - (_SHINGLE_WORDS - 1)], order="F")[:-1]
    minima = np.minimum.reduceat(spread, bounds, axis=1)[:, ::2]
    folded: NDArray[np.uint64] = (
        minima.reshape(BANDS, _PER_BAND, len(texts)) * _FOLD[:, None]
    ).sum(axis=1, dtype=np.uint64)
    return folded.T


def _folded(text: str) -> bytes:
    """The words of a text in lower case with zeros for digits, and spaces between them."""
    if text.isascii():  # the same, quicker
        return text.encode().translate(_ASCII)
    return " ".join(_WORD.findall(_DIGIT.sub("0", text.lower()))).encode()


def _hashes_of_words(folded: Sequence[bytes]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """64-bit hashes of all words of the texts, one after another, and how many each text has.

    A word's hash is the sum over its bytes of a number for the byte times one for its place (from
    the 64th on the same), and then mixed.
    """
    data = np.frombuffer(b" ".join([*folded, b""]), dtype=np.uint8)
    letter = data != ord(" ")
    first = letter.copy()
    first[1:] &= ~letter[:-1]
    places = np.flatnonzero(letter)
    starts = np.flatnonzero(first[places])
    ends = np.append(starts[1:], len(places))
    place = np.arange(len(places)) - np.repeat(starts, ends - starts)
    terms = _OF_BYTE[data[places]] * _OF_PLACE[np.minimum(place, len(_OF_PLACE) - 1)]
    hashes: NDArray[np.uint64] = np.add.reduceat(terms, starts)
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    bounds = _sums(np.array([len(text) + 1 for text in folded]))
    return hashes, np.diff(np.searchsorted(places[starts], bounds))


def _sums(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 and the partial sums."""
    return np.concatenate([[0], np.cumsum(counts)])


def record_text(record: Mapping[str, Any]) -> str:
    """All text of a record, in a fixed order."""
    parts = [record.get("text"), record.get("prompt"), record.get("completion")]
    parts += [message["content"] for message in record.get("messages", ())]
    return "\n".join(part for part in parts if part is not None)


@dataclass(frozen=True, kw_only=True)
class SharedText:
    """How many units share text with another unit, and pairs of records to look at."""

    units: int
    records: int
    pairs: tuple[tuple[int, int], ...]


def shared_text(rows: Rows, numbers: NDArray[np.uint64], *, pairs: int = 20) -> SharedText:
    """Near-duplicates across units among record rows (dtype RECORD_ROW).

    `numbers` names each row's place in its source, 0 for rows of earlier intakes; at most `pairs`
    pairs of numbers are returned, of which at least one is new.
    """
    marked = np.zeros(len(rows), dtype=np.bool_)
    found: dict[tuple[int, int], None] = {}
    high, low = rows["unit_high"].astype(np.uint64), rows["unit_low"].astype(np.uint64)
    for band in range(BANDS):
        values = rows["bands"][:, band].astype(np.uint64)
        order = np.argsort(values)
        again = values[order][1:] == values[order][:-1]
        if not again.any():
            continue
        # few records share a band: the finer sorting is for those alone
        repeated = np.zeros(len(rows), dtype=np.bool_)
        repeated[1:] |= again
        repeated[:-1] |= again
        order = order[repeated]
        order = order[np.lexsort((numbers[order], low[order], high[order], values[order]))]
        same_band = values[order][1:] == values[order][:-1]
        other_unit = (high[order][1:] != high[order][:-1]) | (low[order][1:] != low[order][:-1])
        runs = np.concatenate([[0], np.cumsum(~same_band)])
        mixed = np.zeros(len(order), dtype=np.bool_)
        meets = np.flatnonzero(same_band & other_unit)
        mixed[runs[meets]] = True
        marked[order[mixed[runs]]] = True
        for place in meets:
            if len(found) >= pairs:
                break
            first, second = sorted(int(numbers[order[place + step]]) for step in (0, 1))
            if second:
                found[first, second] = None
    units = {(int(one), int(two)) for one, two in zip(high[marked], low[marked], strict=True)}
    return SharedText(units=len(units), records=int(marked.sum()), pairs=tuple(found))
