"""Where a ledger's bytes lie: a small interface, and SQLite behind it (PostgreSQL: `postgres`).

A store keeps three things and understands none of them: entries (position -> bytes), the journal
of steps ((run, step) -> 32 bytes), and two signed notes (`checkpoint` and `journal`).  All rules
live in `ledger`; all trust comes from hashes and signatures, never from the database.

The SQLite file is in WAL mode with synchronous=FULL: a transaction that was committed survives a
crash of the process, the system and the power.  Writers take the one writer lock *before* they read
(BEGIN IMMEDIATE), so what was read is still true when it is written; readers see one moment and
block nobody.  Network file systems do not keep SQLite's locks and are refused.  The file and its
-wal and -shm companions are readable by their owner alone (0600).

    entries(position INTEGER PRIMARY KEY, bytes BLOB)      append-only, triggers refuse the rest
    journal(run BLOB, step INTEGER, digest BLOB)           append-only as well
    head(name TEXT PRIMARY KEY, note BLOB)                 the two newest signed notes

A new ledger is written under a temporary name and moved into place whole, so there is never half
of one.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from privft.budget.rows import Note, SqlTransaction
from privft.errors import InputError, IntegrityError, OrderError, PrivftError

APPLICATION_ID = 0x70726966  # "prif": how a ledger is told from any other SQLite file
FORMAT = 1
BUSY_S = 120.0
NETWORK_FILE_SYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|ncpfs|9p|afs|afp|ceph|glusterfs|lustre|gpfs|beegfs|ocfs2|gfs2|davfs|coda"
    r"|virtiofs|vboxsf|vmhgfs|prl_fs|orangefs|pvfs2|panfs|wekafs|quobyte|mfs"
    # a program that answers as a file system may be anything; these are known to be local
    r"|fuse(\.(?!(gocryptfs|encfs|cryfs|ext2|fuse2fs|ntfs-3g|exfat)$).*)?"
)
_OCTAL = re.compile(rb"\\([0-7]{3})")  # how the kernel writes a space in a mount point
_SCHEMA = {
    "entries": "CREATE TABLE entries (position INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
    "journal": "CREATE TABLE journal (run BLOB NOT NULL, step INTEGER NOT NULL, "
    "digest BLOB NOT NULL, PRIMARY KEY (run, step)) WITHOUT ROWID",
    "head": "CREATE TABLE head (name TEXT PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID",
} | {
    f"{table}_{verb}": f"CREATE TRIGGER {table}_{verb} BEFORE {verb.upper()} ON {table} "
    f"BEGIN SELECT RAISE(ABORT, 'the ledger only grows'); END"
    for table in ("entries", "journal")
    for verb in ("update", "delete")
}


class Transaction(Protocol):
    """What `ledger` does inside one transaction."""

    def entries(self, start: int) -> Iterator[tuple[int, bytes]]:
        """(position, bytes) from `start` on, in order of position."""

    def entry(self, position: int) -> bytes:
        """The bytes at one position; raises `IntegrityError` when there are none."""

    def append(self, position: int, data: bytes) -> None:
        """Add an entry."""

    def note(self, name: Note) -> str:
        """A signed note."""

    def set_note(self, name: Note, note: str) -> None:
        """Replace a signed note."""

    def journal(self, run: str) -> list[tuple[int, bytes]]:
        """(step, digest) of a run, in order of step."""

    def journal_runs(self) -> list[str]:
        """The runs that have a journal."""

    def add_journal(self, run: str, step: int, digest: bytes) -> None:
        """Add a step."""


class Store(Protocol):
    """One open place, in one process and one thread."""

    def transaction(self, *, write: bool) -> AbstractContextManager[Transaction]:
        """All or nothing; `write` takes the writer lock before anything is read."""

    def check_storage(self) -> None:
        """What the place itself can check; raises `IntegrityError`."""

    def close(self) -> None:
        """Give it back."""


def file_system_of(path: Path, mounts: str) -> str:
    """The type of the file system that holds `path`, from the text of /proc/self/mountinfo."""
    target = path.resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        fields = head.split(" ")
        if len(fields) < 5 or not tail:
            continue
        plain = _OCTAL.sub(lambda found: bytes([int(found[1], 8)]), os.fsencode(fields[4]))
        point = Path(os.fsdecode(plain))
        # the last line that mounts a point is the one on top
        if target.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), tail.split(" ")[0]
    return kind


def refuse_network_file_system(path: Path) -> None:
    """Raise `InputError` unless `path` lies on a file system of this machine."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(
            f"cannot tell which file system holds {path.name}",
            hint="a ledger needs Linux with /proc mounted",
        ) from error
    kind = file_system_of(path, mounts)
    if NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise InputError(
            f"{path.name} lies on a network file system ({kind}), which does not keep locks",
            hint="put the workspace on a local disk",
        )


@contextmanager
def _translated() -> Iterator[None]:
    """SQLite's errors as privft's: damage is an `IntegrityError`, circumstances are not."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes damaged names in what it says
        raise IntegrityError("the ledger's file is damaged: a name in it is not text") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 1) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise PrivftError(
                f"another process held the ledger for {BUSY_S:g} s", hint="try again"
            ) from error
        circumstances = {
            sqlite3.SQLITE_FULL: "the disk that holds the ledger is full",
            sqlite3.SQLITE_READONLY: "the ledger cannot be written",
            sqlite3.SQLITE_IOERR: "the disk that holds the ledger failed",
            sqlite3.SQLITE_CANTOPEN: "the ledger cannot be opened",
            sqlite3.SQLITE_PERM: "the ledger may not be read",
            sqlite3.SQLITE_NOMEM: "no memory to read the ledger",
        }
        if code in circumstances:
            raise PrivftError(
                circumstances[code], hint="nothing was recorded; nothing may run until it can be"
            ) from error
        raise IntegrityError(f"the ledger's file is damaged: {error}") from error


class SqliteTransaction(SqlTransaction):
    """See `Transaction`."""

    place = "file"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
        return self._connection.execute(statement, values)

    def entries(self, start: int) -> Iterator[tuple[int, bytes]]:
        """See `Transaction`."""
        rows = self._connection.execute(
            "SELECT position, bytes FROM entries WHERE position >= ? ORDER BY position", (start,)
        )
        for position, data in rows:
            if type(data) is not bytes:  # spelt out: a hundred thousand names would be made
                self._blob(data, f"entry {position}")
            yield position, data


class SqliteStore:
    """One open SQLite file, in one process and one thread."""

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        if not path.is_file():
            raise InputError(f"no ledger at {path.name}", hint="privft init makes a workspace")
        refuse_network_file_system(path)
        with _translated():
            self._connection = _connect(path, writable=writable)
        self._process = os.getpid()
        self.path = path

    @staticmethod
    def create(path: Path, data: bytes, checkpoint: str, journal: str) -> None:
        """A new file with the first entry and both notes, complete or not there at all."""
        refuse_network_file_system(path.parent)
        if path.exists():
            raise OrderError(f"{path.name} exists already")
        fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            with _translated(), closing(sqlite3.connect(fresh, isolation_level=None)) as connection:
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                connection.execute(f"PRAGMA user_version = {FORMAT}")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.values():
                    connection.execute(statement)
                transaction = SqliteTransaction(connection)
                transaction.append(0, data)
                transaction.set_note("checkpoint", checkpoint)
                transaction.set_note("journal", journal)
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")
            try:
                os.link(fresh, path)  # unlike a rename, never replaces a ledger
            except FileExistsError as error:
                raise OrderError(f"{path.name} exists already") from error
        except OSError as error:
            raise PrivftError(f"cannot make {path.name}: {error.strerror}") from error
        finally:
            fresh.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[Transaction]:
        """All or nothing; `write` takes the writer lock before anything is read."""
        if os.getpid() != self._process:
            raise OrderError("a ledger was opened in one process and used in another")
        with _translated():
            self._connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
            try:
                yield SqliteTransaction(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def copy(self, target: Path) -> None:
        """A whole copy in a new file of mode 0600, as of one moment, durable on return."""
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError as error:
            raise InputError(f"cannot make {target}: {error.strerror}") from error
        try:
            with _translated(), closing(sqlite3.connect(target, isolation_level=None)) as other:
                other.execute("PRAGMA synchronous = FULL")
                self._connection.backup(other)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def check_storage(self) -> None:
        """SQLite's own look at every page; raises `IntegrityError`."""
        with _translated():
            rows = self._connection.execute("PRAGMA integrity_check(1)").fetchall()
        if rows != [("ok",)]:
            raise IntegrityError("the ledger's file is damaged: its pages do not fit together")

    def close(self) -> None:
        """Give the file back."""
        if os.getpid() == self._process:
            with _translated():
                self._connection.close()


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    name = path.resolve().as_uri()
    mode = "rw" if writable else "ro"
    if not writable and not os.access(path.parent, os.W_OK) and not Path(f"{path}-wal").exists():
        mode = "ro&immutable=1"  # a read-only medium: nothing can change, no -shm can be made
    connection = sqlite3.connect(
        f"{name}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_S
    )
    try:
        for pragma in ("synchronous = FULL", "trusted_schema = OFF", "cell_size_check = ON"):
            connection.execute(f"PRAGMA {pragma}")
        marks = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version", "journal_mode")
        ]
        if marks[:2] != [APPLICATION_ID, FORMAT]:
            raise IntegrityError(f"{path.name} is not a privft ledger of format {FORMAT}")
        if writable and marks[2] != "wal":
            raise IntegrityError(f"{path.name} is not in WAL mode")
        found = dict(
            connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        )
        if found != _SCHEMA:
            raise IntegrityError(f"{path.name} has other tables than a ledger")
    except BaseException:
        connection.close()
        raise
    return connection
