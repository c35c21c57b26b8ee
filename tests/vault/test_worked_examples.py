"""The worked examples in the docstrings of the format come out as they are written there."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from pathlib import Path

import numpy as np

from privft.signing import canonical_json
from privft.vault import cells, index, intake, manifest, segments, services, state
from privft.vault.durable import MANIFEST
from privft.vault.fields import FieldMap
from privft.vault.manifest import Caps, Erasure, NamedFile
from tests.vault.builders import SIGNED, add_rows, new_vault, rows


def told_by(module: object) -> str:
    """A module's docstring on one line."""
    return " ".join(str(module.__doc__).split())


def test_a_cell_of_426_bytes() -> None:
    cell = cells.seal_cell(bytes(32), bytes(16), bytes(16), bytes(300))
    assert "a body of 300 bytes: 4 + 300 -> bucket 320 -> FLOE 74 + 32 + 320 = 426" in told_by(
        cells
    )
    assert (cells.bucket_bytes(4 + 300), len(cell)) == (320, 426)


def test_two_cells_in_a_segment_file(tmp_path: Path) -> None:
    lineage = bytes(range(16))
    writer = segments.SegmentWriter(tmp_path, lineage, 0)
    places = [writer.append(bytes(426)), writer.append(bytes(426))]
    (file,) = writer.finish()
    told = told_by(segments)
    assert "two cells of 426 bytes make a file of 32 + 852 bytes" in told
    assert f"are {places[0]} and {places[1]}" in told
    assert file.size_bytes == 32 + 852
    whole = (tmp_path / file.name).read_bytes()
    assert whole[:32] == b"privft-cells-v1\n" + lineage


def test_a_unit_row(tmp_path: Path) -> None:
    tag, key, digest = bytes(range(16)), bytes(range(32, 64)), bytes(32)
    row = index.make_row(tag, key, (0, 32, 426), digest).hex()
    parts = [row[:32], row[96:104], row[104:120], row[120:128]]
    told = told_by(index)
    assert f"{parts[0]} | 2021 .. 3e3f | {parts[1]} | {parts[2]} | {parts[3]} | hash" in told
    assert row == parts[0] + key.hex() + "".join(parts[1:]) + digest.hex()
    two = b"".join(index.make_row(bytes([n] * 16), key, (0, 32, 426), digest) for n in (1, 2))
    place = index.Place(lineage=bytes(16), epoch=1, sequence=1)
    table = np.frombuffer(two, dtype=index.UNIT_ROW)
    file = index.write_index(tmp_path, bytes(32), place, bytes(130), table)
    assert "facts of 130 bytes and two such rows seals 4 + 130 + 8 + 192 bytes of text" in told
    assert "and 50 of zeros, into 74 + 32 + 384 bytes" in told
    assert file.size_bytes == 74 + 32 + 384
    assert 4 + 130 + 8 + 192 + 50 == 384


def test_the_parts_of_a_manifest(tmp_path: Path) -> None:
    told = re.sub(r"64 hex digits", f'"{"0" * 64}"', told_by(manifest))
    cause, files = re.findall(r'"cause":(\{.*?\}) "segments":(\[.*?\])', told)[0]
    assert Erasure.model_validate_json(cause).runs == ["r-0001-00aa11"]
    (file,) = (NamedFile.model_validate(item) for item in json.loads(files))
    assert file.size_bytes == 32 + 2 * 426
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(4, patients=2))
    vault.erase("p1", who="ada", **SIGNED)
    written = vault.manifest.model_dump(mode="json")
    assert set(written["cause"]) == set(json.loads(cause))
    assert set(written["segments"][0]) == set(json.loads(files)[0])
    fields = re.findall(r"^    ([a-z]+(?:, [a-z]+)*)  ", str(manifest.__doc__), re.MULTILINE)
    assert {name for line in fields for name in line.split(", ")} == set(written)
    assert (vault.path / MANIFEST).is_file()


def test_the_facts_of_a_vault(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(3, patients=2))
    text = canonical_json(vault.state.facts.model_dump()).decode()
    shown = re.sub(r'"intakes":\[.*\],', '"intakes": [...],', text)
    shown = re.sub(r'"[0-9a-f]{64}"', "64 hex digits", shown)
    spaced = re.sub(r'[,:](?=["\d\[])', lambda match: match[0] + " ", shown)
    assert spaced in told_by(state)
    facts = vault.state.facts
    for secret, purpose, key in (
        (facts.secret, "vault:tag", vault.state.tag_key),
        (facts.file_secrets[0], "use:run", vault.subkeys("run")[0]),
    ):
        message = b"privft-vault-subkey-v1" + purpose.encode()
        assert hmac.digest(bytes.fromhex(secret), message, "sha256") == key
        assert '"privft-vault-subkey-v1" || purpose' in told_by(state)


def test_a_row_and_its_record(tmp_path: Path) -> None:
    told = str(intake.__doc__)
    line = next(part.strip() for part in told.splitlines() if '{"patient"' in part)
    source = tmp_path / "a.jsonl"
    source.write_text(line + "\n")
    (row,) = intake.stream_rows(source)
    made = f"{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}-{row.line}"
    fields = FieldMap(text="note", subject="patient")
    parsed = intake.parse_record(row, fields, Caps(), by_subject=True, made_id=made)
    assert f'becomes unit "{parsed.unit}" with the record {json.dumps(parsed.record)}' in " ".join(
        told.split()
    )


def test_the_example_program_is_where_the_protocol_says() -> None:
    (path,) = re.findall(r"Worked example: (\S+) speaks the protocol", told_by(services))
    assert (Path(__file__).resolve().parents[2] / path).is_file()
