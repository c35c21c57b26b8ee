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
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16


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
