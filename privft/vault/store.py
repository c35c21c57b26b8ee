"""The front door of the vault: create one, open one, and everything that an open one can do.

    vault = create(path, dataset="notes-2026", unit="subject", fields=FieldMap(text="note",
                   subject="patient"), recipients=[passphrase_recipient("ward", passphrase)],
                   checkpoint=ledger.checkpoint(), signer=identity.signing)
    vault.add([Path("notes.jsonl")], signer=..., checkpoint=..., who="ada")
    with Vault.open(path, passphrase_opener(passphrase), signer_keys=...) as vault:
        vault.read(0)            # UnitRecords(unit, records)

Units are numbered from 0 in the order of their tags, which says nothing about them; numbers hold
for one version of a vault (one `manifest_root`).  Opening reads the index, 64 bytes of memory a
unit; reading a unit is one `pread` and one opened cell, however large the vault is.  A method that
changes the vault replaces this object's view of it by the new version.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from privft.errors import UsageError
from privft.signing import SigningKey, VerifyKey, sha256_hex
from privft.vault import adding, durable, erasure, proofs, rotation, verify
from privft.vault.adding import IntakeSummary
from privft.vault.cells import UnitRecords, unit_tag
from privft.vault.duplicates import record_text
from privft.vault.erasure import Erasure
from privft.vault.fields import FieldMap
from privft.vault.index import RECORD_ROW, UNIT_ROW, find
from privft.vault.keys import KeyOpener, Recipient
from privft.vault.manifest import (
    Caps,
    Creation,
    Manifest,
    new_charter,
    open_manifest,
    read_manifest_text,
    unsigned_manifest,
)
from privft.vault.overlap import HashSet, overlap_hash
from privft.vault.parquet import ParquetOpener
from privft.vault.segments import SegmentReader
from privft.vault.state import (
    Change,
    State,
    commit,
    derive,
    fresh_facts,
    load,
    locked,
    read_cells,
)

_OURS = ("cells-", "index-", "records-", "spill-", "manifest.json.new")


def create(
    path: Path,
    *,
    dataset: str,
    unit: Literal["record", "subject"],
    fields: FieldMap,
    recipients: Sequence[Recipient],
    checkpoint: str,
    signer: SigningKey,
    caps: Caps | None = None,
) -> Vault:
    """Make an empty vault in a new folder (mode 0700) and open it.

    The lineage is 16 random bytes: a budget belongs to it.  Raises UsageError when there is
    something at `path` already, other than what an interrupted `create` left.
    """
    charter = new_charter(dataset=dataset, unit=unit, fields=fields, caps=caps)
    rotation.check_recipients(recipients)
    if not path.parent.is_dir():
        raise UsageError(f"no folder at {path.parent} to make a vault in")
    path.mkdir(mode=0o700, exist_ok=True)
    with locked(path):
        left = durable.strangers(path, set())
        if (path / durable.MANIFEST).exists() or not all(n.startswith(_OURS) for n in left):
            raise UsageError(f"{path} is not empty", hint="name a folder that does not exist yet")
        durable.sweep(path, set())
        change = Change(
            rows=np.empty(0, UNIT_ROW),
            records=np.empty(0, RECORD_ROW),
            segments=[],
            facts=fresh_facts(),
            cause=Creation(),
        )
        state = commit(
            charter,
            path,
            change,
            previous=None,
            epoch_key=os.urandom(32),
            recipients=recipients,
            signer=signer,
            checkpoint=checkpoint,
        )
    return Vault(state)


def inspect(path: Path, *, signer_keys: Mapping[str, VerifyKey] | None = None) -> dict[str, Any]:
    """Public facts about the vault at `path`, without its key.

    With `signer_keys` the signature is checked (SignatureError); without, the result says that it
    was not.
    """
    text = read_manifest_text(path)
    if signer_keys is None:
        return _public_facts(unsigned_manifest(text), path, "not checked")
    return _public_facts(open_manifest(text, signer_keys), path, "verified")


def _public_facts(manifest: Manifest, path: Path, signature: str) -> dict[str, Any]:
    files = [*manifest.segments, manifest.index, manifest.records]
    return {
        "dataset": manifest.dataset,
        "lineage": manifest.lineage,
        "unit": manifest.unit,
        "fields": manifest.fields.model_dump(exclude_none=True),
        "caps": manifest.caps.model_dump(),
        "sequence": manifest.sequence,
        "epoch": manifest.epoch,
        "root": manifest.root,
        "manifest_digest": manifest.digest,
        "recipients": [
            {
                "label": wrapped.recipient.label,
                "kind": wrapped.recipient.holding.kind,
                "fingerprint": sha256_hex(bytes.fromhex(wrapped.recipient.public))[:16],
            }
            for wrapped in manifest.recipients
        ],
        "checkpoint": manifest.checkpoint,
        "time": manifest.time,
        "signer": manifest.signer,
        "signature": signature,
        "files": len(files),
        "size_bytes": sum(file.size_bytes for file in files),
        "strangers": durable.strangers(path, manifest.file_names()),
    }


class Vault:
    """One version of a vault, open."""

    def __init__(self, state: State) -> None:
        self._use(state)

    def _use(self, state: State) -> None:
        reader: SegmentReader | None = getattr(self, "_reader", None)
        if reader is not None:
            reader.close()
        self._state = state
        self._reader = SegmentReader(state.path, state.lineage, state.manifest.segments)

    @staticmethod
    def open(
        path: Path,
        opener: KeyOpener,
        *,
        signer_keys: Mapping[str, VerifyKey],
        expected_root: str | None = None,
    ) -> Vault:
        """Open the newest version; see `state.load` for what it raises.

        `expected_root` is what the ledger says the newest root is: another one is a rollback.
        """
        return Vault(load(path, opener, signer_keys, expected_root=expected_root))

    def close(self) -> None:
        """Close the files.  (Keys leave memory when the object does.)"""
        self._reader.close()

    def __enter__(self) -> Vault:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many units there are: private."""
        return len(self._state.rows)

    @property
    def state(self) -> State:
        """What is open, as the vault's own modules take it."""
        return self._state

    @property
    def path(self) -> Path:
        """The vault's folder."""
        return self._state.path

    @property
    def manifest(self) -> Manifest:
        """The signed public part of this version."""
        return self._state.manifest

    @property
    def manifest_root(self) -> str:
        """The Merkle root over all cells, 64 hex digits."""
        return self._state.manifest.root

    @property
    def manifest_digest(self) -> str:
        """SHA-256 of the signed payload: names this version, recipients and epoch included."""
        return self._state.manifest.digest

    @property
    def lineage(self) -> str:
        """What the budget belongs to, 32 hex digits."""
        return self._state.manifest.lineage

    @property
    def unit(self) -> Literal["record", "subject"]:
        """Whose data one guarantee protects."""
        return self._state.manifest.unit

    @property
    def fields(self) -> FieldMap:
        """Which column is what."""
        return self._state.manifest.fields

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """Who can open this version."""
        return tuple(wrapped.recipient for wrapped in self._state.manifest.recipients)

    def read(self, number: int) -> UnitRecords:
        """Unit `number`, verified whole before any of it is returned."""
        return self.read_many([number])[0]

    def read_many(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[UnitRecords]:
        """Units in the order asked for; costs grow with their number, not with the vault."""
        chosen = np.asarray(numbers, dtype=np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(self)):
            raise ValueError("expected 0 <= number < number of units")
        return read_cells(self._state, self._reader, self._state.rows[chosen])

    def __iter__(self) -> Iterator[UnitRecords]:
        for number in range(len(self)):
            yield self.read(number)

    def number_of(self, unit: str) -> int | None:
        """The number of a unit, or None when it is not in the vault."""
        place = find(self._state.rows, unit_tag(self._state.tag_key, unit))
        return place if place >= 0 else None

    def held_out_mask(self) -> NDArray[np.bool_]:
        """For each unit, whether it is set aside and must not be trained on.

        It is when the second half of its tag, a keyed hash of the unit id, lies below the declared
        share: so a unit stays on its side whatever is added or erased.
        """
        share = self._state.manifest.caps.held_out_share
        limit = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
        mask: NDArray[np.bool_] = self._state.rows["tag_low"].astype(np.uint64) < limit
        return mask

    def subkeys(self, purpose: str) -> list[bytes]:
        """Keys of 32 bytes for a purpose, newest first: the first is to seal with, any may open.

        Every rotation puts a new one in front, which nobody can derive from an earlier version of
        the vault.
        """
        secrets = reversed(self._state.facts.file_secrets)
        return [derive(secret, f"use:{purpose}") for secret in secrets]

    def unit_hashes(self, overlap_key: bytes) -> HashSet:
        """Keyed hashes of all unit ids, comparable with those of other vaults (`overlap`)."""
        found = bytearray()
        for unit in self:
            found += overlap_hash(overlap_key, "unit", unit.unit)
        return HashSet.of(found)

    def content_hashes(self, overlap_key: bytes) -> HashSet:
        """Keyed hashes of the text of all records."""
        found = bytearray()
        for unit in self:
            for record in unit.records:
                found += overlap_hash(overlap_key, "content", record_text(record))
        return HashSet.of(found)

    def prove(self, unit: str) -> bytes:
        """A document that shows whether the unit is in this version; see `privft.vault.proofs`."""
        return proofs.prove_unit(self._state, unit)

    def commitment(self, unit: str) -> str:
        """The keyed commitment by which certificates and ledger name an erased unit."""
        state = self._state
        return erasure.commitment(state.lineage, unit_tag(state.tag_key, unit))

    def verify(self) -> verify.VaultCheck:
        """Check every file and cell of this version."""
        return verify.verify_state(self._state)

    def inspect(self) -> dict[str, Any]:
        """Public facts, and under "private" what only the key shows."""
        facts = self._state.facts
        return {
            **_public_facts(self.manifest, self.path, "verified"),
            "private": {
                "units": facts.units,
                "records": facts.records,
                "erased": facts.erased,
                "held_out_units": int(self.held_out_mask().sum()),
                "intakes": [fact.model_dump() for fact in facts.intakes],
            },
        }

    def add(
        self,
        sources: Sequence[Path],
        *,
        signer: SigningKey,
        checkpoint: str,
        who: str,
        skip_bad: bool = False,
        parquet: ParquetOpener | None = None,
        overlap_key: bytes | None = None,
        on_overlap: adding.Overlap | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> IntakeSummary:
        """Add the records of all sources, or nothing; see `privft.vault.adding`."""
        state, summary = adding.add(
            self._state,
            sources,
            signer=signer,
            checkpoint=checkpoint,
            who=who,
            skip_bad=skip_bad,
            parquet=parquet,
            overlap_key=overlap_key,
            on_overlap=on_overlap,
            progress=progress,
        )
        self._use(state)
        return summary

    def rotate(
        self,
        *,
        signer: SigningKey,
        checkpoint: str,
        recipients: Sequence[Recipient] | None = None,
        reencrypt: bool = False,
    ) -> None:
        """Start a new epoch; see `privft.vault.rotation`."""
        self._use(
            rotation.rotate(
                self._state,
                signer=signer,
                checkpoint=checkpoint,
                recipients=recipients,
                reencrypt=reencrypt,
            )
        )

    def add_recipient(self, recipient: Recipient, *, signer: SigningKey, checkpoint: str) -> None:
        """Let one more open the vault, from a new epoch on."""
        self.rotate(signer=signer, checkpoint=checkpoint, recipients=[*self.recipients, recipient])

    def remove_recipient(self, label: str, *, signer: SigningKey, checkpoint: str) -> None:
        """Let one fewer open it.  What that recipient copied before stays readable to them."""
        left = [recipient for recipient in self.recipients if recipient.label != label]
        if len(left) == len(self.recipients):
            raise UsageError(f"no recipient with the label {label!r}")
        self.rotate(signer=signer, checkpoint=checkpoint, recipients=left)

    def erase(
        self,
        unit: str,
        *,
        signer: SigningKey,
        checkpoint: str,
        who: str,
        runs: Sequence[str] = (),
        compacting: bool = True,
    ) -> Erasure:
        """Erase one unit; see `privft.vault.erasure`."""
        state, certificate = erasure.erase(
            self._state,
            unit,
            signer=signer,
            checkpoint=checkpoint,
            who=who,
            runs=runs,
            compacting=compacting,
        )
        self._use(state)
        return certificate
