"""Release: the one door.  Unseals the adapter into a plain folder, whole or not at all.

    DIR/
      adapter_config.json, adapter_model.safetensors   as peft writes them (or head.safetensors)
      README.md               model card with the guarantee
      statement.dsse.json     the signed statement, the one truth (after a waiver: the audited
                              one with the waiver in it, signed anew by the run's key)
      report.html             rendered from it
      ledger-proof.json       inclusion proofs of the run's entries under a signed checkpoint
      LICENSE-NOTE.txt        whose terms hold for what

The folder is written beside its place under another name and renamed when complete.  Releasing
again gives the same bytes: times, proofs and signatures come from the ledger as it was at the
first release.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privft.budget.entries import Entry
from privft.budget.ledger import Ledger
from privft.errors import IntegrityError, UsageError
from privft.report import statement
from privft.report.proof import build_proof
from privft.report.release import PROOF, STATEMENT, rendered_files
from privft.signing import SigningKey, VerifyKey, dsse_open, dsse_sign, sha256_hex
from privft.stages.data import open_vault
from privft.stages.running import stored_plan
from privft.stages.sealedrun import SealedRun
from privft.vault.keys import KeyOpener
from privft.workspace import Workspace, read_canonical, sync_folder, write_private


def release(
    workspace: Workspace,
    ledger: Ledger,
    run: str,
    target: Path,
    *,
    actor_name: str,
    opener: KeyOpener,
) -> dict[str, str]:
    """Write the released folder to `target`; {file name: sha256}."""
    if target.exists():
        raise UsageError(f"{target} exists", hint="name a folder that does not exist yet")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent} to release into")
    folder = workspace.run_path(run)
    plan, _ = stored_plan(workspace, ledger, run)
    (reserved,) = ledger.entries(kind="run-reserved", run=run)
    stated, envelope = read_statement(folder, run_key=reserved.body["run_key"])
    audited = ledger.entries(kind="run-audited", run=run)[-1]
    if statement.digest(stated) != audited.body["statement_sha256"]:
        raise IntegrityError(f"the statement of run {run} is not the one that was audited")
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        sealed = SealedRun(run=run, folder=folder, vault=vault)
        files = sealed.unseal_adapter()
        waivers = ledger.entries(kind="run-waived", run=run)
        if waivers:
            run_key = SigningKey.from_bytes("run", sealed.unseal("run-key"))
            stated, envelope = _with_waivers(stated, waivers, run_key)
    stated_files = stated["predicate"]["model"]["adapter_files"]
    if {name: sha256_hex(data) for name, data in files.items()} != stated_files:
        raise IntegrityError(f"the adapter of run {run} is not the one that was audited")
    files |= rendered_files(stated, envelope)
    digests = {name: sha256_hex(data) for name, data in sorted(files.items())}
    if not ledger.entries(kind="run-released", run=run):
        ledger.append(
            "run-released",
            {
                "run": run,
                "files": digests,
                "statement_sha256": statement.digest(stated),
            },
            actor=actor_name,
        )
    (released,) = ledger.entries(kind="run-released", run=run)
    if released.body["files"] != digests:
        raise IntegrityError(f"run {run} was released before with other files")
    kept = folder / PROOF
    if not kept.exists():
        proof = build_proof(
            ledger,
            run=run,
            log_key=ledger.key,
            checkpoint_before=stated["predicate"]["ledger"]["checkpoint_before"],
        )
        write_private(kept, proof)
    files[PROOF] = kept.read_bytes()
    _write_whole(target, files)
    return {name: sha256_hex(data) for name, data in sorted(files.items())}


def read_statement(folder: Path, *, run_key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(statement, envelope) of an audited run, its signature checked."""
    envelope = read_canonical(folder / STATEMENT, "the statement")
    key = VerifyKey.from_hex("run", run_key)
    payload, _ = dsse_open(envelope, {key.keyid: key}, payload_type=statement.PAYLOAD_TYPE)
    return json.loads(payload), envelope


def _with_waivers(
    audited: dict[str, Any], waivers: Sequence[Entry], run_key: SigningKey
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The audited statement with every waiver in it, signed anew; the same bytes each time."""
    fields = ("reason", "expires", "signatures")
    facts = {name: fact for name, fact in audited["predicate"].items() if name != "renderer"}
    facts["waivers"] = [{name: entry.body[name] for name in fields} for entry in waivers]
    stated = statement.build(facts)
    signed = dsse_sign(statement.payload(stated), statement.PAYLOAD_TYPE, [run_key])
    return stated, signed


def _write_whole(target: Path, files: dict[str, bytes]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, data in files.items():
            with (aside / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        sync_folder(aside)
        aside.rename(target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
