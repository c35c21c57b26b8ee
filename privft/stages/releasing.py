"""Release: the one door.  Unseals the adapter into a plain folder, whole or not at all.

    DIR/
      adapter_config.json, adapter_model.safetensors   as peft writes them (or head.safetensors)
      README.md               model card with the guarantee
      statement.dsse.json     the signed statement, the one truth
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
from pathlib import Path
from typing import Any

from privft.budget.ledger import Ledger
from privft.errors import IntegrityError, UsageError
from privft.report import statement
from privft.report.proof import build_proof
from privft.report.release import PROOF, STATEMENT, rendered_files
from privft.signing import VerifyKey, dsse_open, sha256_hex
from privft.stages.data import open_vault
from privft.stages.running import stored_plan
from privft.stages.sealedrun import SealedRun
from privft.vault.keys import KeyOpener
from privft.workspace import Workspace, sync_folder, write_private


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
    stated, envelope, text = read_statement(folder, run_key=reserved.body["run_key"])
    audited = ledger.entries(kind="run-audited", run=run)[-1]
    if statement.digest(stated) != audited.body["statement_sha256"]:
        raise IntegrityError(f"the statement of run {run} is not the one that was audited")
    with open_vault(workspace, ledger, plan.dataset, opener) as vault:
        files = SealedRun(run=run, folder=folder, vault=vault).unseal_adapter()
    stated_files = stated["predicate"]["model"]["adapter_files"]
    if {name: sha256_hex(data) for name, data in files.items()} != stated_files:
        raise IntegrityError(f"the adapter of run {run} is not the one that was audited")
    files |= rendered_files(stated, envelope)
    if files[STATEMENT] != text:
        raise IntegrityError(f"{STATEMENT} of run {run} is not in canonical form")
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


def read_statement(folder: Path, *, run_key: str) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """(statement, envelope, the file's bytes) of an audited run, its signature checked."""
    text = (folder / STATEMENT).read_bytes()
    try:
        envelope = json.loads(text)
    except ValueError as error:
        raise IntegrityError(f"{folder / STATEMENT} is not JSON") from error
    key = VerifyKey.from_hex("run", run_key)
    payload, _ = dsse_open(envelope, {key.keyid: key}, payload_type=statement.PAYLOAD_TYPE)
    return json.loads(payload), envelope, text


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
