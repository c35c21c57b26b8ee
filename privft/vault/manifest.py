"""The manifest: the one signed file that says which of all files are the vault.

`manifest.json` is a DSSE envelope (`privft.signing`) of type PAYLOAD_TYPE over the canonical JSON
(RFC 8785) of

    format          "privft-vault-v1"
    lineage         32 hex digits; names the vault for good, and the budget that it belongs to
    dataset, unit   the data set's name; "record" or "subject"
    fields          which column is what (`privft.vault.intake`)
    caps            declared limits: records a unit, bytes a record, held-out share
    sequence        1 for a new vault, one more with every change
    previous        SHA-256 of the payload before this one; 64 zeros at the start
    cause           what was done to get this version (`Cause`): all that the ledger's entry and an
                    erasure's certificate say of it, so that whoever finds a change interrupted
                    after its commit can complete it, and not merely acknowledge it
    epoch           number of the epoch key; one more with every rotation and erasure
    root            Merkle root over all cells (`privft.vault.index`): which sealed data this is; it
                    stays when only recipients and epochs change
    checkpoint      the newest ledger checkpoint that the writer knew, a signed note
    segments        files of cells, in the order that the index numbers them: name, length, SHA-256
    index, records  the two sealed files: name, length, SHA-256
    recipients      who can open, with the epoch key wrapped to each (`privft.vault.keys`)
    time, signer    when, and the name of who signed

Worked examples, sound and with one fault each, are in tests/vectors/vault_manifest.json; the parts
that this file has of its own are, for a version that an erasure made (in canonical form, folded):

    "cause":{"commitment":64 hex digits,"compacted":true,"kind":"erasure","root_before":64 hex
     digits,"runs":["r-0001-00aa11"],"who":"ada"}
    "segments":[{"name":"cells-0123456789abcdef.seg","sha256":64 hex digits,"size_bytes":884}]

Everything in it is public to whoever can read the disk; nothing in it is a count of units or
records.  (Lengths of files say roughly how much there is, as any file system does: those of index
and records to within a quarter.)

What a signature cannot show is that this is the *newest* manifest: an older one with its files is
just as well signed.  `previous` and `sequence` tie versions together, and the ledger's entries
name the digest of each manifest: the newest entry about a vault tells its newest version, also
after a rotation, which changes recipients and leaves the root as it was.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from privft.errors import InputError, IntegrityError, UsageError
from privft.signing import (
    SigningKey,
    VerifyKey,
    canonical_json,
    dsse_open,
    dsse_sign,
    parse_canonical,
    sha256_hex,
)
from privft.vault.durable import MANIFEST, FileFact
from privft.vault.fields import FieldMap
from privft.vault.keys import Hex16, Hex32, Value, WrappedKey

PAYLOAD_TYPE = "application/vnd.privft.vault-manifest+json"
MAX_MANIFEST_BYTES = 64 << 20
MAX_RECIPIENTS = 64
NO_PREVIOUS = "0" * 64

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
SafeName = Annotated[str, Field(pattern=r"^(cells|index|records)-[0-9a-f]{16}\.(seg|floe)$")]


class NamedFile(FileFact):
    """A file of the vault: its name cannot leave the folder."""

    name: SafeName
    size_bytes: Count


class Caps(Value):
    """Declared limits: public facts that the operator chose, never counted from the data."""

    max_records_per_unit: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000
    max_record_bytes: Annotated[int, Field(ge=64, le=8 << 20)] = 1 << 20
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Creation(Value):
    """An empty vault was made."""

    kind: Literal["creation"] = "creation"


class Intake(Value):
    """Records came in; the hash is over the canonical JSON of their provenance."""

    kind: Literal["intake"] = "intake"
    provenance_sha256: Hex32


class Rotation(Value):
    """There is a new epoch, perhaps for other recipients, perhaps with every cell sealed anew."""

    kind: Literal["rotation"] = "rotation"
    reencrypted: bool


class Erasure(Value):
    """A unit left; the certificate of it is made from this (`privft.vault.erasure`)."""

    kind: Literal["erasure"] = "erasure"
    commitment: Hex32
    root_before: Hex32
    compacted: bool
    runs: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100_000)]
    who: Annotated[str, Field(max_length=200)]


Cause = Annotated[Creation | Intake | Rotation | Erasure, Field(discriminator="kind")]


class Charter(Value):
    """What stays the same through all versions of a vault."""

    lineage: Hex16
    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    unit: Literal["record", "subject"]
    fields: FieldMap
    caps: Caps


def new_charter(
    *, dataset: str, unit: Literal["record", "subject"], fields: FieldMap, caps: Caps | None
) -> Charter:
    """What stays the same through all versions of a new vault, with a lineage of its own."""
    if unit == "subject" and fields.subject is None:
        raise UsageError(
            "the unit is the subject, and no column is named as subject",
            hint="name the column that says whose record it is",
        )
    return Charter(
        lineage=os.urandom(16).hex(), dataset=dataset, unit=unit, fields=fields, caps=caps or Caps()
    )


class Manifest(Charter):
    """The signed public part of one version; see the module's docstring."""

    format: Literal["privft-vault-v1"] = "privft-vault-v1"
    sequence: Annotated[int, Field(ge=1, lt=1 << 53)]
    previous: Hex32
    cause: Cause
    epoch: Annotated[int, Field(ge=1, lt=1 << 53)]
    root: Hex32
    checkpoint: Annotated[str, Field(max_length=1 << 16)]
    segments: list[NamedFile]
    index: NamedFile
    records: NamedFile
    recipients: Annotated[list[WrappedKey], Field(min_length=1, max_length=MAX_RECIPIENTS)]
    time: Annotated[str, Field(max_length=40)]
    signer: Annotated[str, Field(max_length=200)]

    def payload(self) -> bytes:
        """The bytes that are signed."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def digest(self) -> str:
        """SHA-256 of the payload: the identity of this version."""
        return sha256_hex(self.payload())

    def file_names(self) -> set[str]:
        """Every file that belongs to this version."""
        return {file.name for file in (*self.segments, self.index, self.records)}


def as_named(fact: FileFact) -> NamedFile:
    """The fact about a file that this vault wrote."""
    return NamedFile(**fact.model_dump())


def sign_manifest(manifest: Manifest, signer: SigningKey) -> bytes:
    """The text of manifest.json."""
    envelope = dsse_sign(manifest.payload(), PAYLOAD_TYPE, [signer])
    return json.dumps(envelope, indent=1, sort_keys=True).encode() + b"\n"


def open_manifest(text: bytes, signer_keys: Mapping[str, VerifyKey]) -> Manifest:
    """The manifest in a signed text.

    Guarantees: raises SignatureError unless a key in `signer_keys` (by key id) signed it, and
    IntegrityError unless it has exactly the form that this version knows.
    """
    return parse_payload(dsse_open(_envelope(text), signer_keys, payload_type=PAYLOAD_TYPE)[0])


def parse_payload(payload: bytes) -> Manifest:
    """The manifest in canonical JSON; IntegrityError for anything else, without quoting it."""
    value = parse_canonical(payload)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise IntegrityError(f"a manifest whose {place or 'list'} is not as it must be") from None
    except UsageError as error:
        raise IntegrityError(f"a manifest with {error.message}") from None
    if manifest.payload() != payload:
        raise IntegrityError("a manifest in which not every field is written out")
    names = [file.name for file in (*manifest.segments, manifest.index, manifest.records)]
    if len(set(names)) != len(names):
        raise IntegrityError("a manifest that names a file twice")
    labels = [wrapped.recipient.label for wrapped in manifest.recipients]
    if len(set(labels)) != len(labels):
        raise IntegrityError("a manifest that names a recipient twice")
    return manifest


def read_manifest_text(folder: Path) -> bytes:
    """The bytes of a vault's manifest.json, at most 64 MiB of them."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no vault at {folder}", hint="privft vault create makes one") from None
    if len(text) > MAX_MANIFEST_BYTES:
        raise IntegrityError(f"a manifest of more than {MAX_MANIFEST_BYTES} bytes")
    return text


def unsigned_manifest(text: bytes) -> Manifest:
    """The manifest without a look at its signature: to show a person, never to act on."""
    try:
        payload = base64.b64decode(str(_envelope(text)["payload"]), validate=True)
    except (KeyError, ValueError):  # a ValueError too where it is not ASCII
        raise IntegrityError("a manifest without a payload") from None
    return parse_payload(payload)


def _envelope(text: bytes) -> dict[str, object]:
    try:
        envelope = json.loads(text)
    except (ValueError, RecursionError):
        raise IntegrityError(f"a manifest of {len(text)} bytes that is not JSON") from None
    if not isinstance(envelope, dict):
        raise IntegrityError("a manifest that is not an envelope")
    return envelope
