"""A base that is shared out among real processes gives the same bits in a part of the memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privft.training.ranks import Ranks
from privft.training.sharding import passes
from tests.training.sharded import CASES
from tests.training.tiny import text_units

ROOT = Path(__file__).resolve().parents[2]
SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SIZES)
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(number of ranks, what each rank found in each case)."""
    size, folder = request.param, tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.sharded", str(folder), str(rank), str(size)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(size)
    ]
    try:
        assert [process.wait(timeout=900) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()
    return size, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_of_units_have_the_same_bits(found: Any, case: str) -> None:
    for rank in found[1]:
        assert rank[case]["every_gradient_moves"]
        assert rank[case]["gradients_equal"]


@pytest.mark.parametrize("case", CASES)
def test_each_rank_keeps_one_part_of_the_frozen_base(found: Any, case: str) -> None:
    size, ranks = found
    for rank in ranks:
        # rows of a matrix are not cut, so parts are equal up to a row; and the embedding is odd
        assert rank[case]["share"] == pytest.approx(1 / size, rel=0.1)
        assert rank[case]["share_after_training"] == rank[case]["share"]


@pytest.mark.parametrize("case", CASES)
def test_ranks_with_different_numbers_of_microbatches_train_to_the_same_bits(
    found: Any, case: str
) -> None:
    assert all(rank[case]["trained_equal"] for rank in found[1])


def test_every_rank_runs_the_model_as_often_as_the_busiest() -> None:
    two = Ranks(rank=1, size=2)
    long = text_units([[100], [40], [8], [8]])  # one rank has the first, the other has the rest
    assert passes(long, two, token_budget=64) == 2
    assert passes([], two, token_budget=64) == 0
