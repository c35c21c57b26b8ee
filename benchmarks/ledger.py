"""Does a ledger of 100,000 entries still answer at once?

One ledger is made of runs from approval to settlement, their journals left out, and of refusals,
each entry checked as it would be on the way in; then, in this order,

    append     one more entry, durable, in a process that has the ledger open: median, 99th of 100
    show       `privft ledger show --json` in a fresh process, from the start of Python to its end
    verify     every byte again: forms, order, budgets, signatures, root
    export     the bundle that verifies elsewhere

Predicted before the first run, on two cores of the machine that this was written on: append 3 ms
(one fsync and one signature), show 3 s (reading and hashing everything), verify 15 s (one check of
a signature is 0.1 ms, one of a form 0.05 ms, and there are 100,000).  Wanted: append under 20 ms,
show under 1 s, verify under 30 s.

    python benchmarks/ledger.py [--entries 100000] [--out FILE]

Prints a table and writes `results/ledger.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privft.budget.entries import Entry, format_time, make_entry
from privft.budget.filter import Cap
from privft.budget.history import History
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Mechanism
from privft.budget.replay import chain_of, sign_journal
from privft.budget.store import SqliteStore
from privft.budget.translog import Checkpoint, Tree
from privft.plan import approval_message
from privft.signing import Identity
from privft.workspace import Workspace

RESULTS = Path(__file__).resolve().parent / "results" / "ledger.json"
WANTED = {"append_ms": 20.0, "show_s": 1.0, "verify_s": 30.0}
CAP = Cap(epsilon=1000.0, delta=1e-6)
HASH, LINEAGE = "ab" * 32, "cd" * 16
RUNS_SHARE = 0.1  # of the entries that are reservations; as many are settlements and approvals


def bodies(approver: Identity, count: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kinds and bodies of what a busy workspace writes."""
    public = approver.public
    keys = {"ed25519": public.ed25519, "x25519": public.x25519, "expires": None}
    yield "key-added", {"name": approver.name, "roles": ["approver"], **keys}
    yield (
        "dataset-created",
        {
            "dataset": "notes",
            "lineage": LINEAGE,
            "unit": "record",
            "cap": CAP.to_dict(),
            "declared_units": 4000,
            "policy": "default",
            "policy_digest": HASH,
            "manifest_root": HASH,
            "manifest_digest": HASH,
        },
    )
    for number in range(count):
        mechanism = Mechanism(
            unit="record",
            sampling_probability=0.01,
            noise_multiplier=20.0 + number % 7,
            clip_norm=1.0,
            steps=10,
            expected_batch_size=40.0,
        )
        plan, run = f"{number:064x}", f"r-{number:06d}"
        events = [mechanism.event().to_dict()]
        signature = approver.signing.sign(approval_message(plan)).hex()
        approval = {"plan_sha256": plan, "approver": approver.name, "signature": signature}
        yield "plan-approved", approval
        cost = {"epsilon_pld": 0.1, "epsilon_rdp": 0.1, "note": None, "delta": 1e-6}
        yield (
            "run-reserved",
            {
                "run": run,
                "dataset": "notes",
                "lineage": LINEAGE,
                "plan_sha256": plan,
                "mechanism": mechanism.to_dict(),
                "events": events,
                "run_key": HASH,
                "policy_digest": HASH,
                "config_sha256": HASH,
                "model_sha256": HASH,
                "epsilon": {
                    **cost,
                    "adjacency": "add-remove",
                    "best_order": 9.0,
                    "order_at_edge": False,
                },
            },
        )
        yield (
            "run-settled",
            {
                "run": run,
                "outcome": "completed",
                "reason": "all steps ran",
                "steps_charged": 10,
                "events": events,
                "journal_sha256": chain_of(run, ()).hex(),
                "adapter": {"adapter_model.safetensors": HASH},
            },
        )
        for _ in range(round(1 / RUNS_SHARE) - 3):
            yield "run-refused", {"plan_sha256": HASH, "code": 11, "reason": "nothing is left"}


def build(folder: Path, entries: int) -> Workspace:
    """A workspace whose ledger has exactly so many entries, checked one by one and signed once."""
    owner = Identity.generate("ann")
    workspace = Workspace.create(folder / "ward", owner=owner, roles=("operator",))
    history, tree = History(), Tree()
    with workspace.ledger() as ledger:
        for old in ledger.entries():
            history.apply(old)
            tree.append(old.leaf_hash)
    store = SqliteStore(workspace.folder / "ledger.db")
    approver = Identity.generate("ben")
    with store.transaction(write=True) as transaction:
        for kind, body in bodies(approver, entries):
            if history.size == entries:
                break
            entry: Entry = make_entry(
                index=history.size, kind=kind, time=history.last_time, actor="ann", body=body
            )
            history.check(entry)
            history.apply(entry)
            tree.append(entry.leaf_hash)
            transaction.append(entry.index, entry.canonical)
        log = workspace.log
        note = Checkpoint(origin=log.name, size=tree.size, root=tree.root).signed(log)
        transaction.set_note("checkpoint", note)
        transaction.set_note("journal", sign_journal({}, log))
    store.close()
    return workspace


def timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def cpu_of_children() -> float:
    """Seconds of processor time of the processes that have ended: what load does not inflate."""
    spent = os.times()
    return spent.children_user + spent.children_system


def measure(workspace: Workspace) -> dict[str, float]:
    """Seconds and milliseconds, as the module's docstring has them."""
    show = [
        sys.executable,
        "-c",
        "from privft.cli import main; main()",
        "--workspace",
        str(workspace.folder),
        "ledger",
        "show",
        "--json",
    ]
    used = cpu_of_children()
    shows = [
        timed(lambda: subprocess.run(show, check=True, stdout=subprocess.DEVNULL)) for _ in range(3)
    ]
    used = cpu_of_children() - used
    with workspace.ledger() as ledger:
        refused = {"plan_sha256": HASH, "code": 11, "reason": "nothing is left"}
        appends = sorted(
            timed(lambda: ledger.append("run-refused", refused, actor="ann")) for _ in range(100)
        )
        verify = timed(ledger.verify)
        export = timed(ledger.export)
    bare = [sys.executable, "-c", "from privft.cli import main"]
    opening = timed(lambda: Ledger.open(workspace.folder / "ledger.db", log_key=workspace.log))
    return {
        "append_ms": 1000 * statistics.median(appends),
        "append_99th_ms": 1000 * appends[98],
        "show_s": statistics.median(shows),
        "show_cpu_s": used / len(shows),
        "python_start_s": timed(lambda: subprocess.run(bare, check=True)),
        "open_s": opening,
        "verify_s": verify,
        "export_s": export,
    }


def main() -> None:
    """Make, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = build(Path(folder), options.entries)
        size = (workspace.folder / "ledger.db").stat().st_size
        found = measure(workspace)
    load = os.getloadavg()[0]
    print(f"{options.entries} entries, {size / 2**20:.0f} MiB; load average {load:.1f}")
    for name, value in found.items():
        wanted = f"  wanted below {WANTED[name]:g}" if name in WANTED else ""
        print(f"  {name:16} {value:10.3f}{wanted}")
    report = {
        "entries": options.entries,
        "file_bytes": size,
        "measured": found,
        "wanted": WANTED,
        "load_average": load,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "time": format_time(datetime.now(UTC)),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
