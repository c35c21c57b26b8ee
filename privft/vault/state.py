"""One version of a vault, opened; and the one way to make the next.

Reading takes no lock: a version's files never change, and a reader who finds that a writer has
replaced the version between two reads starts again.  Writing holds an exclusive lock for as long
as it takes, refuses to continue from a version that is no longer the newest, sweeps what an
interrupted writer left, and ends in `commit`, which is atomic (`privft.vault.durable`).

The facts that only the key shows (the vault's secret, counts, where the records came from) are
canonical JSON at the front of the sealed index:

    {"erased": 0, "file_secrets": [64 hex digits], "format": "privft-facts-v1", "intakes": [...],
     "records": 3, "secret": 64 hex digits, "units": 2}

From these secrets come keys, each HMAC-SHA-256(secret, "privft-vault-subkey-v1" || purpose).

    secret        made at creation, and the same in every version: tags, and with them order, the
                  held-out share and old certificates, depend on it.  The tag key has the purpose
                  "vault:tag"
    file_secrets  one from the creation and one more from every rotation, newest last: for what is
                  sealed beside the vault, the files of runs (`Vault.subkeys`, of purpose "use:" and
                  the name that was asked for).  The newest seals, and all of them open, so that
                  rotation loses no run.  Whoever copied an index before a rotation, a recipient who
                  has been removed since, say, cannot open what a later run seals: not the secret
                  that its noise comes from, nor its adapter
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from privft.errors import IntegrityError, NotForThisKey, OrderError, PrivftError
from privft.signing import SigningKey, VerifyKey, canonical_json, parse_canonical
from privft.vault import durable
from privft.vault.cells import UnitRecords, open_cell
from privft.vault.index import (
    Place,
    Rows,
    merkle_root,
    read_index,
    read_records,
    tag_bytes,
    write_index,
    write_records,
)
from privft.vault.keys import (
    Hex32,
    KeyOpener,
    Recipient,
    Value,
    WrappedKey,
    unwrap,
    wrap,
    wrap_context,
)
from privft.vault.manifest import (
    NO_PREVIOUS,
    Cause,
    Charter,
    Count,
    Manifest,
    NamedFile,
    as_named,
    open_manifest,
    read_manifest_text,
    sign_manifest,
    unsigned_manifest,
)
from privft.vault.segments import SegmentReader

_LOCK_WAIT_S = 30.0
_READ_ATTEMPTS = 5


class Provenance(Value):
    """Where records came from: one source file of one intake."""

    name: str
    sha256: Hex32
    size_bytes: Count
    time: Annotated[str, Field(max_length=40)]
    who: str


class Facts(Value):
    """What only the key shows."""

    format: Literal["privft-facts-v1"] = "privft-facts-v1"
    secret: Hex32 = Field(repr=False)
    file_secrets: Annotated[list[Hex32], Field(repr=False, min_length=1, max_length=1 << 18)]
    units: Count
    records: Count
    erased: Count
    intakes: list[Provenance]


def fresh_facts() -> Facts:
    """Those of a vault with secrets of its own, and nothing in it."""
    secret, first = (os.urandom(32).hex() for _ in range(2))
    return Facts(secret=secret, file_secrets=[first], units=0, records=0, erased=0, intakes=[])


@dataclass(frozen=True, kw_only=True)
class State:
    """One version of a vault, open: the manifest, the epoch key, the facts and the unit rows."""

    path: Path
    manifest: Manifest
    epoch_key: bytes = field(repr=False)
    facts: Facts = field(repr=False)
    rows: Rows = field(repr=False)

    @cached_property
    def lineage(self) -> bytes:
        """The vault's 16 bytes."""
        return bytes.fromhex(self.manifest.lineage)

    @cached_property
    def tag_key(self) -> bytes:
        """The key of unit and record tags."""
        return derive(self.facts.secret, "vault:tag")

    def place(self) -> Place:
        """What the sealed files of this version are bound to."""
        return place_of(self.manifest)


def derive(secret: str, purpose: str) -> bytes:
    """32 bytes for a purpose, from one of the vault's secrets (64 hex digits)."""
    message = b"privft-vault-subkey-v1" + purpose.encode()
    return hmac.digest(bytes.fromhex(secret), message, "sha256")


def place_of(manifest: Manifest) -> Place:
    """What the sealed files of a version are bound to."""
    return Place(
        lineage=bytes.fromhex(manifest.lineage), epoch=manifest.epoch, sequence=manifest.sequence
    )


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def load(
    path: Path,
    opener: KeyOpener,
    signer_keys: Mapping[str, VerifyKey],
    *,
    expected_root: str | None = None,
) -> State:
    """Open the newest version of the vault at `path`.

    Raises InputError when there is none, SignatureError when nobody known signed it, NotForThisKey
    when the opener is for none of its recipients, IntegrityError when something was altered or
    when its root is not the expected one (a rollback, if that comes from the ledger).
    """
    for attempt in range(_READ_ATTEMPTS):
        text = read_manifest_text(path)
        try:
            manifest = open_manifest(text, signer_keys)
            if expected_root is not None and manifest.root != expected_root:
                raise IntegrityError(
                    f"the vault's root is {manifest.root[:16]}, the ledger says"
                    f" {expected_root[:16]}",
                    hint="an older copy of the vault was put back, or the ledger is another one",
                )
            context = wrap_context(bytes.fromhex(manifest.lineage), manifest.epoch)
            epoch_key = unwrap(manifest.recipients, opener, context)
            return read_version(path, manifest, epoch_key)
        except NotForThisKey:
            raise
        except PrivftError:
            # a writer may have replaced this version while it was being read
            if attempt == _READ_ATTEMPTS - 1 or read_manifest_text(path) == text:
                raise
    raise AssertionError("the last attempt returns or raises")


def read_version(
    path: Path, manifest: Manifest, epoch_key: bytes, *, hashes: bool = False
) -> State:
    """The state of a version whose epoch key is at hand."""
    for file in (*manifest.segments, manifest.index, manifest.records):
        check_size(path, file)
    try:
        facts_text, rows = read_index(
            path, manifest.index, epoch_key, place_of(manifest), hashes=hashes
        )
    except FileNotFoundError:
        raise IntegrityError(f"file {manifest.index.name} of the vault is missing") from None
    facts = parse_facts(facts_text)
    if facts.units != len(rows):
        raise IntegrityError(f"an index of {len(rows)} units whose facts say {facts.units}")
    return State(path=path, manifest=manifest, epoch_key=epoch_key, facts=facts, rows=rows)


def check_size(path: Path, file: NamedFile) -> None:
    """IntegrityError unless the file is there with its length."""
    try:
        found = (path / file.name).stat().st_size
    except FileNotFoundError:
        raise IntegrityError(f"file {file.name} of the vault is missing") from None
    if found != file.size_bytes:
        raise IntegrityError(f"file {file.name} has {found} bytes, expected {file.size_bytes}")


def parse_facts(text: bytes) -> Facts:
    """The facts in canonical JSON; IntegrityError for anything else, without quoting it."""
    try:
        facts = Facts.model_validate(parse_canonical(text))
    except ValidationError:
        raise IntegrityError("an index whose facts are not as they must be") from None
    if canonical_json(facts.model_dump()) != text:
        raise IntegrityError("an index in which not every fact is written out")
    return facts


def record_rows(state: State) -> Rows:
    """All record rows of a version."""
    rows = read_records(state.path, state.manifest.records, state.epoch_key, state.place())
    if len(rows) != state.facts.records:
        raise IntegrityError(f"{len(rows)} record rows, the facts say {state.facts.records}")
    return rows


def read_cell(state: State, reader: SegmentReader, row: np.void) -> UnitRecords:
    """One unit, from its row.

    Guarantees: the whole cell was verified, and is the cell of this unit, before it is returned.
    """
    return read_cells(state, reader, row.reshape(1))[0]


def read_cells(state: State, reader: SegmentReader, rows: Rows) -> list[UnitRecords]:
    """The units of these rows, each verified before it is returned, in the order of the rows."""
    columns = ("tag_high", "tag_low", "key", "segment", "offset", "length")
    high, low, keys, segments, offsets, lengths = (rows[name].tolist() for name in columns)
    return [
        open_cell(
            key,
            state.lineage,
            tag_bytes(tag_high, tag_low),
            reader.read(segment, offset, length),
            state.tag_key,
        )
        for tag_high, tag_low, key, segment, offset, length in zip(
            high, low, keys, segments, offsets, lengths, strict=True
        )
    ]


@contextmanager
def writing(state: State) -> Iterator[State]:
    """Hold the writer's lock; gives the same version with its hashes loaded.

    Raises OrderError when another writer is at work, or has changed the vault since it was opened.
    """
    with locked(state.path):
        text = read_manifest_text(state.path)
        if unsigned_manifest(text).digest != state.manifest.digest:
            raise OrderError(
                "the vault was changed since it was opened", hint="open it again and repeat"
            )
        durable.sweep(state.path, state.manifest.file_names())
        yield read_version(state.path, state.manifest, state.epoch_key, hashes=True)


def tidy(path: Path) -> None:
    """Remove what a writer that failed has left, whichever version the vault is now."""
    durable.sweep(path, unsigned_manifest(read_manifest_text(path)).file_names())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The exclusive lock of the vault's writers."""
    lock = FileLock(str(path / durable.LOCK), timeout=_LOCK_WAIT_S, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise OrderError(
            f"another process has been writing to the vault for {_LOCK_WAIT_S:.0f} s",
            hint="wait for it to finish, then repeat",
        ) from None
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True, kw_only=True)
class Change:
    """What the next version holds."""

    rows: Rows = field(repr=False)
    records: Rows = field(repr=False)
    segments: Sequence[NamedFile]
    facts: Facts = field(repr=False)
    cause: Cause


def commit(
    charter: Charter,
    path: Path,
    change: Change,
    *,
    previous: Manifest | None,
    epoch_key: bytes,
    recipients: Sequence[Recipient] | None,
    signer: SigningKey,
    checkpoint: str,
) -> State:
    """Write the next version and make it the vault, atomically; the lock must be held.

    `recipients` starts a new epoch under `epoch_key`, wrapped to each of them; None stays in the
    old epoch, whose key `epoch_key` must then be.  The rows must have their hashes and be sorted.
    """
    sequence, epoch = 1, 1
    wraps: Sequence[WrappedKey] = []
    if previous is not None:
        sequence = previous.sequence + 1
        epoch = previous.epoch + (recipients is not None)
        wraps = previous.recipients
    lineage = bytes.fromhex(charter.lineage)
    if recipients is not None:
        context = wrap_context(lineage, epoch)
        wraps = [wrap(recipient, epoch_key, context) for recipient in recipients]
    facts = change.facts.model_copy(
        update={"units": len(change.rows), "records": len(change.records)}
    )
    place = Place(lineage=lineage, epoch=epoch, sequence=sequence)
    facts_text = canonical_json(facts.model_dump())
    manifest = Manifest(
        lineage=charter.lineage,
        dataset=charter.dataset,
        unit=charter.unit,
        fields=charter.fields,
        caps=charter.caps,
        sequence=sequence,
        previous=NO_PREVIOUS if previous is None else previous.digest,
        cause=change.cause,
        epoch=epoch,
        root=merkle_root(change.rows).hex(),
        checkpoint=checkpoint,
        segments=list(change.segments),
        index=as_named(write_index(path, epoch_key, place, facts_text, change.rows)),
        records=as_named(write_records(path, epoch_key, place, change.records)),
        recipients=list(wraps),
        time=now(),
        signer=signer.name,
    )
    durable.replace_manifest(path, sign_manifest(manifest, signer))
    try:
        durable.sweep(path, manifest.file_names())
    except OSError as error:
        raise PrivftError(
            f"the vault is changed, but files of the version before remain: {error.strerror}",
            hint="any later change of the vault removes them; until then they are a copy",
        ) from None
    return State(path=path, manifest=manifest, epoch_key=epoch_key, facts=facts, rows=change.rows)
