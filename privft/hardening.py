"""What the process forbids itself before it touches anything sensitive.

    network      a Python audit hook refuses every socket that is not local (AF_UNIX) and every
                 name look-up; libraries are told to stay offline, so that they do not even try
    core dumps   switched off, and the process is marked as not dumpable (Linux)
    files        created for the owner only (umask 077)
    swap         all memory of the process is locked (mlockall), page by page as it is first used,
                 where the system allows that without a limit: CAP_IPC_LOCK or an unlimited
                 RLIMIT_MEMLOCK.  Python copies bytes as it likes, so locking the pages of single
                 keys would promise what it cannot keep: it is everything, opened records included,
                 or nothing.  Where it is nothing, `privft doctor` says so beside its look at swap

An audit hook cannot be taken off again, which is the point.  It binds Python code, not a native
library that opens a socket by itself; tests run the whole path under strace and in a network
namespace for that.  So there is no exception in it for a run on several ranks: torch's process
groups are native, and `stages.launching` binds them to the loopback device or to the interface and
the rendezvous that the operator named, which the same tests watch.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import warnings
from typing import Any

from privft.errors import PrivftError

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_CAP_IPC_LOCK = 14
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


_locked = False


class NetworkRefused(PrivftError):
    """Something in the process tried to reach a network."""


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"):
        if getattr(arguments[0], "family", None) == socket.AF_UNIX:
            return
    elif event not in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        return
    raise NetworkRefused(
        f"something in this process tried to use the network ({event})",
        hint="privft never does; please report which command did",
    )


def lock_memory() -> bool:
    """Keep every page of this process, present and future, out of swap; whether that worked.

    Only where there is no limit: beyond one, later allocations would fail in the midst of a run.
    """
    if sys.platform != "linux" or not _may_lock_all():
        return False
    everything = _MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT
    return bool(ctypes.CDLL(None, use_errno=True).mlockall(everything) == 0)


def memory_is_locked() -> bool:
    """Whether pages of this process are locked, as they all are after `lock_memory` worked."""
    return not _status("VmLck").startswith("0")


def _may_lock_all() -> bool:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        return True
    return bool(int(_status("CapEff"), 16) >> _CAP_IPC_LOCK & 1)


def _status(name: str) -> str:
    """A line of what Linux says of this process; "0" where it says nothing."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            lines = dict(line.split(":", 1) for line in status if ":" in line)
    except FileNotFoundError:
        lines = {}
    return lines.get(name, "0").strip()


def die_with(parent: int) -> None:
    """Have the system kill this process when the one that started it, `parent`, ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that
        os.kill(os.getpid(), signal.SIGKILL)


def lock_down() -> None:
    """Apply all of the module's docstring to this process, for good.  Twice is as good as once."""
    global _locked
    os.umask(0o077)
    os.environ.update(_OFFLINE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    lock_memory()
    if not _locked:
        sys.addaudithook(_refuse_network)
        _locked = True
    # Deprecation notes of libraries among each other are nothing for an operator to act on.
    warnings.simplefilter("ignore")
