"""The command line: thin click commands, one file a group of verbs.

Every command is imported only when it is called or asked for help, so `privft --help` answers at
once and the light verbs (ledger, verify, policy, the calculators) never load torch.

Data goes to stdout, talk to stderr.  `--json` prints what a script reads.  Errors are one line
that says what and how much, and a `hint:` line that says what to do; exit codes are those of
`privft.errors`, 2 for usage, 130 when interrupted.  A traceback is never printed, since it could
show a record: unforeseen errors name the place in the code instead.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import privft
from privft.errors import PrivftError

_COMMANDS: dict[str, tuple[str, str]] = {
    # name: (module, one line of help; a test holds it to the command's own)
    "demo": ("start", "Run the whole path on made-up notes, in a folder of its own."),
    "doctor": ("start", "Check whether this machine is fit for sensitive data."),
    "init": ("start", "Make a workspace: ledger, keys, and room for vaults and runs."),
    "selftest": ("start", "Recompute published reference values with this installation."),
    "keys": ("keys", "People and their keys: create, list, revoke."),
    "vault": (
        "vault",
        "Sealed data: create, add, inspect, verify, prove, rotate, erase, recipients.",
    ),
    "policy": ("policy", "Policies: list, show, check."),
    "config": ("policy", "Run configurations: schema, validate."),
    "plan": ("runs", "Price a run, or a sweep of runs, in epsilon before any record is opened."),
    "approve": ("runs", "Sign a plan, so that it may be trained."),
    "train": ("train", "Train what was planned; --resume goes on after a crash."),
    "runs": ("runs", "Runs of this workspace: list, show, close."),
    "audit": ("release", "Attack a trained run and write its signed report."),
    "waive": ("release", "Two people take a failed audit on themselves."),
    "countersign": (
        "release",
        "Sign the report of an audited run, as an approver.",
    ),
    "release": ("release", "Write an audited adapter into a folder: the only exit."),
    "verify": ("verify", "Check a released folder offline, without the data."),
    "report": ("report", "Reports: index, export, plan, schema, recipe."),
    "ledger": ("ledger", "The budget's memory: show, verify, export, trust, witness, recover."),
    "epsilon": ("calculators", "Epsilon of DP-SGD with given parameters."),
    "noise": ("calculators", "Noise multiplier for a target epsilon."),
    "tradeoff": ("calculators", "The best ROC curve that any attack can have."),
    "bound": ("calculators", "Lower bound on epsilon from an attack's guesses."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"privft.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, words) for name, (_, words) in _COMMANDS.items()])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and exit with the code that it came to."""
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        command = super().main
        sys.exit(exit_code_of(lambda: command(args, prog_name, standalone_mode=False, **extra)))


def exit_code_of(action: Callable[[], Any]) -> int:
    """Do it; every error becomes a line, a hint and an exit code."""
    try:
        action()
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except PrivftError as error:
        tell_error(error)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        what = error.strerror or type(error).__name__
        click.echo(f"error: {what}: {error.filename or 'no file named'}", err=True)
        click.echo("hint: nothing was lost; free space or mend access, then try again", err=True)
        return 1
    except Exception as error:
        click.echo(f"error: unforeseen {type(error).__name__} at {_place(error)}", err=True)
        click.echo("hint: please report this line; it holds nothing of your data", err=True)
        return 1
    return 0


def tell_error(error: PrivftError) -> None:
    """The two lines of an error, on stderr."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _place(error: BaseException) -> str:
    """Where it happened, as names of files and functions: no values."""
    frames = [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "click" not in Path(frame.filename).parts
    ]
    return " < ".join(reversed(frames[-4:]))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(privft.__version__, prog_name="privft")
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    help="The workspace folder; by default found upward from here.",
)
@click.option("--no-input", is_flag=True, help="Never ask; fail where an answer is needed.")
@click.option(
    "--ledger-password-fd",
    type=int,
    help="For a ledger in a database: its password, read from this file descriptor.",
)
@click.pass_context
def main(
    ctx: click.Context, workspace: Path | None, no_input: bool, ledger_password_fd: int | None
) -> None:
    """Fine-tune language models on sensitive text, with a privacy guarantee that holds.

    \b
    init -> vault create -> plan -> (approve) -> train -> audit -> release -> verify
    """
    from privft.hardening import lock_down

    lock_down()
    ctx.obj = {
        "workspace": workspace,
        "no_input": no_input,
        "ledger_password_fd": ledger_password_fd,
    }
