"""A vault with its ledger, opened for a command of the vault group and closed after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from privft.budget.ledger import Ledger
from privft.cli.session import Acting, Session
from privft.stages import data
from privft.vault.keys import Recipient, agreement_recipient
from privft.vault.store import Vault


def person_recipient(ledger: Ledger, name: str) -> Recipient:
    """The recipient who holds a person's agreement key."""
    person = ledger.keyring().person(name)
    return agreement_recipient(name, bytes.fromhex(person.public.x25519))


@contextmanager
def opened_vault(opened: Session, dataset: str, who: Acting) -> Iterator[tuple[Ledger, Vault]]:
    """The ledger and a vault of it, both closed again at the end."""
    with (
        opened.ledger() as ledger,
        data.open_vault(opened.workspace, ledger, dataset, opened.opener(who)) as vault,
    ):
        yield ledger, vault


def plain(value: Any) -> str:
    """A fact as a person reads it: `name value, name value`, one line for each of several."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "\n".join(plain(part) for part in value) or "none"
    return "none" if value is None else str(value)
