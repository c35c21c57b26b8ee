"""The PDF: made offline, the same every time, and deaf to what names in the statement say."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest

from privft.errors import UsageError
from privft.report import pdf, statement
from tests.report.made_up import made_up_facts
from tests.report.test_page import signed_facts

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
        for section in pdf.sections(facts)
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


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    facts = statement.validate(statement.build(made_up_facts())).predicate
    for section in pdf.sections(facts):
        for table in section["tables"]:
            assert {len(row) for row in table["rows"]} == {len(table["head"]) or 2}


def test_colours_are_written_out_for_readers_without_css() -> None:
    facts = statement.validate(statement.build(made_up_facts())).predicate
    for section in pdf.sections(facts):
        for chart in section["charts"]:
            assert "var(" not in chart
