"""Data into vaults, and out of them again by erasure; each change is an entry of the ledger.

A vault's manifest names the newest ledger checkpoint at the time of the change, and the ledger's
entry names the manifest's digest: so an old vault shows against the ledger, and an old ledger shows
against the vault.

A change commits the vault first, then writes what belongs to it (an erasure's certificate), then
the entry.  If the process dies in between, the vault is one version ahead of the ledger:
`open_vault` says so, and `adopt` completes the change: the signed manifest says what it was
(`privft.vault.manifest.Cause`), so an intake gets its entry with provenance, an erasure its
certificate, by the same function that would have written them the first time.  Adoption compares
all units and texts of the vault with the other data sets once more, so that nothing gets round the
comparison by being interrupted, and takes one change at a time: each manifest names the one before.

Overlap.  Every unit id and text that comes in is compared, by keyed hash, with all other data sets
of the ledger (`stages.overlap`).  What is known already has a budget already: the intake is refused
unless the data set joined that budget when it was created (`join`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from privft.budget.entries import Entry
from privft.budget.ledger import Ledger
from privft.budget.translog import Checkpoint
from privft.errors import IntegrityError, OrderError, UsageError
from privft.policy import Policy
from privft.signing import Identity, canonical_json, sha256_hex
from privft.stages.overlap import Compared, compared, enter
from privft.vault import store, verify
from privft.vault.adding import IntakeSummary
from privft.vault.erasure import certify
from privft.vault.fields import FieldMap
from privft.vault.keys import KeyOpener, Recipient
from privft.vault.manifest import Caps, Intake, Rotation
from privft.vault.overlap import HashSet, overlap_hash
from privft.vault.parquet import ParquetOpener
from privft.vault.store import Vault
from privft.vault.verify import VaultCheck
from privft.workspace import Workspace, write_private

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")  # as the `dataset` of a config
_VERSION_KINDS = ("dataset-created", "intake", "vault-rotated", "vault-erased")


def dataset_entry(ledger: Ledger, dataset: str) -> Entry:
    """The entry that created the data set; raises `UsageError` for an unknown one."""
    found = ledger.entries(kind="dataset-created", dataset=dataset)
    if not found:
        known = [entry.body["dataset"] for entry in ledger.entries(kind="dataset-created")]
        raise UsageError(
            f"there is no data set {dataset!r} in this workspace",
            hint=f"known: {', '.join(known) or 'none'}; privft vault create makes one",
        )
    return found[0]


def policy_of(workspace: Workspace, ledger: Ledger, dataset: str) -> Policy:
    """The policy that the data set was created under, as the ledger names it."""
    return workspace.policy(dataset_entry(ledger, dataset).body["policy_digest"])


def newest_version(ledger: Ledger, dataset: str) -> Entry:
    """The ledger's newest entry about a version of the data set's vault."""
    return [e for e in ledger.entries(dataset=dataset) if e.kind in _VERSION_KINDS][-1]


def newest_root(ledger: Ledger, dataset: str) -> str:
    """The manifest root that the ledger last heard of."""
    return str(newest_version(ledger, dataset).body["manifest_root"])


def create_vault(
    workspace: Workspace,
    ledger: Ledger,
    *,
    actor: Identity,
    dataset: str,
    unit: Literal["record", "subject"],
    fields: FieldMap,
    caps: Caps,
    declared_units: int,
    policy: Policy,
    recipients: Sequence[Recipient],
    join: str | None = None,
    sources: Sequence[Path] = (),
    skip_bad: bool = False,
    parquet: ParquetOpener | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Vault, IntakeSummary | None]:
    """A vault with the records of `sources`, with a budget of its own or that of the data set
    `join`; when its records are refused, there is no vault and no budget either."""
    joined = check_new(workspace, ledger, dataset, unit=unit, policy=policy, join=join)
    workspace.keep_policy(policy)
    path = workspace.vault_path(dataset)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    vault = store.create(
        path,
        dataset=dataset,
        unit=unit,
        fields=fields,
        recipients=recipients,
        checkpoint=ledger.checkpoint(),
        signer=actor.signing,
        caps=caps,
    )
    lineage = vault.lineage if joined is None else joined.body["lineage"]
    first = _version(vault)
    summary, found = None, None
    if sources:
        try:
            summary, found = _take_in(
                workspace, ledger, vault, sources, lineage, actor, skip_bad, parquet, progress
            )
        except BaseException:
            _take_back(workspace, vault)
            raise
    cap = policy.cap(declared_units).to_dict() if joined is None else joined.body["cap"]
    body = {
        **first,
        "lineage": lineage,
        "unit": unit,
        "cap": cap,
        "declared_units": declared_units,
        "policy": policy.name,
        "policy_digest": policy.digest,
    }
    if found is None:
        ledger.append("dataset-created", body, actor=actor.name)
    else:
        try:
            _, found = enter(workspace, ledger, found, "dataset-created", body, actor=actor.name)
        except UsageError:  # somebody else took in the same records meanwhile
            _take_back(workspace, vault)
            raise
        _complete(workspace, ledger, vault, actor=actor, found=found)
    return vault, summary


def _take_back(workspace: Workspace, vault: Vault) -> None:
    """Leave nothing of a vault that the ledger has not heard of."""
    vault.close()
    shutil.rmtree(vault.path)
    workspace.forget_overlap_hashes(vault.manifest.dataset)


def check_new(
    workspace: Workspace,
    ledger: Ledger,
    dataset: str,
    *,
    unit: Literal["record", "subject"],
    policy: Policy,
    join: str | None,
) -> Entry | None:
    """The entry of the data set to join, None without one; UsageError when there can be no new
    data set of this name, unit and policy."""
    if not _NAME.fullmatch(dataset):
        raise UsageError(
            f"{dataset!r} cannot name a data set",
            hint="lower-case letters, digits, dots, dashes and underscores, 63 at most",
        )
    if ledger.entries(kind="dataset-created", dataset=dataset):
        raise UsageError(f"there is a data set {dataset!r} already", hint="choose another name")
    joined = None if join is None else dataset_entry(ledger, join)
    if joined is not None and joined.body["unit"] != unit:
        raise UsageError(
            f"{join} has a budget for one {joined.body['unit']}, not for one {unit}",
            hint=f"--unit {joined.body['unit']}",
        )
    if unit not in policy.units.value:
        raise UsageError(
            f"policy {policy.name!r} has no budgets for one {unit}",
            hint=f"--unit {policy.units.value[0]}",
        )
    path = workspace.vault_path(dataset)
    if path.exists():
        raise UsageError(
            f"the ledger knows of no data set {dataset!r}, and there is a folder {path}",
            hint="an interrupted command may have left it: look, remove it, try again",
        )
    return joined


def open_vault(workspace: Workspace, ledger: Ledger, dataset: str, opener: KeyOpener) -> Vault:
    """The newest version of a vault, checked against the ledger in both directions."""
    dataset_entry(ledger, dataset)
    vault = _open_unanchored(workspace, ledger, dataset, opener)
    _check_newest(ledger, dataset, vault.manifest_digest)
    return vault


def verify_files(workspace: Workspace, ledger: Ledger, dataset: str) -> VaultCheck:
    """Check what needs no key: signature, files, and that the ledger names this version."""
    dataset_entry(ledger, dataset)
    path = workspace.vault_path(dataset)
    check = verify.verify_files(path, workspace.signer_keys(ledger))
    _check_newest(ledger, dataset, check.manifest_digest)
    return check


def _check_newest(ledger: Ledger, dataset: str, digest: str) -> None:
    expected = newest_version(ledger, dataset).body["manifest_digest"]
    if digest != expected:
        raise IntegrityError(
            f"the vault of {dataset} is not the version that the ledger names "
            f"(manifest {digest[:12]}, ledger {expected[:12]})",
            hint="restored from a backup? bring the newest one; or an interrupted change: "
            f"privft vault verify {dataset} --adopt",
        )


def _open_unanchored(
    workspace: Workspace, ledger: Ledger, dataset: str, opener: KeyOpener
) -> Vault:
    vault = Vault.open(
        workspace.vault_path(dataset), opener, signer_keys=workspace.signer_keys(ledger)
    )
    check_extends(ledger, vault.manifest.checkpoint, f"the vault of {dataset}")
    return vault


def check_extends(ledger: Ledger, note: str, holder: str) -> None:
    """Raise unless the ledger grew out of the checkpoint that `holder` carries.

    The one exception is a checkpoint of a branch that a lawful recovery gave up.
    """
    seen = Checkpoint.open(note, ledger.key)
    try:
        ledger.check_known(note)
    except IntegrityError as error:
        raise IntegrityError(
            f"{holder} has seen {seen.size} ledger entries: {error.message}", hint=error.hint
        ) from error


def adopt(
    workspace: Workspace, ledger: Ledger, dataset: str, opener: KeyOpener, *, actor: Identity
) -> str | None:
    """Complete the change that was interrupted; the kind of its entry, None when none was.

    Raises OrderError for a vault that is not one change ahead of the ledger, and UsageError when
    units or texts in it belong to another budget.
    """
    lineage = dataset_entry(ledger, dataset).body["lineage"]
    with _open_unanchored(workspace, ledger, dataset, opener) as vault:
        known = newest_version(ledger, dataset).body["manifest_digest"]
        if vault.manifest_digest == known:
            return None
        if vault.manifest.previous != known:
            raise OrderError(
                f"the vault of {dataset} is not one change ahead of the ledger's newest entry",
                hint="this is a restored backup, not an interrupted change: bring the newest one",
            )
        key = workspace.overlap_key
        hashes = vault.unit_hashes(key) | vault.content_hashes(key)
        found = compared(workspace, ledger, dataset, lineage, hashes)
        return _complete(workspace, ledger, vault, actor=actor, found=found).kind


def _version(vault: Vault) -> dict[str, str]:
    """What every entry about a vault says of its version."""
    return {
        "dataset": vault.manifest.dataset,
        "manifest_root": vault.manifest_root,
        "manifest_digest": vault.manifest_digest,
    }


def _complete(
    workspace: Workspace,
    ledger: Ledger,
    vault: Vault,
    *,
    actor: Identity,
    found: Compared | None = None,
) -> Entry:
    """Write what belongs to the change that made this version: last, the ledger's entry.

    found: of an intake, how its records compare with the other data sets.
    """
    cause, body = vault.manifest.cause, _version(vault)
    if isinstance(cause, Intake):
        assert found is not None
        body |= {"lineage": found.lineage, "provenance_sha256": cause.provenance_sha256}
        return enter(workspace, ledger, found, "intake", body, actor=actor.name)[0]
    if isinstance(cause, Rotation):
        return ledger.append("vault-rotated", body, actor=actor.name)
    certificate = certify(vault.manifest, actor.signing)
    text = canonical_json(certificate.envelope)
    write_private(certificate_path(workspace, certificate.commitment), text + b"\n")
    body |= {"commitment": certificate.commitment, "certificate_sha256": sha256_hex(text)}
    return ledger.append("vault-erased", body, actor=actor.name)


def certificate_path(workspace: Workspace, commitment: str) -> Path:
    """Where the certificate of an erasure is kept."""
    return workspace.folder / "certificates" / f"erasure-{commitment[:16]}.json"


def add_records(
    workspace: Workspace,
    ledger: Ledger,
    vault: Vault,
    sources: Sequence[Path],
    *,
    actor: Identity,
    skip_bad: bool = False,
    parquet: ParquetOpener | None = None,
    progress: Callable[[int], None] | None = None,
) -> IntakeSummary:
    """Add records, or nothing; overlap with another budget's data is refused."""
    lineage = dataset_entry(ledger, vault.manifest.dataset).body["lineage"]
    summary, found = _take_in(
        workspace, ledger, vault, sources, lineage, actor, skip_bad, parquet, progress
    )
    _complete(workspace, ledger, vault, actor=actor, found=found)
    return summary


def _take_in(
    workspace: Workspace,
    ledger: Ledger,
    vault: Vault,
    sources: Sequence[Path],
    lineage: str,
    actor: Identity,
    skip_bad: bool,
    parquet: ParquetOpener | None,
    progress: Callable[[int], None] | None,
) -> tuple[IntakeSummary, Compared]:
    """Put records into the vault; also how they compare with those of other data sets."""
    dataset, found = vault.manifest.dataset, list[Compared]()

    def compare(units: HashSet, contents: HashSet) -> None:
        # Recorded before the vault commits: an intake that fails leaves a few hashes too many,
        # never too few.
        found.append(compared(workspace, ledger, dataset, lineage, units | contents))

    summary = vault.add(
        sources,
        signer=actor.signing,
        checkpoint=ledger.checkpoint(),
        who=actor.name,
        skip_bad=skip_bad,
        parquet=parquet,
        overlap_key=workspace.overlap_key,
        on_overlap=compare,
        progress=progress,
    )
    return summary, found[-1]


def rotate_vault(
    workspace: Workspace,
    ledger: Ledger,
    vault: Vault,
    *,
    actor: Identity,
    recipients: Sequence[Recipient] | None = None,
    reencrypt: bool = False,
) -> None:
    """A new epoch key, wrapped to the same recipients or to others."""
    vault.rotate(
        signer=actor.signing,
        checkpoint=ledger.checkpoint(),
        recipients=recipients,
        reencrypt=reencrypt,
    )
    _complete(workspace, ledger, vault, actor=actor)


def erase_unit(
    workspace: Workspace, ledger: Ledger, vault: Vault, unit: str, *, actor: Identity
) -> Mapping[str, Any]:
    """Erase one unit; the signed certificate, also written into the workspace."""
    erasure = vault.erase(
        unit,
        signer=actor.signing,
        checkpoint=ledger.checkpoint(),
        who=actor.name,
        runs=past_runs(ledger, vault.manifest.dataset),
    )
    _complete(workspace, ledger, vault, actor=actor)
    return erasure.envelope


def also_in(workspace: Workspace, ledger: Ledger, dataset: str, unit: str) -> list[str]:
    """Other data sets of the workspace that a unit of this id ever came into."""
    wanted = HashSet.of(overlap_hash(workspace.overlap_key, "unit", unit))
    others = (e.body["dataset"] for e in ledger.entries(kind="dataset-created"))
    return [o for o in others if o != dataset and wanted <= workspace.overlap_known(o).hashes]


def past_runs(ledger: Ledger, dataset: str) -> list[str]:
    """Every run of the data set's lineage: what a unit of it may have been in."""
    lineage = dataset_entry(ledger, dataset).body["lineage"]
    return [record.run for record in ledger.runs(lineage)]
