"""The index: every run once, budgets by lineage, filters without script, nothing that escapes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privft.report import index, statement
from tests.report import browser
from tests.report.made_up import made_up_facts
from tests.report.test_page import MARKUP, Outline


def run(name: str, dataset: str = "notes-2026", epsilon: float = 1.9, **audit: Any) -> Any:
    facts = made_up_facts()
    facts["run"]["id"] = facts["ledger"]["history"][-1]["run"] = name
    facts["run"]["dataset"] = facts["data"]["dataset"] = dataset
    facts["run"]["lineage"] = facts["data"]["lineage"] = dataset + "-lineage"
    facts["guarantee"]["epsilon"] = facts["guarantee"]["cost"]["epsilon_pld"] = epsilon
    facts["audit"].update(audit)
    return statement.build(facts)


RUNS = [
    (run("r-1"), "runs/r-1/report.html"),
    (run("r-2", epsilon=0.9), ""),
    (
        run("r-3", dataset="calls", verdict="failed", findings=["control-failed"]),
        "runs/r-3/report.html",
    ),
]


BUDGETS = [
    index.Budget(
        lineage="calls-lineage", dataset="calls", epsilon=8.0, delta=1e-5, epsilon_left=3.9,
        exhausted=False, history=(("r-3", 4.1),),
    ),
    index.Budget(
        lineage="notes-lineage", dataset="notes-2026", epsilon=8.0, delta=1e-5, epsilon_left=0.0,
        exhausted=True, history=(("r-1", 2.1), ("r-2", 3.2), ("r-4", 4.0)),
    ),
    index.Budget(
        lineage="new-lineage", dataset="new", epsilon=4.0, delta=1e-5, epsilon_left=4.0,
        exhausted=False, history=(),
    ),
]  # fmt: skip
UNREPORTED = [index.Unreported(run="r-4", dataset="notes-2026", state="closed")]


def made(runs: Any = RUNS) -> str:
    return index.render_index(runs, budgets=BUDGETS, unreported=UNREPORTED)


def test_every_run_stands_there_once_with_its_link() -> None:
    seen = Outline(made())
    links = [a["href"] for tag, a in seen.tags if tag == "a"]
    assert links == ["#main", "runs/r-3/report.html", "runs/r-1/report.html"]
    rows = [a for tag, a in seen.tags if tag == "tr" and "data-v" in a]
    assert sorted(str(row["data-v"]) for row in rows) == ["bad", "good", "good", "none"]


def test_budgets_and_runs_without_a_report_come_from_the_ledger() -> None:
    text = Outline(made()).text
    assert "r-4 closed notes-2026 charged; no report" in text
    assert "Budget of calls All runs together never exceed ε = 8, δ = 1e-05. Left: 3.90" in text
    assert "recovered from a backup: nothing is left" in text
    assert "After recovery: 0.00 left." in text
    assert "Nothing was charged to it yet. Lineage new-lineage" in text


def test_index_of_nothing_says_so() -> None:
    assert "No run has been reported yet" in index.render_index([], budgets=[], unreported=[])


def test_index_is_the_same_whatever_the_order() -> None:
    assert made() == made(RUNS[::-1])


@pytest.mark.parametrize("link", ["https://example.org/x", "javascript:alert(1)", "/etc/passwd"])
def test_link_that_leaves_is_refused(link: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        made([(run("r-1"), link)])


def test_markup_in_names_stays_text() -> None:
    hostile = index.Unreported(run=MARKUP, dataset=MARKUP, state=MARKUP)
    budget = replace(BUDGETS[0], lineage=MARKUP, dataset=MARKUP, history=((MARKUP, 1.0),))
    page = index.render_index(
        [(run(MARKUP, dataset=MARKUP), 'x"><script>')], budgets=[budget], unreported=[hostile]
    )
    seen = Outline(page)
    assert not {tag for tag, _ in seen.tags} & {"script", "img"}


@pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed")
def test_filter_hides_rows_without_script(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    shown = '<script>document.title = "ROWS " + [...document.querySelectorAll("tr[data-v]")].filter(r => r.offsetHeight).length</script>'  # noqa: E501
    text = made().replace("script-src", "")
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    for chosen, rows in (("v-all", 4), ("v-bad", 1), ("d-2", 3)):
        picked = text.replace(" checked>", ">").replace(f'id="{chosen}"', f'id="{chosen}" checked')
        page.write_text(picked.replace("</body>", shown + "</body>"), encoding="utf-8")
        seen = browser.visit(page, tmp_path)
        assert f"ROWS {rows}" in seen.dom, chosen
        assert seen.requests == []
        assert seen.console == []
