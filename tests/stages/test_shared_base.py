"""A run whose base is shared out among its ranks is the same run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stages.test_ranked import (
    TWO,
    completed,
    configured,
    outcome_of,
    stopped_early,
    undisturbed_of,
)
from tests.stages.world import base


@pytest.mark.slow
def test_two_ranks_with_a_part_of_the_base_each_go_on_to_the_same_bits(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "before")
    plan = configured(world, secure=True)
    config = plan.with_suffix(".yaml")
    text = config.read_text()
    config.write_text(text.replace("ranks: {", "ranks: {shard_base: true, "))
    assert "shard_base: true" in config.read_text()
    world.privft("plan", config)
    whole = undisturbed_of(world, tmp_path)
    stopped, run = stopped_early(whole, tmp_path / "stopped")
    completed(stopped, "train", "--resume", run, *TWO)
    assert outcome_of(stopped, run) == whole.outcome
