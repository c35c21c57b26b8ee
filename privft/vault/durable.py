"""The only writes of a vault to disk: new files, and the atomic change of one file.

A version of a vault is a set of files that never change, named by one signed manifest.  To change
a vault is to write new files, then to replace the manifest by `rename`, then to remove what the new
manifest does not name.  So at every moment the disk holds the old version or the new one, whole:

    before the rename   the new files are strangers, which the next writer sweeps away
    after it            the old files are strangers, which the next writer sweeps away

That holds against power loss too because of the order: every new file is fsynced, then the folder
(so that their names are durable), then the manifest's new text, then the rename, then the folder
again.  Only then is anything removed.

All of it goes through the functions of `os` as this module sees them, so that a test can stop a
process at each of them.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from privft.vault.keys import Hex32, Value

_BUFFER_BYTES = 1 << 20
MANIFEST = "manifest.json"
_MANIFEST_NEW = "manifest.json.new"
LOCK = "lock"


class FileFact(Value):
    """What a manifest says of a file: its name, length and SHA-256."""

    name: str
    size_bytes: int
    sha256: Hex32


@dataclass
class NewFile:
    """A file that is being written: it must not exist before, and is durable after `finish`."""

    path: Path
    _descriptor: int
    _digest: hashlib._Hash
    _pending: bytearray
    size_bytes: int = 0

    @staticmethod
    def create(folder: Path, prefix: str, suffix: str) -> NewFile:
        """A new empty file with a random name and mode 0600."""
        path = folder / f"{prefix}-{secrets.token_hex(8)}{suffix}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return NewFile(path, descriptor, hashlib.sha256(), bytearray())

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append; kept in memory up to 1 MiB."""
        self._pending += data
        self.size_bytes += len(data)
        if len(self._pending) >= _BUFFER_BYTES:
            self._flush()
        return len(data)

    def finish(self) -> FileFact:
        """Write what is pending, make it durable, close."""
        self._flush()
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        return FileFact(
            name=self.path.name, size_bytes=self.size_bytes, sha256=self._digest.hexdigest()
        )

    def remove(self) -> None:
        """Close if need be, and remove: the file was never part of a version."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        os.unlink(self.path)

    def _flush(self) -> None:
        self._digest.update(self._pending)
        view = memoryview(self._pending)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._pending = bytearray()


def replace_manifest(folder: Path, text: bytes) -> None:
    """Make `text` the manifest of the folder: atomically, durably, after all files before it."""
    sync_folder(folder)
    new = folder / _MANIFEST_NEW
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(new, flags, 0o600)
    try:
        view = memoryview(text)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(new, folder / MANIFEST)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def strangers(folder: Path, names: set[str]) -> list[str]:
    """Files in the folder that are neither named nor the manifest or the lock."""
    known = names | {MANIFEST, LOCK}
    return sorted(entry for entry in os.listdir(folder) if entry not in known)


def sweep(folder: Path, names: set[str]) -> list[str]:
    """Remove what an interrupted writer, or an older version, left.  Returns the names."""
    left = strangers(folder, names)
    for name in left:
        os.unlink(folder / name)
    if left:
        sync_folder(folder)
    return left
