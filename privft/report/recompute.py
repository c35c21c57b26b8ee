"""The checks of `report.verify` that compute something again, each on its own.

Every function takes what was signed, computes the same from scratch, and returns one line that
says what it found, or raises `IntegrityError` that names the first difference with both values.
Nothing here reads files, and nothing here needs the data, the model or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from pydantic import ValidationError

from privft.audit import bounds
from privft.budget import accounting
from privft.budget.entries import parse_time
from privft.budget.filter import Cap
from privft.budget.selection import event_from_dict
from privft.budget.signed import check_approval, check_recovery, check_waiver
from privft.errors import IntegrityError, OrderError, PolicyRefused, SignatureError
from privft.policy import PlanFacts, Policy, let_out
from privft.policy import check as policy_check
from privft.report import claim
from privft.report.aside import HERE, Aside
from privft.report.facts import Facts
from privft.report.findings import AuditTest
from privft.report.proof import ProvenLedger
from privft.report.statement import Statement
from privft.report.trust import TrustRoot
from privft.signing import VerifyKey, canonical_json, sha256_hex

PLAIN, CURVES = "one-run (epsilon, delta)", "one-run f-DP"
BOUND_TOLERANCE = 1e-5  # bounds are bisected to 1e-7


def entries_agree(
    statement: Statement, payload: bytes, ledger: ProvenLedger, log_key: VerifyKey
) -> str:
    """What the ledger holds on the run is what the statement says, and came in this order."""
    facts, sha = statement.predicate, sha256_hex(payload)
    reserved, settled = ledger.only("run-reserved"), ledger.only("run-settled")
    audits = [entry for entry in ledger.entries if entry.kind == "run-audited"]
    if not audits:
        raise IntegrityError("expected a run-audited entry in the proof, got none")
    audited, released = audits[-1], ledger.only("run-released")
    started = [entry for entry in ledger.entries if entry.kind == "audit-started"]
    if not started or started[-1].index > audited.index:
        raise IntegrityError("the newest audit in the proof has no beginning or no end")
    events = [event.model_dump() for event in facts.events]
    left = released.body["files"]
    released_weights = {name: left.get(name) for name in facts.model.adapter_files}
    same: list[tuple[str, Any, Any]] = [
        ("run", reserved.body["run"], facts.run.id),
        ("actor", reserved.actor, facts.run.actor),
        ("reserved_time", reserved.time, facts.run.reserved_time),
        ("dataset", reserved.body["dataset"], facts.run.dataset),
        ("lineage", reserved.body["lineage"], facts.run.lineage),
        ("plan", reserved.body["plan_sha256"], facts.plan.sha256),
        ("mechanism", reserved.body["mechanism"], facts.mechanism.model_dump()),
        ("events", reserved.body["events"], events),
        ("run key", reserved.body["run_key"], facts.run.run_key),
        ("policy", reserved.body["policy_digest"], facts.policy.sha256),
        ("config", reserved.body["config_sha256"], facts.config.sha256),
        ("config text", sha256_hex(canonical_json(facts.config.body)), facts.config.sha256),
        ("model", reserved.body["model_sha256"], facts.model.weights_sha256),
        ("outcome", settled.body["outcome"], "completed"),
        ("settled_time", settled.time, facts.run.settled_time),
        ("settled events", settled.body["events"], events),
        ("adapter", settled.body["adapter"], facts.model.adapter_files),
        ("audit begun", started[-1].body["attempt"], audited.body["attempt"]),
        ("audits begun", [e.body["attempt"] for e in started], [*range(1, len(started) + 1)]),
        ("audit attempt", audited.body["attempt"], facts.audit.attempt),
        ("audit verdict", audited.body["verdict"], facts.audit.verdict),
        ("audit findings", audited.body["findings"], facts.audit.findings),
        ("audit suite", audited.body["suite"], facts.audit.suite),
        ("audit suite's digest", audited.body["suite_digest"], facts.audit.suite_sha256),
        ("released statement", released.body["statement_sha256"], sha),
        ("released weights", released_weights, facts.model.adapter_files),
        *[
            (f"run of {entry.kind}", entry.body["run"], facts.run.id)
            for entry in ledger.entries
            if "run" in entry.body
        ],
    ]
    before = [entry for entry in ledger.entries if entry.index < audited.index]
    recoveries = claim.recoveries(before, facts.data.lineage, log_key)
    same.append(("recoveries", recoveries, [r.model_dump() for r in facts.ledger.recoveries]))
    for what, held, stated in same:
        if held != stated:
            raise IntegrityError(f"{what}: the ledger has {held!r}, the statement {stated!r}")
    different = claim.compare(
        reserved.body["epsilon"], facts.guarantee.cost.model_dump(), "ledger.epsilon"
    )
    if different:
        raise IntegrityError(different[0])
    spent = sum(test.significance for test in facts.audit.tests)
    if spent > started[-1].body["significance"] * (1 + 1e-9):
        raise IntegrityError(
            f"the audit's tests spend a significance of {spent:g}, and "
            f"{started[-1].body['significance']:g} was set aside for them"
        )
    if not reserved.index < settled.index < audited.index < released.index:
        raise IntegrityError("entries of the run are in an impossible order")
    again = f", {len(started)} audits begun" if len(started) > 1 else ""
    return f"reserved, settled, audited and released as stated{again}"


def approvals_hold(statement: Statement, ledger: ProvenLedger, trust: TrustRoot) -> str:
    """Every approval in the statement is an entry of the ledger, signed by a trusted person whose
    key counted then; and two such people signed every recovery of the ledger."""
    facts = statement.predicate
    names = [approval.name for approval in facts.approvals]
    keys = [approval.keyid for approval in facts.approvals]
    if len(set(names)) != len(names) or len(set(keys)) != len(keys):
        raise SignatureError("one person or one key approved twice")
    reserved, ring = ledger.only("run-reserved"), trust.ring()
    entries = {
        (e.body["approver"], e.body["signature"], e.time): e.body
        for e in ledger.entries
        if e.kind == "plan-approved"
        and e.body["plan_sha256"] == facts.plan.sha256
        and e.index < reserved.index
    }
    for approval in facts.approvals:
        body = entries.get((approval.name, approval.signature, approval.time))
        if body is None:
            raise SignatureError(f"the ledger has no approval by {approval.name} as stated")
        with _against_the_trust_root():
            check_approval(body, ring, approval.time)
            person = ring.may(approval.name, "approver", approval.time)
            if person.verify_key.keyid != approval.keyid:
                raise SignatureError(f"{approval.name} has another key than the approval states")
    for entry in ledger.entries:
        if entry.kind == "recovered":
            with _against_the_trust_root():
                check_recovery(entry.body, ring, entry.time)
    if not facts.approvals:
        return "no approval was asked for, none is stated"
    return f"approved by {', '.join(names)}, before the run was reserved"


def waivers_hold(statement: Statement, ledger: ProvenLedger, trust: TrustRoot) -> str:
    """The released statement is the audited one, with nothing added but the waivers of that audit,
    each signed by two trusted people; and a failed audit was waived when the run was released."""
    facts, plain = statement.predicate, statement.model_dump(mode="json", by_alias=True)
    audited = [entry for entry in ledger.entries if entry.kind == "run-audited"][-1]
    released, sha = ledger.only("run-released"), audited.body["statement_sha256"]
    entries = [e for e in ledger.entries if e.kind == "run-waived" and audited.index < e.index]
    plain["predicate"]["waivers"] = []
    if sha256_hex(canonical_json(plain)) != sha:
        raise IntegrityError("the released statement is not the audited one with its waivers")
    fields = ("reason", "expires", "signatures")
    held = [{name: entry.body[name] for name in fields} for entry in entries]
    if held != [waiver.model_dump(mode="json") for waiver in facts.waivers]:
        raise IntegrityError(f"the ledger has {len(held)} waivers of this audit, and not as stated")
    for entry in entries:
        with _against_the_trust_root():
            check_waiver(entry.body, trust.ring(), entry.time, statement_sha256=sha)
    in_time = [e for e in entries if parse_time(released.time) < parse_time(e.body["expires"])]
    if facts.audit.verdict != "passed" and not in_time:
        raise IntegrityError("released after a failed audit, without a waiver that held then")
    if not entries:
        return "none, and none was needed; the released statement is the audited one"
    names = sorted({row.name for waiver in facts.waivers for row in waiver.signatures})
    return f"{len(entries)}, signed by {', '.join(names)}, in force at the release"


@contextmanager
def _against_the_trust_root() -> Iterator[None]:
    """What a ring finds wanting in a person, said of the trust root."""
    try:
        yield
    except (PolicyRefused, OrderError) as error:
        raise SignatureError(
            f"by the trust root, {error.message}",
            hint="a newer trust root may know more: ask the operator by another way",
        ) from error


def epsilon_agrees(plain: Mapping[str, Any], aside: Aside = HERE) -> str:
    """The whole guarantee, computed again from the events by every accountant that knows them.

    aside: the process that computes.
    """
    predicate = plain["predicate"]
    stated = predicate["guarantee"]
    events = [event_from_dict(event) for event in predicate["events"]]
    computed = aside.ask(
        partial(
            claim.guarantee,
            unit=stated["unit"],
            events=events,
            delta=stated["delta"],
            fprs=tuple(fpr for fpr, _ in stated["tpr_at_fpr"]),
            at_once=aside.is_there,
        )
    )
    if stated["substitute"] is None:
        computed["substitute"] = None
    # the nearest Gaussian curve is a search's answer: a description, good to a few digits
    if stated["mu"] is not None and abs(stated["mu"] - computed["mu"]) <= 1e-3:
        computed["mu"] = stated["mu"]
    different = claim.compare(stated, computed)
    if different:
        raise IntegrityError(f"{different[0]} ({len(different)} differences)")
    cost = computed["cost"]
    noised = [entry for entry in predicate["utility"] if entry["paid"] is not None]
    for i, entry in enumerate(noised):
        again = aside.ask(
            partial(
                claim.noised,
                difference=entry["trained"] - entry["base"],
                units=entry["n"],
                noise_multiplier=entry["paid"]["noise_multiplier"],
                bound=entry["paid"]["bound"],
                delta=stated["delta"],
            )
        )
        different = claim.compare(entry, {**entry, **again}, f"noised utility {i}")
        if different:
            raise IntegrityError(different[0])
    score = f"; so do {len(noised)} noised measures, interval and charge" if noised else ""
    by = [
        f"{name} {cost[field]:.6f}"
        for name, field in (("PLD", "epsilon_pld"), ("RDP", "epsilon_rdp"))
        if cost[field] is not None
    ]
    alone = " alone, of random stopping" if len(by) == 1 else ""
    return f"{', '.join(by)}{alone} at delta {cost['delta']:g}: as stated{score}"


def budget_agrees(statement: Statement) -> str:
    """The filter's numbers, from everything charged before and the cap."""
    facts = statement.predicate
    cap = Cap.from_dict(facts.ledger.cap.model_dump())
    computed = claim.budget(cap=cap, spent=facts.earlier_events(), events=facts.accounting_events())
    stated = facts.ledger.model_dump(mode="json")
    different = claim.compare({key: stated[key] for key in computed}, computed, "ledger")
    last = facts.ledger.history[-1]
    different += claim.compare(
        [last.epsilon, last.cumulative],
        [facts.guarantee.epsilon, computed["after"]["epsilon_spent"]],
        "ledger.history[-1]",
    )
    spent = [past.cumulative for past in facts.ledger.history]
    if spent != sorted(spent):
        different.append("ledger.history: what is spent goes down")
    if different:
        raise IntegrityError(different[0])
    return (
        f"{computed['after']['epsilon_spent']:.4f} of {cap.epsilon:g} spent after this run, "
        f"{computed['more_runs_like_this']} more would fit: as stated"
    )


def audit_agrees(statement: Statement, aside: Aside = HERE) -> str:
    """Bounds from counts, and no passed verdict over a contradiction.

    aside: the process that draws the trade-off curve.
    """
    facts = statement.predicate
    contradicted = []
    for test in facts.audit.tests:
        where = f"audit of {test.kind} by {test.method}"
        if test.method == PLAIN:
            _plain_bounds_agree(test, facts.guarantee.delta, where)
            if test.epsilon_lower > facts.guarantee.epsilon:
                contradicted.append(where)
        elif test.method == CURVES:
            if _curve_contradicted(test, facts, aside):
                contradicted.append(where)
        else:
            raise IntegrityError(f"{where}: this version does not know the method")
    if contradicted and facts.audit.verdict == "passed":
        raise IntegrityError(f"{contradicted[0]} contradicts the claim, yet the audit passed")
    most = max(test.epsilon_lower for test in facts.audit.tests)
    return (
        f"{len(facts.audit.tests)} bounds follow from their counts; the best attack proved "
        f"{most:.3f} of {facts.guarantee.epsilon:.3f}; verdict {facts.audit.verdict}"
    )


def _plain_bounds_agree(test: AuditTest, delta: float, where: str) -> None:
    counts = {"canaries": test.canaries, "guesses": test.guesses}
    for what, stated, right in (
        ("epsilon_lower", test.epsilon_lower, test.correct),
        ("ceiling", test.ceiling, test.guesses),
    ):
        value = bounds.one_run_epsilon(
            **counts, correct=right, delta=delta, significance=test.significance
        )
        if abs(value - stated) > BOUND_TOLERANCE:
            raise IntegrityError(f"{where}: {what} states {stated!r}, computed {value!r}")


def _curve_contradicted(test: AuditTest, facts: Facts, aside: Aside) -> bool:
    """Whether the counts contradict the trade-off curve of the stated events.

    The bound in terms of epsilon and its ceiling are on curves of other noise, so what is held here
    is on which side of the claim they lie: at it or above exactly when the counts, or all guesses
    right, contradict it.
    """
    curve = aside.ask(partial(accounting.tradeoff, facts.accounting_events()))
    claimed = facts.guarantee.epsilon
    contradicts = []
    for what, stated, right in (
        ("epsilon_lower", test.epsilon_lower, test.correct),
        ("ceiling", test.ceiling, test.guesses),
    ):
        rejected = bounds.fdp_rejects(
            lambda fpr: 1 - curve.tpr_bound(fpr),
            canaries=test.canaries,
            guesses=test.guesses,
            correct=right,
            significance=test.significance,
        )
        if rejected is not (stated >= claimed - BOUND_TOLERANCE):
            raise IntegrityError(
                f"audit of {test.kind} by {test.method}: {what} states {stated!r} of a claimed "
                f"{claimed!r}, and {right} right guesses of {test.guesses} do "
                f"{'' if rejected else 'not '}contradict its curve"
            )
        contradicts.append(rejected)
    return contradicts[0]


def policy_rows(facts: Facts) -> list[dict[str, Any]]:
    """Every rule of the statement's own policy, held against the statement's own facts.

    Who may open the vault stands in the statement only as what the rule about it got, and is taken
    from there.  Raises `IntegrityError` for a policy that this version cannot read.
    """
    try:
        policy = Policy.model_validate_json(canonical_json(facts.policy.body))
    except ValidationError as error:
        raise IntegrityError(f"policy {facts.policy.name} is not one that can be read") from error
    got = {check.rule: check.got for check in facts.policy.checks}
    holders = got.get("recipients_allowed")
    plan = PlanFacts(
        epsilon=facts.guarantee.epsilon,
        delta=facts.guarantee.delta,
        two_accountants=None
        not in (facts.guarantee.cost.epsilon_pld, facts.guarantee.cost.epsilon_rdp),
        unit=facts.guarantee.unit,
        declared_units=facts.data.declared_units,
        suite=facts.audit.suite,
        secure_noise=facts.noise.secure,
        recipients=tuple(str(kind) for kind in holders) if isinstance(holders, list) else (),
        outputs=let_out(noised=any(entry.paid is not None for entry in facts.utility)),
        operator=facts.run.actor,
        approvers=tuple(approval.name for approval in facts.approvals),
    )
    cap = Cap.from_dict(facts.ledger.cap.model_dump())
    return [check.to_dict() for check in policy_check(policy, plan, cap)]


def policy_agrees(statement: Statement) -> str:
    """The policy's rules, evaluated again; none may fail unwaived."""
    facts = statement.predicate
    stated = [check.model_dump(mode="json") for check in facts.policy.checks]
    different = claim.compare(stated, policy_rows(facts), "policy.checks")
    if different:
        raise IntegrityError(different[0])
    failed = [check.rule for check in facts.policy.checks if not check.ok]
    if failed and not facts.waivers:
        raise IntegrityError(f"policy rule not met: {failed[0]}")
    words = f"{len(stated)} rules of {facts.policy.name}, evaluated again"
    return words + (f"; {len(failed)} waived" if failed else "; all met")
