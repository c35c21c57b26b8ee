"""The thread from a released folder to the ledger: `ledger-proof.json`.

The file is canonical JSON (RFC 8785), nothing before or after it:

    {"format": "privft-ledger-proof-v1",
     "checkpoint": "<signed note: origin, size, root; see budget.translog>",
     "extends": {"checkpoint": "<signed note>", "proof": ["<64 hex digits>", ...]} or null,
     "entries": [{"entry": {"index": 17, "kind": "run-reserved", ...},
                  "proof": ["<64 hex digits>", ...]}, ...]}

checkpoint   the ledger at the time of release, or later
extends      the checkpoint that the plan saw (the statement's `checkpoint_before`), and the
             consistency proof (RFC 6962) that the later ledger only added to it; null when the
             statement names none
entries      in rising order of index, each with its inclusion proof under `checkpoint`: the
             approvals of the plan, all entries of the run, and every recovery of the ledger

To check by hand: the canonical JSON of an `entry`, after a byte 0x00, hashed with SHA-256 is its
leaf; hashing it with the proof's hashes from the leaf up, each pair after a byte 0x01, left before
right, must give the root in the checkpoint (RFC 9162, section 2.1.3.2).

The file cannot list its own digest, so its own strictness guards it: every byte of it is either
signed by the log key, hashed into the signed root, a hash on the way there, or fixed by this form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field, ValidationError

from privft.budget.entries import Entry, parse_entry
from privft.budget.translog import Checkpoint, verify_consistency, verify_inclusion
from privft.errors import IntegrityError
from privft.report.values import Sha256, Strict, Words
from privft.signing import VerifyKey, canonical_json, parse_canonical

RUN_KINDS = (
    "run-reserved",
    "run-settled",
    "audit-started",
    "run-audited",
    "run-waived",
    "run-released",
)


class LedgerView(Protocol):
    """What of a ledger is needed to prove something about it (`budget.ledger.Ledger` has it)."""

    def entries(self, kind: str | None = None) -> Iterable[Entry]:
        """All entries, or those of one kind, in order."""

    def checkpoint(self) -> str:
        """The signed note for the ledger as it is now."""

    def inclusion_proof(self, index: int, size: int) -> Sequence[bytes]:
        """RFC 6962 PATH."""

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        """RFC 6962 PROOF."""


class Extends(Strict):
    """That the ledger grew out of an earlier checkpoint."""

    checkpoint: Words
    proof: list[Sha256]


class ProvenEntry(Strict):
    """One entry and the way from it to the root."""

    entry: dict[str, Any]
    proof: list[Sha256]


class LedgerProof(Strict):
    """The file, whole."""

    format: Literal["privft-ledger-proof-v1"]
    checkpoint: Words
    extends: Extends | None
    entries: Annotated[list[ProvenEntry], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True)
class ProvenLedger:
    """What `check_proof` established: these entries are in the log with this checkpoint."""

    checkpoint: Checkpoint
    entries: tuple[Entry, ...]
    extends: str | None

    def only(self, kind: str) -> Entry:
        """The one entry of a kind; raises `IntegrityError` when there is none or a second."""
        found = [entry for entry in self.entries if entry.kind == kind]
        if len(found) != 1:
            raise IntegrityError(f"expected one {kind} entry in the proof, got {len(found)}")
        return found[0]


def build_proof(
    ledger: LedgerView, *, run: str, log_key: VerifyKey, checkpoint_before: str = ""
) -> bytes:
    """`ledger-proof.json` for a run, under the ledger's present checkpoint.

    checkpoint_before: the statement's; empty when it has none.  Raises `IntegrityError` when the
    ledger has no entry of the run.
    """
    note = ledger.checkpoint()
    size = Checkpoint.open(note, log_key).size
    everything = [entry for entry in ledger.entries() if entry.index < size]
    chosen = [e for e in everything if e.kind in RUN_KINDS and e.body.get("run") == run]
    plans = {e.body["plan_sha256"] for e in chosen if e.kind == "run-reserved"}
    chosen += [
        e for e in everything if e.kind == "plan-approved" and e.body["plan_sha256"] in plans
    ]
    if not chosen:
        raise IntegrityError(f"the ledger has no entry of run {run}")
    chosen += [e for e in everything if e.kind == "recovered"]
    extends = None
    if checkpoint_before:
        old = Checkpoint.open(checkpoint_before, log_key).size
        extends = {
            "checkpoint": checkpoint_before,
            "proof": [item.hex() for item in ledger.consistency_proof(old, size)],
        }
    return canonical_json(
        {
            "format": "privft-ledger-proof-v1",
            "checkpoint": note,
            "extends": extends,
            "entries": [
                {
                    "entry": parse_canonical(entry.canonical),
                    "proof": [h.hex() for h in ledger.inclusion_proof(entry.index, size)],
                }
                for entry in sorted(chosen, key=lambda entry: entry.index)
            ],
        }
    )


def check_proof(data: bytes, log_key: VerifyKey) -> ProvenLedger:
    """The entries that the proof proves; raises `IntegrityError` or `SignatureError`.

    Guarantees: each returned entry is in the log whose checkpoint `log_key` signed, exactly as
    returned and at its index; and that log extends the checkpoint in `extends`, if any.
    """
    parse_canonical(data)  # refuses a second spelling of the same content
    try:
        proof = LedgerProof.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"ledger-proof.json: {where}: {first['msg']}") from error
    checkpoint = Checkpoint.open(proof.checkpoint, log_key)
    entries: list[Entry] = []
    for proven in proof.entries:
        entry = parse_entry(canonical_json(proven.entry))
        if entries and entry.index <= entries[-1].index:
            raise IntegrityError("ledger-proof.json: entries are not in rising order")
        path = [bytes.fromhex(item) for item in proven.proof]
        verify_inclusion(entry.leaf_hash, entry.index, checkpoint.size, path, checkpoint.root)
        entries.append(entry)
    if proof.extends is not None:
        old = Checkpoint.open(proof.extends.checkpoint, log_key)
        path = [bytes.fromhex(item) for item in proof.extends.proof]
        verify_consistency(old.size, checkpoint.size, old.root, checkpoint.root, path)
    return ProvenLedger(
        checkpoint=checkpoint,
        entries=tuple(entries),
        extends=proof.extends.checkpoint if proof.extends else None,
    )
