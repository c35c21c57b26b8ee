"""Canonical JSON, DSSE envelopes, signed notes and identities."""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.errors import IntegrityError, PrivftError, SignatureError
from privft.signing import (
    Identity,
    SigningKey,
    VerifyKey,
    canonical_json,
    dsse_add_signature,
    dsse_open,
    dsse_sign,
    note_open,
    note_sign,
    parse_canonical,
)

ANN = SigningKey.from_bytes("ann", bytes(range(32)))
BEN = SigningKey.from_bytes("ben", bytes(range(1, 33)))
TRUSTED = {key.public.keyid: key.public for key in (ANN, BEN)}
TYPE = "application/vnd.in-toto+json"

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-(2.0**53) + 1, 2.0**53 - 1)
    | st.floats(1e21, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


def test_canonical_json_is_the_published_example() -> None:
    # RFC 8785, section 3.2.2 and 3.2.3
    value = {
        "numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000f\nA'\u0042\u0022\u005c\\\"/",
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical_json(value) == expected.encode()


@given(JSON)
def test_canonical_json_comes_back_as_it_went(value: Any) -> None:
    data = canonical_json(value)
    assert parse_canonical(data) == value
    assert canonical_json(parse_canonical(data)) == data


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 2**60, 2.0**53, (1, 2), b"x", {1: 2}, "\ud800", [object()]]
)
def test_what_is_not_json_has_no_canonical_form(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"b":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a": 1}',
        b"1.0",
        b"NaN",
        b"1e999",
        b'"\\u0041"',
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_json_in_any_other_form_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        parse_canonical(data)


@given(st.binary(max_size=60))
def test_parse_canonical_raises_nothing_else_on_any_bytes(data: bytes) -> None:
    with suppress(IntegrityError):
        assert canonical_json(parse_canonical(data)) == data


def test_ed25519_signs_as_rfc_8032_says() -> None:
    # RFC 8032, section 7.1, test 2
    key = SigningKey.from_bytes(
        "t", bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    )
    assert key.public.hex == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    assert key.sign(b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540")


def test_a_signature_holds_for_its_data_and_key_only() -> None:
    signature = ANN.sign(b"data")
    ANN.public.verify(signature, b"data")
    for key, given_signature, data in (
        (ANN, signature, b"date"),
        (BEN, signature, b"data"),
        (ANN, signature[:-1], b"data"),
        (ANN, b"", b"data"),
    ):
        with pytest.raises(SignatureError):
            key.public.verify(given_signature, data)


def test_no_repr_shows_a_private_key() -> None:
    person = Identity.generate("ann")
    for secret in (person.signing.seed, person.agreement):
        for text in (repr(person), str(person), repr(person.signing)):
            assert repr(secret) not in text
            assert secret.hex() not in text


def test_an_identity_comes_back_from_its_bytes() -> None:
    person = Identity.generate("ann")
    assert Identity.from_bytes(person.to_bytes()) == person


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", "privft-identity-v2"),
        ("name", "a b"),
        ("name", 3),
        ("ed25519_private", "AB" * 32),
        ("x25519_private", "ab" * 31),
        ("more", "x"),
    ],
)
def test_an_identity_in_another_form_is_refused(field: str, value: object) -> None:
    raw = json.loads(Identity.generate("ann").to_bytes()) | {field: value}
    with pytest.raises(IntegrityError):
        Identity.from_bytes(canonical_json(raw))


def test_an_envelope_opens_for_every_signer() -> None:
    envelope = dsse_add_signature(dsse_sign(b"payload", TYPE, [ANN]), BEN)
    payload, keyids = dsse_open(envelope, TRUSTED, threshold=2, payload_type=TYPE)
    assert payload == b"payload"
    assert keyids == [ANN.public.keyid, BEN.public.keyid]


def test_the_signature_is_over_the_pre_authentication_encoding() -> None:
    envelope = dsse_sign(b"hello world", "http://example.com/HelloWorld", [ANN])
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    ANN.public.verify(signature, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")


def altered(**changes: Any) -> dict[str, Any]:
    return dsse_sign(b"payload", TYPE, [ANN]) | changes


@pytest.mark.parametrize(
    ("envelope", "threshold"),
    [
        (altered(), 2),
        (altered(payload=base64.b64encode(b"other").decode()), 1),
        (altered(payloadType="text/plain"), 1),
        (altered(signatures=[]), 1),
        (altered(signatures=altered()["signatures"] * 2), 1),
        (altered(extra=1), 1),
        (altered(payload="cGF5bG9hZB=="), 1),
        (altered(payload="not base64"), 1),
        (altered(payload=3), 1),
        (altered(signatures="abc"), 1),
        (altered(signatures=[{"keyid": ANN.public.keyid, "sig": "AAAA"}]), 1),
        (altered(signatures=[{"keyid": ANN.public.keyid}]), 1),
        ({}, 1),
    ],
)
def test_an_altered_envelope_is_refused(envelope: dict[str, Any], threshold: int) -> None:
    with pytest.raises(SignatureError):
        dsse_open(envelope, TRUSTED, threshold=threshold, payload_type=TYPE)


def test_strangers_do_not_count() -> None:
    envelope = dsse_sign(b"payload", TYPE, [ANN, BEN])
    with pytest.raises(SignatureError):
        dsse_open(envelope, {ANN.public.keyid: ANN.public}, threshold=2, payload_type=TYPE)


def test_opening_leaves_the_envelope_as_it_was() -> None:
    envelope = dsse_sign(b"payload", TYPE, [ANN])
    before = json.dumps(envelope)
    dsse_open(envelope, TRUSTED, payload_type=TYPE)
    assert json.dumps(envelope) == before


def test_a_note_is_the_one_that_the_go_implementation_publishes() -> None:
    # golang.org/x/mod/sumdb/note, package documentation
    key = VerifyKey(
        name="PeterNeumann",
        raw=base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:],
    )
    note = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n"
        "\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngot"
        "pRZb6KE6RyyBwJnAM=\n"
    )
    assert note_open(note, key).startswith("If you think")


def test_a_note_opens_for_its_key_and_name_only() -> None:
    note = note_sign("a\nb\n", ANN, "ann")
    assert note_open(note, ANN.public) == "a\nb\n"
    for key in (BEN.public, VerifyKey(name="other", raw=ANN.public.raw)):
        with pytest.raises(SignatureError):
            note_open(note, key)


@given(st.data())
def test_no_byte_of_a_note_can_change(data: st.DataObject) -> None:
    note = note_sign("privft/ward-7\n12\nabc=\n", ANN, "ann").encode()
    at = data.draw(st.integers(0, len(note) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != note[at]))
    changed = note[:at] + bytes([value]) + note[at + 1 :]
    try:
        text = changed.decode()
    except UnicodeDecodeError:
        return
    with pytest.raises(SignatureError):
        note_open(text, ANN.public)


@given(st.text(max_size=80))
def test_note_open_raises_nothing_but_its_own_error(note: str) -> None:
    with pytest.raises(PrivftError):
        note_open(note, ANN.public)


@pytest.mark.parametrize("text", ["", "a", "a\n\nb\n", "\n", "a\r\n"])
def test_only_plain_lines_become_a_note(text: str) -> None:
    with pytest.raises(ValueError):
        note_sign(text, ANN, "ann")
