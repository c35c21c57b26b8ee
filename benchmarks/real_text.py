"""Does the path that the demo walks on made-up notes hold on real text, and what does it gain?

Two tasks on two public corpora, each driven by the commands that a person types (one process a
command, timed): init, vault create, plan, train, audit, release, verify.

    mts-dialog    a conversation between doctor and patient -> the section of the note written from
                  it; SmolLM2-135M, LoRA, loss on the note alone; 1,201 records
    banking77     a customer's message -> one of 77 intents; all-MiniLM-L6-v2, a head alone on the
                  frozen encoder; 10,003 records

What a run does stands in `recipes/TASK.yaml`, which anybody can plan by hand; the policy is
`recipes/open-data.yaml`, for published text alone.  Recipes were tuned on training and validation
data, never on the test sets that the rows come from.

The gain is read from the signed report of the release: base and trained model on the same public
test records, with the paired 95% interval.  For mts-dialog both are *asked* for the note in the
model's chat template, so that the gain is not only the form of an answer.

    python benchmarks/real_text.py [--task TASK] [--data ../shared/data] [--out FILE] [--keep DIR]

Prints a table and writes one row a task to `results/real_text.json`; the row of a task that is not
asked for stays as it is.  Time: about a quarter of an hour a task on two cores.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
RECIPES = HERE / "recipes"
POLICY = RECIPES / "open-data.yaml"
RESULTS = HERE / "results" / "real_text.json"
DATA = HERE.parents[1] / "shared" / "data"
_PRIVFT = "from privft.cli import main; main(prog_name='privft')"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One corpus: where its training rows are, and what its columns are to `vault create`."""

    name: str
    train: str
    columns: tuple[str, ...]
    metric: str


TASKS = {
    task.name: task
    for task in (
        Task(
            name="mts-dialog",
            train="TrainingSet.csv",
            columns=("--prompt", "dialogue", "--completion", "section_text", "--id", "ID"),
            metric="loss per token",
        ),
        Task(
            name="banking77",
            train="train.csv",
            columns=("--text", "text", "--label", "category"),
            metric="accuracy",
        ),
    )
}


@dataclass(kw_only=True)
class Commands:
    """privft in one workspace, as a shell would call it; how long each verb took."""

    workspace: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def __call__(self, *arguments: str | Path) -> str:
        """Run one command; its stdout.  What it says on stderr goes on to the terminal, and a
        failure ends the benchmark."""
        words = [str(argument) for argument in arguments]
        scope = [] if words[0] == "init" else ["--workspace", str(self.workspace)]
        print(f"$ privft {' '.join(words)}", file=sys.stderr, flush=True)
        path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", _PRIVFT, *scope, *words],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            text=True,
        )
        took = time.monotonic() - started
        if done.returncode != 0:
            raise SystemExit(f"privft {words[0]} ended with exit code {done.returncode}")
        self.seconds[words[0]] = round(took, 1)
        print(f"  {took:.0f} s", file=sys.stderr, flush=True)
        return done.stdout


def recipe(task: Task, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The task's config, with whole sections or single keys of sections changed."""
    body: dict[str, Any] = yaml.safe_load((RECIPES / f"{task.name}.yaml").read_text())
    for key, value in changes.items():
        body[key] = {**body[key], **value} if isinstance(value, Mapping) else value
    return body


def walk(
    task: Task, *, data: Path, folder: Path, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole path in `folder`, which must exist; the row of the result.

    data: the folder with the corpora.
    changes: of the recipe, for a shorter run.

    Leaves `folder/workspace` and `folder/released` behind.
    """
    corpus = data / task.name
    config = folder / f"{task.name}.yaml"
    body = recipe(task, changes or {})
    config.write_text(json.dumps(body, indent=1), encoding="utf-8")  # JSON is YAML too
    plan, released = config.with_suffix(".plan"), folder / "released"
    privft = Commands(workspace=folder / "workspace")
    declared = str(body["privacy"]["declared_units"])
    units = ("--unit", "record", "--declared-units", declared, "--policy", POLICY)
    privft("init", folder / "workspace", "--name", "ada")
    privft("vault", "create", task.name, "--from", corpus / task.train, *task.columns, *units)
    privft("plan", config, "-o", plan, "--config-folder", corpus)
    privft("train", plan, "--config-folder", corpus)
    (run,) = json.loads(privft("runs", "list", "--json"))
    privft("audit", run["run"])
    privft("release", run["run"], "--to", released)
    privft("verify", released)
    del privft.seconds["runs"]
    return {**_row(task, predicate(released)), "seconds": privft.seconds, "recipe": body}


def predicate(released: Path) -> dict[str, Any]:
    """What the signed statement of a release says."""
    envelope = json.loads((released / "statement.dsse.json").read_bytes())
    facts: dict[str, Any] = json.loads(base64.b64decode(envelope["payload"]))["predicate"]
    return facts


def _row(task: Task, facts: Mapping[str, Any]) -> dict[str, Any]:
    (gain,) = (
        row for row in facts["utility"] if row["metric"] == task.metric and row["group"] is None
    )
    claim, mechanism = facts["guarantee"], facts["mechanism"]
    return {
        "task": task.name,
        **{key: gain[key] for key in ("metric", "base", "trained", "difference", "interval", "n")},
        "unit": claim["unit"],
        "declared_units": facts["data"]["declared_units"],
        **{key: claim[key] for key in ("epsilon", "delta")},
        **{
            key: mechanism[key]
            for key in ("noise_multiplier", "sampling_probability", "clip_norm", "steps")
        },
        "trained_parameters": facts["model"]["trained_parameters"],
        "audit": {key: facts["audit"][key] for key in ("suite", "verdict", "words")},
    }


def machine() -> dict[str, Any]:
    """What the times depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.now(UTC).date().isoformat(),
    }


def show(rows: Mapping[str, Any]) -> None:
    """The table, one line a task."""
    print(f"{'task':<12}{'metric':<16}{'base':>8}{'trained':>9}  {'gain (95%)':<26}", end="")
    print(f"{'n':>6}{'epsilon':>9}{'delta':>8}{'train':>8}{'all':>8}")
    for row in rows.values():
        low, high = row["interval"]
        gain = f"{row['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        times = f"{row['seconds']['train']:>6.0f} s{sum(row['seconds'].values()):>6.0f} s"
        numbers = f"{row['n']:>6}{row['epsilon']:>9.2f}{row['delta']:>8.0e}{times}"
        values = f"{row['base']:>8.3f}{row['trained']:>9.3f}"
        print(f"{row['task']:<12}{row['metric']:<16}{values}  {gain:<26}{numbers}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--task", choices=sorted(TASKS), help="by default all")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with the corpora")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="a new folder for workspaces and releases")
    options = parser.parse_args()
    if not options.data.is_dir():
        raise SystemExit(f"there is no folder {options.data}; --data says where the corpora are")
    rows = json.loads(options.out.read_text()) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        for name in [options.task] if options.task else TASKS:
            folder = place / name
            folder.mkdir(parents=True)
            row = walk(TASKS[name], data=options.data, folder=folder)
            rows[name] = {**row, "machine": machine()}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    show(rows)


if __name__ == "__main__":
    main()
