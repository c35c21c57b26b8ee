"""Plaintext stays in memory: no file, log line or traceback holds what a record says.

A child process makes, fills, reads, rotates and erases a vault in a world of its own: its home,
caches, temporary and working folders are new and empty.  Then every byte of every file that it
left anywhere in that world is searched for marks from the records, plain, in other encodings, and
inside of whatever is compressed.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARKS = ["Zanzibar-4471", "MRN-990017", "xylophonist"]

CHILD = """
import gzip, json, pathlib, shutil, sys
import pyarrow, pyarrow.parquet
from tests.vault.builders import FIELDS, SIGNED, new_vault, opener, reopen, TRUSTED
world = pathlib.Path(sys.argv[1])
items = json.loads(sys.stdin.read())
vault = new_vault(world / "vault")
table = pyarrow.Table.from_pylist(items[:50])
pyarrow.parquet.write_table(table, world / "in.parquet")
(world / "in.jsonl").write_text("".join(json.dumps(item) + "\\n" for item in items[50:90]))
(world / "in.csv").write_text(
    "id,patient,note\\n" + "".join(f'{i["id"]},{i["patient"]},"{i["note"]}"\\n' for i in items[90:])
)
from pyarrow.parquet.encryption import create_encryption_properties
sealed = create_encryption_properties(bytes(range(16)))
table = pyarrow.Table.from_pylist(json.loads(json.dumps(items[:50]).replace("MRN", "QRN")))
pyarrow.parquet.write_table(table, world / "sealed.parquet", encryption_properties=sealed)
import datasets
from tests.vault.columnkeys import reader, write_columns
datasets.disable_progress_bars()
def renamed(name):
    return json.loads(json.dumps(items[:20]).replace("MRN", name))
with gzip.open(world / "in.csv.gz", "wt") as file:
    file.write("id,patient,note\\n")
    file.writelines(f'{i["id"]},{i["patient"]},{i["note"]}\\n' for i in renamed("GRN"))
datasets.Dataset.from_list(renamed("SRN")).save_to_disk(world / "saved")
sources = [world / name for name in ("in.parquet", "in.jsonl", "in.csv", "in.csv.gz", "saved")]
from privft.vault import adding
adding.Grouper.__init__.__kwdefaults__["memory_bytes"] = 1000
adding.add.__kwdefaults__["memory_bytes"] = 1000
vault.add(sources, who="ada", **SIGNED)
sources.append(world / "sealed.parquet")
vault.add(sources[-1:], who="ada", parquet=bytes(range(16)), **SIGNED)
table = pyarrow.Table.from_pylist(renamed("CRN"))
columns = {name: table[name].to_pylist() for name in table.column_names}
sources.append(write_columns(world / "columns.parquet", columns, {"k": ["note"], "l": ["id"]}))
vault.add(sources[-1:], who="ada", parquet=reader(world), **SIGNED)
for source in sources:
    shutil.rmtree(source) if source.is_dir() else source.unlink()
assert "Zanzibar" in str([unit.records for unit in vault])
vault.verify()
vault.rotate(**SIGNED, reencrypt=True)
vault.erase("MRN-990017-3", who="ada", **SIGNED)
reopen(world / "vault").verify()
bad = world / "bad.jsonl"
bad.write_text('{"id": "1", "patient": "p", "note": ["Zanzibar-4471"]}\\n')
try:
    vault.add([bad], who="ada", **SIGNED)
finally:
    bad.unlink()
"""


def searched(data: bytes) -> list[bytes]:
    """The bytes themselves, and what decompresses wherever in them a compressed text may begin:
    zlib, gzip, bzip2, xz, and the members of a zip file."""
    found = [data]
    kinds: list[tuple[bytes, Callable[[], Any]]] = [
        *((b"\x78" + level, zlib.decompressobj) for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
        (b"\x1f\x8b\x08", lambda: zlib.decompressobj(wbits=31)),
        (b"BZh", bz2.BZ2Decompressor),
        (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    ]
    for magic, decompressor in kinds:
        for start in places_of(magic, data):
            with contextlib.suppress(zlib.error, OSError, EOFError, lzma.LZMAError):
                found.append(decompressor().decompress(data[start:], 1 << 24))
    for start in places_of(b"PK\x03\x04", data):
        names, extra = data[start + 26 : start + 28], data[start + 28 : start + 30]
        begin = start + 30 + int.from_bytes(names, "little") + int.from_bytes(extra, "little")
        with contextlib.suppress(zlib.error):
            found.append(zlib.decompressobj(wbits=-15).decompress(data[begin:], 1 << 24))
    return found


def places_of(magic: bytes, data: bytes) -> Iterator[int]:
    start = data.find(magic)
    while start >= 0:
        yield start
        start = data.find(magic, start + 1)


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/member", data)
    return out.getvalue()


def spellings(mark: str) -> list[bytes]:
    """A mark as files may hold it: text, UTF-16, hex, and the three alignments of base64."""
    raw = mark.encode()
    encoded = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    return [raw, mark.encode("utf-16-le"), raw.hex().encode(), raw.upper(), *encoded]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    for name in ("home", "cache", "tmp", "work", "hf"):
        (tmp_path / name).mkdir()
    return tmp_path


def run_child(world: Path) -> subprocess.CompletedProcess[bytes]:
    items = [
        {
            "id": f"{MARKS[1]}-{number}",
            "patient": f"{MARKS[1]}-{number % 30}",
            "note": f"{MARKS[0]} {MARKS[2]} note {number} " + "lorem " * (number % 40),
        }
        for number in range(120)
    ]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(world / "home"),
        "XDG_CACHE_HOME": str(world / "cache"),
        "TMPDIR": str(world / "tmp"),
        "HF_HOME": str(world / "hf"),
    }
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(world)],
        input=json.dumps(items).encode(),
        capture_output=True,
        check=False,
        cwd=world / "work",
        env=environment,
    )


def test_no_mark_is_in_any_file_or_message(world: Path) -> None:
    done = run_child(world)
    shown = done.stdout + done.stderr
    assert done.returncode == 1, shown.decode()
    assert b"InputError: row 1 of bad.jsonl: column 'note' is not text" in done.stderr
    scanned = 0
    places = [("the child's output", shown)]
    for folder, folders, files in os.walk(world):
        places += [(name, name.encode()) for name in folders + files]
        places += [(name, (Path(folder) / name).read_bytes()) for name in files]
    for name, data in places:
        for text in searched(data):
            scanned += len(text)
            for mark in MARKS:
                for spelling in spellings(mark):
                    assert spelling not in text, name
    assert scanned > 20_000


def test_the_scan_would_find_a_mark() -> None:
    for mark in MARKS:
        hidden = [
            f"a {mark} b".encode(),
            gzip.compress(mark.encode()),
            zlib.compress(mark.encode()),
            b"in the midst " + zlib.compress(mark.encode(), 9) + b" of a file",
            b"in the midst " + gzip.compress(mark.encode()) + b" of a file",
            bz2.compress(mark.encode()),
            lzma.compress(mark.encode()),
            b"before it " + zipped(mark.encode() * 3),
            base64.b64encode(f"some {mark} text".encode()),
            mark.encode().hex().encode(),
        ]
        for data in hidden:
            assert any(
                spelling in text for text in searched(data) for spelling in spellings(mark)
            ), data
