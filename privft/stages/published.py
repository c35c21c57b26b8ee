"""The published values that the accountants of this installation reproduce, and when they did.

Working them out takes seconds, and nothing about a run changes the answer: it depends on the
libraries and the processor.  So it is kept in the workspace's `cache`, named by those, and the
report says when it was held:

    {"format": "privft-published-v1", "held": "2026-11-23T20:15:24Z", "passed": 35, "of": 35,
     "software": {"privft": "0.1.0", "dp-accounting": "0.6.0", ..., "python": "3.11.13 x86_64"}}

A file of another form or of other software is made again, and so is one in which a value failed:
a failure is never taken from a file.  Whoever can write here can lie, as about everything else
that the operator's machine says of itself; `privft selftest` asks again at any time.
"""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import privft
from privft.budget.entries import format_time, parse_time
from privft.budget.reference import REFERENCES, run_selftest
from privft.errors import IntegrityError
from privft.workspace import write_private

_FORMAT = "privft-published-v1"
_PACKAGES = ("dp-accounting", "numpy", "scipy")


def published_values(folder: Path) -> dict[str, Any]:
    """`passed`, `of` and `held` (ISO time), as the report has them.

    folder: where the answer is kept; exists already.
    """
    kept = _read(folder / "published.json")
    if kept is not None:
        return kept
    held = format_time(datetime.now(UTC))
    rows = run_selftest()
    found = {"passed": sum(bool(row["ok"]) for row in rows), "of": len(rows), "held": held}
    whole = {"format": _FORMAT, **found, "software": _software()}
    write_private(folder / "published.json", json.dumps(whole, indent=1).encode() + b"\n")
    return found


def _software() -> dict[str, str]:
    return {
        "privft": privft.__version__,
        **{name: version(name) for name in _PACKAGES},
        "python": f"{platform.python_version()} {platform.machine()}",
    }


def _read(path: Path) -> dict[str, Any] | None:
    """What was kept, if it is whole, of this software, and without a failure."""
    try:
        whole = json.loads(path.read_bytes())
        held, of = whole["held"], len(REFERENCES)
        parse_time(held)
    except (OSError, ValueError, TypeError, KeyError, IntegrityError):
        return None
    expected = {"format": _FORMAT, "held": held, "passed": of, "of": of, "software": _software()}
    return {"passed": of, "of": of, "held": held} if whole == expected else None
