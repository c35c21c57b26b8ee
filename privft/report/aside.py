"""A computation in a second process while the first goes on.

Verifying computes the claim under two relations, and neither needs the other: on two cores the
shorter one costs no time.  The second process is a fork, so it has every module at once and gets
no input but what the caller holds already; where there is no safe fork (anything but Linux) the
computation is done in turn.
"""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from privft.errors import PrivftError

AnswerT = TypeVar("AnswerT")


class Aside(Generic[AnswerT]):
    """`function(*given)`, begun now; `answer` waits for it."""

    def __init__(self, function: Callable[..., AnswerT], *given: Any) -> None:
        self._call = (function, given)
        self._process: Any = None
        if sys.platform == "linux":
            context = multiprocessing.get_context("fork")
            self._ours, theirs = context.Pipe(duplex=False)
            self._process = context.Process(target=_tell, args=(theirs, *self._call), daemon=True)
            with warnings.catch_warnings():  # numpy's threads are idle and hold nothing
                warnings.simplefilter("ignore", DeprecationWarning)
                self._process.start()
            theirs.close()

    def answer(self) -> AnswerT:
        """What the function returned; raises what it raised, and does it here where it died."""
        if self._process is None:
            return self._here()
        try:
            answer, error = self._ours.recv()
        except EOFError:
            return self._here()
        finally:
            self._ours.close()
        self._process.join()
        if error is not None:
            raise error
        return answer  # type: ignore[no-any-return]

    def _here(self) -> AnswerT:
        function, given = self._call
        return function(*given)


def _tell(connection: Any, function: Callable[..., Any], given: tuple[Any, ...]) -> None:
    try:
        connection.send((function(*given), None))
    except (PrivftError, ValueError, ArithmeticError) as error:
        connection.send((None, error))
