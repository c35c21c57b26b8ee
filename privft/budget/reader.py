"""Reading a ledger without believing its file.

`Reader` is everything that an auditor with the log's public key can do; `ledger.Ledger` adds the
verbs that write.  On first use it hashes every entry, compares the root with the signed checkpoint,
and builds its view (`History`) from those bytes alone; later transactions hash what was added
since.  A ledger that went backwards under an open reader is an `IntegrityError`.  Typed and
canonical form and the order of entries are not checked again at every opening: the log's key signs
only what passed those checks, and `verify` repeats all of them from the first byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from privft.budget import translog
from privft.budget.entries import Entry
from privft.budget.filter import Admission, fits
from privft.budget.history import BudgetView, History
from privft.budget.judged import RunRecord
from privft.budget.replay import (
    BUNDLE_FORMAT,
    JournalHeads,
    LedgerCheck,
    chain_of,
    check_journal,
    is_beginning,
    open_journal,
    replay,
)
from privft.budget.selection import AnyEvent
from privft.budget.store import SqliteStore, Store, Transaction
from privft.budget.translog import Checkpoint, Tree, leaf_hash
from privft.errors import InputError, IntegrityError, OrderError, PrivftError
from privft.keyring import Keyring
from privft.signing import VerifyKey

# Entries that change nothing which is summed up: seen by their end, which is always the same in
# canonical form, and parsed when somebody asks for them.
_PLAIN = re.compile(rb',"kind":"(plan-approved|run-refused|witnessed)","time":"([^"]{20})"\}$')
_TAIL = 64
_DECODER = json.JSONDecoder()


class Reader:
    """One open ledger, in one process and one thread; see the module's docstring."""

    def __init__(self, store: Store, key: VerifyKey) -> None:
        self._store = store
        self._key = key
        self._forget()

    def _forget(self) -> None:
        self._tree, self._history, self._seen = Tree(), History(), ""
        self._journal_note, self._heads = "", JournalHeads()

    def close(self) -> None:
        """Give the file back; what was committed is durable already."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[Transaction]:
        with self._store.transaction(write=False) as transaction:
            self._catch_up(transaction)
            yield transaction

    def _take(self, entry: Entry, note: str) -> None:
        """Add an entry that this process has just committed, with its checkpoint."""
        self._tree.append(entry.leaf_hash)
        self._history.apply(entry)
        self._seen = note

    def _catch_up(self, transaction: Transaction) -> None:
        """Hash and add what was written since the last look; believe nothing unsigned."""
        note = transaction.note("checkpoint")
        journal_note = transaction.note("journal")
        try:
            if note != self._seen:
                self._read_entries(transaction, Checkpoint.open(note, self._key))
                self._seen = note
            if journal_note != self._journal_note:
                self._heads = open_journal(journal_note, self._key)
                self._journal_note = journal_note
        except BaseException:
            self._forget()
            raise

    def _read_entries(self, transaction: Transaction, newest: Checkpoint) -> None:
        if newest.size < self._tree.size:
            raise IntegrityError(
                f"the ledger went back from {self._tree.size} entries to {newest.size}"
            )
        history, leaves, decode = self._history, list[bytes](), _DECODER.decode
        for expected, (position, data) in enumerate(
            transaction.entries(self._tree.size), self._tree.size
        ):
            if position != expected:
                raise IntegrityError(f"entry {expected} is missing from the ledger's file")
            leaves.append(leaf_hash(data))
            if (plain := _PLAIN.search(data, len(data) - _TAIL)) is not None:
                history.pass_over(plain[1].decode(), position, plain[2].decode())
                continue
            try:
                history.apply(Entry(**decode(data.decode())))
            except (ValueError, TypeError, KeyError, AttributeError, PrivftError) as error:
                raise IntegrityError(f"entry {position} cannot be read") from error
        self._tree.extend(leaves)
        if (self._tree.size, self._tree.root) != (newest.size, newest.root):
            raise IntegrityError(
                f"the {self._tree.size} entries do not lead to the root that was signed over "
                f"{newest.size}"
            )
        if self._history.workspace.get("log_key") != self._key.hex:
            raise IntegrityError("the ledger was made under another log key")

    def _journal_rows(self, transaction: Transaction, run: str) -> list[tuple[int, bytes]]:
        """The journal of an open run, held to the signed note."""
        rows = transaction.journal(run)
        check_journal(run, rows, *self._heads.get(run, (0, chain_of(run, ()))))
        return rows

    def journal_entries(self, run: str) -> list[tuple[int, str]]:
        """(step, digest) of a run, in order; of a settled run too."""
        with self._reading() as transaction:
            record = self._history.run(run)
            if record.settled is None:
                rows = self._journal_rows(transaction, run)
            else:
                rows = transaction.journal(run)
                settled = self._entry(transaction, record.settled)
                chain = bytes.fromhex(settled.body["journal_sha256"])
                check_journal(run, rows, len(rows), chain)
            return [(step, digest.hex()) for step, digest in rows]

    def budget(self, lineage: str) -> BudgetView:
        """What is spent, reserved and left of a lineage's budget; `OrderError` without one."""
        with self._reading():
            return self._history.budget(lineage)

    def admission(self, lineage: str, events: Sequence[AnyEvent]) -> Admission:
        """What `reserve` would say now about these events: a forecast, and no promise."""
        with self._reading():
            return self._history.admission(lineage, events)

    def more_like(self, lineage: str, *run: AnyEvent) -> int:
        """How many more runs of exactly these events the budget of a lineage admits now."""
        with self._reading():
            view = self._history.budget(lineage)
        return 0 if view.exhausted else fits(view.cap, (*view.spent, *view.reserved), *run)

    def lineages(self) -> list[str]:
        """Every lineage that has a budget, oldest first."""
        with self._reading():
            return self._history.lineages()

    def runs(self, lineage: str | None = None) -> list[RunRecord]:
        """Every run, oldest first; of one lineage if it is given."""
        with self._reading():
            records = [self._history.run(run) for run in self._history.runs]
        return [record for record in records if lineage in (None, record.lineage)]

    def run(self, run: str) -> RunRecord:
        """One run; raises `OrderError` for one that was never reserved."""
        with self._reading():
            return self._history.run(run)

    def run_of_plan(self, plan_sha256: str) -> str | None:
        """The run that was reserved for a plan, if there is one."""
        with self._reading():
            return self._history.run_of_plan(plan_sha256)

    def keyring(self) -> Keyring:
        """The ring of named people."""
        with self._reading():
            return self._history.keyring()

    @property
    def key(self) -> VerifyKey:
        """The log's public key."""
        return self._key

    @property
    def size(self) -> int:
        """How many entries there are."""
        with self._reading():
            return self._tree.size

    @property
    def root(self) -> bytes:
        """The root hash over all entries, 32 bytes."""
        with self._reading():
            return self._tree.root

    def checkpoint(self) -> str:
        """The newest signed checkpoint: what others keep, to notice a rollback."""
        with self._reading():
            return self._seen

    def entry(self, index: int) -> Entry:
        """The entry at one position; raises `OrderError` beyond the end."""
        with self._reading() as transaction:
            if not 0 <= index < self._tree.size:
                raise OrderError(f"expected 0 <= index < {self._tree.size}, got {index}")
            return self._entry(transaction, index)

    def _entry(self, transaction: Transaction, index: int) -> Entry:
        data = transaction.entry(index)
        if leaf_hash(data) != self._tree.node(0, index):
            raise IntegrityError(f"entry {index} was altered")
        return Entry(**json.loads(data))

    def entries(
        self, kind: str | None = None, run: str | None = None, dataset: str | None = None
    ) -> list[Entry]:
        """The entries of this kind, about this run and about this data set, in order."""
        given = {"kind": kind, "run": run, "dataset": dataset}
        with self._reading() as transaction:
            found = set(range(self._tree.size))
            for name, value in given.items():
                if value is not None:
                    found &= set(self._history.positions.get((name, value), ()))
            return [self._entry(transaction, index) for index in sorted(found)]

    def inclusion_proof(self, index: int, size: int) -> list[bytes]:
        """That entry `index` is in the tree of the first `size` entries."""
        with self._reading():
            self._check_size(size)
            return translog.inclusion_proof(self._tree, index, size)

    def consistency_proof(self, old: int, new: int) -> list[bytes]:
        """That the tree of `new` entries begins with the tree of `old`."""
        with self._reading():
            self._check_size(new)
            return translog.consistency_proof(self._tree, old, new)

    def _check_size(self, size: int) -> None:
        if not 0 < size <= self._tree.size:
            raise ValueError(f"expected 0 < size <= {self._tree.size}, got {size}")

    def check_known(self, note: str) -> bool:
        """Whether a checkpoint from elsewhere is a beginning of this ledger.

        False when a lawful recovery gave its branch up; raises `IntegrityError` when the ledger
        was rolled back or rewritten.  Cheap, where `verify` is thorough.
        """
        with self._reading():
            return is_beginning(note, self._tree, self._history, self._key)

    def verify(self, known_checkpoints: Sequence[str] = ()) -> LedgerCheck:
        """Replay everything from the first byte, as `replay` says; raises `IntegrityError`."""
        with self._reading() as transaction:
            self._store.check_storage()
            return replay(
                entries=transaction.entries(0),
                checkpoint=transaction.note("checkpoint"),
                journal_note=transaction.note("journal"),
                journal=transaction.journal,
                journal_runs=transaction.journal_runs(),
                key=self._key,
                known_checkpoints=known_checkpoints,
            )

    def backup(self, target: Path) -> Checkpoint:
        """Copy a ledger that is a file into a new one; the checkpoint that the copy holds.

        Raises `InputError` for a ledger in a database, which has ways of its own.
        """
        if not isinstance(self._store, SqliteStore):
            raise InputError(
                "this ledger is in a database", hint="pg_dump, or the server's own backups"
            )
        self._store.copy(target)
        with Reader(SqliteStore(target, writable=False), self._key) as copy:
            return Checkpoint.open(copy.checkpoint(), self._key)

    def export(self) -> dict[str, Any]:
        """A bundle that `replay.verify_bundle` checks elsewhere: plain JSON, nothing private."""
        with self._reading() as transaction:
            return {
                "format": BUNDLE_FORMAT,
                "checkpoint": transaction.note("checkpoint"),
                "journal_note": transaction.note("journal"),
                "entries": [data.decode() for _, data in transaction.entries(0)],
                "journal": {
                    run: [digest.hex() for _, digest in transaction.journal(run)]
                    for run in transaction.journal_runs()
                },
            }
