"""privft ledger: the memory of the budget, for people and for auditors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from privft.budget.ledger import Ledger
from privft.cli.session import FILE, json_option, print_json, say, session, table
from privft.errors import UsageError
from privft.stages.trustroot import trust_of


@click.group("ledger")
def ledger_command() -> None:
    """The budget's memory: show, verify, export, trust."""


def _budget_rows(ledger: Ledger) -> list[dict[str, Any]]:
    rows = []
    for created in ledger.entries(kind="dataset-created"):
        body = created.body
        view = ledger.budget(body["lineage"])
        rows.append(
            {
                "dataset": body["dataset"],
                "lineage": body["lineage"],
                "unit": view.unit,
                "policy": body["policy"],
                "cap": view.cap.to_dict(),
                "epsilon_spent": view.epsilon_spent,
                "epsilon_left": view.epsilon_left,
                "reserved": [event.to_dict() for event in view.reserved],
                "runs": view.runs,
                "more_like_the_last": _more(ledger, body["lineage"]),
            }
        )
    return rows


def _more(ledger: Ledger, lineage: str) -> int | None:
    from privft.budget.filter import fits

    runs = [record for record in ledger.runs(lineage) if record.charged]
    if not runs:
        return None
    view = ledger.budget(lineage)
    return fits(view.cap, (*view.spent, *view.reserved), runs[-1].charged[0])


@ledger_command.command("show")
@click.option("--entries", is_flag=True, help="Every entry instead of the sums.")
@json_option
@click.pass_context
def show(ctx: click.Context, entries: bool, as_json: bool) -> None:
    """What is spent and left of each data set's budget, and how many more runs fit."""
    with session(ctx).ledger() as ledger:
        if entries:
            found = ledger.entries()
            if as_json:
                print_json([json.loads(entry.canonical) for entry in found])
                return
            table(
                "Ledger",
                ["entry", "time", "by", "what", "about"],
                [
                    [
                        str(e.index),
                        e.time,
                        e.actor,
                        e.kind,
                        str(e.body.get("run") or e.body.get("dataset") or e.body.get("name") or ""),
                    ]
                    for e in found
                ],
            )
            return
        rows = _budget_rows(ledger)
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("no data set yet: privft vault create")
    table(
        "Budgets (the cap is the guarantee over all runs together)",
        [
            "data set",
            "unit",
            "policy",
            "spent",
            "left",
            "cap",
            "delta",
            "runs",
            "more like the last",
        ],
        [
            [
                row["dataset"],
                row["unit"],
                row["policy"],
                f"{row['epsilon_spent']:.2f}",
                f"{row['epsilon_left']:.2f}",
                f"{row['cap']['epsilon']:.2f}",
                f"{row['cap']['delta']:g}",
                str(row["runs"]),
                "" if row["more_like_the_last"] is None else str(row["more_like_the_last"]),
            ]
            for row in rows
        ],
    )


@ledger_command.command("verify")
@click.option(
    "--checkpoint",
    "files",
    multiple=True,
    type=FILE,
    help="A checkpoint from outside this machine; the ledger must extend it.",
)
@json_option
@click.pass_context
def verify(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> None:
    """Replay the ledger from its first byte; compare it with checkpoints kept elsewhere."""
    try:
        notes = [path.read_text(encoding="utf-8") for path in files]
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error
    with session(ctx).ledger() as ledger:
        ledger.verify(notes)
        size, root = ledger.size, ledger.root.hex()
    if as_json:
        print_json({"entries": size, "root": root, "checkpoints": len(notes)})
    else:
        click.echo(f"the ledger is whole: {size} entries, root {root}")
        if not notes:
            say("a rollback of the whole file shows only against a --checkpoint kept elsewhere")


@ledger_command.command("export")
@click.option("-o", "--output", type=FILE, help="By default stdout.")
@click.pass_context
def export(ctx: click.Context, output: Path | None) -> None:
    """The whole ledger as one JSON bundle that verifies elsewhere; nothing private in it."""
    with session(ctx).ledger() as ledger:
        text = json.dumps(ledger.export(), indent=1)
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        say(f"written to {output}")


@ledger_command.command("checkpoint")
@click.pass_context
def checkpoint(ctx: click.Context) -> None:
    """The newest signed checkpoint: keep it elsewhere, to notice a rollback."""
    with session(ctx).ledger() as ledger:
        click.echo(ledger.checkpoint(), nl=False)


@ledger_command.command("trust")
@click.pass_context
def trust(ctx: click.Context) -> None:
    """The trust root for outsiders: hand it over by another way than the releases."""
    with session(ctx).ledger() as ledger:
        click.echo(trust_of(ledger).decode(), nl=False)
