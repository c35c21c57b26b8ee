"""The page of a plan: what is going to happen, priced, before any record is opened.

It says the same as the report's first page and in the same words, so that whoever approves a plan
and whoever reads the report later compare like with like.  It is rendered from the plan, from the
policy's answers and from the ledger's budget; its digest is the plan's, which is what `privft
approve` signs.  A plan says nothing of attacks or usefulness, because nothing was trained yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from privft.budget import accounting
from privft.plan import Plan
from privft.report import plots
from privft.report.page import environment
from privft.report.stopped import paragraphs
from privft.report.wording import bets, odds_of, unit_words


def render_plan(
    plan: Plan,
    *,
    checks: Sequence[Mapping[str, Any]],
    budget: Mapping[str, Any],
    history: Sequence[tuple[str, float]] = (),
    approvals: Sequence[Mapping[str, str]] = (),
    approvals_needed: int = 0,
    countersignatures: int = 0,
    synthetic: bool = False,
) -> str:
    """The plan as one HTML document, in the manner of `page.render`.

    checks: `policy.Check.to_dict` of every rule.  budget: `claim.budget` for the plan's events.
    history: (run, epsilon spent after it) of earlier runs.  approvals: name, keyid, time of each.
    countersignatures: how many the policy will ask for once the run is audited.
    """
    mechanism, selection = plan.the_mechanism(), plan.the_selection()
    asked = plan.the_config().selection
    odds = min(100.0, 100 * accounting.tradeoff(plan.events()).max_accuracy)
    cap = budget["cap"]
    steps = [*history, ("this plan", float(budget["after"]["epsilon_spent"]))]
    return (
        environment()
        .get_template("plan.html")
        .render(
            plan=plan,
            plan_sha256=plan.digest,
            mechanism=mechanism,
            words=unit_words(mechanism.unit),
            stopped=paragraphs(selection, asked, will=True) if selection and asked else [],
            bets=bets(odds),
            odds=Markup(plots.odds(bets(odds))),
            cap_odds=odds_of(cap["epsilon"], cap["delta"]),
            budget=budget,
            burn=Markup(plots.burn_down(cap["epsilon"], steps, mark_last="this plan")),
            checks=checks,
            broken=[check for check in checks if not check["ok"]],
            approvals=approvals,
            missing=max(0, approvals_needed - len(approvals)),
            countersignatures=countersignatures,
            synthetic=synthetic,
        )
    )
