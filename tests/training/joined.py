"""Ranks for tests: real processes, forked off a server that has torch loaded, joined by gloo.

`on_ranks(size, folder, task, *arguments)` calls `task(ranks, *arguments)` on every rank and gives
back what each returned, or the error that it ended with.  A rank that hangs fails the test.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from privft.randomness import KeyedStreams
from privft.training.adapter import LoraSpec, attach_language_model
from privft.training.clipping import UnitGradients
from privft.training.kernels import use_reproducible_kernels
from privft.training.loop import Optimisation, Performance, clipped_sum, grid_for, train
from privft.training.losses import LanguageModel, trained_parameters
from privft.training.ranks import ALONE, Ranks, joined
from tests.training.tiny import ListUnits, mechanism, text_units, tiny_llama

PATIENCE_S = 60.0
LENGTHS = [[5, 9], [12], [21, 17, 3], [8], [2], [33], [7, 7]]


@cache
def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.joined"])
    return context


class Rank:
    """One started process."""

    def __init__(self, size: int, rank: int, folder: Path, timeout_s: int, task: Any, rest: Any):
        self.ours, theirs = _context().Pipe()
        place = str(folder / "store")
        self.process = _context().Process(
            target=_serve, args=(size, rank, place, timeout_s, theirs, task, rest)
        )
        self.process.start()
        theirs.close()

    def result(self, deadline: float) -> Any:
        """What the task returned, the error that it raised, or None for a process that died."""
        try:
            if not self.ours.poll(max(0.0, deadline - time.monotonic())):
                self.process.kill()
                raise AssertionError("a rank hangs")
            return self.ours.recv()
        except EOFError:
            return None
        finally:
            self.process.join()


def on_ranks(
    size: int, folder: Path, task: Callable[..., Any], *rest: Any, timeout_s: int = 30
) -> list[Any]:
    (folder / "store").unlink(missing_ok=True)
    started = [Rank(size, rank, folder, timeout_s, task, rest) for rank in range(size)]
    deadline = time.monotonic() + PATIENCE_S
    return [rank.result(deadline) for rank in started]


def _serve(
    size: int, rank: int, place: str, timeout_s: int, reports: Connection, task: Any, rest: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    use_reproducible_kernels()
    store = dist.FileStore(place, size)
    try:
        with joined(
            store, rank=rank, size=size, hosts=1, local_rank=0, timeout_s=timeout_s
        ) as ranks:
            reports.send(task(ranks, *rest))
    except Exception as error:
        reports.send(error)


def tiny_model() -> LanguageModel:
    return attach_language_model(tiny_llama(dtype=torch.float32), LoraSpec(r=2), seed=5, pad_id=0)


def sums(ranks: Ranks, lengths: list[list[int]], noise: str) -> dict[str, torch.Tensor]:
    """The un-noised sum over these units, as numbers that travel."""
    units = text_units(lengths)
    gradients_of = UnitGradients(tiny_model())
    grid = grid_for(mechanism(noise=noise), gradients_of)
    total = clipped_sum(gradients_of, ranks.share(units), clip_norm=0.1, token_budget=64, grid=grid)
    ranks.add_up(total)
    return {name: value.numpy() for name, value in total.items()}  # type: ignore[misc]


def trained(ranks: Ranks = ALONE, **changes: Any) -> dict[str, Any]:
    """The parameters after a short run; `changes` to its settings, and:

    lengths, canaries: of the units' records.  mechanism: changes to the tiny one.
    journal, save, resume, tell: for rank 0 alone, but for `resume`.
    """
    settings = {
        "units": ListUnits(text_units(changes.pop("lengths", LENGTHS))),
        "canaries": text_units(changes.pop("canaries", [[6], [10]]), seed=9),
        "mechanism": mechanism(**changes.pop("mechanism", {})),
        "max_records_per_unit": 2,
        "optimisation": Optimisation(learning_rate=1e-2),
        "performance": Performance(
            token_budget=changes.pop("token_budget", 64), checkpoint_every=2
        ),
        "streams": KeyedStreams(bytes(32)),
        "context": {"plan": "p"},
        "journal": lambda step, digest: None,
        "save": lambda state: None,
    }
    model = tiny_model()
    train(model, ranks=ranks, **(settings | changes))  # type: ignore[arg-type]
    return {n: p.detach().numpy().copy() for n, p in trained_parameters(model).items()}
