"""A file of the vault, read once from front to back and held against the SHA-256 of the manifest.

Hashing what is read, as it is read, leaves no moment between the check and the use, and costs no
second look at the disk.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from privft.errors import IntegrityError
from privft.vault.durable import FileFact


class Digested(io.RawIOBase):
    """A file, and the digest of what was read of it so far, which an Opener reads in order."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def readinto(self, buffer: Any, /) -> int | None:
        """As of the file."""
        count = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """As of the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of the file."""
        return self._file.tell()


@contextmanager
def digested(folder: Path, fact: FileFact) -> Iterator[Digested]:
    """The file of a fact, opened for reading all of it.

    Guarantees: ends with IntegrityError unless what was read has the SHA-256 of the fact; so
    nothing that was read may be acted on before the end.
    """
    with (folder / fact.name).open("rb", buffering=0) as file:
        source = Digested(file)
        yield source
        if source.digest.hexdigest() != fact.sha256:
            raise IntegrityError(f"file {fact.name} is not the one that the manifest signs")
