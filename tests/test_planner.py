"""What is reckoned of memory is what a step takes: measured, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLANNER = ROOT / "benchmarks" / "planner.py"
CHOSEN = (
    "plain",
    "wide",
    "deep",
    "long records",
    "rank 64, short units",
    "bfloat16, wide",
    "encoder with a head",
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
def test_memory_is_within_15_percent_of_what_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "planner.json"
    done = subprocess.run(
        [sys.executable, str(PLANNER), "--memory", "--out", str(out), "--only", *CHOSEN],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == set(CHOSEN)
    for name, row in rows.items():
        for what in ("step", "peak"):
            assert row["ratio"][what] == pytest.approx(1, abs=0.15), (name, what, row["ratio"])
