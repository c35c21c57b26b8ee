"""Source files -> rows -> records: streamed, validated, and reported by line, never by content.

Sources are JSON Lines and CSV (plain or gzip), Parquet files, which may be encrypted
(`privft.vault.parquet`), and folders saved by `datasets`.  Parquet and saved folders are read
through `datasets` in streaming mode, which keeps nothing: its Arrow caches, which hold every row in
the clear, are never made.  (It does make empty lock files; they go to a folder of their own that is
removed.)  JSON Lines and CSV are read here as bytes, line by line, so that a bad line has its
number, bytes that are not UTF-8 spoil one row and not the file (the text reader of datasets 5.2
ignores `encoding` for gzip), a line without an end cannot fill the memory, and no type is guessed:
a CSV subject "007" stays "007".

What makes a row bad: it is not JSON, not UTF-8, names a column twice, or has too few or too many
columns; a column is missing, empty, of the wrong type, or longer than the cap.  The reasons are
fixed phrases and names of columns from the configuration.  Nothing that was read appears in an
error: exceptions of the libraries, which do quote what they stumble over, are never passed on.

Ids (of subjects and of records) are taken as `identifier` spells them: composed (NFC), and without
the spaces around them; one with a character that cannot be seen (a control or format character, a
line separator) is a bad row.  Otherwise one person, exported twice by different programs, would be
two units, and protected half as well.

Worked example: fields = FieldMap(text="note", subject="patient"), unit = subject; the line
    {"patient": "p-17", "note": "Stable."}
(with a line feed after it) becomes unit "p-17" with the record
    {"id": "b07341621354560e-1", "text": "Stable."}
where the id is 16 hex digits of the file's SHA-256, and the line number.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from privft.errors import InputError, PrivftError
from privft.vault.fields import FieldMap
from privft.vault.manifest import Caps
from privft.vault.parquet import MAGIC, ParquetOpener, encrypted_rows

_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 64 << 20
_MAX_FIELD_CHARACTERS = 16 << 20
_MAX_ID_BYTES = 512
_UNSEEN = {"Cc", "Cf", "Zl", "Zp"}  # general categories of Unicode
_SUFFIXES = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_NOT_UTF8 = "not UTF-8"


class BadRow(ValueError):
    """A row that cannot become a record; its text is a reason without content."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a source: its line (or row) number from 1, and its columns or what is wrong."""

    line: int
    columns: Mapping[str, Any] = field(repr=False)
    fault: str | None = None


@dataclass(frozen=True, kw_only=True)
class ParsedRecord:
    """A record and the unit that it belongs to."""

    unit: str = field(repr=False)
    record: dict[str, Any] = field(repr=False)


def format_of(source: Path) -> str:
    """ "jsonl", "csv", "parquet" or "saved" (a folder by `datasets`), from the name."""
    if source.is_dir():
        if (source / "dataset_info.json").is_file():
            return "saved"
        raise InputError(
            f"{source.name} is a folder that datasets did not save",
            hint="name the files in it, or a folder made by save_to_disk (one split)",
        )
    if not source.is_file():
        raise InputError(f"no file at {source}")
    suffixes = [suffix.lower() for suffix in source.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = _SUFFIXES.get(suffixes[-2] if zipped and len(suffixes) > 1 else (suffixes or [""])[-1])
    if kind is None or (zipped and kind == "parquet"):
        raise InputError(
            f"{source.name} is of no known format",
            hint="expected .jsonl, .csv (each also .gz), .parquet, or a folder by save_to_disk",
        )
    return kind


def source_digest(source: Path) -> tuple[str, int]:
    """SHA-256 and length of a source; of a folder, over its files in order of name."""
    digest, total = hashlib.sha256(), 0
    files = [source] if source.is_file() else sorted(p for p in source.iterdir() if p.is_file())
    for path in files:
        if path != source:
            digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                total += len(chunk)
    return digest.hexdigest(), total


def stream_rows(
    source: Path, *, parquet: ParquetOpener | None = None, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    """The rows of one source, in order, in bounded memory and with no cache on disk.

    parquet: what opens encrypted Parquet files; of them only `columns` are read (None: all).
    """
    kind = format_of(source)
    if kind == "jsonl":
        yield from _json_rows(_lines(source))
    elif kind == "csv":
        yield from _csv_rows(_lines(source), source.name)
    else:
        yield from _table_rows(source, kind, parquet, columns)


def parse_record(
    row: Row, fields: FieldMap, caps: Caps, *, by_subject: bool, made_id: str
) -> ParsedRecord:
    """The record in a row, or BadRow with a reason that quotes nothing but names of columns."""
    if row.fault is not None:
        raise BadRow(row.fault)
    record: dict[str, Any] = {"id": made_id}
    if fields.id is not None:
        record["id"] = _identifier(row.columns, fields.id)
    size_bytes = 0
    for key, column in fields.content().items():
        value = row.columns.get(column)
        if key == "messages":
            record[key] = _messages(value, column)
            size_bytes += sum(_size(m["content"], column) for m in record[key])
        elif key == "label" and type(value) is int:
            record[key] = value
        else:
            if value is None:
                raise BadRow(f"column {column!r} is missing")
            if not isinstance(value, str):
                raise BadRow(f"column {column!r} is not text")
            if not value.strip() and key != "prompt":
                raise BadRow(f"column {column!r} is empty")
            record[key] = value
            size_bytes += _size(value, column)
    if size_bytes > caps.max_record_bytes:
        raise BadRow(f"its text has more than {caps.max_record_bytes} bytes")
    unit = str(record["id"])
    if by_subject:
        if fields.subject is None:
            raise InputError("the unit is the subject, and no column is named as subject")
        unit = _identifier(row.columns, fields.subject)
    return ParsedRecord(unit=unit, record=record)


def identifier(text: str) -> str:
    """The one spelling of an id: in Unicode's composed form (NFC), without spaces around it."""
    return unicodedata.normalize("NFC", text).strip()


def _identifier(columns: Mapping[str, Any], column: str) -> str:
    value = columns.get(column)
    if type(value) is int:
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise BadRow(f"column {column!r} is neither text nor a whole number")
    value = identifier(value or "")
    if not value:
        raise BadRow(f"column {column!r} is missing or empty")
    if any(unicodedata.category(character) in _UNSEEN for character in value):
        raise BadRow(f"column {column!r} has a character that cannot be seen")
    if _size(value, column) > _MAX_ID_BYTES:
        raise BadRow(f"column {column!r} has more than {_MAX_ID_BYTES} bytes")
    return value


def _messages(value: object, column: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"column {column!r} is not a list of messages")
    messages = []
    for item in value:
        role, content = (
            (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        )
        if not isinstance(role, str) or not isinstance(content, str) or not role:
            raise BadRow(f"column {column!r} has a message without role and content")
        _size(role, column)
        messages.append({"role": role, "content": content})
    if not any(message["content"].strip() for message in messages):
        raise BadRow(f"column {column!r} has only empty messages")
    return messages


def _size(text: str, column: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadRow(f"column {column!r} is {_NOT_UTF8}") from None


class _NamedTwice(ValueError):
    """A JSON object with two values for one name: which of them counts is anybody's guess."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _NamedTwice
    return found


_decode = json.JSONDecoder(object_pairs_hook=_once).decode


def _json_rows(lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = _decode(line)
        except _NamedTwice:
            yield Row(line=number, columns={}, fault="an object that has a name twice")
            continue
        except (ValueError, RecursionError):
            yield Row(line=number, columns={}, fault="not JSON")
            continue
        if isinstance(value, dict):
            yield Row(line=number, columns=value)
        else:
            yield Row(line=number, columns={}, fault="not a JSON object")


def _csv_rows(lines: Iterator[str], name: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    reader = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error:
            fault = "not CSV: a quote or line end out of place"
            if reader.line_num > line:  # a quote that is not closed swallows what comes after it
                fault += f", and with it all up to line {reader.line_num}"
            yield Row(line=line, columns={}, fault=fault)
            continue
        if header is None:
            header = values
            if len(set(header)) != len(header):
                raise InputError(f"{name} names a column twice in its first line")
        elif len(values) == len(header):
            yield Row(line=line, columns=dict(zip(header, values, strict=True)))
        elif values:
            fault = f"{len(values)} columns where the first line has {len(header)}"
            yield Row(line=line, columns={}, fault=fault)


def _lines(source: Path) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become lone surrogates, refused later."""
    zipped = source.suffix.lower() == ".gz"
    with gzip.open(source, "rb") if zipped else source.open("rb") as file:
        first = True
        while True:
            try:
                line = file.readline(_MAX_LINE_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                failure = type(error).__name__
                break
            if not line:
                return
            if len(line) > _MAX_LINE_BYTES:
                raise InputError(
                    f"{source.name} has a line of more than {_MAX_LINE_BYTES} bytes",
                    hint="write one record a line",
                )
            text = line.decode("utf-8", errors="surrogateescape")
            yield text.removeprefix("\ufeff") if first else text
            first = False
    raise _unreadable(source, failure)


def _table_rows(
    source: Path, kind: str, parquet: ParquetOpener | None, columns: Sequence[str] | None
) -> Iterator[Row]:
    if kind == "parquet" and parquet is not None:
        rows = _encrypted(source, parquet, columns)
    else:
        if kind == "parquet" and _first_bytes(source) == MAGIC:
            raise InputError(
                f"{source.name} is an encrypted Parquet file",
                hint="--parquet-key-fd N, or --parquet-service NAME=COMMAND",
            )
        rows = _stream(kind, source)
    for number, found in enumerate(rows, start=1):
        yield Row(line=number, columns=found)


def _first_bytes(source: Path) -> bytes:
    with source.open("rb") as file:
        return file.read(len(MAGIC))


def _encrypted(
    source: Path, parquet: ParquetOpener, columns: Sequence[str] | None
) -> Iterator[Mapping[str, Any]]:
    failure = ""
    try:
        yield from encrypted_rows(source, parquet, columns)
    except (MemoryError, PrivftError):
        raise
    except Exception as error:
        failure = type(error).__name__
    if failure:
        raise InputError(
            f"{source.name} cannot be read: {failure}",
            hint="another key, or an altered file; where columns have keys of their own, a key "
            "service opens it: --parquet-service NAME=COMMAND",
        )


def _stream(kind: str, source: Path) -> Iterator[Mapping[str, Any]]:
    """Rows through `datasets` in streaming mode."""
    import datasets

    failure = ""
    with tempfile.TemporaryDirectory(prefix="privft-intake-") as locks, _silent("datasets"):
        try:
            if kind == "saved":
                stream = datasets.load_from_disk(str(source)).to_iterable_dataset()
            else:
                # a name without the characters that `datasets` would expand
                link = Path(locks) / "source.parquet"
                link.symlink_to(source.absolute())
                stream = datasets.load_dataset(
                    kind, data_files=[str(link)], split="train", streaming=True, cache_dir=locks
                )
            yield from stream
        except MemoryError:
            raise
        except Exception as error:
            # the libraries quote rows in their messages: the type is all that may be repeated
            failure = type(error).__name__
    if failure:
        # raised out here, so that not even its context holds the library's error
        raise _unreadable(source, failure)


def _unreadable(source: Path, failure: str) -> InputError:
    return InputError(
        f"{source.name} cannot be read: {failure}",
        hint="check that the file is whole and of the format that its name says; Parquet may be "
        "encrypted: --parquet-key-fd N, or --parquet-service NAME=COMMAND",
    )


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a library's log, which quotes what it stumbles over, from being written."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
