"""What people and witnesses sign inside entries, and the check of it whenever a ledger is replayed.

A checkpoint says that the log's key stood behind an entry.  These signatures say more: that named
people did, whose keys the holder of the log's key does not have.  So they are held against the
ring of that moment before an entry is written and again whenever the ledger is verified, here or
on another machine; nothing rests on the program that wrote the entry.

    plan-approved   Ed25519, hex, by an approver, over `plan.approval_message`
    run-waived      by two approvers or more, each Ed25519 over the waiver message

        privft-waiver-v1
        {"expires":...,"reason":...,"run":...,"statement_sha256":...}

                    where the statement is the one of the audit that failed
    witnessed       Ed25519, base64, by somebody with the role witness, over the canonical JSON of
                    the answer without its signature (`witness`)
    recovered       a DSSE envelope over `recovery_statement`, by two approvers
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from privft.budget.entries import parse_time
from privft.errors import OrderError, SignatureError
from privft.keyring import Keyring
from privft.signing import canonical_json, dsse_open

RECOVERY_TYPE = "application/vnd.privft.recovery+json"
ANSWER_FORMAT = "privft-witness-answer-v1"


def waiver_message(run: str, *, statement_sha256: str, reason: str, expires: str) -> bytes:
    """What the two people of a waiver sign."""
    body = {
        "run": run,
        "statement_sha256": statement_sha256,
        "reason": reason,
        "expires": expires,
    }
    return b"privft-waiver-v1\n" + canonical_json(body)


def recovery_statement(known: Sequence[str], lineages: Sequence[str], reason: str) -> bytes:
    """What two approvers sign, as a DSSE payload of `RECOVERY_TYPE`, before a recovery."""
    return canonical_json({"known": list(known), "lineages": sorted(lineages), "reason": reason})


def answer_message(answer: Mapping[str, Any]) -> bytes:
    """What a witness signs: its answer, or the body of a `witnessed` entry, less the signature."""
    rest = {name: value for name, value in answer.items() if name != "signature"}
    return canonical_json({**rest, "format": ANSWER_FORMAT})


def check_approval(body: Mapping[str, Any], ring: Keyring, time: str) -> None:
    """Return when the approver signed this plan with keys that were good then."""
    from privft.plan import approval_message  # 0.1 s that opening a ledger does without

    person = ring.may(body["approver"], "approver", time)
    signature = _unhex(body["signature"], f"the approval by {person.name}")
    person.verify_key.verify(signature, approval_message(body["plan_sha256"]))


def check_waiver(
    body: Mapping[str, Any], ring: Keyring, time: str, *, statement_sha256: str
) -> None:
    """Return when two different approvers signed this waiver of the audit with this statement.

    Every signature has to hold, not just two of them.  Raises `OrderError` for a waiver without a
    reason, or one that ends before it begins.
    """
    if not body["reason"].strip():
        raise OrderError("a waiver needs a reason")
    if parse_time(body["expires"]) <= parse_time(time):
        raise OrderError(f"a waiver made at {time} cannot end at {body['expires']}")
    message = waiver_message(
        body["run"],
        statement_sha256=statement_sha256,
        reason=body["reason"],
        expires=body["expires"],
    )
    keys = set()
    for row in body["signatures"]:
        if set(row) != {"name", "keyid", "signature"}:
            raise SignatureError("a waiver's signature without exactly name, keyid and signature")
        key = ring.may(row["name"], "approver", time).verify_key
        if row["keyid"] != key.keyid:
            raise SignatureError(f"the ring has another key for {row['name']} than the waiver")
        key.verify(_unhex(row["signature"], f"the waiver by {row['name']}"), message)
        keys.add(key.keyid)
    if len(keys) < 2:
        raise SignatureError(f"a waiver needs two people, and {len(keys)} signed")


def check_witnessed(body: Mapping[str, Any], ring: Keyring, time: str) -> None:
    """Return when the witness gave this answer."""
    key = ring.may(body["witness"], "witness", time).verify_key
    try:
        signature = base64.b64decode(body["signature"], validate=True)
    except ValueError as error:
        raise SignatureError("the signature of a witness answer is not base64") from error
    key.verify(signature, answer_message(body))


def check_recovery(body: Mapping[str, Any], ring: Keyring, time: str) -> None:
    """Return when two approvers signed this recovery."""
    statement = recovery_statement(body["known"], body["lineages"], body["reason"])
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": RECOVERY_TYPE,
        "signatures": [dict(signature) for signature in body["signatures"]],
    }
    trusted = ring.trusted("approver", time)
    dsse_open(envelope, trusted, threshold=2, payload_type=RECOVERY_TYPE)


def _unhex(text: str, what: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise SignatureError(f"{what} is not signed in hex") from error
