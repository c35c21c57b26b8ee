"""The page: says what was signed, in plain words, and carries nothing but text and pictures."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from privft.report import page, statement, wording
from privft.signing import SigningKey, dsse_sign
from tests.report.made_up import made_up_facts

RUN = SigningKey.from_bytes("run", b"R" * 32)
AMARA = SigningKey.from_bytes("amara-liu", b"A" * 32)
MARKUP = '<script>alert("x")</script><img src=x onerror=alert(1)>\'"&{{7*7}}'


def made(facts: dict[str, Any]) -> str:
    built = statement.build(facts)
    envelope = dsse_sign(statement.payload(built), statement.PAYLOAD_TYPE, [RUN, AMARA])
    return page.render(built, envelope)


def signed_facts() -> dict[str, Any]:
    facts = made_up_facts()
    facts["run"]["run_key"] = RUN.public.hex
    facts["approvals"][1]["keyid"] = AMARA.public.keyid
    facts["may_countersign"][1]["keyid"] = AMARA.public.keyid
    return facts


class Outline(HTMLParser):
    """Headings, tags with attributes, ids and visible text, as a reader's tools see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.hidden += tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag == "style"

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_first_page_says_verdict_odds_unit_and_signers() -> None:
    text = Outline(made(signed_facts())).text
    first = text[: text.index("1. Mechanism")]
    for words in (
        "Passed",
        "wins at most 65 of 100",
        "ε = 1.91",
        "one person, with all of that person's records",
        "What is not protected",
        "run key of r-0012-ab12cd",
        "amara-liu countersigned",
        "jonas-weidling approved the plan",
        "rests on the enclave",
        "Made-up data",
    ):
        assert words in first, words


def test_every_number_of_the_mechanism_is_printed_exactly() -> None:
    text = Outline(made(signed_facts())).text
    for number in (
        "0.024",
        "0.9",
        "0.5",
        "60",
        "96",
        "1e-05",
        "1.9018042357527423",
        "2.4420473239790694",
        "2.2383477039913626",
        "4000",
    ):
        assert number in text, number


def test_same_statement_gives_the_same_bytes() -> None:
    assert made(signed_facts()) == made(signed_facts())


def test_page_holds_no_script_and_asks_for_nothing() -> None:
    html = made(signed_facts())
    seen = Outline(html)
    assert not {tag for tag, _ in seen.tags} & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "img",
        "form",
        "base",
    }
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "action", "srcset", "data"):
                assert value is not None
                assert value.startswith("#"), (tag, value)
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [p for key in value for p in _places(value[key], (*path, key))]
    if isinstance(value, list):
        return [p for i, item in enumerate(value) for p in _places(item, (*path, i))]
    return [path] if isinstance(value, str) else []


def test_markup_in_any_text_of_the_statement_stays_text() -> None:
    facts = signed_facts()
    tried = 0
    for path in _places(facts):
        at: Any = facts
        for part in path[:-1]:
            at = at[part]
        before, at[path[-1]] = at[path[-1]], MARKUP
        try:
            statement.build(facts)
            tried += 1
        except Exception:
            at[path[-1]] = before
    facts["versions"][MARKUP] = MARKUP
    facts["platform"][MARKUP] = MARKUP
    facts["config"]["body"][MARKUP] = MARKUP
    assert tried > 60
    seen = Outline(made(facts))
    assert not {tag for tag, _ in seen.tags} & {"script", "img"}
    assert all(not name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert "{{7*7}}" in seen.text


def test_headings_descend_without_gaps_and_ids_are_unique() -> None:
    seen = Outline(made(signed_facts()))
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [a["id"] for _, a in seen.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    links = [a["href"] for tag, a in seen.tags if tag == "a"]
    assert {str(link)[1:] for link in links} <= set(ids)
    for _, attributes in seen.tags:
        for part in str(attributes.get("aria-labelledby") or "").split():
            assert part in ids


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("policy", "checks", 0, "ok"), False, "Not passed"),
        (("selfcheck", 2, "ok"), False, "Not passed"),
        (("model", "adapter_moved"), False, "Not passed"),
        (("reference_values", "passed"), 13, "Not passed"),
        (("audit", "control", "ok"), False, "Not passed"),
    ],
)
def test_one_failure_anywhere_is_no_pass(path: tuple[Any, ...], value: Any, word: str) -> None:
    facts = signed_facts()
    at: Any = facts
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    assert page.verdict(statement.validate(statement.build(facts)).predicate).word == word
    facts["waivers"] = [
        {
            "reason": "made up",
            "expires": "2026-12-01T00:00:00Z",
            "signatures": [
                {"name": name, "keyid": "ab" * 32, "signature": "cd" * 64} for name in "ab"
            ],
        }
    ]
    assert page.verdict(statement.validate(statement.build(facts)).predicate).word == "Waived"


def test_failed_audit_is_no_pass_and_says_why() -> None:
    facts = signed_facts()
    facts["audit"] |= {"verdict": "failed", "findings": ["bound-above-claim"]}
    text = Outline(made(facts)).text
    assert "Not passed" in text
    assert "audit suite standard failed: bound above claim" in text


def test_what_became_of_planted_secrets_is_said_with_intervals_and_limits() -> None:
    text = Outline(made(signed_facts())).text
    assert "wrote out 0 of 129 (95% interval 0% to 3%) of the planted secrets" in text
    assert "0 of 127 (95% interval 0% to 3%) of those that were not" in text
    assert "Among 511 sentences of the same form" in text
    assert "chance gives 1.43, and 9.00 is the most" in text
    assert "may get more out of the model" in text


def test_rounding_goes_against_the_claim() -> None:
    assert wording.round_up(1.9011) == "1.91"
    assert wording.round_up(1.9) == "1.90"
    assert wording.round_down(0.3799) == "0.37"
    assert wording.bets(64.0000001) == 65
    assert wording.bets(64.0) == 64


def test_delta_is_said_as_people_say_it_and_never_smaller() -> None:
    assert wording.one_in(1e-5) == "one in 100,000"
    assert wording.one_in(3e-6) == "one in 333,333"
    assert "δ = 1e-05 (one in 100,000)" in Outline(made(signed_facts())).text


def test_odds_of_epsilon_and_delta_match_the_closed_form() -> None:
    assert wording.odds_of(0.0, 0.0) == 50
    assert wording.odds_of(1.0, 0.0) == pytest.approx(100 * 2.718281828 / 3.718281828)
    assert wording.odds_of(1e4, 0.0) == 100


def test_interval_contains_the_share_and_shrinks_with_more_guesses() -> None:
    facts = statement.validate(statement.build(signed_facts())).predicate
    low, high = page.accuracy_interval(facts.audit.tests[0]) or (0, 0)
    assert low < 0.68 < high
    assert (low, high) == pytest.approx((0.5834, 0.7633), abs=2e-4)  # Wilson, 68 of 100


def waived_facts() -> dict[str, Any]:
    """A failed audit that was waived, under a ledger that was recovered."""
    facts = signed_facts()
    facts["audit"] |= {"verdict": "failed", "findings": ["control-failed"]}
    facts["waivers"] = [
        {
            "reason": "the control ran out of memory",
            "expires": "2026-12-01T00:00:00Z",
            "signatures": [
                {"name": name, "keyid": "ab" * 32, "signature": "cd" * 64}
                for name in ("jonas-weidling", "amara-liu")
            ],
        }
    ]
    facts["ledger"]["recoveries"] = [
        {
            "time": "2026-11-20T08:30:00Z",
            "kept": 10,
            "seen": 40,
            "exhausted": True,
            "reason": "the disk was lost.",
            "signers": ["ab" * 32, "cd" * 32],
        }
    ]
    return facts


def test_waivers_and_a_gap_of_the_ledger_stand_on_page_one() -> None:
    text = Outline(made(waived_facts())).text
    first = text[: text.index("1. Mechanism")]
    assert "Waived until 2026-12-01 by jonas-weidling and amara-liu: the control ran out" in first
    assert "The ledger has a gap" in first
    assert "30 or more entries are lost" in first
    assert "left of that now 0, see above" in first
    assert "No further run fits" in text
    assert "more runs like this one would fit" not in text


def test_report_that_nobody_countersigned_says_so() -> None:
    built = statement.build(signed_facts())
    alone = dsse_sign(statement.payload(built), statement.PAYLOAD_TYPE, [RUN])
    assert "No person has countersigned" in Outline(page.render(built, alone)).text
    assert "No person has countersigned" not in Outline(made(signed_facts())).text


def test_report_that_waits_for_a_countersignature_says_so_on_page_one() -> None:
    built = statement.build(signed_facts())
    alone = dsse_sign(statement.payload(built), statement.PAYLOAD_TYPE, [RUN])
    waiting = Outline(page.render(built, alone)).text
    assert "Not complete yet: the policy asks for 1 countersignature" in waiting
    assert waiting.index("Not complete yet") < waiting.index("1. Mechanism")
    text = Outline(made(signed_facts())).text
    assert "Not complete yet" not in text
    assert "the policy asks for 1 countersignature of this report, by people who may" in text
    assert "nothing leaves before 1 person who may approve plans signed this report" in text


def test_chart_of_many_groups_draws_the_worst_and_the_table_has_all() -> None:
    facts = signed_facts()
    whole = facts["utility"][0] | {"metric": "accuracy", "unit": None, "better": "higher"}
    facts["utility"] = [whole] + [
        whole | {"group": f"label-{i:02d}", "trained": 0.2 + i / 50} for i in range(30)
    ]
    html = made(facts)
    chart = html[html.index('id="plot-utility-0') : html.index("Drawn are the whole")]
    assert "label-08" in chart
    assert "label-09" not in chart
    assert "label-29" in html


def test_unsigned_draft_says_so() -> None:
    text = Outline(page.render(statement.build(signed_facts()))).text
    assert "unsigned draft" in text


@pytest.mark.parametrize("unit", ["record", "subject"])
def test_page_speaks_of_the_unit_that_is_protected(unit: str) -> None:
    facts = signed_facts()
    for section in ("guarantee", "mechanism", "data"):
        facts[section]["unit"] = unit
    text = Outline(made(facts)).text
    assert ("your records were" in text) == (unit == "subject")
    assert ("your record was" in text) == (unit == "record")
