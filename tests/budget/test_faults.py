"""What kills, full disks, failing disks, crowds and flipped bits do to a ledger."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from privft.budget.filter import Cap, admit, fits
from privft.budget.ledger import Ledger
from privft.errors import BudgetExceeded, IntegrityError, PlanError, PrivftError
from tests.budget.samples import (
    CAP,
    LINEAGE,
    LOG_KEY,
    mechanism,
    new_ledger,
    reserve,
    run_to_the_end,
    step_digest,
)

PTRACE_TRACEME, PTRACE_SYSCALL, PTRACE_SETOPTIONS, EXIT_KILL = 0, 24, 0x4200, 0x100000


def open_at(path: Path) -> Ledger:
    return Ledger.open(path, log_key=LOG_KEY)


def settle_first(ledger: Ledger) -> None:
    ledger.settle(
        next(iter(ledger.runs())).run,
        actor="ann",
        outcome="completed",
        reason="done",
        steps_drawn=2,
        adapter=None,
    )


def journal_first(ledger: Ledger) -> None:
    ledger.journal(next(iter(ledger.runs())).run, 2, step_digest(2))


def reserve_one(ledger: Ledger) -> None:
    reserve(ledger, steps=40)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A ledger with one open run of ten steps, two of them journalled."""
    with new_ledger(tmp_path) as ledger:
        run = reserve(ledger, steps=10).body["run"]
        for step in range(2):
            ledger.journal(run, step, step_digest(step))
    return tmp_path / "ledger.db"


def stopped_child(path: Path, act: Callable[[Ledger], None], done: int) -> int:
    """A child that has opened the ledger and waits, traced, to do `act`; then writes to `done`."""
    child = os.fork()
    if child == 0:
        try:
            ledger = open_at(path)
            if ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_TRACEME, 0, None, None) != 0:
                os._exit(3)
            os.kill(os.getpid(), signal.SIGSTOP)
            act(ledger)
            os.write(done, b"!")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(4)
    return child


def kill_at(path: Path, act: Callable[[Ledger], None], boundary: int) -> tuple[bool, bool]:
    """Kill a child at the n-th entry into or return from a system call of `act`.

    Returns whether it was killed (and had not come to its end first), and whether `act` returned.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    read_end, write_end = os.pipe()
    child = stopped_child(path, act, write_end)
    os.close(write_end)
    try:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            pytest.skip("this machine does not allow tracing of processes")
        libc.ptrace(PTRACE_SETOPTIONS, child, None, ctypes.c_void_p(EXIT_KILL))
        for _ in range(boundary):
            libc.ptrace(PTRACE_SYSCALL, child, None, None)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                return False, os.read(read_end, 1) == b"!"
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return True, os.read(read_end, 1) == b"!"
    finally:
        os.close(read_end)


@pytest.mark.parametrize("act", [reserve_one, journal_first, settle_first])
def test_a_kill_at_any_system_call_leaves_all_or_nothing(
    prepared: Path, tmp_path: Path, act: Callable[[Ledger], None]
) -> None:
    with open_at(prepared) as ledger:
        before, old = ledger.budget(LINEAGE), ledger.checkpoint()
        steps = len(ledger.journal_entries(next(iter(ledger.runs())).run))
    complete = tmp_path / "complete.db"
    shutil.copy(prepared, complete)
    with open_at(complete) as ledger:
        act(ledger)
        after = ledger.budget(LINEAGE)
    outcomes, boundary, killed = set(), 0, True
    while killed:
        boundary += 1
        trial = tmp_path / "trial" / "ledger.db"
        trial.parent.mkdir()
        shutil.copy(prepared, trial)
        killed, returned = kill_at(trial, act, boundary)
        with open_at(trial) as ledger:
            assert ledger.verify([old]).known == 1
            view = ledger.budget(LINEAGE)
            journalled = len(ledger.journal_entries(next(iter(ledger.runs())).run))
            happened = view != before or journalled != steps
            assert view.digest in (before.digest, after.digest)
            assert happened or not returned, "returned, and is not there"
            outcomes.add(happened)
            reserve(ledger, steps=1)  # the lock was given back
        shutil.rmtree(trial.parent)
    assert boundary > 20
    assert outcomes == {False, True}


def in_child(act: Callable[[], None]) -> int:
    """The exit code of a child that does `act`: 0 done, 7 a privft error, 8 anything else."""
    child = os.fork()
    if child == 0:
        code = 8
        try:
            act()
            code = 0
        except IntegrityError:
            traceback.print_exc()
        except PrivftError:
            code = 7
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_file_that_may_not_grow_refuses_and_stays_whole(prepared: Path) -> None:
    """RLIMIT_FSIZE at every size: the write that does not fit fails, wherever it is."""
    codes = set()
    for limit in range(0, 60_000, 1500):

        def act(limit: int = limit) -> None:
            with open_at(prepared) as ledger:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                reserve(ledger, steps=1)

        with open_at(prepared) as ledger:
            before = len(ledger.runs())
        codes.add(code := in_child(act))
        with open_at(prepared) as ledger:
            ledger.verify()
            assert len(ledger.runs()) - before == (code == 0)
    assert codes == {0, 7}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this machine lets us mount one."""
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(point)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield point
    subprocess.run(["umount", str(point)], check=True)


def test_a_full_disk_refuses_and_stays_whole(small_disk: Path) -> None:
    with new_ledger(small_disk) as ledger:
        run = reserve(ledger, steps=10).body["run"]
        filler = small_disk / "filler"
        space = os.statvfs(small_disk)
        filler.write_bytes(bytes(space.f_bavail * space.f_frsize))
        with pytest.raises(PrivftError, match="full"):  # noqa: PT012
            for _ in range(50):
                reserve(ledger, steps=1)
        filler.unlink()
        ledger.verify()
        ledger.journal(run, 0, step_digest(0))
        assert len(ledger.journal_entries(run)) == 1


def test_a_read_only_disk_is_read_and_verified_and_never_written(small_disk: Path) -> None:
    with new_ledger(small_disk) as ledger:
        run_to_the_end(ledger)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with Ledger.open(small_disk / "ledger.db", log_key=LOG_KEY.public) as reader:
        assert reader.verify().runs == 1
    with pytest.raises(PrivftError) as caught, open_at(small_disk / "ledger.db") as ledger:
        reserve(ledger)
    assert not isinstance(caught.value, IntegrityError)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to fail a system call")
@pytest.mark.parametrize("when", [1, 2, 3, 9])
def test_a_failing_fsync_is_an_error_and_never_a_reservation(prepared: Path, when: int) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.budget.samples import *\n"
        "from privft.errors import PrivftError\n"
        f"ledger = Ledger.open(Path({str(prepared)!r}), log_key=LOG_KEY)\n"
        "try: reserve(ledger, steps=1)\n"
        "except PrivftError as error: sys.exit(f'refused: {error}')\n"
    )
    inject = f"inject=fsync,fdatasync:error=EIO:when={when}+"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fsync,fdatasync", "-e", inject]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    with open_at(prepared) as ledger:
        ledger.verify()
        runs = len(ledger.runs())
    refused = "refused: the disk that holds the ledger failed" in done.stderr
    assert runs == (1 if refused else 2), done.stderr
    assert refused or when > 1, "a reservation does not wait for the disk"
    assert not refused or when < 9, "a reservation waits for the disk once or twice"


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to fail a system call")
@pytest.mark.parametrize("act", [journal_first, settle_first])
def test_a_failing_fsync_records_no_step_and_no_settlement(
    prepared: Path, act: Callable[[Ledger], None]
) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.budget import test_faults as faults\n"
        f"ledger = faults.open_at(Path({str(prepared)!r}))\n"
        f"try: faults.{act.__name__}(ledger)\n"
        "except faults.PrivftError as error: sys.exit(f'refused: {error}')\n"
    )
    inject = "inject=fsync,fdatasync:error=EIO"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fsync,fdatasync", "-e", inject]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "refused: the disk that holds the ledger failed" in done.stderr
    with open_at(prepared) as ledger:
        ledger.verify()
        (record,) = ledger.runs()
        assert record.settled is None
        assert len(ledger.journal_entries(record.run)) == 2


CROWD = 32


def test_a_crowd_reserving_at_once_never_exceeds_the_cap(tmp_path: Path) -> None:
    cap = Cap(epsilon=3.0, delta=1e-6)
    with new_ledger(tmp_path, cap=cap):
        pass
    event = mechanism(steps=10, noise=2.0).event()
    room = fits(cap, [], event)
    assert CROWD < room < 4 * CROWD
    children = []
    for number in range(CROWD):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with open_at(tmp_path / "ledger.db") as ledger:
                    count = 0
                    with suppress(BudgetExceeded):
                        while True:
                            reserve(ledger, steps=10, noise=2.0, cap=cap)
                            count += 1
                (tmp_path / f"count-{number}").write_text(str(count))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    assert not any(os.waitpid(child, 0)[1] for child in children)
    counts = [int((tmp_path / f"count-{number}").read_text()) for number in range(CROWD)]
    with open_at(tmp_path / "ledger.db") as ledger:
        view = ledger.budget(LINEAGE)
        assert sum(counts) == view.runs == room
        assert ledger.verify().runs == room
    assert view.epsilon_spent <= cap.epsilon
    assert not admit(cap, view.reserved, [event]).admitted


def test_two_processes_with_one_plan_get_one_run(tmp_path: Path) -> None:
    """Both are held until both have read the ledger and found the plan unused."""
    with new_ledger(tmp_path):
        pass
    for number in range(8):
        plan = f"{number:064x}"
        start_read, start_write = os.pipe()
        ready_read, ready_write = os.pipe()
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                code = 8
                try:
                    os.close(start_write)
                    with open_at(tmp_path / "ledger.db") as ledger:
                        assert ledger.run_of_plan(plan) is None
                        os.write(ready_write, b"1")
                        os.read(start_read, 1)  # until the parent lets go of both
                        reserve(ledger, steps=1, plan=plan)
                        code = 0
                except PlanError:
                    code = 7
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        os.close(start_read)
        os.close(ready_write)  # a child that dies before it is ready ends the wait
        with open(ready_read, "rb") as ready:
            assert ready.read(2) == b"11"
        os.close(start_write)
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        assert codes == [0, 7]
    with open_at(tmp_path / "ledger.db") as ledger:
        assert ledger.verify().runs == 8


def flip_bytes(path: Path, tmp_path: Path, positions: range, mask: int) -> tuple[int, int]:
    """Flip one byte at a time: (how often it was noticed, how often it changed nothing)."""
    original = path.read_bytes()
    with open_at(path) as ledger:
        expected = ledger.export(), ledger.budget(LINEAGE), ledger.runs()
    noticed = harmless = 0
    trial = tmp_path / "flipped.db"
    for at in positions:
        trial.write_bytes(original[:at] + bytes([original[at] ^ mask]) + original[at + 1 :])
        try:
            with open_at(trial) as ledger:
                ledger.verify()
                assert (ledger.export(), ledger.budget(LINEAGE), ledger.runs()) == expected, at
            harmless += 1
        except PrivftError:
            noticed += 1
        for rest in tmp_path.glob("flipped.db-*"):
            rest.unlink()
    return noticed, harmless


def test_a_flipped_byte_is_noticed_or_changes_nothing(prepared: Path, tmp_path: Path) -> None:
    with open_at(prepared) as ledger:
        run_to_the_end(ledger)
    noticed, harmless = flip_bytes(prepared, tmp_path, range(0, prepared.stat().st_size, 61), 0x01)
    assert noticed > 50
    assert harmless > 50  # free space in pages


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed_or_changes_nothing(
    prepared: Path, tmp_path: Path, mask: int
) -> None:
    with open_at(prepared) as ledger:
        run_to_the_end(ledger)
    size = prepared.stat().st_size
    noticed, harmless = flip_bytes(prepared, tmp_path, range(size), mask)
    assert noticed + harmless == size


def test_the_cap_of_the_samples_admits_what_these_tests_need() -> None:
    assert fits(CAP, [], mechanism(steps=60).event()) > 3
