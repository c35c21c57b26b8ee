"""What follows the report's first page, as plain text: titles, paragraphs, tables, charts, lines.

For renderings that lay text out and know no markup (`report.pdf`).  It says what the template of
the HTML page says, section by section and number by number.
"""

from __future__ import annotations

import re
from typing import Any

from privft.report.annex import annex
from privft.report.countersigned import countersigned
from privft.report.facts import CostFacts, Facts
from privft.report.hazards import hazards
from privft.report.notices import limits, secrets, waivers
from privft.report.page import accuracy_interval, charts
from privft.report.stopped import stopped
from privft.report.wording import (
    COMPANIONS,
    answer_words,
    exact,
    limit_words,
    most_records_words,
    odds_of,
    paid_words,
    plain_value,
    round_down,
    round_up,
    rule_words,
    share_words,
    task_words,
    unit_words,
)

_VARIABLE = re.compile(r"var\(--[a-z]+,(#[0-9a-f]{6})\)")


def plain_svg(chart: str) -> str:
    """A chart with its colours written out, for readers that know no CSS variables."""
    return _VARIABLE.sub(r"\1", chart)


def sections(facts: Facts) -> list[dict[str, Any]]:
    """All that follows the first page: title, paragraphs, tables of text, charts, listings."""
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
        annex,
    )
    return [
        {"paragraphs": [], "tables": [], "charts": [], "listings": [], **part(facts), "number": i}
        for i, part in enumerate(parts, start=1)
    ]


def _table(caption: str, head: list[str], rows: list[list[str]]) -> dict[str, Any]:
    return {"caption": caption, "head": head, "rows": rows}


def _pairs(caption: str, rows: list[tuple[str, Any]]) -> dict[str, Any]:
    return _table(caption, [], [[name, plain_value(value)] for name, value in rows])


def _mechanism(facts: Facts) -> dict[str, Any]:
    m, claim = facts.mechanism, facts.guarantee
    one = unit_words(m.unit)["short"]
    costs = [
        [
            "add or remove one (the claim)"
            if cost.adjacency == "add-remove"
            else "replace one by another",
            exact(cost.epsilon_pld) if cost.epsilon_pld is not None else "–",
            exact(cost.epsilon_rdp) if cost.epsilon_rdp is not None else "–",
            (cost.note or "") + _order_words(cost),
        ]
        for cost in (claim.cost, claim.substitute)
        if cost is not None
    ]
    return {
        "title": "Mechanism",
        "paragraphs": [
            f"DP-SGD: in each step a separate coin decides for every {one} whether to take part; "
            "the whole gradient of each is clipped; Gaussian noise is added to the sum; and the "
            "sum is divided by a number fixed beforehand. These numbers are all that is needed to "
            "compute epsilon again.",
            "PLD composes the privacy loss distribution numerically and rounds up; RDP is an "
            "independent, looser computation that must not come out below it.",
            *stopped(facts),
            *(
                [
                    f"The trade-off curve lies nearest to a Gaussian one with μ = {claim.mu:.3f}, "
                    "given for comparison and not as a bound."
                ]
                if claim.mu is not None
                else []
            ),
        ],
        "tables": [
            _pairs(
                "Exact values, as signed",
                [
                    ("privacy unit", m.unit),
                    ("neighbouring data sets", "add or remove one unit"),
                    ("sampler", "Poisson: independent coins"),
                    ("sampling probability q", m.sampling_probability),
                    ("noise multiplier σ (noise / clip norm)", m.noise_multiplier),
                    (
                        "clip norm C" + (" of the first step" if m.count_noise is not None else ""),
                        m.clip_norm,
                    ),
                    ("clipping", m.clipping),
                    *(
                        [("noise on the count of unclipped units, part of σ", m.count_noise)]
                        if m.count_noise is not None
                        else []
                    ),
                    (
                        "steps T, empty samples included"
                        + (", of each repetition" if facts.selection else ""),
                        m.steps,
                    ),
                    ("divisor: expected batch size", m.expected_batch_size),
                    ("delta δ", claim.delta),
                ],
            ),
            _table("Accountants", ["relation", "ε by PLD", "ε by RDP", "note"], costs),
        ],
    }


def _order_words(cost: CostFacts) -> str:
    if cost.best_order is None:
        return ""
    edge = ", at the edge of the grid" if cost.order_at_edge else ""
    return f"best order {exact(cost.best_order)}{edge}"


def _data(facts: Facts) -> dict[str, Any]:
    data, model = facts.data, facts.model
    return {
        "title": "Data and model",
        "tables": [
            _pairs(
                "Data, by what may be known in public",
                [
                    ("data set", data.dataset),
                    ("lineage (the owner of the budget)", data.lineage),
                    ("fingerprint: root over the sealed cells", data.manifest_root),
                    ("declared number of units (not a count)", data.declared_units),
                    (
                        "records used of one unit, at most",
                        most_records_words(data.max_records_per_unit),
                    ),
                ],
            ),
            _pairs(
                "Model",
                [
                    ("base model", model.name),
                    ("source", model.source or "not stated"),
                    ("licence of the base model", model.licence or "not stated"),
                    ("task", task_words(facts.run.task)),
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
    if ledger.exhausted:
        rows.append(["after the recovery", round_up(cap.epsilon, 3), "0.000"])
    orders = ", ".join(exact(order) for order in cap.orders)
    return {
        "title": "Budget and ledger",
        "paragraphs": [
            f"All runs on these data together never exceed ε = {exact(cap.epsilon)}, "
            f"δ = {exact(cap.delta)}: an attacker who sees every model would win at most "
            f"{round_up(odds_of(cap.epsilon, cap.delta))} of 100 bets. "
            + (
                "No further run fits: the ledger was recovered, and the budget counts as used up."
                if ledger.exhausted
                else f"{ledger.more_runs_like_this} more runs like this one would fit."
            ),
            f"The filter adds Rényi divergences at the orders {orders} and admits a run while one "
            "of them stays within the cap. What it counts for a run is not the run’s own epsilon, "
            "and epsilons are not added.",
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
                    [
                        p.run + (" (this run)" if p.run == facts.run.id else ""),
                        round_up(p.epsilon, 3),
                        round_up(p.cumulative, 3),
                    ]
                    for p in ledger.history
                ],
            ),
        ],
        "charts": [plain_svg(str(charts(facts)["burn"]))],
    }


def _policy(facts: Facts) -> dict[str, Any]:
    met, head = {True: "met", False: "NOT met"}, ["rule", "limit", "this run", "met"]
    rules = [
        [_rule(c.rule), limit_words(c.limit), plain_value(c.got), met[c.ok]]
        for c in facts.policy.checks
    ]
    return {
        "title": "Policy and approval",
        "paragraphs": [
            f"After the audit the policy asks for {countersigned(facts, ()).wanted or 'no'} "
            "countersignatures of this report, by people who may approve plans, before anything "
            "leaves; the first page has who signed."
        ],
        "tables": [
            _table(f"Policy “{facts.policy.name}”, rule by rule", head, rules),
            _pairs(
                "What was approved",
                [
                    ("SHA-256 of the plan", facts.plan.sha256),
                    ("plan made", facts.plan.created),
                    ("SHA-256 of the policy", facts.policy.sha256),
                    ("SHA-256 of the configuration", facts.config.sha256),
                    *[
                        (f"approved by {a.name}", f"{a.time}, key {a.keyid}")
                        for a in facts.approvals
                    ],
                ],
            ),
        ],
    }


def _rule(name: str) -> str:
    words = rule_words(name)
    return name if words == name else f"{words} ({name})"


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
                        f"{reference.passed} of {reference.of}, held {reference.held}",
                    ),
                    ("noise generator", facts.noise.generator),
                    ("noise precision", facts.noise.precision),
                    ("caveat", facts.noise.caveat or "none"),
                    ("companions in a microbatch", COMPANIONS),
                    ("reserved in the ledger", facts.run.reserved_time),
                    ("settled in the ledger", facts.run.settled_time),
                    *sorted(facts.platform.items()),
                    ("versions", ", ".join(f"{n} {v}" for n, v in sorted(facts.versions.items()))),
                ],
            ),
        ],
    }


def _attacks(facts: Facts) -> dict[str, Any]:
    audit, rows = facts.audit, []
    for test in audit.tests:
        rows.append(
            [
                test.kind,
                test.method,
                str(test.canaries),
                f"{test.correct} of {test.guesses}",
                share_words(accuracy_interval(test)),
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
    again = (
        [
            f"This was attempt {audit.attempt}: audits of one run share one significance, so each "
            "further one is held to a stricter test."
        ]
        if audit.attempt > 1
        else []
    )
    levels = ", ".join(exact(level) for level in sorted({t.significance for t in audit.tests}))
    drawn = charts(facts)
    return {
        "title": "Attacks",
        "paragraphs": [
            audit.words,
            "Before training, made-up records were put in or left out by fair coins. The attack "
            "then guesses each coin from the trained model. A low number here is no evidence of "
            "privacy: beside it stands the most that a flawless attack of the same size could have "
            "proved.",
            held,
            *secrets(audit),
            *again,
            f"Bounds at {levels} significance after the one-run method of Steinke, Nasr, and "
            "Jagielski (2023), with its delta term; rows “f-DP” hold the guesses against this "
            "run’s own trade-off curve (Mahloujifar, Melis, and Chaudhuri 2024). The interval of "
            "right guesses is Wilson’s, as if they were independent of each other; the bounds do "
            f"not assume that. SHA-256 of the suite: {audit.suite_sha256}",
        ],
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
            f"{u.difference:+.3f}"
            + (f" ({u.interval[0]:+.3f} to {u.interval[1]:+.3f})" if u.interval else ""),
            str(u.n),
        ]
        for u in facts.utility
    ]
    head = ["measure", "text", "group", "base", "trained", "difference (95%)", "n"]
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
    waiting = sum(row.answer == "operator" for row in hazards(facts))
    for row in hazards(facts):
        layers.setdefault(row.layer, []).append([row.title, answer_words(row.answer), row.why])
    return {
        "title": "Hazards",
        "paragraphs": [
            "After NIST SP 800-226, which lists what can go wrong with a claim of differential "
            f"privacy. {waiting} of these wait for a person of the operator’s to attest."
        ],
        "tables": [
            _table(layer, ["hazard", "answer", "why"], rows) for layer, rows in layers.items()
        ],
    }


def _limits(facts: Facts) -> dict[str, Any]:
    return {
        "title": "Waivers and limits",
        "paragraphs": [
            *(waivers(facts) or ["No rule was waived."]),
            *[
                f"The waiver is signed by {row.name}, key {row.keyid}."
                for waiver in facts.waivers
                for row in waiver.signatures
            ],
            *limits(facts),
        ],
    }
