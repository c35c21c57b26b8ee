"""privft policy, config: the rules, and the files that runs are written in."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from privft.budget.entries import format_time
from privft.cli.session import FILE, json_option, print_json, session, table
from privft.config import json_schema, load_config
from privft.errors import PolicyRefused
from privft.policy import load_policy, policy_names

_COUNTERSIGN = "privft countersign RUN --key FILE, by approvers who have read the audited report"


@click.group("policy")
def policy_command() -> None:
    """Policies: list, show, check."""


@policy_command.command("list")
@json_option
def list_policies(as_json: bool) -> None:
    """The policies that come with privft."""
    policies = [load_policy(name) for name in policy_names()]
    if as_json:
        print_json([policy.to_dict() for policy in policies])
        return
    rows = [
        [
            policy.name,
            f"{policy.max_epsilon_per_run.value:g}",
            f"{policy.total_epsilon.value:g}",
            " or ".join(policy.units.value),
            policy.required_suite.value,
            str(policy.approvals.value),
            policy.purpose,
        ]
        for policy in policies
    ]
    columns = ["name", "epsilon a run", "in all", "unit", "audit", "approvals", "for"]
    table("Policies", columns, rows)


@policy_command.command("show")
@click.argument("name_or_file")
@json_option
def show_policy(name_or_file: str, as_json: bool) -> None:
    """Every rule of a policy, with its reason and source."""
    policy = load_policy(name_or_file)
    if as_json:
        print_json({**policy.to_dict(), "sha256": policy.digest})
        return
    rows = []
    for rule, body in policy.to_dict().items():
        if isinstance(body, dict):
            value = body["value"]
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append([rule, shown, f"{body['why']} [{body['source']}]"])
    table(f"Policy {policy.name}: {policy.purpose}", ["rule", "value", "why [source]"], rows)
    click.echo(f"sha256 {policy.digest}")


@policy_command.command("check")
@click.argument("plan_file", metavar="PLAN", type=FILE)
@json_option
@click.pass_context
def check_plan(ctx: click.Context, plan_file: Path, as_json: bool) -> None:
    """Hold a plan against its data set's policy, rule by rule, with the fix for each."""
    from privft.cli.runs import read_plan
    from privft.policy import check
    from privft.report.wording import plain_value
    from privft.stages.data import policy_of
    from privft.stages.planning import approvals_of, plan_facts
    from privft.stages.standing import check_standing

    plan = read_plan(plan_file)
    opened = session(ctx)
    with opened.ledger() as ledger:
        policy = policy_of(opened.workspace, ledger, plan.dataset)
        names = tuple(row["name"] for row in approvals_of(ledger, plan.digest))
        facts = plan_facts(opened.workspace, plan, operator=plan.operator, approvers=names)
        checks = check(policy, facts, ledger.budget(plan.lineage).cap)
        now = format_time(datetime.now(UTC))
        checks += check_standing(opened.workspace, ledger, plan.dataset, policy, now=now)
    broken = [row for row in checks if not row.ok]
    later = policy.countersignatures
    if as_json:
        found = [{**row.to_dict(), "fix": row.fix, "why": row.why} for row in checks]
        asked = {"rule": "countersignatures", "limit": later.value, "got": None}
        asked["ok"] = None if later.value else True  # nobody can have read what is not there yet
        print_json([*found, {**asked, "fix": _COUNTERSIGN, "why": later.why}])
    else:
        rows = [
            [row.rule, plain_value(row.limit), plain_value(row.got), "kept" if row.ok else "broken"]
            for row in checks
        ]
        when = "later" if later.value else "kept"
        rows.append(["countersignatures", str(later.value), "–", when])
        table(f"Policy {policy.name}", ["rule", "limit", "found", "verdict"], rows)
        for row in broken:
            click.echo(f"{row.rule}: {row.why}\n  fix: {row.fix}")
        if later.value:
            click.echo(f"countersignatures: {later.why}\n  asked at the release: {_COUNTERSIGN}")
    if broken:
        raise PolicyRefused(
            f"policy {policy.name!r}: {len(broken)} of {len(checks)} rules broken: "
            f"{', '.join(row.rule for row in broken)}",
            hint=broken[0].fix,
        )


@click.group("config")
def config_command() -> None:
    """Run configurations: schema, validate."""


@config_command.command("schema")
def schema() -> None:
    """The JSON schema of run files, for editors."""
    print_json(json_schema())


@config_command.command("validate")
@click.argument("config_file", metavar="RUN.YAML", type=FILE)
@json_option
def validate(config_file: Path, as_json: bool) -> None:
    """Check a run file; prints it with every default written out."""
    config = load_config(config_file)
    if as_json:
        print_json({"sha256": config.digest, "config": config.to_dict()})
    else:
        click.echo(f"{config_file}: valid ({config.task} on {config.dataset})")
