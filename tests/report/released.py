"""A whole released folder, made of made-up weights and real signatures, proofs and accounting."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from privft.budget import translog
from privft.budget.entries import Entry, make_entry
from privft.budget.filter import Cap
from privft.budget.mechanism import Event
from privft.plan import approval_message
from privft.report import claim, recompute, release, statement, verify
from privft.report.proof import build_proof
from privft.report.trust import TrustRoot, make_trust, parse_trust
from privft.signing import SigningKey, canonical_json, dsse_sign, sha256_hex
from tests.report.made_up import DELTA, EARLIER, hexes, made_up_facts

ORIGIN = "privft.example/ward-7"
LOG = SigningKey.from_bytes(ORIGIN, b"L" * 32)
RUN = SigningKey.from_bytes("run", b"R" * 32)
JONAS = SigningKey.from_bytes("jonas-weidling", b"J" * 32)
AMARA = SigningKey.from_bytes("amara-liu", b"A" * 32)
STRANGER = SigningKey.from_bytes("stranger", b"S" * 32)
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
    "secure_noise": _rule(False),
    "recipients_allowed": _rule(["x25519"]),
    "may_show_private_metrics": _rule(False),
    "retention_days": _rule(30),
    "witness_within": _rule(None),
    "public_outputs": _rule(["adapter", "report", "canary-scores", "public-evaluation"]),
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


@cache
def _computed() -> tuple[dict[str, Any], dict[str, Any]]:
    facts = made_up_facts()
    events = [Event.from_dict(event) for event in facts["events"]]
    cap = Cap(epsilon=8.0, delta=DELTA, orders=(4.0, 8.0, 16.0, 32.0))
    earlier = [Event.from_dict(EARLIER)]
    return (
        claim.guarantee(unit="subject", events=events, delta=DELTA),
        claim.budget(cap=cap, spent=earlier, events=events),
    )


def true_facts(checkpoint_before: str = "") -> dict[str, Any]:
    """Made-up facts whose numbers are what the accountants and the bounds compute."""
    facts = made_up_facts()
    guarantee, budget = copy.deepcopy(_computed())
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
        **budget,
    }
    facts["run"]["run_key"] = RUN.public.hex
    facts["model"]["adapter_files"] = {name: sha256_hex(data) for name, data in WEIGHTS.items()}
    facts["config"]["sha256"] = sha256_hex(canonical_json(facts["config"]["body"]))
    for approval, key in zip(facts["approvals"], (JONAS, AMARA), strict=True):
        approval["name"], approval["keyid"] = key.name, key.public.keyid
        approval["signature"] = key.sign(approval_message(facts["plan"]["sha256"])).hex()
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


def trust() -> TrustRoot:
    return parse_trust(
        make_trust(
            log_key=LOG.public,
            people=[(JONAS.public, ["approver"]), (AMARA.public, ["approver", "auditor"])],
        )
    )


def write_release(
    folder: Path,
    *,
    change: Callable[[dict[str, Any]], None] = lambda facts: None,
    keys: Sequence[SigningKey] = (RUN, AMARA),
    approved: Callable[[dict[str, Any]], None] = lambda entry: None,
    ledger_change: Callable[[dict[str, Any]], None] = lambda bodies: None,
) -> dict[str, Any]:
    """A released folder; `change` edits the facts before they are signed, `ledger_change` the
    bodies of the entries before they are logged.  Returns the statement."""
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
    honest = true_facts(before)
    facts = copy.deepcopy(honest)
    change(facts)
    made = statement.build(facts)
    run, guarantee = honest["run"], honest["guarantee"]
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
            "findings": [],
            "verdict": "passed",
            "statement_sha256": statement.digest(made),
            "suite": honest["audit"]["suite"],
            "suite_digest": honest["audit"]["suite_sha256"],
        },
        "run-released": {"run": run["id"], "files": {}, "statement_sha256": statement.digest(made)},
    }
    envelope = dsse_sign(statement.payload(made), statement.PAYLOAD_TYPE, list(keys))
    files = {
        **WEIGHTS,
        **release.rendered_files(made, envelope),
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
        ledger.append(kind, body, run["actor"], times.get(kind, "2026-11-20T09:00:00Z"))
    files[release.PROOF] = build_proof(
        ledger, run=run["id"], log_key=LOG.public, checkpoint_before=before
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return made


def failed(folder: Path, root: TrustRoot | None = None) -> dict[str, str]:
    """The checks that did not pass, with what they say."""
    rows = verify.verify_release(folder, root or trust())
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
