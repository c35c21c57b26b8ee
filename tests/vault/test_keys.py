"""Recipients: who opens, who does not, and what is said in each case."""

from __future__ import annotations

import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydantic import ValidationError

from privft.errors import IntegrityError, NotForThisKey, UsageError
from privft.vault.keys import (
    CHEAP_FOR_TESTS,
    RFC9106_LOW_MEMORY,
    HeldByPassphrase,
    KeyOpener,
    WrappedKey,
    agreement_opener,
    agreement_recipient,
    passphrase_opener,
    passphrase_recipient,
    unwrap,
    wrap,
    wrap_context,
)
from tests.vault.builders import VECTORS

CASES = json.loads((VECTORS / "vault_keys.json").read_text())["cases"]
CONTEXT = wrap_context(bytes(16), 1)
EPOCH_KEY = bytes(range(32))


def opener_of(case: dict[str, str]) -> KeyOpener:
    if "private" in case:
        return agreement_opener("ada", bytes.fromhex(case["private"]))
    return passphrase_opener(bytes.fromhex(case["passphrase"]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_own_vectors(case: dict[str, object]) -> None:
    context = wrap_context(bytes.fromhex(str(case["lineage"])), int(str(case["epoch"])))
    opener = opener_of(case["opener"])  # type: ignore[arg-type]
    if case["expect"] == "malformed":
        with pytest.raises(ValidationError):
            WrappedKey.model_validate(case["wrap"])
        return
    wrapped = WrappedKey.model_validate(case["wrap"])
    if case["expect"] == "opens":
        assert unwrap([wrapped], opener, context).hex() == case["epoch_key"]
        return
    kind = NotForThisKey if case["expect"] == "not for this key" else IntegrityError
    with pytest.raises(kind) as caught:
        unwrap([wrapped], opener, context)
    assert not isinstance(caught.value, NotForThisKey) or kind is NotForThisKey


def test_several_recipients_each_open() -> None:
    private = X25519PrivateKey.generate()
    people = [
        passphrase_recipient("ward", b"one", cost=CHEAP_FOR_TESTS),
        agreement_recipient("ada", private.public_key().public_bytes_raw()),
        passphrase_recipient("night", b"two", cost=CHEAP_FOR_TESTS),
    ]
    wraps = [wrap(person, EPOCH_KEY, CONTEXT) for person in people]
    for opener in (
        passphrase_opener(b"one"),
        passphrase_opener(b"two"),
        agreement_opener("ada", private.private_bytes_raw()),
    ):
        assert unwrap(wraps, opener, CONTEXT) == EPOCH_KEY
    with pytest.raises(NotForThisKey) as caught:
        unwrap(wraps, passphrase_opener(b"three"), CONTEXT)
    assert "'ward', 'ada', 'night'" in str(caught.value.hint)


def test_a_new_epoch_key_needs_no_passphrase() -> None:
    ward = passphrase_recipient("ward", b"one", cost=CHEAP_FOR_TESTS)
    wrapped = WrappedKey.model_validate_json(wrap(ward, EPOCH_KEY, CONTEXT).model_dump_json())
    again = wrap(wrapped.recipient, bytes(31) + b"\1", CONTEXT)
    assert unwrap([again], passphrase_opener(b"one"), CONTEXT) == bytes(31) + b"\1"


def test_the_default_cost_is_the_second_option_of_rfc_9106() -> None:
    ward = passphrase_recipient("ward", b"one")
    assert isinstance(ward.holding, HeldByPassphrase)
    assert ward.holding.cost == RFC9106_LOW_MEMORY
    assert RFC9106_LOW_MEMORY.model_dump() == {"memory_kib": 65536, "iterations": 3, "lanes": 4}
    started = time.perf_counter()
    assert unwrap([wrap(ward, EPOCH_KEY, CONTEXT)], passphrase_opener(b"one"), CONTEXT)
    assert time.perf_counter() - started > 0.01


def test_an_empty_passphrase_is_refused() -> None:
    with pytest.raises(UsageError, match="0 bytes"):
        passphrase_recipient("ward", b"")


def test_a_public_key_of_low_order_is_refused() -> None:
    with pytest.raises(UsageError, match="not usable"):
        wrap(agreement_recipient("eve", bytes(32)), EPOCH_KEY, CONTEXT)


def test_no_repr_shows_a_secret() -> None:
    private = bytes(range(64, 96))
    shown = repr(passphrase_opener(b"hush hush")) + repr(agreement_opener("ada", private))
    assert "hush" not in shown
    assert private.hex() not in shown
