"""Release: the one door.  Unseals the adapter into a plain folder, whole or not at all.

    DIR/
      adapter_config.json, adapter_model.safetensors   as peft writes them (or head.safetensors)
      README.md               model card with the guarantee
      statement.dsse.json     the signed statement, the one truth: the audited one (after a waiver
                              with the waiver in it), signed by the run's key and by whoever
                              countersigned
      report.html             rendered from it
      ledger-proof.json       inclusion proofs of the run's entries under a signed checkpoint
      LICENSE-NOTE.txt        whose terms hold for what
      merged/                 with --merge: the base model with the adapter added, and its tokenizer

The folder is written beside its place under another name and renamed when complete.  Releasing
again gives the same bytes: times, proofs and signatures come from the ledger as it was at the
first release, which also fixes whether there is a merged model.

Countersignatures wait in `runs/RUN/countersigned.dsse.json`, an envelope around the statement that
is to be released.  One around another statement (of an audit before the newest, or without the
waiver that came after) counts for nothing.  Where the policy asks for some, nothing leaves without
them (`report.countersigned` says who counts).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.errors import IntegrityError, PolicyRefused, UsageError
from privft.report import statement
from privft.report.countersigned import Countersigned, countersigned, signed_by
from privft.report.proof import build_proof
from privft.report.release import MERGED, PROOF, rendered_files
from privft.signing import (
    Identity,
    SigningKey,
    canonical_json,
    dsse_add_signature,
    dsse_open,
    dsse_sign,
    sha256_hex,
)
from privft.stages import seen
from privft.stages.data import open_vault
from privft.stages.reporting import audited_statement, write_report
from privft.stages.running import stored_plan
from privft.stages.sealedrun import SealedRun
from privft.vault.keys import KeyOpener
from privft.workspace import Workspace, read_canonical, sync_folder, write_private

COUNTERSIGNED = "countersigned.dsse.json"


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """What leaves, or would: {file name: bytes}, with the statement and its envelope among them.
    The files of a merged model are written and never held in memory."""

    files: dict[str, bytes]
    stated: dict[str, Any]
    envelope: dict[str, Any]


def release(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    target: Path,
    *,
    actor_name: str,
    opener: KeyOpener,
    merge: bool,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Write the released folder to `target`; {file name: sha256}."""
    check_target(target)
    folder = workspace.run_path(run)
    leaving = prepare(workspace, ledger, run, opener=opener, say=say)
    with _aside(target) as aside:
        digests = _write(aside, leaving.files)
        if merge:
            digests |= _write_merged(workspace, ledger, run, aside, leaving.files)
        _log(ledger, run, digests, leaving.stated, actor_name)
        seen.keep(folder, ledger)
        kept = folder / PROOF
        if not kept.exists():
            proof = build_proof(
                ledger,
                run=run,
                log_key=ledger.key,
                checkpoint_before=leaving.stated["predicate"]["ledger"]["checkpoint_before"],
            )
            write_private(kept, proof)
        digests |= _write(aside, {PROOF: kept.read_bytes()})
        sync_folder(aside)
        aside.rename(target)
    sync_folder(target.parent)
    write_report(folder, leaving.stated, leaving.envelope, say=say)
    return dict(sorted(digests.items()))


def prepare(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    *,
    opener: KeyOpener,
    say: Callable[[str], None],
) -> Leaving:
    """What would leave now; opens the adapter and writes nothing."""
    folder = workspace.run_path(run)
    plan, _ = stored_plan(workspace, ledger, run)
    audited, envelope = audited_statement(workspace, ledger, run)
    stated = with_waivers(ledger, run, audited)
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        sealed = SealedRun(run=run, folder=folder, vault=vault)
        files = sealed.unseal_adapter()
        if stated != audited:
            run_key = SigningKey.from_bytes("run", sealed.unseal("run-key"))
            envelope = dsse_sign(statement.payload(stated), statement.PAYLOAD_TYPE, [run_key])
    if {name: sha256_hex(data) for name, data in files.items()} != _weights(stated):
        raise IntegrityError(f"the adapter of run {run} is not the one that was audited")
    held = _countersignatures(folder, ledger, run, stated, say=say)
    envelope = {**envelope, "signatures": [*envelope["signatures"], *held]}
    facts = statement.validate(stated).predicate
    require_countersigned(run, countersigned(facts, signed_by(envelope)))
    return Leaving(
        files={**files, **rendered_files(stated, envelope)}, stated=stated, envelope=envelope
    )


def require_countersigned(run: str, signed: Countersigned) -> None:
    """Raise `PolicyRefused` while a countersignature that the policy asks for is missing."""
    if signed.missing:
        raise PolicyRefused(
            f"the policy of run {run} wants {signed.wanted} countersignature(s) of its report, and "
            f"it has {len(signed.names)}: {', '.join(signed.names) or 'nobody'}",
            hint=f"privft countersign {run} --key FILE, by an approver who has read it",
        )


def with_waivers(ledger: Ledger, run: str, audited: dict[str, Any]) -> dict[str, Any]:
    """The audited statement with the waivers of that audit in it; itself where there are none."""
    newest = ledger.entries(kind="run-audited", run=run)[-1]
    waivers = [e for e in ledger.entries(kind="run-waived", run=run) if e.index > newest.index]
    if not waivers:
        return audited
    fields = ("reason", "expires", "signatures")
    facts = {name: fact for name, fact in audited["predicate"].items() if name != "renderer"}
    facts["waivers"] = [{name: entry.body[name] for name in fields} for entry in waivers]
    return statement.build(facts)


def countersign(
    workspace: Workspace, ledger: Ledger, run: str, *, person: Identity, dry_run: bool
) -> tuple[str, Countersigned]:
    """An approver signs the statement that is to be released; its digest, and who counts then.

    dry_run: check everything, write nothing.  Raises `PolicyRefused` for somebody whom the
    statement does not name as an approver.
    """
    stated = with_waivers(ledger, run, audited_statement(workspace, ledger, run)[0])
    named = {row["keyid"] for row in stated["predicate"]["may_countersign"]}
    if person.signing.public.keyid not in named:
        raise PolicyRefused(
            f"the statement of run {run} does not name {person.name} as an approver",
            hint=f"who became one after the audit is named by a new one: privft audit {run}",
        )
    payload = statement.payload(stated)
    path = workspace.run_path(run) / COUNTERSIGNED
    envelope = dsse_sign(payload, statement.PAYLOAD_TYPE, [person.signing])
    if path.exists():
        known = read_canonical(path, "the countersignatures")
        if known["payload"] == envelope["payload"]:
            envelope = dsse_add_signature(known, person.signing)
    if not dry_run:
        write_private(path, canonical_json(envelope) + b"\n")
    facts = statement.validate(stated).predicate
    return sha256_hex(payload), countersigned(facts, signed_by(envelope))


def _countersignatures(
    folder: Path,
    ledger: Ledger,
    run: str,
    stated: dict[str, Any],
    *,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The signatures that people put under this statement and that count at its release."""
    path = folder / COUNTERSIGNED
    if not path.exists():
        return []
    envelope: dict[str, Any] = read_canonical(path, "the countersignatures")
    ring, released = ledger.keyring(), ledger.entries(kind="run-released", run=run)
    at = released[0].time if released else format_time(datetime.now(UTC))
    known = {person.verify_key.keyid: person.verify_key for person in ring.people}
    payload, keyids = dsse_open(envelope, known, payload_type=statement.PAYLOAD_TYPE)
    if payload != statement.payload(stated):
        say("a countersignature is of another statement, and is left out")
        return []
    counted = ring.trusted("approver", at)
    for keyid in keyids:
        if keyid not in counted:
            say(f"the countersignature of {known[keyid].name} counts no more, and is left out")
    return [row for row in envelope["signatures"] if row["keyid"] in counted]


def _weights(stated: dict[str, Any]) -> dict[str, str]:
    files: dict[str, str] = stated["predicate"]["model"]["adapter_files"]
    return files


def check_target(target: Path) -> None:
    """Raise `UsageError` unless a folder can be made there."""
    if target.exists():
        raise UsageError(f"{target} exists", hint="name a folder that does not exist yet")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent} to release into")


def _log(
    ledger: Ledger, run: str, digests: dict[str, str], stated: dict[str, Any], actor: str
) -> None:
    """The entry `run-released`, once; raises when the first release was of other files."""
    body = {"run": run, "files": digests, "statement_sha256": statement.digest(stated)}
    earlier = ledger.entries(kind="run-released", run=run)
    if not earlier:
        ledger.append("run-released", body, actor=actor)
    elif earlier[0].body["files"] != digests:
        before, now = (
            any(name.startswith(f"{MERGED}/") for name in names)
            for names in (earlier[0].body["files"], digests)
        )
        if before != now:
            raise UsageError(
                f"run {run} was released before {'with' if before else 'without'} a merged model",
                hint="the first release fixes the files: the same again, "
                + ("with --merge" if before else "without --merge"),
            )
        raise IntegrityError(f"run {run} was released before with other files")


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A folder to fill beside `target`; removed again when that fails."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write(folder: Path, files: Mapping[str, bytes]) -> dict[str, str]:
    for name, data in files.items():
        with (folder / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return {name: sha256_hex(data) for name, data in files.items()}


def _write_merged(
    workspace: Workspace, ledger: Ledger, run: str, aside: Path, files: Mapping[str, bytes]
) -> dict[str, str]:
    """The merged model below `aside`, durable; {merged/NAME: sha256}."""
    from privft.stages.modelling import check_base, find_base, write_merged

    plan, config_folder = stored_plan(workspace, ledger, run)
    config = plan.the_config()
    base = find_base(config, relative_to=config_folder)
    check_base(base, plan.model)
    folder = aside / MERGED
    folder.mkdir(mode=0o700)
    write_merged(config, base, files, folder)
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digests[f"{MERGED}/{path.name}"] = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
    sync_folder(folder)
    return digests
