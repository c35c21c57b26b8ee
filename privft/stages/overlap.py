"""Does what comes into one data set belong to the budget of another already?

Unit ids and texts are compared by keyed hashes (`privft.vault.overlap`) with all other data sets of
the workspace.  `meets` looks; a `Comparison` looks and records, so that later intakes see these,
and holds the workspace's other comparisons up until the ledger has its entry: two intakes of the
same people at the same moment would otherwise not see each other, and have two budgets.
"""

from __future__ import annotations

from types import TracebackType

from filelock import FileLock, Timeout

from privft.budget.ledger import Ledger
from privft.errors import OrderError, UsageError
from privft.vault.overlap import HashSet
from privft.workspace import Workspace

_LOCK_WAIT_S = 60.0


class Comparison:
    """One intake's comparison, called with its hashes of units and of contents; a context that
    ends after the ledger's entry.  `met`: whether others of the lineage hold some of them.

    The lock is taken at the call, not before, since reading the rows may take long.
    """

    def __init__(self, workspace: Workspace, ledger: Ledger, dataset: str, lineage: str) -> None:
        self._workspace, self._ledger = workspace, ledger
        self._dataset, self._lineage = dataset, lineage
        self._lock = FileLock(str(workspace.overlap_lock), timeout=_LOCK_WAIT_S, mode=0o600)
        self.met = False

    def __call__(self, units: HashSet, contents: HashSet) -> None:
        """Raises UsageError when a data set with another budget holds some of them.

        Recorded before the vault commits: an intake that fails leaves a few hashes too many, never
        too few.
        """
        self._workspace.overlap_lock.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise OrderError(
                f"another intake of this workspace has been at its end for {_LOCK_WAIT_S:.0f} s",
                hint="wait for it to finish, then repeat",
            ) from None
        hashes = units | contents
        self.met = meets(self._workspace, self._ledger, self._dataset, self._lineage, hashes)
        known = self._workspace.overlap_hashes(self._dataset)
        self._workspace.record_overlap_hashes(self._dataset, known | hashes)

    def __enter__(self) -> Comparison:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()


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
