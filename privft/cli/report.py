"""privft report: what is rendered from signed statements, for people and for other tools."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from privft.budget.entries import format_time
from privft.cli.session import FILE, print_json, say, session
from privft.report import exports, statement
from privft.report.verify import recipe as recipe_text
from privft.workspace import write_private


@click.group("report")
def report_command() -> None:
    """Reports: index, export, plan, schema, recipe."""


@report_command.command("index")
@click.option("-o", "--output", type=FILE, help="By default index.html in the workspace.")
@click.pass_context
def index(ctx: click.Context, output: Path | None) -> None:
    """One page over all audited runs and their budgets; it works without a server."""
    from privft import gate
    from privft.stages.reporting import index_page

    opened, now = session(ctx), format_time(datetime.now(UTC))
    target = output or opened.workspace.folder / "index.html"
    with opened.ledger() as ledger:
        page = index_page(
            opened.workspace,
            ledger,
            target,
            state_of=lambda record: gate.state_of(record, now=now),
        )
    write_private(target, page.encode())
    say(f"written to {target}")


@report_command.command("export")
@click.argument("run")
@click.option(
    "--as",
    "name",
    type=click.Choice(list(exports.PACKS)),
    required=True,
    help="Which form to fill in.",
)
@click.option("-o", "--output", type=FILE, help="By default stdout.")
@click.pass_context
def export(ctx: click.Context, run: str, name: str, output: Path | None) -> None:
    """A draft for another form, from the signed statement, for a person to finish."""
    from privft.stages.reporting import draft

    opened = session(ctx)
    with opened.ledger() as ledger:
        text = draft(opened.workspace, ledger, run, name)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_private(output, text.encode())
        say(f"written to {output}")
    pack = exports.PACKS[name]
    say(f"a draft of: {pack.title} ({pack.as_of}); places marked {exports.TODO} are yours")


@report_command.command("plan")
@click.argument("plan_file", metavar="PLAN", type=FILE)
@click.option("-o", "--output", type=FILE, help="By default PLAN.html beside it.")
@click.pass_context
def plan(ctx: click.Context, plan_file: Path, output: Path | None) -> None:
    """The page of a plan, made anew from the plan and this ledger, to read before approving."""
    from privft.cli.runs import read_plan
    from privft.stages.reporting import plan_page

    opened = session(ctx)
    target = output or plan_file.with_suffix(".html")
    with opened.ledger() as ledger:
        page = plan_page(opened.workspace, ledger, read_plan(plan_file))
    write_private(target, page.encode())
    say(f"written to {target}")


@report_command.command("schema")
def schema() -> None:
    """The JSON schema of the signed statement."""
    print_json(statement.schema())


@report_command.command("recipe")
def recipe() -> None:
    """How to check a release with public tools only, on one page (Markdown)."""
    click.echo(recipe_text(), nl=False)
