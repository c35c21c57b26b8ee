"""privft init, doctor, selftest, demo: where everybody starts."""

from __future__ import annotations

import getpass
import re
from dataclasses import asdict
from pathlib import Path

import click

from privft.cli.session import (
    FILE,
    FOLDER,
    json_option,
    ledger_password,
    print_json,
    say,
    session,
    table,
)
from privft.errors import DoctorFailed, PrivftError, UsageError
from privft.signing import Identity
from privft.workspace import Workspace, read_place


@click.command("init")
@click.argument("folder", type=FOLDER)
@click.option("--name", help="Your name on the ring; by default the login name.")
@click.option("--ledger", "place", type=FILE, help="JSON file that names a PostgreSQL database.")
@click.pass_context
def init_command(ctx: click.Context, folder: Path, name: str | None, place: Path | None) -> None:
    """Make a workspace: ledger, keys, and room for vaults and runs."""
    database = None if place is None else read_place(place, password=ledger_password(ctx))
    own = name or re.sub(r"[^A-Za-z0-9._-]", "-", getpass.getuser()) or "operator"
    try:
        identity = Identity.generate(own)
    except ValueError as error:
        raise UsageError(f"{own!r} cannot name a person: {error}") from error
    workspace = Workspace.create(
        folder, owner=identity, roles=("operator", "approver"), database=database
    )
    say(f"workspace {workspace.name} in {workspace.folder}")
    say(f"{own} is on the ring; private keys in {workspace.folder / 'keys'} (mode 0600)")
    say(f"next: cd {folder} && privft vault create NAME --from FILE --unit subject ...")


@click.command("doctor")
@json_option
@click.pass_context
def doctor_command(ctx: click.Context, as_json: bool) -> None:
    """Check whether this machine is fit for sensitive data."""
    from privft.doctor import examine

    try:
        workspace = session(ctx).workspace
    except UsageError:
        workspace = None
    findings = examine(workspace)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [[f.verdict, f.check, f.detail, f.hint or ""] for f in findings]
        table("Doctor", ["", "check", "found", "what to do"], rows)
    failed = [finding.check for finding in findings if finding.verdict == "failed"]
    if failed:
        raise DoctorFailed(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


@click.command("selftest")
@json_option
def selftest_command(as_json: bool) -> None:
    """Recompute published reference values with this installation."""
    from privft.budget.reference import run_selftest

    rows = run_selftest()
    if as_json:
        print_json(rows)
    else:
        shown = [
            [
                "ok" if row["ok"] else "FAILED",
                str(row["name"]),
                f"{row['expected']:.6g}",
                "none" if row["got"] is None else f"{row['got']:.6g}",
                f"{row['tolerance']:g}",
                str(row["source"]),
            ]
            for row in rows
        ]
        columns = ["", "value", "published", "here", "tolerance", "source"]
        table("Reference values", columns, shown)
    wrong = [row for row in rows if not row["ok"]]
    if wrong:
        raise PrivftError(
            f"{len(wrong)} of {len(rows)} reference values are not reproduced",
            hint="do not train with this installation",
        )


@click.command("demo")
@click.option("--folder", type=FOLDER, default=Path("demo-workspace"), show_default=True)
def demo_command(folder: Path) -> None:
    """Run the whole path on made-up notes, in a folder of its own."""
    from privft.demo import run_demo

    run_demo(folder, say=say)
