"""The static page over all runs: what was spent, what is left, what it bought.

What stands there of a run comes from its signed statement; budgets, and runs that have no report,
from the ledger.  Like the report it is one file without script: its filters are radio buttons and
a style rule.  A statement is shown as it was signed; whether the signatures hold is `privft
verify`'s business, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from privft.report import plots
from privft.report.facts import Facts
from privft.report.page import Verdict, environment, verdict
from privft.report.statement import validate


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run; `link` leads to its report, relative to the index, or is empty."""

    facts: Facts
    verdict: Verdict
    link: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One budget as the ledger has it now: (run, epsilon spent after it) of every run charged."""

    lineage: str
    dataset: str
    epsilon: float
    delta: float
    epsilon_left: float
    exhausted: bool
    history: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Unreported:
    """A run that the ledger has charged and that has no report: its state, in a word."""

    run: str
    dataset: str
    state: str


def render_index(
    runs: Iterable[tuple[Mapping[str, Any], str]],
    *,
    budgets: Sequence[Budget],
    unreported: Sequence[Unreported],
) -> str:
    """The index as one HTML document.

    runs: (statement, link) in any order; a link is a relative path without a scheme.  Raises
    `IntegrityError` for a statement out of schema and `ValueError` for a link that leaves.
    """
    rows = [
        Row(facts=facts, verdict=verdict(facts), link=_checked(link))
        for facts, link in ((validate(made).predicate, link) for made, link in runs)
    ]
    rows.sort(key=lambda row: (row.facts.run.settled_time, row.facts.run.id))
    named = {row.facts.data.dataset for row in rows} | {run.dataset for run in unreported}
    return (
        environment()
        .get_template("index.html")
        .render(
            rows=rows[::-1],
            unreported=unreported,
            datasets=sorted(named),
            budgets=[(budget, _burn_down(budget, i)) for i, budget in enumerate(budgets)],
            frontiers=_frontiers(rows),
        )
    )


def _checked(link: str) -> str:
    if ":" in link or link.startswith("/"):
        raise ValueError(f"expected a relative link, got {link!r}")
    return link


def _burn_down(budget: Budget, i: int) -> Markup | None:
    if not budget.history:
        return None
    return Markup(
        plots.burn_down(
            budget.epsilon,
            budget.history,
            key=f"burn-{i}",
            mark_last="newest",
            exhausted=budget.exhausted,
        )
    )


def _frontiers(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """One chart for each measure on the same text: what each epsilon bought."""
    points: dict[tuple[str, str, str], list[tuple[str, float, float]]] = {}
    for row in rows:
        for entry in row.facts.utility:
            if entry.group is None:
                metric = f"{entry.metric}, held-out and noised" if entry.paid else entry.metric
                key = (row.facts.data.dataset, metric, entry.unit or "")
                points.setdefault(key, []).append(
                    (row.facts.run.id, row.facts.guarantee.epsilon, entry.trained)
                )
    return [
        (
            f"{metric} on {dataset}",
            Markup(plots.frontier(f"{metric} ({unit})" if unit else metric, found, key=f"f-{i}")),
        )
        for i, ((dataset, metric, unit), found) in enumerate(sorted(points.items()))
    ]
