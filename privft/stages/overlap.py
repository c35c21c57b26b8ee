"""Does what comes into one data set belong to the budget of another already?

Unit ids and texts are compared by keyed hashes (`privft.vault.overlap`) with all other data sets of
the workspace.  `meets` looks; `compared` looks and records, so that later intakes see these;
`enter` writes the ledger's entry, only if nothing came into any data set since, and otherwise looks
again: of two intakes at the same moment the later one sees the other.

The hashes lie in the workspace and not in the ledger, because several enclaves may share a ledger
and hashes are not public.  The ledger has a commitment to them for each data set; where this
workspace cannot show the hashes that belong to it, nothing is taken in at all, since it might have
a budget already.  After a recovery the same holds for data sets that only the lost branch knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from privft.budget.entries import Entry
from privft.budget.ledger import Ledger
from privft.errors import IntegrityError, OrderError, UsageError
from privft.vault.overlap import HashSet
from privft.workspace import Workspace

_KINDS = ("dataset-created", "intake")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Units and texts of a data set, held against all others.

    met: whether others of its lineage hold some of them.  seen: how many entries about data sets
    there were, by kind, when that was looked up.
    """

    dataset: str
    lineage: str
    hashes: HashSet
    met: bool
    seen: Mapping[str, int]


def _seen(ledger: Ledger) -> dict[str, int]:
    return {kind: len(ledger.entries(kind=kind)) for kind in _KINDS}


def compared(
    workspace: Workspace, ledger: Ledger, dataset: str, lineage: str, hashes: HashSet
) -> Compared:
    """`meets`, and the hashes recorded."""
    seen = _seen(ledger)  # first: what comes in from here on is noticed by `enter`
    met = meets(workspace, ledger, dataset, lineage, hashes)
    workspace.record_overlap_hashes(dataset, hashes)
    return Compared(dataset=dataset, lineage=lineage, hashes=hashes, met=met, seen=seen)


def enter(
    workspace: Workspace,
    ledger: Ledger,
    found: Compared,
    kind: str,
    body: Mapping[str, Any],
    *,
    actor: str,
) -> tuple[Entry, Compared]:
    """Append an entry that rests on a comparison; the entry, and the comparison for the next.

    Raises as `meets` when somebody else took in the same records meanwhile.
    """
    while True:
        if kind == "intake":
            known = workspace.overlap_known(found.dataset).commitments[-1]
            body = {**body, "overlap": "same-lineage" if found.met else "none", "known": known}
        try:
            entry = ledger.append(kind, body, actor=actor, unchanged=found.seen)
        except OrderError:
            seen = _seen(ledger)
            if seen == found.seen:
                raise
            arguments = (found.dataset, found.lineage, found.hashes)
            met = meets(workspace, ledger, *arguments, recorded=True)
            found = replace(found, met=met, seen=seen)
            continue
        return entry, replace(found, seen={**found.seen, kind: found.seen[kind] + 1})


def meets(
    workspace: Workspace,
    ledger: Ledger,
    dataset: str,
    lineage: str,
    hashes: HashSet,
    *,
    recorded: bool = False,
) -> bool:
    """Whether others of the lineage hold some of these units and texts.

    recorded: these very hashes stand under the data set's name already.
    Raises UsageError when a data set with another budget does, or one whose budget a recovery
    lost, and IntegrityError when this workspace does not know what some data set holds.
    """
    met, lineages = False, dict[str, str]()
    for entry in ledger.entries(kind="dataset-created"):
        other = entry.body["dataset"]
        lineages[other] = entry.body["lineage"]
        known = _known(workspace, ledger, other)
        shared = 0 if other == dataset else len(hashes & known)
        if shared and lineages[other] != lineage:
            raise UsageError(
                f"{shared} of {len(hashes)} units and texts are in data set {other} already, "
                "which has a budget of its own",
                hint=f"privft vault create ... --join {other} puts both under one budget",
            )
        met = met or shared > 0
    if ledger.entries(kind="recovered"):
        own = {dataset} if recorded else set()
        for lost in set(workspace.overlap_datasets()) - set(lineages) - own:
            if shared := len(hashes & workspace.overlap_known(lost).hashes):
                raise UsageError(
                    f"{shared} of {len(hashes)} units and texts were in data set {lost}, whose "
                    "budget was lost with the entries that a recovery gave up",
                    hint="what was spent on them is not known: leave them out",
                )
    return met


def _known(workspace: Workspace, ledger: Ledger, dataset: str) -> HashSet:
    """The hashes of all that a data set ever held."""
    known = workspace.overlap_known(dataset)
    intakes = ledger.entries(kind="intake", dataset=dataset)
    if intakes and intakes[-1].body["known"] not in known.commitments:
        raise IntegrityError(
            f"this workspace does not know what data set {dataset} holds, so it cannot tell "
            "whether new records have a budget already",
            hint=f"bring overlap/{dataset} from the workspace that took records in last, or from "
            "its newest backup",
        )
    return known.hashes
