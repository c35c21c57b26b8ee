"""privft train: from a plan to a settled run, in this process or on several ranks."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from privft import gate
from privft.cli import foresight
from privft.cli.runs import read_plan
from privft.cli.session import (
    FILE,
    FOLDER,
    Acting,
    Session,
    dry_run,
    json_option,
    ledger_password,
    opening,
    print_json,
    say,
    say_all,
    session,
)
from privft.errors import UsageError
from privft.plan import Plan
from privft.signing import Identity

if TYPE_CHECKING:
    from privft.stages.running import Watch
    from privft.training.ranks import Ranks
    from privft.vault.keys import KeyOpener


@contextmanager
def watching(steps: int, epsilon: float, *, private: bool) -> Iterator[Watch]:
    """Progress on stderr: a bar with the epsilon that is charged; private numbers on request."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from privft.stages.running import Watch

    console = Console(stderr=True, highlight=False, markup=False)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )
    task = bar.add_task("training", total=steps, note=f"epsilon {epsilon:.2f} reserved")

    started = time.monotonic()

    def step(report: Any) -> None:
        if not console.is_terminal:
            seconds = time.monotonic() - started
            console.print(f"- step {report.step} of {steps}, {seconds:.0f} s")
            return
        if not bar.live.is_started:
            bar.start()
        note = f"epsilon {epsilon:.2f} reserved"
        if private:
            note += f"; {report.sampled_units} units, {report.tokens} tokens (private)"
        bar.update(task, completed=report.step, note=note)

    try:
        yield Watch(say=lambda line: console.print(f"- {line}"), step=step)
    finally:
        if bar.live.is_started:
            bar.stop()


@click.command("train")
@click.argument(
    "arguments",
    metavar="[PLAN] [-- LAUNCHER ARGUMENTS]",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=FILE.shell_complete,
)
@click.option("--resume", "run", metavar="RUN", help="Go on with a run that was stopped.")
@click.option(
    "--launcher",
    type=click.Choice(["torchrun"]),
    help="Train on several processes; what follows -- is torchrun's own: --nproc-per-node 2.",
)
@click.option(
    "--config-folder",
    type=FOLDER,
    help="What paths in the config are relative to; by default the plan's folder.",
)
@click.option("--show-private", is_flag=True, help="Batch sizes, where the policy allows it.")
@json_option
@opening
@dry_run
@click.pass_context
def train_command(
    ctx: click.Context,
    arguments: tuple[str, ...],
    run: str | None,
    launcher: str | None,
    config_folder: Path | None,
    show_private: bool,
    as_json: bool,
    who: Acting,
    dry_run: bool,
) -> None:
    """Train what was planned; --resume goes on after a crash."""
    plan_file, to_launcher = _split(arguments, run, launcher)
    opened = session(ctx)
    goes_on = None if dry_run or launcher is not None else opened.identity(who)
    plan = the_plan(opened, plan_file, run, by=goes_on)
    if dry_run:
        _foresee(opened, plan, plan_file, run, config_folder=config_folder, who=who)
        return
    if launcher is None:
        train_here(
            opened,
            who,
            plan,
            plan_file=plan_file,
            run=run,
            config_folder=config_folder,
            show_private=show_private,
            as_json=as_json,
            opener=opened.opener(who),
        )
        return
    from privft.stages.launching import Order, launch

    secret = opened.opening_secret(who)
    order = Order(
        workspace=os.fspath(opened.workspace.folder),
        ledger_password=ledger_password(ctx),
        plan=None if plan_file is None else os.fspath(plan_file),
        run=run,
        config_folder=None if config_folder is None else os.fspath(config_folder),
        name=who.name,
        key_file=None if who.key_file is None else os.fspath(who.key_file),
        service=who.service,
        token=who.token,
        secret=None if secret is None else secret.hex(),
        show_private=show_private,
        as_json=as_json,
    )
    code = launch(order, to_launcher, plan.the_config())
    if code:
        sys.exit(code)


def _split(
    arguments: tuple[str, ...], run: str | None, launcher: str | None
) -> tuple[Path | None, list[str]]:
    """The plan's file, if one is named, and what is for the launcher."""
    named = bool(arguments) and not arguments[0].startswith("-")
    plan_file = Path(arguments[0]) if named else None
    to_launcher = list(arguments[named:])
    if (plan_file is None) == (run is None):
        raise UsageError("expected a plan, or --resume RUN, and not both")
    if to_launcher and launcher is None:
        raise UsageError(
            f"{len(to_launcher)} arguments more than the plan",
            hint="arguments of a launcher need --launcher torchrun",
        )
    return plan_file, to_launcher


def the_plan(
    opened: Session, plan_file: Path | None, run: str | None, *, by: Identity | None
) -> Plan:
    """The plan in a file or of a run; with `by`, see `gate.plan_of`."""
    if plan_file is not None:
        return read_plan(plan_file)
    assert run is not None
    with opened.ledger() as ledger:
        return gate.plan_of(opened.workspace, ledger, run, by)


def _foresee(
    opened: Session,
    plan: Plan,
    plan_file: Path | None,
    run: str | None,
    *,
    config_folder: Path | None,
    who: Acting,
) -> None:
    actor = opened.identity(who)
    with opened.ledger() as ledger:
        if run is not None:
            say_all(foresight.of_resume(ledger, plan, run, actor=actor))
            return
        assert plan_file is not None
        folder = config_folder or plan_file.parent
        say_all(
            foresight.of_train(opened.workspace, ledger, plan, actor=actor, config_folder=folder)
        )


def train_here(
    opened: Session,
    who: Acting,
    plan: Plan,
    *,
    plan_file: Path | None,
    run: str | None,
    config_folder: Path | None,
    show_private: bool,
    as_json: bool,
    opener: KeyOpener,
    ranks: Ranks | None = None,
) -> None:
    """Train or resume in this process, which is alone or rank 0 of `ranks`, and say how it went."""
    from privft.training.ranks import ALONE

    actor, ranks = opened.identity(who), ranks or ALONE
    private = show_private and bool(plan.policy["may_show_private_metrics"]["value"])
    if show_private and not private:
        say(f"policy {plan.policy['name']!r} does not show private numbers; they stay hidden")
    epsilon, selection = plan.epsilon, plan.the_selection()
    steps = plan.the_mechanism().steps * ((selection and selection.most) or 1)
    with (
        opened.ledger() as ledger,
        watching(steps, epsilon, private=private) as watch,
    ):
        common: dict[str, Any] = {
            "actor": actor,
            "opener": opener,
            "watch": watch,
            "ranks": ranks,
        }
        if run is not None:
            gate.resume(opened.workspace, ledger, run, **common)
        else:
            assert plan_file is not None
            folder = config_folder or plan_file.parent
            run = gate.train(opened.workspace, ledger, plan, config_folder=folder, **common)
    if as_json:
        print_json({"run": run, "state": "trained", "epsilon": epsilon, "delta": plan.delta})
    say(f"run {run} is trained and sealed; it cost epsilon {epsilon:.2f} at delta {plan.delta:g}")
    say(f"next: privft audit {run}")
