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

from privft.budget.entries import parse_time
from privft.budget.ledger import Ledger
from privft.policy import Policy
from privft.workspace import Workspace, sync_folder

PRIVATE = "audit-private"
"""The sealed file of a run that holds findings on real units."""


def expire(
    workspace: Workspace, ledger: Ledger, dataset: str, policy: Policy, *, now: str
) -> list[str]:
    """Remove what a data set's runs kept for too long; the runs that lost something.

    now: ISO time.
    """
    days = policy.retention_days.value
    if days is None:
        return []
    oldest = parse_time(now) - timedelta(days=days)
    expired = []
    for record in ledger.runs():
        path = workspace.run_path(record.run) / f"{PRIVATE}.sealed"
        if record.dataset != dataset or not path.exists():
            continue
        started = ledger.entries(kind="audit-started", run=record.run)
        if parse_time(started[-1].time) < oldest:
            path.unlink()
            sync_folder(path.parent)
            expired.append(record.run)
    return expired
