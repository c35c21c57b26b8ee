"""Charts: well-formed, deterministic, described in words, and drawn where the numbers are."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privft.report import plots

NAMESPACE = "{http://www.w3.org/2000/svg}"
BOUND = [(1e-5, 4e-5), (1e-3, 4e-3), (0.1, 0.4), (1.0, 1.0)]
CHARTS = {
    "odds": lambda: plots.odds(65),
    "roc": lambda: plots.roc(BOUND, [(0.0, 0.0), (0.1, 0.2), (1.0, 1.0)], tested=512),
    "roc without attack": lambda: plots.roc(BOUND, None, tested=512),
    "claim": lambda: plots.claim_and_attacks(1.9, [("secret", 0.4, 3.4), ("words", 0.0, 3.4)]),
    "burn": lambda: plots.burn_down(8.0, [("r-1", 1.0), ("r-2", 2.5)]),
    "burn, spent": lambda: plots.burn_down(2.0, [(f"r-{i}", 2.0) for i in range(40)]),
    "utility": lambda: plots.dumbbells("loss", "nat", [("all", 5.2, 4.3, (4.2, 4.4))]),
    "utility, flat": lambda: plots.dumbbells("loss", "nat", [("all", 0.0, 0.0, None)]),
}


@pytest.mark.parametrize("name", CHARTS)
def test_chart_is_well_formed_and_says_in_words_what_it_shows(name: str) -> None:
    root = ElementTree.fromstring(CHARTS[name]())
    ids = root.attrib["aria-labelledby"].split()
    told = {part.attrib["id"]: part.text for part in root if "id" in part.attrib}
    assert root.attrib["role"] == "img"
    assert all(told[part] for part in ids)
    assert "nan" not in CHARTS[name]()
    assert CHARTS[name]() == CHARTS[name]()


def test_hundred_bets_are_a_hundred_dots() -> None:
    root = ElementTree.fromstring(plots.odds(65))
    fills = [dot.attrib["fill"] for dot in root.iter(f"{NAMESPACE}circle")]
    assert [fills.count(f) for f in (plots.MUTED, plots.ACCENT, "none")] == [50, 15, 35]


def test_log_axis_puts_each_decade_at_the_same_distance() -> None:
    axis = plots.Axis(low=1e-3, high=1.0, start=0, end=300, log=True)
    assert [round(axis.at(v)) for v in (1e-3, 1e-2, 1e-1, 1.0)] == [0, 100, 200, 300]
    assert axis.at(0.0) == 0


def test_proven_bar_ends_at_its_epsilon() -> None:
    svg = plots.claim_and_attacks(2.0, [("secret", 1.0, 4.0)])
    widths = [float(w) for w in re.findall(r'<rect [^>]*? width="([\d.]+)"', svg)]
    ceiling, shown = widths[:2]
    assert shown / ceiling == pytest.approx(1 / 4, abs=1e-3)


def test_names_cannot_leave_their_text_element() -> None:
    name = '</text><script>alert(1)</script>"&'
    charts = [
        plots.claim_and_attacks(1.0, [(name, 0.1, 1.0)]),
        plots.burn_down(8.0, [(name, 1.0)]),
        plots.dumbbells(name, name, [(name, 1.0, 0.5, None)]),
    ]
    for svg in charts:
        ElementTree.fromstring(svg)
        assert "<script" not in svg


@example(cap=1.0, spent=[5e-324], epsilon=5e-324)
@settings(max_examples=80)
@given(
    cap=st.floats(1e-3, 1e4),
    spent=st.lists(st.floats(0, 1e4), min_size=1, max_size=30),
    epsilon=st.floats(0, 500),
)
def test_any_amounts_draw(cap: float, spent: list[float], epsilon: float) -> None:
    ElementTree.fromstring(plots.burn_down(cap, [(f"r-{i}", s) for i, s in enumerate(spent)]))
    ElementTree.fromstring(plots.claim_and_attacks(epsilon, [("x", epsilon / 3, epsilon * 2)]))
