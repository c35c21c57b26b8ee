"""A computation in a second process: the same answer, the same error, and no answer lost."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from privft.budget.accounting import cost
from privft.budget.mechanism import Event
from privft.errors import AccountingError
from privft.report import aside
from privft.report.aside import Aside

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems compute in turn")


def _refuse() -> None:
    raise AccountingError("no", hint="ask again")


def _die_elsewhere(home: int) -> int:
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return home


@linux
def test_the_answer_comes_from_another_process_and_is_the_same() -> None:
    assert Aside(os.getpid).answer() != os.getpid()
    events = [Event(noise_multiplier=2.0, sampling_probability=0.3, count=4)]
    assert Aside(cost, events, 1e-5).answer() == cost(events, 1e-5)


def test_an_error_comes_back_whole() -> None:
    with pytest.raises(AccountingError, match="no") as caught:
        Aside(_refuse).answer()
    assert caught.value.hint == "ask again"


@linux
def test_what_dies_elsewhere_is_done_here() -> None:
    assert Aside(_die_elsewhere, os.getpid()).answer() == os.getpid()


def test_without_a_safe_fork_it_is_done_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside.sys, "platform", "darwin")
    assert Aside(os.getpid).answer() == os.getpid()
