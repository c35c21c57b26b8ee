"""Every parser of the vault as a function of bytes, with seeds from which a fuzzer starts.

A target returns, or raises what its parser promises for bytes that are not its own; anything else
is a finding, and so is a hang or an allocation that the bytes did not pay for.  `make fuzz` runs
them under atheris, which watches which branches the bytes reach; `test_targets.py` runs each on its
seeds and on a few hundred mutations with every test run, so that no target rots.

Where a parser only sees what a key-holder wrote (the rows of an index, the body of a cell), the
target seals the bytes first, since no fuzzer guesses a key.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from privft.errors import PrivftError
from privft.signing import canonical_json, parse_canonical, sha256_hex
from privft.vault import cells, floe, index
from privft.vault.erasure import open_certificate
from privft.vault.fields import FieldMap
from privft.vault.intake import BadRow, parse_record, stream_rows
from privft.vault.keys import (
    WrappedKey,
    agreement_opener,
    passphrase_opener,
    unwrap,
    wrap_context,
)
from privft.vault.manifest import Caps, NamedFile, open_manifest, parse_payload, unsigned_manifest
from privft.vault.overlap import HashSet, group, read_groups
from privft.vault.proofs import check
from privft.vault.services import exec_service, parse_answer
from privft.vault.state import parse_facts
from privft.vault.tokens import parse_uri
from tests.vault.builders import (
    PASSPHRASE,
    SIGNED,
    TRUSTED,
    VECTORS,
    add_rows,
    new_vault,
    rows,
)

KEY = bytes(range(32))
PLACE = index.Place(lineage=bytes(16), epoch=1, sequence=1)
Fuzzed = Callable[[bytes], object]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser, what it may raise, and where to start."""

    parse: Fuzzed
    seeds: Callable[[], Iterable[bytes]]
    refusals: tuple[type[Exception], ...] = (PrivftError,)

    def __call__(self, data: bytes) -> bool:
        """Whether the bytes were taken; passes on whatever is no refusal."""
        try:
            self.parse(data)
        except self.refusals:
            return False
        return True


@cache
def scratch() -> Path:
    """A folder in memory where there is one: some parsers read files."""
    shared = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="privft-fuzz-", dir=shared if shared.is_dir() else None))


@cache
def examples() -> dict[str, list[bytes]]:
    """Real bytes of each kind, from a small vault that was erased from."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    vault = new_vault(folder / "v")
    add_rows(vault, folder / "a.jsonl", rows(5, patients=2))
    facts = canonical_json(vault._state.facts.model_dump())
    units = index.read_index(
        vault.path, vault.manifest.index, vault._state.epoch_key, vault._state.place(), hashes=True
    )[1]
    erased = vault.erase("p1", who="ada", **SIGNED)
    manifest = vault.manifest
    return {
        "manifest": [(vault.path / "manifest.json").read_bytes()],
        "payload": [manifest.payload()],
        "facts": [facts],
        "index": [
            padded(
                len(facts).to_bytes(4, "big")
                + facts
                + len(units).to_bytes(8, "big")
                + units.tobytes()
            )
        ],
        "certificate": [canonical_json(erased.envelope)],
        "proof": [vault.prove("p0"), vault.prove("p1")],
        "wrap": [canonical_json(wrapped.model_dump()) for wrapped in manifest.recipients],
    }


def padded(text: bytes) -> bytes:
    return text.ljust(cells.bucket_bytes(len(text)), b"\0")


def vectors(kind: str, field: str) -> list[bytes]:
    cases = json.loads((VECTORS / f"vault_{kind}.json").read_text())["cases"]
    return [bytes.fromhex(case[field]) for case in cases]


def stream(data: bytes) -> None:
    opener = floe.Opener(KEY, b"context", io.BytesIO(data))
    for _ in opener:
        pass


def header(data: bytes) -> None:
    """A header whose tag is right, so that what comes after it is reached."""
    params = data[:10].ljust(10, b"\0") + bytes(32)
    tag = floe._expand(KEY, params + b"HEADER_TAG:")[:32]
    floe.unseal(KEY, params + tag + data[10:], b"")


def body(data: bytes) -> None:
    tag = cells.unit_tag(KEY, "p")
    sealed = floe.seal(KEY, data, cells.cell_aad(bytes(16), tag), segment_bytes=65536)
    cells.open_cell(KEY, bytes(16), tag, sealed, KEY)


def cell(data: bytes) -> None:
    """With the keys of the vectors."""
    lineage, tag_key = bytes(range(16)), bytes(range(32, 64))
    cells.open_cell(KEY, lineage, cells.unit_tag(tag_key, "p-17"), data, tag_key)


def rows_of(data: bytes) -> None:
    """Facts and unit rows as a key-holder could have written them."""
    path = scratch() / "index-0000000000000000.floe"
    with path.open("wb") as file:
        sealer = floe.Sealer(KEY, PLACE.aad(b"privft-index-v1"), file, segment_bytes=256)
        sealer.write(data)
        sealer.close()
    facts, _ = index.read_index(scratch(), named(path), KEY, PLACE)
    parse_facts(facts)


def named(path: Path) -> NamedFile:
    """What a manifest would say of the file."""
    data = path.read_bytes()
    return NamedFile(name=path.name, size_bytes=len(data), sha256=sha256_hex(data))


def records_of(data: bytes) -> None:
    path = scratch() / "records-0000000000000000.floe"
    with path.open("wb") as file:
        sealer = floe.Sealer(KEY, PLACE.aad(b"privft-records-v1"), file, segment_bytes=256)
        sealer.write(data)
        sealer.close()
    index.read_records(scratch(), named(path), KEY, PLACE)


def wrapped(data: bytes) -> None:
    value = WrappedKey.model_validate(parse_canonical(data))
    cheap = getattr(value.recipient.holding, "cost", None)
    if cheap is not None and cheap.memory_kib * cheap.iterations > 64:
        return  # legal, and paid for by the Argon2 cost that the cap allows
    for opener in (passphrase_opener(PASSPHRASE), agreement_opener("ada", KEY)):
        unwrap([value], opener, wrap_context(bytes(16), 1))


def source(suffix: str, fields: FieldMap) -> Fuzzed:
    def parse(data: bytes) -> None:
        path = scratch() / f"source{suffix}"
        path.write_bytes(data)
        for row in stream_rows(path):
            try:
                parse_record(row, fields, Caps(), by_subject=True, made_id="made")
            except BadRow:
                continue

    return parse


def text_of(parse: Callable[[str], object]) -> Fuzzed:
    return lambda data: parse(data.decode("utf-8", errors="replace"))


JSON_ROWS = [
    b'{"patient": "p", "note": "n", "id": 7}\n\n{"note": null}\n[1]\n',
    '﻿{"patient": "p", "note": "\\ud800"}'.encode(),
    b'{"patient": {"a": [1e999, NaN, -0]}, "note": "\xff"}\r\n' + b"[" * 400,
]
CSV_ROWS = [b'patient,note\np,"a ""b""\nc"\np\n,\n', b"patient,patient\n", b'note\n"open']
CHAT = [b'{"patient": "p", "talk": [{"role": "user", "content": "hello"}]}\n']
PLAIN = FieldMap(text="note", subject="patient")
TALK = FieldMap(messages="talk", subject="patient", id="id")

TARGETS: dict[str, Target] = {
    "floe": Target(parse=stream, seeds=lambda: vectors("floe", "sealed")),
    "floe-header": Target(parse=header, seeds=lambda: [bytes.fromhex("00000000004000000020")]),
    "cell": Target(parse=cell, seeds=lambda: vectors("cells", "cell")),
    "cell-body": Target(
        parse=body,
        seeds=lambda: [
            b"\0\0\0\x1b" + b'{"records":[{}],"unit":"p"}'.ljust(252, b"\0"),
            b"\0\0\0\x05[[[[[".ljust(256, b"\0"),
        ],
    ),
    "index": Target(parse=rows_of, seeds=lambda: examples()["index"]),
    "records": Target(
        parse=records_of,
        seeds=lambda: [padded(bytes(7) + b"\1" + bytes(range(64))), bytes(256)],
    ),
    "facts": Target(parse=parse_facts, seeds=lambda: examples()["facts"]),
    "manifest": Target(
        parse=lambda data: open_manifest(data, TRUSTED), seeds=lambda: examples()["manifest"]
    ),
    "manifest-unsigned": Target(
        parse=unsigned_manifest,
        # the second was found by fuzzing: base64 that is not ASCII was no IntegrityError
        seeds=lambda: [*examples()["manifest"], '{"payload": "\u00c6"}'.encode()],
    ),
    "manifest-payload": Target(parse=parse_payload, seeds=lambda: examples()["payload"]),
    "wrapped-key": Target(
        parse=wrapped,
        seeds=lambda: examples()["wrap"],
        refusals=(PrivftError, ValidationError),
    ),
    "certificate": Target(
        parse=lambda data: open_certificate(json.loads(data), TRUSTED),
        seeds=lambda: examples()["certificate"],
        refusals=(PrivftError, json.JSONDecodeError, UnicodeDecodeError, RecursionError),
    ),
    "unit-proof": Target(
        parse=lambda data: check(data, TRUSTED), seeds=lambda: examples()["proof"]
    ),
    "overlap-groups": Target(
        parse=lambda data: read_groups(data, dataset="notes", overlap_key=bytes(32)),
        seeds=lambda: [group(HashSet.of(bytes(range(32)))) + group(HashSet.of(b""))],
    ),
    "jsonl": Target(parse=source(".jsonl", PLAIN), seeds=lambda: JSON_ROWS),
    "jsonl-chat": Target(parse=source(".jsonl", TALK), seeds=lambda: CHAT),
    "csv": Target(parse=source(".csv", PLAIN), seeds=lambda: CSV_ROWS),
    "gzip": Target(parse=source(".jsonl.gz", PLAIN), seeds=lambda: [gzip.compress(JSON_ROWS[0])]),
    "service-answer": Target(
        parse=parse_answer, seeds=lambda: [b'{"data": "00ff"}'], refusals=(ValueError,)
    ),
    "service-name": Target(parse=text_of(exec_service), seeds=lambda: [b"kms=/opt/kms 'a b'"]),
    "token-uri": Target(
        parse=text_of(parse_uri), seeds=lambda: [b"pkcs11:token=a%20b;object=c?module-path=/d"]
    ),
}
