"""privft's evidence about itself: `python -m tests.audit.evidence [FOLDER]` (make evidence).

Holds the attack on the mechanism at the size of the strict suite, plants every fault of the fault
table and notes which checks catch it, holds the control of every suite, and recomputes the
published values of bounds and accountants.  Writes `evidence.json` (all numbers) and `evidence.md`
(the tables) into FOLDER, by default `audits/evidence`.  Secrets are fresh, so numbers differ from
one time to the next within what the tables state.  About three minutes on two cores.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import privft
from privft.audit.control import leaky_twin
from privft.audit.selfcheck import check_mechanism
from privft.audit.suite import Task, load_suite, shipped_suites
from privft.budget.reference import run_selftest
from privft.randomness import fresh_secret
from tests.audit.test_selfcheck import CLAIM, FAULTS, MECHANISM, SPEC

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
            checks = check_mechanism(SPEC, fresh_secret(), mechanism=MECHANISM, claim=CLAIM)
        rows.append(
            {
                "fault": plant.__name__.replace("_", " "),
                "caught_by": [check.check for check in checks if not check.ok],
            }
        )
    return rows


def controls() -> list[dict[str, Any]]:
    rows = []
    for name in shipped_suites():
        for task in TASKS:
            start = time.perf_counter()
            found = leaky_twin(load_suite(name)[0], task=task)
            row = {"suite": name, "task": task, "ok": found.ok, "epsilon_lower": found.kinds}
            rows.append({**row, "seconds": round(time.perf_counter() - start, 1)})
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
        ("suite", "task", "held", "epsilon at least", "seconds"),
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
    lines += ["## Accountants", "", f"{passed} of {len(evidence['reference_values'])} published"]
    lines += ["values are reproduced (`privft selftest` lists them).", ""]
    return "\n".join(lines)


def main(folder: Path) -> int:
    evidence: dict[str, Any] = {
        "made_with": (
            f"privft {privft.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}, {platform.machine()}"
        ),
        "mechanism": mechanism(),
        "faults": faults(),
        "controls": controls(),
        "reference_values": [dict(row) for row in run_selftest()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evidence.json").write_text(json.dumps(evidence, indent=1, allow_nan=False) + "\n")
    (folder / "evidence.md").write_text(page(evidence))
    sound = all(row["ok"] for row in evidence["mechanism"] + evidence["controls"])
    return 0 if sound and all(row["caught_by"] for row in evidence["faults"]) else 1


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[2] / "audits" / "evidence"
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else default))
