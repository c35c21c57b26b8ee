"""Coverage-guided fuzzing of every parser: `make fuzz`, or

    python -m tests.fuzz.run [--seconds 60] [--corpus DIR] [TARGET ...]

One process a target, under atheris (libFuzzer): a finding is anything that a parser raises and does
not promise, 10 seconds for one input, or more than 2 GiB of memory.  Inputs that reached something
new are kept in the corpus folder, where a later run goes on.  Prints a line a target; ends with 1
when there was a finding, whose input is then `crash-*` in the corpus folder.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=8192", "-print_final_stats=1"]


def fuzz(name: str, corpus: Path, seconds: int) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["privft"]):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    flags = [*LIMITS, f"-max_total_time={seconds}", f"-artifact_prefix={corpus}/"]
    atheris.Setup([name, *flags, str(corpus)], target)
    atheris.Fuzz()


def main() -> int:
    """Fuzz the targets one after another; the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--in-this-process", action="store_true")
    chosen = parser.parse_args()
    if chosen.in_this_process:  # before anything imports privft, which is to be instrumented
        fuzz(chosen.targets[0], chosen.corpus / chosen.targets[0], chosen.seconds)
    from tests.fuzz.targets import TARGETS

    unknown = set(chosen.targets) - set(TARGETS)
    if unknown:
        parser.error(f"unknown targets: {', '.join(sorted(unknown))}")
    found = 0
    for name in chosen.targets or TARGETS:
        corpus = chosen.corpus / name
        corpus.mkdir(parents=True, exist_ok=True)
        words = ["--in-this-process", "--seconds", str(chosen.seconds), "--corpus"]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.run", *words, str(chosen.corpus), name],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        runs = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
        reached = re.findall(r"cov: (\d+)", done.stderr)
        kept = len(list(corpus.iterdir()))
        print(
            f"{name:18} {runs[1] if runs else '?':>9} inputs, {reached[-1] if reached else '?':>5} "
            f"branches, {kept} kept: {'clean' if done.returncode == 0 else 'FINDING'}",
            flush=True,
        )
        if done.returncode:
            found += 1
            print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
