"""What a change of a vault would do, worked out without writing a byte: the dry runs.

An intake is checked as `privft.vault.adding` checks it: every row parsed, ids that are taken, the
cap of each unit, the comparison with other vaults.  What is left out is what writes: grouping
(which may spill), sealing, and the commit.  The numbers are private, like those of an intake.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privft.errors import InputError
from privft.vault import cells
from privft.vault.adding import Overlap, refuse_taken, take
from privft.vault.arrivals import Arrivals
from privft.vault.erasure import of_unit
from privft.vault.index import Rows, find
from privft.vault.manifest import Charter
from privft.vault.parquet import ParquetOpener
from privft.vault.rotation import with_dead_bytes
from privft.vault.state import State, record_rows


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What an intake would do."""

    records: int
    units_new: int
    units_grown: int
    rows_skipped: int


@dataclass(frozen=True, kw_only=True)
class Erasure:
    """What an erasure would do: records that go, and bytes of the files that are written again."""

    records: int
    rewritten_bytes: int


def intake(
    charter: Charter,
    tag_key: bytes,
    old: Rows,
    sources: Sequence[Path],
    *,
    skip_bad: bool = False,
    parquet: ParquetOpener | None = None,
    overlap_key: bytes | None = None,
    on_overlap: Overlap | None = None,
    progress: Callable[[int], None] | None = None,
) -> Intake:
    """What `adding.add` would do to a vault with these record rows, or the error that it would
    raise.  For a vault that is not there yet any tag key serves, and no rows."""
    arrivals = Arrivals()
    for source in sources:
        take(
            charter,
            tag_key,
            source,
            "",
            arrivals,
            None,
            skip_bad,
            parquet,
            overlap_key,
            progress,
        )
    rows, numbers, dropped = refuse_taken(old, arrivals, skip_bad)
    keep = ~np.isin(numbers, np.fromiter(dropped, np.uint64, len(dropped)))
    rows, numbers = rows[keep], numbers[keep]
    order = np.lexsort((numbers, rows["unit_low"], rows["unit_high"]))
    high, low, numbers = rows["unit_high"][order], rows["unit_low"][order], numbers[order]
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    starts = np.flatnonzero(first)
    unit = np.cumsum(first) - 1
    rank = np.arange(len(order)) - starts[unit]
    cap = charter.caps.max_records_per_unit
    over = (rank >= cap) & (numbers > 0)
    for number in np.sort(numbers[over]):
        arrivals.refuse(int(number), f"its unit already has {cap} records", skip_bad)
    if on_overlap is not None:
        on_overlap(arrivals.hashes_of_units(), arrivals.hashes_of_contents())
    added = (numbers > 0) & ~over
    changed = np.zeros(len(starts), dtype=np.bool_)
    changed[unit[added]] = True
    fresh = numbers[starts] > 0
    return Intake(
        records=int(added.sum()),
        units_new=int((changed & fresh).sum()),
        units_grown=int((changed & ~fresh).sum()),
        rows_skipped=arrivals.skipped,
    )


def erasure(state: State, unit: str) -> Erasure:
    """What `erasure.erase` would do to this version, or the error that it would raise."""
    tag = cells.unit_tag(state.tag_key, unit)
    place = find(state.rows, tag)
    if place < 0:
        raise InputError(
            "no such unit in the vault", hint="the id must be as in the source, to the letter"
        )
    touched = with_dead_bytes(state, np.delete(state.rows, place))
    return Erasure(
        records=int(of_unit(record_rows(state), tag).sum()),
        rewritten_bytes=sum(state.manifest.segments[number].size_bytes for number in touched),
    )
