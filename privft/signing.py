"""Keys of people, runs and logs; canonical JSON; signed envelopes and signed notes.

Everything that privft signs is signed with Ed25519 (RFC 8032), in one of two wrappers:

**DSSE envelopes** carry approvals and run reports (github.com/secure-systems-lab/dsse).  An
envelope is JSON; the signature covers `PAE(payloadType, payload)`, so a payload signed as one type
cannot be passed off as another:

    {"payload": base64(bytes), "payloadType": "application/vnd.in-toto+json",
     "signatures": [{"keyid": sha256 of the raw public key in hex, "sig": base64(64 bytes)}]}
    PAE(type, body) = "DSSEv1" SP len(type) SP type SP len(body) SP body

**Signed notes** carry checkpoints of the ledger (c2sp.org/signed-note).  A note is UTF-8 text that
ends in a newline, an empty line, and one line a signature:

    privft/ward-7                                        <- text, here a c2sp.org/tlog-checkpoint:
    2                                                    <- origin, number of entries, root hash
    +v5mKpUGfYjIFSJBCJdvI0aThyDLAyfzArJD5p5ebTQ=
                                                         <- one empty line
    — privft/ward-7 Az3grlMb...                          <- em dash, key name, base64

where the base64 holds 4 bytes of key id and the signature: the key id of an Ed25519 key (type 1) is
the first 4 bytes of SHA-256(name || 0x0A || 0x01 || 32 bytes of public key), and the signature
covers the text with its final newline.
`note_open` ignores signatures by keys that it was not asked about, as the format wants, and fails
on a wrong signature by the one that it was.

**Canonical JSON** is RFC 8785: keys sorted by UTF-16 code units, shortest round-trip numbers, no
spaces.  Equal values have equal bytes, so they can be hashed; note that 1.0 and 1 are the same
number there.

Nothing here reads or writes files, and no `repr` shows a private key.
"""

from __future__ import annotations

import base64
import binascii
import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privft.errors import IntegrityError, SignatureError

_IDENTITY_FORMAT = "privft-identity-v1"
_NOTE_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,200}")
_NOTE_ED25519 = 1


def canonical_json(value: Any) -> bytes:
    """The RFC 8785 bytes of a JSON value; raises `ValueError` for what has none.

    Only str, int (within 2**53), finite float, bool, None, list and dict with str keys are JSON
    values: a tuple is a mistake that would come back as something else.  A float from 2**53 up to
    1e21 is written like a whole number that could not be read again, and is refused too.
    """
    _require_plain(value)
    return rfc8785.dumps(value)


def _require_plain(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _require_plain(item)
    elif isinstance(value, list):
        for item in value:
            _require_plain(item)
    elif value is not None and type(value) not in (str, int, float, bool):
        raise ValueError(f"expected a JSON value, got a {type(value).__name__}")
    elif isinstance(value, float) and 2**53 <= abs(value) < 1e21:
        raise ValueError(f"expected a number below 2**53 or from 1e21 up, got {value}")


def parse_canonical(data: bytes) -> Any:
    """The value whose canonical form is exactly `data`; raises `IntegrityError` for other bytes.

    Guarantees: two byte strings that are accepted are equal exactly when their values are, so
    duplicate keys, odd spacing, NaN or long forms of a number cannot hide a second meaning.
    """
    try:
        value = json.loads(data)
        same = rfc8785.dumps(value) == data
    except (ValueError, RecursionError, OverflowError) as error:
        raise IntegrityError(f"{len(data)} bytes that are not canonical JSON") from error
    if not same:
        raise IntegrityError(f"{len(data)} bytes of JSON that are not in canonical form")
    return value


def sha256_hex(data: bytes) -> str:
    """SHA-256 in lower-case hexadecimal, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def _unhex(text: str, size_bytes: int, what: str) -> bytes:
    if not re.fullmatch(f"[0-9a-f]{{{2 * size_bytes}}}", text):
        raise IntegrityError(f"expected {size_bytes} bytes of lower-case hex as {what}")
    return bytes.fromhex(text)


def _unbase64(text: str, what: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureError(f"{what} is not base64") from error
    if base64.b64encode(data).decode() != text:
        raise SignatureError(f"{what} is not in its one base64 form")
    return data


@dataclass(frozen=True, kw_only=True)
class VerifyKey:
    """The public half of a signing key: a name and 32 raw Ed25519 bytes."""

    name: str
    raw: bytes

    def __post_init__(self) -> None:
        if not _NOTE_NAME.fullmatch(self.name):
            raise ValueError(
                "expected a key name of 1 to 200 characters without spaces or '+', "
                f"got {self.name!r}"
            )
        if len(self.raw) != 32:
            raise ValueError(f"expected a public key of 32 bytes, got {len(self.raw)}")

    @staticmethod
    def from_hex(name: str, text: str) -> VerifyKey:
        """The key whose raw bytes are the 64 hex digits `text`; raises `IntegrityError`."""
        return VerifyKey(name=name, raw=_unhex(text, 32, "a public key"))

    @property
    def hex(self) -> str:
        """The raw bytes as 64 hex digits, the form that ledger entries carry."""
        return self.raw.hex()

    @property
    def keyid(self) -> str:
        """SHA-256 of the raw bytes in hex: the same key has the same id under any name."""
        return sha256_hex(self.raw)

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return when `signature` is this key's over `data`; raises `SignatureError`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError(f"signature of {self.name} does not hold") from error


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A named Ed25519 private key; `seed` is its 32 private bytes (RFC 8032, section 5.1.5)."""

    name: str
    seed: bytes = field(repr=False)
    public: VerifyKey = field(init=False)

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise ValueError(f"expected a private key of 32 bytes, got {len(self.seed)}")
        raw = Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        object.__setattr__(self, "public", VerifyKey(name=self.name, raw=raw))

    @staticmethod
    def generate(name: str) -> SigningKey:
        """A fresh key from the operating system's randomness."""
        return SigningKey(name=name, seed=Ed25519PrivateKey.generate().private_bytes_raw())

    @staticmethod
    def from_bytes(name: str, seed: bytes) -> SigningKey:
        """The key with these 32 private bytes."""
        return SigningKey(name=name, seed=seed)

    def private_bytes(self) -> bytes:
        """The 32 private bytes, to be sealed and never logged."""
        return self.seed

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes over `data`; the same every time."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)


def dsse_sign(payload: bytes, payload_type: str, keys: Sequence[SigningKey]) -> dict[str, Any]:
    """A DSSE envelope over `payload`, with one signature for each key."""
    if not keys:
        raise ValueError("expected at least one key to sign with, got none")
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [],
    }
    for key in keys:
        envelope = dsse_add_signature(envelope, key)
    return envelope


def dsse_add_signature(envelope: Mapping[str, Any], key: SigningKey) -> dict[str, Any]:
    """A copy of the envelope that `key` has signed too (in place of its earlier signature)."""
    from securesystemslib.signer import CryptoSigner, SSlibKey

    opened = _envelope(envelope)
    public = SSlibKey(key.public.keyid, "ed25519", "ed25519", {"public": key.public.hex})
    opened.sign(CryptoSigner(Ed25519PrivateKey.from_private_bytes(key.seed), public))
    return dict(opened.to_dict())


def dsse_open(
    envelope: Mapping[str, Any],
    trusted: Mapping[str, VerifyKey],
    *,
    threshold: int = 1,
    payload_type: str,
) -> tuple[bytes, list[str]]:
    """The payload, and the ids of the trusted keys whose signatures hold, in order of signing.

    Guarantees: raises `SignatureError` unless at least `threshold` different trusted keys signed
    exactly this payload as exactly this type.  Signatures by strangers count for nothing; a wrong
    signature under a trusted key's id is an error even when enough others hold.
    """
    from securesystemslib.exceptions import UnverifiedSignatureError
    from securesystemslib.signer import SSlibKey

    if threshold < 1:
        raise ValueError(f"expected a threshold of at least 1, got {threshold}")
    opened = _envelope(envelope)
    if opened.payload_type != payload_type:
        raise SignatureError(
            f"envelope holds {opened.payload_type!r} where {payload_type!r} is expected"
        )
    verified: list[str] = []
    for keyid, signature in opened.signatures.items():
        key = trusted.get(keyid)
        if key is None:
            continue
        if key.keyid != keyid:
            raise SignatureError(f"trusted key {key.name} is listed under an id not its own")
        try:
            public = SSlibKey(keyid, "ed25519", "ed25519", {"public": key.hex})
            public.verify_signature(signature, opened.pae())
        except UnverifiedSignatureError as error:
            raise SignatureError(f"signature of {key.name} does not hold") from error
        verified.append(keyid)
    if len(verified) < threshold:
        raise SignatureError(
            f"{len(verified)} of {len(opened.signatures)} signatures are by trusted keys, "
            f"{threshold} needed"
        )
    return bytes(opened.payload), verified


def _envelope(value: Mapping[str, Any]) -> Any:
    """A strict `securesystemslib.dsse.Envelope`: no unknown fields, base64 in its one form."""
    from securesystemslib.dsse import Envelope

    try:
        if set(value) != {"payload", "payloadType", "signatures"}:
            raise SignatureError(f"expected the fields of a DSSE envelope, got {sorted(value)}")
        if not isinstance(value["payloadType"], str) or not isinstance(value["signatures"], list):
            raise SignatureError("a DSSE envelope whose type or signatures are of the wrong kind")
        _unbase64(value["payload"], "payload")
        for signature in value["signatures"]:
            if set(signature) != {"keyid", "sig"} or not isinstance(signature["keyid"], str):
                raise SignatureError("a DSSE signature without exactly a key id and a signature")
            _unbase64(signature["sig"], "signature")
        return Envelope.from_dict(copy.deepcopy(dict(value)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SignatureError("a DSSE envelope that cannot be read") from error


def note_key_id(name: str, kind: int, raw: bytes) -> bytes:
    """The 4 bytes that name a key in a signature line, as in the module's docstring."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + raw).digest()[:4]


def _note_text(text: str) -> None:
    if not text.endswith("\n") or "\n\n" in text or "\r" in text or text == "\n":
        raise ValueError("expected lines of text without an empty line, ended by a newline")


def note_sign(text: str, key: SigningKey, origin: str) -> str:
    """A signed note over `text`, signed under the key name `origin`."""
    _note_text(text)
    name = VerifyKey(name=origin, raw=key.public.raw).name
    blob = note_key_id(name, _NOTE_ED25519, key.public.raw) + key.sign(text.encode())
    return f"{text}\n— {name} {base64.b64encode(blob).decode()}\n"


def note_parts(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Text, and (name, 4 bytes of key id + signature) of each signature line."""
    head, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise SignatureError("a note without a block of signatures")
    signatures = []
    for line in tail[:-1].split("\n"):
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "—" or not _NOTE_NAME.fullmatch(parts[1]):
            raise SignatureError("a note with a malformed signature line")
        blob = _unbase64(parts[2], "signature of a note")
        if len(blob) < 5:
            raise SignatureError("a note with a signature that is too short")
        signatures.append((parts[1], blob))
    try:
        _note_text(head + "\n")
    except ValueError as error:
        raise SignatureError("a note whose text is not in the form of a note") from error
    return head + "\n", signatures


def note_open(note: str, key: VerifyKey) -> str:
    """The text of a note that `key` signed under its own name; raises `SignatureError`."""
    text, signatures = note_parts(note)
    key_id = note_key_id(key.name, _NOTE_ED25519, key.raw)
    held = [blob for name, blob in signatures if name == key.name and blob[:4] == key_id]
    if not held:
        raise SignatureError(f"note is not signed by {key.name}")
    for blob in held:
        key.verify(blob[4:], text.encode())
    return text


@dataclass(frozen=True, kw_only=True)
class PublicIdentity:
    """What others may know of a person: a name and two public keys in hex."""

    name: str
    ed25519: str
    x25519: str

    def verify_key(self) -> VerifyKey:
        """The key that checks this person's signatures."""
        return VerifyKey.from_hex(self.name, self.ed25519)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A person's private keys: one that signs, and 32 bytes of X25519 that open sealed keys."""

    name: str
    signing: SigningKey
    agreement: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if self.signing.name != self.name:
            raise ValueError(f"expected a key named {self.name!r}, got {self.signing.name!r}")
        if len(self.agreement) != 32:
            raise ValueError(f"expected an agreement key of 32 bytes, got {len(self.agreement)}")

    @staticmethod
    def generate(name: str) -> Identity:
        """Fresh keys from the operating system's randomness."""
        agreement = X25519PrivateKey.generate().private_bytes_raw()
        return Identity(name=name, signing=SigningKey.generate(name), agreement=agreement)

    @property
    def public(self) -> PublicIdentity:
        """The public half."""
        agreement = X25519PrivateKey.from_private_bytes(self.agreement).public_key()
        return PublicIdentity(
            name=self.name,
            ed25519=self.signing.public.hex,
            x25519=agreement.public_bytes_raw().hex(),
        )

    def to_bytes(self) -> bytes:
        """One line of canonical JSON with both private keys: for a sealed file of mode 0600."""
        return canonical_json(
            {
                "format": _IDENTITY_FORMAT,
                "name": self.name,
                "ed25519_private": self.signing.seed.hex(),
                "x25519_private": self.agreement.hex(),
            }
        )

    @staticmethod
    def from_bytes(data: bytes) -> Identity:
        """The inverse of `to_bytes`; raises `IntegrityError` for anything else."""
        value = parse_canonical(data)
        fields = {"format", "name", "ed25519_private", "x25519_private"}
        if not isinstance(value, dict) or set(value) != fields:
            raise IntegrityError("expected a privft identity")
        if not all(isinstance(item, str) for item in value.values()):
            raise IntegrityError("expected text in every field of an identity")
        if value["format"] != _IDENTITY_FORMAT:
            raise IntegrityError(f"expected an identity of format {_IDENTITY_FORMAT}")
        seed = _unhex(value["ed25519_private"], 32, "a signing key")
        try:
            signing = SigningKey.from_bytes(value["name"], seed)
        except ValueError as error:
            raise IntegrityError("an identity whose name cannot name a key") from error
        agreement = _unhex(value["x25519_private"], 32, "an agreement key")
        return Identity(name=value["name"], signing=signing, agreement=agreement)
