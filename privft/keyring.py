"""Who is who: the ring of named people, their keys and roles, as the ledger tells it.

The ring is no file of its own.  It is a fold over the ledger's `key-added` and `key-revoked`
entries, so it has a history, it cannot be edited without the log showing it, and "was this key
good when it signed?" has an answer years later.

A name belongs to one person at a time: it can be added again, with new keys, only after it was
revoked.  A key counts for a role at a moment when it had been added by then, had that role, and
had neither expired nor been revoked yet.  Times are the ledger's (ISO 8601, UTC).

    operator   trains, audits, releases
    approver   signs plans that a policy wants approved by somebody else, and waivers
    auditor    reads the report and verifies; signs nothing here
    witness    another machine, that cosigns checkpoints
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

from privft.budget.entries import Entry, Role, parse_time
from privft.errors import IntegrityError, PolicyRefused, SignatureError
from privft.signing import PublicIdentity, VerifyKey


@dataclass(frozen=True, kw_only=True)
class Person:
    """One name with one pair of keys, from `added` until `expires` or `revoked`."""

    name: str
    roles: tuple[Role, ...]
    public: PublicIdentity
    added: str
    expires: str | None
    revoked: str | None

    @property
    def verify_key(self) -> VerifyKey:
        """The key that checks this person's signatures."""
        return self.public.verify_key()

    def good_at(self, at_time: str) -> bool:
        """Whether the keys counted at this moment (a bound belongs to the time after it)."""
        moment = parse_time(at_time)
        ends = [parse_time(end) for end in (self.expires, self.revoked) if end is not None]
        return parse_time(self.added) <= moment and all(moment < end for end in ends)


@dataclass(frozen=True, kw_only=True)
class Keyring:
    """Everybody who was ever on the ring, in order of joining."""

    people: tuple[Person, ...]

    @staticmethod
    def from_entries(entries: Iterable[Entry]) -> Keyring:
        """The ring after these entries; raises `IntegrityError` naming one that cannot be."""
        people: list[Person] = []
        for entry in entries:
            if entry.kind == "key-added":
                people.append(_added(entry, people))
            elif entry.kind == "key-revoked":
                at = _current(people, entry.body["name"])
                if at is None:
                    raise IntegrityError(
                        f"entry {entry.index} revokes {entry.body['name']}, who is not on the ring"
                    )
                people[at] = replace(people[at], revoked=entry.time)
        return Keyring(people=tuple(people))

    def person(self, name: str) -> Person:
        """The newest holder of this name; raises `PolicyRefused` for a stranger."""
        for person in reversed(self.people):
            if person.name == name:
                return person
        raise PolicyRefused(
            f"nobody named {name} is on the ring", hint="privft keys list shows who is"
        )

    def may(self, name: str, role: Role, at_time: str) -> Person:
        """The person, when their keys were good for this role then.

        Raises `PolicyRefused` when the name lacks the role, and `SignatureError` when the keys had
        not been added yet, had expired or had been revoked.
        """
        self.person(name)
        holders = [person for person in self.people if person.name == name]
        good = [person for person in holders if person.good_at(at_time)]
        if not good:
            last = holders[-1]
            raise SignatureError(
                f"the keys of {name} were not good at {at_time}: added {last.added}, "
                f"expires {last.expires or 'never'}, revoked {last.revoked or 'never'}"
            )
        if role not in good[-1].roles:
            raise PolicyRefused(
                f"{name} is {' and '.join(good[-1].roles)}, which does not include {role}",
                hint=f"somebody with the role {role} has to do this",
            )
        return good[-1]

    def may_with(self, public: PublicIdentity, role: Role, at_time: str) -> Person:
        """`may`, for whoever holds these keys; raises `PolicyRefused` when the ring has others."""
        person = self.may(public.name, role, at_time)
        if person.public != public:
            raise PolicyRefused(f"the ring has other keys for {public.name} than this file")
        return person

    def trusted(self, role: Role, at_time: str) -> Mapping[str, VerifyKey]:
        """The keys that counted for this role at this moment, by key id."""
        keys = (p.verify_key for p in self.people if role in p.roles and p.good_at(at_time))
        return MappingProxyType({key.keyid: key for key in keys})


def _current(people: list[Person], name: str) -> int | None:
    for at, person in enumerate(people):
        if person.name == name and person.revoked is None:
            return at
    return None


def _added(entry: Entry, people: list[Person]) -> Person:
    body = entry.body
    if _current(people, body["name"]) is not None:
        raise IntegrityError(
            f"entry {entry.index} adds {body['name']}, who is on the ring already",
            hint=f"privft keys revoke {body['name']} comes first",
        )
    for person in people:
        if body["ed25519"] == person.public.ed25519 and body["name"] != person.name:
            raise IntegrityError(f"entry {entry.index} gives {body['name']} another person's key")
        if body["ed25519"] == person.public.ed25519 and person.revoked is not None:
            raise IntegrityError(f"entry {entry.index} brings back a key that was revoked")
    return Person(
        name=body["name"],
        roles=cast("tuple[Role, ...]", tuple(body["roles"])),
        public=PublicIdentity(name=body["name"], ed25519=body["ed25519"], x25519=body["x25519"]),
        added=entry.time,
        expires=body["expires"],
        revoked=None,
    )
