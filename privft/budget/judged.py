"""One run as the ledger tells it, and what may be said of it after its settlement.

    audit-started   a completed run that is not released, and that no audit has contradicted yet.
                    What the attempt may spend of the significance is spent from here on, whether
                    or not the audit comes to its end: else an audit could be broken off when its
                    scores look bad, and tried again for nothing
    run-audited     the audit that began last, once
    run-waived      when the newest verdict is a failure; signed by two approvers
    run-released    when the newest verdict is a pass, or is waived and in time

While an audit is open nothing but its verdict (or another beginning) can follow.  A finding other
than `control-failed` is final: one audit that contradicts the claim outweighs any number that do
not, since the attempts share one significance.  An audit whose control failed proves nothing, so
another one may follow it.

`charged_by` says what a reservation charges, `steps_of` how many steps that may draw.
`check_judgement` says whether an entry may follow, `judgement` what it changes in the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privft.budget.entries import Entry
from privft.budget.mechanism import Event
from privft.budget.selection import AnyEvent, Selection, event_from_dict
from privft.budget.signed import check_waiver
from privft.errors import IntegrityError, OrderError
from privft.keyring import Keyring

KINDS = ("audit-started", "run-audited", "run-waived", "run-released")
INCONCLUSIVE = "control-failed"
"""The one finding that says something about the audit and nothing about the run."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run, as far as the ledger has heard of it.

    reserved, settled, released: positions of entries.
    charged: what it counts for: the reservation until settlement, then what settlement says.
    attempts: audits that began; auditing: the newest of them has no verdict yet.
    verdict: the newest, signed in that statement; waived_until: of a waiver of it.
    contradicted: an audit found what no later one can undo.
    """

    run: str
    dataset: str
    lineage: str
    actor: str
    steps: int
    charged: tuple[AnyEvent, ...]
    reserved: int
    settled: int | None = None
    outcome: str | None = None
    attempts: int = 0
    auditing: bool = False
    suite_digest: str | None = None
    verdict: str | None = None
    contradicted: bool = False
    statement_sha256: str | None = None
    waived_until: str | None = None
    released: int | None = None


def charged_by(body: Mapping[str, Any]) -> tuple[AnyEvent, ...]:
    """What a reservation charges: the mechanism's own event first, then what is beside it; or the
    one selection whose repetitions train by the mechanism.

    Raises `IntegrityError` for events that are not the mechanism's.
    """
    mechanism = body["mechanism"]
    main = Event(
        noise_multiplier=mechanism["noise_multiplier"],
        sampling_probability=mechanism["sampling_probability"],
        count=mechanism["steps"],
    )
    events = [event_from_dict(event) for event in body["events"]]
    first = events[0]
    if isinstance(first, Selection):
        if len(events) == 1 and first.most is not None and first.events[0] == main:
            return (first,)
    elif main in events and not any(isinstance(event, Selection) for event in events):
        events.remove(main)
        return (main, *events)
    raise IntegrityError(f"run {body['run']} reserves other events than its mechanism's")


def steps_of(main: AnyEvent) -> int:
    """The noisy steps that a run may draw: of a selection, all repetitions that it may take."""
    if isinstance(main, Selection):
        assert main.most is not None
        return main.most * main.events[0].count
    return main.count


def check_judgement(entry: Entry, record: RunRecord, ring: Keyring) -> None:
    """Return when `entry`, of one of `KINDS`, may follow; raises as `History.check` does."""
    body, run = entry.body, record.run
    if record.outcome != "completed":
        state = record.outcome or "not settled yet"
        raise OrderError(f"run {run} is {state}: it has no adapter to judge")
    if record.released is not None:
        raise OrderError(f"run {run} was released by entry {record.released}")
    if entry.kind == "audit-started":
        if record.contradicted:
            raise OrderError(f"an audit contradicted run {run}: no other can undo that")
        if body["attempt"] != record.attempts + 1:
            raise OrderError(
                f"expected attempt {record.attempts + 1} at run {run}, got {body['attempt']}"
            )
        return
    if (entry.kind == "run-audited") is not record.auditing:
        what = "an audit that has not ended" if record.auditing else "no audit that has begun"
        raise OrderError(f"run {run} has {what}")
    if entry.kind == "run-audited":
        if (body["attempt"], body["suite_digest"]) != (record.attempts, record.suite_digest):
            raise OrderError(f"this is not the audit of run {run} that began last")
        if (body["verdict"] == "failed") is not bool(body["findings"]):
            raise IntegrityError(
                f"the audit of run {run} {body['verdict']} with {len(body['findings'])} findings"
            )
    elif entry.kind == "run-waived":
        if record.verdict != "failed":
            raise OrderError(f"run {run} has no failed audit to waive")
        statement = str(record.statement_sha256)
        check_waiver(body, ring, entry.time, statement_sha256=statement)
    else:
        waived = record.waived_until is not None and entry.time < record.waived_until
        if record.verdict != "passed" and not waived:
            raise OrderError(f"run {run} has no passed audit and no waiver in time")


def judgement(entry: Entry) -> Mapping[str, Any]:
    """The fields of the record that an entry of one of `KINDS` changes."""
    body = entry.body
    if entry.kind == "audit-started":
        return {
            "attempts": body["attempt"],
            "auditing": True,
            "suite_digest": body["suite_digest"],
        }
    if entry.kind == "run-audited":
        return {
            "auditing": False,
            "verdict": body["verdict"],
            "contradicted": bool(set(body["findings"]) - {INCONCLUSIVE}),
            "statement_sha256": body["statement_sha256"],
            "waived_until": None,
        }
    if entry.kind == "run-waived":
        return {"waived_until": body["expires"]}
    return {"released": entry.index}
