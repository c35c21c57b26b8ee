"""Erase a unit: forget its key, and sign what that does and does not mean.

What happens, in one atomic change: the unit's row (with its key) and its records' rows leave the
index; a new epoch key seals the new index; the old index, sealed under the old epoch key, is
removed together with the old manifest, which held the only wraps of that key in this vault; the
segment file that held the cell is rewritten without it, so that not even its sealed bytes stay.

The certificate is a DSSE envelope of type PAYLOAD_TYPE over canonical JSON:

    {"cannot_promise": [...], "commitment": 64 hex digits, "compacted": true, "dataset": ...,
     "epoch_after": 3, "epoch_before": 2, "format": "privft-erasure-v1",
     "ledger_entry": {"commitment": ..., "kind": "vault-erased"}, "lineage": ..., "manifest_after":
     digest, "root_after": ..., "root_before": ..., "runs": [...], "time": ..., "unit": "subject",
     "who": ...}

The commitment is HMAC-SHA-256(erasure key, unit id), with a key from the vault's secret: who has
the vault and the id can show that this certificate is about this person; nobody else learns who.
The ledger's entry carries the same commitment, and the digest of the certificate.

That the unit is in no later version can be shown: `index.prove` gives, for the root in a signed
manifest, two neighbouring leaves with the absent tag between them.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from privft.errors import InputError, IntegrityError
from privft.signing import (
    SigningKey,
    VerifyKey,
    canonical_json,
    dsse_open,
    dsse_sign,
    parse_canonical,
)
from privft.vault import cells
from privft.vault.index import find, tag_numbers
from privft.vault.rotation import compact
from privft.vault.state import Change, Facts, State, commit, derive, now, record_rows, tidy, writing

PAYLOAD_TYPE = "application/vnd.privft.erasure-certificate+json"
CANNOT_PROMISE = [
    "that models trained before on this unit forget it: what they learned is bounded by the stated"
    " epsilon of each run named here, not undone",
    "backups and snapshots of this vault: they hold the unit until they are destroyed",
    "copies that a recipient made of an earlier manifest, index or key: they open what was copied",
    "that the storage has overwritten the removed files: flash and copy-on-write file systems keep"
    " old blocks for a while",
    "the source files of the intake, where the operator did not shred them",
]


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """The signed certificate, and the commitment in it that the ledger's entry repeats."""

    envelope: dict[str, Any] = field(repr=False)
    commitment: str


def commitment(facts: Facts, unit: str) -> str:
    """The keyed commitment to a unit id, 64 hex digits."""
    return hmac.digest(derive(facts, "vault:erasure"), unit.encode(), "sha256").hex()


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
    """Erase one unit; `runs` names the past runs whose data contained it.

    Guarantees: afterwards no file in the vault's folder holds the unit's key under any epoch key
    that can still be unwrapped there, nor (with `compacting`) its sealed cell.
    """
    with writing(opened) as state:
        tag = cells.unit_tag(state.tag_key, unit)
        place = find(state.rows, tag)
        if place < 0:
            raise InputError(
                "no such unit in the vault", hint="the id must be as in the source, to the letter"
            )
        touched = {int(state.rows[place]["segment"])}
        rows = np.delete(state.rows, place)
        records = record_rows(state)
        high, low = tag_numbers(tag)
        mine = (records["unit_high"] == high) & (records["unit_low"] == low)
        facts = state.facts.model_copy(update={"erased": state.facts.erased + 1})
        try:
            segments = state.manifest.segments
            if compacting:
                rows, segments = compact(state, rows, touched)
            new = commit(
                state.manifest,
                state.path,
                Change(rows=rows, records=records[~mine], segments=segments, facts=facts),
                previous=state.manifest,
                epoch_key=os.urandom(32),
                recipients=[wrapped.recipient for wrapped in state.manifest.recipients],
                signer=signer,
                checkpoint=checkpoint,
            )
        except BaseException:
            tidy(state.path)
            raise
    proof = commitment(state.facts, unit)
    body = {
        "format": "privft-erasure-v1",
        "lineage": new.manifest.lineage,
        "dataset": new.manifest.dataset,
        "unit": new.manifest.unit,
        "commitment": proof,
        "ledger_entry": {"kind": "vault-erased", "commitment": proof},
        "root_before": state.manifest.root,
        "root_after": new.manifest.root,
        "epoch_before": state.manifest.epoch,
        "epoch_after": new.manifest.epoch,
        "manifest_after": new.manifest.digest,
        "compacted": compacting,
        "runs": list(runs),
        "time": now(),
        "who": who,
        "cannot_promise": CANNOT_PROMISE,
    }
    envelope = dsse_sign(canonical_json(body), PAYLOAD_TYPE, [signer])
    return new, Erasure(envelope=envelope, commitment=proof)


def open_certificate(
    envelope: Mapping[str, Any], signer_keys: Mapping[str, VerifyKey]
) -> dict[str, Any]:
    """The facts in a certificate that a known key signed; SignatureError or IntegrityError."""
    payload, _ = dsse_open(envelope, signer_keys, payload_type=PAYLOAD_TYPE)
    body = parse_canonical(payload)
    if not isinstance(body, dict) or body.get("format") != "privft-erasure-v1":
        raise IntegrityError("expected an erasure certificate")
    return body
