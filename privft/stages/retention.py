"""What is kept about real units, and until when: the policy's `retention_days`.

The sealed findings of attacks on real units (`audit-private.sealed`) say who was in the data, as
well as an attack can tell.  They are for one decision; so many days after the audit that made them
they are removed, by whichever verb of the path next works on their data set: train, audit or
release.  Nothing private is left behind by a run beside them and the adapter, which is the product.

Removed means unlinked: their key, derived from the vault's secret, lives on, so copies elsewhere
(a backup) stay readable to the vault's recipients.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from privft.budget.entries import parse_time
from privft.budget.ledger import Ledger
from privft.policy import Policy
from privft.workspace import Workspace, sync_folder

PRIVATE = "audit-private"
"""The sealed file of a run that holds findings on real units."""


def kept_days(workspace: Workspace, ledger: Ledger, dataset: str, *, now: str) -> dict[str, float]:
    """How many days ago the findings on real units that still lie there were made, by run.

    now: ISO time.
    """
    kept = {}
    for record in ledger.runs():
        if record.dataset == dataset and _path(workspace, record.run).exists():
            started = ledger.entries(kind="audit-started", run=record.run)
            age = parse_time(now) - parse_time(started[-1].time)
            kept[record.run] = age / timedelta(days=1)
    return kept


def expire(
    workspace: Workspace, ledger: Ledger, dataset: str, policy: Policy, *, now: str
) -> list[str]:
    """Remove what a data set's runs kept for too long; the runs that lost something.

    now: ISO time.
    """
    limit = policy.retention_days.value
    if limit is None:
        return []
    kept = kept_days(workspace, ledger, dataset, now=now)
    expired = [run for run, days in kept.items() if days > limit]
    for run in expired:
        path = _path(workspace, run)
        path.unlink()
        sync_folder(path.parent)
    return expired


def _path(workspace: Workspace, run: str) -> Path:
    return workspace.run_path(run) / f"{PRIVATE}.sealed"
