"""The Merkle tree that makes the ledger a log that can only grow (RFC 6962, section 2.1).

Over the entries d(0), ..., d(n-1), each a byte string, with || for concatenation:

    MTH({})      = SHA-256("")                                            the empty tree
    MTH({d})     = SHA-256(0x00 || d)                                     a leaf
    MTH(D[0:n])  = SHA-256(0x01 || MTH(D[0:k]) || MTH(D[k:n]))            k = largest power of 2 < n

The two prefixes keep a leaf from passing for a node.  Worked example: the root over the two
entries "" and 0x00 is SHA-256(0x01 || SHA-256(0x00) || SHA-256(0x00 0x00)) =
fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125.

Names come in pairs: what `X_proof` makes, `verify_X` accepts.  An inclusion proof says "this leaf
is entry i of the tree with this root"; a consistency proof says "the tree of n entries begins with
the tree of m".  Both are lists of at most about log2(n) hashes, and checking needs no ledger.

Provers read stored hashes through one method, `HashReader.node(level, index)`: the root of the
perfect subtree over entries index * 2**level up to (index + 1) * 2**level.  Appending needs only
the *frontier*, the roots of the perfect subtrees that the tree splits into from left to right (as
many as n has one bits).

Verifiers never raise anything but `IntegrityError`, whatever bytes they are given.

A **checkpoint** (c2sp.org/tlog-checkpoint) says "the log `origin` has `size` entries, and this is
their root".  Its text is three lines, and `signing.note_sign` makes a signed note of it:

    privft/ward-7
    2
    +sVCA+fMaWzw38tCySodnbr3CtnmIfS9jZhmLwDjwSU=
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from privft.errors import IntegrityError
from privft.signing import SigningKey, VerifyKey, note_open, note_sign

EMPTY_ROOT = hashlib.sha256(b"").digest()
Frontier = tuple[bytes, ...]


def leaf_hash(data: bytes) -> bytes:
    """Hash of one entry: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def push(frontier: Frontier, size: int, leaf: bytes) -> Frontier:
    """The frontier of the tree of `size` + 1 entries, from that of `size` and one more leaf."""
    subtrees = list(frontier)
    while size & 1:  # a full pair at this level: merge, as binary addition carries
        leaf = node_hash(subtrees.pop(), leaf)
        size >>= 1
    return (*subtrees, leaf)


def root_of(frontier: Frontier) -> bytes:
    """The root of the tree whose perfect subtrees, from left to right, are `frontier`."""
    if not frontier:
        return EMPTY_ROOT
    root = frontier[-1]
    for left in reversed(frontier[:-1]):
        root = node_hash(left, root)
    return root


class HashReader(Protocol):
    """Where provers find stored hashes."""

    def node(self, level: int, index: int) -> bytes:
        """The root of the perfect subtree over entries [index, index + 1) * 2**level."""


class Tree:
    """A growing tree in memory: every stored hash, so about 2 * 32 bytes an entry."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self._levels[0])

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash; amortised constant time."""
        self.extend([leaf])

    def extend(self, leaves: Sequence[bytes]) -> None:
        """Add leaf hashes, in order."""
        self._levels[0].extend(leaves)
        for level, row in enumerate(self._levels):
            if len(row) < 2:
                return
            if level + 1 == len(self._levels):
                self._levels.append([])
            above = self._levels[level + 1]
            above.extend(
                [node_hash(row[at], row[at + 1]) for at in range(2 * len(above), len(row) - 1, 2)]
            )

    def node(self, level: int, index: int) -> bytes:
        """See `HashReader`."""
        return self._levels[level][index]

    def frontier(self) -> Frontier:
        """The perfect subtrees from left to right, the largest first."""
        return tuple(
            self._levels[level][(self.size >> level) - 1]
            for level in reversed(range(self.size.bit_length()))
            if self.size >> level & 1
        )

    @property
    def root(self) -> bytes:
        """The root hash over all entries."""
        return root_of(self.frontier())


def _split(size: int) -> int:
    """The largest power of two smaller than `size` (RFC 6962: k)."""
    return int(1 << (size - 1).bit_length() - 1)


def _subroot(reader: HashReader, start: int, stop: int) -> bytes:
    """MTH(D[start:stop]), where start is a multiple of a power of two >= stop - start."""
    size = stop - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return reader.node(level, start >> level)
    middle = start + _split(size)
    return node_hash(_subroot(reader, start, middle), _subroot(reader, middle, stop))


def root(reader: HashReader, size: int) -> bytes:
    """The root over the first `size` entries."""
    return EMPTY_ROOT if size == 0 else _subroot(reader, 0, size)


def inclusion_proof(reader: HashReader, index: int, size: int) -> list[bytes]:
    """PATH(index, D[0:size]) of RFC 6962, section 2.1.1: siblings from the leaf up."""
    if not 0 <= index < size:
        raise ValueError(f"expected 0 <= index < {size}, got {index}")
    path: list[bytes] = []
    start, stop = 0, size
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(_subroot(reader, middle, stop))
            stop = middle
        else:
            path.append(_subroot(reader, start, middle))
            start = middle
    return path[::-1]


def consistency_proof(reader: HashReader, old: int, new: int) -> list[bytes]:
    """PROOF(old, D[0:new]) of RFC 6962, section 2.1.2; empty for equal sizes."""
    if not 0 < old <= new:
        raise ValueError(f"expected 0 < old size <= {new}, got {old}")
    proof: list[bytes] = []
    start, stop, whole = 0, new, True
    while old != stop:  # SUBPROOF(m, D[start:stop], whole)
        middle = start + _split(stop - start)
        if old <= middle:
            proof.append(_subroot(reader, middle, stop))
            stop = middle
        else:
            proof.append(_subroot(reader, start, middle))
            start, whole = middle, False
    if not whole:
        proof.append(_subroot(reader, start, stop))
    return proof[::-1]


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root_hash: bytes
) -> None:
    """Return when `proof` shows that `leaf` is entry `index` of the tree; `IntegrityError` if not.

    The algorithm of RFC 9162, section 2.1.3.2.
    """
    _check_hashes([leaf, root_hash, *proof])
    if not 0 <= index < size:
        raise IntegrityError(f"entry {index} is not in a tree of {size}")
    at, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise IntegrityError(f"inclusion proof for entry {index} is too long")
        if at & 1 or at == last:
            computed = node_hash(sibling, computed)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise IntegrityError(f"inclusion proof for entry {index} is too short")
    if computed != root_hash:
        raise IntegrityError(f"entry {index} does not lead to the root of {size} entries")


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Return when `proof` shows that the new tree begins with the old; `IntegrityError` if not.

    The algorithm of RFC 9162, section 2.1.4.2.  Every tree extends the empty one, so a check
    against that says nothing and is refused.
    """
    if not 0 < old <= new:
        raise IntegrityError(f"a tree of {new} entries cannot be shown to extend one of {old}")
    if old == new:
        if proof:
            raise IntegrityError(f"expected no proof from {old} to {new} entries")
        if old_root != new_root:
            raise IntegrityError(f"two different roots of {old} entries")
        return
    _check_hashes([old_root, new_root, *proof])
    path = list(proof)
    if old & (old - 1) == 0:  # a perfect subtree: the proof leaves it out
        path.insert(0, old_root)
    if not path:
        raise IntegrityError(f"no proof from {old} to {new} entries")
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    from_old = from_new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise IntegrityError(f"consistency proof from {old} to {new} is too long")
        if at & 1 or at == last:
            from_old, from_new = node_hash(sibling, from_old), node_hash(sibling, from_new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            from_new = node_hash(from_new, sibling)
        at, last = at >> 1, last >> 1
    if last != 0:
        raise IntegrityError(f"consistency proof from {old} to {new} is too short")
    if from_old != old_root or from_new != new_root:
        raise IntegrityError(f"the tree of {new} entries does not extend the one of {old}")


def _check_hashes(hashes: Sequence[bytes]) -> None:
    if any(len(item) != 32 for item in hashes):
        raise IntegrityError("expected hashes of 32 bytes in a proof")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a log: whose it is, how many entries it has, and their root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def signed(self, key: SigningKey) -> str:
        """The signed note; the key signs under the log's origin."""
        text = f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"
        return note_sign(text, key, self.origin)

    @staticmethod
    def open(note: str, key: VerifyKey) -> Checkpoint:
        """The checkpoint in a note that the log's `key` signed; raises `IntegrityError`.

        The key's name must be the origin: a note about another log is refused.
        """
        lines = note_open(note, key).splitlines()
        if len(lines) != 3 or lines[0] != key.name or not re.fullmatch("0|[1-9][0-9]*", lines[1]):
            raise IntegrityError(f"expected a checkpoint of {key.name}: origin, size, root")
        root_hash = base64.b64decode(lines[2])
        if len(root_hash) != 32 or base64.b64encode(root_hash).decode() != lines[2]:
            raise IntegrityError(f"expected a root of 32 bytes in a checkpoint of {key.name}")
        return Checkpoint(origin=lines[0], size=int(lines[1]), root=root_hash)
