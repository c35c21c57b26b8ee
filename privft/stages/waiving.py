"""Two people take a failed audit on themselves: the waiver that they sign, and until when.

What a waiver's signatures are over stands in `budget.signed`; whether a run may be waived, and
whether a waiver still holds at a release, is the gate's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from privft.budget.entries import parse_time
from privft.budget.ledger import Ledger
from privft.budget.signed import waiver_message
from privft.errors import IntegrityError, UsageError
from privft.signing import Identity


def signed(
    ledger: Ledger,
    run: str,
    *,
    people: Sequence[Identity],
    reason: str,
    expires: str,
    now: str,
) -> dict[str, Any]:
    """The body of the waiver of the newest audit of `run`, with a signature of each of `people`.

    expires, now: ISO times.  Raises `UsageError` for a waiver that would not hold.
    """
    if len({person.public.ed25519 for person in people}) < 2:
        raise UsageError(f"a waiver needs two people, got {len(people)}", hint="--key twice")
    if not reason.strip():
        raise UsageError("a waiver needs a reason", hint="--reason TEXT")
    try:
        in_time = parse_time(expires) > parse_time(now)
    except IntegrityError as error:
        raise UsageError(error.message, hint="--until 2027-01-31T00:00:00Z") from None
    if not in_time:
        raise UsageError(f"expected an expiry after {now}, got {expires}")
    audited = ledger.entries(kind="run-audited", run=run)[-1]
    message = waiver_message(
        run,
        statement_sha256=audited.body["statement_sha256"],
        reason=reason,
        expires=expires,
    )
    signatures = []
    for person in people:
        ledger.keyring().may_with(person.public, "approver", now)
        signatures.append(
            {
                "name": person.name,
                "keyid": person.signing.public.keyid,
                "signature": person.signing.sign(message).hex(),
            }
        )
    return {"run": run, "reason": reason, "expires": expires, "signatures": signatures}
