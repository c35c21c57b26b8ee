"""privft verify: what an outsider uses, who has neither the data nor the workspace.

A second process imports the accountants from the first moment on, so what this one needs for the
other checks is imported meanwhile, inside of the command (`report.aside`).
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from privft.budget import accounting
from privft.cli.session import FILE, FOLDER, json_option, print_json, session, table
from privft.errors import UsageError
from privft.report.aside import HERE, Aside

if TYPE_CHECKING:
    from privft.report.trust import TrustRoot


@click.command("verify")
@click.argument("folder", type=FOLDER)
@click.option("--trust", type=FILE, help="The trust root; by default the workspace around here.")
@json_option
@click.pass_context
def verify_command(ctx: click.Context, folder: Path, trust: Path | None, as_json: bool) -> None:
    """Check a released folder offline, without the data."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}")
    small = "torch" not in sys.modules  # only a small young process is forked
    with Aside(accounting.get_ready) if small else nullcontext(HERE) as aside:
        from privft.budget.entries import format_time
        from privft.report.verify import require, verify_release

        now = format_time(datetime.now(UTC))
        checks = verify_release(folder, trust_root(ctx, trust), now=now, aside=aside)
    if as_json:
        print_json([{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks])
    else:
        rows = [["ok" if c.ok else "FAILED", c.name, c.detail] for c in checks]
        table(f"{folder}", ["", "check", "what was found"], rows)
    require(checks)
    if not as_json:
        click.echo("verified: everything that can be checked without the data holds")


def trust_root(ctx: click.Context, trust: Path | None) -> TrustRoot:
    """The trust root in a file, or that of the workspace around here."""
    from privft.report.trust import parse_trust
    from privft.stages.trustroot import trust_of

    if trust is not None:
        try:
            return parse_trust(trust.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {trust}: {error.strerror}") from error
    try:
        opened = session(ctx)
    except UsageError as error:
        raise UsageError(
            "nothing says whose signatures count",
            hint="--trust FILE, from the operator by another way: privft ledger trust prints it",
        ) from error
    with opened.ledger() as ledger:
        return parse_trust(trust_of(ledger, days=1))
