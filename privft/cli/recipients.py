"""privft vault recipients: who can open a vault, one more or one fewer at a time.

Four kinds: a person of the ring, a passphrase, a key service behind a program, and a key on a
PKCS#11 token.  `new_recipient` is the decorator with the options for the last three, which
`privft vault create` has too; the ones without `recipient` in their name, on every command that
opens a vault, say what opens it now.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from privft.cli.opened import opened_vault, person_recipient, plain
from privft.cli.session import Acting, Session, dry_run, opening, say, session
from privft.errors import UsageError
from privft.stages import data
from privft.vault import store
from privft.vault.keys import Recipient, passphrase_recipient
from privft.vault.rotation import check_recipients
from privft.vault.services import exec_service, service_recipient
from privft.vault.store import Vault


@dataclass(frozen=True, kw_only=True)
class New:
    """What the command line says of recipients that are no persons."""

    passphrase: bool
    passphrase_fd: int | None
    service: str | None
    token: str | None
    pin_fd: int | None
    make_key: bool


def new_recipient(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that name a recipient who is no person; the command gets them as `new`."""

    @click.option("--recipient-passphrase", is_flag=True, help="A passphrase opens it too (asked).")
    @click.option("--recipient-passphrase-fd", type=int, help="The same, from a file descriptor.")
    @click.option(
        "--recipient-service",
        metavar="NAME=COMMAND",
        help="A key service opens it too, spoken to by this program.",
    )
    @click.option(
        "--recipient-pkcs11",
        metavar="URI",
        help="A token opens it too: pkcs11:token=T;object=KEY?module-path=LIBRARY.",
    )
    @click.option("--recipient-pin-fd", type=int, help="Its PIN, from this file descriptor.")
    @click.option("--make-key", is_flag=True, help="Make the AES key on the token first.")
    @functools.wraps(command)
    def with_new(
        *args: Any,
        recipient_passphrase: bool,
        recipient_passphrase_fd: int | None,
        recipient_service: str | None,
        recipient_pkcs11: str | None,
        recipient_pin_fd: int | None,
        make_key: bool,
        **rest: Any,
    ) -> Any:
        if recipient_pkcs11 is None and (make_key or recipient_pin_fd is not None):
            raise UsageError("a PIN or --make-key without a token", hint="--recipient-pkcs11 URI")
        new = New(
            passphrase=recipient_passphrase or recipient_passphrase_fd is not None,
            passphrase_fd=recipient_passphrase_fd,
            service=recipient_service,
            token=recipient_pkcs11,
            pin_fd=recipient_pin_fd,
            make_key=make_key,
        )
        return command(*args, new=new, **rest)

    return with_new


def made(opened: Session, new: New, *, label: str | None = None) -> list[Recipient]:
    """The recipients that the command line asks for, labelled by kind unless `label` is given.

    A service or token wraps and unwraps a fresh key once, so that one that does not work is
    noticed here.  In a dry run a key that is still to be made on a token cannot be tried.
    """
    if label is not None and not (label.isprintable() and 1 <= len(label) <= 100):
        raise UsageError("a label is 1 to 100 printable characters")
    found = []
    if new.passphrase:
        given = opened.passphrase(new.passphrase_fd, twice=True)
        found.append(passphrase_recipient(label or "passphrase", given))
    if new.service is not None:
        service = exec_service(new.service)
        found.append(service_recipient(label or service.name, service))
    if new.token is not None:
        token = opened.token(new.token, new.pin_fd)
        if new.make_key and opened.dry_run:
            raise UsageError(
                "a dry run makes no key on a token", hint="leave out --make-key, or --dry-run"
            )
        if new.make_key:
            token.make_key()
        found.append(service_recipient(label or token.name, token))
    return found


@click.group("recipients")
def recipients() -> None:
    """Who can open a vault: list, add, remove."""


@recipients.command("list")
@click.argument("dataset")
@click.pass_context
def list_recipients(ctx: click.Context, dataset: str) -> None:
    """Who can open the vault."""
    facts = store.inspect(session(ctx).workspace.vault_path(dataset))
    for recipient in facts["recipients"]:
        click.echo(plain(recipient))


def _reseal(
    opened: Session,
    dataset: str,
    who: Acting,
    choose: Callable[[Any, Vault], Sequence[Recipient]],
) -> None:
    """A new epoch for the recipients that `choose` makes of ledger and vault."""
    actor = opened.identity(who)
    with opened_vault(opened, dataset, who) as (ledger, vault):
        chosen = check_recipients(choose(ledger, vault))
        labels = ", ".join(recipient.label for recipient in chosen)
        if opened.dry_run:
            say(f"{dataset} would get a new epoch, sealed for {labels}")
            return
        data.rotate_vault(opened.workspace, ledger, vault, actor=actor, recipients=chosen)
    say(f"{dataset} is now sealed for {labels}")


@recipients.command("add")
@click.argument("dataset")
@click.argument("person", required=False)
@click.option("--label", help="What to call a passphrase, service or token; default: by its kind.")
@new_recipient
@opening
@dry_run
@click.pass_context
def add_recipient(
    ctx: click.Context,
    dataset: str,
    person: str | None,
    label: str | None,
    new: New,
    who: Acting,
    dry_run: bool,
) -> None:
    """Let one more open the vault: a person, passphrase, key service or token."""
    opened = session(ctx)
    asked = [person is not None, new.passphrase, new.service is not None, new.token is not None]
    if sum(asked) != 1:
        raise UsageError(
            f"{sum(asked)} recipients to add, expected one",
            hint="a person's name, or one of --recipient-passphrase, -service, -pkcs11",
        )

    def choose(ledger: Any, vault: Vault) -> Sequence[Recipient]:
        if person is None:
            return [*vault.recipients, *made(opened, new, label=label)]
        new_key = person_recipient(ledger, person)  # in place of an older one of the same person
        old = (new_key.label, new_key.holding)
        others = [other for other in vault.recipients if (other.label, other.holding) != old]
        return [*others, new_key]

    _reseal(opened, dataset, who, choose)


@recipients.command("remove")
@click.argument("dataset")
@click.argument("label")
@opening
@dry_run
@click.pass_context
def remove_recipient(
    ctx: click.Context, dataset: str, label: str, who: Acting, dry_run: bool
) -> None:
    """Let one fewer open it; what they copied before stays readable to them."""

    def choose(ledger: Any, vault: Vault) -> Sequence[Recipient]:
        left = [recipient for recipient in vault.recipients if recipient.label != label]
        if len(left) == len(vault.recipients):
            raise UsageError(f"{label} is no recipient of {dataset}")
        return left

    _reseal(session(ctx), dataset, who, choose)
