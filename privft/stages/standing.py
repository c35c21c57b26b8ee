"""The policy's rules about a workspace as it stands, beside those about a plan (`policy.check`).

    witness_within   how long ago a witness last spoke; older than that, and no run starts
    retention_days   how long findings on real units are kept; older ones go before a run is
                     trained, audited or released, so this rule mends itself and refuses nothing

`privft policy check` lists both with the rest; the gate enforces them by `check_witnessed` and by
`retention.expire`.
"""

from __future__ import annotations

from privft.budget.ledger import Ledger
from privft.budget.witness import freshness
from privft.errors import PolicyRefused
from privft.policy import Check, Policy
from privft.stages.retention import kept_days
from privft.workspace import Workspace


def check_standing(
    workspace: Workspace, ledger: Ledger, dataset: str, policy: Policy, *, now: str
) -> list[Check]:
    """Both rules held against the workspace at a moment (ISO time)."""
    return [_witness(ledger, policy, now), _retention(workspace, ledger, dataset, policy, now)]


def check_witnessed(ledger: Ledger, policy: Policy, *, now: str) -> None:
    """Raise `PolicyRefused` when a witness last spoke longer ago than the policy allows."""
    row = _witness(ledger, policy, now)
    if not row.ok:
        said = f"the newest word is {row.got}" if row.got else "no witness ever cosigned the ledger"
        raise PolicyRefused(
            f"policy {policy.name!r} wants a witness within {row.limit}, and {said}", hint=row.fix
        )


def _witness(ledger: Ledger, policy: Policy, now: str) -> Check:
    within, last = policy.witness_within.value, freshness(ledger, now)
    kept = within is None or (
        last is not None and last.entries <= within.entries and last.days <= within.days
    )
    return Check(
        rule="witness_within",
        limit=within and f"{within.entries} entries and {within.days:g} days",
        got=last and f"{last.entries} entries and {last.days:.1f} days old, by {last.witness}",
        ok=kept,
        fix="privft ledger witness ask NAME",
        why=policy.witness_within.why,
    )


def _retention(
    workspace: Workspace, ledger: Ledger, dataset: str, policy: Policy, now: str
) -> Check:
    limit, kept = policy.retention_days.value, kept_days(workspace, ledger, dataset, now=now)
    oldest = max(kept.values(), default=None)
    due = "" if limit is None or oldest is None or oldest <= limit else ", goes with the next verb"
    return Check(
        rule="retention_days",
        limit=limit,
        got=None if oldest is None else f"oldest findings {oldest:.1f} days old{due}",
        ok=True,
        fix="privft train, audit or release removes what is older",
        why=policy.retention_days.why,
    )
