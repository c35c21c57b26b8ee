"""What the parts of a stage cost, for whoever wants to know where the time goes.

Seconds of the clock and of the processor stand side by side: on a busy machine only the second
means anything, on an accelerator only the first.  They are for the operator's screen, never for a
statement: how long real units took tells how long they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Meter:
    """Adds up what each named part took; parts inside parts count for themselves alone."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[float, float]] = {}
        self._inside: list[tuple[float, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge what happens here to `name`, less what inner parts took."""
        started = _now()
        self._inside.append((0.0, 0.0))
        try:
            yield
        finally:
            took = _minus(_now(), started)
            own = _minus(took, self._inside.pop())
            self._spent[name] = _plus(self._spent.get(name, (0.0, 0.0)), own)
            if self._inside:
                self._inside[-1] = _plus(self._inside[-1], took)

    def metered(self, name: str, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """The same function, each call a part."""

        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def seconds(self) -> dict[str, dict[str, float]]:
        """Each part in the order in which it ended first: {"clock": s, "processor": s}."""
        return {
            name: {"clock": round(clock, 3), "processor": round(processor, 3)}
            for name, (clock, processor) in self._spent.items()
        }


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _plus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] + other[0], one[1] + other[1]


def _minus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return one[0] - other[0], one[1] - other[1]
