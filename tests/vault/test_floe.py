"""FLOE: the published known answers, our own vectors, and every way to damage a sealed text."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given
from hypothesis import strategies as st

from privft.errors import IntegrityError
from privft.vault import floe
from tests.conftest import SHARED
from tests.vault.builders import VECTORS
from tests.vault.tally import noticed

PUBLISHED = sorted((SHARED / "vectors" / "floe").glob("*_ct.txt"))
CASES = json.loads((VECTORS / "vault_floe.json").read_text())["cases"]
KEY = bytes(range(32))


def released_by(key: bytes, aad: bytes, sealed: bytes) -> tuple[bytes, bool]:
    """What a stream hands out, and whether it ended in an IntegrityError; either way of reading."""
    out, copied = b"", io.BytesIO()
    try:
        for chunk in floe.Opener(key, aad, io.BytesIO(sealed)):
            out += chunk
        failed = False
    except IntegrityError:
        failed = True
    try:
        floe.Opener(key, aad, sealed).copy_to(copied)
    except IntegrityError:
        assert failed
    assert copied.getvalue() == out
    return out, failed


@pytest.mark.skipif(not PUBLISHED, reason="../shared is absent")
def test_published_texts_open() -> None:
    assert len(PUBLISHED) == 11
    for path in PUBLISHED:
        sealed = bytes.fromhex(path.read_text().strip())
        plaintext = bytes.fromhex(
            path.with_name(path.name.replace("_ct", "_pt")).read_text().strip()
        )
        bits = 2 if "rotation" in path.name else 20
        opened = floe.unseal(bytes(32), sealed, b"This is AAD", rotation_bits=bits)
        assert opened == plaintext, path.name
        if bits == 20:
            stream = floe.Opener(bytes(32), b"This is AAD", io.BytesIO(sealed))
            assert stream.read_all() == plaintext, path.name


@pytest.mark.skipif(not PUBLISHED, reason="../shared is absent")
def test_a_wrong_rotation_mask_is_noticed() -> None:
    path = next(path for path in PUBLISHED if "rotation" in path.name)
    with pytest.raises(IntegrityError):
        floe.unseal(bytes(32), bytes.fromhex(path.read_text().strip()), b"This is AAD")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_own_vectors(case: dict[str, str]) -> None:
    key, aad, sealed = (bytes.fromhex(case[name]) for name in ("key", "aad", "sealed"))
    if case["expect"] == "opens":
        assert floe.unseal(key, sealed, aad).hex() == case["plaintext"]
        return
    with pytest.raises(IntegrityError) as caught:
        floe.unseal(key, sealed, aad)
    assert isinstance(caught.value, floe.HeaderMismatch) == (case["expect"] == "header")
    released, failed = released_by(key, aad, sealed)
    assert failed
    if case["expect"] != "segment":
        assert not released


def test_key_derivation_is_hkdf_expand_sha384() -> None:
    sealed = floe.seal(KEY, b"vault", b"aad", segment_bytes=64)
    kdf = HKDFExpand(algorithm=hashes.SHA384(), length=32, info=sealed[:42] + b"HEADER_TAG:aad")
    assert sealed[42:74] == kdf.derive(KEY)


def test_the_worked_example_in_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    sealed = floe.seal(bytes(32), b"vault", b"", segment_bytes=64)
    assert len(sealed) == 111
    assert sealed[42:74].hex() in str(floe.__doc__)
    assert sealed[74:78].hex() == "00000025"


@given(
    plaintext=st.binary(max_size=400),
    aad=st.binary(max_size=40),
    segment_bytes=st.integers(33, 200),
    cuts=st.lists(st.integers(0, 400), max_size=4),
)
def test_what_is_sealed_opens(
    plaintext: bytes, aad: bytes, segment_bytes: int, cuts: list[int]
) -> None:
    sealed = floe.seal(KEY, plaintext, aad, segment_bytes=segment_bytes)
    assert len(sealed) == floe.sealed_bytes(len(plaintext), segment_bytes)
    assert floe.unseal(KEY, sealed, aad) == plaintext
    sink = io.BytesIO()
    sealer = floe.Sealer(KEY, aad, sink, segment_bytes=segment_bytes)
    bounds = [0, *sorted(min(cut, len(plaintext)) for cut in cuts), len(plaintext)]
    for start, stop in itertools.pairwise(bounds):
        sealer.write(plaintext[start:stop])
    sealer.close()
    assert len(sink.getvalue()) == len(sealed)
    opener = floe.Opener(KEY, aad, io.BytesIO(sink.getvalue()))
    assert opener.plaintext_bytes == len(plaintext)
    assert floe.unseal(KEY, sink.getvalue(), aad) == opener.read_all() == plaintext
    placed = io.BytesIO(b"before it" + sealed)
    placed.seek(9)
    for source in (sealed, memoryview(sealed), placed):
        sink = io.BytesIO()
        floe.Opener(KEY, aad, source).copy_to(sink)
        assert sink.getvalue() == plaintext
    inner = segment_bytes - floe.OVERHEAD_BYTES
    for position in reversed(range(opener.segments)):
        assert opener.segment(position) == plaintext[position * inner : (position + 1) * inner]


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_quietly(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        floe.unseal(KEY, data, b"")


@given(st.integers(0, 2**32 - 1), st.binary(min_size=64, max_size=80))
def test_a_header_cannot_ask_for_memory(segment_bytes: int, rest: bytes) -> None:
    header = struct.pack(">BBII", 0, 0, segment_bytes, 32) + rest
    with pytest.raises(IntegrityError):
        floe.Opener(KEY, b"", io.BytesIO(header))


def damaged(sealed: bytes, segment_bytes: int) -> dict[str, list[bytes]]:
    """Every damage of each kind to a sealed text."""
    head, body = sealed[:74], sealed[74:]
    parts = [body[i : i + segment_bytes] for i in range(0, len(body), segment_bytes)]
    join = lambda chosen: head + b"".join(chosen)  # noqa: E731
    swap = []
    for i in range(len(parts)):
        for j in range(i):
            order = list(parts)
            order[i], order[j] = order[j], order[i]
            swap.append(join(order))
    return {
        "flip": [
            sealed[:i] + bytes([sealed[i] ^ (1 << bit)]) + sealed[i + 1 :]
            for i in range(len(sealed))
            for bit in (0, 3, 7)
        ],
        "truncate": [sealed[:i] for i in range(len(sealed))],
        "extend": [sealed + bytes(i) for i in (1, 16, 31, 32, 33, 64)],
        "drop": [join(parts[:i] + parts[i + 1 :]) for i in range(len(parts))],
        "repeat": [join(parts[: i + 1] + parts[i:]) for i in range(len(parts))],
        "swap": swap,
    }


def test_no_damage_goes_unnoticed() -> None:
    plaintext = random.Random(1).randbytes(6 * 32 + 7)
    sealed = floe.seal(KEY, plaintext, b"aad", segment_bytes=64)
    other = floe.seal(KEY, plaintext, b"aad", segment_bytes=64)
    cases = damaged(sealed, 64)
    cases["splice"] = [
        sealed[: 74 + 64 * i] + other[74 + 64 * i : 74 + 64 * (i + 1)] + sealed[74 + 64 * (i + 1) :]
        for i in range(7)
    ] + [other[:74] + sealed[74:]]
    counts = {}
    for kind, texts in cases.items():
        for text in texts:
            assert noticed(f"stream: {kind}", lambda: floe.unseal(KEY, text, b"aad"))  # noqa: B023
            released, failed = released_by(KEY, b"aad", text)
            # what a stream released before it noticed is a true prefix
            assert failed
            assert plaintext.startswith(released)
        counts[kind] = len(texts)
    assert sum(counts.values()) > 2000, counts
    assert all(counts.values()), counts


def test_a_text_opens_under_one_key_only() -> None:
    sealed = floe.seal(KEY, b"vault", b"", segment_bytes=64)
    for _ in range(100):
        with pytest.raises(floe.HeaderMismatch):
            floe.unseal(os.urandom(32), sealed, b"")


def test_an_unfinished_stream_is_not_complete() -> None:
    sink = io.BytesIO()
    sealer = floe.Sealer(KEY, b"", sink, segment_bytes=64)
    sealer.write(bytes(32 * 3))
    with pytest.raises(IntegrityError):
        floe.unseal(KEY, sink.getvalue(), b"")
    sealer.close()
    sealer.close()
    assert floe.unseal(KEY, sink.getvalue(), b"") == bytes(32 * 3)
    with pytest.raises(ValueError, match="closed"):
        sealer.write(b"more")


def test_what_was_written_may_change_afterwards() -> None:
    sink, data = io.BytesIO(), bytearray(b"first text")
    sealer = floe.Sealer(KEY, b"", sink, segment_bytes=64)
    sealer.write(data)
    data[:] = b"other text"
    sealer.write(memoryview(data))
    data[:] = b"third text"
    sealer.close()
    assert floe.unseal(KEY, sink.getvalue(), b"") == b"first textother text"


def test_a_file_that_shrinks_while_it_is_read_is_noticed() -> None:
    file = io.BytesIO(floe.seal(KEY, bytes(100), b"", segment_bytes=64))
    opener = floe.Opener(KEY, b"", file)
    file.truncate(150)
    with pytest.raises(IntegrityError, match="early"):
        opener.read_all()


def test_two_sealings_share_nothing_but_their_parameters() -> None:
    one, two = (floe.seal(KEY, bytes(1000), b"", segment_bytes=256) for _ in range(2))
    assert one[:10] == two[:10]
    assert one[10:74] != two[10:74]
    assert len(set(zip(*[iter(one[74:])] * 12, strict=False))) > 60


@pytest.mark.parametrize("segment_bytes", [-1, 0, 32, (1 << 24) + 1])
def test_segment_lengths_outside_the_format_are_refused(segment_bytes: int) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        floe.seal(KEY, b"", b"", segment_bytes=segment_bytes)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_keys_of_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        floe.seal(bytes(length), b"", b"", segment_bytes=64)
