"""A run with adaptive clipping goes the whole path, from its plan to a verified release."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.world import base, unchecked

ADAPTIVE = """max_grad_norm: 0.3
  clipping: adaptive
  adaptive: {target_quantile: 0.6}
  secure_noise: true"""


@pytest.mark.slow
def test_a_run_with_adaptive_clipping_is_released_and_verified(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    plain = world.privft("plan", world.config("plain"), "--json", "--dry-run").json
    config = world.config("run")
    config.write_text(config.read_text().replace("max_grad_norm: 0.3", ADAPTIVE))
    planned = world.privft("plan", config, "--json").json
    assert planned["epsilon"] == plain["epsilon"], "the count is part of the same event"
    assert planned["mechanism"] | {"count_noise": None} == plain["mechanism"] | {
        "clipping": "adaptive",
        "noise": "discrete-gaussian",
    }
    assert planned["mechanism"]["count_noise"] == 2.5
    with unchecked():
        run = world.privft("train", world.folder / "run.plan", "--json").json["run"]
    world.privft("audit", run)
    world.privft("release", run, "--to", world.folder / "out")
    world.privft("verify", world.folder / "out")
    page = (world.folder / "out" / "report.html").read_text()
    assert "clip norm C of the first step" in page
    assert "noise on the count of unclipped units" in page
