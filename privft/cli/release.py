"""privft audit, waive, countersign, release: from a settled run to the only exit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from privft import gate
from privft.cli import foresight
from privft.cli.session import (
    FILE,
    FOLDER,
    Acting,
    acting,
    dry_run,
    json_option,
    opening,
    print_json,
    say,
    say_all,
    session,
    table,
)
from privft.cli.train import watching
from privft.errors import AuditFailed, PolicyRefused
from privft.report.findings import AuditFacts
from privft.report.notices import secrets
from privft.report.release import MERGED, PAGE, PROOF

if TYPE_CHECKING:  # these load torch
    from privft.stages.releasing import Leaving


@click.command("audit")
@click.argument("run")
@click.option("--show-private", is_flag=True, help="Attacks on real units, if the policy allows.")
@json_option
@opening
@dry_run
@click.pass_context
def audit_command(
    ctx: click.Context,
    run: str,
    show_private: bool,
    as_json: bool,
    who: Acting,
    dry_run: bool,
) -> None:
    """Attack a trained run and write its signed report."""
    opened = session(ctx)
    actor = opened.identity(who)
    folder = opened.workspace.run_path(run)
    with opened.ledger() as ledger:
        plan = gate.plan_of(opened.workspace, ledger, run)
        if show_private and not plan.policy["may_show_private_metrics"]["value"]:
            raise PolicyRefused(
                f"policy {plan.policy['name']!r} does not show attacks on real units",
                hint="without --show-private they are sealed beside the run",
            )
        if dry_run:
            say_all(foresight.of_audit(opened.workspace, ledger, run, actor=actor))
            return
        opener = opened.opener(who)
        with watching(1, plan.epsilon, private=False) as watch:
            result = gate.audit(
                opened.workspace, ledger, run, actor=actor, opener=opener, watch=watch
            )
        if show_private:
            _show_private(ledger, opened.workspace, run, opener)
    report = folder / PAGE
    if as_json:
        print_json({"run": run, "report": str(report), **result.to_dict()})
    else:
        rows = [
            [
                test.kind,
                test.method,
                f"{test.correct}/{test.guesses}",
                f"{test.epsilon_lower:.2f}",
                f"{test.ceiling:.2f}",
            ]
            for test in result.tests
        ]
        table(
            f"Audit {result.suite}: {result.verdict}",
            ["canaries", "bound", "right guesses", "epsilon at least", "could have shown"],
            rows,
        )
        for line in secrets(AuditFacts.model_validate(result.facts())):
            click.echo(line)
        click.echo(result.words)
    took = {part: each["clock"] for part, each in result.seconds.items()}
    say("seconds: " + ", ".join(f"{part} {clock:.1f}" for part, clock in took.items()))
    say(f"report: {report}")
    if result.verdict != "passed":
        raise AuditFailed(
            f"audit of run {run} failed: {result.words}",
            hint="the adapter stays sealed; the report says what was found",
        )
    if plan.policy["countersignatures"]["value"]:
        say(f"next: privft countersign {run} --key FILE, by an approver who has read the report")
    else:
        say(f"next: privft release {run} --to DIR")


def _show_private(ledger, workspace, run, opener) -> None:  # type: ignore[no-untyped-def]
    from privft.stages.data import open_vault
    from privft.stages.retention import PRIVATE
    from privft.stages.sealedrun import SealedRun

    with open_vault(workspace, ledger, ledger.run(run).dataset, opener) as vault:
        sealed = SealedRun(run=run, folder=workspace.run_path(run), vault=vault)
        found = json.loads(sealed.unseal(PRIVATE))
    say("attacks on real units (private: for the enclave's eyes only):")
    say(json.dumps(found, indent=1))


@click.command("waive")
@click.argument("run")
@click.option("--key", "key_files", type=FILE, multiple=True, help="A person's key; twice.")
@click.option("--reason", required=True, help="Why; it stands on page one of the report.")
@click.option("--until", "expires", required=True, help="Expiry, as 2027-01-31T00:00:00Z.")
@dry_run
@click.pass_context
def waive_command(
    ctx: click.Context,
    run: str,
    key_files: tuple[Path, ...],
    reason: str,
    expires: str,
    dry_run: bool,
) -> None:
    """Two people take a failed audit on themselves."""
    opened = session(ctx)
    people = [opened.workspace.identity(key_file=path) for path in key_files]
    with opened.ledger() as ledger:
        if dry_run:
            say_all(foresight.of_waive(ledger, run, people=people, reason=reason, expires=expires))
            return
        gate.waive(ledger, run, people=people, reason=reason, expires=expires)
    say(f"run {run} is waived until {expires} by {' and '.join(p.name for p in people)}")


@click.command("countersign")
@click.argument("run")
@acting
@dry_run
@click.pass_context
def countersign_command(ctx: click.Context, run: str, who: Acting, dry_run: bool) -> None:
    """Sign the report of an audited run, as an approver."""
    opened = session(ctx)
    person = opened.identity(who)
    with opened.ledger() as ledger:
        digest, signed = gate.countersign(
            opened.workspace, ledger, run, person=person, dry_run=dry_run
        )
    would = "would sign" if dry_run else "signed"
    say(f"{person.name} {would} statement {digest[:16]}… of run {run}")
    if signed.wanted:
        say(f"the policy wants {signed.wanted} countersignature(s): {len(signed.names)} count")
    say("next: another approver's" if signed.missing else f"next: privft release {run} --to DIR")


@click.command("release")
@click.argument("run")
@click.option("--to", "target", type=FOLDER, required=True, help="A folder that does not exist.")
@click.option("--merge", is_flag=True, help="Also the base model with the adapter added.")
@json_option
@opening
@dry_run
@click.pass_context
def release_command(
    ctx: click.Context,
    run: str,
    target: Path,
    merge: bool,
    as_json: bool,
    who: Acting,
    dry_run: bool,
) -> None:
    """Write an audited adapter into a folder: the only exit."""
    opened = session(ctx)
    actor = opened.identity(who)
    with opened.ledger() as ledger:
        opener = opened.opener(who)
        if dry_run:
            from privft.stages.releasing import prepare

            say_all(foresight.of_release(ledger, run, target, actor=actor))
            leaving = prepare(opened.workspace, ledger, run, opener=opener, say=say)
            _tell(leaving, target, merge=merge, as_json=as_json)
            return
        files = gate.release(
            opened.workspace,
            ledger,
            run,
            target,
            actor=actor,
            opener=opener,
            merge=merge,
            say=say,
        )
    if as_json:
        print_json({"run": run, "folder": str(target), "files": files})
    say(f"released to {target}")
    say(f"next: privft verify {target}")


def _tell(leaving: Leaving, target: Path, *, merge: bool, as_json: bool) -> None:
    """What would leave: names and sizes, and how many signed."""
    sizes = {name: len(data) for name, data in sorted(leaving.files.items())}
    signatures = len(leaving.envelope["signatures"])
    if as_json:
        print_json({"folder": str(target), "bytes": sizes, "merge": merge})
    for name, size in sizes.items():
        say(f"  {name}: {size} bytes")
    say(f"  {PROOF}: made from the ledger's entry")
    if merge:
        say(f"  {MERGED}/: the base model with the adapter added, and its tokenizer")
    say(f"the statement has {signatures} signature{'' if signatures == 1 else 's'}")
