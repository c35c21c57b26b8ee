"""How many damages the tests of integrity tried, by kind: printed at the end of a test run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from privft.errors import IntegrityError, NotForThisKey, OrderError

NOTICED = (IntegrityError, NotForThisKey, OrderError)
TRIED: Counter[str] = Counter()
MISSED: Counter[str] = Counter()


def noticed(kind: str, action: Callable[[], object]) -> bool:
    """Whether reading what was damaged raises what it must; counted under this kind."""
    TRIED[kind] += 1
    try:
        action()
    except NOTICED:
        return True
    MISSED[kind] += 1
    return False


def report() -> list[str]:
    """One line for each kind, and the sum."""
    lines = [f"{MISSED[kind]} of {TRIED[kind]:>6,} unnoticed  {kind}" for kind in sorted(TRIED)]
    return [*lines, f"{MISSED.total()} of {TRIED.total():>6,} unnoticed  in all"]
