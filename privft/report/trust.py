"""The trust root: what a verifier must get by another way than the released folder.

A small JSON file (conventionally `trust.json`), handed over in person, printed in a contract, or
pinned in a repository.  Nothing in it is secret; everything rests on its being the right one.

    {"format": "privft-trust-v1",
     "origin": "privft.example/ward-7",
     "log_key": {"name": "privft.example/ward-7", "hex": "<64 hex digits, Ed25519>"},
     "people": [{"name": "amara-liu", "roles": ["approver"], "ed25519": "<64 hex digits>"}],
     "policy_sha256": ["<64 hex digits>"]}

origin          the name of the ledger, first line of every checkpoint; also the log key's name
log_key         signs the checkpoints; through them it vouches for every entry, run keys included
people          whose countersignatures and approvals count, and as what; a name that had other
                keys before stands once for each of them
policy_sha256   the policies that the verifier accepts; an empty list accepts any, and the check
                says so

Unknown fields are errors: a field that this version does not check must not look checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from privft.errors import SignatureError
from privft.report.values import Line, Sha256, Strict
from privft.signing import VerifyKey


class LogKey(Strict):
    """The ledger's checkpoint key."""

    name: Line
    hex: Sha256


class TrustedPerson(Strict):
    """A person whose signatures count."""

    name: Line
    roles: Annotated[list[Line], Field(min_length=1)]
    ed25519: Sha256


class TrustRoot(Strict):
    """The file, whole."""

    format: Literal["privft-trust-v1"]
    origin: Line
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
        return self

    def log(self) -> VerifyKey:
        """The key that opens checkpoints."""
        return VerifyKey.from_hex(self.log_key.name, self.log_key.hex)

    def person(self, name: str, keyid: str) -> TrustedPerson | None:
        """Who has this name and this key, if anybody (one name may have had several keys)."""
        for person in self.people:
            if person.name == name and VerifyKey.from_hex(name, person.ed25519).keyid == keyid:
                return person
        return None

    def keys(self) -> Mapping[str, VerifyKey]:
        """The people's keys by key id."""
        keys = [VerifyKey.from_hex(person.name, person.ed25519) for person in self.people]
        return {key.keyid: key for key in keys}


def parse_trust(data: bytes) -> TrustRoot:
    """The trust root in these bytes; raises `SignatureError`: without it nothing holds."""
    try:
        return TrustRoot.model_validate_json(data)
    except (ValidationError, ValueError) as error:
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
    people: Sequence[tuple[VerifyKey, Sequence[str]]] = (),
    policy_sha256: Sequence[str] = (),
) -> bytes:
    """The file for this log key and these people with their roles, ended by a newline."""
    root = TrustRoot(
        format="privft-trust-v1",
        origin=log_key.name,
        log_key=LogKey(name=log_key.name, hex=log_key.hex),
        people=[
            TrustedPerson(name=key.name, roles=list(roles), ed25519=key.hex)
            for key, roles in people
        ],
        policy_sha256=list(policy_sha256),
    )
    return root.model_dump_json(indent=2).encode() + b"\n"
