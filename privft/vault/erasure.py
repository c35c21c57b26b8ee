"""Erase a unit: forget its key, and sign what that does and does not mean.

What happens, in one atomic change: the unit's row (with its key) and its records' rows leave the
index; a new epoch key seals the new index; the old index, sealed under the old epoch key, is
removed together with the old manifest, which held the only wraps of that key in this vault; every
segment file with bytes of no live cell is rewritten without them, so that not even the sealed
bytes stay, those of the unit's earlier cells included (a unit that grew left some in older files).

The certificate is a DSSE envelope of type PAYLOAD_TYPE over canonical JSON:

    {"cannot_promise": [...], "commitment": 64 hex digits, "compacted": true, "dataset": ...,
     "epoch_after": 3, "epoch_before": 2, "format": "privft-erasure-v1",
     "ledger_entry": {"commitment": ..., "kind": "vault-erased"}, "lineage": ..., "manifest_after":
     digest, "root_after": ..., "root_before": ..., "runs": [...], "time": ..., "unit": "subject",
     "who": ...}

`runs` names the past runs whose data may have contained the unit: every run of the lineage, since
which units a run drew is stored nowhere, on purpose.

The commitment is SHA-256("privft-erasure-v1" || lineage || unit tag), and the tag is a hash of the
unit id under a key from the vault's secret (`privft.vault.cells`): who has the vault and the id can
show that this certificate is about this person; nobody else learns who.  The ledger's entry carries
the same commitment, and the digest of the certificate.

That the unit is in no later version can be shown to whoever holds the certificate
(`privft.vault.proofs`): two neighbouring leaves under the root of a later signed manifest, with the
tag that the commitment is to between them.

Worked example: for lineage 00 .. 0f and tag 10 .. 1f the commitment is
cc3aa50eaa6197daba6f35797dbd22bda10430ada13cab7b0a5ab4c6763a7747
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.errors import InputError, IntegrityError, OrderError
from privft.signing import (
    SigningKey,
    VerifyKey,
    canonical_json,
    dsse_open,
    dsse_sign,
    parse_canonical,
    sha256_hex,
)
from privft.vault import cells, manifest
from privft.vault.index import Rows, find, tag_numbers
from privft.vault.manifest import Manifest
from privft.vault.rotation import compact, with_dead_bytes
from privft.vault.state import Change, State, commit, record_rows, tidy, writing

PAYLOAD_TYPE = "application/vnd.privft.erasure-certificate+json"
CANNOT_PROMISE = [
    "that models trained before on this unit forget it: what they learned is bounded by the stated"
    " epsilon of each run named here, not undone",
    "backups and snapshots of this vault: they hold the unit until they are destroyed",
    "copies that a recipient made of an earlier manifest, index or key: they open what was copied",
    "that the storage has overwritten the removed files: flash and copy-on-write file systems keep"
    " old blocks for a while",
    "other vaults that hold records of the same person: each is erased from by itself",
    "the source files of the intake, where the operator did not shred them",
    "the workspace's keyed hashes of the unit's id and text: they stay, so that the same data"
    " cannot come back under a second budget, and whoever holds the workspace's key can test a"
    " guess against them",
]


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """The signed certificate, and the commitment in it that the ledger's entry repeats."""

    envelope: dict[str, Any] = field(repr=False)
    commitment: str


def commitment(lineage: bytes, tag: bytes) -> str:
    """The keyed commitment to the unit of this tag in the vault of this lineage, 64 hex digits."""
    return sha256_hex(b"privft-erasure-v1" + lineage + tag)


def erase(
    opened: State,
    unit: str,
    *,
    signer: SigningKey,
    checkpoint: str,
    who: str,
    runs: Sequence[str] = (),
    compacting: bool = True,
) -> tuple[State, Erasure]:
    """Erase one unit; `runs` names the past runs whose data may have contained it.

    Guarantees: afterwards no file in the vault's folder holds the unit's key under any epoch key
    that can still be unwrapped there, nor (with `compacting`) any cell that it ever had.
    """
    with writing(opened) as state:
        tag = cells.unit_tag(state.tag_key, unit)
        place = find(state.rows, tag)
        if place < 0:
            raise InputError(
                "no such unit in the vault", hint="the id must be as in the source, to the letter"
            )
        rows = np.delete(state.rows, place)
        records = record_rows(state)
        facts = state.facts.model_copy(update={"erased": state.facts.erased + 1})
        cause = manifest.Erasure(
            commitment=commitment(state.lineage, tag),
            root_before=state.manifest.root,
            compacted=compacting,
            runs=list(runs),
            who=who,
        )
        try:
            segments = state.manifest.segments
            if compacting:
                rows, segments = compact(state, rows, with_dead_bytes(state, rows))
            new = commit(
                state.manifest,
                state.path,
                Change(
                    rows=rows,
                    records=records[~of_unit(records, tag)],
                    segments=segments,
                    facts=facts,
                    cause=cause,
                ),
                previous=state.manifest,
                epoch_key=os.urandom(32),
                recipients=[wrapped.recipient for wrapped in state.manifest.recipients],
                signer=signer,
                checkpoint=checkpoint,
            )
        except BaseException:
            tidy(state.path)
            raise
    return new, certify(new.manifest, signer)


def of_unit(records: Rows, tag: bytes) -> NDArray[np.bool_]:
    """Which record rows belong to the unit with this tag."""
    high, low = tag_numbers(tag)
    mine: NDArray[np.bool_] = (records["unit_high"] == high) & (records["unit_low"] == low)
    return mine


def certify(version: Manifest, signer: SigningKey) -> Erasure:
    """The certificate of the erasure that made this version of a vault.

    It follows from the signed manifest alone, so it can be made again by the operator who finds
    that an erasure was interrupted.  Raises OrderError when the version came about otherwise.
    """
    cause = version.cause
    if not isinstance(cause, manifest.Erasure):
        raise OrderError(f"this version came about by {cause.kind}, not by an erasure")
    body = {
        "format": "privft-erasure-v1",
        "lineage": version.lineage,
        "dataset": version.dataset,
        "unit": version.unit,
        "commitment": cause.commitment,
        "ledger_entry": {"kind": "vault-erased", "commitment": cause.commitment},
        "root_before": cause.root_before,
        "root_after": version.root,
        "epoch_before": version.epoch - 1,
        "epoch_after": version.epoch,
        "manifest_after": version.digest,
        "compacted": cause.compacted,
        "runs": cause.runs,
        "time": version.time,
        "who": cause.who,
        "cannot_promise": CANNOT_PROMISE,
    }
    envelope = dsse_sign(canonical_json(body), PAYLOAD_TYPE, [signer])
    return Erasure(envelope=envelope, commitment=cause.commitment)


def open_certificate(
    envelope: Mapping[str, Any], signer_keys: Mapping[str, VerifyKey]
) -> dict[str, Any]:
    """The facts in a certificate that a known key signed; SignatureError or IntegrityError."""
    payload, _ = dsse_open(envelope, signer_keys, payload_type=PAYLOAD_TYPE)
    body = parse_canonical(payload)
    if not isinstance(body, dict) or body.get("format") != "privft-erasure-v1":
        raise IntegrityError("expected an erasure certificate")
    return body
