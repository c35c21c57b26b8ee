"""One transaction on a ledger's three tables, in the SQL that SQLite and PostgreSQL share.

What is read is not trusted to be of the type that was written: a value that is not bytes, a missing
row or a note that is not text is damage, an `IntegrityError` that says where.  `store` and
`postgres` say how a statement is put to their database (`?` marks its values here), how entries are
read a batch at a time, and what a failure of the database means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from privft.errors import IntegrityError

Note = Literal["checkpoint", "journal"]


class SqlTransaction:
    """All of `store.Transaction` but `entries`."""

    place: ClassVar[str]
    """What holds the ledger, in a word."""

    def _execute(self, statement: str, values: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
        """The rows that a statement gives."""
        raise NotImplementedError

    def _blob(self, value: Any, what: str) -> bytes:
        if not isinstance(value, bytes):
            raise IntegrityError(f"the ledger's {self.place} is damaged: {what} is not bytes")
        return value

    def entry(self, position: int) -> bytes:
        """See `store.Transaction`."""
        rows = self._execute("SELECT bytes FROM entries WHERE position = ?", (position,))
        for (data,) in rows:
            return self._blob(data, f"entry {position}")
        raise IntegrityError(f"entry {position} is missing from the ledger's {self.place}")

    def append(self, position: int, data: bytes) -> None:
        """See `store.Transaction`."""
        self._execute("INSERT INTO entries VALUES (?, ?)", (position, data))

    def note(self, name: Note) -> str:
        """See `store.Transaction`."""
        for (note,) in self._execute("SELECT note FROM head WHERE name = ?", (name,)):
            try:
                return self._blob(note, f"the signed {name}").decode()
            except UnicodeDecodeError as error:
                raise IntegrityError(f"the signed {name} is not text") from error
        raise IntegrityError(f"the ledger's {self.place} has no signed {name}")

    def set_note(self, name: Note, note: str) -> None:
        """See `store.Transaction`."""
        self._execute(
            "INSERT INTO head VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET note = excluded.note",
            (name, note.encode()),
        )

    def journal(self, run: str) -> list[tuple[int, bytes]]:
        """See `store.Transaction`."""
        rows = self._execute(
            "SELECT step, digest FROM journal WHERE run = ? ORDER BY step", (run.encode(),)
        )
        return [(step, self._blob(digest, "a journal digest")) for step, digest in rows]

    def journal_runs(self) -> list[str]:
        """See `store.Transaction`."""
        rows = self._execute("SELECT DISTINCT run FROM journal ORDER BY run")
        return [self._blob(run, "a run's name").decode(errors="replace") for (run,) in rows]

    def add_journal(self, run: str, step: int, digest: bytes) -> None:
        """See `store.Transaction`."""
        self._execute("INSERT INTO journal VALUES (?, ?, ?)", (run.encode(), step, digest))
