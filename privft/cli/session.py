"""What commands share: who acts, in which workspace, how vaults open, how results are printed.

Ledger and vault are imported where they are used: commands without a workspace (`verify`, the
calculators) do not wait for them.
"""

from __future__ import annotations

import functools
import getpass
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from privft.errors import UsageError

if TYPE_CHECKING:
    from privft.budget.ledger import Ledger
    from privft.signing import Identity
    from privft.vault.keys import KeyOpener
    from privft.vault.parquet import ParquetOpener
    from privft.vault.tokens import TokenService
    from privft.workspace import Workspace

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


@dataclass(frozen=True, kw_only=True)
class Acting:
    """What the command line says of who acts and what opens the vault."""

    name: str | None
    key_file: Path | None
    passphrase_fd: int | None = None
    ask_passphrase: bool = False
    service: str | None = None
    token: str | None = None
    pin_fd: int | None = None

    @property
    def by_passphrase(self) -> bool:
        """Whether a passphrase opens the vault."""
        return self.passphrase_fd is not None or self.ask_passphrase


def acting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say who acts; the command gets them as `who`."""

    @click.option("--as", "name", metavar="NAME", help="Who acts, by name.")
    @click.option("--key", "key_file", type=FILE, help="Who acts, by key file.")
    @functools.wraps(command)
    def with_who(*args: Any, name: str | None, key_file: Path | None, **rest: Any) -> Any:
        return command(*args, who=Acting(name=name, key_file=key_file), **rest)

    return with_who


def opening(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say who acts and how the vault is opened; the command gets them as `who`."""

    @acting
    @click.option(
        "--passphrase-fd",
        type=int,
        help="Open the vault with a passphrase read from this file descriptor.",
    )
    @click.option(
        "--passphrase", "ask_passphrase", is_flag=True, help="Open it with a passphrase, asked for."
    )
    @click.option(
        "--service",
        metavar="NAME=COMMAND",
        help="Open it through a key service, spoken to by this program.",
    )
    @click.option(
        "--pkcs11",
        "token",
        metavar="URI",
        help="Open it with a token: pkcs11:token=T;object=KEY?module-path=LIBRARY.",
    )
    @click.option("--pin-fd", type=int, help="The token's PIN, from this file descriptor.")
    @functools.wraps(command)
    def with_opener(
        *args: Any,
        who: Acting,
        passphrase_fd: int | None,
        ask_passphrase: bool,
        service: str | None,
        token: str | None,
        pin_fd: int | None,
        **rest: Any,
    ) -> Any:
        who = replace(
            who,
            passphrase_fd=passphrase_fd,
            ask_passphrase=ask_passphrase,
            service=service,
            token=token,
            pin_fd=pin_fd,
        )
        return command(*args, who=who, **rest)

    return with_opener


def dry_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--dry-run` for a verb that changes state; the command gets it as the flag `dry_run`.

    With the flag a command checks everything that it would check, says with `say` what it would
    do, and returns before it writes: no file, no entry, no transaction.  Numbers that only a key
    shows may be said when the key was needed anyway.  It fails where the real thing would fail.

    Guarantees: `Session.ledger` gives a ledger that is open for reading only, so that an entry
    written by mistake is an error and not an entry.

        @group.command("rotate")
        @opening
        @dry_run
        @click.pass_context
        def rotate(ctx: click.Context, dataset: str, who: Acting, dry_run: bool) -> None: ...
    """

    @click.option("--dry-run", is_flag=True, help="Say what would happen, and change nothing.")
    @functools.wraps(command)
    def with_dry_run(*args: Any, dry_run: bool, **rest: Any) -> Any:
        click.get_current_context().obj["dry_run"] = dry_run
        result = command(*args, dry_run=dry_run, **rest)
        if dry_run:
            say("dry run: nothing was changed")
        return result

    return with_dry_run


@dataclass(frozen=True, kw_only=True)
class Session:
    """The open workspace and the person who acts."""

    workspace: Workspace
    no_input: bool
    dry_run: bool = False

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """The ledger, closed again at the end; for reading only in a dry run."""
        with self.workspace.ledger(writable=not self.dry_run) as ledger:
            yield ledger

    def identity(self, who: Acting) -> Identity:
        """Who acts."""
        return self.workspace.identity(name=who.name, key_file=who.key_file)

    def opener(self, who: Acting) -> KeyOpener:
        """What opens the vault: a passphrase, a service or a token where one is given, else the
        person's key."""
        return self.opener_with(who, self.opening_secret(who))

    def opening_secret(self, who: Acting) -> bytes | None:
        """The passphrase or the token's PIN, where the vault is opened with one."""
        if sum((who.by_passphrase, who.service is not None, who.token is not None)) > 1:
            raise UsageError("more than one way to open the vault", hint="give one of them")
        if who.by_passphrase:
            return self.passphrase(who.passphrase_fd)
        return None if who.token is None else self._pin(who.token, who.pin_fd)

    def opener_with(self, who: Acting, secret: bytes | None) -> KeyOpener:
        """`opener`, with what `opening_secret` gave."""
        from privft.vault.keys import passphrase_opener
        from privft.vault.services import exec_service, service_opener
        from privft.workspace import opener_of

        if who.service is not None:
            return service_opener(exec_service(who.service))
        if secret is None:
            return opener_of(self.identity(who))
        if who.token is not None:
            return service_opener(_token_service(who.token, secret))
        return passphrase_opener(secret)

    def passphrase(self, descriptor: int | None, *, twice: bool = False) -> bytes:
        """A passphrase from a file descriptor or a prompt, never from argv or environment."""
        return self._secret("passphrase", descriptor, "--passphrase-fd N", twice=twice)

    def parquet(self, descriptor: int | None, service: str | None) -> ParquetOpener | None:
        """What opens encrypted Parquet files: a key from a file descriptor (16, 24 or 32 bytes, or
        the same in hex) or a key service; None without either."""
        if descriptor is not None and service is not None:
            raise UsageError("more than one way to open Parquet files", hint="give one of them")
        if service is not None:
            from privft.vault.services import exec_service

            return exec_service(service)
        if descriptor is None:
            return None
        given = self._secret("key of Parquet files", descriptor, "--parquet-key-fd N")
        if re.fullmatch(rb"([0-9a-fA-F]{32}|[0-9a-fA-F]{48}|[0-9a-fA-F]{64})", given):
            # 32 hex digits could be 32 bytes too: hex is how keys are written down
            given = bytes.fromhex(given.decode())
        if len(given) not in (16, 24, 32):
            raise UsageError(f"a Parquet key of {len(given)} bytes, expected 16, 24 or 32")
        return given

    def token(self, uri: str, pin_fd: int | None) -> TokenService:
        """The key on a token, with the PIN from a file descriptor or a prompt."""
        return _token_service(uri, self._pin(uri, pin_fd))

    def _pin(self, uri: str, pin_fd: int | None) -> bytes:
        from privft.vault.tokens import parse_uri

        return self._secret(f"PIN of token {parse_uri(uri).token}", pin_fd, "--pin-fd N")

    def _secret(
        self, what: str, descriptor: int | None, option: str, *, twice: bool = False
    ) -> bytes:
        if descriptor is not None:
            try:
                with os.fdopen(descriptor, "rb") as file:
                    return file.read().removesuffix(b"\n")
            except OSError as error:
                raise UsageError(
                    f"file descriptor {descriptor} cannot be read", hint="3< FILE opens one"
                ) from error
        if self.no_input or not sys.stdin.isatty():
            raise UsageError(f"a {what} is needed and nobody can be asked", hint=option)
        given = getpass.getpass(f"{what}: ")
        if twice and getpass.getpass("again: ") != given:
            raise UsageError(f"the two {what}s differ", hint="try again")
        return given.encode()


def _token_service(uri: str, pin: bytes) -> TokenService:
    from privft.vault.tokens import TokenService, parse_uri

    place = parse_uri(uri)
    return TokenService(module=place.module, token=place.token, key=place.key, pin=pin)


def ledger_password(ctx: click.Context) -> str | None:
    """The password of the ledger's database, where a file descriptor is named for it."""
    known: str | None = ctx.obj.get("ledger_password")  # a descriptor can be read once
    descriptor = ctx.obj.get("ledger_password_fd")
    if descriptor is None or known is not None:
        return known
    try:
        with os.fdopen(descriptor, encoding="utf-8") as file:
            known = ctx.obj["ledger_password"] = file.read().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"file descriptor {descriptor} cannot be read", hint="3< FILE opens one"
        ) from error
    return known


def session(ctx: click.Context) -> Session:
    """The workspace that the command is about."""
    from privft.workspace import Workspace

    given, password = ctx.obj["workspace"], ledger_password(ctx)
    if given is not None:
        workspace = Workspace.open(given, ledger_password=password)
    else:
        workspace = Workspace.find(Path.cwd(), ledger_password=password)
    return Session(
        workspace=workspace,
        no_input=ctx.obj["no_input"],
        dry_run=ctx.obj.get("dry_run", False),
    )


def say(line: str) -> None:
    """A line of talk, on stderr."""
    click.echo(line, err=True)


def say_all(lines: Sequence[str]) -> None:
    """Lines of talk, on stderr."""
    for line in lines:
        say(line)


def print_json(value: Any) -> None:
    """Data for a script, on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Data for a person, on stdout."""
    from rich.console import Console
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*row)
    width = None if sys.stdout.isatty() else 110
    Console(width=width, markup=False, highlight=False).print(made)
