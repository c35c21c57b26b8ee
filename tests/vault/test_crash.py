"""A writer killed at each of its system calls, or failed by a full disk, leaves the old version or
the new one, and `verify` says which.

Each case runs in a forked child whose `os`, as `privft.vault.durable` sees it, ends the process
just before its k-th state-changing call, or in the middle of a write.  Nothing is cleaned up: that
is what a kill is like.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privft.errors import InputError, PrivftError
from privft.vault import adding, durable
from privft.vault.intake import Row
from privft.vault.store import Vault
from privft.vault.verify import verify_files
from tests.vault.builders import (
    SIGNED,
    TRUSTED,
    add_rows,
    content,
    new_vault,
    reopen,
    rows,
    ward,
    write_jsonl,
)

CALLS = ("open", "write", "fsync", "rename", "unlink")
KILLED = 77


class Stopped(Exception):
    """The in-process stand-in for a kill, where a test wants to see what cleaning up does."""


class FailingOs:
    """`os`, which fails at its k-th state-changing call."""

    def __init__(self, stop_at: int, how: Callable[[str, tuple[Any, ...]], None]) -> None:
        self.calls = 0
        self._stop_at = stop_at
        self._how = how

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in CALLS:
            return real

        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self._stop_at:
                self._how(name, arguments)
            return real(*arguments)

        return call


def kill(name: str, arguments: tuple[Any, ...]) -> None:
    os._exit(KILLED)


def kill_in_the_middle(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "write":
        os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
    os._exit(KILLED)


def full_disk(name: str, arguments: tuple[Any, ...]) -> None:
    if name != "unlink":
        raise OSError(errno.ENOSPC, "No space left on device")


def create(path: Path) -> None:
    new_vault(path)


def add(path: Path) -> None:
    add_rows(reopen(path), path.parent / "more.jsonl", MORE)


def add_with_spill(path: Path) -> None:
    source = write_jsonl(path.parent / "more.jsonl", MORE)
    adding.add(reopen(path)._state, [source], who="ada", memory_bytes=500, **SIGNED)


def rotate(path: Path) -> None:
    reopen(path).rotate(**SIGNED)


def reencrypt(path: Path) -> None:
    reopen(path).rotate(**SIGNED, reencrypt=True)


def erase(path: Path) -> None:
    reopen(path).erase("p1", who="ada", **SIGNED)


def add_recipient(path: Path) -> None:
    vault = reopen(path)
    vault.add_recipient(ward().model_copy(update={"label": "night"}), **SIGNED)


MORE = rows(12, patients=4, start=100)
OPERATIONS = [create, add, add_with_spill, rotate, reencrypt, erase, add_recipient]


@pytest.fixture(autouse=True)
def plain_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows without the libraries that read files: they start threads, which do not survive fork."""
    import json

    def stream(source: Path, **_: Any) -> Iterator[Row]:
        for number, line in enumerate(source.read_text().splitlines(), start=1):
            yield Row(line=number, columns=json.loads(line))

    monkeypatch.setattr(adding, "stream_rows", stream)


def prepared(folder: Path, operation: Callable[[Path], None]) -> Path:
    path = folder / "v"
    if operation is not create:
        vault = new_vault(path)
        add_rows(vault, folder / "a.jsonl", rows(8, patients=4))
        add_rows(vault, folder / "b.jsonl", rows(2, patients=2, start=50))
        vault.close()
    return path


def state_of(path: Path) -> tuple[int, dict[str, list[str]]] | None:
    """(sequence, content) of the vault, after checking all of it; None when there is none."""
    try:
        verify_files(path, TRUSTED)
    except InputError:
        return None
    with reopen(path) as vault:
        check = vault.verify()
        return check.sequence, content(vault)


def run_in_child(path: Path, operation: Callable[[Path], None], failing: FailingOs) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            durable.os = failing  # type: ignore[assignment]
            operation(path)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def count_calls(folder: Path, operation: Callable[[Path], None], monkeypatch: Any) -> int:
    counting = FailingOs(-1, kill)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", counting)
        operation(folder / "v")
    return counting.calls


@pytest.mark.parametrize(
    ("operation", "how"),
    [
        *((operation, kill_in_the_middle) for operation in OPERATIONS),
        *((operation, kill) for operation in (add, erase)),
        *(
            pytest.param(operation, kill, marks=pytest.mark.slow)
            for operation in OPERATIONS
            if operation not in (add, erase)
        ),
    ],
)
def test_a_kill_leaves_the_old_version_or_the_new(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[Path], None],
    how: Callable[[str, tuple[Any, ...]], None],
) -> None:
    template = tmp_path / "template"
    template.mkdir()
    path = prepared(template, operation)
    old = state_of(path)
    after = tmp_path / "after"
    shutil.copytree(template, after)
    calls = count_calls(after, operation, monkeypatch)
    new = state_of(after / "v")
    assert new is not None
    assert new != old
    seen = []
    for stop_at in range(1, calls + 1):
        folder = tmp_path / f"case-{stop_at}"
        shutil.copytree(template, folder)
        assert run_in_child(folder / "v", operation, FailingOs(stop_at, how)) == KILLED
        found = state_of(folder / "v")
        assert found in (old, new), stop_at
        seen.append(found == new)
        # whatever it was, the next writer carries on, and nothing is left over
        if found is None:
            new_vault(folder / "v").close()
        else:
            with reopen(folder / "v") as vault:
                vault.rotate(**SIGNED)
                assert vault.verify().strangers == ()
                assert content(vault) == found[1]
    assert calls > 10
    # one moment in time divides the old from the new
    assert seen == sorted(seen)
    assert not seen[0]
    assert seen[-1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_full_disk_leaves_the_old_version_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: Callable[[Path], None]
) -> None:
    template = tmp_path / "template"
    template.mkdir()
    old = state_of(prepared(template, operation))
    after = tmp_path / "after"
    shutil.copytree(template, after)
    calls = count_calls(after, operation, monkeypatch)
    new = state_of(after / "v")
    for stop_at in range(1, calls + 1):
        folder = tmp_path / f"case-{stop_at}"
        shutil.copytree(template, folder)
        failing = FailingOs(stop_at, full_disk)
        with monkeypatch.context() as patch:
            patch.setattr(durable, "os", failing)
            try:
                operation(folder / "v")
                done = True
            except (OSError, PrivftError):
                done = False
        found = state_of(folder / "v")
        assert found in (old, new), stop_at
        assert not done or found == new
        if found is not None:
            with reopen(folder / "v") as vault:
                # the failed writer has cleaned up after itself
                assert vault.verify().strangers == () or found == new, stop_at


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    path = prepared(tmp_path, add)
    before = len(reopen(path))
    children = []
    for serial in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with reopen(path) as vault:
                    items = rows(3, patients=3, start=1000 + 10 * serial)
                    for item in items:
                        item["patient"] = f"q{item['id']}"
                    add_rows(vault, tmp_path / f"w{serial}.jsonl", items)
                code = 0
            except PrivftError:
                code = 3
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(codes) <= {0, 3}
    assert 0 in codes
    with reopen(path) as vault:
        assert len(vault) == before + 3 * codes.count(0)
        vault.verify()


def test_a_vault_object_survives_its_failed_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = prepared(tmp_path, add)
    vault: Vault = reopen(path)
    before = content(vault)

    def fail(name: str, arguments: tuple[Any, ...]) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(durable, "os", FailingOs(5, fail))
        with pytest.raises(Stopped):
            add_rows(vault, tmp_path / "more.jsonl", MORE)
    assert content(vault) == before
    add_rows(vault, tmp_path / "more.jsonl", MORE)
    assert vault.verify().records == 22
