"""The ring of people as a fold over ledger entries."""

from __future__ import annotations

import pytest

from privft.budget.entries import Entry
from privft.errors import IntegrityError, PolicyRefused, SignatureError
from privft.keyring import Keyring
from privft.signing import Identity

ANN, BEN = Identity.generate("ann"), Identity.generate("ben")


def added(index: int, person: Identity, roles: list[str], *, expires: str | None = None) -> Entry:
    body = {
        "name": person.name,
        "roles": roles,
        "ed25519": person.public.ed25519,
        "x25519": person.public.x25519,
        "expires": expires,
    }
    return Entry(index=index, kind="key-added", time=day(index), actor="ann", body=body)


def revoked(index: int, name: str) -> Entry:
    body = {"name": name, "reason": "left"}
    return Entry(index=index, kind="key-revoked", time=day(index), actor="ann", body=body)


def day(number: int) -> str:
    return f"2026-01-{number:02d}T00:00:00Z"


def test_a_person_may_do_what_the_roles_say() -> None:
    ring = Keyring.from_entries([added(1, ANN, ["operator"]), added(2, BEN, ["approver"])])
    assert ring.may("ann", "operator", day(3)).name == "ann"
    with pytest.raises(PolicyRefused):
        ring.may("ann", "approver", day(3))
    with pytest.raises(PolicyRefused):
        ring.may("eve", "operator", day(3))
    assert set(ring.trusted("approver", day(3))) == {BEN.signing.public.keyid}


def test_keys_count_from_joining_until_revocation() -> None:
    ring = Keyring.from_entries([added(2, ANN, ["operator"]), revoked(5, "ann")])
    assert ring.may("ann", "operator", day(4))
    for moment in (day(1), day(5), day(6)):
        with pytest.raises(SignatureError):
            ring.may("ann", "operator", moment)
        assert not ring.trusted("operator", moment)


def test_keys_count_until_they_expire() -> None:
    ring = Keyring.from_entries([added(2, ANN, ["operator"], expires=day(4))])
    assert ring.may("ann", "operator", day(3))
    with pytest.raises(SignatureError):
        ring.may("ann", "operator", day(4))


def test_a_name_comes_back_with_new_keys_only_after_revocation() -> None:
    fresh = Identity.generate("ann")
    with pytest.raises(IntegrityError):
        Keyring.from_entries([added(1, ANN, ["operator"]), added(2, fresh, ["operator"])])
    with pytest.raises(IntegrityError):
        Keyring.from_entries(
            [added(1, ANN, ["operator"]), revoked(2, "ann"), added(3, ANN, ["operator"])]
        )
    ring = Keyring.from_entries(
        [added(1, ANN, ["operator"]), revoked(2, "ann"), added(3, fresh, ["approver"])]
    )
    assert ring.person("ann").public == fresh.public
    assert ring.may("ann", "approver", day(4))
    # a signature of the first keys, made while they were good, can still be checked
    assert set(ring.trusted("operator", day(1))) == {ANN.signing.public.keyid}


def test_two_names_cannot_share_a_key() -> None:
    twin = Identity(
        name="ben",
        signing=type(ANN.signing)(name="ben", seed=ANN.signing.seed),
        agreement=BEN.agreement,
    )
    with pytest.raises(IntegrityError):
        Keyring.from_entries([added(1, ANN, ["operator"]), added(2, twin, ["approver"])])


def test_a_stranger_cannot_be_revoked() -> None:
    with pytest.raises(IntegrityError):
        Keyring.from_entries([revoked(1, "ann")])
