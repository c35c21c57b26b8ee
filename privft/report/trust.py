"""The trust root: what a verifier must get by another way than the released folder.

A small JSON file (conventionally `trust.json`), handed over in person, printed in a contract, or
pinned in a repository.  Nothing in it is secret; everything rests on its being the right one.

    {"format": "privft-trust-v1",
     "origin": "privft.example/ward-7",
     "issued": "2026-11-23T20:15:24Z", "expires": "2027-11-23T20:15:24Z",
     "log_key": {"name": "privft.example/ward-7", "hex": "<64 hex digits, Ed25519>"},
     "people": [{"name": "amara-liu", "roles": ["approver"], "ed25519": "<64 hex digits>",
                 "added": "2026-01-07T09:00:00Z", "expires": null, "revoked": null}],
     "policy_sha256": ["<64 hex digits>"]}

origin          the name of the ledger, first line of every checkpoint; also the log key's name
issued, expires an old file does not know who was revoked since; past `expires` it vouches for
                nothing, and a newer one is due
log_key         signs the checkpoints; through them it vouches for every entry, run keys included
people          whose countersignatures, approvals and waivers count, as what, and when: a key
                counts from `added` until `expires` or `revoked`, held against the time that the
                ledger gives to the act.  What was signed before a revocation stays signed.  A name
                that had other keys before stands once for each of them
policy_sha256   the policies that the verifier accepts; an empty list accepts any, and the check
                says so

Unknown fields are errors: a field that this version does not check must not look checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from privft.budget.entries import Role, parse_time
from privft.errors import IntegrityError, SignatureError
from privft.keyring import Keyring, Person
from privft.report.values import Line, Sha256, Strict
from privft.signing import PublicIdentity, VerifyKey

Moment = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
_NEWER = "ask the operator for a newer one by a way other than this folder: privft ledger trust"


class LogKey(Strict):
    """The ledger's checkpoint key."""

    name: Line
    hex: Sha256


class TrustedPerson(Strict):
    """A person whose signatures count, from `added` until `expires` or `revoked`."""

    name: Line
    roles: Annotated[list[Role], Field(min_length=1)]
    ed25519: Sha256
    added: Moment
    expires: Moment | None
    revoked: Moment | None


class TrustRoot(Strict):
    """The file, whole."""

    format: Literal["privft-trust-v1"]
    origin: Line
    issued: Moment
    expires: Moment
    log_key: LogKey
    people: list[TrustedPerson]
    policy_sha256: list[Sha256]

    @model_validator(mode="after")
    def _keys_are_unique(self) -> TrustRoot:
        if self.log_key.name != self.origin:
            raise ValueError("expected the log key to be named after the origin")
        keys = [person.ed25519 for person in self.people]
        if len(set(keys)) != len(keys):
            raise ValueError("expected every key once")
        people = [m for p in self.people for m in (p.added, p.expires, p.revoked) if m is not None]
        for moment in (self.issued, self.expires, *people):
            parse_time(moment)
        return self

    def check_current(self, now: str) -> None:
        """Return when the file vouches for anything at this moment; raises `SignatureError`."""
        if parse_time(now) >= parse_time(self.expires):
            raise SignatureError(f"the trust root expired at {self.expires}", hint=_NEWER)

    def log(self) -> VerifyKey:
        """The key that opens checkpoints."""
        return VerifyKey.from_hex(self.log_key.name, self.log_key.hex)

    def ring(self) -> Keyring:
        """The people as a ring, which knows whose key counted for what and when."""
        return Keyring(
            people=tuple(
                Person(
                    name=person.name,
                    roles=tuple(person.roles),
                    public=PublicIdentity(name=person.name, ed25519=person.ed25519, x25519=""),
                    added=person.added,
                    expires=person.expires,
                    revoked=person.revoked,
                )
                for person in self.people
            )
        )

    def keys(self) -> Mapping[str, VerifyKey]:
        """The people's keys by key id, whether or not they count any more."""
        keys = [VerifyKey.from_hex(person.name, person.ed25519) for person in self.people]
        return {key.keyid: key for key in keys}


def parse_trust(data: bytes) -> TrustRoot:
    """The trust root in these bytes; raises `SignatureError`: without it nothing holds."""
    try:
        return TrustRoot.model_validate_json(data)
    except (ValidationError, ValueError, IntegrityError) as error:
        reason = (
            error.errors(include_input=False)[0]["msg"]
            if isinstance(error, ValidationError)
            else str(error)
        )
        raise SignatureError(
            f"not a trust root: {reason}",
            hint="ask the operator for trust.json by a way other than this folder",
        ) from error


def make_trust(
    *,
    log_key: VerifyKey,
    people: Sequence[Person] = (),
    policy_sha256: Sequence[str] = (),
    issued: str,
    expires: str,
) -> bytes:
    """The file for this log key and these people, ended by a newline.  issued, expires: ISO."""
    root = TrustRoot(
        format="privft-trust-v1",
        origin=log_key.name,
        issued=issued,
        expires=expires,
        log_key=LogKey(name=log_key.name, hex=log_key.hex),
        people=[
            TrustedPerson(
                name=person.name,
                roles=list(person.roles),
                ed25519=person.public.ed25519,
                added=person.added,
                expires=person.expires,
                revoked=person.revoked,
            )
            for person in people
        ],
        policy_sha256=list(policy_sha256),
    )
    return root.model_dump_json(indent=2).encode() + b"\n"
