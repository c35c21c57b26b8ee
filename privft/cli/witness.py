"""privft ledger witness, recover: what guards the ledger against a disk that was set back.

`ask` and `answer` are the two ends of one conversation by file (`budget.witness`).  `ask` stays
until the answer is there: its nonce is in memory alone, so that a restored disk cannot bring an old
challenge back together with its old answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from filelock import FileLock

from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.budget.signed import RECOVERY_TYPE, recovery_statement
from privft.budget.translog import Checkpoint
from privft.cli.session import (
    FILE,
    Acting,
    acting,
    dry_run,
    json_option,
    print_json,
    say,
    session,
)
from privft.errors import (
    IntegrityError,
    OrderError,
    PolicyRefused,
    SignatureError,
    UsageError,
)
from privft.report.trust import parse_trust
from privft.signing import Identity, PublicIdentity, VerifyKey, dsse_sign
from privft.vault.manifest import read_manifest_text, unsigned_manifest
from privft.workspace import Workspace, check_name_is_free, write_private

STATE_FORMAT = "privft-witness-state-v1"
_POLL_S = 0.2


@click.group("witness")
def witness_command() -> None:
    """A witness on another machine: key, enrol, ask, answer."""


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_private(path, json.dumps(value, indent=1).encode() + b"\n")


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise IntegrityError(f"{path} is not {what}: it is no JSON") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is not {what}")
    return value


@witness_command.command("key")
@click.argument("name")
@click.option("--out", type=FILE, required=True, help="Where the private key goes.")
def key(name: str, out: Path) -> None:
    """On the witness's machine: make its key; prints the public half, for enrol."""
    if out.exists():
        raise UsageError(f"{out} exists", hint="keys are never overwritten; name another file")
    try:
        identity = Identity.generate(name)
    except ValueError as error:
        raise UsageError(f"{name!r} cannot name a witness: {error}") from error
    write_private(out, identity.to_bytes() + b"\n")
    public = identity.public
    print_json({"name": public.name, "ed25519": public.ed25519, "x25519": public.x25519})
    say(f"the private key is in {out}: it never leaves this machine")


@witness_command.command("enrol")
@click.argument("public", type=FILE)
@acting
@click.pass_context
def enrol(ctx: click.Context, public: Path, who: Acting) -> None:
    """Put a witness on the ring by the public half of its key."""
    given = _read(public, "the public half of a witness's key")
    try:
        known = PublicIdentity(**given)
        known.verify_key()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{public} is not the public half of a witness's key") from error
    opened = session(ctx)
    actor = opened.identity(who)
    body = {
        "name": known.name,
        "roles": ["witness"],
        "ed25519": known.ed25519,
        "x25519": known.x25519,
        "expires": None,
    }
    with opened.ledger() as ledger:
        check_name_is_free(ledger, known.name)
        ledger.append("key-added", body, actor=actor.name)
    say(f"{known.name} is on the ring as a witness")
    say(f"next: privft ledger witness ask {known.name}; give it trust.json too (ledger trust)")


@witness_command.command("ask")
@click.argument("witness_name", metavar="NAME")
@click.option(
    "--challenge",
    "challenge_file",
    type=FILE,
    default=Path("challenge.json"),
    show_default=True,
    help="Where the challenge goes.",
)
@click.option(
    "--answer",
    "answer_file",
    type=FILE,
    default=Path("answer.json"),
    show_default=True,
    help="Where the answer will be.",
)
@click.option(
    "--wait-s",
    type=click.FloatRange(min=0),
    default=3600.0,
    show_default=True,
    help="How long to wait for the answer.",
)
@acting
@json_option
@click.pass_context
def ask(
    ctx: click.Context,
    witness_name: str,
    challenge_file: Path,
    answer_file: Path,
    wait_s: float,
    as_json: bool,
    who: Acting,
) -> None:
    """Write a challenge, wait for the witness's answer, and record it."""
    from privft.budget import witness

    if answer_file.exists():
        raise UsageError(f"{answer_file} exists already", hint="it answers something else: move it")
    opened = session(ctx)
    actor = opened.identity(who)
    with opened.ledger() as ledger:
        challenge = witness.ask(ledger, witness_name)
    _write(challenge_file, challenge)
    say(f"carry {challenge_file} to {witness_name}, and its answer back to {answer_file}; waiting")
    reply = _wait_for(answer_file, until=time.monotonic() + wait_s)
    with opened.ledger() as ledger:
        entry = witness.accept(ledger, challenge, reply, witness=witness_name, actor=actor.name)
    challenge_file.unlink(missing_ok=True)
    if as_json:
        cosigned = bool(entry.body["cosigned"])
        print_json({"entry": entry.index, "witness": witness_name, "cosigned": cosigned})
    elif entry.body["cosigned"]:
        click.echo(
            f"{witness_name} has seen no newer ledger, and cosigned this one (entry {entry.index})"
        )
    else:
        click.echo(f"{witness_name} has seen no newer ledger (entry {entry.index})")
        say("it lacked a proof from what it had seen, so it cosigned nothing: ask once more")


def _wait_for(path: Path, *, until: float) -> dict[str, Any]:
    """The JSON object in a file that somebody is about to put there, perhaps slowly."""
    while True:
        try:
            return _read(path, "a witness answer")
        except (UsageError, IntegrityError):
            if time.monotonic() >= until:
                if path.exists():
                    raise
                raise UsageError(
                    f"no answer in {path}: nothing was recorded", hint="ask again: a new challenge"
                ) from None
        time.sleep(_POLL_S)


@witness_command.command("answer")
@click.argument("challenge_file", metavar="CHALLENGE", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="Where the answer goes.")
@click.option("--key", "key_file", type=FILE, required=True, help="The witness's private key.")
@click.option("--state", type=FILE, required=True, help="What it keeps: one file for each ledger.")
@click.option("--trust", type=FILE, help="At the first time: the trust root (privft ledger trust).")
def answer(
    challenge_file: Path, output: Path, key_file: Path, state: Path, trust: Path | None
) -> None:
    """On the witness's machine: answer a challenge; needs no workspace."""
    from privft.budget import witness

    try:
        identity = Identity.from_bytes(key_file.read_bytes().removesuffix(b"\n"))
    except OSError as error:
        raise UsageError(f"cannot read {key_file}: {error.strerror}") from error
    with FileLock(f"{state}.lock"):  # of two answers at once the second knows what the first saw
        log_key, newest = _kept(state, trust)
        reply, kept = witness.answer(
            _read(challenge_file, "a witness challenge"),
            newest=newest,
            witness=identity.signing,
            log_key=log_key,
            posix_time=int(datetime.now(UTC).timestamp()),
        )
        body = {"format": STATE_FORMAT, "origin": log_key.name, "log_key": log_key.hex}
        _write(state, {**body, "checkpoint": kept})  # before the cosignature is out
    _write(output, reply)
    size = Checkpoint.open(kept, log_key).size
    if reply["cosigned"]:
        say(f"cosigned: {log_key.name} has {size} entries and begins with all that was seen before")
    else:
        say(f"not cosigned: the newest that was seen has {size} entries, and the answer says so")


def _kept(state: Path, trust: Path | None) -> tuple[VerifyKey, str]:
    """The log's key and the newest checkpoint that the witness has seen ("" at the first time)."""
    given = None
    if trust is not None:
        try:
            root = parse_trust(trust.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {trust}: {error.strerror}") from error
        root.check_current(format_time(datetime.now(UTC)))
        given = root.log()
    if not state.exists():
        if given is None:
            raise UsageError(
                f"there is no {state}: this ledger was never seen",
                hint="--trust FILE at the first time: privft ledger trust prints it",
            )
        return given, ""
    body = _read(state, "what a witness keeps")
    if set(body) != {"format", "origin", "log_key", "checkpoint"}:
        raise IntegrityError(f"{state} is not of format {STATE_FORMAT}")
    log_key = VerifyKey.from_hex(str(body["origin"]), str(body["log_key"]))
    if body["format"] != STATE_FORMAT or (given is not None and given != log_key):
        raise SignatureError(f"{state} is about another ledger than the trust root")
    return log_key, str(body["checkpoint"])


@click.command("recover")
@click.option(
    "--known",
    "known_files",
    multiple=True,
    type=FILE,
    required=True,
    help="A signed checkpoint of what was lost; may be repeated.",
)
@click.option("--key", "key_files", type=FILE, multiple=True, help="An approver's key; twice.")
@click.option("--reason", required=True, help="Why; it stands on page one of later reports.")
@dry_run
@click.pass_context
def recover_command(
    ctx: click.Context,
    known_files: tuple[Path, ...],
    key_files: tuple[Path, ...],
    reason: str,
    dry_run: bool,
) -> None:
    """Go on from a backup: what was lost counts as the whole rest of every budget."""
    opened = session(ctx)
    people = [opened.workspace.identity(key_file=path) for path in key_files]
    if len({person.public.ed25519 for person in people}) < 2:
        raise UsageError(f"a recovery needs two people, got {len(people)}", hint="--key twice")
    if not reason.strip():
        raise UsageError("a recovery needs a reason", hint="--reason TEXT")
    notes = [_note(path) for path in known_files]
    with opened.ledger() as ledger:
        now = format_time(datetime.now(UTC))
        for person in people:
            if ledger.keyring().may(person.name, "approver", now).public != person.public:
                raise PolicyRefused(f"the ring has other keys for {person.name} than this file")
        known = _lost(opened.workspace, ledger, notes)
        lineages = ledger.lineages()
        if not dry_run:
            statement = recovery_statement(known, lineages, reason)
            envelope = dsse_sign(statement, RECOVERY_TYPE, [person.signing for person in people])
            ledger.recover(actor=people[0].name, known=known, reason=reason, envelope=envelope)
        newest, size = Checkpoint.open(known[-1], ledger.key).size, ledger.size
        here = {entry.body["dataset"] for entry in ledger.entries(kind="dataset-created")}
    say(f"{newest} entries were once signed; the ledger goes on from a backup, now {size} entries")
    say(f"spent from here on: all of {len(lineages)} budget(s)")
    for lost in sorted(set(opened.workspace.overlap_datasets()) - here):
        say(f"data set {lost} was made in the gap: its records are not taken in again")
    say("a witness of what was lost will not follow: it starts anew with --trust, by a decision")


def _note(path: Path) -> str:
    """A signed checkpoint in a file: by itself, or in a witness's answer or an exported ledger."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if text.startswith("{"):
        text = str(_read(path, "a file with a checkpoint").get("checkpoint", ""))
    if not text:
        raise UsageError(f"{path} holds no checkpoint")
    return text


def _lost(workspace: Workspace, ledger: Ledger, notes: list[str]) -> list[str]:
    """The checkpoints that this ledger does not begin with: those given, of vaults and of runs."""
    from privft.stages.seen import kept

    for note in notes:
        if not _is_lost(ledger, note):
            size = Checkpoint.open(note, ledger.key).size
            raise OrderError(f"the checkpoint of {size} entries is not lost: nothing to recover")
    found = {*notes, *(note for _, note in kept(workspace) if _is_lost(ledger, note))}
    for created in ledger.entries(kind="dataset-created"):
        folder = workspace.vault_path(created.body["dataset"])
        if folder.exists():
            note = unsigned_manifest(read_manifest_text(folder)).checkpoint
            if _is_lost(ledger, note):
                found.add(note)
    return sorted(found, key=lambda note: Checkpoint.open(note, ledger.key).size)


def _is_lost(ledger: Ledger, note: str) -> bool:
    Checkpoint.open(note, ledger.key)  # a note by another key is no checkpoint of this ledger
    try:
        ledger.check_known(note)
    except IntegrityError:
        return True
    return False
