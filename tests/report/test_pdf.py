"""The PDF: made offline, the same every time, and deaf to what names in the statement say."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from privft.errors import UsageError
from privft.report import page, pdf, statement
from privft.report.notices import limits, secrets
from privft.report.sections import sections
from privft.signing import dsse_sign
from tests.report.made_up import made_up_facts
from tests.report.test_page import AMARA, RUN, Outline, made, signed_facts, waived_facts

needs_typst = pytest.mark.skipif(
    importlib.util.find_spec("typst") is None, reason="typst is not installed"
)


@needs_typst
def test_pdf_is_tagged_and_the_same_every_time() -> None:
    built = statement.build(signed_facts())
    made = pdf.render_pdf(built)
    assert made.startswith(b"%PDF-")
    assert b"/StructTreeRoot" in made
    assert made == pdf.render_pdf(built)


@needs_typst
def test_names_are_text_and_never_typst() -> None:
    facts = made_up_facts()
    facts["model"]["name"] = '#read("/etc/passwd") $x$ *b* @ref <label> \\ "'
    facts["limits"] = ["#panic()", "= heading", "", "```", "x" * 3000]
    facts["audit"]["tests"][0]["kind"] = '</text>#eval("1")&amp;'
    assert pdf.render_pdf(statement.build(facts)).startswith(b"%PDF-")


def test_without_typst_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(UsageError) as caught:
        pdf.render_pdf(statement.build(made_up_facts()))
    assert caught.value.hint == "pip install typst"


def test_sections_hold_every_number_that_the_page_prints_of_the_mechanism() -> None:
    facts = statement.validate(statement.build(made_up_facts())).predicate
    cells = {
        cell
        for section in sections(facts)
        for table in section["tables"]
        for row in table["rows"]
        for cell in row
    }
    stated: list[Any] = [
        "0.024",
        "0.9",
        "0.5",
        "60",
        "96",
        "1e-05",
        "1.9018042357527423",
        "2.4420473239790694",
        "4000",
        facts.model.weights_sha256,
    ]
    assert set(stated) <= cells


def test_pdf_says_what_the_page_says_of_limits_counts_and_tests() -> None:
    facts = statement.validate(statement.build(signed_facts())).predicate
    page = Outline(made(signed_facts())).text
    said = [line for section in sections(facts) for line in section["paragraphs"]]
    for line in (*limits(facts), *secrets(facts.audit), facts.audit.words):
        assert line in said
        assert line in page
    assert any("Bounds at 0.05 significance" in line for line in said)
    assert "Bounds at 0.05 significance" in page
    assert any("at the orders 4, 8, 16, 32" in line for line in said)
    cells = [c for s in sections(facts) for t in s["tables"] for row in t["rows"] for c in row]
    assert any(cell.startswith("best order") for cell in cells)
    assert any(re.fullmatch(r"-0\.960 \(-1\.010 to -0\.910\)", cell) for cell in cells)


def test_budget_that_a_recovery_used_up_is_nowhere_shown_as_left() -> None:
    facts = statement.validate(statement.build(waived_facts())).predicate
    ledger = sections(facts)[2]
    assert ledger["tables"][0]["rows"][-1] == ["after the recovery", "8.000", "0.000"]
    assert "After recovery: 0.00 left." in ledger["charts"][0]
    page = made(waived_facts())
    assert "After recovery: 0.00 left." in page
    assert "after the recovery 8.000 0.000" in Outline(page).text


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    facts = statement.validate(statement.build(made_up_facts())).predicate
    for section in sections(facts):
        for table in section["tables"]:
            assert {len(row) for row in table["rows"]} == {len(table["head"]) or 2}


def test_colours_are_written_out_for_readers_without_css() -> None:
    facts = statement.validate(statement.build(made_up_facts())).predicate
    for section in sections(facts):
        for chart in section["charts"]:
            assert "var(" not in chart


class Cells(HTMLParser):
    """What the page says in cells of tables, list items and listings, each as one line of text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.open: list[list[str]] = []
        self.links = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += tag == "a"
        if tag in {"td", "pre", "li"}:
            self.open.append([])

    def handle_endtag(self, tag: str) -> None:
        self.links -= tag == "a"
        if tag in {"td", "pre", "li"}:
            self.cells.append(one_line(self.open.pop()))

    def handle_data(self, data: str) -> None:
        if self.open and not self.links:
            self.open[-1].append(data)


def one_line(parts: Iterable[str]) -> str:
    return " ".join(" ".join(parts).split())


def strings(value: object) -> Iterator[str]:
    """Every text in a tree of lists and mappings, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from strings(item)
    else:
        yield str(value)


@pytest.mark.parametrize("of", [signed_facts, waived_facts])
def test_pdf_has_every_cell_and_every_listing_of_the_page(
    of: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = statement.build(of())
    envelope = dsse_sign(statement.payload(built), statement.PAYLOAD_TYPE, [RUN, AMARA])
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(pdf, "compile_typst", lambda template, data: given.append(data) or b"")
    pdf.render_pdf(built, envelope)
    paper = one_line(strings(given[0]))
    cells = Cells(page.render(built, envelope)).cells
    signers = [cell for cell in cells if re.search(r"key [0-9a-f]{16}…$", cell)]  # worded otherwise
    assert [cell for cell in cells if cell not in paper and cell not in signers] == []
    assert all(f"key {cell[-17:-1]}" in paper for cell in signers)
    assert len(cells) > 150
