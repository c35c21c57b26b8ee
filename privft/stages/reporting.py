"""What people read of plans and runs beside the released folder: pages, drafts, the index.

    PLAN.html                           beside a plan: what it will promise and cost (`plan_page`)
    runs/RUN/report.html, .json, .pdf   after the audit (`write_report`): page, statement, PDF; once
                                        a run is released they show what was released
    index.html                          all audited runs and their budgets (`index_page`)

Everything is rendered from signed statements, or from a plan and the ledger, and from nothing else;
no vault is opened, nothing loads torch.  `report.json` is the statement itself, laid out for
scripts and not signed: what is signed is `statement.dsse.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from privft.budget.accounting import cost
from privft.budget.filter import Cap, gauge
from privft.budget.judged import RunRecord
from privft.budget.ledger import Ledger
from privft.budget.priced import stated_epsilon
from privft.budget.selection import total_rdp
from privft.errors import IntegrityError, OrderError, UsageError
from privft.plan import Plan, parse_plan
from privft.policy import check
from privft.report import claim, exports, statement
from privft.report.index import Budget, Unreported, render_index
from privft.report.page import render
from privft.report.pdf import render_pdf
from privft.report.planpage import render_plan
from privft.report.release import PAGE, PDF, STATEMENT, STATEMENT_TEXT
from privft.report.wording import pretty_json
from privft.signing import VerifyKey, canonical_json, dsse_open
from privft.stages.data import policy_of
from privft.stages.planning import approvals_of, plan_facts
from privft.workspace import Workspace, read_canonical, write_private


def write_report(
    folder: Path,
    stated: Mapping[str, Any],
    envelope: Mapping[str, Any],
    *,
    say: Callable[[str], None],
) -> None:
    """Page, statement and PDF of a run into its folder; without typst the PDF is left out."""
    write_private(folder / PAGE, render(stated, envelope).encode())
    write_private(folder / STATEMENT_TEXT, (pretty_json(stated) + "\n").encode())
    try:
        made = render_pdf(stated, envelope)
    except UsageError as missing:
        (folder / PDF).unlink(missing_ok=True)
        say(f"no {PDF}: {missing.message} ({missing.hint})")
    else:
        write_private(folder / PDF, made)


def read_statement(folder: Path, *, run_key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(statement, envelope) of an audited run, its signature checked."""
    envelope = read_canonical(folder / STATEMENT, "the statement")
    key = VerifyKey.from_hex("run", run_key)
    payload, _ = dsse_open(envelope, {key.keyid: key}, payload_type=statement.PAYLOAD_TYPE)
    return json.loads(payload), envelope


def audited_statement(
    workspace: Workspace, ledger: Ledger, run: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(statement, envelope) of the newest audit of a run; raises `OrderError` without one.

    Guarantees: the run's key signed it, and the ledger names its digest.
    """
    ledger.run(run)  # an unknown run is named as such
    audits = ledger.entries(kind="run-audited", run=run)
    if not audits:
        raise OrderError(f"run {run} has not been audited", hint=f"privft audit {run}")
    (reserved,) = ledger.entries(kind="run-reserved", run=run)
    found = read_statement(workspace.run_path(run), run_key=reserved.body["run_key"])
    if statement.digest(found[0]) != audits[-1].body["statement_sha256"]:
        raise IntegrityError(f"the statement of run {run} is not the one that was audited")
    return found


def index_page(
    workspace: Workspace, ledger: Ledger, target: Path, *, state_of: Callable[[RunRecord], str]
) -> str:
    """The page over all runs and budgets, with links that work from where `target` is to be.

    state_of: a run's state in a word, which is the gate's to say.
    """
    here, found, unreported = target.resolve().parent, [], []
    for record in ledger.runs():
        if ledger.entries(kind="run-audited", run=record.run):
            stated, _ = audited_statement(workspace, ledger, record.run)
            page = workspace.run_path(record.run).resolve() / PAGE
            found.append((stated, Path(os.path.relpath(page, here)).as_posix()))
        else:
            unreported.append(
                Unreported(run=record.run, dataset=record.dataset, state=state_of(record))
            )
    return render_index(found, budgets=_budgets(ledger), unreported=unreported)


def _budgets(ledger: Ledger) -> list[Budget]:
    """Every lineage's budget, under the name of its first data set."""
    named: dict[str, str] = {}
    for created in ledger.entries(kind="dataset-created"):
        named.setdefault(created.body["lineage"], created.body["dataset"])
    budgets = []
    for lineage, dataset in named.items():
        view = ledger.budget(lineage)
        budgets.append(
            Budget(
                lineage=lineage,
                dataset=dataset,
                epsilon=view.cap.epsilon,
                delta=view.cap.delta,
                epsilon_left=view.epsilon_left,
                exhausted=view.exhausted,
                history=tuple(
                    (record.run, after) for record, after in spent_after(ledger, view.cap, lineage)
                ),
            )
        )
    return budgets


def draft(workspace: Workspace, ledger: Ledger, run: str, name: str) -> str:
    """One of the exports of an audited run."""
    return exports.export(audited_statement(workspace, ledger, run)[0], name)


def plan_page(workspace: Workspace, ledger: Ledger, plan: Plan) -> str:
    """The page of a plan as things stand now; raises where the budget no longer admits it."""
    plan = parse_plan(plan.to_bytes())  # numbers as the file has them: 1.0 is written 1
    view = ledger.budget(plan.lineage)
    policy = policy_of(workspace, ledger, plan.dataset)
    approvals = approvals_of(ledger, plan.digest)
    needed = policy.approvals.value
    names = tuple(row["name"] for row in approvals) if len(approvals) >= needed else None
    facts = plan_facts(workspace, plan, operator=plan.operator, approvers=names)
    return render_plan(
        plan,
        checks=[row.to_dict() for row in check(policy, facts, view.cap)],
        budget=claim.budget(
            cap=view.cap, spent=(*view.spent, *view.reserved), events=plan.events()
        ),
        history=[
            (record.run, cumulative)
            for record, cumulative in spent_after(ledger, view.cap, plan.lineage)
        ],
        approvals=approvals,
        approvals_needed=needed,
        countersignatures=policy.countersignatures.value,
        synthetic=bool(plan.config["synthetic"]),
    )


def burn_down(
    ledger: Ledger, cap: Cap, lineage: str, delta: float, *, until: str | None = None
) -> list[dict[str, Any]]:
    """What each run of a lineage cost alone and the filter counts after it, oldest first.

    until: the last run to be told of; by default the newest.
    """
    history = []
    for record, cumulative in spent_after(ledger, cap, lineage):
        alone = _alone(ledger, record, delta)
        history.append({"run": record.run, "epsilon": alone, "cumulative": cumulative})
        if record.run == until:
            break
    return history


def spent_after(ledger: Ledger, cap: Cap, lineage: str) -> Iterator[tuple[RunRecord, float]]:
    """Each run of a lineage and what the filter counts after it, oldest first."""
    sums = total_rdp((), cap.orders)
    for record in ledger.runs(lineage):
        costs = total_rdp(record.charged, cap.orders)
        sums = tuple(a + b for a, b in zip(sums, costs, strict=True))
        yield record, gauge(cap, sums)


def _alone(ledger: Ledger, record: RunRecord, delta: float) -> float:
    """Epsilon of what one run was charged: as it was priced, where it was charged as reserved."""
    if not record.charged:
        return 0.0
    reserved = ledger.entry(record.reserved).body
    planned, charged = reserved["epsilon"], [event.to_dict() for event in record.charged]
    whole = sorted(map(canonical_json, charged)) == sorted(map(canonical_json, reserved["events"]))
    if whole and planned["delta"] == delta:
        return stated_epsilon(planned)
    return cost(record.charged, delta).epsilon
