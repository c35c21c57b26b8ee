"""Add records to a vault: all of them, or none.

    1  stream the sources; check every row; tag, sketch and group the records
    2  refuse ids that are already taken, here or in the vault; look for text that units share
    3  unit by unit, in the order of tags: merge with what the vault has of it, seal under a fresh
       key into new segment files.  A unit that grows gets a new cell and a new key; the old cell is
       dead from then on.  So a unit is always one cell under one key
    4  let the caller compare keyed hashes with other vaults, and object
    5  commit: one rename

Whatever happens before step 5 leaves the vault as it was; files that were written are strangers,
removed at once on an error and by the next writer after a kill.

By default the first bad row stops the intake.  With `skip_bad` bad rows are counted and left out:
which rows are bad depends on each row and on its own unit alone, but for an id that two units
claim, where the later row loses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.errors import InputError, UsageError
from privft.signing import SigningKey, canonical_json, sha256_hex
from privft.vault import cells
from privft.vault.arrivals import Arrivals, Skipped
from privft.vault.duplicates import SharedText, record_text, shared_text
from privft.vault.grouping import MEMORY_BYTES, Grouper
from privft.vault.index import (
    UNIT_ROW,
    Finder,
    Rows,
    make_row,
    sort_rows,
)
from privft.vault.intake import BadRow, parse_record, source_digest, stream_rows
from privft.vault.manifest import Charter, Intake, as_named
from privft.vault.overlap import HashSet, overlap_hash
from privft.vault.parquet import ParquetOpener
from privft.vault.segments import SegmentReader, SegmentWriter
from privft.vault.state import (
    Change,
    Provenance,
    State,
    commit,
    now,
    read_cell,
    record_rows,
    tidy,
    writing,
)

Overlap = Callable[[HashSet, HashSet], None]
"""Given the keyed hashes of the units and of the contents that are about to be added; raises to
refuse them."""


@dataclass(frozen=True, kw_only=True)
class IntakeSummary:
    """What an intake did.  All counts are private: for the operator's eyes, never for a report."""

    rows: int
    records_added: int
    units_new: int
    units_grown: int
    rows_skipped: int
    skipped: tuple[Skipped, ...]
    shared_text_units: int
    shared_text_records: int
    shared_text_pairs: tuple[tuple[str, str], ...]
    provenance: tuple[Provenance, ...]
    provenance_sha256: str
    manifest_root: str
    to_shred: tuple[str, ...]


def add(
    opened: State,
    sources: Sequence[Path],
    *,
    signer: SigningKey,
    checkpoint: str,
    who: str,
    skip_bad: bool = False,
    parquet: ParquetOpener | None = None,
    overlap_key: bytes | None = None,
    on_overlap: Overlap | None = None,
    progress: Callable[[int], None] | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[State, IntakeSummary]:
    """Add the records of all sources as one change; see the module's docstring.

    `progress` is called with the number of rows read so far.  Raises InputError for a bad row, and
    whatever `on_overlap` raises; the vault is then as it was.
    """
    if not sources:
        raise UsageError("no source to add", hint="name at least one file")
    if (overlap_key is None) != (on_overlap is None):
        raise ValueError("expected overlap_key and on_overlap together")
    with writing(opened) as state:
        grouper = Grouper(state.path, memory_bytes=memory_bytes)
        try:
            arrivals = Arrivals()
            provenance = [
                take(
                    state.manifest,
                    state.tag_key,
                    source,
                    who,
                    arrivals,
                    grouper,
                    skip_bad,
                    parquet,
                    overlap_key,
                    progress,
                )
                for source in sources
            ]
            kept, numbers, dropped = refuse_taken(record_rows(state), arrivals, skip_bad)
            rows, segments, counts = _seal_units(
                state, grouper, dropped, arrivals, skip_bad, overlap_key
            )
            if on_overlap is not None:
                on_overlap(arrivals.hashes_of_units(), arrivals.hashes_of_contents())
            if dropped:
                keep = ~np.isin(numbers, np.fromiter(dropped, np.uint64, len(dropped)))
                kept, numbers = kept[keep], numbers[keep]
            shared = shared_text(kept, numbers)
            facts = state.facts.model_copy(update={"intakes": [*state.facts.intakes, *provenance]})
            change = Change(
                rows=rows,
                records=kept,
                segments=segments,
                facts=facts,
                cause=Intake(provenance_sha256=provenance_digest(provenance)),
            )
            grouper.close()
            new = commit(
                state.manifest,
                state.path,
                change,
                previous=state.manifest,
                epoch_key=state.epoch_key,
                recipients=None,
                signer=signer,
                checkpoint=checkpoint,
            )
        except BaseException:
            grouper.close()
            tidy(state.path)
            raise
    return new, _summary(new, arrivals, provenance, shared, counts, sources)


def take(
    charter: Charter,
    tag_key: bytes,
    source: Path,
    who: str,
    arrivals: Arrivals,
    grouper: Grouper | None,
    skip_bad: bool,
    parquet: ParquetOpener | None,
    overlap_key: bytes | None,
    progress: Callable[[int], None] | None,
) -> Provenance:
    """Stream one source into the grouper, or with None only into what is remembered."""
    sha256, size_bytes = source_digest(source)
    arrivals.names.append(source.name)
    for row in stream_rows(source, parquet=parquet, columns=charter.fields.columns()):
        arrivals.rows_seen += 1
        number = arrivals.number(row.line)
        try:
            parsed = parse_record(
                row,
                charter.fields,
                charter.caps,
                by_subject=charter.unit == "subject",
                made_id=f"{sha256[:16]}-{row.line}",
            )
        except BadRow as bad:
            arrivals.refuse(number, str(bad), skip_bad)
            continue
        text = record_text(parsed.record)
        tag = cells.unit_tag(tag_key, parsed.unit)
        own = cells.record_tag(tag_key, parsed.record["id"])
        arrivals.take(number, own, tag, text)
        if grouper is not None:
            grouper.add(tag, number, parsed.unit, cells.encode_record(parsed.record))
        elif overlap_key is not None:
            arrivals.units += overlap_hash(overlap_key, "unit", parsed.unit)
        if overlap_key is not None:
            arrivals.contents += overlap_hash(overlap_key, "content", text)
        if progress is not None and arrivals.rows_seen % 1000 == 0:
            progress(arrivals.rows_seen)
    if source_digest(source) != (sha256, size_bytes):
        raise InputError(f"{source.name} changed while it was read", hint="add it again")
    return Provenance(name=source.name, sha256=sha256, size_bytes=size_bytes, time=now(), who=who)


def refuse_taken(
    old: Rows, arrivals: Arrivals, skip_bad: bool
) -> tuple[Rows, NDArray[np.uint64], set[int]]:
    """All record rows sorted by tag, with their numbers (0 = old), and the numbers to drop."""
    rows, numbers = arrivals.hand_over()
    if len(old):
        rows = np.concatenate([old, rows])
        numbers = np.concatenate([np.zeros(len(old), np.uint64), numbers])
    # stable: of rows with one tag the older comes first
    order = np.lexsort((rows["tag_low"], rows["tag_high"]))
    rows, numbers = rows[order], numbers[order]
    same = (rows["tag_high"][1:] == rows["tag_high"][:-1]) & (
        rows["tag_low"][1:] == rows["tag_low"][:-1]
    )
    taken = np.sort(numbers[1:][same])
    for number in taken:
        arrivals.refuse(int(number), "its record id is already taken", skip_bad)
    return rows, numbers, {int(number) for number in taken}


def _seal_units(
    state: State,
    grouper: Grouper,
    dropped: set[int],
    arrivals: Arrivals,
    skip_bad: bool,
    overlap_key: bytes | None,
) -> tuple[Rows, list[Any], tuple[int, int, int]]:
    """Seal every unit that has new records; adds to `dropped` what exceeds a unit's cap."""
    manifest, cap = state.manifest, state.manifest.caps.max_records_per_unit
    reader = SegmentReader(state.path, state.lineage, manifest.segments)
    writer = SegmentWriter(state.path, state.lineage, len(manifest.segments))
    replaced = np.zeros(len(state.rows), dtype=np.bool_)
    fresh = bytearray()
    new_units = records = 0
    finder = Finder(state.rows)
    try:
        for group in grouper.units():
            position = finder.position(group.tag)
            body: list[bytes] = []
            if position >= 0:
                row = state.rows[position]
                old = read_cell(state, reader, row)
                body += [cells.encode_record(record) for record in old.records]
            had = len(body)
            for number, record in group.records:
                if number in dropped:
                    continue
                if len(body) >= cap:
                    arrivals.refuse(number, f"its unit already has {cap} records", skip_bad)
                    dropped.add(number)
                    continue
                body.append(record)
            if len(body) == had:
                continue
            records += len(body) - had
            new_units += position < 0
            if position >= 0:
                replaced[position] = True
            if overlap_key is not None:
                arrivals.units += overlap_hash(overlap_key, "unit", group.unit)
            key = os.urandom(32)
            cell = cells.seal_cell(
                key, state.lineage, group.tag, cells.encode_body(group.unit, body)
            )
            fresh += make_row(group.tag, key, writer.append(cell), cells.cell_hash(cell))
    finally:
        reader.close()
    files = writer.finish()
    added = np.frombuffer(bytes(fresh), dtype=UNIT_ROW)
    rows = sort_rows(np.concatenate([state.rows[~replaced], added]))
    segments = [*manifest.segments, *(as_named(fact) for fact in files)]
    return rows, segments, (records, new_units, int(replaced.sum()))


def _summary(
    new: State,
    arrivals: Arrivals,
    provenance: list[Provenance],
    shared: SharedText,
    counts: tuple[int, int, int],
    sources: Sequence[Path],
) -> IntakeSummary:
    records, units_new, units_grown = counts
    return IntakeSummary(
        rows=arrivals.rows_seen,
        records_added=records,
        units_new=units_new,
        units_grown=units_grown,
        rows_skipped=arrivals.skipped,
        skipped=tuple(arrivals.examples),
        shared_text_units=shared.units,
        shared_text_records=shared.records,
        shared_text_pairs=tuple(
            (_spoken(arrivals, one), _spoken(arrivals, two)) for one, two in shared.pairs
        ),
        provenance=tuple(provenance),
        provenance_sha256=provenance_digest(provenance),
        manifest_root=new.manifest.root,
        to_shred=tuple(str(source) for source in sources),
    )


def provenance_digest(provenance: Sequence[Provenance]) -> str:
    """What ledger and manifest say of where an intake's records came from."""
    return sha256_hex(canonical_json([fact.model_dump() for fact in provenance]))


def _spoken(arrivals: Arrivals, number: int) -> str:
    source, line = arrivals.place(number)
    return f"{source}:{line}" if number else source
