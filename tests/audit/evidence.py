"""privft's evidence about itself: `make evidence`, or `python -m tests.audit.evidence [FOLDER]`.

    mechanism  the attack on the mechanism, at the size of the strict suite
    faults     every fault of the fault table planted, and which checks catch it
    coins      canary coins reused between kinds, and what stops the audit
    controls   the negative control of every suite
    alarms     how often each bound accuses a mechanism that keeps its promise (`alarms`)
    bounds     published values of the one-run bounds
    accountants  published values of the accountants

Writes `evidence.json` (all numbers) and `evidence.md` (the tables) into FOLDER, by default
`audits/evidence`, and fails when something did not hold.  Secrets are fresh, so numbers differ
from one time to the next within what the tables state; times are of the processor, so that other
work on the machine does not count.  Minutes on two cores.

It lives with the tests because it plants the faults that they plant; `test_evidence.py` holds what
is committed against the code.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privft.audit.attacks import Claim
from privft.audit.canaries import Vocabulary, make_canaries
from privft.audit.control import leaky_twin
from privft.audit.selfcheck import check_mechanism
from privft.audit.suite import Task, load_suite, shipped_suites
from privft.audit.verdict import run_audit
from privft.budget.reference import run_selftest
from privft.errors import AuditFailed
from privft.randomness import KeyedStreams, fresh_secret
from tests.audit.alarms import false_alarms
from tests.audit.test_bounds import JAX_PRIVACY, jax_privacy_value
from tests.audit.test_selfcheck import CLAIM, FAULTS, MECHANISM, SPEC, mechanism_of
from tests.audit.test_verdict import SOUND
from tests.audit.test_verdict import control as sound_control

ROOT = Path(__file__).resolve().parents[2]
COINS_REUSED = "canary coins reused between kinds"
TASKS: tuple[Task, ...] = ("causal-lm", "sequence-classification")


def mechanism() -> list[dict[str, Any]]:
    spec = load_suite("strict")[0].selfcheck
    checks = check_mechanism(spec, fresh_secret(), mechanism=MECHANISM, claim=CLAIM)
    return [check.to_dict() for check in checks]


def faults() -> list[dict[str, Any]]:
    rows = []
    for plant, _ in FAULTS:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            checks = check_mechanism(
                SPEC, fresh_secret(), mechanism=mechanism_of(plant), claim=CLAIM
            )
        rows.append(
            {
                "fault": plant.__doc__,
                "caught_by": [check.check for check in checks if not check.ok],
            }
        )
    return rows


def coins_reused(patch: pytest.MonkeyPatch) -> None:
    """The coins of every kind of canary come from one stream."""
    sound = KeyedStreams.stream

    def unlabelled(self: KeyedStreams, name: str, *, step: int = 0, label: str = "") -> Any:
        return sound(self, name, step=step, label="" if name == "audit.coins" else label)

    patch.setattr(KeyedStreams, "stream", unlabelled)


def coins() -> dict[str, Any]:
    """The row of the fault table that is no fault of the mechanism."""
    suite, digest = load_suite("quick")
    words = tuple(f"word{i}" for i in range(64))
    with pytest.MonkeyPatch.context() as patch:
        coins_reused(patch)
        canaries = make_canaries(
            suite,
            KeyedStreams(fresh_secret()),
            task="causal-lm",
            shape="text",
            vocabulary=Vocabulary(words=words),
        )
    try:
        run_audit(
            suite,
            digest,
            task="causal-lm",
            canaries=canaries,
            score=lambda units: (np.zeros(len(units)), np.zeros(len(units))),
            claim=Claim(epsilon=1.0, delta=1e-5),
            control=sound_control(),
            selfcheck=[SOUND],
        )
    except AuditFailed as refusal:
        return {"fault": COINS_REUSED, "caught_by": [f"the audit itself: {refusal.message}"]}
    return {"fault": COINS_REUSED, "caught_by": []}


def published_bounds() -> list[dict[str, Any]]:
    rows = []
    for shift, expected, threshold, bound in JAX_PRIVACY:
        got = jax_privacy_value(shift, threshold, bound)
        row = {"bound": bound.__name__, "shift": shift, "published": expected, "got": got}
        rows.append({**row, "ok": abs(got / expected - 1) < 1e-5})
    return rows


def controls() -> list[dict[str, Any]]:
    rows = []
    for name in shipped_suites():
        for task in TASKS:
            start = time.process_time()
            found = leaky_twin(load_suite(name)[0], task=task)
            row = {"suite": name, "task": task, "ok": found.ok, "epsilon_lower": found.kinds}
            rows.append({**row, "seconds": round(time.process_time() - start, 1)})
    return rows


def page(evidence: dict[str, Any]) -> str:
    def table(*rows: tuple[str, ...]) -> list[str]:
        head, *body = ["| " + " | ".join(row) + " |" for row in rows]
        return [head, "|" + " --- |" * len(rows[0]), *body, ""]

    lines = ["# privft's evidence about itself", "", evidence["made_with"], "", "## Mechanism", ""]
    lines += table(
        ("check", "held", "measured"),
        *((row["check"], str(row["ok"]), row["detail"]) for row in evidence["mechanism"]),
    )
    lines += ["## Planted faults", ""]
    lines += table(
        ("fault", "caught by"),
        *((row["fault"], "; ".join(row["caught_by"]) or "NOTHING") for row in evidence["faults"]),
    )
    lines += ["## Negative controls", ""]
    lines += table(
        ("suite", "task", "held", "epsilon at least", "processor seconds"),
        *(
            (
                row["suite"],
                row["task"],
                str(row["ok"]),
                ", ".join(f"{kind} {bound:.2f}" for kind, bound in row["epsilon_lower"].items()),
                str(row["seconds"]),
            )
            for row in evidence["controls"]
        ),
    )
    passed = sum(bool(row["ok"]) for row in evidence["reference_values"])
    stated = f"{100 * evidence['alarms'][0]['stated']:g}%"
    lines += [
        "## False alarms",
        "",
        f"Simulated runs that keep their promise, at a stated {stated}.",
        "",
    ]
    lines += table(
        ("bound", "mechanism", "runs", "accused", "95% interval"),
        *(
            (
                row["bound"],
                row["mechanism"],
                str(row["runs"]),
                str(row["accused"]),
                " to ".join(f"{100 * value:.2f}%" for value in row["interval"]),
            )
            for row in evidence["alarms"]
        ),
    )
    lines += ["## Bounds", ""]
    lines += table(
        ("bound", "shift", "published by jax_privacy", "here"),
        *(
            (row["bound"], str(row["shift"]), str(row["published"]), f"{row['got']:.6f}")
            for row in evidence["bounds"]
        ),
    )
    lines += ["## Accountants", "", f"{passed} of {len(evidence['reference_values'])} published"]
    lines += ["values are reproduced (`privft selftest` lists them).", ""]
    return "\n".join(lines)


def suites() -> dict[str, str]:
    return {name: load_suite(name)[1] for name in shipped_suites()}


def release_version() -> str:
    """The version in pyproject.toml, whether or not this tree is installed."""
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(whole["project"]["version"])


def main(folder: Path) -> int:
    started = time.process_time()
    planted = [*faults(), coins()]
    seconds = round(time.process_time() - started)
    evidence: dict[str, Any] = {
        "made_with": (
            f"privft {release_version()}, torch {torch.__version__}, "
            f"Python {platform.python_version()}, {platform.machine()}"
        ),
        "version": release_version(),
        "suites": suites(),
        "faults": planted,
        "faults_s": seconds,
        "mechanism": mechanism(),
        "controls": controls(),
        "alarms": false_alarms(),
        "bounds": published_bounds(),
        "reference_values": [dict(row) for row in run_selftest()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evidence.json").write_text(json.dumps(evidence, indent=1, allow_nan=False) + "\n")
    (folder / "evidence.md").write_text(page(evidence))
    return 0 if sound(evidence) else 1


def sound(evidence: dict[str, Any]) -> bool:
    """Whether everything held."""
    parts = ("mechanism", "controls", "alarms", "bounds", "reference_values")
    rows = [row for part in parts for row in evidence[part]]
    return all(row["ok"] for row in rows) and all(row["caught_by"] for row in evidence["faults"])


if __name__ == "__main__":
    default = ROOT / "audits" / "evidence"
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
