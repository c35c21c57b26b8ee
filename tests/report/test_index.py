"""The index: every run once, budgets by lineage, filters without script, nothing that escapes."""

from __future__ import annotations

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


def test_every_run_stands_there_once_with_its_link() -> None:
    seen = Outline(index.render_index(RUNS))
    links = [a["href"] for tag, a in seen.tags if tag == "a"]
    assert links == ["#main", "runs/r-3/report.html", "runs/r-1/report.html"]
    rows = [a for tag, a in seen.tags if tag == "tr" and "data-v" in a]
    assert sorted(str(row["data-v"]) for row in rows) == ["bad", "good", "good"]
    assert "Budget of calls" in seen.text
    assert "Budget of notes-2026" in seen.text


def test_index_of_nothing_says_so() -> None:
    assert "No run has been reported yet" in index.render_index([])


def test_index_is_the_same_whatever_the_order() -> None:
    assert index.render_index(RUNS) == index.render_index(RUNS[::-1])


@pytest.mark.parametrize("link", ["https://example.org/x", "javascript:alert(1)", "/etc/passwd"])
def test_link_that_leaves_is_refused(link: str) -> None:
    with pytest.raises(ValueError, match="relative"):
        index.render_index([(run("r-1"), link)])


def test_markup_in_names_stays_text() -> None:
    seen = Outline(index.render_index([(run(MARKUP, dataset=MARKUP), 'x"><script>')]))
    assert not {tag for tag, _ in seen.tags} & {"script", "img"}


@pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed")
def test_filter_hides_rows_without_script(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    shown = '<script>document.title = "ROWS " + [...document.querySelectorAll("tr[data-v]")].filter(r => r.offsetHeight).length</script>'  # noqa: E501
    text = index.render_index(RUNS).replace("script-src", "")
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    for chosen, rows in (("v-all", 3), ("v-bad", 1), ("d-2", 2)):
        picked = text.replace(" checked>", ">").replace(f'id="{chosen}"', f'id="{chosen}" checked')
        page.write_text(picked.replace("</body>", shown + "</body>"), encoding="utf-8")
        seen = browser.visit(page, tmp_path)
        assert f"ROWS {rows}" in seen.dom, chosen
        assert seen.requests == []
        assert seen.console == []
