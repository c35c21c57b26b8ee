"""privft keys: the ring of named people, which is a fold over the ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from privft.budget.entries import format_time
from privft.cli.session import (
    FILE,
    Acting,
    acting,
    dry_run,
    json_option,
    print_json,
    say,
    session,
    table,
)
from privft.errors import UsageError
from privft.signing import Identity

ROLES = ("operator", "approver", "auditor", "witness")


@click.group()
def keys_command() -> None:
    """People and their keys: create, list, revoke."""


@keys_command.command("create")
@click.argument("new_name", metavar="NAME")
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="May be repeated.")
@click.option("--out", type=FILE, help="Where the private keys go; by default keys/NAME.key.")
@click.option("--days", type=click.IntRange(min=1), help="The keys expire after so many days.")
@acting
@dry_run
@click.pass_context
def create(
    ctx: click.Context,
    new_name: str,
    roles: tuple[str, ...],
    out: Path | None,
    days: int | None,
    who: Acting,
    dry_run: bool,
) -> None:
    """Make keys for a person and put the public half on the ring."""
    opened = session(ctx)
    actor = opened.identity(who)
    try:
        identity = Identity.generate(new_name)
    except ValueError as error:
        raise UsageError(f"{new_name!r} cannot name a person: {error}") from error
    expires = None if days is None else format_time(datetime.now(UTC) + timedelta(days=days))
    with opened.ledger() as ledger:
        path = opened.workspace.place_for_keys(ledger, new_name, key_file=out)
        if not dry_run:
            opened.workspace.add_person(
                ledger,
                identity,
                roles=[role for role in ROLES if role in (roles or ("operator",))],  # type: ignore[misc]
                actor=actor.name,
                key_file=out,
                expires=expires,
            )
    be, are = ("would be", "would be") if dry_run else ("is", "are")
    say(f"{new_name} {be} on the ring; the private keys {are} in {path}")
    say("keep that file where only they can read it: whoever has it acts as them")


@keys_command.command("list")
@json_option
@click.pass_context
def list_people(ctx: click.Context, as_json: bool) -> None:
    """Everybody on the ring, with roles and until when."""
    with session(ctx).ledger() as ledger:
        people = ledger.keyring().people
    if as_json:
        rows = [
            {
                "name": person.name,
                "roles": list(person.roles),
                "ed25519": person.public.ed25519,
                "x25519": person.public.x25519,
                "added": person.added,
                "expires": person.expires,
                "revoked": person.revoked,
            }
            for person in people
        ]
        print_json(rows)
        return
    table(
        "People",
        ["name", "roles", "key", "added", "expires", "revoked"],
        [
            [
                person.name,
                ", ".join(person.roles),
                person.verify_key.keyid[:12],
                person.added,
                person.expires or "never",
                person.revoked or "no",
            ]
            for person in people
        ],
    )


@keys_command.command("revoke")
@click.argument("person", metavar="NAME")
@click.option("--reason", required=True, help="Why; it stands in the ledger.")
@acting
@dry_run
@click.pass_context
def revoke(ctx: click.Context, person: str, reason: str, who: Acting, dry_run: bool) -> None:
    """Make a person's keys count for nothing from now on."""
    opened = session(ctx)
    actor = opened.identity(who)
    with opened.ledger() as ledger:
        opened.workspace.check_revocable(ledger, person)
        if not dry_run:
            ledger.append("key-revoked", {"name": person, "reason": reason}, actor=actor.name)
    say(f"{person} {'would be' if dry_run else 'is'} revoked; what they signed before stays signed")
    say("vaults that they can open: privft vault recipients remove")
