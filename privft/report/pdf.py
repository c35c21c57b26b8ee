"""The report as a PDF, made offline by typst from the same signed statement.

The page has two renderings: `report.page` writes HTML, this writes PDF; neither knows more than the
other.  `report.sections` turns the statement into plain rows of text; `templates/report.typ` only
lays them out.  Text reaches typst as JSON strings and never as markup, so no name in a statement
can become code, and typst is given no folder that it could read from.

Only fonts that typst brings along are used and no clock is read: the same statement gives the same
bytes with the same typst.  The PDF is tagged, so that a screen reader finds headings and tables.
typst is optional; without it a `UsageError` says what to install.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from privft.errors import UsageError
from privft.report.countersigned import countersigned, signed_by
from privft.report.facts import Facts
from privft.report.notices import incomplete, recoveries, waivers
from privft.report.page import charts, signers, verdict
from privft.report.sections import plain_svg, sections
from privft.report.statement import digest, validate
from privft.report.wording import bets, exact, one_in, round_down, round_up, unit_words


def render_pdf(statement: Mapping[str, Any], envelope: Mapping[str, Any] | None = None) -> bytes:
    """The report as PDF bytes; raises `UsageError` without typst."""
    facts = validate(statement).predicate
    data = {
        "first": _first_page(facts, envelope),
        "sections": sections(facts),
        "footer": f"{facts.renderer}, statement {digest(statement)}",
    }
    return compile_typst("report.typ", data)


def compile_typst(template: str, data: Mapping[str, Any]) -> bytes:
    """A typst template of this package with JSON data, as PDF bytes."""
    try:
        import typst
    except ModuleNotFoundError as error:
        raise UsageError(
            "a PDF needs the package typst, which is not installed", hint="pip install typst"
        ) from error
    source = (resources.files("privft.report") / "templates" / template).read_bytes()
    made = typst.compile(
        source,
        format="pdf",
        sys_inputs={"data": json.dumps(data)},
        ignore_system_fonts=True,
        timestamp=0,
    )
    if not isinstance(made, bytes):
        raise UsageError("typst gave no PDF")
    return made


def _first_page(facts: Facts, envelope: Mapping[str, Any] | None) -> dict[str, Any]:
    seal = verdict(facts)
    words = unit_words(facts.guarantee.unit)
    people = signers(facts, envelope)
    signed = [
        f"{who.name}: {'signed' if who.role == 'run' else who.role} (key {who.keyid[:16]}…)"
        for who in people
    ] or ["Nobody yet: this is an unsigned draft."]
    if len(people) == 1:
        none = "" if countersigned(facts, ()).wanted else "; the policy did not ask for it"
        signed.append(f"No person has countersigned this report{none}.")
    signed += [
        f"{approval.name}: approved the plan, {approval.time} (key {approval.keyid[:16]}…)"
        for approval in facts.approvals
    ] or ["Nobody approved the plan; the policy did not ask for it."]
    left = "0, see above" if facts.ledger.exhausted else round_down(facts.ledger.after.epsilon_left)
    return {
        "title": f"{facts.model.name}, trained on {facts.data.dataset}",
        "line": f"Run {facts.run.id}, started by {facts.run.actor}, finished "
        f"{facts.run.settled_time}",
        "synthetic": facts.synthetic,
        "verdict": {
            "word": seal.word,
            "tone": seal.tone,
            "line": seal.line,
            "reasons": list(seal.reasons),
        },
        "notices": [
            *incomplete(countersigned(facts, signed_by(envelope))),
            *waivers(facts),
            *recoveries(facts),
        ],
        "bets": bets(facts.guarantee.odds_percent),
        "your": words["your"],
        "claim": f"ε = {round_up(facts.guarantee.epsilon)}, δ = {exact(facts.guarantee.delta)}"
        f" ({one_in(facts.guarantee.delta)})",
        "one": words["one"],
        "key_facts": [
            ["protects", f"one {words['short']}"],
            ["epsilon of this run", round_up(facts.guarantee.epsilon)],
            ["all runs together, at most", round_up(facts.ledger.cap.epsilon)],
            ["left of that now", left],
        ],
        "odds": plain_svg(str(charts(facts)["odds"])),
        "protected": [
            f"Whether {words['one']}, took part at all.",
            f"What only that {words['short']}’s text would have taught the model: names, numbers, "
            "phrases, habits.",
            "Also later: what the model writes, and what anybody makes of it, is covered.",
            "Also together: all runs on these data count against one budget.",
        ],
        "unprotected": [
            f"What is true of many {words['many']} alike: that is what the model is meant to "
            "learn.",
            "Facts that stand in the text of others"
            + (
                ", or in several records of the same person."
                if facts.guarantee.unit == "record"
                else "."
            ),
            "What one types into the model when using it.",
            "The data before they came here, and copies elsewhere.",
        ],
        "signed": signed,
    }
