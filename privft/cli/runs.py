"""privft plan, approve, runs: what is to be trained, and what was."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from privft import gate
from privft.budget.entries import format_time
from privft.cli import foresight
from privft.cli.pricing import show_sweep
from privft.cli.session import (
    FILE,
    FOLDER,
    Acting,
    acting,
    dry_run,
    json_option,
    print_json,
    say,
    say_all,
    session,
    table,
)
from privft.config import load_config
from privft.errors import PlanError, UsageError
from privft.plan import Plan, parse_plan
from privft.sweep import is_sweep, load_sweep
from privft.workspace import write_private

if TYPE_CHECKING:
    from privft.stages.foreseeing import Foreseen
    from privft.stages.planning import Priced


def read_plan(path: Path) -> Plan:
    """The plan in a file."""
    try:
        if path.suffix in (".yaml", ".yml") and is_sweep(path):
            raise PlanError(
                f"{path.name} is a sweep, and no plan",
                hint="privft plan makes a plan of random stopping with a most; run by run, each "
                "candidate has a plan of its own",
            )
        return parse_plan(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the plan {path}: {error.strerror}") from error


@click.command("plan")
@click.argument("config_file", metavar="RUN.YAML", type=FILE)
@click.option("-o", "--output", type=FILE, help="Where the plan goes; by default RUN.plan.")
@click.option("--html", type=FILE, help="Where its page goes; by default beside the plan.")
@click.option("--fit", is_flag=True, help="Take the largest epsilon that the budget admits.")
@click.option(
    "--ranks",
    type=click.IntRange(1, 4096),
    default=1,
    help="Say memory and time for so many processes; the plan is the same for any number.",
)
@click.option(
    "--config-folder",
    type=FOLDER,
    help="What paths in the config are relative to; by default the config's folder.",
)
@json_option
@acting
@dry_run
@click.pass_context
def plan_command(
    ctx: click.Context,
    config_file: Path,
    output: Path | None,
    html: Path | None,
    fit: bool,
    ranks: int,
    config_folder: Path | None,
    as_json: bool,
    who: Acting,
    dry_run: bool,
) -> None:
    """Price a run, or a sweep of runs, in epsilon before any record is opened.

    A sweep by random stopping with a `most` becomes one plan, like a run.
    """
    opened = session(ctx)
    if is_sweep(config_file):
        sweep, config = load_sweep(config_file)
        if fit:
            raise UsageError("a sweep is priced as it is: --fit is for one run")
        if sweep.stopping is None or sweep.stopping.most is None:
            if output is not None or html is not None:
                raise UsageError(
                    "this sweep is priced, and leaves no plan",
                    hint="charge: random-stopping with stopping.most makes one run of a sweep",
                )
            with opened.ledger() as ledger:
                actor = opened.identity(who)
                swept = gate.price_sweep(opened.workspace, ledger, sweep, config, actor=actor)
            show_sweep(swept, as_json)
            return
    else:
        config = load_config(config_file)
    from privft.stages.foreseeing import foresee
    from privft.stages.reporting import plan_page

    with opened.ledger() as ledger:
        priced = gate.plan(
            opened.workspace,
            ledger,
            config,
            config_folder=config_folder or config_file.parent,
            actor=opened.identity(who),
            fit=fit,
            record=not dry_run,
        )
        rendered = plan_page(opened.workspace, ledger, priced.plan)
    takes = foresee(priced.plan.the_config(), priced.base, ranks=ranks)
    target = output or config_file.with_suffix(".plan")
    page = html or target.with_suffix(".html")
    if not dry_run:
        write_private(target, priced.plan.to_bytes() + b"\n")
        write_private(page, rendered.encode())
    if as_json:
        files = {} if dry_run else {"file": str(target), "page": str(page)}
        print_json(
            {**priced.to_dict(), "takes": takes.to_dict(), "file": None, "page": None, **files}
        )
    else:
        show_price(priced, takes)
    for warning in priced.warnings:
        say(f"warning: {warning}")
    if not dry_run:
        needed = int(priced.plan.policy["approvals"]["value"])
        say(f"plan written to {target}, its page to {page}")
        say(f"next: privft {'approve' if needed else 'train'} {target}")


def show_price(priced: Priced, takes: Foreseen) -> None:
    """A plan as a person reads it."""
    from privft.report.stopped import brief

    plan, cost, budget = priced.plan, priced.cost, priced.before
    mechanism = plan.mechanism
    swapped, stopped = priced.substitute, plan.the_selection()
    rdp = "not supported" if cost.epsilon_rdp is None else f"{cost.epsilon_rdp:.3f}"
    by = "RDP alone" if cost.epsilon_pld is None else f"PLD; RDP says {rdp}"
    rows = [
        ["protects", f"one {mechanism['unit']} of {plan.dataset} (add or remove)"],
        ["epsilon", f"{cost.epsilon:.3f} at delta {plan.delta:g} ({by})"],
        ["if one were swapped", f"epsilon {swapped.epsilon:.3f} (PLD)" if swapped else "not known"],
        *([["random stopping", brief(stopped)]] if stopped else []),
        [
            "mechanism" if stopped is None else "one repetition",
            f"{mechanism['steps']} steps, sampling probability "
            f"{mechanism['sampling_probability']:.5f}, noise multiplier "
            f"{mechanism['noise_multiplier']:.4f}, clip norm {mechanism['clip_norm']:g}"
            + (", adaptive" if mechanism["count_noise"] else ""),
        ],
        [
            "budget",
            f"{budget.epsilon_spent:.2f} -> {priced.admission.epsilon_after:.2f} of "
            f"{budget.cap.epsilon:.2f} (delta {budget.cap.delta:g}); then {priced.more_runs} more "
            "such runs fit",
        ],
        ["held-out score", plan.score_words()],
        ["policy", f"{plan.policy['name']}: {len(priced.checks)} rules kept"],
        ["audit", f"suite {plan.suite}"],
        *takes.rows(),
        ["plan", plan.digest],
    ]
    table("Plan", ["what", "value"], rows)


@click.command("approve")
@click.argument("plan_file", metavar="PLAN", type=FILE)
@acting
@dry_run
@click.pass_context
def approve_command(ctx: click.Context, plan_file: Path, who: Acting, dry_run: bool) -> None:
    """Sign a plan, so that it may be trained."""
    plan = read_plan(plan_file)
    opened = session(ctx)
    approver = opened.identity(who)
    with opened.ledger() as ledger:
        if dry_run:
            say_all(foresight.of_approve(ledger, plan, approver=approver))
            return
        gate.approve(ledger, plan, approver=approver)
    say(f"{approver.name} approved plan {plan.digest[:16]}")
    say(f"next: privft train {plan_file}")


@click.group("runs")
def runs_command() -> None:
    """Runs of this workspace: list, show, close."""


def _now() -> str:
    return format_time(datetime.now(UTC))


@runs_command.command("list")
@json_option
@click.pass_context
def list_runs(ctx: click.Context, as_json: bool) -> None:
    """Every run, with its state and what it was charged."""
    with session(ctx).ledger() as ledger:
        records = ledger.runs()
    rows = [
        {
            "run": record.run,
            "dataset": record.dataset,
            "actor": record.actor,
            "state": gate.state_of(record, now=_now()),
            "events": [event.to_dict() for event in record.charged],
        }
        for record in records
    ]
    if as_json:
        print_json(rows)
        return
    table(
        "Runs",
        ["run", "data set", "by", "state", "next"],
        [
            [
                str(row["run"]),
                str(row["dataset"]),
                str(row["actor"]),
                str(row["state"]),
                gate.next_step(row["state"], str(row["run"])),  # type: ignore[arg-type]
            ]
            for row in rows
        ],
    )


@runs_command.command("show")
@click.argument("run")
@json_option
@click.pass_context
def show_run(ctx: click.Context, run: str, as_json: bool) -> None:
    """One run: its entries in the ledger and what comes next."""
    with session(ctx).ledger() as ledger:
        record = ledger.run(run)
        entries = ledger.entries(run=run)
    state = gate.state_of(record, now=_now())
    if as_json:
        rows = [
            {"index": e.index, "kind": e.kind, "time": e.time, "actor": e.actor, "body": e.body}
            for e in entries
        ]
        print_json({"run": run, "state": state, "entries": rows})
        return
    table(
        f"Run {run}: {state}",
        ["entry", "time", "by", "what"],
        [[str(e.index), e.time, e.actor, e.kind] for e in entries],
    )
    click.echo(f"next: {gate.next_step(state, run)}")


@runs_command.command("close")
@click.argument("run")
@click.option("--reason", required=True, help="Why; it stands in the ledger.")
@acting
@dry_run
@click.pass_context
def close_run(ctx: click.Context, run: str, reason: str, who: Acting, dry_run: bool) -> None:
    """Give up a run that was stopped in the middle; it stays charged in full."""
    opened = session(ctx)
    with opened.ledger() as ledger:
        actor = opened.identity(who)
        if dry_run:
            say_all(foresight.of_close(ledger, run, actor=actor))
            return
        gate.close(opened.workspace, ledger, run, actor=actor, reason=reason)
    say(f"run {run} is closed and charged in full")
