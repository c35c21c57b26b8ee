"""How many people must put their names under a report, and who counts among them.

A policy may ask for countersignatures (`countersignatures`): so many approvers read the signed
statement and signed it too before anything left.  They come after the statement, which therefore
cannot hold them: they stand on its envelope.  So the rule is kept at two places, by the same
functions: `release` refuses without them, and `report.verify` holds the envelope against the policy
that the statement carries and the ledger names.

Who counts: a person whom the statement names as an approver (`may_countersign`), once, and where
the policy wants four eyes, nobody who started the run.  Whether a signature holds and whether the
key counted at the time is checked before, by whoever calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from privft.errors import IntegrityError
from privft.report.facts import Facts


@dataclass(frozen=True, kw_only=True)
class Countersigned:
    """wanted: how many the policy asks for.  names: who counts, in order of signing."""

    wanted: int
    names: tuple[str, ...]

    @property
    def missing(self) -> int:
        """How many more it takes."""
        return max(0, self.wanted - len(self.names))


def countersigned(facts: Facts, keyids: Iterable[str]) -> Countersigned:
    """What the policy asks for, held against the keys that signed.

    Raises `IntegrityError` for a policy that does not say how many it asks for.
    """
    wanted, four_eyes = _rule(facts, "countersignatures"), _rule(facts, "four_eyes")
    if type(wanted) is not int or wanted < 0 or type(four_eyes) is not bool:
        raise IntegrityError(
            f"policy {facts.policy.name} does not say how many countersignatures it asks for"
        )
    named = {row.keyid: row.name for row in facts.may_countersign}
    names = dict.fromkeys(named[keyid] for keyid in keyids if keyid in named)
    if four_eyes:
        names.pop(facts.run.actor, None)
    return Countersigned(wanted=wanted, names=tuple(names))


def signed_by(envelope: Mapping[str, Any] | None) -> list[str]:
    """The key ids on an envelope, in order of signing; none without one."""
    return [str(row["keyid"]) for row in envelope["signatures"]] if envelope else []


def _rule(facts: Facts, name: str) -> Any:
    rule = facts.policy.body.get(name)
    return rule.get("value") if isinstance(rule, dict) else None
