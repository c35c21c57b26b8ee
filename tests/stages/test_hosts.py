"""Two hosts, which are two network namespaces with a wire between them: one run, and a cut wire.

Each host runs the command that its operator types.  The wire is called wg0 on both, as the config
says; the workspace is on a file system that both see, so that the ledger is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stages.test_crash import Undisturbed, outcome_of, state_of
from tests.stages.test_ranked import (
    configured,
    goes_on,
    launched,
    stopped_early,
    undisturbed_of,
)
from tests.stages.world import base

pytestmark = pytest.mark.slow
LINK = "{interface: wg0, protected_by: a wire between two namespaces}"
MASTER = ("--master-addr", "10.77.0.1", "--master-port", "29517")
TIMEOUT_S = 6


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two namespaces with addresses 10.77.0.1 and 10.77.0.2 on wg0."""
    names = (f"privft-a-{os.getpid()}", f"privft-b-{os.getpid()}")
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    made: list[str] = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip("-n", names[0], "link", "add", "wg0", "type", "veth", "peer", "name", "wg0",
               "netns", names[1])  # fmt: skip
        except subprocess.CalledProcessError:
            pytest.skip("network namespaces cannot be made here (ip netns add)")
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "wg0")
            for device in ("lo", "wg0"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("hosts")
    world = base().copied(folder / "before")
    configured(world, secure=True, timeout_s=TIMEOUT_S, link=LINK)
    return undisturbed_of(world, folder)


def on_host(number: int, *command: str | Path) -> tuple[str | Path, ...]:
    torchrun = ("--nnodes", "2", "--node-rank", str(number), *MASTER, "--nproc-per-node", "1")
    return (*command, "--launcher", "torchrun", "--", *torchrun, "--shutdown-timeout", "2")


def inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


def test_two_hosts_go_on_with_a_run_to_the_same_bits(
    tmp_path: Path, whole: Undisturbed, hosts: tuple[str, str]
) -> None:
    world, run = stopped_early(whole, tmp_path / "world")
    first = on_host(0, "train", "--resume", run)
    second = on_host(1, "train", world.folder / "run.plan")
    with (
        launched(world, *first, wrapper=inside(hosts[0])) as a,
        launched(world, *second, wrapper=inside(hosts[1])) as b,
    ):
        assert a.end(within_s=120) == 0, a.said
        assert b.end(within_s=60) == 0, b.said
    assert "is trained and sealed" in a.said
    assert "is trained and sealed" not in b.said
    assert outcome_of(world, run) == whole.outcome


def test_a_host_that_is_cut_off_stops_the_run_in_the_stated_time(
    tmp_path: Path, whole: Undisturbed, hosts: tuple[str, str]
) -> None:
    world, run = stopped_early(whole, tmp_path / "world")
    first = on_host(0, "train", "--resume", run)
    second = on_host(1, "train", world.folder / "run.plan")
    with (
        launched(world, *first, wrapper=inside(hosts[0])) as a,
        launched(world, *second, wrapper=inside(hosts[1])) as b,
    ):
        a.until("- step 4 of")
        ip("-n", hosts[1], "link", "set", "wg0", "down")
        began = time.monotonic()
        assert a.end(within_s=60) == 1, a.said
        assert b.end(within_s=60) == 1, b.said
        assert time.monotonic() - began < TIMEOUT_S + 2 + 15
    assert "lost another rank, or waited for it longer than 6 s" in a.said
    assert state_of(world, run) == "reserved"
    goes_on(world, run, whole)
