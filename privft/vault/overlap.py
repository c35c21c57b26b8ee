"""Keyed hashes by which a workspace notices that two vaults hold the same people or the same text.

A budget belongs to one lineage.  Whoever adds the same records to a second vault would have a
second budget for them, so an intake compares 16-byte hashes of unit ids and of contents with those
of the other vaults, and joins the old budget or stops.  The key is the workspace's own
(`overlap_key`): outside of it the hashes say nothing, and cannot be looked up by guessing names.

    unit     HMAC-SHA-256(overlap_key, "privft-overlap-v1:unit:" || unit id)[0:16]
    content  HMAC-SHA-256(overlap_key, "privft-overlap-v1:content:" || text)[0:16], with the text in
             lower case and every run of spaces as one

Sets of them are sorted arrays, 16 bytes a hash in memory and on disk: an intake of ten million
records has as many.

What one data set holds is a file of groups, one for each intake, that only grows:

    group       count (8 bytes, big-endian), then so many hashes: those that no group before it has
    commitment  HMAC-SHA-256(overlap_key, "privft-overlap-v1:file:" || data set || 0x00 || all
                groups up to some group)

The ledger's intake entry has the commitment as of that intake.  So a file that is missing, cut,
set back, or that another workspace has and this one has not, is told from a data set that holds
nothing; groups beyond it (of an intake that failed) do no harm.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privft.errors import IntegrityError

HASH_BYTES = 16
_COUNT_BYTES = 8


@dataclass(frozen=True, eq=False)
class HashSet:
    """A set of hashes; `|`, `&`, `<=`, `==` and `len` as for any set."""

    sorted: NDArray[np.bytes_]

    @staticmethod
    def of(data: bytes | bytearray) -> HashSet:
        """The hashes that stand one after another in `data`, in any order, perhaps repeated."""
        return HashSet(np.unique(np.frombuffer(bytes(data), dtype=f"S{HASH_BYTES}")))

    def to_bytes(self) -> bytes:
        """The hashes one after another, in order."""
        return self.sorted.tobytes()

    def __len__(self) -> int:
        return len(self.sorted)

    def __or__(self, other: HashSet) -> HashSet:
        return HashSet(np.union1d(self.sorted, other.sorted))

    def __and__(self, other: HashSet) -> HashSet:
        return HashSet(np.intersect1d(self.sorted, other.sorted, assume_unique=True))

    def __sub__(self, other: HashSet) -> HashSet:
        return HashSet(np.setdiff1d(self.sorted, other.sorted, assume_unique=True))

    def __le__(self, other: HashSet) -> bool:
        return len(self & other) == len(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HashSet) and bool(np.array_equal(self.sorted, other.sorted))

    __hash__ = None  # type: ignore[assignment]


def overlap_hash(overlap_key: bytes, kind: Literal["unit", "content"], text: str) -> bytes:
    """16 bytes, equal in two vaults of a workspace when the text is; the module says how."""
    if kind == "content":
        text = " ".join(text.lower().split())
    message = b"privft-overlap-v1:" + kind.encode() + b":" + text.encode()
    return hmac.digest(overlap_key, message, "sha256")[:HASH_BYTES]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of one data set.  commitments: after each group of its file, in order."""

    hashes: HashSet
    commitments: tuple[str, ...]


def group(hashes: HashSet) -> bytes:
    """One group of a data set's file (the module's docstring)."""
    return len(hashes).to_bytes(_COUNT_BYTES, "big") + hashes.to_bytes()


def read_groups(data: bytes, *, dataset: str, overlap_key: bytes) -> Known:
    """What a data set's file says; raises `IntegrityError` for one that is cut off."""
    so_far = hmac.new(overlap_key, b"privft-overlap-v1:file:" + dataset.encode() + b"\0", "sha256")
    found, commitments, start = bytearray(), list[str](), 0
    while start < len(data):
        body = start + _COUNT_BYTES
        end = body + HASH_BYTES * int.from_bytes(data[start:body], "big")
        if end > len(data) or body > len(data):
            raise IntegrityError(f"the overlap hashes of {dataset} are cut off: {len(data)} bytes")
        so_far.update(data[start:end])
        found += data[body:end]
        commitments.append(so_far.hexdigest())
        start = end
    return Known(hashes=HashSet.of(found), commitments=tuple(commitments))
