"""An intake's memory grows with the number of records, and not with their text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import json, pathlib, random, sys
from privft.vault import adding
from tests.vault.builders import SIGNED, new_vault
folder, count, words = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
source = folder / f"{count}-{words}.jsonl"
rng = random.Random(count)
with source.open("w") as file:
    for number in range(count):
        note = " ".join(f"w{rng.getrandbits(40):x}" for _ in range(words))
        row = {"id": f"n{number}", "patient": f"p{number % 999}", "note": note}
        file.write(json.dumps(row) + chr(10))
vault = new_vault(folder / f"v-{count}-{words}")
_, summary = adding.add(vault.state, [source], who="ada", memory_bytes=4 << 20, **SIGNED)
assert summary.records_added == count
status = pathlib.Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0], source.stat().st_size)
"""


def intake(folder: Path, count: int, words: int) -> tuple[int, int]:
    """Peak of memory and size of the source, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(count), str(words)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        check=True,
    )
    peak_kib, size_bytes = done.stdout.split()
    return int(peak_kib) * 1024, int(size_bytes)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_the_memory_of_an_intake_is_bounded(tmp_path: Path) -> None:
    few, few_bytes = intake(tmp_path, 4_000, 300)
    many, many_bytes = intake(tmp_path, 24_000, 300)
    assert many_bytes - few_bytes > 60_000_000
    # 88 bytes a record and what sorting takes; the text of each has 3,600
    assert (many - few) / 20_000 < 900
    long, long_bytes = intake(tmp_path, 4_000, 1_800)
    assert long_bytes - few_bytes > 60_000_000
    assert long - few < 12_000_000
