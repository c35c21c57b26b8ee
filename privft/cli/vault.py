"""privft vault: sealed data, from intake over rotation and recipients to erasure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from privft.cli.looking import check_proof, inspect, prove, unit_in, verify
from privft.cli.opened import opened_vault, person_recipient
from privft.cli.recipients import New, made, new_recipient, recipients
from privft.cli.session import (
    FILE,
    Acting,
    acting,
    dry_run,
    opening,
    print_json,
    say,
    session,
)
from privft.errors import UsageError
from privft.policy import load_policy
from privft.stages import data, dryrun
from privft.vault import preview
from privft.vault.adding import IntakeSummary
from privft.vault.fields import FieldMap
from privft.vault.manifest import Caps, new_charter
from privft.vault.rotation import check_recipients
from privft.vault.store import Vault


def parquet_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What opens encrypted Parquet files."""
    of_columns = click.option(
        "--parquet-service",
        metavar="NAME=COMMAND",
        help="A key service that unwraps the keys in encrypted Parquet files.",
    )
    of_file = click.option(
        "--parquet-key-fd",
        type=int,
        help="Key of encrypted Parquet files, as hex or bytes, from this file descriptor.",
    )
    return of_file(of_columns(command))


@click.group()
def vault_command() -> None:
    """Sealed data: create, add, inspect, verify, prove, rotate, erase, recipients."""


@vault_command.command("create")
@click.argument("dataset")
@click.option("--from", "sources", multiple=True, type=click.Path(path_type=Path), help="Rows.")
@click.option("--unit", type=click.Choice(["record", "subject"]), required=True)
@click.option(
    "--declared-units",
    type=click.IntRange(min=2),
    required=True,
    help="A public number of units; never the live count.",
)
@click.option("--text", help="Column with the text.")
@click.option("--prompt", help="Column with the prompt.")
@click.option("--completion", help="Column with the completion.")
@click.option("--messages", help="Column with chat messages.")
@click.option("--label", help="Column with the label.")
@click.option("--subject", help="Column that says whose record it is.")
@click.option("--id", "id_column", help="Column with the record's id.")
@click.option(
    "--policy",
    "policy_name",
    default="default",
    show_default=True,
    help="A shipped policy or a file; fixes the budget for good.",
)
@click.option("--join", help="Share the budget of this data set.")
@click.option("--recipient", "people", multiple=True, help="Who can open it; default: who acts.")
@new_recipient
@click.option(
    "--held-out-share",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    show_default=True,
    help="Share of units never trained on, for attacks to compare with.",
)
@click.option(
    "--max-records-per-unit", type=click.IntRange(1, 1_000_000), default=1000, show_default=True
)
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out instead of stopping.")
@parquet_options
@acting
@dry_run
@click.pass_context
def create(
    ctx: click.Context,
    dataset: str,
    sources: tuple[Path, ...],
    unit: Any,
    declared_units: int,
    policy_name: str,
    join: str | None,
    people: tuple[str, ...],
    new: New,
    held_out_share: float,
    max_records_per_unit: int,
    skip_bad: bool,
    parquet_key_fd: int | None,
    parquet_service: str | None,
    id_column: str | None,
    who: Acting,
    dry_run: bool,
    text: str | None,
    prompt: str | None,
    completion: str | None,
    messages: str | None,
    label: str | None,
    subject: str | None,
) -> None:
    """Make a vault with a budget of its own, and put rows into it."""
    opened = session(ctx)
    actor = opened.identity(who)
    parquet = opened.parquet(parquet_key_fd, parquet_service)
    for source in sources:
        if not source.exists():
            raise UsageError(f"there is no file {source}")
    try:
        fields = FieldMap(
            text=text,
            prompt=prompt,
            completion=completion,
            messages=messages,
            label=label,
            subject=subject,
            id=id_column,
        )
    except ValueError:
        raise UsageError(
            "a column's name is empty, over 200 characters, or no plain text"
        ) from None
    caps = Caps(held_out_share=held_out_share, max_records_per_unit=max_records_per_unit)
    with opened.ledger() as ledger:
        recipients = [person_recipient(ledger, who) for who in people or (actor.name,)]
        recipients += made(opened, new)
        check_recipients(recipients)
        labels = ", ".join(recipient.label for recipient in recipients)
        policy = load_policy(policy_name)
        if dry_run:
            charter = new_charter(dataset=dataset, unit=unit, fields=fields, caps=caps)
            with _reading_rows() as progress:
                expected = dryrun.creation(
                    opened.workspace,
                    ledger,
                    charter,
                    policy=policy,
                    join=join,
                    sources=sources,
                    skip_bad=skip_bad,
                    parquet=parquet,
                    progress=progress,
                )
            budget = f"the budget of {join}" if join else f"a budget of policy {policy.name}"
            say(f"vault {dataset} would be made with {budget}, sealed for {labels}")
            _tell_intake(expected)
            return
        with _reading_rows() as progress:
            vault, summary = data.create_vault(
                opened.workspace,
                ledger,
                actor=actor,
                dataset=dataset,
                unit=unit,
                fields=fields,
                caps=caps,
                declared_units=declared_units,
                policy=policy,
                recipients=recipients,
                join=join,
                sources=sources,
                skip_bad=skip_bad,
                parquet=parquet,
                progress=progress,
            )
        vault.close()
    say(f"vault {dataset} is there, sealed for {labels}")
    if summary is not None:
        _tell(summary)


@vault_command.command("add")
@click.argument("dataset")
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--skip-bad", is_flag=True, help="Leave bad rows out instead of stopping.")
@parquet_options
@opening
@dry_run
@click.pass_context
def add(
    ctx: click.Context,
    dataset: str,
    sources: tuple[Path, ...],
    skip_bad: bool,
    parquet_key_fd: int | None,
    parquet_service: str | None,
    who: Acting,
    dry_run: bool,
) -> None:
    """Put more rows into a vault, all or nothing."""
    opened = session(ctx)
    actor = opened.identity(who)
    parquet = opened.parquet(parquet_key_fd, parquet_service)
    with opened_vault(opened, dataset, who) as (ledger, vault), _reading_rows() as progress:
        if dry_run:
            expected = dryrun.addition(
                opened.workspace,
                ledger,
                vault,
                sources,
                skip_bad=skip_bad,
                parquet=parquet,
                progress=progress,
            )
            _tell_intake(expected)
            return
        summary = data.add_records(
            opened.workspace,
            ledger,
            vault,
            sources,
            actor=actor,
            skip_bad=skip_bad,
            parquet=parquet,
            progress=progress,
        )
    _tell(summary)


@contextmanager
def _reading_rows() -> Iterator[Callable[[int], None]]:
    """A line on stderr that counts rows while they are read."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True
    ) as bar:
        task = bar.add_task("reading rows")
        yield lambda rows: bar.update(task, description=f"reading rows: {rows}")


def _tell_intake(expected: preview.Intake) -> None:
    say(
        f"{expected.records} records would come in: {expected.units_new} new units, "
        f"{expected.units_grown} grown; {expected.rows_skipped} bad rows would be left out "
        "(private numbers: for your eyes)"
    )


def _tell(summary: IntakeSummary) -> None:
    say(
        f"{summary.records_added} records: {summary.units_new} new units, {summary.units_grown} "
        "grown (private numbers: for your eyes)"
    )
    if summary.rows_skipped:
        say(f"{summary.rows_skipped} bad rows were left out:")
        for row in summary.skipped[:10]:
            say(f"  {row.source} line {row.line}: {row.reason}")
    if summary.shared_text_units:
        say(
            f"warning: {summary.shared_text_units} units share text with others; the guarantee is "
            "for one unit, and text that several share is protected less; for example"
        )
        for one, two in summary.shared_text_pairs[:10]:
            say(f"  {one} and {two}")
    say("the plaintext is still where it was; destroy it when nothing else needs it:")
    for source in summary.to_shred:
        say(f"  {source}")


@vault_command.command("rotate")
@click.argument("dataset")
@click.option("--reencrypt", is_flag=True, help="New unit keys too, after a compromise.")
@opening
@dry_run
@click.pass_context
def rotate(
    ctx: click.Context,
    dataset: str,
    reencrypt: bool,
    who: Acting,
    dry_run: bool,
) -> None:
    """A new epoch key; with --reencrypt, everything is sealed anew."""
    opened = session(ctx)
    actor = opened.identity(who)
    with opened_vault(opened, dataset, who) as (ledger, vault):
        if dry_run:
            _tell_rotation(vault, reencrypt)
            return
        data.rotate_vault(opened.workspace, ledger, vault, actor=actor, reencrypt=reencrypt)
    say(f"{dataset} has a new epoch key" + (" and new unit keys" if reencrypt else ""))


def _tell_rotation(vault: Vault, reencrypt: bool) -> None:
    epoch = vault.manifest.epoch
    say(
        f"epoch {epoch} would become {epoch + 1}, sealed for "
        f"{', '.join(recipient.label for recipient in vault.recipients)}"
    )
    if reencrypt:
        size = sum(file.size_bytes for file in vault.manifest.segments)
        say(f"{len(vault)} units ({size} bytes) would be sealed again under new keys (private)")


@vault_command.command("erase")
@click.argument("dataset")
@click.option(
    "--unit-file",
    type=FILE,
    required=True,
    help="A file that holds the unit's id: ids do not belong on a command line.",
)
@opening
@dry_run
@click.pass_context
def erase(
    ctx: click.Context,
    dataset: str,
    unit_file: Path,
    who: Acting,
    dry_run: bool,
) -> None:
    """Erase one unit for good and print the signed certificate."""
    opened = session(ctx)
    actor = opened.identity(who)
    unit = unit_in(unit_file)
    with opened_vault(opened, dataset, who) as (ledger, vault):
        if dry_run:
            expected = preview.erasure(vault.state, unit)
            runs = ", ".join(data.past_runs(ledger, dataset)) or "none"
            say(
                f"1 unit with {expected.records} records would be erased, and files of together "
                f"{expected.rewritten_bytes} bytes written again without it (private)"
            )
            say(f"past runs that the certificate would name: {runs}")
        else:
            print_json(dict(data.erase_unit(opened.workspace, ledger, vault, unit, actor=actor)))
            say("erased; the certificate says what it cannot promise")
        for other in data.also_in(opened.workspace, ledger, dataset, unit):
            say(f"the same id came into {other} once: erase it there too, if it still is there")


for _command in (inspect, verify, prove, check_proof, recipients):
    vault_command.add_command(_command)
