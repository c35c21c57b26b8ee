"""A whole released folder, made of made-up weights and real signatures, proofs and accounting."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from privft.budget import translog
from privft.budget.entries import Entry, Role, make_entry
from privft.budget.filter import Cap
from privft.budget.mechanism import Event
from privft.budget.signed import RECOVERY_TYPE, recovery_statement, waiver_message
from privft.keyring import Person
from privft.plan import approval_message
from privft.policy import let_out
from privft.report import claim, recompute, release, statement, verify
from privft.report.proof import build_proof
from privft.report.trust import TrustRoot, make_trust, parse_trust
from privft.signing import PublicIdentity, SigningKey, canonical_json, dsse_sign, sha256_hex
from tests.report.made_up import DELTA, EARLIER, hexes, made_up_facts

ORIGIN = "privft.example/ward-7"
LOG = SigningKey.from_bytes(ORIGIN, b"L" * 32)
RUN = SigningKey.from_bytes("run", b"R" * 32)
JONAS = SigningKey.from_bytes("jonas-weidling", b"J" * 32)
AMARA = SigningKey.from_bytes("amara-liu", b"A" * 32)
STRANGER = SigningKey.from_bytes("stranger", b"S" * 32)
ISSUED, NOW, EXPIRES = "2026-11-01T00:00:00Z", "2026-11-25T00:00:00Z", "2027-11-01T00:00:00Z"
FINDINGS = ["control-failed"]
WAIVER = {"reason": "the control was out of memory", "expires": "2026-12-01T00:00:00Z"}
WEIGHTS = {
    "adapter_config.json": b'{"peft_type": "LORA", "r": 4}\n',
    "adapter_model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      made-up",
}


def _rule(value: Any) -> dict[str, Any]:
    return {"value": value, "why": "made up for the tests of the report", "source": "nowhere"}


POLICY: dict[str, Any] = {
    "version": 1,
    "name": "hospital",
    "based_on": [],
    "purpose": "made-up policy for tests",
    "units": _rule(["subject"]),
    "max_epsilon_per_run": _rule(3.0),
    "total_epsilon": _rule(8.0),
    "total_delta": _rule(1e-5),
    "filter_orders": _rule([4.0, 8.0, 16.0, 32.0]),
    "delta_factor": _rule(0.5),
    "min_declared_units": _rule(1000),
    "two_accountants": _rule(True),
    "required_suite": _rule("standard"),
    "approvals": _rule(2),
    "four_eyes": _rule(True),
    "countersignatures": _rule(1),
    "secure_noise": _rule(False),
    "recipients_allowed": _rule(["x25519"]),
    "may_show_private_metrics": _rule(False),
    "retention_days": _rule(30),
    "witness_within": _rule(None),
    "public_outputs": _rule(list(let_out(noised=True))),
}


class MemoryLedger:
    """The little of a ledger that a proof is built from."""

    def __init__(self) -> None:
        self.tree = translog.Tree()
        self.log: list[Entry] = []

    def append(self, kind: str, body: dict[str, Any], actor: str, time: str) -> Entry:
        entry = make_entry(index=self.tree.size, kind=kind, time=time, actor=actor, body=body)
        self.tree.append(entry.leaf_hash)
        self.log.append(entry)
        return entry

    def entries(self, kind: str | None = None) -> Sequence[Entry]:
        return [entry for entry in self.log if kind in (None, entry.kind)]

    def checkpoint(self) -> str:
        root = translog.root(self.tree, self.tree.size)
        return translog.Checkpoint(origin=ORIGIN, size=self.tree.size, root=root).signed(LOG)

    def inclusion_proof(self, index: int, size: int) -> Sequence[bytes]:
        return translog.inclusion_proof(self.tree, index, size)

    def consistency_proof(self, old: int, new: int) -> Sequence[bytes]:
        return translog.consistency_proof(self.tree, old, new)


def scored(facts: dict[str, Any]) -> dict[str, Any]:
    """The same run with a noised score on held-out units, charged."""
    facts["events"].append({"kind": "gaussian", "noise_multiplier": 12.5, "count": 2})
    base, trained = 4.61, 3.95
    follows = claim.noised(
        difference=trained - base, units=400, noise_multiplier=12.5, bound=8.0, delta=DELTA
    )
    facts["utility"].append(
        {
            "source": "noised",
            "metric": "loss per token",
            "unit": "nats",
            "base": base,
            "trained": trained,
            "n": 400,
            **follows,
        }
    )
    return facts


@cache
def _computed(score: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    facts = scored(made_up_facts()) if score else made_up_facts()
    events = [Event.from_dict(event) for event in facts["events"]]
    cap = Cap(epsilon=8.0, delta=DELTA, orders=(4.0, 8.0, 16.0, 32.0))
    earlier = [Event.from_dict(EARLIER)]
    return (
        claim.guarantee(unit="subject", events=events, delta=DELTA),
        claim.budget(cap=cap, spent=earlier, events=events),
    )


def true_facts(checkpoint_before: str = "", *, score: bool = False) -> dict[str, Any]:
    """Made-up facts whose numbers are what the accountants and the bounds compute.

    score: with a noised score on held-out units.
    """
    facts = scored(made_up_facts()) if score else made_up_facts()
    guarantee, budget = copy.deepcopy(_computed(score))
    facts["guarantee"] = guarantee
    facts["ledger"] = {
        "log_key": LOG.public.hex,
        "checkpoint_before": checkpoint_before,
        "history": [
            {
                "run": "r-0007-9c01aa",
                "epsilon": 1.13,
                "cumulative": budget["before"]["epsilon_spent"],
            },
            {
                "run": facts["run"]["id"],
                "epsilon": guarantee["epsilon"],
                "cumulative": budget["after"]["epsilon_spent"],
            },
        ],
        "recoveries": [],
        **budget,
    }
    facts["run"]["run_key"] = RUN.public.hex
    facts["model"]["adapter_files"] = {name: sha256_hex(data) for name, data in WEIGHTS.items()}
    facts["config"]["sha256"] = sha256_hex(canonical_json(facts["config"]["body"]))
    for approval, key in zip(facts["approvals"], (JONAS, AMARA), strict=True):
        approval["name"], approval["keyid"] = key.name, key.public.keyid
        approval["signature"] = key.sign(approval_message(facts["plan"]["sha256"])).hex()
    facts["may_countersign"] = [
        {"name": key.name, "keyid": key.public.keyid} for key in (JONAS, AMARA)
    ]
    facts["audit"]["tests"] = [_bound(test) for test in facts["audit"]["tests"]]
    facts["policy"] = {
        "name": "hospital",
        "body": copy.deepcopy(POLICY),
        "sha256": sha256_hex(canonical_json(POLICY)),
        "checks": [
            {"rule": "recipients_allowed", "limit": ["x25519"], "got": ["x25519"], "ok": True},
            {"rule": "public_outputs", "limit": [], "got": ["adapter", "report"], "ok": True},
        ],
    }
    typed = statement.validate(statement.build(facts)).predicate
    facts["policy"]["checks"] = recompute.policy_rows(typed)
    return facts


def _bound(test: dict[str, Any]) -> dict[str, Any]:
    from privft.audit.bounds import one_run_epsilon

    for what, right in (("epsilon_lower", test["correct"]), ("ceiling", test["guesses"])):
        test[what] = one_run_epsilon(
            canaries=test["canaries"],
            guesses=test["guesses"],
            correct=right,
            delta=DELTA,
            significance=test["significance"],
        )
    return test


def person(key: SigningKey, *roles: Role, **times: str | None) -> Person:
    return Person(
        name=key.name,
        roles=roles or ("approver",),
        public=PublicIdentity(name=key.name, ed25519=key.public.hex, x25519=""),
        **{"added": "2026-01-07T09:00:00Z", "expires": None, "revoked": None, **times},  # type: ignore[arg-type]
    )


PEOPLE = (person(JONAS), person(AMARA, "approver", "auditor"))


def trust_file(people: Sequence[Person] = PEOPLE, **changes: Any) -> bytes:
    values = {"log_key": LOG.public, "issued": ISSUED, "expires": EXPIRES, **changes}
    return make_trust(people=people, **values)


def trust(people: Sequence[Person] = PEOPLE, **changes: Any) -> TrustRoot:
    return parse_trust(trust_file(people, **changes))


def write_release(
    folder: Path,
    *,
    change: Callable[[dict[str, Any]], None] = lambda facts: None,
    keys: Sequence[SigningKey] = (RUN, AMARA),
    approved: Callable[[dict[str, Any]], None] = lambda entry: None,
    ledger_change: Callable[[dict[str, Any]], None] = lambda bodies: None,
    waived_by: Sequence[SigningKey] = (),
    waiver_change: Callable[[dict[str, Any]], None] = lambda body: None,
    recovered_by: Sequence[SigningKey] = (),
    merged: Mapping[str, bytes] | None = None,
    score: bool = False,
) -> dict[str, Any]:
    """A released folder; `change` edits the facts before they are signed, `ledger_change` the
    bodies of the entries before they are logged.  With `waived_by` the audit failed, and these
    people waived it; with `recovered_by` the ledger lost entries before the audit.  Returns the
    statement."""
    ledger = MemoryLedger()
    start = "2026-11-20T07:00:00Z"
    ledger.append(
        "workspace-created",
        {"workspace": "ward-7", "log_key": LOG.public.hex},
        "mira-okafor",
        start,
    )
    for i in range(5):
        ledger.append(
            "key-revoked", {"name": f"old-{i}", "reason": "made up"}, "mira-okafor", start
        )
    before = ledger.checkpoint()
    honest = true_facts(before, score=score)
    run, guarantee = honest["run"], honest["guarantee"]
    facts = copy.deepcopy(honest)
    lost = _recovery(ledger, run["lineage"], recovered_by) if recovered_by else None
    if lost is not None:
        facts["ledger"]["recoveries"] = [
            {"time": "2026-11-20T08:30:00Z", "kept": 10, "seen": 40, "exhausted": True,
             "reason": lost["reason"], "signers": [key.public.keyid for key in recovered_by]}
        ]  # fmt: skip
    if waived_by:
        facts["audit"] |= {"verdict": "failed", "findings": FINDINGS}
    change(facts)
    audited = statement.digest(statement.build(facts))
    waiver = _waiver(run["id"], audited, waived_by) if waived_by else None
    if waiver:
        waiver_change(waiver)
    facts["waivers"] = [{k: v for k, v in waiver.items() if k != "run"}] if waiver else []
    made = statement.build(facts)
    bodies: dict[str, Any] = {
        "run-reserved": {
            "run": run["id"],
            "dataset": run["dataset"],
            "lineage": run["lineage"],
            "plan_sha256": honest["plan"]["sha256"],
            "mechanism": honest["mechanism"],
            "events": honest["events"],
            "run_key": RUN.public.hex,
            "policy_digest": honest["policy"]["sha256"],
            "config_sha256": honest["config"]["sha256"],
            "model_sha256": honest["model"]["weights_sha256"],
            "epsilon": guarantee["cost"],
        },
        "run-settled": {
            "run": run["id"],
            "outcome": "completed",
            "reason": "all steps taken",
            "steps_charged": honest["mechanism"]["steps"],
            "events": honest["events"],
            "journal_sha256": hexes("journal"),
            "adapter": honest["model"]["adapter_files"],
        },
        "audit-started": {
            "run": run["id"],
            "attempt": 1,
            "significance": sum(test["significance"] for test in honest["audit"]["tests"]),
            "suite": honest["audit"]["suite"],
            "suite_digest": honest["audit"]["suite_sha256"],
            "software_sha256": hexes("software"),
        },
        "run-audited": {
            "run": run["id"],
            "attempt": 1,
            "findings": FINDINGS if waived_by else [],
            "verdict": "failed" if waived_by else "passed",
            "statement_sha256": audited,
            "suite": honest["audit"]["suite"],
            "suite_digest": honest["audit"]["suite_sha256"],
        },
        **({"run-waived": waiver} if waiver else {}),
        "run-released": {"run": run["id"], "files": {}, "statement_sha256": statement.digest(made)},
    }
    envelope = dsse_sign(statement.payload(made), statement.PAYLOAD_TYPE, list(keys))
    files = {
        **WEIGHTS,
        **release.rendered_files(made, envelope),
        **{f"{release.MERGED}/{name}": data for name, data in (merged or {}).items()},
    }
    bodies["run-released"]["files"] = {name: sha256_hex(data) for name, data in files.items()}
    ledger_change(bodies)
    for approval in honest["approvals"]:
        body = {
            "plan_sha256": honest["plan"]["sha256"],
            "approver": approval["name"],
            "signature": approval["signature"],
        }
        approved(body)
        ledger.append("plan-approved", body, approval["name"], approval["time"])
    times = {"run-reserved": run["reserved_time"], "run-settled": run["settled_time"]}
    for kind, body in bodies.items():
        if kind == "audit-started" and lost is not None:
            ledger.append("recovered", lost, run["actor"], "2026-11-20T08:30:00Z")
        ledger.append(kind, body, run["actor"], times.get(kind, "2026-11-20T09:00:00Z"))
    files[release.PROOF] = build_proof(
        ledger, run=run["id"], log_key=LOG.public, checkpoint_before=before
    )
    folder.mkdir(parents=True, exist_ok=True)
    if merged is not None:
        (folder / release.MERGED).mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return made


def _waiver(run: str, statement_sha256: str, people: Sequence[SigningKey]) -> dict[str, Any]:
    message = waiver_message(run, statement_sha256=statement_sha256, **WAIVER)
    signatures = [
        {"name": key.name, "keyid": key.public.keyid, "signature": key.sign(message).hex()}
        for key in people
    ]
    return {"run": run, **WAIVER, "signatures": signatures}


def _recovery(ledger: MemoryLedger, lineage: str, people: Sequence[SigningKey]) -> dict[str, Any]:
    """A branch of 40 entries was shown, and 10 of this one were left."""
    root = translog.root(ledger.tree, ledger.tree.size)
    known = [translog.Checkpoint(origin=ORIGIN, size=40, root=root).signed(LOG)]
    reason = "the disk of the ward was lost"
    signed = dsse_sign(recovery_statement(known, [lineage], reason), RECOVERY_TYPE, people)
    return {
        "known": known, "lineages": [lineage], "reason": reason, "signatures": signed["signatures"],
    }  # fmt: skip


def failed(folder: Path, root: TrustRoot | None = None) -> dict[str, str]:
    """The checks that did not pass, with what they say."""
    rows = verify.verify_release(folder, root or trust(), now=NOW)
    return {row.name: row.detail for row in rows if not row.ok}


def numbers_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all numbers (not booleans) in a JSON value."""
    if isinstance(value, dict):
        return [p for key in value for p in numbers_in(value[key], (*path, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in numbers_in(item, (*path, i))]
    return [path] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def parsed(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_bytes())
