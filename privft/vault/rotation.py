"""New epochs: new recipients, a new key for the index, and (on request) for every cell.

Rotating makes a new epoch key, seals index and records under it, and wraps it to the recipients.
Cells stay where they are: a cell's key is in the index, so whoever cannot open the new index finds
none of them.  What that does *not* do: somebody who copied the old index while being a recipient
has the keys of all cells that were in it.  After a compromise use `reencrypt`, which seals every
cell again under a fresh key; copies of the old files remain readable to whoever has them, as any
copy does.  Either way there is a new secret for what later runs seal (`privft.vault.state`), so
that a recipient who was removed cannot open their files.  What stays is the key of the tags:
whoever copied it can tell whose tag a proof shows.

`compact` drops the bytes of dead cells (of units that grew or were erased) by copying the live ones
of a segment file, as they are, into a new one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from privft.errors import IntegrityError, UsageError
from privft.signing import SigningKey
from privft.vault import cells
from privft.vault.index import UNIT_ROW, Rows, tag_of
from privft.vault.keys import Recipient
from privft.vault.manifest import NamedFile, Rotation, as_named
from privft.vault.segments import HEADER_BYTES, SegmentReader, SegmentWriter
from privft.vault.state import Change, State, commit, record_rows, tidy, writing

Layout = tuple[Rows, list[NamedFile]]
"""Unit rows (dtype UNIT_ROW, sorted by tag), and the segment files that they number."""


def rotate(
    opened: State,
    *,
    signer: SigningKey,
    checkpoint: str,
    recipients: Sequence[Recipient] | None = None,
    reencrypt: bool = False,
) -> State:
    """Start a new epoch for these recipients (None: the present ones).

    Guarantees: afterwards no file in the vault's folder opens with an earlier epoch key, and no
    earlier version gives the key of what is sealed under `Vault.subkeys(...)[0]`; with `reencrypt`,
    no cell opens with an earlier cell key either.
    """
    with writing(opened) as state:
        chosen = check_recipients(
            [wrapped.recipient for wrapped in state.manifest.recipients]
            if recipients is None
            else recipients
        )
        try:
            rows, segments = state.rows, state.manifest.segments
            if reencrypt:
                rows, segments = reseal(state)
            secrets = [*state.facts.file_secrets, os.urandom(32).hex()]
            change = Change(
                rows=rows,
                records=record_rows(state),
                segments=segments,
                facts=state.facts.model_copy(update={"file_secrets": secrets}),
                cause=Rotation(reencrypted=reencrypt),
            )
            return commit(
                state.manifest,
                state.path,
                change,
                previous=state.manifest,
                epoch_key=os.urandom(32),
                recipients=chosen,
                signer=signer,
                checkpoint=checkpoint,
            )
        except BaseException:
            tidy(state.path)
            raise


def check_recipients(recipients: Sequence[Recipient]) -> Sequence[Recipient]:
    """The recipients, if there is one and no label stands twice."""
    labels = [recipient.label for recipient in recipients]
    if not labels:
        raise UsageError("a vault for 0 recipients", hint="it could never be opened again")
    if len(set(labels)) != len(labels):
        raise UsageError("two recipients with the same label", hint="give each a label of its own")
    return recipients


def reseal(state: State) -> Layout:
    """Every cell again, under a fresh key, in the order in which cells lie on disk."""

    def again(row: np.void, cell: bytes) -> tuple[bytes, bytes]:
        tag, key = tag_of(row), os.urandom(32)
        body = cells.open_body(row["key"].tobytes(), state.lineage, tag, cell)
        return key, cells.seal_cell(key, state.lineage, tag, body)

    return _rewrite(state, state.rows, set(range(len(state.manifest.segments))), again)


def compact(state: State, rows: Rows, segments: set[int]) -> Layout:
    """The live cells of these segment files copied into new ones; the other files stay."""
    return _rewrite(state, rows, segments, lambda row, cell: (row["key"].tobytes(), cell))


def with_dead_bytes(state: State, rows: Rows) -> set[int]:
    """The segment files that hold more than their live cells."""
    live = np.zeros(len(state.manifest.segments), dtype=np.uint64)
    np.add.at(live, rows["segment"].astype(np.int64), rows["length"].astype(np.uint64))
    return {
        number
        for number, file in enumerate(state.manifest.segments)
        if file.size_bytes > int(live[number]) + HEADER_BYTES
    }


def _rewrite(
    state: State,
    rows: Rows,
    touched: set[int],
    change: Callable[[np.void, bytes], tuple[bytes, bytes]],
) -> Layout:
    """Move the cells of the touched files to new files, each as `change` gives it back."""
    old = state.manifest.segments
    kept = [number for number in range(len(old)) if number not in touched]
    renumber = np.full(len(old), -1, dtype=np.int64)
    renumber[kept] = np.arange(len(kept))
    new = rows.copy().astype(UNIT_ROW)
    stays = np.isin(rows["segment"], kept)
    new["segment"][stays] = renumber[rows["segment"][stays].astype(np.int64)]
    reader = SegmentReader(state.path, state.lineage, old)
    writer = SegmentWriter(state.path, state.lineage, len(kept))
    moving = np.flatnonzero(~stays)
    try:
        for place in moving[np.lexsort((rows["offset"][moving], rows["segment"][moving]))]:
            row = rows[place]
            cell = reader.read(int(row["segment"]), int(row["offset"]), int(row["length"]))
            if cells.cell_hash(cell) != row["hash"].tobytes():
                raise IntegrityError("a cell whose bytes are not those of the index")
            key, cell = change(row, cell)
            new["segment"][place], new["offset"][place], new["length"][place] = writer.append(cell)
            new["key"][place], new["hash"][place] = np.void(key), np.void(cells.cell_hash(cell))
    finally:
        reader.close()
    files = writer.finish()
    return new, [*(old[number] for number in kept), *(as_named(fact) for fact in files)]
