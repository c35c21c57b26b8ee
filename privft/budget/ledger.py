"""The memory of the budget: an append-only, signed log that cannot be overspent or quietly undone.

**Spend before use.**  A run's worst case is *reserved* in one exclusive transaction: the writer
lock is taken, spent and reserved events of the lineage are recomputed from the entries, the Renyi
filter is asked, and the reservation is written, or `BudgetExceeded` is raised.  The intent of each
step is *journalled*, durably, before its noise may be drawn.  *Settlement* charges what ran plus
what is in doubt: the larger of the steps that the run says it drew and the steps that it
journalled; a run that is closed instead of completed is charged whole.  A run that crashed stays
charged whole until it is settled, and nothing is refunded for a step that may have drawn noise.

**Only growing.**  Entries are leaves of a Merkle tree (`translog`), and every commit stores a
signed checkpoint (size and root) beside them.  Nothing read from the file is believed without it
(`reader`).  A file that was rolled back as a whole, with its signature, can only be told from
outside: `verify(known_checkpoints=...)` takes the checkpoints that vault manifests, run records,
reports and witnesses carry.

**Time** in entries never runs backwards: an entry made while the clock is behind the last entry's
time takes that time.

Steps are numbered from 0.  Errors: `BudgetExceeded`, `OrderError` for calls out of order,
`IntegrityError` for damage, `PrivftError` for a full disk and the like (then nothing was charged,
or the reservation stands: after an error on commit, ask `entries` again before trying anew).

Opened with the log's public key only, a ledger can be read and verified and nothing else.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privft.budget import translog
from privft.budget.entries import Entry, format_time, make_entry, parse_time
from privft.budget.filter import Cap
from privft.budget.postgres import Database, PostgresStore
from privft.budget.reader import Reader
from privft.budget.replay import chain_of, extend, sign_journal
from privft.budget.store import SqliteStore, Store, Transaction
from privft.budget.translog import Checkpoint
from privft.errors import OrderError, PlanError, PolicyRefused
from privft.signing import SigningKey, VerifyKey

_OWN_VERBS = {
    "workspace-created": "create",
    "run-reserved": "reserve",
    "run-settled": "settle",
}


class Ledger(Reader):
    """One open ledger, in one process and one thread; see the module's docstring."""

    def __init__(self, store: Store, log_key: SigningKey | VerifyKey) -> None:
        super().__init__(store, log_key.public if isinstance(log_key, SigningKey) else log_key)
        self._signer = log_key if isinstance(log_key, SigningKey) else None
        self._written: list[tuple[Entry, str]] = []

    @staticmethod
    def create(
        place: Path | Database,
        *,
        log_key: SigningKey,
        origin: str,
        workspace_id: str,
        actor: str = "privft",
        time: str | None = None,
    ) -> Ledger:
        """A new ledger, in a file of mode 0600 or in a schema of a database.

        Its log signs as `origin`, which is the key's own name.
        """
        if log_key.name != origin:
            raise ValueError(f"expected a log key named {origin!r}, got {log_key.name!r}")
        first = make_entry(
            index=0,
            kind="workspace-created",
            time=time or format_time(datetime.now(UTC)),
            actor=actor,
            body={"workspace": workspace_id, "log_key": log_key.public.hex},
        )
        note = Checkpoint(origin=origin, size=1, root=first.leaf_hash).signed(log_key)
        create = PostgresStore.create if isinstance(place, Database) else SqliteStore.create
        create(place, first.canonical, note, sign_journal({}, log_key))  # type: ignore[arg-type]
        return Ledger.open(place, log_key=log_key)

    @staticmethod
    def open(place: Path | Database, *, log_key: SigningKey | VerifyKey) -> Ledger:
        """The ledger in a file or a database; with a `VerifyKey`, for reading only.

        Raises `IntegrityError` unless the entries lead to the root that this key signed.
        """
        writable = isinstance(log_key, SigningKey)
        store: Store
        if isinstance(place, Database):
            store = PostgresStore(place, writable=writable)
        else:
            store = SqliteStore(place, writable=writable)
        ledger = Ledger(store, log_key)
        try:
            with ledger._reading():
                return ledger
        except BaseException:
            ledger.close()
            raise

    @contextmanager
    def _writing(self) -> Iterator[tuple[Transaction, SigningKey]]:
        if self._signer is None:
            raise OrderError(
                "the ledger is open for reading only", hint="writing needs the log's private key"
            )
        self._written.clear()
        with self._store.transaction(write=True) as transaction:
            self._catch_up(transaction)
            yield transaction, self._signer
        for entry, note in self._written:  # committed: part of what this process has seen
            self._take(entry, note)

    def _add(
        self,
        transaction: Transaction,
        key: SigningKey,
        kind: str,
        body: Mapping[str, Any],
        actor: str,
        time: str | None,
    ) -> Entry:
        now = format_time(datetime.now(UTC) if time is None else parse_time(time))
        entry = make_entry(
            index=self._tree.size,
            kind=kind,
            time=max(now, self._history.last_time),
            actor=actor,
            body=body,
        )
        self._history.check(entry)
        frontier = translog.push(self._tree.frontier(), self._tree.size, entry.leaf_hash)
        checkpoint = Checkpoint(
            origin=self._key.name, size=self._tree.size + 1, root=translog.root_of(frontier)
        )
        note = checkpoint.signed(key)
        transaction.append(entry.index, entry.canonical)
        transaction.set_note("checkpoint", note)
        self._written.append((entry, note))
        return entry

    def append(
        self,
        kind: str,
        body: Mapping[str, Any],
        *,
        actor: str,
        time: str | None = None,
        unchanged: Mapping[str, int] | None = None,
    ) -> Entry:
        """Add an entry; raises `IntegrityError` for a body that its kind does not allow.

        unchanged: kind -> how many entries of it the body rests on; `OrderError` when others came
        in between, whoever wrote them.

        Guarantees: durable on return.  Reservations and settlements have verbs of their own.
        """
        if kind in _OWN_VERBS:
            raise OrderError(f"a {kind} entry is made by Ledger.{_OWN_VERBS[kind]} alone")
        with self._writing() as (transaction, key):
            for other, count in (unchanged or {}).items():
                if (now := len(self._history.positions.get(("kind", other), ()))) != count:
                    raise OrderError(f"there are {now} {other} entries, and {count} were seen")
            return self._add(transaction, key, kind, body, actor, time)

    def reserve(
        self,
        *,
        actor: str,
        body: Mapping[str, Any],
        cap: Cap,
        budget_sha256: str | None = None,
        time: str | None = None,
    ) -> Entry:
        """Charge the worst case of a run before its first step; the entry's body names the run.

        body: a `run-reserved` body without `run`; cap: the policy's, which must be the lineage's;
        budget_sha256: the digest of the budget view that the plan was priced against, if any.
        Raises `BudgetExceeded`, and `PlanError` for a plan that was reserved before or that was
        priced against another view of the budget; then nothing is charged.

        Guarantees: whatever other processes do, reservations and settlements of a lineage never
        exceed what its filter admits, and one plan (so one approval) covers one run; durable on
        return.
        """
        with self._writing() as (transaction, key):
            stale = budget_sha256 not in (None, self._history.budget(body["lineage"]).digest)
            if stale and self._history.run_of_plan(body["plan_sha256"]) is None:
                raise PlanError(
                    "the plan is stale: the budget changed since it was made",
                    hint="make it again: privft plan",
                )
            fixed = self._history.cap(body["lineage"])
            if fixed != cap:
                raise PolicyRefused(
                    f"the policy's cap is epsilon {cap.epsilon:g} at delta {cap.delta:g}, and the "
                    f"budget of this data set was fixed at {fixed.epsilon:g} at {fixed.delta:g}"
                )
            run = f"r-{len(self._history.runs) + 1:04d}-{secrets.token_hex(3)}"
            return self._add(transaction, key, "run-reserved", {**body, "run": run}, actor, time)

    def journal(self, run: str, step: int, digest: str) -> None:
        """Record the intent of a step (a SHA-256 in hex), before its noise is drawn.

        The same step may be recorded again with the same digest, which is how a replay begins.
        Raises `OrderError` for another digest, a step beyond the next one or the reservation, and
        a run that is settled.

        Guarantees: durable on return.
        """
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise OrderError("expected the digest of a step as 64 hex digits")
        with self._writing() as (transaction, key):
            record = self._history.run(run)
            if record.settled is not None:
                raise OrderError(f"run {run} is settled: no step may follow")
            steps, chain = self._heads.get(run, (0, chain_of(run, ())))
            if 0 <= step < steps:
                if self._journal_rows(transaction, run)[step][1].hex() != digest:
                    raise OrderError(
                        f"step {step} of run {run} was recorded with another digest: on another "
                        "processor, number of threads or ranks, version, or setting of kernels",
                        hint="the run cannot be replayed: close it, and start a new one",
                    )
                return
            if step != steps or step >= record.steps:
                raise OrderError(
                    f"step {step} of run {run} cannot be recorded: {steps} of {record.steps} "
                    "reserved steps are"
                )
            transaction.add_journal(run, step, bytes.fromhex(digest))
            heads = {**self._heads, run: (steps + 1, extend(chain, bytes.fromhex(digest)))}
            transaction.set_note("journal", sign_journal(heads, key))

    def settle(
        self,
        run: str,
        *,
        actor: str,
        outcome: str,
        reason: str,
        steps_drawn: int,
        adapter: Mapping[str, str] | None,
        time: str | None = None,
    ) -> Entry:
        """Fix what a run costs, once.

        outcome: `completed`, charged max(steps_drawn, journalled steps), or `closed`, charged
        whole.  adapter: file name -> sha256 of what it made, None when it made nothing.
        """
        with self._writing() as (transaction, key):
            record = self._history.run(run)
            if record.settled is not None:
                raise OrderError(f"run {run} was settled by entry {record.settled}")
            rows = self._journal_rows(transaction, run)
            steps = record.steps if outcome == "closed" else max(steps_drawn, len(rows))
            charged = self._history.charge_for(run, steps)
            body = {
                "run": run,
                "outcome": outcome,
                "reason": reason,
                "steps_charged": steps,
                "events": [event.to_dict() for event in charged],
                "journal_sha256": chain_of(run, (digest for _, digest in rows)).hex(),
                "adapter": None if adapter is None else dict(adapter),
            }
            entry = self._add(transaction, key, "run-settled", body, actor, time)
            if run in self._heads:
                heads = {name: head for name, head in self._heads.items() if name != run}
                transaction.set_note("journal", sign_journal(heads, key))
            return entry

    def recover(
        self,
        *,
        actor: str,
        known: Sequence[str],
        reason: str,
        envelope: Mapping[str, Any],
        time: str | None = None,
    ) -> Entry:
        """Go on from a backup older than what others have seen, at the price of every budget.

        known: the signed checkpoints of the lost branch, newest last; envelope: the DSSE envelope
        of `signed.recovery_statement` over them, all lineages and the reason, signed by two
        approvers who are on the ring of the backup.
        Raises `OrderError` when nothing was lost, `SignatureError` without two signatures.

        Guarantees: no budget of this ledger admits a run afterwards, since what was lost may have
        spent it; `verify` accepts the listed checkpoints as given up, and no others.
        """
        with self._writing() as (transaction, key):
            for note in known:
                seen = Checkpoint.open(note, self._key)
                if seen.size <= self._tree.size and seen.root == translog.root(
                    self._tree, seen.size
                ):
                    raise OrderError(f"the checkpoint of {seen.size} entries is not lost")
            body = {
                "known": list(known),
                "lineages": sorted(self._history.lineages()),
                "reason": reason,
                "signatures": [dict(signature) for signature in envelope["signatures"]],
            }
            return self._add(transaction, key, "recovered", body, actor, time)
