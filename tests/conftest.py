"""What all tests share: where the optional real data lies, one thread for tiny models, no deadlines
for Hypothesis, and a count of the damages that were tried, at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.vault import tally

# Tiny models only lose time to a second thread, and lose much of it when tests run beside others.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline for an example: how long one takes says how busy the machine is.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where several processes share the tests, each sends the first one what it tried."""
    sent = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent["damages"] = dict(tally.TRIED), dict(tally.MISSED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what a process sent."""
    tried, missed = getattr(node, "workeroutput", {}).get("damages", ({}, {}))
    tally.TRIED.update(tried)
    tally.MISSED.update(missed)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The matrix of damages, when any were tried."""
    if tally.TRIED:
        terminalreporter.section("damages to vaults and sealed streams")
        for line in tally.report():
            terminalreporter.write_line(line)
