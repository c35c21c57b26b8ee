"""Who can open a vault: recipients, and how an epoch key reaches each of them.

Every recipient is an X25519 public key; kinds differ only in who holds the private half:

    x25519       a person, in a key file (`privft keys create`)
    passphrase   this very record, sealed under a key that Argon2id makes from a passphrase
    service      this very record, wrapped by a key service or a token (`privft.vault.services`)

So a new epoch key can be wrapped to everybody with public keys alone: erasing a unit or removing
a recipient needs no passphrase of anybody else.  (A vault that wrapped under the passphrase itself
could not rotate without asking for it.)

Formats
    wrap        = HPKE (RFC 9180) base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM,
                  with info = context, no associated data: 32 bytes of encapsulated key, then 48
                  bytes of sealed epoch key; 80 bytes together
    context     = "privft-vault-wrap-v1" || lineage (16 bytes) || epoch (8 bytes, big-endian)
    passphrase  = FLOE (segment length 256) of the 32 private bytes; key = Argon2id (RFC 9106,
                  version 0x13) of the passphrase with the record's salt and cost; aad =
                  "privft-vault-passphrase-v1" || public key
In a manifest a wrapped recipient reads

    {"epoch_key": 160 hex digits, "recipient": {"holding": {"kind": "x25519"}, "label": "ada",
     "public": 64 hex digits}}

"Not for this key" and "tampered" are different answers (as in age): a passphrase is wrong when the
key-committing header does not match, and altered when what comes after it does not; a key file is
for another recipient when its public key differs.  Altered costs cannot exhaust memory or time:
they are capped before Argon2id runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import BaseModel, ConfigDict, Field

from privft.errors import IntegrityError, NotForThisKey, UsageError
from privft.vault import floe

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_SEGMENT_BYTES = 256
_ALL_ZERO = bytes(32)


Hex16 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Hex80 = Annotated[str, Field(pattern="^[0-9a-f]{160}$")]
Label = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]


class Value(BaseModel):
    """A frozen value read from a file: no unknown field, no conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Argon2Cost(Value):
    """The cost of turning a passphrase into a key; the bounds are what a file may ask for."""

    memory_kib: int = Field(ge=8, le=1 << 20)
    iterations: int = Field(ge=1, le=16)
    lanes: int = Field(ge=1, le=16)


RFC9106_LOW_MEMORY = Argon2Cost(memory_kib=64 * 1024, iterations=3, lanes=4)
"""The second recommended option of RFC 9106, section 4: 64 MiB, three passes."""

CHEAP_FOR_TESTS = Argon2Cost(memory_kib=32, iterations=1, lanes=1)
"""No protection at all; here so that tests of everything else are fast."""


class HeldByPerson(Value):
    """The private key is in somebody's key file."""

    kind: Literal["x25519"] = "x25519"


class HeldByPassphrase(Value):
    """The private key is in `sealed`, under a key made from a passphrase."""

    kind: Literal["passphrase"] = "passphrase"
    salt: Hex16
    cost: Argon2Cost
    sealed: Annotated[str, Field(pattern="^[0-9a-f]{276}$")]


class HeldByService(Value):
    """The private key is in `wrapped`, which only the named service or token can unwrap."""

    kind: Literal["service"] = "service"
    service: Label
    wrapped: Annotated[str, Field(pattern="^([0-9a-f]{2}){1,8192}$")]


Holding = Annotated[HeldByPerson | HeldByPassphrase | HeldByService, Field(discriminator="kind")]


class Recipient(Value):
    """Somebody who can open the vault: a label, a public key, and who holds the private one."""

    label: Label
    public: Hex32
    holding: Holding


class WrappedKey(Value):
    """An epoch key for one recipient."""

    recipient: Recipient
    epoch_key: Hex80


class KeyOpener(Protocol):
    """Whoever can come up with the private key of some recipients."""

    def private_key(self, recipient: Recipient) -> bytes:
        """The 32 private bytes; NotForThisKey when this opener is not for that recipient."""


def agreement_recipient(label: str, public: bytes) -> Recipient:
    """The recipient who holds the private half of this X25519 key (32 raw bytes)."""
    if len(public) != 32:
        raise ValueError(f"expected an X25519 public key of 32 bytes, got {len(public)}")
    return Recipient(label=label, public=public.hex(), holding=HeldByPerson())


def passphrase_recipient(
    label: str, passphrase: bytes, *, cost: Argon2Cost = RFC9106_LOW_MEMORY
) -> Recipient:
    """Whoever knows the passphrase.  It comes from a prompt or a file descriptor, never from argv
    or the environment; this function takes bytes so that nobody is tempted to."""
    if not passphrase:
        raise UsageError("a passphrase of 0 bytes", hint="type at least one word")
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    salt = os.urandom(16)
    sealed = floe.seal(
        _derive(passphrase, salt, cost),
        private.private_bytes_raw(),
        _passphrase_aad(public),
        segment_bytes=_SEGMENT_BYTES,
    )
    holding = HeldByPassphrase(salt=salt.hex(), cost=cost, sealed=sealed.hex())
    return Recipient(label=label, public=public.hex(), holding=holding)


def passphrase_opener(passphrase: bytes) -> KeyOpener:
    """Opens for every recipient whose passphrase this is."""
    return _PassphraseOpener(passphrase)


def agreement_opener(name: str, private: bytes) -> KeyOpener:
    """Opens for the recipient whose X25519 private key (32 raw bytes) this is.

    `name` is only used in messages: what counts is the public key.
    """
    return _AgreementOpener(name, private)


def wrap_context(lineage: bytes, epoch: int) -> bytes:
    """What a wrap is bound to: the vault and the epoch."""
    return b"privft-vault-wrap-v1" + lineage + epoch.to_bytes(8, "big")


def wrap(recipient: Recipient, epoch_key: bytes, context: bytes) -> WrappedKey:
    """The epoch key for one recipient; needs public values only."""
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(recipient.public))
    try:
        sealed = _SUITE.encrypt(epoch_key, public, context)
    except ValueError:
        raise UsageError(
            f"the public key of recipient {recipient.label!r} is not usable",
            hint="create a new key with privft keys create",
        ) from None
    return WrappedKey(recipient=recipient, epoch_key=sealed.hex())


def unwrap(wraps: Sequence[WrappedKey], opener: KeyOpener, context: bytes) -> bytes:
    """The epoch key, through the first recipient that the opener can stand for.

    Raises NotForThisKey when it can stand for none, IntegrityError when it can but the wrap was
    altered or comes from another vault or epoch.
    """
    for wrapped in wraps:
        try:
            private_bytes = opener.private_key(wrapped.recipient)
        except NotForThisKey:
            continue
        private = X25519PrivateKey.from_private_bytes(private_bytes)
        label = wrapped.recipient.label
        if private.public_key().public_bytes_raw().hex() != wrapped.recipient.public:
            raise IntegrityError(f"the private key of recipient {label!r} is another one's")
        try:
            epoch_key = _SUITE.decrypt(bytes.fromhex(wrapped.epoch_key), private, context)
        except (InvalidTag, ValueError):
            raise IntegrityError(f"the wrapped key of recipient {label!r} was altered") from None
        if len(epoch_key) != floe.KEY_BYTES or epoch_key == _ALL_ZERO:
            raise IntegrityError(f"the wrapped key of recipient {label!r} is no key")
        return epoch_key
    labels = ", ".join(repr(wrapped.recipient.label) for wrapped in wraps)
    raise NotForThisKey(
        "this key or passphrase does not open the vault", hint=f"it opens for {labels}"
    )


class _PassphraseOpener:
    def __init__(self, passphrase: bytes) -> None:
        self._passphrase = passphrase

    def private_key(self, recipient: Recipient) -> bytes:
        holding = recipient.holding
        if not isinstance(holding, HeldByPassphrase):
            raise NotForThisKey(f"recipient {recipient.label!r} has no passphrase")
        key = _derive(self._passphrase, bytes.fromhex(holding.salt), holding.cost)
        aad = _passphrase_aad(bytes.fromhex(recipient.public))
        try:
            private = floe.unseal(key, bytes.fromhex(holding.sealed), aad)
        except floe.HeaderMismatch:
            raise NotForThisKey(f"not the passphrase of recipient {recipient.label!r}") from None
        return private


class _AgreementOpener:
    def __init__(self, name: str, private: bytes) -> None:
        if len(private) != 32:
            raise ValueError(f"expected an X25519 private key of 32 bytes, got {len(private)}")
        self._name = name
        self._private = private
        key = X25519PrivateKey.from_private_bytes(private)
        self._public = key.public_key().public_bytes_raw().hex()

    def private_key(self, recipient: Recipient) -> bytes:
        if recipient.public != self._public:
            raise NotForThisKey(f"recipient {recipient.label!r} is not {self._name!r}")
        return self._private


def _derive(passphrase: bytes, salt: bytes, cost: Argon2Cost) -> bytes:
    if cost.memory_kib < 8 * cost.lanes:
        raise IntegrityError(
            f"Argon2id with {cost.lanes} lanes needs {8 * cost.lanes} KiB, got {cost.memory_kib}"
        )
    return Argon2id(
        salt=salt,
        length=floe.KEY_BYTES,
        iterations=cost.iterations,
        lanes=cost.lanes,
        memory_cost=cost.memory_kib,
    ).derive(passphrase)


def _passphrase_aad(public: bytes) -> bytes:
    return b"privft-vault-passphrase-v1" + public
