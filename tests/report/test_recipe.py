"""The recipe with public tools: it runs as printed, needs no privft, and notices tampering."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from privft.report.verify import recipe
from privft.signing import SigningKey
from tests.report.released import (
    AMARA,
    JONAS,
    RUN,
    STRANGER,
    person,
    trust_file,
    write_release,
)

BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", recipe(), flags=re.DOTALL)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place: Path = tmp_path_factory.mktemp("recipe")
    write_release(place / "release")
    (place / "trust.json").write_bytes(trust_file(expires="2999-12-31T00:00:00Z"))
    return place


def follow(place: Path, blocks: int = len(BLOCKS)) -> list[int]:
    """Exit status of the first blocks, run as printed, with a Python that cannot see privft."""
    bin_folder = place / "bin"
    bin_folder.mkdir(exist_ok=True)
    if not (bin_folder / "python3").exists():
        (bin_folder / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" -P "$@"\n')
        (bin_folder / "python3").chmod(0o755)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    codes = []
    for kind, block in BLOCKS[:blocks]:
        command = ["sh", "-ec", block] if kind == "sh" else ["python3", "-c", block]
        done = subprocess.run(command, cwd=place / "release", env=environment, capture_output=True)
        codes.append(done.returncode)
    return codes


def test_recipe_is_one_page_of_public_tools() -> None:
    assert len(BLOCKS) == 4
    assert len(recipe().splitlines()) < 130
    assert not re.search(r"^\s*(from|import) privft", recipe(), flags=re.MULTILINE)


def test_recipe_followed_as_printed_accepts_an_honest_release(honest: Path) -> None:
    assert follow(honest) == [0, 0, 0, 0]


@pytest.mark.parametrize("keys", [[RUN], [RUN, STRANGER]])
def test_recipe_misses_a_countersignature(tmp_path: Path, keys: list[SigningKey]) -> None:
    write_release(tmp_path / "release", keys=keys)
    (tmp_path / "trust.json").write_bytes(trust_file(expires="2999-12-31T00:00:00Z"))
    first, second = follow(tmp_path, 2)
    assert first == 0
    assert second != 0


@pytest.mark.parametrize(
    ("times", "counts"),
    [
        ({"revoked": "2026-11-20T09:00:00Z"}, False),
        ({"expires": "2026-11-20T09:00:00Z"}, False),
        ({"added": "2026-11-20T09:00:01Z"}, False),
        ({"revoked": "2026-11-20T09:00:01Z"}, True),
    ],
)
def test_recipe_counts_the_countersigners_whose_keys_counted_at_the_release(
    honest: Path, tmp_path: Path, times: dict[str, str], counts: bool
) -> None:
    place = Path(shutil.copytree(honest, tmp_path / "place"))
    people = (person(JONAS), person(AMARA, "approver", "auditor", **times))
    (place / "trust.json").write_bytes(trust_file(people, expires="2999-12-31T00:00:00Z"))
    first, second = follow(place, 2)
    assert first == 0
    assert (second == 0) == counts


@pytest.mark.parametrize(
    ("name", "old", "new", "block"),
    [
        ("ledger-proof.json", b'"noise_multiplier":0.9', b'"noise_multiplier":1.9', 0),
        ("statement.dsse.json", b'"payload":"eyJfdHlwZSI6', b'"payload":"eyJfdHlwZSI7', 1),
        ("README.md", b"wins", b"lost", 2),
    ],
)
def test_recipe_notices_tampering(
    honest: Path, tmp_path: Path, name: str, old: bytes, new: bytes, block: int
) -> None:
    place = Path(shutil.copytree(honest, tmp_path / "place"))
    spoiled = place / "release" / name
    assert old in spoiled.read_bytes()
    spoiled.write_bytes(spoiled.read_bytes().replace(old, new))
    assert follow(place, block + 1)[block] != 0
