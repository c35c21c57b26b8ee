"""The trust root of a workspace: which keys an outsider should believe, from the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.report.trust import TrustRoot, make_trust
from privft.signing import VerifyKey


def trust_of(ledger: Ledger, *, days: int) -> bytes:
    """The file for `privft verify --trust`, good for so many days from now: the log key, everybody
    who is or was on the ring, and the policies that data sets were created under."""
    now = datetime.now(UTC)
    policies = {e.body["policy_digest"] for e in ledger.entries(kind="dataset-created")}
    return make_trust(
        log_key=ledger.key,
        people=ledger.keyring().people,
        policy_sha256=sorted(policies),
        issued=format_time(now),
        expires=format_time(now + timedelta(days=days)),
    )


def vault_signers(trust: TrustRoot) -> dict[str, VerifyKey]:
    """Who may have signed a vault's manifest or a certificate: everybody who ever was an operator
    (as `Workspace.signer_keys`); SignatureError when the trust root has expired."""
    trust.check_current(format_time(datetime.now(UTC)))
    keys = [person.verify_key for person in trust.ring().people if "operator" in person.roles]
    return {key.keyid: key for key in keys}
