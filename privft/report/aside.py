"""A second process that gets ready while the first does other things, then computes for it.

Most of what verifying takes is importing the accountants and letting them compute the claim, under
two relations of which neither needs the other.  On two cores both cost less time than one: while
the first process reads the folder and holds its signatures, the second imports; while the second
computes one relation, a third computes the other.  A second process is a fork, so it gets no input
but what the caller holds already; where there is no safe fork (anything but Linux) the same is done
in turn, here.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from privft.hardening import die_with

AnswerT = TypeVar("AnswerT")


class Aside:
    """The second process, from `with` to the end of its block, which ends it; outside of such a
    block everything is done here.

    ready: what it does before it is asked anything, such as importing.
    """

    def __init__(self, ready: Callable[[], object] = lambda: None) -> None:
        self._ready = ready
        self._process: Any = None

    def __enter__(self) -> Aside:
        if sys.platform == "linux":
            context = multiprocessing.get_context("fork")
            self._ours, theirs = context.Pipe()
            given = (theirs, self._ours, self._ready, os.getpid())
            self._process = context.Process(target=_serve, args=given)
            with warnings.catch_warnings():  # numpy's threads are idle and hold nothing
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
            theirs.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._ours.close()
            self._process.kill()
            self._process.join()

    @property
    def is_there(self) -> bool:
        """Whether there is a second process."""
        return self._process is not None

    def begin(self, function: Callable[[], AnswerT]) -> Callable[[], AnswerT]:
        """Ask for `function()`; what comes back waits for it and returns it.

        It raises what the function raised, and does it here where the second process died.  What
        was begun first has to be waited for first.
        """
        try:
            if self._process is not None:
                self._ours.send(function)
        except OSError:
            pass  # it died: the answer will be found missing
        return partial(self._answer, function)

    def ask(self, function: Callable[[], AnswerT]) -> AnswerT:
        """`function()`, from the second process."""
        return self.begin(function)()

    def _answer(self, function: Callable[[], AnswerT]) -> AnswerT:
        if self._process is None:
            return function()
        try:
            answer, error = self._ours.recv()
        except (EOFError, OSError):
            return function()
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]


HERE = Aside()


def _serve(connection: Any, others_end: Any, ready: Callable[[], object], parent: int) -> None:
    """Answer until there is nobody to ask; whoever started this one answers for Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with(parent)
    others_end.close()
    try:
        ready()
        while True:
            function = connection.recv()
            said: tuple[Any, Exception | None]
            try:
                said = function(), None
            except Exception as error:
                said = None, error
            connection.send(said)
    except Exception:
        os._exit(1)  # no answer: it is computed where it was asked for, and any fault shows there
