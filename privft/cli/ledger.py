"""privft ledger: the memory of the budget, for people and for auditors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from privft.budget.entries import format_time
from privft.budget.filter import Cap, gauge
from privft.budget.history import BudgetView
from privft.budget.judged import RunRecord
from privft.budget.ledger import Ledger
from privft.budget.priced import stated_epsilon
from privft.budget.replay import LedgerCheck, verify_bundle
from privft.budget.selection import merged, total_rdp
from privft.cli.session import FILE, json_option, print_json, say, session, table
from privft.cli.witness import recover_command, witness_command
from privft.errors import IntegrityError, UsageError
from privft.stages.trustroot import trust_of


@click.group("ledger")
def ledger_command() -> None:
    """The budget's memory: show, verify, export, trust, witness, recover."""


ledger_command.add_command(witness_command)
ledger_command.add_command(recover_command)


_IF = "if parameters had been chosen without looking at earlier outputs"


def _composed(view: BudgetView) -> dict[str, Any] | None:
    """What all runs of a budget cost together by PLD, which is no guarantee, and says so."""
    from privft.budget.accounting import cost

    if view.exhausted:  # what was lost is not known
        return None
    found = cost((*view.spent, *view.reserved), view.cap.delta)
    why_not = found.note if found.epsilon_pld is None else None
    return {
        "epsilon_pld": found.epsilon_pld,
        "delta": found.delta,
        "holds": _IF,
        "why_not": why_not,
    }


def _budget_rows(ledger: Ledger, last: int, *, composed: bool) -> list[dict[str, Any]]:
    """For each data set: what its budget is, what is spent of it, and by its last runs."""
    rows = []
    for created in ledger.entries(kind="dataset-created"):
        body = created.body
        view = ledger.budget(body["lineage"])
        records = ledger.runs(body["lineage"])
        charged = [record for record in records if record.charged]
        rows.append(
            {
                "dataset": body["dataset"],
                "lineage": body["lineage"],
                "unit": view.unit,
                "policy": body["policy"],
                "cap": view.cap.to_dict(),
                "epsilon_spent": view.epsilon_spent,
                "epsilon_left": view.epsilon_left,
                "recovered": view.exhausted,
                "reserved": [event.to_dict() for event in view.reserved],
                "runs": view.runs,
                "more_like_the_last": ledger.more_like(body["lineage"], *charged[-1].charged)
                if charged
                else None,
                "run_table": _run_rows(ledger, view.cap, records, last),
                **({"composed": _composed(view)} if composed else {}),
            }
        )
    return rows


def _run_rows(
    ledger: Ledger, cap: Cap, records: Sequence[RunRecord], last: int
) -> list[dict[str, Any]]:
    """A row for each of the last runs; `epsilon_after`: the filter's gauge once it was charged."""
    older, shown = records[: max(0, len(records) - last)], records[max(0, len(records) - last) :]
    sums = total_rdp(merged([event for record in older for event in record.charged]), cap.orders)
    rows = []
    for record in shown:
        cost = total_rdp(record.charged, cap.orders)
        sums = tuple(a + b for a, b in zip(sums, cost, strict=True))
        planned = ledger.entry(record.reserved).body["epsilon"]
        steps = record.steps
        if record.settled is not None:
            steps = ledger.entry(record.settled).body["steps_charged"]
        state = record.outcome or "open: charged whole until it is settled"
        rows.append(
            {
                "run": record.run,
                "dataset": record.dataset,
                "by": record.actor,
                "state": "released" if record.released is not None else state,
                "steps_reserved": record.steps,
                "steps_charged": steps,
                "epsilon_planned": stated_epsilon(planned),
                "delta": planned["delta"],
                "epsilon_after": gauge(cap, sums),
            }
        )
    return rows


@ledger_command.command("show")
@click.option("--entries", is_flag=True, help="Every entry instead of the sums.")
@click.option(
    "--last", type=click.IntRange(min=0), default=20, show_default=True, help="Runs to list."
)
@click.option(
    "--composed", is_flag=True, help=f"All runs of a budget by PLD too: what they would cost {_IF}."
)
@json_option
@click.pass_context
def show(ctx: click.Context, entries: bool, last: int, composed: bool, as_json: bool) -> None:
    """What is spent and left of each data set's budget, by which runs, and what still fits."""
    with session(ctx).ledger() as ledger:
        if entries:
            _show_entries(ledger, as_json)
            return
        rows = _budget_rows(ledger, last, composed=composed)
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("no data set yet: privft vault create")
    columns = ["data set", "unit", "policy", "spent", "left", "cap", "delta", "runs"]
    table(
        "Budgets (the cap is the guarantee over all runs together)",
        [*columns, "more like the last"],
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
    for row in rows:
        if row["recovered"]:
            say(f"{row['dataset']}: spent whole by a recovery; what was lost may have used it")
    _show_runs(rows)
    for row in {row["lineage"]: row for row in rows if row.get("composed")}.values():
        found = row["composed"]
        if found["why_not"]:
            click.echo(f"{row['dataset']}: no epsilon by PLD over its runs: {found['why_not']}")
            continue
        click.echo(
            f"{row['dataset']}: its {row['runs']} runs cost epsilon {found['epsilon_pld']:.2f} "
            f"together at delta {found['delta']:g} by PLD, {found['holds']}; the guarantee is the "
            "cap"
        )


def _show_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """The newest runs; data sets of one lineage share a budget, so each run stands there once."""
    budgets = {row["lineage"]: row for row in rows}
    for lineage, budget in budgets.items():
        shown = budget["run_table"]
        if not shown:
            continue
        names = " and ".join(row["dataset"] for row in rows if row["lineage"] == lineage)
        left_out = ""
        if len(shown) < budget["runs"]:
            left_out = f", the last {len(shown)} of {budget['runs']}"
        table(
            f"Runs on {names}{left_out} (epsilon by itself; spent: of the cap, afterwards)",
            ["run", "data set", "by", "state", "steps charged", "epsilon", "spent"],
            [
                [
                    run["run"],
                    run["dataset"],
                    run["by"],
                    run["state"],
                    f"{run['steps_charged']} of {run['steps_reserved']}",
                    f"{run['epsilon_planned']:.2f}",
                    f"{run['epsilon_after']:.2f}",
                ]
                for run in shown
            ],
        )


def _show_entries(ledger: Ledger, as_json: bool) -> None:
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


@ledger_command.command("verify")
@click.option(
    "--checkpoint",
    "files",
    multiple=True,
    type=FILE,
    help="A checkpoint from outside this machine; the ledger must extend it.",
)
@click.option("--bundle", type=FILE, help="An export instead of this workspace's ledger.")
@click.option(
    "--trust", type=FILE, help="With --bundle: whose it is; by default the workspace around here."
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    files: tuple[Path, ...],
    bundle: Path | None,
    trust: Path | None,
    as_json: bool,
) -> None:
    """Replay the ledger from its first byte; compare it with checkpoints kept elsewhere.

    Those that runs of this workspace have kept are always among them.

    With --bundle it replays what privft ledger export wrote, on any machine: the trust root alone
    says which log's key to believe.
    """
    if trust is not None and bundle is None:
        raise UsageError("--trust says whose a --bundle is", hint="--bundle FILE")
    try:
        notes = [path.read_text(encoding="utf-8") for path in files]
    except OSError as error:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise IntegrityError("a checkpoint that is not text") from error
    if bundle is not None:
        found = _check_bundle(ctx, bundle, trust, notes)
    else:
        from privft.stages.seen import kept

        opened = session(ctx)
        here = [note for _, note in kept(opened.workspace)]
        with opened.ledger() as ledger:
            found = ledger.verify([*notes, *here])
    if as_json:
        body = {"entries": found.size, "root": found.root, "checkpoints": len(notes)}
        counts = {"runs": found.runs, "open_runs": found.open_runs, "budgets": found.lineages}
        print_json({**body, "superseded": found.superseded, **counts})
    else:
        click.echo(f"the ledger is whole: {found.size} entries, root {found.root}")
        say(f"{found.runs} runs ({found.open_runs} open) on {found.lineages} budget(s)")
        if found.superseded:
            say(f"{found.superseded} checkpoint(s) are of a branch that a recovery gave up")
        if not notes:
            say("a rollback of the whole file shows only against a --checkpoint kept elsewhere")


def _check_bundle(
    ctx: click.Context, bundle: Path, trust: Path | None, notes: Sequence[str]
) -> LedgerCheck:
    from privft.cli.verify import trust_root

    try:
        body = json.loads(bundle.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {bundle}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{bundle} is no ledger bundle: it is no JSON") from error
    if not isinstance(body, dict):
        raise IntegrityError(f"{bundle} is no ledger bundle")
    root = trust_root(ctx, trust)
    root.check_current(format_time(datetime.now(UTC)))
    return verify_bundle(body, root.log(), notes)


@ledger_command.command("export")
@click.option("-o", "--output", type=FILE, help="By default stdout.")
@click.pass_context
def export(ctx: click.Context, output: Path | None) -> None:
    """The whole ledger as one JSON bundle; nothing private in it.

    It verifies elsewhere, by privft ledger verify --bundle FILE --trust trust.json.
    """
    with session(ctx).ledger() as ledger:
        text = json.dumps(ledger.export(), indent=1)
    if output is None:
        click.echo(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        say(f"written to {output}")


@ledger_command.command("backup")
@click.argument("target", metavar="FILE", type=FILE)
@click.pass_context
def backup(ctx: click.Context, target: Path) -> None:
    """Copy the ledger's file, whole, while others may use it; remembers when that was."""
    opened = session(ctx)
    with opened.ledger() as ledger:
        copied = ledger.backup(target)
    opened.workspace.note_backup(entries=copied.size)
    say(f"{copied.size} entries copied to {target}: keep it on another machine, and a checkpoint")
    say("of now (privft ledger checkpoint) apart from it; README has the drill")


@ledger_command.command("checkpoint")
@click.pass_context
def checkpoint(ctx: click.Context) -> None:
    """The newest signed checkpoint: keep it elsewhere, to notice a rollback."""
    with session(ctx).ledger() as ledger:
        click.echo(ledger.checkpoint(), nl=False)


@ledger_command.command("trust")
@click.option(
    "--days",
    type=click.IntRange(min=1, max=3660),
    default=365,
    show_default=True,
    help="Until when it holds: a newer one knows who was revoked since.",
)
@click.pass_context
def trust(ctx: click.Context, days: int) -> None:
    """The trust root for outsiders: hand it over by another way than the releases."""
    with session(ctx).ledger() as ledger:
        click.echo(trust_of(ledger, days=days).decode(), nl=False)
