"""A computation in a second process: the same answer, the same error, and no answer lost."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from privft.budget.accounting import cost, get_ready
from privft.budget.mechanism import Event
from privft.errors import AccountingError
from privft.report import verify
from privft.report.aside import HERE, Aside
from tests.report.released import NOW, trust, write_release

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems compute in turn")


def _refuse() -> None:
    raise AccountingError("no", hint="ask again")


def _die_elsewhere(home: int) -> int:
    if os.getpid() != home:
        os.kill(os.getpid(), signal.SIGKILL)
    return home


def _unsendable() -> Callable[[], int]:
    return lambda: 3


@linux
def test_the_answer_comes_from_another_process_and_is_the_same() -> None:
    events = [Event(noise_multiplier=2.0, sampling_probability=0.3, count=4)]
    with Aside() as second:
        assert second.is_there
        assert second.ask(os.getpid) != os.getpid()
        assert second.ask(partial(cost, events, 1e-5)) == cost(events, 1e-5)


@linux
def test_it_gets_ready_first_and_answers_in_the_order_asked(tmp_path: Path) -> None:
    with Aside((tmp_path / "ready").touch) as second:
        first, then = second.begin((tmp_path / "ready").exists), second.begin(os.getppid)
        assert (first(), then()) == (True, os.getpid())


def test_an_error_comes_back_whole() -> None:
    with Aside() as second, pytest.raises(AccountingError, match="no") as caught:
        second.ask(_refuse)
    assert caught.value.hint == "ask again"


@linux
def test_what_dies_elsewhere_is_done_here() -> None:
    home = os.getpid()
    for ready in (lambda: None, partial(_die_elsewhere, home)):
        with Aside(ready) as second:
            assert second.ask(partial(_die_elsewhere, home)) == home
            assert second.ask(os.getpid) == home
    with Aside() as second:
        assert second.ask(_unsendable)() == 3


@linux
def test_nothing_is_left_running() -> None:
    with Aside() as second:
        pid = second.ask(os.getpid)
        second.begin(partial(time.sleep, 60))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_outside_of_a_block_and_without_a_safe_fork_it_is_done_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert HERE.ask(os.getpid) == os.getpid()
    monkeypatch.setattr(sys, "platform", "darwin")
    with Aside() as second:
        assert not second.is_there
        assert second.ask(os.getpid) == os.getpid()


@linux
def test_what_a_verifier_is_told_does_not_depend_on_where_it_was_computed(tmp_path: Path) -> None:
    def overstated(facts: dict) -> None:  # type: ignore[type-arg]
        facts["guarantee"]["substitute"]["epsilon_pld"] *= 0.99

    write_release(tmp_path / "honest", score=True)
    write_release(tmp_path / "false", change=overstated)
    for folder in (tmp_path / "honest", tmp_path / "false"):
        here = verify.verify_release(folder, trust(), now=NOW)
        with Aside(get_ready) as second:
            assert verify.verify_release(folder, trust(), now=NOW, aside=second) == here
    assert [row.name for row in here if not row.ok] == ["epsilon"]
