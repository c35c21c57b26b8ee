"""What runs in the processes that `test_crash` kills: a real `privft train`, with marked moments.

A *moment* is just before or just after something that a crash must not tear: a file made durable,
renamed or removed, an entry or a step written to the ledger, noise drawn.  The process kills itself
with SIGKILL at the moment that it was asked to, or reports how many there were.  Secrets are fixed,
so that two runs of one plan can be compared bit by bit; the attack on the mechanism is left out.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from privft.budget.accounting import cost
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event, auto_delta
from privft.cli import main
from privft.stages import running
from privft.training import loop

SECRET = bytes(range(32))

# Priced once, in the server that all these processes are forked from: seconds for each otherwise.
for _steps in (5, 12):
    for _adjacency in ("add-remove", "substitute"):
        _event = Event(noise_multiplier=0.8, sampling_probability=0.05, count=_steps)
        cost((_event,), auto_delta(1000), adjacency=_adjacency)  # type: ignore[arg-type]


class Moments:
    """Counts moments, tells of each, and does not outlive number `last`."""

    def __init__(self, last: int | None, tell: Callable[[str], None]) -> None:
        self.names: list[str] = []
        self._last = last
        self._tell = tell

    def pass_by(self, name: str) -> None:
        self.names.append(name)
        self._tell(name)
        if len(self.names) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, holder: Any, name: str, *, after: bool = True) -> None:
        real: Callable[..., Any] = getattr(holder, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(f"before {name}")
            result = real(*args, **kwargs)
            if after:
                self.pass_by(f"after {name}")
            return result

        setattr(holder, name, marked)


def train(folder: str, plan: str, last: int | None, reports: Connection, told: bool) -> None:
    """Train `plan` in the workspace `folder`, and die at moment `last`, if there is one.

    told: whether each moment is reported as it comes, so that a parent can aim.
    """
    torch.set_num_threads(1)
    moments = Moments(last, reports.send if told else lambda name: None)
    running.fresh_secret = lambda: SECRET  # type: ignore[attr-defined]
    running._self_check = lambda *_: []  # type: ignore[assignment]
    moments.around(Ledger, "reserve")
    moments.around(Ledger, "journal")
    moments.around(Ledger, "settle")
    moments.around(loop, "add_noise")
    moments.around(os, "fsync", after=False)
    moments.around(Path, "replace", after=False)
    moments.around(Path, "unlink", after=False)
    reports.send("started")
    main.main(["--workspace", folder, "train", plan], standalone_mode=False)
    reports.send(moments.names)
