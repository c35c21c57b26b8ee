"""privft vault recipients: who can open a vault, one more or one fewer at a time."""

from __future__ import annotations

import click

from privft.cli.opened import opened_vault, person_recipient, plain
from privft.cli.session import Acting, opening, say, session
from privft.errors import UsageError
from privft.stages import data
from privft.vault import store


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


def _change(
    ctx: click.Context,
    dataset: str,
    person: str,
    who: Acting,
    *,
    adding: bool,
) -> None:
    opened = session(ctx)
    actor = opened.identity(who)
    with opened_vault(opened, dataset, who) as (ledger, vault):
        left = [r for r in vault.recipients if r.label != person]
        if adding:
            left.append(person_recipient(ledger, person))
        elif len(left) == len(vault.recipients):
            raise UsageError(f"{person} is no recipient of {dataset}")
        data.rotate_vault(opened.workspace, ledger, vault, actor=actor, recipients=left)
    say(f"{dataset} is now sealed for {', '.join(r.label for r in left)}")


@recipients.command("add")
@click.argument("dataset")
@click.argument("person")
@opening
@click.pass_context
def add_recipient(
    ctx: click.Context,
    dataset: str,
    person: str,
    who: Acting,
) -> None:
    """Let one more person open the vault."""
    _change(ctx, dataset, person, who, adding=True)


@recipients.command("remove")
@click.argument("dataset")
@click.argument("person")
@opening
@click.pass_context
def remove_recipient(
    ctx: click.Context,
    dataset: str,
    person: str,
    who: Acting,
) -> None:
    """Let one fewer open it; what they copied before stays readable to them."""
    _change(ctx, dataset, person, who, adding=False)
