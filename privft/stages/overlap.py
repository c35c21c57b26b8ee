"""Does what comes into one data set belong to the budget of another already?

Unit ids and texts are compared by keyed hashes (`privft.vault.overlap`) with all other data sets of
the workspace.  `meets` looks; `compared` looks and records, so that later intakes see these.
"""

from __future__ import annotations

from privft.budget.ledger import Ledger
from privft.errors import UsageError
from privft.vault.overlap import HashSet
from privft.workspace import Workspace


def compared(
    workspace: Workspace, ledger: Ledger, dataset: str, lineage: str, hashes: HashSet
) -> bool:
    """`meets`, and the hashes recorded."""
    met = meets(workspace, ledger, dataset, lineage, hashes)
    workspace.record_overlap_hashes(dataset, workspace.overlap_hashes(dataset) | hashes)
    return met


def meets(
    workspace: Workspace, ledger: Ledger, dataset: str, lineage: str, hashes: HashSet
) -> bool:
    """Whether others of the lineage hold some of these units and texts.

    Raises UsageError when a data set with another budget does.
    """
    met = False
    for entry in ledger.entries(kind="dataset-created"):
        other, its_lineage = entry.body["dataset"], entry.body["lineage"]
        shared = 0 if other == dataset else len(hashes & workspace.overlap_hashes(other))
        if shared and its_lineage != lineage:
            raise UsageError(
                f"{shared} of {len(hashes)} units and texts are in data set {other} already, "
                "which has a budget of its own",
                hint=f"privft vault create ... --join {other} puts both under one budget",
            )
        met = met or shared > 0
    return met
