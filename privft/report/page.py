"""The page that a compliance officer reads: one HTML file, rendered from the statement alone.

`render` is a pure function of the signed statement and of the key ids on its envelope.  The same
two give the same bytes on every machine, which is what lets `report.verify` render the page again
and compare.  So nothing here reads a clock, a locale, a font or a file other than the templates.

The page needs no script and fetches nothing: style and charts are inline, and a Content Security
Policy in its head forbids the rest even if a name in the statement were to carry markup past the
escaping.  It follows the reader's dark mode, prints on A4, and its first page is written for a
reader who knows nothing of differential privacy.

Rounded numbers are rounded against the claim (`report.wording`); the exact ones stand in tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from privft.report import plots
from privft.report.countersigned import countersigned, signed_by
from privft.report.facts import Facts
from privft.report.findings import AuditTest, Utility
from privft.report.hazards import Hazard, hazards
from privft.report.notices import limits, secrets
from privft.report.statement import digest, validate
from privft.report.stopped import stopped
from privft.report.wording import (
    COMPANIONS,
    answer_words,
    bets,
    exact,
    limit_words,
    most_records_words,
    odds_of,
    one_in,
    paid_words,
    plain_value,
    pretty_json,
    round_down,
    round_up,
    rule_words,
    share_words,
    task_words,
    unit_words,
)
from privft.signing import VerifyKey

DRAWN_GROUPS = 9


@dataclass(frozen=True, kw_only=True)
class Signer:
    """One signature on the envelope, named as far as the statement itself names the key."""

    keyid: str
    name: str
    role: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The first thing on the page: one word, its tone for the colours, and the reasons."""

    word: str
    tone: str
    line: str
    reasons: tuple[str, ...]


def render(statement: Mapping[str, Any], envelope: Mapping[str, Any] | None = None) -> str:
    """The report as one HTML document.

    envelope: the DSSE envelope around the statement, for the list of who signed; without it the
    page says that it is an unsigned draft.  Raises `IntegrityError` when the statement does not
    fit its schema.
    """
    facts = validate(statement).predicate
    return (
        environment()
        .get_template("report.html")
        .render(
            facts=facts,
            statement_sha256=digest(statement),
            verdict=verdict(facts),
            signers=signers(facts, envelope),
            countersigned=countersigned(facts, signed_by(envelope)),
            words=unit_words(facts.guarantee.unit),
            bets=bets(facts.guarantee.odds_percent),
            cap_odds=odds_of(facts.ledger.cap.epsilon, facts.ledger.cap.delta),
            charts=charts(facts),
            intervals=[accuracy_interval(test) for test in facts.audit.tests],
            secrets=secrets(facts.audit),
            hazards=_by_layer(hazards(facts)),
            waiting=[row for row in hazards(facts) if row.answer == "operator"],
            drawn_groups=DRAWN_GROUPS,
            companions=COMPANIONS,
            limits=limits(facts),
            stopped=stopped(facts),
        )
    )


def verdict(facts: Facts) -> Verdict:
    """Passed only when audit, policy, self-checks and the adapter's own check all say so."""
    failed = [f"policy rule not met: {check.rule}" for check in facts.policy.checks if not check.ok]
    failed += [f"self-check failed: {c.check}" for c in facts.selfcheck if not c.ok]
    if facts.audit.verdict != "passed":
        why = ", ".join(finding.replace("-", " ") for finding in facts.audit.findings)
        failed.append(f"audit suite {facts.audit.suite} failed: {why}")
    if facts.audit.control is not None and not facts.audit.control.ok:
        failed.append("the audit's control did not behave as it must")
    if facts.reference_values.passed != facts.reference_values.of:
        failed.append("the accountants do not reproduce all published values")
    if not facts.model.adapter_moved:
        failed.append("the adapter did not change in training")
    if failed and facts.waivers:
        return Verdict(
            word="Waived",
            tone="warn",
            line="Not all checks passed. Two people decided to release in spite of that.",
            reasons=tuple(failed),
        )
    if failed:
        return Verdict(
            word="Not passed",
            tone="bad",
            line="This run must not be released as it is.",
            reasons=tuple(failed),
        )
    return Verdict(
        word="Passed",
        tone="good",
        line="No check contradicts the claim made here.",
        reasons=(
            f"all {len(facts.policy.checks)} rules of policy “{facts.policy.name}” are met",
            f"all {len(facts.selfcheck)} self-checks of the mechanism passed on the machine that "
            "trained",
            f"no attack of audit suite “{facts.audit.suite}” proved more than the claim allows "
            f"({len(facts.audit.tests)} tried)",
        ),
    )


def signers(facts: Facts, envelope: Mapping[str, Any] | None) -> list[Signer]:
    """Who signed, in order; people by the names that the statement has for approvers."""
    if envelope is None:
        return []
    run_keyid = VerifyKey.from_hex("run", facts.run.run_key).keyid
    people = {row.keyid: row.name for row in facts.may_countersign}
    rows = []
    for signature in envelope["signatures"]:
        keyid = str(signature["keyid"])
        if keyid == run_keyid:
            rows.append(Signer(keyid=keyid, name=f"run key of {facts.run.id}", role="run"))
        else:
            rows.append(
                Signer(keyid=keyid, name=people.get(keyid, "a further key"), role="countersigned")
            )
    return rows


def accuracy_interval(test: AuditTest) -> tuple[float, float] | None:
    """Wilson's 95% interval for the share of right guesses (none without guesses)."""
    n = test.guesses
    if n == 0:
        return None
    z = 1.959963984540054
    share = test.correct / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def charts(facts: Facts) -> dict[str, Any]:
    """Every chart of the report by name, as safe SVG; `utility` is a list."""
    audit = facts.audit
    attack = list(zip(audit.roc.fpr, audit.roc.tpr, strict=True)) if audit.roc else None
    groups: dict[tuple[str, str], list[Utility]] = {}
    for entry in facts.utility:
        groups.setdefault((entry.metric, entry.unit or ""), []).append(entry)
    return {
        "odds": Markup(plots.odds(bets(facts.guarantee.odds_percent))),
        "roc": Markup(
            plots.roc(
                facts.guarantee.tpr_at_fpr,
                attack,
                tested=max(test.canaries for test in audit.tests),
            )
        ),
        "claim": Markup(
            plots.claim_and_attacks(
                facts.guarantee.epsilon,
                [(test.kind, test.epsilon_lower, test.ceiling) for test in audit.tests],
            )
        ),
        "burn": Markup(
            plots.burn_down(
                facts.ledger.cap.epsilon,
                [(past.run, past.cumulative) for past in facts.ledger.history],
                exhausted=facts.ledger.exhausted,
            )
        ),
        "utility": [
            Markup(
                plots.dumbbells(
                    metric,
                    unit,
                    [_dumbbell(entry) for entry in _drawn(entries)],
                    key=f"utility-{i}",
                )
            )
            for i, ((metric, unit), entries) in enumerate(groups.items())
        ],
    }


def _drawn(entries: Sequence[Utility]) -> list[Utility]:
    """What a chart has room for: the whole, and the groups that fare worst after training."""
    groups = [entry for entry in entries if entry.group is not None]
    sign = -1 if entries[0].better == "lower" else 1
    worst = sorted(groups, key=lambda entry: sign * entry.trained)[:DRAWN_GROUPS]
    return [entry for entry in entries if entry.group is None or entry in worst]


def _dumbbell(entry: Utility) -> tuple[str, float, float, tuple[float, float] | None]:
    around = None
    if entry.interval is not None:
        around = (entry.base + entry.interval[0], entry.base + entry.interval[1])
    text = "held-out units, noised" if entry.paid else f"all of the {entry.source} test text"
    return entry.group or text, entry.base, entry.trained, around


def _by_layer(rows: Sequence[Hazard]) -> dict[str, list[Hazard]]:
    layers: dict[str, list[Hazard]] = {}
    for row in rows:
        layers.setdefault(row.layer, []).append(row)
    return layers


@cache
def environment() -> jinja2.Environment:
    """The templates, escaping for HTML, strict about unknown names."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("privft.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        up=round_up,
        down=round_down,
        exact=exact,
        json=pretty_json,
        value=plain_value,
        rule=rule_words,
        limit=limit_words,
        one_in=one_in,
        paid=paid_words,
        task=task_words,
        most_records=most_records_words,
        answer=answer_words,
        share=share_words,
    )
    return environment
