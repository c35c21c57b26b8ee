"""The static page over all runs: what was spent, what is left, what it bought.

`render_index` is rendered from the runs' signed statements and nothing else, and like the report it
is one file without script: its filters are radio buttons and a style rule.  A statement is shown as
it was signed; whether the signatures hold is `privft verify`'s business, and the page says so.
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
class Lineage:
    """One budget and the state in which its newest run left it."""

    name: str
    dataset: str
    newest: Facts
    chart: Markup


def render_index(runs: Iterable[tuple[Mapping[str, Any], str]]) -> str:
    """The index as one HTML document.

    runs: (statement, link) in any order; a link is a relative path without a scheme.  Raises
    `IntegrityError` for a statement out of schema and `ValueError` for a link that leaves.
    """
    rows = [
        Row(facts=facts, verdict=verdict(facts), link=_checked(link))
        for facts, link in ((validate(made).predicate, link) for made, link in runs)
    ]
    rows.sort(key=lambda row: (row.facts.run.settled_time, row.facts.run.id))
    return (
        environment()
        .get_template("index.html")
        .render(
            rows=rows[::-1],
            datasets=sorted({row.facts.data.dataset for row in rows}),
            lineages=_lineages(rows),
            frontiers=_frontiers(rows),
        )
    )


def _checked(link: str) -> str:
    if ":" in link or link.startswith("/"):
        raise ValueError(f"expected a relative link, got {link!r}")
    return link


def _lineages(rows: Sequence[Row]) -> list[Lineage]:
    newest: dict[str, Facts] = {}
    for row in rows:
        at = newest.get(row.facts.data.lineage)
        if at is None or len(row.facts.ledger.history) >= len(at.ledger.history):
            newest[row.facts.data.lineage] = row.facts
    return [
        Lineage(
            name=name,
            dataset=facts.data.dataset,
            newest=facts,
            chart=Markup(
                plots.burn_down(
                    facts.ledger.cap.epsilon,
                    [(past.run, past.cumulative) for past in facts.ledger.history],
                    key=f"burn-{i}",
                    mark_last="newest",
                )
            ),
        )
        for i, (name, facts) in enumerate(sorted(newest.items()))
    ]


def _frontiers(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    """One chart for each measure on the same text: what each epsilon bought."""
    points: dict[tuple[str, str, str], list[tuple[str, float, float]]] = {}
    for row in rows:
        for entry in row.facts.utility:
            if entry.group is None:
                key = (row.facts.data.dataset, entry.metric, entry.unit or "")
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
