"""Everything that can be checked about a ledger, from its bytes alone and from the beginning.

The same checks serve `Ledger.verify`, which reads the database, and `verify_bundle`, which reads an
export on another machine.  A bundle is one JSON object:

    {"format": "privft-ledger-v1",
     "checkpoint": "<signed note>",                      the log's key over origin, size and root
     "journal_note": "<signed note>",                    the log's key over the open journals
     "entries": ["{\\"actor\\":...}", ...],              the canonical text of each, in order
     "journal": {"r-0001-ab12cd": ["<sha256>", ...]}}    the digest of each step's intent

What is checked: every entry is canonical, typed, numbered and in an order that `History` allows
(so no reservation was ever above its cap); the root over all of them is the one that the log's key
signed; each settled run's journal hashes to what its settlement recorded; the journals of open runs
are the ones in the signed journal note; and every checkpoint that the caller has kept from
elsewhere is a beginning of this very log.

**The journal note** has the head `privft-journal`, the origin, and one line for each open run that
has a journal: its name, how many steps, and the chain over their digests, where

    chain(0) = SHA-256("privft-journal " || run)
    chain(i + 1) = SHA-256(chain(i) || digest of step i)

**Checkpoints from elsewhere.**  One that is larger than the ledger, or whose root differs, means
that the ledger was rolled back or rewritten.  The exception is a lawful recovery: a `recovered`
entry lists the checkpoints of the branch that was lost, word for word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from privft.budget import translog
from privft.budget.entries import parse_entry
from privft.budget.history import History
from privft.budget.translog import Checkpoint, Tree, leaf_hash
from privft.errors import IntegrityError, PrivftError
from privft.signing import SigningKey, VerifyKey, note_open, note_sign

BUNDLE_FORMAT = "privft-ledger-v1"
_BUNDLE_FIELDS = {"format", "checkpoint", "journal_note", "entries", "journal"}


@dataclass(frozen=True, kw_only=True)
class LedgerCheck:
    """What a verified ledger is: how long, under which root, and how it compares to elsewhere.

    known: checkpoints from elsewhere that are beginnings of this log; superseded: those of a
    branch that a lawful recovery gave up.
    """

    size: int
    root: str
    checkpoint: str
    runs: int
    open_runs: int
    lineages: int
    known: int
    superseded: int


def chain_of(run: str, digests: Iterable[bytes]) -> bytes:
    """The chain over a run's journal, 32 bytes."""
    chain = hashlib.sha256(b"privft-journal " + run.encode()).digest()
    for digest in digests:
        chain = extend(chain, digest)
    return chain


def extend(chain: bytes, digest: bytes) -> bytes:
    """The chain with one more step."""
    return hashlib.sha256(chain + digest).digest()


JournalHeads = dict[str, tuple[int, bytes]]  # open run -> steps, chain


def sign_journal(heads: JournalHeads, key: SigningKey) -> str:
    """The journal note over these open journals."""
    lines = [f"{run} {steps} {chain.hex()}\n" for run, (steps, chain) in sorted(heads.items())]
    return note_sign(f"privft-journal\n{key.name}\n{''.join(lines)}", key, key.name)


def open_journal(note: str, key: VerifyKey) -> JournalHeads:
    """The inverse of `sign_journal`; raises `IntegrityError`."""
    head, origin, *lines = [*note_open(note, key).splitlines(), ""][:-1]
    if (head, origin) != ("privft-journal", key.name):
        raise IntegrityError(f"expected the journal of {key.name}")
    try:
        rows = [line.split(" ") for line in lines]
        return {run: (int(steps), bytes.fromhex(chain)) for run, steps, chain in rows}
    except ValueError as error:
        raise IntegrityError(f"the journal note of {key.name} cannot be read") from error


def check_journal(run: str, rows: Sequence[tuple[int, bytes]], steps: int, chain: bytes) -> None:
    """Return when the rows are steps 0, 1, ... and hash to `chain`; raises `IntegrityError`."""
    if [step for step, _ in rows] != list(range(steps)):
        raise IntegrityError(f"the journal of run {run} has {len(rows)} steps, expected {steps}")
    if chain_of(run, (digest for _, digest in rows)) != chain:
        raise IntegrityError(f"the journal of run {run} was altered")


def replay(
    *,
    entries: Iterable[tuple[int, bytes]],
    checkpoint: str,
    journal_note: str,
    journal: Callable[[str], Sequence[tuple[int, bytes]]],
    journal_runs: Iterable[str],
    key: VerifyKey,
    known_checkpoints: Sequence[str] = (),
) -> LedgerCheck:
    """Check everything, as the module's docstring says; raises `IntegrityError`."""
    history, tree = History(), Tree()
    settled: dict[str, tuple[int, bytes]] = {}
    for position, data in entries:
        try:
            entry = parse_entry(data)
            history.check(entry)
        except PrivftError as error:
            raise IntegrityError(f"entry {position}: {error.message}") from error
        if entry.index != position:
            raise IntegrityError(f"entry {position} says that it is number {entry.index}")
        if entry.kind == "workspace-created" and entry.body["log_key"] != key.hex:
            raise IntegrityError("the ledger was made under another log key")
        if entry.kind == "run-settled":
            journalled = bytes.fromhex(entry.body["journal_sha256"])
            settled[entry.body["run"]] = (entry.body["steps_charged"], journalled)
        history.apply(entry)
        tree.append(leaf_hash(data))
    newest = Checkpoint.open(checkpoint, key)
    if newest.size != tree.size:
        raise IntegrityError(f"the ledger has {tree.size} entries and its checkpoint {newest.size}")
    if newest.root != tree.root or tree.size == 0:
        raise IntegrityError(f"the {tree.size} entries do not lead to the root that was signed")
    _check_journals(history, settled, open_journal(journal_note, key), journal, journal_runs)
    superseded = _check_known(known_checkpoints, tree, history, key)
    return LedgerCheck(
        size=tree.size,
        root=tree.root.hex(),
        checkpoint=checkpoint,
        runs=len(history.runs),
        open_runs=len(history.open_runs()),
        lineages=len(history.lineages()),
        known=len(known_checkpoints) - superseded,
        superseded=superseded,
    )


def _check_journals(
    history: History,
    settled: Mapping[str, tuple[int, bytes]],
    heads: JournalHeads,
    journal: Callable[[str], Sequence[tuple[int, bytes]]],
    journal_runs: Iterable[str],
) -> None:
    for run in journal_runs:
        if run not in history.runs:
            raise IntegrityError(f"there is a journal of run {run}, which was never reserved")
    for run in heads:
        if run not in history.runs or run in settled:
            raise IntegrityError(f"the journal note names run {run}, which is not open")
    for run in history.runs:
        rows = journal(run)
        if run in settled:
            charged, chain = settled[run]
            check_journal(run, rows, len(rows), chain)
            if len(rows) > charged:
                raise IntegrityError(f"run {run} has {len(rows)} steps, {charged} are charged")
        else:
            steps, chain = heads.get(run, (0, chain_of(run, ())))
            check_journal(run, rows, steps, chain)
            reserved = history.run(run).steps
            if steps > reserved:
                raise IntegrityError(f"run {run} has {steps} steps, {reserved} are reserved")


def _check_known(notes: Sequence[str], tree: Tree, history: History, key: VerifyKey) -> int:
    """How many of the checkpoints from elsewhere a recovery has superseded."""
    return sum(not is_beginning(note, tree, history, key) for note in notes)


def is_beginning(note: str, tree: Tree, history: History, key: VerifyKey) -> bool:
    """Whether a checkpoint is a beginning of this log; False when a recovery gave its branch up.

    Raises `IntegrityError` when it is neither.
    """
    seen = Checkpoint.open(note, key)
    if seen.size <= tree.size and translog.root(tree, seen.size) == seen.root:
        return True
    if any(Checkpoint.open(lost, key) == seen for lost in history.recovered_notes):
        return False
    if seen.size > tree.size:
        raise IntegrityError(
            f"the ledger has {tree.size} entries, and a checkpoint of {seen.size} was signed",
            hint="it was rolled back: restore the newest copy, or privft ledger recover",
        )
    raise IntegrityError(f"the first {seen.size} entries are not those that were signed")


def verify_bundle(
    bundle: Mapping[str, Any], log_key: VerifyKey, known_checkpoints: Sequence[str] = ()
) -> LedgerCheck:
    """Check an export of a ledger; needs nothing but the log's public key."""
    if set(bundle) != _BUNDLE_FIELDS or bundle["format"] != BUNDLE_FORMAT:
        raise IntegrityError(f"expected a ledger bundle of format {BUNDLE_FORMAT}")
    try:
        entries = [text.encode() for text in bundle["entries"]]
        journal = {
            str(run): [bytes.fromhex(digest) for digest in digests]
            for run, digests in bundle["journal"].items()
        }
        notes = [str(bundle["checkpoint"]), str(bundle["journal_note"])]
    except (AttributeError, TypeError, ValueError) as error:
        raise IntegrityError("a ledger bundle whose fields are of the wrong kind") from error
    return replay(
        entries=enumerate(entries),
        checkpoint=notes[0],
        journal_note=notes[1],
        journal=lambda run: list(enumerate(journal.get(run, []))),
        journal_runs=journal,
        key=log_key,
        known_checkpoints=known_checkpoints,
    )
