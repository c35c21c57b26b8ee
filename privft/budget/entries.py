"""The kinds of entry that the ledger knows, field by field, and the bytes of each.

An entry is one JSON object in canonical form (RFC 8785); those bytes are its leaf in the Merkle
tree (`translog.leaf_hash`).  For example, on one line in the ledger and folded here:

    {"actor":"ann","body":{"name":"ann","reason":"left the ward"},
     "index":7,"kind":"key-revoked","time":"2026-11-23T20:15:24Z"}

    index    its place: 0, 1, 2, ... without a gap
    kind     one of `BODIES`
    time     UTC, to the second, never earlier than the entry before
    actor    the name of the identity that acted
    body     the fields of the kind, as the models below say: all of them, and no others

An unknown kind, an unknown field, a missing field or a value of another type is an error, on the
way in and on the way out: what is unknown is unsupported, never guessed.  Whether an entry may
follow the ones before it (no settlement without a reservation, no reservation beyond the cap) is
the business of `budget.history`.

Entries hold public facts only: never a unit id, a count of units, a loss or a key that opens
anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from privft.budget.charged import Body, CostBody, EventBody, MechanismBody, Words
from privft.budget.translog import leaf_hash
from privft.errors import IntegrityError
from privft.signing import canonical_json, parse_canonical

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@/-]{0,199}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Time = Annotated[  # ASCII digits alone: times are compared as text
    str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
]
Role = Literal["operator", "approver", "auditor", "witness"]
Finding = Literal["bound-above-claim", "curve-contradicted", "control-failed", "selfcheck-failed"]
Files = dict[Annotated[str, Field(min_length=1, max_length=500)], Sha256]


class WorkspaceCreated(Body):
    """The first entry of every ledger: whose it is and which key signs its checkpoints."""

    workspace: Name
    log_key: Sha256


class KeyAdded(Body):
    """A person joins the ring, or comes back with new keys after a revocation."""

    name: Name
    roles: Annotated[list[Role], Field(min_length=1)]
    ed25519: Sha256
    x25519: Sha256
    expires: Time | None


class KeyRevoked(Body):
    """A person's keys count for nothing from here on."""

    name: Name
    reason: Words


class CapBody(Body):
    """A budget: see `filter.Cap`."""

    epsilon: Annotated[float, Field(gt=0)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    orders: Annotated[list[Annotated[float, Field(ge=2)]], Field(min_length=1)]


class DatasetCreated(Body):
    """A data set, and the budget of its lineage; a second one of a lineage joins the budget.

    Here as in the three kinds that follow, `manifest_root` says which sealed data the vault holds
    and `manifest_digest` which version of the vault this is, recipients and epoch included.
    """

    dataset: Name
    lineage: Hex16
    unit: Literal["record", "subject"]
    cap: CapBody
    declared_units: Annotated[int, Field(ge=1)]
    policy: Name
    policy_digest: Sha256
    manifest_root: Sha256
    manifest_digest: Sha256


class Intake(Body):
    """Records came into a vault.

    `known` commits to the keyed hashes of all units and texts that the data set ever held
    (`vault.overlap`), so that a workspace without them, or with older ones, takes nothing in.
    """

    dataset: Name
    lineage: Hex16
    manifest_root: Sha256
    manifest_digest: Sha256
    provenance_sha256: Sha256
    overlap: Literal["none", "same-lineage"]
    known: Sha256


class VaultRotated(Body):
    """A vault has a new epoch key."""

    dataset: Name
    manifest_root: Sha256
    manifest_digest: Sha256


class VaultErased(Body):
    """A unit was erased; `commitment` is keyed, so that it names nobody."""

    dataset: Name
    commitment: Sha256
    manifest_root: Sha256
    manifest_digest: Sha256
    certificate_sha256: Sha256


class PlanApproved(Body):
    """A second pair of eyes said yes to a plan."""

    plan_sha256: Sha256
    approver: Name
    signature: Words


class RunReserved(Body):
    """The worst case of a run, charged before its first step; made by `Ledger.reserve` alone."""

    run: Name
    dataset: Name
    lineage: Hex16
    plan_sha256: Sha256
    mechanism: MechanismBody
    events: Annotated[list[EventBody], Field(min_length=1)]
    run_key: Sha256
    policy_digest: Sha256
    config_sha256: Sha256
    model_sha256: Sha256
    epsilon: CostBody


class RunSettled(Body):
    """What a run is charged in the end; made by `Ledger.settle` alone."""

    run: Name
    outcome: Literal["completed", "closed"]
    reason: Words
    steps_charged: Annotated[int, Field(ge=0)]
    events: list[EventBody]
    journal_sha256: Sha256
    adapter: Files | None


class AuditStarted(Body):
    """An audit begins: from here on its part of the significance is spent.

    significance: what all tests of this attempt together may spend; software_sha256: over versions
    and machine, so that a broken-off audit is gone on with only where it is the same audit.
    """

    run: Name
    attempt: Annotated[int, Field(ge=1)]
    significance: Annotated[float, Field(gt=0, lt=1)]
    suite: Name
    suite_digest: Sha256
    software_sha256: Sha256


class RunAudited(Body):
    """What the audit that began last found."""

    run: Name
    attempt: Annotated[int, Field(ge=1)]
    verdict: Literal["passed", "failed"]
    findings: list[Finding]
    statement_sha256: Sha256
    suite: Name
    suite_digest: Sha256


class RunWaived(Body):
    """People took a failed audit on themselves."""

    run: Name
    reason: Words
    expires: Time
    signatures: Annotated[list[dict[str, Words]], Field(min_length=2)]


class RunReleased(Body):
    """An adapter left the enclave."""

    run: Name
    files: Files
    statement_sha256: Sha256


class RunRefused(Body):
    """A run that was asked for and not admitted."""

    plan_sha256: Sha256
    code: Annotated[int, Field(ge=1, le=130)]
    reason: Words


class Witnessed(Body):
    """A witness outside this machine has seen a checkpoint, and answered a fresh nonce."""

    witness: Name
    nonce: Hex16
    checkpoint: Words
    cosigned: Words
    signature: Words


class Recovered(Body):
    """The ledger was restored from a backup: all that may have been lost counts as spent.

    known: every checkpoint of the lost branch that anyone has shown, newest last.
    lineages: the budgets that are exhausted from here on.
    """

    known: Annotated[list[Words], Field(min_length=1)]
    lineages: list[Hex16]
    reason: Words
    signatures: Annotated[list[dict[str, Words]], Field(min_length=2)]


BODIES: dict[str, type[Body]] = {
    "workspace-created": WorkspaceCreated,
    "key-added": KeyAdded,
    "key-revoked": KeyRevoked,
    "dataset-created": DatasetCreated,
    "intake": Intake,
    "vault-rotated": VaultRotated,
    "vault-erased": VaultErased,
    "plan-approved": PlanApproved,
    "run-reserved": RunReserved,
    "run-settled": RunSettled,
    "audit-started": AuditStarted,
    "run-audited": RunAudited,
    "run-waived": RunWaived,
    "run-released": RunReleased,
    "run-refused": RunRefused,
    "witnessed": Witnessed,
    "recovered": Recovered,
}

_HEAD = {"index", "kind", "time", "actor", "body"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,199}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)  # strptime takes more forms


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the ledger; `body` is plain JSON, as it comes out of the canonical bytes."""

    index: int
    kind: str
    time: str
    actor: str
    body: Mapping[str, Any]

    @cached_property
    def canonical(self) -> bytes:
        """The bytes that are hashed and stored."""
        return canonical_json(
            {
                "index": self.index,
                "kind": self.kind,
                "time": self.time,
                "actor": self.actor,
                "body": dict(self.body),
            }
        )

    @cached_property
    def leaf_hash(self) -> bytes:
        """Its leaf in the Merkle tree, 32 bytes."""
        return leaf_hash(self.canonical)


def make_entry(*, index: int, kind: str, time: str, actor: str, body: Mapping[str, Any]) -> Entry:
    """A checked entry, with the body as it will be read again; raises `IntegrityError`."""
    try:
        entry = Entry(index=index, kind=kind, time=time, actor=actor, body=body)
        return parse_entry(entry.canonical)
    except ValueError as error:
        raise IntegrityError(f"entry {index} ({kind}) is not JSON: {error}") from error


def parse_entry(data: bytes) -> Entry:
    """The entry with exactly these bytes; raises `IntegrityError` that says what is wrong."""
    value = parse_canonical(data)
    if not isinstance(value, dict) or set(value) != _HEAD:
        raise IntegrityError("an entry without exactly index, kind, time, actor and body")
    entry = Entry(**value)
    check_entry(entry)
    return entry


def check_entry(entry: Entry) -> None:
    """Return when every field has its type; raises `IntegrityError` naming the entry."""
    where = f"entry {entry.index} ({entry.kind})"
    if type(entry.index) is not int or entry.index < 0:
        raise IntegrityError(f"expected a whole index >= 0, got {entry.index!r}")
    if not isinstance(entry.actor, str) or not _NAME.fullmatch(entry.actor):
        raise IntegrityError(f"{where}: expected the name of an actor")
    parse_time(entry.time, where)
    model = BODIES.get(entry.kind) if isinstance(entry.kind, str) else None
    if model is None:
        raise IntegrityError(f"{where}: unknown kind of entry")
    try:
        model.model_validate(entry.body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise IntegrityError(f"{where}: {field}: {first['msg']}") from error


def parse_time(text: Any, where: str = "time") -> datetime:
    """The moment that an entry's time says; raises `IntegrityError` for any other form."""
    try:
        if _TIME.fullmatch(text) is None:
            raise ValueError("another form")
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"{where}: expected a time such as 2026-11-23T20:15:24Z, got {text!r}"
        ) from error


def format_time(moment: datetime) -> str:
    """The form of a moment in entries: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
