"""A cell: one unit with all of its records, sealed under a random key that serves it alone.

    cell    = FLOE(key, text, aad), segment length 65,536
    aad     = "privft-cell-v1" || lineage (16 bytes) || unit tag (16 bytes)
    text    = length of body (4 bytes, big-endian) || body || zeros up to the bucket
    body    = JSON {"records": [...], "unit": id}, keys sorted, no spaces, UTF-8
    tag     = first 16 bytes of HMAC-SHA-256(tag key, unit id in UTF-8)

The tag stands for the unit id wherever the id itself must not appear: who lacks the vault's secret
cannot compute it.  Lineage and tag in the associated data keep a cell from being moved to another
unit or vault; that the unit id inside has this tag is checked after opening.

The bucket of a text is the next of 256, 320, 384, 448, 512, 640, 768, 896, 1024, ...: four steps
to each power of two.  A reader of the disk learns each cell's bucket (a length to within a quarter)
and no more; the overhead is at most a quarter and 13% on average.

Worked example: a body of 300 bytes: 4 + 300 -> bucket 320 -> FLOE 74 + 32 + 320 = 426 bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privft.errors import IntegrityError
from privft.vault import floe

SEGMENT_BYTES = 1 << 16
SMALLEST_BUCKET = 256
TAG_BYTES = 16
_DOMAIN = b"privft-cell-v1"
_LENGTH_BYTES = 4
_decode = json.JSONDecoder().decode
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode


@dataclass(frozen=True, kw_only=True)
class UnitRecords:
    """One unit in the open: its id, and its records as plain dictionaries."""

    unit: str
    records: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """The form that training reads: {"unit": id, "records": [...]}."""
        return {"unit": self.unit, "records": [dict(record) for record in self.records]}

    def __repr__(self) -> str:
        """No content: a repr ends up in tracebacks."""
        return f"UnitRecords({len(self.records)} records)"


def bucket_bytes(length: int) -> int:
    """The smallest of 2^k * (4, 5, 6 or 7) / 4 that is at least `length` and 256."""
    if length <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    step = 1 << ((length - 1).bit_length() - 3)
    return -(-length // step) * step


def unit_tag(tag_key: bytes, unit: str) -> bytes:
    """The 16 bytes that stand for a unit id outside of cells."""
    return hmac.digest(tag_key, unit.encode(), "sha256")[:TAG_BYTES]


def record_tag(tag_key: bytes, record_id: str) -> bytes:
    """The 16 bytes that stand for a record id in the index."""
    return hmac.digest(tag_key, b"record:" + record_id.encode(), "sha256")[:TAG_BYTES]


def cell_aad(lineage: bytes, tag: bytes) -> bytes:
    """What a cell is bound to."""
    return _DOMAIN + lineage + tag


def encode_record(record: Mapping[str, Any]) -> bytes:
    """One record as it stands in a body."""
    return _json(record).encode()


def encode_body(unit: str, records: Sequence[bytes]) -> bytes:
    """The body of a cell, from encoded records."""
    return b'{"records":[' + b",".join(records) + b'],"unit":' + _json(unit).encode() + b"}"


def seal_cell(key: bytes, lineage: bytes, tag: bytes, body: bytes) -> bytes:
    """Seal the body of one unit."""
    text = len(body).to_bytes(_LENGTH_BYTES, "big") + body
    padded = text.ljust(bucket_bytes(len(text)), b"\0")
    return floe.seal(key, padded, cell_aad(lineage, tag), segment_bytes=SEGMENT_BYTES)


def open_body(key: bytes, lineage: bytes, tag: bytes, cell: bytes) -> bytes:
    """The body of one sealed unit.

    Guarantees: the whole cell was verified before anything is returned.
    """
    text = floe.unseal(key, cell, cell_aad(lineage, tag))
    length = int.from_bytes(text[:_LENGTH_BYTES], "big")
    if length > len(text) - _LENGTH_BYTES or len(text) != bucket_bytes(_LENGTH_BYTES + length):
        raise IntegrityError(f"a cell of {len(text)} bytes claims a body of {length}")
    return text[_LENGTH_BYTES : _LENGTH_BYTES + length]


def open_cell(key: bytes, lineage: bytes, tag: bytes, cell: bytes, tag_key: bytes) -> UnitRecords:
    """One unit.

    Guarantees: the whole cell was verified, and the unit in it has this tag, before anything is
    returned.
    """
    unit = decode_body(open_body(key, lineage, tag, cell))
    if not hmac.compare_digest(unit_tag(tag_key, unit.unit), tag):
        raise IntegrityError("a cell that holds another unit than its place says")
    return unit


def decode_body(body: bytes) -> UnitRecords:
    """The unit in a body; IntegrityError without its content when it is not one."""
    try:
        value = _decode(str(body, "utf-8"))
        unit, records = value["unit"], value["records"]
        sound = isinstance(unit, str) and all(isinstance(record, dict) for record in records)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound or len(value) != 2:
        raise IntegrityError(f"a cell whose body of {len(body)} bytes is no unit")
    return UnitRecords(unit=unit, records=tuple(records))


def cell_hash(cell: bytes) -> bytes:
    """What the Merkle tree holds of a cell."""
    return hashlib.sha256(cell).digest()
