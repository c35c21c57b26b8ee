"""Check a whole vault: what anyone can check, and what only its key can.

Without the key: the manifest's signature; every file that it names is there, with its length and
its SHA-256; what lies in the folder besides.  With the key, also: the index opens and holds every
unit once, its places lie inside of the segment files and do not overlap, every cell has the hash
that the index says and opens as that unit, the records inside are those of the record rows, none
twice, and the Merkle root over all of it is the one that is signed.

Opening and reading a vault checks less: the index against its signed hash, and each cell against
the index's key and tag.  Somebody who has the keys (a recipient) and may write here, but may not
sign, could thus put another cell in the place of one, for the same unit and of the same length;
what notices it is this check, with which every run begins.

Which version the vault is in (the old or the new one, after a crash) is what `sequence` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from privft.errors import IntegrityError
from privft.signing import VerifyKey
from privft.vault import cells, durable
from privft.vault.index import RECORD_ROW, Rows, merkle_root, tag_of
from privft.vault.manifest import Manifest, NamedFile, open_manifest, read_manifest_text
from privft.vault.segments import HEADER_BYTES, SegmentReader
from privft.vault.state import State, check_size, read_cell, read_version, record_rows

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class VaultCheck:
    """What was checked.  `units`, `records` and `dead_bytes` are None without the key."""

    sequence: int
    epoch: int
    root: str
    manifest_digest: str
    files: int
    strangers: tuple[str, ...]
    units: int | None = None
    records: int | None = None
    dead_bytes: int | None = None


def verify_files(path: Path, signer_keys: Mapping[str, VerifyKey]) -> VaultCheck:
    """Check what needs no key; raises SignatureError or IntegrityError naming the file."""
    manifest = open_manifest(read_manifest_text(path), signer_keys)
    files = [*manifest.segments, manifest.index, manifest.records]
    for file in files:
        check_size(path, file)
        _check_digest(path, file)
    return _public_check(path, manifest)


def verify_state(opened: State) -> VaultCheck:
    """Check everything of an open vault, cell by cell."""
    path, manifest = opened.path, opened.manifest
    state = read_version(path, manifest, opened.epoch_key, hashes=True)
    for file in (*manifest.segments, manifest.index, manifest.records):
        _check_digest(path, file)
    dead_bytes = _check_places(state)
    if merkle_root(state.rows).hex() != manifest.root:
        raise IntegrityError("the signed root is not that of the cells in the index")
    found = _check_cells(state)
    stated = record_rows(state)
    names = ["tag_high", "tag_low", "unit_high", "unit_low"]
    if len(found) != len(stated) or any((found[n] != stated[n]).any() for n in names):
        raise IntegrityError("the records in the cells are not those of the record rows")
    public = _public_check(path, manifest)
    return VaultCheck(
        sequence=public.sequence,
        epoch=public.epoch,
        root=public.root,
        manifest_digest=public.manifest_digest,
        files=public.files,
        strangers=public.strangers,
        units=len(state.rows),
        records=len(stated),
        dead_bytes=dead_bytes,
    )


def _public_check(path: Path, manifest: Manifest) -> VaultCheck:
    names = manifest.file_names()
    return VaultCheck(
        sequence=manifest.sequence,
        epoch=manifest.epoch,
        root=manifest.root,
        manifest_digest=manifest.digest,
        files=len(names),
        strangers=tuple(durable.strangers(path, names)),
    )


def _check_digest(path: Path, file: NamedFile) -> None:
    digest = hashlib.sha256()
    with (path / file.name).open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
    if digest.hexdigest() != file.sha256:
        raise IntegrityError(f"file {file.name} was altered")


def _check_places(state: State) -> int:
    """Places lie inside of their files and do not overlap; the number of bytes in no cell."""
    rows = state.rows
    order = np.lexsort((rows["offset"], rows["segment"]))
    segment = rows["segment"][order].astype(np.int64)
    offset = rows["offset"][order].astype(np.int64)
    end = offset + rows["length"][order].astype(np.int64)
    if ((segment[1:] == segment[:-1]) & (offset[1:] < end[:-1])).any():
        raise IntegrityError("two units whose cells overlap")
    total = sum(file.size_bytes - HEADER_BYTES for file in state.manifest.segments)
    return total - int((end - offset).sum())


def _check_cells(state: State) -> Rows:
    """Open every cell; the record rows (without bands) that the cells amount to, sorted."""
    rows, manifest = state.rows, state.manifest
    reader = SegmentReader(state.path, state.lineage, manifest.segments)
    found = bytearray()
    try:
        for place in np.lexsort((rows["offset"], rows["segment"])):
            row = rows[place]
            cell = reader.read(int(row["segment"]), int(row["offset"]), int(row["length"]))
            if cells.cell_hash(cell) != row["hash"].tobytes():
                raise IntegrityError("a cell whose bytes are not those of the index")
            unit = read_cell(state, reader, row)
            for record in unit.records:
                name = record.get("id")
                if not isinstance(name, str):
                    raise IntegrityError("a record without an id")
                own = cells.record_tag(state.tag_key, name)
                found += own + tag_of(row) + bytes(32)
    finally:
        reader.close()
    records = np.frombuffer(bytes(found), dtype=RECORD_ROW)
    return records[np.lexsort((records["tag_low"], records["tag_high"]))]
