"""A run that is killed at any moment ends, after a resume, with the same bits and the same charge.

Real processes are killed with SIGKILL: by themselves at a chosen moment (`tests.stages.killed`), or
from outside at a random time.  What they leave behind is then gone on with, and compared with an
undisturbed run of the same secret: never overspent, never lost, never two sums under one noise.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from privft import gate
from privft.signing import canonical_json, sha256_hex
from privft.stages import ranked
from privft.stages.sealedrun import forget_secrets
from privft.training.checkpoint import platform_facts
from tests.stages import killed
from tests.stages.world import World, base, files_below

NEVER = "2026-01-01T00:00:00Z"
SEED = 20261123
STEPS = 5


@cache
def _context() -> Any:
    """Processes that are forked off a server which has torch loaded, and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.stages.killed"])
    return context


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the ledger says of the one run: how it was settled, and what it is charged."""

    outcome: str | None
    adapter: Mapping[str, str] | None
    events: tuple[Any, ...]
    epsilon_spent: float


def start(world: World, last: int | None, *, told: bool = False) -> tuple[Any, Any]:
    ours, theirs = _context().Pipe()
    folder, plan = str(world.folder / "workspace"), str(world.folder / "run.plan")
    process = _context().Process(target=killed.train, args=(folder, plan, last, theirs, told))
    process.start()
    theirs.close()
    assert ours.recv() == "started"
    return process, ours


def killed_at(world: World, last: int) -> None:
    process, _ = start(world, last)
    process.join()
    assert process.exitcode == -signal.SIGKILL


def outcome_of(world: World, run: str) -> Outcome:
    with world.ledger() as ledger:
        record = ledger.run(run)
        settled = ledger.entries(kind="run-settled", run=run)
        body = settled[0].body if settled else {"outcome": None, "adapter": None}
        view = ledger.budget(record.lineage)
    return Outcome(
        outcome=body["outcome"],
        adapter=body["adapter"],
        events=record.charged,
        epsilon_spent=view.epsilon_spent,
    )


def state_of(world: World, run: str) -> str:
    with world.ledger() as ledger:
        return gate.state_of(ledger.run(run), now=NEVER)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A world with a plan that was not trained yet, and what training it comes to."""

    world: World
    moments: list[str]
    seconds: float
    outcome: Outcome
    files: frozenset[str]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return trained_whole(tmp_path_factory.mktemp("crash"), steps=STEPS)


def trained_whole(folder: Path, *, steps: int) -> Undisturbed:
    world = base().copied(folder / "before")
    world.planned(steps=steps)
    whole = world.copied(folder / "whole")
    process, reports = start(whole, None)
    started = time.monotonic()
    moments = reports.recv()
    process.join()
    assert process.exitcode == 0
    (run,) = whole.runs()
    left = files_below(whole.workspace.run_path(run))
    return Undisturbed(
        world=world,
        moments=moments,
        seconds=time.monotonic() - started,
        outcome=outcome_of(whole, run),
        files=frozenset(left),
    )


def ends_well(world: World, whole: Undisturbed) -> str:
    """Go on after a kill, whatever it left, and check what comes of it; says what that was."""
    if not world.runs():
        assert world.kinds() == whole.world.kinds()
        assert not (world.folder / "workspace" / "runs").exists()
        return "nothing was reserved"
    (run,) = world.runs()
    state = state_of(world, run)
    folder = world.workspace.run_path(run)
    with world.ledger() as ledger:
        ledger.verify()
    assert outcome_of(world, run).events == whole.outcome.events, "charged whole from the start"
    if state == "trained":
        assert outcome_of(world, run) == whole.outcome
        forget_secrets(folder)  # as its audit does
    elif not (folder / "plan.json").exists() or not (folder / "place.json").exists():
        refused = world.privft("train", "--resume", run, code=1)
        assert f"privft runs close {run}" in refused.err
        world.privft("runs", "close", run, "--reason", "it was killed at its birth")
        state = "closed"
    elif not (folder / "secret.sealed").exists():
        refused = world.privft("train", "--resume", run, code=1)
        assert "is closed and charged in full: stopped before its secrets" in refused.err
        state = "closed"
    else:
        done = world.privft("train", "--resume", run, "--json").json
        assert done["run"] == run
        state = "resumed"
    if state == "closed":
        closed = outcome_of(world, run)
        assert (closed.outcome, closed.adapter) == ("closed", None)
        assert closed.events == whole.outcome.events
        assert closed.epsilon_spent == whole.outcome.epsilon_spent
        world.privft("train", "--resume", run, code=1)
    else:
        assert outcome_of(world, run) == whole.outcome
        left = {name for name in files_below(folder) if not name.endswith(".new")}
        assert left == whole.files
    assert len(world.runs()) == 1
    assert not [path for path in folder.rglob("*") if path.name in ("secret.sealed",)]
    return state


def test_an_undisturbed_run_passes_all_the_moments(undisturbed: Undisturbed) -> None:
    moments = undisturbed.moments
    assert moments.count("after journal") == moments.count("after add_noise") == STEPS
    order = [name for name in moments if name.startswith("after")]
    assert order == ["after reserve", *["after journal", "after add_noise"] * STEPS, "after settle"]
    assert moments.index("after reserve") < moments.index("before journal")
    assert undisturbed.outcome.outcome == "completed"
    assert "secret.sealed" not in undisturbed.files


MOMENTS = {
    "before the reservation": lambda moments: moments.index("before reserve") + 1,
    "after the reservation": lambda moments: moments.index("after reserve") + 1,
    "before the secret is sealed": lambda moments: moments.index("before journal") - 4,
    "in the first step": lambda moments: moments.index("before add_noise") + 1,
    "after the last noise": lambda moments: last_of(moments, "after add_noise"),
    "before the settlement": lambda moments: moments.index("before settle") + 1,
    "after the settlement": lambda moments: moments.index("after settle") + 1,
}


def last_of(moments: list[str], name: str) -> int:
    return len(moments) - moments[::-1].index(name)


EXPECTED = {
    "before the reservation": "nothing was reserved",
    "after the reservation": "closed",
    "before the secret is sealed": "closed",
    "in the first step": "resumed",
    "after the last noise": "resumed",
    "before the settlement": "resumed",
    "after the settlement": "trained",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_a_telling_moment(tmp_path: Path, undisturbed: Undisturbed, moment: str) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    killed_at(world, MOMENTS[moment](undisturbed.moments))
    assert ends_well(world, undisturbed) == EXPECTED[moment]


def test_kills_at_random_times_from_outside(tmp_path: Path, undisturbed: Undisturbed) -> None:
    rng = random.Random(SEED)
    for number in range(3):
        world = undisturbed.world.copied(tmp_path / f"world-{number}")
        process, _ = start(world, None)
        time.sleep(rng.uniform(0.2, 0.95) * undisturbed.seconds)
        process.kill()
        process.join()
        ends_well(world, undisturbed)


KILLS = 36
MANY_STEPS = 12


@pytest.mark.slow
def test_kills_at_random_times_in_all_steps_from_outside(tmp_path: Path) -> None:
    """SIGKILL in a random step, at or a random time after one of two moments in it; what is gone on
    with ends in the same bits and the same charge, and the kills are spread over the run: over
    steps, and within them."""
    whole = trained_whole(tmp_path, steps=MANY_STEPS)
    rng = random.Random(SEED)
    a_step = whole.seconds / (2 * MANY_STEPS)
    ends: Counter[str] = Counter()
    begun: Counter[int] = Counter()
    last_seen: Counter[str] = Counter()
    while begun.total() < KILLS:
        world = whole.world.copied(tmp_path / "world")
        process, reports = start(world, None, told=True)
        aim, names = rng.randrange(MANY_STEPS), [""]
        moment = rng.choice(("before journal", "before add_noise"))
        while names.count(moment) <= aim:
            names.append(reports.recv())
        time.sleep(rng.choice((0, rng.uniform(0, a_step))))
        process.kill()
        process.join()
        if process.exitcode == -signal.SIGKILL:  # else it had ended by itself
            with suppress(EOFError):
                while reports.poll():
                    names.append(reports.recv())
            begun[names.count("after journal")] += 1
            last_seen[names[-1]] += 1
            ends[ends_well(world, whole)] += 1
        shutil.rmtree(world.folder)
    print(f"killed after so many journalled steps: {sorted(begun.items())}")
    print(f"killed after these moments: {sorted(last_seen.items())}; ends: {dict(ends)}")
    assert begun.total() == KILLS >= 30
    assert len(begun) >= MANY_STEPS * 3 // 4, "spread over the steps"
    assert len(last_seen) >= 2, "and within them"
    assert ends["resumed"] >= 30


@pytest.mark.slow
def test_a_kill_at_every_moment(tmp_path: Path, undisturbed: Undisturbed) -> None:
    ends: dict[str, int] = {}
    for last in range(1, len(undisturbed.moments) + 1):
        world = undisturbed.world.copied(tmp_path / f"world-{last}")
        killed_at(world, last)
        end = ends_well(world, undisturbed)
        ends[end] = ends.get(end, 0) + 1
    assert set(ends) == {"nothing was reserved", "closed", "resumed", "trained"}


def in_the_middle(world: World, whole: Undisturbed) -> str:
    """Kill a run in its fourth step, one step after its newest checkpoint; its id."""
    places = [i for i, name in enumerate(whole.moments) if name == "after add_noise"]
    killed_at(world, places[3] + 1)
    (run,) = world.runs()
    assert state_of(world, run) == "reserved"
    assert (world.workspace.run_path(run) / "checkpoint.sealed").exists()
    return run


def test_the_plan_of_a_killed_run_names_how_it_goes_on(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    told = world.privft("train", world.folder / "run.plan", code=14).err
    assert f"this plan is reserved already, as run {run}" in told
    assert f"hint: privft train --resume {run}" in told


def test_what_a_killed_run_leaves_holds_no_note(tmp_path: Path, undisturbed: Undisturbed) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    rows = [json.loads(line) for line in (world.folder / "notes.jsonl").read_text().splitlines()]
    in_the_middle(world, undisturbed)
    left = b"".join(files_below(world.folder / "workspace").values())
    assert len(left) > 50_000
    for row in rows:
        assert row["note"].encode() not in left


def is_closed_whole(
    world: World, whole: Undisturbed, run: str, reason: str, *, codes: tuple[int, ...] = (1,)
) -> None:
    """A resume ends in a closed run, charged in full, whose secrets are gone.

    codes: how audit and release may refuse it; 13 where they look at a broken plan first.
    """
    refused = world.privft("train", "--resume", run, code=1)
    assert f"error: run {run} is closed and charged in full: {reason}" in refused.err
    assert "hint: make a new plan: privft plan" in refused.err
    closed = outcome_of(world, run)
    assert (closed.outcome, closed.adapter) == ("closed", None)
    assert closed.events == whole.outcome.events
    left = files_below(world.workspace.run_path(run))
    assert "secret.sealed" not in left
    assert "checkpoint.sealed" not in left
    for command in (("audit", run), ("release", run, "--to", world.folder / "out")):
        done = world.privft(*command, code=None)
        assert done.code in codes
        assert f"error: run {run} is closed" in done.err or done.code in (13, 14)


def test_a_resume_of_a_resume(tmp_path: Path, undisturbed: Undisturbed) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    checkpoint = world.workspace.run_path(run) / "checkpoint.sealed"
    kept = checkpoint.read_bytes()
    assert ends_well(world.copied(tmp_path / "again"), undisturbed) == "resumed"
    checkpoint.unlink()  # as if it had never become durable: from the start, under the journal
    assert ends_well(world.copied(tmp_path / "from the start"), undisturbed) == "resumed"
    checkpoint.write_bytes(kept[:-1])
    refused = world.privft("train", "--resume", run, code=13)
    assert f"checkpoint of run {run} was altered" in refused.err
    assert state_of(world, run) == "reserved"


def test_other_data_on_resume_close_the_run(tmp_path: Path, undisturbed: Undisturbed) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    world.privft("vault", "add", "notes", world.folder / "public.jsonl")
    is_closed_whole(world, undisturbed, run, "the data changed since the plan was made")


def test_another_model_on_resume_closes_the_run(tmp_path: Path, undisturbed: Undisturbed) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    place = world.workspace.run_path(run) / "place.json"
    assert json.loads(place.read_text()) == {"config_folder": str(world.folder)}
    config = world.folder / "llama" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 9.0}))
    is_closed_whole(world, undisturbed, run, "the model llama changed since the plan was made")


PLAN_CHANGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "sampling probability": lambda p: p["mechanism"].update(sampling_probability=0.06),
    "batch": lambda p: p["mechanism"].update(expected_batch_size=51.0),
    "clip norm": lambda p: p["mechanism"].update(clip_norm=0.31),
    "noise": lambda p: p["mechanism"].update(noise_multiplier=0.81),
    "steps": lambda p: p["mechanism"].update(steps=STEPS + 1),
    "learning rate": lambda p: p["config"]["training"].update(learning_rate=0.03),
    "microbatches": lambda p: p["config"]["performance"].update(tokens_per_microbatch=64),
    "records of a unit": lambda p: p.update(max_records_per_unit=3),
    "data": lambda p: p.update(manifest_root="00" * 32),
}


@pytest.mark.parametrize("change", [*PLAN_CHANGES, "no plan at all"])
def test_another_plan_on_resume_closes_the_run(
    tmp_path: Path, undisturbed: Undisturbed, change: str
) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    path = world.workspace.run_path(run) / "plan.json"
    plan = json.loads(path.read_bytes())
    if change in PLAN_CHANGES:
        PLAN_CHANGES[change](plan)
        # A careful hand: the config's digest follows its text.
        plan["config_sha256"] = sha256_hex(canonical_json(plan["config"]))
    path.write_bytes(canonical_json(plan) + b"\n" if change in PLAN_CHANGES else b"{}")
    assert world.privft("train", "--resume", run, "--dry-run", code=None).code != 0
    assert state_of(world, run) == "reserved", "a dry run closes nothing"
    reason = "its plan is not the one that it was reserved for"
    is_closed_whole(world, undisturbed, run, reason, codes=(1, 13, 14))


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        ("threads", 7),
        ("torch", "2.99.0"),
        ("cpu_capability", "SSE2"),
        ("processor", {"cpu_name": "another"}),
    ],
)
def test_another_platform_on_resume_closes_the_run(
    tmp_path: Path,
    undisturbed: Undisturbed,
    monkeypatch: pytest.MonkeyPatch,
    fact: str,
    value: Any,
) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    monkeypatch.setattr(ranked, "platform_facts", lambda: platform_facts() | {fact: value})
    reason = f"step 2 of run {run} was recorded with another digest"
    is_closed_whole(world, undisturbed, run, reason)


def test_other_settings_of_kernels_on_resume_close_the_run(
    tmp_path: Path, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = undisturbed.world.copied(tmp_path / "world")
    run = in_the_middle(world, undisturbed)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    is_closed_whole(
        world, undisturbed, run, f"step 2 of run {run} was recorded with another digest"
    )


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def test_another_number_of_threads_on_resume_closes_the_run(tmp_path: Path) -> None:
    """As above, with the real number of threads, which the config leaves open."""
    world = base().copied(tmp_path / "world")
    config = world.config("run", steps=STEPS)
    config.write_text(config.read_text().replace("threads: 1, ", ""))
    world.privft("plan", config)
    whole = world.copied(tmp_path / "whole")
    process, reports = start(whole, None)
    moments = reports.recv()
    process.join()
    (run,) = whole.runs()
    undisturbed = Undisturbed(
        world=world,
        moments=moments,
        seconds=0,
        outcome=outcome_of(whole, run),
        files=frozenset(),
    )
    run = in_the_middle(world, undisturbed)
    with_one_thread = world.copied(tmp_path / "one")
    assert with_one_thread.privft("train", "--resume", run, "--json").json["run"] == run
    assert outcome_of(with_one_thread, run) == undisturbed.outcome
    with using_threads(2):
        is_closed_whole(world, undisturbed, run, "step 2")
