"""Is the vault as fast as the memory that it works in, and does an intake stay in bounded memory?

Five questions, each in a process of its own, so that peaks of memory are its own:

    streams   sealing and opening at 256 KiB segments against raw AES-GCM on the same bytes, in the
              same segments, from and to buffers that are used again, one after the other in every
              round; also from a file, against reading the file and raw AES-GCM
    cells     random units of about 1 KiB, opened and checked whole, from a small vault and from one
              ten times as large (a batch must cost the same in both)
    intake    JSON lines into a vault, at two sizes: MB/s, and how the peak of memory grows
    opening   a vault of many units: seconds, and bytes of memory a unit
    sealing   cells sealed a second

    python benchmarks/vault.py [--only streams,...] [--intake-mb 1000] [--units 10000000]
                               [--rounds 15] [--out FILE] [--folder DIR]

All of it takes about five minutes on a quiet machine.  `--only intake --intake-mb 10000` takes in
ten gigabytes (20 to 30 minutes, 35 GB of disk), and its result stands beside that of other sizes.
Prints tables and writes JSON.  Rates are of one core: processor time, the median of the rounds.
`load` is what the system said of other work before each question (1 for one busy core).
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privft.signing import SigningKey
from privft.vault import cells, floe, index
from privft.vault.fields import FieldMap
from privft.vault.keys import agreement_opener, agreement_recipient
from privft.vault.manifest import Creation, new_charter
from privft.vault.state import Change, commit, fresh_facts
from privft.vault.store import Vault, create

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "vault.json"
SEGMENT_BYTES = 1 << 18
STREAM_BYTES = 64 << 20
QUESTIONS = ("streams", "cells", "intake", "opening", "sealing")
SIGNER = SigningKey.from_bytes("bench", bytes(range(32)))
PRIVATE = bytes(range(1, 33))
FIELDS = FieldMap(text="note", subject="patient", id="id")


class Sink:
    """Takes bytes and keeps none."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        return len(data)


def rates(work: dict[str, Callable[[], object]], amount: float, rounds: int) -> dict[str, float]:
    """Amount a second of each, interleaved: the median over the rounds, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, function in work.items():
            started = time.thread_time()
            function()
            seconds[name].append(time.thread_time() - started)
    return {name: amount / statistics.median(times[1:]) for name, times in seconds.items()}


def streams(arguments: argparse.Namespace) -> dict[str, Any]:
    """GB/s of sealing and opening, and the ratio to raw AES-GCM."""
    inner = SEGMENT_BYTES - floe.OVERHEAD_BYTES
    count = STREAM_BYTES // inner
    data, key, nonce, aad = os.urandom(count * inner), os.urandom(32), os.urandom(12), bytes(9)
    raw = AESGCM(key)
    text = memoryview(data)
    parts = [text[i * inner : (i + 1) * inner] for i in range(count)]
    sealed_raw = memoryview(b"".join(raw.encrypt(nonce, part, aad) for part in parts))
    length = inner + 16
    raw_parts = [sealed_raw[i * length : (i + 1) * length] for i in range(count)]
    cipher, plain = bytearray(length), bytearray(inner)
    sealed = floe.seal(key, data, b"", segment_bytes=SEGMENT_BYTES)
    path = Path(arguments.folder) / "stream.floe"
    path.write_bytes(sealed)
    raw_path = Path(arguments.folder) / "stream.raw"
    raw_path.write_bytes(sealed_raw)
    chunks = [text[start : start + (1 << 20)] for start in range(0, len(data), 1 << 20)]

    def raw_seal() -> None:
        for part in parts:
            raw.encrypt_into(nonce, part, aad, cipher)

    def seal() -> None:
        sealer = floe.Sealer(key, b"", Sink(), segment_bytes=SEGMENT_BYTES)
        for chunk in chunks:
            sealer.write(chunk)
        sealer.close()

    def raw_open() -> None:
        for part in raw_parts:
            raw.decrypt_into(nonce, part, aad, plain)

    def opened() -> None:
        floe.Opener(key, b"", sealed).copy_to(Sink())

    def raw_open_file() -> None:
        with raw_path.open("rb", buffering=0) as file:
            while file.readinto(cipher):
                raw.decrypt_into(nonce, cipher, aad, plain)

    def open_file() -> None:
        with path.open("rb", buffering=0) as file:
            floe.Opener(key, b"", file).copy_to(Sink())

    work = {
        "raw sealing": raw_seal,
        "sealing": seal,
        "raw opening": raw_open,
        "opening": opened,
        "raw opening, file": raw_open_file,
        "opening, file": open_file,
    }
    found = rates(work, len(data) / 1e9, arguments.rounds)
    pairs = [("sealing", "sealing"), ("opening", "opening"), ("opening, file", "opening, file")]
    return {
        "gb_per_s": found,
        "ratio_to_raw": {name: found[name] / found[f"raw {other}"] for name, other in pairs},
    }


def new_vault(folder: Path) -> Vault:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    public = X25519PrivateKey.from_private_bytes(PRIVATE).public_key().public_bytes_raw()
    return create(
        folder,
        dataset="bench",
        unit="subject",
        fields=FIELDS,
        recipients=[agreement_recipient("bench", public)],
        checkpoint="none",
        signer=SIGNER,
    )


def write_rows(path: Path, megabytes: int, *, rows_each: int = 5) -> int:
    """Notes of 1 KiB in random words, `rows_each` to a patient; the number of rows."""
    rng = np.random.default_rng(1)
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz", dtype="S1")
    words = rng.choice(letters, (20_000, 7))
    vocabulary = (
        np.concatenate([words, np.full((20_000, 1), b" ", "S1")], axis=1).view("S8").ravel()
    )
    number, left = 0, megabytes * 1_000_000
    with path.open("wb") as file:
        while left > 0:
            block = rng.choice(vocabulary, (1000, 122))
            lines = bytearray()
            for note in block:
                patient = number // rows_each
                lines += b'{"id":"n%d","patient":"p%d","note":"' % (number, patient)
                lines += note.tobytes().strip() + b'"}\n'
                number += 1
            file.write(lines)
            left -= len(lines)
    return number


def batches(arguments: argparse.Namespace) -> dict[str, Any]:
    """Units a second at random places, and seconds for one batch, in two vaults."""
    found: dict[str, Any] = {}
    for name, megabytes in (("small", 4), ("large", 40)):
        folder = Path(arguments.folder) / f"cells-{name}"
        source = folder.with_suffix(".jsonl")
        write_rows(source, megabytes, rows_each=1)
        vault = new_vault(folder)
        vault.add([source], signer=SIGNER, checkpoint="none", who="bench")
        rng = np.random.default_rng(2)
        chosen = rng.choice(len(vault), 2000, replace=False)
        read = functools.partial(vault.read_many, chosen)
        rate = rates({"read": read}, len(chosen), arguments.rounds)
        found[name] = {
            "units": len(vault),
            "units_per_s": rate["read"],
            "batch_of_256_ms": 256e3 / rate["read"],
        }
    return found


def sealing(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cells of 1 KiB sealed, and opened without their JSON, a second."""
    body = cells.encode_body("p1", [cells.encode_record({"id": "n1", "text": "x" * 980})])
    key, lineage, tag = os.urandom(32), bytes(16), bytes(16)
    cell = cells.seal_cell(key, lineage, tag, body)

    def seal() -> None:
        for _ in range(2000):
            cells.seal_cell(os.urandom(32), lineage, tag, body)

    def opened() -> None:
        for _ in range(2000):
            cells.open_body(key, lineage, tag, cell)

    return {"cells_per_s": rates({"sealing": seal, "opening": opened}, 2000, arguments.rounds)}


def intake(arguments: argparse.Namespace) -> dict[str, Any]:
    """MB/s and peak memory at 500 MB, which fill the buffers, and at the whole size."""
    found = []
    for megabytes in (max(1, min(500, arguments.intake_mb // 2)), arguments.intake_mb):
        source = Path(arguments.folder) / "intake.jsonl"
        rows = write_rows(source, megabytes)
        words = ["--only", f"one-intake:{source}", "--folder", arguments.folder]
        found.append({"megabytes": megabytes, "rows": rows, **run_child(words)})
        source.unlink()
    small, large = found
    grown = (large["peak_mib"] - small["peak_mib"]) * (1 << 20)
    return {"sizes": found, "bytes_per_more_row": grown / (large["rows"] - small["rows"])}


def one_intake(arguments: argparse.Namespace, source: Path) -> dict[str, Any]:
    """One intake, in this process."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        vault = new_vault(Path(folder) / "v")
        before = peak_mib()
        wall, cpu = time.monotonic(), time.process_time()
        vault.add(
            [source],
            signer=SIGNER,
            checkpoint="none",
            who="bench",
            overlap_key=bytes(32),
            on_overlap=lambda units, contents: None,
        )
        cpu = time.process_time() - cpu
        megabytes = source.stat().st_size / 1e6
        return {
            "mb_per_s": megabytes / cpu,
            "wall_s": time.monotonic() - wall,
            "peak_mib": peak_mib(),
            "before_mib": before,
        }


def opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the index of a vault of many units, then open it in a process of its own."""
    folder = Path(arguments.folder) / "opening"
    new_vault(folder)
    units = arguments.units
    rng = np.random.default_rng(3)
    rows = np.zeros(units, dtype=index.UNIT_ROW)
    rows["tag_high"] = np.sort(rng.integers(0, 1 << 63, units, dtype=np.uint64))
    rows["tag_low"] = np.arange(units)
    rows["offset"], rows["length"] = 32, 426
    key, charter = (
        os.urandom(32),
        new_charter(dataset="bench", unit="subject", fields=FIELDS, caps=None),
    )
    facts = fresh_facts()
    nothing = np.empty(0, dtype=index.RECORD_ROW)
    change = Change(rows=rows, records=nothing, segments=[], facts=facts, cause=Creation())
    with Vault.open(folder, agreement_opener("bench", PRIVATE), signer_keys=keys()) as vault:
        people = list(vault.recipients)
    commit(
        charter,
        folder,
        change,
        previous=None,
        epoch_key=key,
        recipients=people,
        signer=SIGNER,
        checkpoint="none",
    )
    return run_child(["--only", f"one-opening:{folder}", "--folder", arguments.folder])


def one_opening(folder: Path) -> dict[str, Any]:
    """Open one vault, in this process."""
    before = peak_mib()
    wall, cpu = time.monotonic(), time.process_time()
    with Vault.open(folder, agreement_opener("bench", PRIVATE), signer_keys=keys()) as vault:
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        grown = (peak_mib() - before) * (1 << 20)
        return {
            "units": len(vault),
            "cpu_s": cpu,
            "wall_s": wall,
            "bytes_per_unit": grown / len(vault),
        }


def keys() -> dict[str, Any]:
    return {SIGNER.public.keyid: SIGNER.public}


def peak_mib() -> float:
    """The most memory that this program held.  (ru_maxrss would count its parent's too.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024


def run_child(words: list[str]) -> dict[str, Any]:
    """This script again, in a process of its own; what it found."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), *words],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path[1:]])},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Answer the questions."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default=",".join(QUESTIONS))
    parser.add_argument("--intake-mb", type=int, default=1000)
    parser.add_argument("--units", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", help="where vaults and sources are made; default: a new one")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    name, _, rest = arguments.only.partition(":")
    if name == "one-intake":
        print(json.dumps(one_intake(arguments, Path(rest))))
        return
    if name == "one-opening":
        print(json.dumps(one_opening(Path(rest))))
        return
    work = {
        "streams": streams,
        "cells": batches,
        "intake": intake,
        "opening": opening,
        "sealing": sealing,
    }
    asked = arguments.only.split(",")
    unknown = set(asked) - set(QUESTIONS)
    if unknown:
        parser.error(f"unknown questions: {', '.join(sorted(unknown))}")
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    results["machine"] = {"processor": processor(), "python": platform.python_version()}
    for question in asked:
        with tempfile.TemporaryDirectory(prefix="privft-bench-", dir=arguments.folder) as folder:
            chosen = argparse.Namespace(**{**vars(arguments), "folder": folder})
            load = os.getloadavg()[0]
            found = {"load": load, **work[question](chosen)}
        if question == "intake":
            results.setdefault(question, {})[f"{arguments.intake_mb} MB"] = found
        else:
            results[question] = found
        print(f"{question}\n{shown(found)}\n", flush=True)
        arguments.out.parent.mkdir(exist_ok=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")


def shown(value: Any, indent: int = 2) -> str:
    """A table of what was found: one number a line."""
    out = io.StringIO()
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, part in items:
        if isinstance(part, dict | list):
            out.write(f"{' ' * indent}{name}\n{shown(part, indent + 2)}\n")
        else:
            out.write(f"{' ' * indent}{name:<24}{part:>14,.2f}\n")
    return out.getvalue().rstrip("\n")


if __name__ == "__main__":
    main()
