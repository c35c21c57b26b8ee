"""The Merkle tree: published vectors, all small trees, and every hash flipped."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.budget import translog
from privft.budget.translog import (
    EMPTY_ROOT,
    Checkpoint,
    Tree,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    push,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from privft.errors import IntegrityError, PrivftError
from privft.signing import SigningKey, note_sign
from tests.conftest import SHARED

SIZES = range(1, 34)


def tree_of(size: int) -> Tree:
    tree = Tree()
    for number in range(size):
        tree.append(leaf_hash(bytes([number])))
    return tree


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return translog.node_hash(mth(leaves[:k]), mth(leaves[k:]))


def test_roots_are_those_of_the_rfc_by_every_road() -> None:
    tree, frontier = Tree(), ()
    for size in range(70):
        expected = mth([bytes([number]) for number in range(size)])
        assert tree.root == root_of(frontier) == translog.root(tree, size) == expected
        assert tree.frontier() == frontier
        frontier = push(frontier, size, leaf_hash(bytes([size])))
        tree.append(leaf_hash(bytes([size])))


def test_the_worked_example_of_the_docstring() -> None:
    frontier = push(push((), 0, leaf_hash(b"")), 1, leaf_hash(b"\x00"))
    assert root_of(frontier).hex() in (translog.__doc__ or "").replace("\n", "")


def test_every_entry_of_every_small_tree_is_shown_to_be_in_it() -> None:
    for size in SIZES:
        tree = tree_of(size)
        for index in range(size):
            proof = inclusion_proof(tree, index, size)
            verify_inclusion(tree.node(0, index), index, size, proof, tree.root)
            for other in range(size):
                if other != index:
                    with pytest.raises(IntegrityError):
                        verify_inclusion(tree.node(0, index), other, size, proof, tree.root)


def test_every_small_tree_is_shown_to_begin_with_every_smaller_one() -> None:
    for new in SIZES:
        tree = tree_of(new)
        for old in range(1, new + 1):
            proof = consistency_proof(tree, old, new)
            verify_consistency(old, new, translog.root(tree, old), tree.root, proof)


def flipped(hashes: list[bytes], at: int) -> list[bytes]:
    return [bytes([item[0] ^ 1]) + item[1:] if n == at else item for n, item in enumerate(hashes)]


def test_a_proof_with_any_hash_flipped_added_or_missing_fails() -> None:
    size = 21
    tree = tree_of(size)
    for index in range(size):
        proof = inclusion_proof(tree, index, size)
        bad = [flipped(proof, at) for at in range(len(proof))]
        for wrong in (*bad, proof[:-1], [*proof, proof[-1]], [proof[-1], *proof]):
            with pytest.raises(IntegrityError):
                verify_inclusion(tree.node(0, index), index, size, wrong, tree.root)
    for old in range(1, size):
        proof = consistency_proof(tree, old, size)
        bad = [flipped(proof, at) for at in range(len(proof))]
        for wrong in (*bad, proof[:-1], [*proof, proof[-1]]):
            with pytest.raises(IntegrityError):
                verify_consistency(old, size, translog.root(tree, old), tree.root, wrong)


@given(st.integers(-2, 40), st.integers(-2, 40), st.lists(st.binary(max_size=40), max_size=8))
def test_verifiers_raise_nothing_but_their_own_error(a: int, b: int, proof: list[bytes]) -> None:
    one, two = leaf_hash(b"1"), leaf_hash(b"2")
    with pytest.raises(IntegrityError):
        verify_inclusion(one, a, b, proof, two)
    with pytest.raises(IntegrityError):
        verify_consistency(a, b, one, two, proof)


def decoded(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def inclusion(row: dict[str, Any]) -> None:
    proof = [decoded(item) for item in row["proof"] or []]
    verify_inclusion(
        decoded(row["leafHash"]), row["leafIdx"], row["treeSize"], proof, decoded(row["root"])
    )


def consistency(row: dict[str, Any]) -> None:
    proof = [decoded(item) for item in row["proof"] or []]
    verify_consistency(
        row["size1"], row["size2"], decoded(row["root1"]), decoded(row["root2"]), proof
    )


@pytest.mark.skipif(not SHARED.exists(), reason="../shared is absent")
@pytest.mark.parametrize("check", [inclusion, consistency])
def test_the_published_proofs_are_judged_as_published(
    check: Callable[[dict[str, Any]], None],
) -> None:
    rows = json.loads((SHARED / f"vectors/rfc6962/{check.__name__}.json").read_text())
    assert len(rows) >= 90
    for row in rows:
        try:
            check(row)
            refused = False
        except IntegrityError:
            refused = True
        assert refused == row["wantErr"], row["name"]


KEY = SigningKey.from_bytes("privft/ward-7", bytes(range(32)))


def test_a_checkpoint_comes_back_from_its_note() -> None:
    checkpoint = Checkpoint(origin=KEY.name, size=5, root=tree_of(5).root)
    assert Checkpoint.open(checkpoint.signed(KEY), KEY.public) == checkpoint


@pytest.mark.parametrize(
    "text",
    ["other/log\n1\n{root}\n", "{name}\n01\n{root}\n", "{name}\n-1\n{root}\n", "{name}\n1\nAAAA\n",
     "{name}\n1\n{root}\nmore\n", "{name}\n1\n", "{name}\n1\n{root}=\n", "{name}\n1\n%\n"],
)  # fmt: skip
def test_a_signed_note_that_is_no_checkpoint_is_refused(text: str) -> None:
    root = base64.b64encode(tree_of(1).root).decode()
    note = note_sign(text.format(name=KEY.name, root=root), KEY, KEY.name)
    with pytest.raises(PrivftError):
        Checkpoint.open(note, KEY.public)


def test_leaves_that_come_together_make_the_same_tree() -> None:
    leaves = [leaf_hash(bytes([number])) for number in range(40)]
    for first in range(len(leaves)):
        one, many = Tree(), Tree()
        for leaf in leaves:
            one.append(leaf)
        many.extend(leaves[:first])
        many.extend(leaves[first:])
        assert many._levels == one._levels
        assert many.root == one.root
