"""What the process forbids itself before it touches anything sensitive.

    network      a Python audit hook refuses every socket that is not local (AF_UNIX) and every
                 name look-up; libraries are told to stay offline, so that they do not even try
    core dumps   switched off, and the process is marked as not dumpable (Linux)
    files        created for the owner only (umask 077)

An audit hook cannot be taken off again, which is the point.  It binds Python code, not a native
library that opens a socket by itself; tests run the whole path under strace and in a network
namespace for that.
"""

from __future__ import annotations

import ctypes
import os
import resource
import socket
import sys
import warnings
from typing import Any

from privft.errors import PrivftError

_PR_SET_DUMPABLE = 4
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


def lock_down() -> None:
    """Apply all of the module's docstring to this process, for good.  Twice is as good as once."""
    global _locked
    os.umask(0o077)
    os.environ.update(_OFFLINE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if not _locked:
        sys.addaudithook(_refuse_network)
        _locked = True
    # Deprecation notes of libraries among each other are nothing for an operator to act on.
    warnings.simplefilter("ignore")
