"""The page in a real browser: silent console, no request, no serious accessibility fault."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privft.report.planpage import render_plan
from tests.report import browser
from tests.report.released import true_facts
from tests.report.test_index import made as index_page
from tests.report.test_page import made, signed_facts, waived_facts
from tests.report.test_planpage import made_up_plan

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="chromium is not installed")


PAGES: dict[str, Callable[[], str]] = {
    "report": lambda: made(signed_facts()),
    "failed report": lambda: made(_failed_facts()),
    "waived report": lambda: made(waived_facts()),
    "index": index_page,
    "plan": lambda: render_plan(
        made_up_plan(),
        checks=true_facts()["policy"]["checks"],
        budget=true_facts()["ledger"],
        approvals_needed=2,
    ),
}


def _failed_facts() -> dict[str, Any]:
    facts = signed_facts()
    facts["audit"] |= {"verdict": "failed", "findings": ["control-failed"]}
    facts["utility"], facts["audit"]["control"], facts["audit"]["roc"] = [], None, None
    return facts


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(made(signed_facts()), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [("report", "wins at most"), ("index", "Newest first"), ("plan", "will win at most")],
)
def test_console_stays_silent_and_nothing_leaves_the_file(
    tmp_path: Path, kind: str, words: str
) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES[kind](), encoding="utf-8")
    seen = browser.visit(path, tmp_path)
    assert seen.console == []
    assert seen.requests == []
    assert words in seen.dom


def test_a_page_that_asks_for_something_is_noticed(page: Path, tmp_path: Path) -> None:
    loud = page.read_text(encoding="utf-8").replace(
        "</main>", '<img src="https://127.0.0.1:9/x.png"></main>'
    )
    page.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", loud), encoding="utf-8")
    assert browser.visit(page, tmp_path).requests


WIDE = """<script>addEventListener("load", () => {
  const over = [...document.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll") && e.getBoundingClientRect().right > innerWidth + 1);
  document.title = "WIDE " + document.documentElement.scrollWidth + " " + innerWidth + " "
    + over.slice(0, 3).map(e => e.tagName + "." + e.className).join(",");
})</script>"""


@pytest.mark.parametrize(
    ("kind", "width"),
    [("report", 360), ("report", 768), ("report", 1280), ("index", 360), ("plan", 360)],
)
def test_nothing_sticks_out_at_any_width(page: Path, tmp_path: Path, kind: str, width: int) -> None:
    page.write_text(PAGES[kind](), encoding="utf-8")
    framed = tmp_path / "frame.html"
    inner = _without_policy(page).replace("</body>", WIDE + "</body>")
    page.write_text(inner, encoding="utf-8")
    framed.write_text(
        f'<!doctype html><iframe id="f" src="report.html" width="{width}" height="900"></iframe>'
        "<script>f.onload = () => setTimeout(() => "
        "{ document.body.dataset.found = f.contentDocument.title }, 500)</script>",
        encoding="utf-8",
    )
    seen = browser.visit(framed, tmp_path, "--allow-file-access-from-files")
    found = re.search(r'data-found="WIDE (\d+) (\d+) ?([^"]*)"', seen.dom)
    assert found, seen.dom[-400:]
    assert int(found[1]) <= int(found[2]), found[0]
    assert found[3] == ""


def _without_policy(page: Path) -> str:
    return re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))


AXE_CALL = """<script>axe.run(document, {resultTypes: ["violations"]}).then(found => {
  const told = found.violations.map(v => ({id: v.id, impact: v.impact,
    nodes: v.nodes.slice(0, 4).map(n => n.html.slice(0, 160) + " :: " + n.failureSummary)}));
  document.body.insertAdjacentHTML("beforeend", "<pre id=axe></pre>");
  document.getElementById("axe").textContent = JSON.stringify(told);
})</script>"""


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [*((kind, "light") for kind in PAGES), *((k, "dark") for k in ("report", "index", "plan"))],
)
@pytest.mark.skipif(browser.axe() is None, reason="no package that brings axe-core is installed")
def test_axe_finds_no_accessibility_fault(tmp_path: Path, kind: str, scheme: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(PAGES[kind]().replace("<details>", "<details open>"), encoding="utf-8")
    script = f"<script>{browser.axe()}</script>{AXE_CALL}"
    page.write_text(_without_policy(page).replace("</body>", script + "</body>"), encoding="utf-8")
    flags = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]
    seen = browser.visit(page, tmp_path, *(flags if scheme == "dark" else []))
    found = re.search(r'<pre id="axe">(.*?)</pre>', seen.dom, flags=re.DOTALL)
    assert found, seen.console
    violations: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    assert violations == []
