"""Hypothesis without deadlines: the tests' machine may be busy with other work.  And a count of
the damages that were tried, at the end of a run."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.vault import tally

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The matrix of damages, when any were tried."""
    if tally.TRIED:
        terminalreporter.section("damages to vaults and sealed streams")
        for line in tally.report():
            terminalreporter.write_line(line)
