"""A witness on another machine: the one cure for a disk that was set back as a whole.

A ledger that is restored from yesterday's image, keys and all, looks perfect from inside.  A
*witness* keeps the newest checkpoint that it has seen, and answers with it.  It is a person or a
machine with the role witness on the ring, whose key the ledger's machine never had.  The two talk
through files (a USB stick is enough):

1. `ask` writes a challenge: a fresh nonce, the ledger's newest checkpoint, and a proof that it
   extends the checkpoint that this ledger last heard of from this witness.

       {"format": "privft-witness-challenge-v1", "nonce": "<32 hex>", "checkpoint": "<note>",
        "since": 12, "proof": ["<64 hex>", ...]}

2. `answer`, on the witness's machine, adds its cosignature (c2sp.org/tlog-cosignature) when the
   proof leads from its own newest checkpoint to the one in the challenge, and always says which
   that was.  What it returns to keep is the newer of the two.

       {"format": "privft-witness-answer-v1", "witness": "desk", "nonce": "<32 hex>",
        "checkpoint": "<note: the newest that it had seen>", "cosigned": "<note>" or "",
        "signature": "<base64 over the canonical JSON of the rest>"}

3. `accept` checks signature and nonce, holds the witness's checkpoint against the ledger, and
   appends a `witnessed` entry.  A checkpoint that is not a beginning of this ledger means that the
   ledger was set back: an `IntegrityError`, and nothing may run.

The nonce keeps an old answer from passing for a new one; it has to live in the memory of the
process that asks, because a challenge kept on a disk could be set back together with the disk and
be answered by the old answer.

The window that remains: what was written after the witness was last asked can be lost without its
noticing, and a ledger that was set back to a state with a young answer in it goes on until the next
question, which it cannot pass.  A policy says how wide it may be (`witness_within`).

A cosignature line has key type 4: its base64 holds the first 4 bytes of SHA-256(name || 0x0A ||
0x04 || public key), 8 bytes of big-endian POSIX time, and 64 bytes of signature over

    cosignature/v1
    time 1795464924
    <the text of the note>
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from privft.budget.entries import Entry, format_time, parse_time
from privft.budget.ledger import Ledger
from privft.budget.reader import Reader
from privft.budget.signed import ANSWER_FORMAT, answer_message, check_witnessed
from privft.budget.translog import Checkpoint, verify_consistency
from privft.errors import IntegrityError, SignatureError
from privft.signing import (
    SigningKey,
    VerifyKey,
    note_key_id,
    note_parts,
)

CHALLENGE_FORMAT = "privft-witness-challenge-v1"
_COSIGNATURE = 4
_CHALLENGE_TYPES = {"format": str, "nonce": str, "checkpoint": str, "since": int, "proof": list}
_ANSWER_FIELDS = {"format", "witness", "nonce", "checkpoint", "cosigned", "signature"}


def cosign(note: str, key: SigningKey, *, posix_time: int) -> str:
    """The note with a witness's cosignature added, under the key's own name."""
    text, _ = note_parts(note)
    blob = (
        note_key_id(key.name, _COSIGNATURE, key.public.raw)
        + posix_time.to_bytes(8, "big")
        + key.sign(f"cosignature/v1\ntime {posix_time}\n{text}".encode())
    )
    return f"{note}— {key.name} {base64.b64encode(blob).decode()}\n"


def cosigned_at(note: str, key: VerifyKey) -> int:
    """When the witness cosigned the note, in POSIX seconds; raises `SignatureError`."""
    text, signatures = note_parts(note)
    key_id = note_key_id(key.name, _COSIGNATURE, key.raw)
    times = []
    for name, blob in signatures:
        if name == key.name and blob[:4] == key_id:
            posix_time = int.from_bytes(blob[4:12], "big")
            key.verify(blob[12:], f"cosignature/v1\ntime {posix_time}\n{text}".encode())
            times.append(posix_time)
    if not times:
        raise SignatureError(f"note is not cosigned by {key.name}")
    return max(times)


def ask(ledger: Reader, witness: str) -> dict[str, Any]:
    """A challenge for the witness of this name, with a fresh nonce."""
    checkpoint = ledger.checkpoint()
    newest = Checkpoint.open(checkpoint, ledger.key)
    since = 0
    for entry in ledger.entries(kind="witnessed"):
        if entry.body["witness"] == witness:
            note = entry.body["cosigned"] or entry.body["checkpoint"]
            if note and ledger.check_known(note):  # and not of a branch that a recovery gave up
                since = Checkpoint.open(note, ledger.key).size
    proof = ledger.consistency_proof(since, newest.size) if since else []
    return {
        "format": CHALLENGE_FORMAT,
        "nonce": secrets.token_hex(16),
        "checkpoint": checkpoint,
        "since": since,
        "proof": [item.hex() for item in proof],
    }


def answer(
    challenge: Mapping[str, Any],
    *,
    newest: str,
    witness: SigningKey,
    log_key: VerifyKey,
    posix_time: int,
) -> tuple[dict[str, Any], str]:
    """The witness's answer, and the checkpoint to keep from now on.

    newest: the checkpoint kept so far, empty for a log that is seen for the first time (which is
    believed).  Without a proof from there the answer has no cosignature, and tells the ledger from
    where to prove: asking again then brings one.
    Raises `IntegrityError` for a challenge that does not extend `newest`: the log has forked.
    """
    if {name: type(value) for name, value in challenge.items()} != _CHALLENGE_TYPES:
        raise IntegrityError("expected a witness challenge")
    if challenge["format"] != CHALLENGE_FORMAT:
        raise IntegrityError(f"expected a challenge of format {CHALLENGE_FORMAT}")
    offered = Checkpoint.open(challenge["checkpoint"], log_key)
    good = True
    if newest:
        kept = Checkpoint.open(newest, log_key)
        good = kept.size in (challenge["since"], offered.size) and kept.size <= offered.size
        if good:
            try:
                proof = [bytes.fromhex(item) for item in challenge["proof"]]
            except (TypeError, ValueError) as error:
                raise IntegrityError("a witness challenge whose proof is not hex") from error
            if kept.size == offered.size:
                proof = []
            verify_consistency(kept.size, offered.size, kept.root, offered.root, proof)
    signed = {
        "format": ANSWER_FORMAT,
        "witness": witness.name,
        "nonce": challenge["nonce"],
        "checkpoint": newest,
        "cosigned": cosign(challenge["checkpoint"], witness, posix_time=posix_time) if good else "",
    }
    signature = base64.b64encode(witness.sign(answer_message(signed))).decode()
    return {**signed, "signature": signature}, challenge["checkpoint"] if good else newest


def accept(
    ledger: Ledger,
    challenge: Mapping[str, Any],
    reply: Mapping[str, Any],
    *,
    witness: str,
    actor: str,
    time: str | None = None,
) -> Entry:
    """Check the answer to this challenge of the witness of this name on the ring, and record it.

    Guarantees: returns only when the witness, after the challenge was made, said that the newest
    checkpoint that it had seen is a beginning of this ledger.
    """
    if set(reply) != _ANSWER_FIELDS or not all(isinstance(item, str) for item in reply.values()):
        raise IntegrityError("expected a witness answer")
    if (reply["format"], reply["witness"]) != (ANSWER_FORMAT, witness):
        raise IntegrityError(f"expected an answer of {witness} in format {ANSWER_FORMAT}")
    now = time or format_time(datetime.now(UTC))
    key = ledger.keyring().may(witness, "witness", now).verify_key
    check_witnessed(reply, ledger.keyring(), now)
    if reply["nonce"] != challenge["nonce"]:
        raise SignatureError("a witness answer to another challenge")
    for note in (reply["checkpoint"], reply["cosigned"]):
        if note:
            ledger.check_known(note)
    if reply["cosigned"]:
        cosigned_at(reply["cosigned"], key)
    body = {name: value for name, value in reply.items() if name != "format"}
    return ledger.append("witnessed", body, actor=actor, time=time)


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """How far the ledger is from the newest checkpoint that a witness cosigned.

    entries: written since that was recorded.  days: since the witness answered, by the earlier of
    its clock and the ledger's, until now, or until the ledger's last entry where a clock that was
    set back says an earlier now.
    """

    witness: str
    entries: int
    days: float


def freshness(ledger: Reader, now: str) -> Freshness | None:
    """The newest word of a witness at a moment (ISO time); None when none ever cosigned."""
    for entry in reversed(ledger.entries(kind="witnessed")):
        if entry.body["cosigned"]:
            person = ledger.keyring().may(entry.body["witness"], "witness", entry.time)
            answered = cosigned_at(entry.body["cosigned"], person.verify_key)
            earlier = min(float(answered), parse_time(entry.time).timestamp())
            last = ledger.entry(ledger.size - 1)
            until = max(parse_time(now), parse_time(last.time)).timestamp()
            return Freshness(
                witness=person.name,
                entries=last.index - entry.index,
                days=(until - earlier) / 86400,
            )
    return None
