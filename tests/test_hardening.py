"""What a locked-down process cannot do any more, each tried in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from privft import doctor

ROOT = Path(__file__).resolve().parent.parent


def locked(code: str) -> Any:
    """The JSON that `code` prints after `lock_down` (twice, which must be as good as once)."""
    script = (
        f"import json, os, socket\nfrom privft.hardening import *\nlock_down()\nlock_down()\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


TRY = """
def outcome():
    try:
        {attempt}
    except NetworkRefused as error:
        return [error.exit_code, error.message]
    except OSError as error:
        return "tried"
    return "done"
print(json.dumps(outcome()))
"""


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', 9), timeout=1)",
        "socket.socket().connect(('127.0.0.1', 9))",
        "socket.socket().connect_ex(('127.0.0.1', 9))",
        "socket.socket().bind(('127.0.0.1', 0))",
        "socket.socket(socket.AF_INET6).connect(('::1', 9))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('127.0.0.1', 9))",
        "socket.getaddrinfo('example.org', 80)",
        "socket.gethostbyname('example.org')",
        "socket.gethostbyaddr('127.0.0.1')",
        "__import__('urllib.request').request.urlopen('http://127.0.0.1:9')",
    ],
)
def test_no_network_is_reached_or_even_tried(attempt: str) -> None:
    code, message = locked(TRY.format(attempt=attempt))
    assert code == 1
    assert "tried to use the network" in message


def test_local_sockets_still_work(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    attempt = (
        f"a = socket.socket(socket.AF_UNIX); a.bind({path!r}); a.listen(); "
        f"b = socket.socket(socket.AF_UNIX); b.connect({path!r}); b.sendmsg([b'x']); "
        "c, d = socket.socketpair(); c.sendall(b'x'); assert d.recv(1) == b'x'"
    )
    assert locked(TRY.format(attempt=attempt)) == "done"


def test_no_core_is_dumped_and_nobody_attaches() -> None:
    found = locked(
        "import ctypes, resource\n"
        "print(json.dumps([resource.getrlimit(resource.RLIMIT_CORE),"
        " ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)]))"
    )
    assert found == [[0, 0], 0]


def test_files_are_for_the_owner_only(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    mode = locked(f"open({path!r}, 'w').close()\nprint(os.stat({path!r}).st_mode & 0o777)")
    assert mode == 0o600


def test_libraries_are_told_to_stay_offline() -> None:
    found = locked("print(json.dumps(dict(os.environ)))")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert found[name] == "1"


def test_all_memory_is_locked_where_the_system_allows_it() -> None:
    """VmLck counts locked pages; without the right to lock there are none, and it is said."""
    allowed, locked_kib, grown_kib = locked(
        "def locked_kib():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(l.split()[1] for l in lines if l.startswith('VmLck')))\n"
        "before = locked_kib()\n"
        "data = bytearray(32 << 20)\n"
        "data[::4096] = bytes(len(data[::4096]))\n"
        "print(json.dumps([memory_is_locked(), before, locked_kib()]))"
    )
    if allowed:
        assert locked_kib > 1000
        assert grown_kib >= locked_kib + (32 << 10)
    else:
        assert locked_kib == 0


def test_memory_is_not_locked_against_a_limit() -> None:
    """With a limit, later allocations would fail: then nothing is locked and all goes on."""
    script = (
        "import json, resource, privft.hardening as h\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 16, 1 << 16))\n"
        "h._CAP_IPC_LOCK = 63\n"
        "print(json.dumps([h.lock_memory(), len(bytearray(64 << 20))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert json.loads(done.stdout) == [False, 64 << 20]


HEAD = "Filename\tType\tSize\tUsed\tPriority\n"


def block_devices(folder: Path) -> Path:
    """A disk, dm-crypt on it (dm-0), plain LVM on it (dm-1), LVM on dm-crypt (dm-2), and zram."""
    mapped = {"dm-0": ("CRYPT-LUKS2-ab", "sda3"), "dm-1": ("LVM-cd", "sda2")}
    mapped["dm-2"] = ("LVM-ef", "dm-0")
    for name, (uuid, beneath) in mapped.items():
        (folder / name / "dm").mkdir(parents=True)
        (folder / name / "dm" / "uuid").write_text(f"{uuid}\n")
        (folder / name / "slaves" / beneath).mkdir(parents=True)
    for name, backing in (("zram0", "none"), ("zram1", "/dev/sda4")):
        (folder / name).mkdir()
        (folder / name / "backing_dev").write_text(f"{backing}\n")
    return folder


@pytest.mark.parametrize(
    ("swaps", "locked", "verdict"),
    [
        (HEAD, False, "ok"),
        (HEAD + "/dev/zram0 partition 1 0 5\n/dev/dm-0 partition 1 0 5\n", False, "ok"),
        (HEAD + "/dev/dm-2 partition 1 0 5\n", False, "ok"),
        (HEAD + "/dev/dm-1 partition 1 0 5\n", False, "warning"),
        (HEAD + "/dev/dm-9 partition 1 0 5\n", False, "warning"),
        (HEAD + "/dev/zram1 partition 1 0 5\n", False, "warning"),
        (HEAD + "/dev/zram0 partition 1 0 5\n/dev/sda2 partition 1 0 -2\n", False, "warning"),
        (HEAD + "/swapfile file 1 0 -2\n", False, "warning"),
        (HEAD + "/swapfile file 1 0 -2\n", True, "ok"),
    ],
)
def test_the_doctor_warns_of_swap_that_is_neither_encrypted_nor_kept_out_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: str, locked: bool, verdict: str
) -> None:
    path = tmp_path / "swaps"
    path.write_text(swaps)
    monkeypatch.setattr(doctor, "_SWAPS", path)
    monkeypatch.setattr(doctor, "_BLOCK_DEVICES", block_devices(tmp_path / "block"))
    monkeypatch.setattr(doctor, "memory_is_locked", lambda: locked)
    (found,) = (finding for finding in doctor.examine(None) if finding.check == "swap")
    assert found.verdict == verdict
    assert (found.hint is None) == (verdict == "ok")
    assert all(name in found.detail for name in ("sda2", "swapfile") if name in swaps)
