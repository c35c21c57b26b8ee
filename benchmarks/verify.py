"""How long `privft verify` takes on a released folder, in a process of its own.

The folder is made up (weights of a few bytes) with real signatures, proofs and accounting, so what
is measured is the work that every verification has: starting Python, the two accountants, the
bounds, and rendering the page again.  Hashing real weights comes on top, at the speed of SHA-256.

    python benchmarks/verify.py [--repeat 5] [--folder DIR --trust FILE] [--output FILE.json]

Prints a table and writes `results/verify.json`: wall and CPU seconds of each of `--repeat` runs.
The bound is 3 seconds.  Only numbers from an otherwise idle machine may be quoted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
START = "import sys; from privft.cli import main; main()"
BOUND_S = 3.0
RESULTS = Path(__file__).resolve().parent / "results" / "verify.json"


def made_up(place: Path) -> tuple[Path, Path]:
    """A released folder and its trust root."""
    from tests.report.released import trust_file, write_release

    folder, trust = place / "released", place / "trust.json"
    write_release(folder)
    trust.write_bytes(trust_file(expires="2999-12-31T00:00:00Z"))
    return folder, trust


def measure(folder: Path, trust: Path) -> dict[str, float]:
    """Seconds of one verification; raises when it does not pass."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", START, "verify", str(folder), "--trust", str(trust)],
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--trust", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, trust = asked.folder, asked.trust
        if folder is None:
            folder, trust = made_up(Path(scratch))
        measure(folder, trust)  # bytecode and disk caches are warm from here on
        runs = [measure(folder, trust) for _ in range(asked.repeat)]
    result: dict[str, Any] = {
        "question": "how long does privft verify take",
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "runs": runs,
        "median_wall_s": sorted(run["wall_s"] for run in runs)[len(runs) // 2],
        "bound_s": BOUND_S,
    }
    asked.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{'run':>4} {'wall s':>8} {'CPU s':>8}")
    for i, run in enumerate(runs, start=1):
        print(f"{i:>4} {run['wall_s']:>8.2f} {run['cpu_s']:>8.2f}")
    print(
        f"median {result['median_wall_s']:.2f} s wall, bound {BOUND_S:.0f} s; "
        f"load {result['load_before']:.1f} before"
    )


if __name__ == "__main__":
    main()
