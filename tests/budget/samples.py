"""Bodies of entries, and small ledgers, that the tests of this room share."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privft.budget.entries import Entry
from privft.budget.filter import Cap
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event, Mechanism
from privft.budget.priced import single_cost
from privft.budget.selection import Selection
from privft.budget.signed import waiver_message
from privft.signing import Identity, SigningKey

ORIGIN = "privft/ward-7"
LOG_KEY = SigningKey.from_bytes(ORIGIN, bytes(range(32)))
OTHER_KEY = SigningKey.from_bytes(ORIGIN, bytes(range(1, 33)))
LINEAGE = "0123456789abcdef" * 2
CAP = Cap(epsilon=8.0, delta=1e-6)
HASH = "ab" * 32


def mechanism(*, steps: int = 40, noise: float = 1.1, unit: str = "subject") -> Mechanism:
    return Mechanism(
        unit=unit,  # type: ignore[arg-type]
        sampling_probability=0.03,
        noise_multiplier=noise,
        clip_norm=1.0,
        steps=steps,
        expected_batch_size=96.0,
    )


def dataset_body(
    *, dataset: str = "notes", lineage: str = LINEAGE, cap: Cap = CAP
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "lineage": lineage,
        "unit": "subject",
        "cap": cap.to_dict(),
        "declared_units": 4000,
        "policy": "hospital",
        "policy_digest": HASH,
        "manifest_root": HASH,
        "manifest_digest": HASH,
    }


def reservation_body(
    *,
    steps: int = 40,
    noise: float = 1.1,
    dataset: str = "notes",
    lineage: str = LINEAGE,
    plan: str | None = None,
) -> dict[str, Any]:
    """The body of a reservation, for a plan of its own unless one is named."""
    planned = mechanism(steps=steps, noise=noise)
    return {
        "dataset": dataset,
        "lineage": lineage,
        "plan_sha256": plan or secrets.token_hex(32),
        "mechanism": planned.to_dict(),
        "events": [planned.event().to_dict()],
        "run_key": HASH,
        "policy_digest": HASH,
        "config_sha256": HASH,
        "model_sha256": HASH,
        "epsilon": {
            "epsilon_pld": 1.5,
            "epsilon_rdp": 1.75,
            "note": None,
            "delta": 1e-6,
            "adjacency": "add-remove",
            "best_order": 9.0,
            "order_at_edge": False,
        },
    }


def selection(*, steps: int = 40, noise: float = 1.1, most: int = 5) -> Selection:
    """The best of at most `most` trainings by `mechanism`, each scored on private units."""
    return Selection(
        events=(mechanism(steps=steps, noise=noise).event(), Event(noise_multiplier=20.0)),
        mean=2.0,
        shape=1.0,
        most=most,
    )


def stopped_body(
    *, steps: int = 40, noise: float = 1.1, most: int = 5, **body: Any
) -> dict[str, Any]:
    """The body of a reservation of a randomly stopped sweep."""
    chosen = selection(steps=steps, noise=noise, most=most)
    return {
        **reservation_body(steps=steps, noise=noise, **body),
        "events": [chosen.to_dict()],
        "epsilon": single_cost([chosen], 1e-6).to_dict(),
    }


def step_digest(step: int) -> str:
    return f"{step:064x}"


def new_ledger(folder: Path, *, cap: Cap = CAP, time: str = "2026-01-01T00:00:00Z") -> Ledger:
    """A ledger with one data set."""
    ledger = Ledger.create(
        folder / "ledger.db", log_key=LOG_KEY, origin=ORIGIN, workspace_id="ws-1", time=time
    )
    ledger.append("dataset-created", dataset_body(cap=cap), actor="ann", time=time)
    return ledger


def reserve(ledger: Ledger, *, cap: Cap = CAP, **body: Any) -> Entry:
    return ledger.reserve(actor="ann", body=reservation_body(**body), cap=cap)


def key_added(person: Identity, *roles: str) -> dict[str, Any]:
    return {
        "name": person.name,
        "roles": list(roles),
        "ed25519": person.public.ed25519,
        "x25519": person.public.x25519,
        "expires": None,
    }


def waiver_signatures(people: Sequence[Identity], run: str, **said: str) -> list[dict[str, str]]:
    message = waiver_message(run, **({"statement_sha256": HASH} | said))
    return [
        {
            "name": person.name,
            "keyid": person.signing.public.keyid,
            "signature": person.signing.sign(message).hex(),
        }
        for person in people
    ]


def audit_bodies(
    run: str, verdict: str, *, attempt: int = 1, findings: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bodies of an audit's beginning and end."""
    common = {"run": run, "attempt": attempt, "suite": "quick", "suite_digest": HASH}
    if findings is None:
        findings = ["bound-above-claim"] if verdict == "failed" else []
    started = {**common, "significance": 0.04, "software_sha256": HASH}
    found = {"verdict": verdict, "findings": list(findings), "statement_sha256": HASH}
    return started, {**common, **found}


def run_to_the_end(ledger: Ledger, *, steps: int = 3, cap: Cap = CAP, noise: float = 1.1) -> str:
    """Reserve, journal every step, settle: the name of the run."""
    run: str = reserve(ledger, steps=steps, cap=cap, noise=noise).body["run"]
    for step in range(steps):
        ledger.journal(run, step, step_digest(step))
    ledger.settle(
        run,
        actor="ann",
        outcome="completed",
        reason="all steps ran",
        steps_drawn=steps,
        adapter={"adapter_model.safetensors": HASH},
    )
    return run
