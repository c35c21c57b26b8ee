"""What a change of a data set would do: the checks of `privft.stages.data`, and no write.

The ledger may be open for reading only, and the overlap hashes of an intake are compared and not
recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from privft.budget.ledger import Ledger
from privft.policy import Policy
from privft.stages import data
from privft.stages.overlap import meets
from privft.vault import preview
from privft.vault.index import RECORD_ROW
from privft.vault.manifest import Charter
from privft.vault.overlap import HashSet
from privft.vault.parquet import ParquetOpener
from privft.vault.state import record_rows
from privft.vault.store import Vault
from privft.workspace import Workspace

Progress = Callable[[int], None] | None


def creation(
    workspace: Workspace,
    ledger: Ledger,
    charter: Charter,
    *,
    policy: Policy,
    join: str | None,
    sources: Sequence[Path],
    skip_bad: bool = False,
    parquet: ParquetOpener | None = None,
    progress: Progress = None,
) -> preview.Intake:
    """What `data.create_vault` would put into a new vault; raises what it would raise."""
    joined = data.check_new(
        workspace, ledger, charter.dataset, unit=charter.unit, policy=policy, join=join
    )
    lineage = charter.lineage if joined is None else joined.body["lineage"]
    return preview.intake(
        charter,
        os.urandom(32),
        np.empty(0, RECORD_ROW),
        sources,
        skip_bad=skip_bad,
        parquet=parquet,
        overlap_key=workspace.overlap_key,
        on_overlap=_comparing(workspace, ledger, charter.dataset, lineage),
        progress=progress,
    )


def addition(
    workspace: Workspace,
    ledger: Ledger,
    vault: Vault,
    sources: Sequence[Path],
    *,
    skip_bad: bool = False,
    parquet: ParquetOpener | None = None,
    progress: Progress = None,
) -> preview.Intake:
    """What `data.add_records` would do; raises what it would raise."""
    dataset = vault.manifest.dataset
    lineage = data.dataset_entry(ledger, dataset).body["lineage"]
    return preview.intake(
        vault.manifest,
        vault.state.tag_key,
        record_rows(vault.state),
        sources,
        skip_bad=skip_bad,
        parquet=parquet,
        overlap_key=workspace.overlap_key,
        on_overlap=_comparing(workspace, ledger, dataset, lineage),
        progress=progress,
    )


def _comparing(
    workspace: Workspace, ledger: Ledger, dataset: str, lineage: str
) -> Callable[[HashSet, HashSet], None]:
    def compare(units: HashSet, contents: HashSet) -> None:
        meets(workspace, ledger, dataset, lineage, units | contents)

    return compare
