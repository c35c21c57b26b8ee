"""The report as a PDF, made offline by typst from the same signed statement.

The page has two renderings: `report.page` writes HTML, this writes PDF; neither knows more than the
other.  `sections` turns the statement into plain rows of text; `templates/report.typ` only lays
them out.  Text reaches typst as JSON strings and never as markup, so no name in a statement can
become code, and typst is given no folder that it could read from.

Only fonts that typst brings along are used and no clock is read: the same statement gives the same
bytes with the same typst.  The PDF is tagged, so that a screen reader finds headings and tables.
typst is optional; without it a `UsageError` says what to install.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

from privft.errors import UsageError
from privft.report.countersigned import countersigned, signed_by
from privft.report.facts import Facts
from privft.report.hazards import hazards
from privft.report.notices import incomplete, recoveries, secrets, waivers
from privft.report.page import accuracy_interval, charts, signers, verdict
from privft.report.statement import digest, validate
from privft.report.wording import (
    COMPANIONS,
    bets,
    exact,
    limit_words,
    odds_of,
    one_in,
    paid_words,
    plain_value,
    round_down,
    round_up,
    rule_words,
    unit_words,
)

_VARIABLE = re.compile(r"var\(--[a-z]+,(#[0-9a-f]{6})\)")


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


def plain_svg(chart: str) -> str:
    """A chart with its colours written out, for readers that know no CSS variables."""
    return _VARIABLE.sub(r"\1", chart)


def _first_page(facts: Facts, envelope: Mapping[str, Any] | None) -> dict[str, Any]:
    seal = verdict(facts)
    words = unit_words(facts.guarantee.unit)
    people = signers(facts, envelope)
    signed = [
        f"{who.name}: {'signed' if who.role == 'run' else who.role} (key {who.keyid[:16]}…)"
        for who in people
    ] or ["Nobody yet: this is an unsigned draft."]
    if len(people) == 1:
        signed.append("No person has countersigned this report.")
    signed += [
        f"{approval.name}: approved the plan, {approval.time} (key {approval.keyid[:16]}…)"
        for approval in facts.approvals
    ]
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
        "odds": plain_svg(str(charts(facts)["odds"])),
        "protected": [
            f"Whether {words['one']}, took part at all.",
            f"What only that {words['short']}’s text would have taught the model.",
            "What the model writes later, and what anybody makes of it.",
            "All runs on these data together, against one budget: ε at most "
            f"{exact(facts.ledger.cap.epsilon)}.",
        ],
        "unprotected": [
            f"What is true of many {words['many']} alike.",
            "Facts that stand in the text of others.",
            "What one types into the model when using it.",
            "The data before they came here, and copies elsewhere.",
        ],
        "signed": signed,
    }


def _table(caption: str, head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"caption": caption, "head": head, "rows": rows}


def _pairs(caption: str, rows: list[tuple[str, Any]]) -> dict[str, Any]:
    return _table(caption, [], [[name, plain_value(value)] for name, value in rows])


def sections(facts: Facts) -> list[dict[str, Any]]:
    """All that follows the first page: title, paragraphs, tables of text, charts."""
    parts = (
        _mechanism,
        _data,
        _ledger,
        _policy,
        _implementation,
        _attacks,
        _utility,
        _hazards,
        _limits,
    )
    return [
        {"paragraphs": [], "tables": [], "charts": [], **part(facts), "number": i}
        for i, part in enumerate(parts, start=1)
    ]


def _mechanism(facts: Facts) -> dict[str, Any]:
    m, claim = facts.mechanism, facts.guarantee
    costs = [
        [
            "add or remove one (the claim)" if cost.adjacency == "add-remove" else "replace one",
            exact(cost.epsilon_pld),
            exact(cost.epsilon_rdp) if cost.epsilon_rdp is not None else "–",
            cost.rdp_note or "",
        ]
        for cost in (claim.cost, claim.substitute)
        if cost is not None
    ]
    return {
        "title": "Mechanism",
        "paragraphs": ["All numbers that are needed to compute epsilon again, as signed."],
        "tables": [
            _pairs(
                "DP-SGD",
                [
                    ("privacy unit", m.unit),
                    ("neighbouring data sets", "add or remove one unit"),
                    ("sampler", "Poisson: independent coins"),
                    ("sampling probability q", m.sampling_probability),
                    ("noise multiplier σ", m.noise_multiplier),
                    ("clip norm C", m.clip_norm),
                    ("clipping", m.clipping),
                    *(
                        [("noise on the count of unclipped units, part of σ", m.count_noise)]
                        if m.count_noise is not None
                        else []
                    ),
                    ("steps T, empty samples included", m.steps),
                    ("divisor: expected batch size", m.expected_batch_size),
                    ("delta δ", claim.delta),
                ],
            ),
            _table("Accountants", ["relation", "ε by PLD", "ε by RDP", "note"], costs),
        ],
    }


def _data(facts: Facts) -> dict[str, Any]:
    data, model = facts.data, facts.model
    return {
        "title": "Data and model",
        "tables": [
            _pairs(
                "Data, by what may be known in public",
                [
                    ("data set", data.dataset),
                    ("lineage", data.lineage),
                    ("fingerprint", data.manifest_root),
                    ("declared number of units", data.declared_units),
                    ("records used of one unit, at most", data.max_records_per_unit),
                ],
            ),
            _pairs(
                "Model",
                [
                    ("base model", model.name),
                    ("licence of the base model", model.licence or "not stated"),
                    ("task", facts.run.task),
                    ("SHA-256 of the base weights", model.weights_sha256),
                    ("SHA-256 of the tokenizer", model.tokenizer_sha256),
                    ("trained parameters", model.trained_parameters),
                    ("adapter changed in training", model.adapter_moved),
                    *[(f"SHA-256 of {n}", sha) for n, sha in sorted(model.adapter_files.items())],
                ],
            ),
        ],
    }


def _ledger(facts: Facts) -> dict[str, Any]:
    ledger, cap = facts.ledger, facts.ledger.cap
    rows = [
        [when, round_up(budget.epsilon_spent, 3), round_down(budget.epsilon_left, 3)]
        for when, budget in (("before this run", ledger.before), ("after this run", ledger.after))
    ]
    return {
        "title": "Budget and ledger",
        "paragraphs": [
            f"All runs on these data together never exceed ε = {exact(cap.epsilon)}, "
            f"δ = {exact(cap.delta)}: an attacker who sees every model would win at most "
            f"{round_up(odds_of(cap.epsilon, cap.delta))} of 100 bets. "
            + (
                "No further run fits: the ledger was recovered, and the budget counts as used up."
                if any(lost.exhausted for lost in ledger.recoveries)
                else f"{ledger.more_runs_like_this} more runs like this one would fit."
            ),
        ],
        "tables": [
            _table(
                "The budget, as the filter counts it",
                ["epsilon", "spent", "left"],
                rows,
            ),
            _table(
                "Runs charged to these data",
                ["run", "ε of the run alone", "ε spent after it"],
                [
                    [p.run, round_up(p.epsilon, 3), round_up(p.cumulative, 3)]
                    for p in ledger.history
                ],
            ),
        ],
        "charts": [plain_svg(str(charts(facts)["burn"]))],
    }


def _policy(facts: Facts) -> dict[str, Any]:
    met, head = {True: "met", False: "NOT met"}, ["rule", "limit", "this run", "met"]
    rules = [
        [rule_words(c.rule), limit_words(c.limit), plain_value(c.got), met[c.ok]]
        for c in facts.policy.checks
    ]
    return {
        "title": "Policy and approval",
        "tables": [
            _table(f"Policy “{facts.policy.name}”, rule by rule", head, rules),
            _pairs(
                "What was approved",
                [
                    ("SHA-256 of the plan", facts.plan.sha256),
                    ("SHA-256 of the policy", facts.policy.sha256),
                    ("SHA-256 of the configuration", facts.config.sha256),
                    *[(f"approved by {a.name}", f"{a.time}, {a.keyid}") for a in facts.approvals],
                ],
            ),
        ],
    }


def _implementation(facts: Facts) -> dict[str, Any]:
    reference = facts.reference_values
    return {
        "title": "Implementation",
        "tables": [
            _table(
                "Self-checks, measured on the machine that trained",
                ["check", "result", "measured"],
                [[c.check, "passed" if c.ok else "FAILED", c.detail] for c in facts.selfcheck],
            ),
            _pairs(
                "What ran",
                [
                    (
                        "published values reproduced",
                        f"{reference.passed} of {reference.of}, {reference.held}",
                    ),
                    ("noise generator", facts.noise.generator),
                    ("noise precision", facts.noise.precision),
                    ("caveat", facts.noise.caveat or "none"),
                    ("companions in a microbatch", COMPANIONS),
                    *sorted(facts.platform.items()),
                    ("versions", ", ".join(f"{n} {v}" for n, v in sorted(facts.versions.items()))),
                ],
            ),
        ],
    }


def _attacks(facts: Facts) -> dict[str, Any]:
    audit, rows = facts.audit, []
    for test in audit.tests:
        around = accuracy_interval(test)
        share = f"{100 * around[0]:.0f} to {100 * around[1]:.0f}%" if around else "–"
        rows.append(
            [
                test.kind,
                test.method,
                str(test.canaries),
                f"{test.correct} of {test.guesses}",
                share,
                round_down(test.epsilon_lower, 3),
                round_down(test.ceiling, 3),
            ]
        )
    control = audit.control
    held = (
        f"Control: {control.what}: {control.correct} of {control.guesses} guesses right, "
        + ("as it must." if control.ok else "NOT as it must.")
        if control
        else "No control run was held."
    )
    drawn = charts(facts)
    return {
        "title": "Attacks",
        "paragraphs": [audit.words, held, *secrets(audit)],
        "tables": [
            _table(
                f"Suite “{audit.suite}”: {audit.verdict}",
                ["canaries", "method", "made", "right", "95%", "ε proved", "ceiling"],
                rows,
            )
        ],
        "charts": [plain_svg(str(drawn["claim"])), plain_svg(str(drawn["roc"]))],
    }


def _utility(facts: Facts) -> dict[str, Any]:
    rows = [
        [
            f"{u.metric} ({u.unit or '–'}, {u.better} is better)",
            "held-out, noised" if u.paid else u.source,
            u.group or "all",
            f"{u.base:.3f}",
            f"{u.trained:.3f}",
            f"{u.difference:+.3f}",
            str(u.n),
        ]
        for u in facts.utility
    ]
    head = ["measure", "text", "group", "base", "trained", "difference", "n"]
    table = _table("On text that costs no privacy, or paid for", head, rows)
    none = ["Nothing was measured that may leave the enclave."]
    return {
        "title": "Usefulness",
        "paragraphs": [paid_words(u) for u in facts.utility if u.paid] if rows else none,
        "tables": [table] if rows else [],
        "charts": [plain_svg(str(chart)) for chart in charts(facts)["utility"]],
    }


def _hazards(facts: Facts) -> dict[str, Any]:
    layers: dict[str, list[list[str]]] = {}
    for row in hazards(facts):
        layers.setdefault(row.layer, []).append([row.title, row.answer, row.why])
    return {
        "title": "Hazards",
        "paragraphs": ["After NIST SP 800-226. What says “operator” waits for a person to attest."],
        "tables": [
            _table(layer, ["hazard", "answer", "why"], rows) for layer, rows in layers.items()
        ],
    }


def _limits(facts: Facts) -> dict[str, Any]:
    return {
        "title": "Waivers and limits",
        "paragraphs": [
            *(waivers(facts) or ["No rule was waived."]),
            *facts.limits,
            "What no signature can show, that the run happened as stated, rests on the enclave, "
            "on the run key, and on the honesty of whoever held both.",
        ],
    }
