"""The whole path in a process and a world of its own: no plaintext on disk or terminal, no network.

A child process goes from rows to a verified release, and through refusals and an unforeseen error
on the way, as a person would, with `lock_down` in force.  Its home, caches, temporary and working
folders are new and empty, and it has no network interface where the system can take it away.
Afterwards every byte that it left anywhere in that world is searched for marks from the records: as
text, in other encodings, as token ids, and inside of what is compressed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.stages.world import (
    NOTES,
    RUN,
    SIZE,
    WORDS,
    base,
    note_rows,
    released,
    tokenizer,
    write_rows,
)
from tests.vault.test_escape import searched, spellings

ROOT = Path(__file__).resolve().parents[2]
MARKS = ["Zanzibar-4471", "MRN-990017", "xylophonist"]
KNOWN_WORDS = " ".join(WORDS[7 * i] for i in range(9))  # what the model reads, token by token

CHILD = """
import os, sys, torch
torch.set_num_threads(1)
from privft.audit.selfcheck import Check
from privft.cli import main
from privft.stages import modelling, published, running
# neither touches a record, and both take seconds
running.check_mechanism = lambda *_, **__: [Check(check="left out", ok=True, detail="here")]
published.run_selftest = lambda: [{"ok": True}]

def privft(*arguments, code=0):
    print("$ privft", *arguments, flush=True)
    try:
        main.main(["--workspace", "../workspace", *arguments], prog_name="privft")
    except SystemExit as done:
        assert done.code == code, (arguments, done.code)

notes = sys.argv[1:]
main.main(["init", "../workspace", "--name", "ada"], standalone_mode=False)
os.symlink("../cache-of-controls", "../workspace/cache")
privft("vault", "create", "notes", "--from", "bad.jsonl", *notes, code=2)
privft("vault", "create", "notes", "--from", "notes.jsonl", *notes)
privft("vault", "add", "notes", "bad.jsonl", code=2)
privft("vault", "add", "notes", "more.parquet")
for name in ("notes.jsonl", "bad.jsonl", "more.parquet"):
    os.unlink(name)
privft("vault", "inspect", "notes", "--private", "--json")
privft("plan", "run.yaml")

honest = modelling.encode_unit
def quoting(unit, *rest, **settings):
    if "Zanzibar" in str(unit):
        raise RuntimeError(f"cannot encode {unit}")
    return honest(unit, *rest, **settings)
modelling.encode_unit = quoting
privft("train", "run.plan", code=1)
modelling.encode_unit = honest

from privft.workspace import Workspace
from pathlib import Path
with Workspace.open(Path("../workspace")).ledger() as ledger:
    (stopped,) = ledger.runs()
privft("train", "--resume", stopped.run, "--show-private")
privft("audit", stopped.run, "--show-private", code=10)
privft("audit", stopped.run)
privft("release", stopped.run, "--to", "../released")
privft("verify", "../released")
privft("vault", "rotate", "notes", "--reencrypt")
with open("unit", "w") as file:
    file.write("MRN-990017-3")
privft("vault", "erase", "notes", "--unit-file", "unit")
os.unlink("unit")
privft("ledger", "export", "-o", "ledger.json")
"""


@dataclass(frozen=True, kw_only=True)
class Aftermath:
    """What the child printed, and the world that it left."""

    said: bytes
    folder: Path
    isolated: bool


def can_isolate() -> bool:
    tool = shutil.which("unshare")
    return tool is not None and subprocess.run([tool, "-n", "true"], check=False).returncode == 0


def marked_rows() -> list[dict[str, str]]:
    """Notes of forty patients with marks in text, patient and id."""
    return [
        {
            "patient": f"{MARKS[1]}-{number % 40}",
            "id": f"{MARKS[1]}-{number}",
            "note": f"{MARKS[0]} {KNOWN_WORDS} {MARKS[2]} note {number}",
        }
        for number in range(70)
    ]


def prepared(folder: Path) -> dict[str, str]:
    """A world with rows and a model; the environment of the child."""
    for name in ("home", "cache", "tmp", "work", "hf"):
        (folder / name).mkdir()
    shutil.copytree(base().folder / "llama", folder / "work" / "llama")
    controls = folder / "cache-of-controls"
    shutil.copytree(released().world.folder / "workspace" / "cache", controls)
    work = folder / "work"
    rows = marked_rows()
    write_rows(work / "notes.jsonl", rows[:60])
    write_rows(work / "bad.jsonl", [{**rows[60], "note": [MARKS[0]]}])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[60:]), work / "more.parquet")
    write_rows(work / "public.jsonl", note_rows(patients=5, seed=9))
    (work / "run.yaml").write_text(RUN.format(price="noise_multiplier: 0.8", steps=4))
    return {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(folder / "home"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TMPDIR": str(folder / "tmp"),
        "HF_HOME": str(folder / "hf"),
    }


def run_child(folder: Path, *wrapper: str) -> bytes:
    environment = prepared(folder)
    done = subprocess.run(
        [*wrapper, sys.executable, "-c", CHILD, *NOTES, *SIZE],
        capture_output=True,
        check=False,
        cwd=folder / "work",
        env=environment,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said.decode()
    return said


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    folder = tmp_path_factory.mktemp("escape")
    isolated = can_isolate()
    said = run_child(folder, *(["unshare", "-n"] if isolated else []))
    return Aftermath(said=said, folder=folder, isolated=isolated)


def places(aftermath: Aftermath) -> Iterator[tuple[str, bytes]]:
    """The child's output, every name and every file that it left."""
    yield "the child's output", aftermath.said
    for folder, folders, files in os.walk(aftermath.folder):
        for name in folders + files:
            yield f"the name {name}", name.encode()
        for name in files:
            yield f"{folder}/{name}", (Path(folder) / name).read_bytes()


def as_token_ids(text: str) -> list[bytes]:
    """The ids of a text in the forms that tensors and arrays have on disk, and as JSON."""
    ids = np.array(tokenizer()(text, add_special_tokens=False)["input_ids"])
    arrays = [ids.astype(kind).tobytes() for kind in ("<i8", "<i4", "<i2", ">i8")]
    return [*arrays, *(separator.join(map(str, ids)).encode() for separator in (", ", ",", " "))]


def test_no_mark_is_in_any_file_or_on_the_terminal(aftermath: Aftermath) -> None:
    forbidden = [spelling for mark in [*MARKS, KNOWN_WORDS] for spelling in spellings(mark)]
    forbidden += as_token_ids(KNOWN_WORDS)
    scanned = 0
    for name, data in places(aftermath):
        for text in searched(data):
            scanned += len(text)
            for spelling in forbidden:
                assert spelling not in text, name
    assert scanned > 300_000


def test_the_scan_would_find_the_marks(tmp_path: Path) -> None:
    ids = np.array(tokenizer()(KNOWN_WORDS)["input_ids"])
    assert 3 not in ids.tolist(), "every word is known"
    (tmp_path / "x").write_bytes(b"head" + ids.astype(np.int64).tobytes())
    folder = Aftermath(said=b"", folder=tmp_path, isolated=False)
    hits = [n for n, data in places(folder) for s in as_token_ids(KNOWN_WORDS) if s in data]
    assert len(hits) == 1
    assert all(mark in json.dumps(marked_rows()) for mark in [*MARKS, KNOWN_WORDS])


def test_an_unforeseen_error_names_a_place_and_no_content(aftermath: Aftermath) -> None:
    said = aftermath.said.decode()
    assert re.search(r"error: unforeseen RuntimeError at \S+:\d+ quoting < ", said)
    assert "Traceback" not in said


def test_private_numbers_are_hidden_where_the_policy_hides_them(aftermath: Aftermath) -> None:
    said = aftermath.said.decode()
    assert "policy 'default' does not show private numbers; they stay hidden" in said
    assert "error: policy 'default' does not show attacks on real units" in said
    assert "(private)" not in said


def test_only_the_owner_can_read_what_is_left(aftermath: Aftermath) -> None:
    for name in ("workspace", "released"):
        for path in [aftermath.folder / name, *(aftermath.folder / name).rglob("*")]:
            if not path.is_symlink():
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_nothing_is_left_outside_of_workspace_and_release(aftermath: Aftermath) -> None:
    for name in ("home", "cache", "tmp", "hf"):
        assert [path for path in (aftermath.folder / name).rglob("*") if path.is_file()] == []
    left = {path.name for path in (aftermath.folder / "work").iterdir()}
    assert left == {"llama", "public.jsonl", "run.yaml", "run.plan", "run.html", "ledger.json"}


def test_the_path_needs_no_network(aftermath: Aftermath) -> None:
    if not aftermath.isolated:
        pytest.skip("a network namespace cannot be made here (unshare -n)")
    assert b"verified: everything that can be checked without the data holds" in aftermath.said


@pytest.mark.slow
def test_no_socket_but_local_ones_is_ever_asked_for(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "trace"
    traced = (strace, "-f", "-qq", "-e", "trace=network", "-o", str(log))

    def inet() -> list[str]:
        return [line for line in log.read_text().splitlines() if "AF_INET" in line]

    careless = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    subprocess.run([*traced, sys.executable, "-c", careless], check=True)
    assert inet(), "strace sees what it is to see"
    folder = tmp_path / "world"
    folder.mkdir()
    run_child(folder, *traced)
    assert inet() == []
    asked = [line for line in log.read_text().splitlines() if " socket(" in line]
    assert [line for line in asked if "AF_UNIX" not in line] == []
