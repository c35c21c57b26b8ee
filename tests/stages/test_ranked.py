"""`privft train --launcher torchrun`: real launchers, real ranks, real faults.

Runs begin in one process that is killed in its fourth step (`tests.stages.killed`, where secrets
are fixed and the slow attack on the mechanism is left out) and are gone on with by two ranks, so
what comes out can be compared with an undisturbed run bit by bit.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from privft.config import load_config
from privft.errors import PrivftError, UsageError
from privft.plan import parse_plan
from privft.stages import facts, launching
from tests.stages.test_crash import (
    Undisturbed,
    killed_at,
    outcome_of,
    start,
    state_of,
)
from tests.stages.world import World, base, files_below

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
TWO = ("--launcher", "torchrun", "--", "--nproc-per-node", "2", "--shutdown-timeout", "2")


def configured(world: World, *, secure: bool, timeout_s: int = 60, link: str | None = None) -> Path:
    path = world.config(steps=STEPS)
    text = path.read_text()
    if secure:
        text = text.replace("max_steps:", "secure_noise: true\n  max_steps:")
    text += f"ranks: {{timeout_s: {timeout_s}{f', link: {link}' if link else ''}}}\n"
    path.write_text(text)
    world.privft("plan", path)
    return path.with_suffix(".plan")


def undisturbed_run(folder: Path, *, secure: bool) -> Undisturbed:
    world = base().copied(folder / "before")
    configured(world, secure=secure)
    return undisturbed_of(world, folder)


def undisturbed_of(world: World, folder: Path) -> Undisturbed:
    """What the planned run of this world comes to in one process."""
    whole = world.copied(folder / "whole")
    started = time.monotonic()
    process, reports = start(whole, None)
    moments = reports.recv()
    process.join()
    (run,) = whole.runs()
    return Undisturbed(
        world=world,
        moments=moments,
        seconds=time.monotonic() - started,
        outcome=outcome_of(whole, run),
        files=frozenset(files_below(whole.workspace.run_path(run))),
    )


@pytest.fixture(scope="module")
def hardened(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed_run(tmp_path_factory.mktemp("hardened"), secure=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed_run(tmp_path_factory.mktemp("plain"), secure=False)


def stopped_early(whole: Undisturbed, to: Path) -> tuple[World, str]:
    """A copy of the world in which one process was killed in the fourth step."""
    world = whole.world.copied(to)
    places = [i for i, name in enumerate(whole.moments) if name == "after add_noise"]
    killed_at(world, places[3] + 1)
    (run,) = world.runs()
    assert state_of(world, run) == "reserved"
    return world, run


@dataclass
class Started:
    """A running launcher; what it says can be waited for."""

    process: subprocess.Popen[str]
    said: str = ""

    def until(self, words: str) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if words in line:
                return
        raise AssertionError(f"never said {words!r}:\n{self.said}")

    def end(self, *, within_s: float = 60) -> int:
        try:
            out, err = self.process.communicate(timeout=within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"still there after {within_s} s:\n{self.said}") from None
        self.said += err + out
        return self.process.returncode

    def ranks(self) -> list[int]:
        """The processes of its ranks, in order."""
        place = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return sorted(int(pid) for pid in Path(place).read_text().split())


@contextmanager
def launched(
    world: World,
    *arguments: str | Path,
    before: Callable[[], Any] | None = None,
    wrapper: tuple[str, ...] = (),
    **rest: Any,
) -> Iterator[Started]:
    command = [sys.executable, "-c", "from privft.cli import main; main()"]
    workspace = ["--workspace", str(world.folder / "workspace")]
    process = subprocess.Popen(
        [*wrapper, *command, *workspace, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(world.folder)},
        preexec_fn=before,
        **rest,
    )
    with process:  # closes the pipes of one that is killed, too
        try:
            yield Started(process)
        finally:
            process.kill()


def completed(world: World, *arguments: str | Path, **rest: Any) -> Started:
    with launched(world, *arguments, **rest) as started:
        code = started.end(within_s=120)
        assert code == 0, started.said
    return started


# -- the same run ---------------------------------------------------------------------------------


def test_two_ranks_go_on_with_a_hardened_run_of_one_to_the_same_bits(
    tmp_path: Path, hardened: Undisturbed
) -> None:
    world, run = stopped_early(hardened, tmp_path / "world")
    said = completed(world, "train", "--resume", run, "--json", *TWO).said
    assert f'"run": "{run}"' in said
    assert said.count("is trained and sealed") == 1, "one rank speaks"
    assert outcome_of(world, run) == hardened.outcome
    left = {name for name in files_below(world.workspace.run_path(run)) if ".new" not in name}
    assert left - hardened.files == {"ranks.sealed"}


@pytest.mark.slow
def test_another_number_of_ranks_closes_a_run_whose_sums_depend_on_it(
    tmp_path: Path, plain: Undisturbed
) -> None:
    world, run = stopped_early(plain, tmp_path / "world")
    with launched(world, "train", "--resume", run, *TWO) as started:
        assert started.end() == 1
    assert f"run {run} is closed and charged in full: step 2" in started.said
    assert outcome_of(world, run).events == plain.outcome.events
    assert "secret.sealed" not in files_below(world.workspace.run_path(run))


@pytest.mark.slow
def test_a_run_starts_on_two_ranks_and_needs_no_network_but_loopback(
    tmp_path: Path, plain: Undisturbed
) -> None:
    """From the very beginning, checks included, in a namespace where there is nothing else."""
    world = plain.world.copied(tmp_path / "world")
    inside = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        inside = ()
    completed(world, "train", world.folder / "run.plan", *TWO, wrapper=inside)
    (run,) = world.runs()
    assert state_of(world, run) == "trained"
    assert outcome_of(world, run).events == plain.outcome.events
    if not inside:
        pytest.skip("trained, but a network namespace cannot be made here (unshare -n)")


@pytest.mark.slow
def test_a_passphrase_is_asked_for_once_and_reaches_every_rank_unseen(
    tmp_path: Path, hardened: Undisturbed
) -> None:
    world, run = stopped_early(hardened, tmp_path / "world")
    secret = "seven-unlikely-words"
    read, write = os.pipe()
    os.write(write, secret.encode())
    os.close(write)
    add = ("vault", "recipients", "add", "notes", "--recipient-passphrase-fd", str(read))
    world.privft(*add)
    read, write = os.pipe()
    os.write(write, secret.encode())
    os.close(write)
    arguments = ("train", "--resume", run, "--passphrase-fd", str(read), *TWO)
    with launched(world, *arguments, pass_fds=(read,)) as started:
        os.close(read)
        started.until("going on from")
        pids = [started.process.pid, *started.ranks()]
        assert len(pids) == 3
        for pid in pids:
            for name in ("cmdline", "environ"):
                assert secret not in Path(f"/proc/{pid}/{name}").read_text(errors="replace")
        assert started.end() == 0, started.said
    assert outcome_of(world, run) == hardened.outcome


# -- faults ---------------------------------------------------------------------------------------


def goes_on(world: World, run: str, whole: Undisturbed) -> None:
    """The run is charged whole, and two ranks end it as if nothing had been."""
    assert state_of(world, run) == "reserved"
    assert outcome_of(world, run).events == whole.outcome.events
    completed(world, "train", "--resume", run, *TWO)
    assert outcome_of(world, run) == whole.outcome


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_rank_stops_the_run_which_can_be_gone_on_with(
    tmp_path: Path, hardened: Undisturbed, rank: int
) -> None:
    world, run = stopped_early(hardened, tmp_path / "world")
    with launched(world, "train", "--resume", run, *TWO) as started:
        started.until("- step 4 of")
        began = time.monotonic()
        os.kill(started.ranks()[rank], signal.SIGKILL)
        assert started.end() == 1
        assert time.monotonic() - began < 15
    assert "--resume" in started.said
    goes_on(world, run, hardened)


@pytest.mark.slow
def test_a_rank_that_is_stuck_stops_the_run_in_the_stated_time(
    tmp_path: Path, hardened: Undisturbed
) -> None:
    """ranks.timeout_s, and then the 30 s that torchrun gives the stuck one before it kills it."""
    folder = tmp_path / "planned"
    folder.mkdir()
    world = base().copied(folder / "world")
    configured(world, secure=True, timeout_s=4)
    whole = Undisturbed(
        world=world,
        moments=hardened.moments,
        seconds=0,
        outcome=hardened.outcome,
        files=hardened.files,
    )
    world, run = stopped_early(whole, tmp_path / "world")
    with launched(world, "train", "--resume", run, *TWO) as started:
        started.until("- step 4 of")
        began = time.monotonic()
        os.kill(started.ranks()[1], signal.SIGSTOP)
        assert started.end() == 1
        assert 3 < time.monotonic() - began < 4 + 30 + 15
    assert "rank 0 of 2 lost another rank, or waited for it longer than 4 s" in started.said
    goes_on(world, run, hardened)


@pytest.mark.slow
def test_no_rank_outlives_its_launcher(tmp_path: Path, hardened: Undisturbed) -> None:
    world, run = stopped_early(hardened, tmp_path / "world")
    with launched(world, "train", "--resume", run, *TWO) as started:
        started.until("- step 4 of")
        ranks = started.ranks()
        assert len(ranks) == 2
        started.process.kill()
        started.process.wait()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any(alive(pid) for pid in ranks):
            time.sleep(0.05)
        assert not any(alive(pid) for pid in ranks)
    goes_on(world, run, hardened)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_a_full_disk_stops_the_run_which_can_be_gone_on_with(
    tmp_path: Path, hardened: Undisturbed
) -> None:
    """No file may grow beyond a little more than the ledger: a write in the midst of it fails."""
    world, run = stopped_early(hardened, tmp_path / "world")
    full = max(len(data) for data in files_below(world.folder / "workspace").values()) + 4096

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))

    with launched(world, "train", "--resume", run, *TWO, before=limit) as started:
        assert started.end() == 1, started.said
    assert "error: " in started.said
    goes_on(world, run, hardened)


# -- refusals -------------------------------------------------------------------------------------

LINK = "{interface: lo, protected_by: nothing leaves this host}"


def refused(*arguments: str, link: str | None = None, folder: Path) -> str:
    world = World(folder=folder)
    config = world.config()
    config.write_text(config.read_text() + (f"ranks: {{link: {link}}}\n" if link else ""))
    with pytest.raises(UsageError) as error:
        launching._hosts(launching._parsed(arguments), load_config(config))
    return f"{error.value.message} | {error.value.hint}"


@pytest.mark.parametrize(
    ("arguments", "link", "words"),
    [
        (("--nnodes", "2", "--master-addr", "10.0.0.1"), None, "protects the link"),
        (("--nnodes", "2", "--rdzv-backend", "c10d"), LINK, "--node-rank 0"),
        (("--nnodes", "1:4"), LINK, "fixed number of hosts"),
        (("--rdzv-endpoint", "elsewhere:29400"), LINK, "one alone needs no rendezvous"),
        (("--master-addr", "10.0.0.1"), None, "one alone needs no rendezvous"),
        (("--max-restarts", "3"), None, "--max-restarts of torchrun is refused"),
        (("--log-dir", "logs"), None, "writes no logs"),
        (("--tee", "3"), None, "writes no logs"),
        (("-m", "evil"), None, "told to run evil"),
        (("--no-python",), None, "--no-python of torchrun is refused"),
        (("script.py",), None, "told to run script.py"),
    ],
)
def test_what_would_be_unsafe_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], link: str | None, words: str
) -> None:
    assert words in refused(*arguments, link=link, folder=tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [("--standalone",), ("--rdzv-endpoint", "localhost:0"), ("--rdzv-backend", "c10d"), ()],
)
def test_one_host_needs_no_rendezvous(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    config = load_config(World(folder=tmp_path).config())
    assert launching._hosts(launching._parsed(arguments), config) == 1


def test_an_interface_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = World(folder=tmp_path).config()
    link = LINK.replace("lo,", "wg77,")
    path.write_text(path.read_text() + f"ranks: {{link: {link}}}\n")
    with pytest.raises(UsageError, match="no network interface wg77"):
        launching.launch(
            None,  # type: ignore[arg-type]
            ("--nnodes", "2", "--master-addr", "10.0.0.1"),
            load_config(path),
        )


def test_launcher_arguments_need_a_launcher_and_ranks_too(tmp_path: Path) -> None:
    world = World(folder=base().folder)
    done = world.privft("train", "some.plan", "--", "--nproc-per-node", "2", code=2)
    assert "hint: arguments of a launcher need --launcher torchrun" in done.err
    alone = subprocess.run(
        [sys.executable, "-m", "privft.cli.rank"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
    )
    assert alone.returncode == 2
    assert "error: ranks are started by a launcher" in alone.stderr


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ({0: 11, 1: -15}, 11),
        ({0: 1, 1: 13}, 13),
        ({0: 1, 1: 1, 2: -15}, 1),
        ({0: -15, 1: 2}, 2),
        ({0: -15, 1: -9}, "rank 1 was killed by signal 9"),
        ({0: -15, 1: -15}, "rank 0 was killed by signal 15"),
    ],
)
def test_the_launcher_ends_with_the_code_of_the_first_cause(
    codes: dict[int, int], expected: int | str
) -> None:
    if isinstance(expected, int):
        assert launching._code(codes) == expected
    else:
        with pytest.raises(PrivftError, match=expected):
            launching._code(codes)


# -- the report -----------------------------------------------------------------------------------


def test_the_report_says_where_bare_sums_went(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    plan = parse_plan(configured(world, secure=False, link=LINK).read_bytes())
    lines = {
        hosts: facts._limits(plan, [{"ranks": 4, "hosts": hosts}] if hosts else [])
        for hosts in (0, 1, 2)
    }
    assert len(lines[1]) == len(lines[2]) == len(lines[0]) + 1
    assert any("4 processes on one host" in line and "loopback" in line for line in lines[1])
    assert any(
        "4 processes on 2 hosts" in line
        and "before noise was added" in line
        and "protected by: nothing leaves this host." in line
        for line in lines[2]
    )
