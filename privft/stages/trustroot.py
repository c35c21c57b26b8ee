"""The trust root of a workspace: which keys an outsider should believe, from the ledger."""

from __future__ import annotations

from privft.budget.ledger import Ledger
from privft.report.trust import make_trust


def trust_of(ledger: Ledger) -> bytes:
    """The file for `privft verify --trust`: the log key, everybody on the ring, and the policies
    that data sets were created under."""
    policies = {e.body["policy_digest"] for e in ledger.entries(kind="dataset-created")}
    return make_trust(
        log_key=ledger.key,
        people=[(person.verify_key, person.roles) for person in ledger.keyring().people],
        policy_sha256=sorted(policies),
    )
