"""What can go wrong with a claim of differential privacy, and where this run stands on each.

The list goes down the pyramid of NIST SP 800-226 ("Guidelines for Evaluating Differential Privacy
Guarantees"), from the parameters and the unit (its section 2) over algorithms (3) to deployment
(4); what it says there about implementing mechanisms (4.3) has a heading of its own here.  Section
numbers are those of its public draft of December 2023, the text that this list was held against;
the final text is of March 2025.  Hazards of histograms, sums and other queries are left out, since
a model is released here and not a statistic.  The wording is ours.  Each hazard has one of five
answers:

    met              something in the statement shows it, and the pointer says where
    open             known and not excluded; the reader must weigh it
    operator         no program can know; the operator must attest it
    attested         a named person of the operator's did so in this statement
    not applicable   this kind of release does not have it

An answer is derived from the signed facts alone, never from wishes: a self-check that failed or is
missing turns its hazard to `open`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from privft.report.countersigned import countersigned
from privft.report.facts import Facts
from privft.report.wording import bets, round_up

Answer = Literal["met", "open", "operator", "attested", "not applicable"]


@dataclass(frozen=True, kw_only=True)
class Hazard:
    """One row: `key` names it for attestations, `pointer` is a section of the page or empty."""

    key: str
    layer: str
    title: str
    answer: Answer
    why: str
    pointer: str = ""


def hazards(facts: Facts) -> list[Hazard]:
    """All hazards with their answers, in order of the four layers."""
    attested = {attestation.hazard: attestation for attestation in facts.attestations}
    rows = []
    for rule in (_parameters, _algorithms, _implementation, _deployment):
        rows += rule(facts)
    return [
        replace(
            row,
            answer="attested",
            why=f"{attested[row.key].name}, {attested[row.key].time}: {attested[row.key].words}",
        )
        if row.answer == "operator" and row.key in attested
        else row
        for row in rows
    ]


def operator_must_attest(facts: Facts) -> list[Hazard]:
    """The rows that still wait for a person."""
    return [row for row in hazards(facts) if row.answer == "operator"]


def _row(layer: str) -> Callable[[str, str, Answer, str, str], Hazard]:
    def make(key: str, title: str, answer: Answer, why: str, pointer: str) -> Hazard:
        return Hazard(key=key, layer=layer, title=title, answer=answer, why=why, pointer=pointer)

    return make


def _parameters(facts: Facts) -> list[Hazard]:
    row = _row("Parameters and unit")
    claim, data = facts.guarantee, facts.data
    subject = claim.unit == "subject"
    weak = claim.odds_percent >= 99
    share = claim.delta * data.declared_units
    rules_met = all(check.ok for check in facts.policy.checks)
    return [
        row(
            "epsilon-size",
            "Epsilon too large to mean anything",
            "open" if weak else "met",
            f"epsilon {round_up(claim.epsilon)} lets the best attacker win at most "
            f"{bets(claim.odds_percent)} of 100 even bets"
            + (", which is hardly any protection" if weak else "")
            + f"; the policy {'allows it' if rules_met else 'does not allow this run as it is'}.",
            "guarantee",
        ),
        row(
            "delta-size",
            "Delta as large as one person's share",
            "met" if share < 0.1 else "open",
            f"delta times declared units is {share:.2g}; one would allow a whole record to leak.",
            "mechanism",
        ),
        row(
            "unit",
            "The unit is smaller than a person",
            "operator",
            "The guarantee covers all records of one subject, as the subject field of the data "
            "tells them apart. That each person has exactly one subject id must be attested."
            if subject
            else "The guarantee covers one record. Whoever has several records is protected "
            "less. That no person has more than one must be attested, or the weaker promise "
            "accepted.",
            "data",
        ),
        row(
            "third-persons",
            "The text about one person tells of another",
            "operator",
            f"Whoever is named in the text of somebody else's {claim.unit} is protected there only "
            f"as far as one {claim.unit} is: a fact that several of them repeat is less hidden.",
            "data",
        ),
        row(
            "contribution",
            "One unit can contribute without bound",
            "met",
            f"every unit's whole gradient is clipped to norm {facts.mechanism.clip_norm:g}"
            + (
                ", then to one that follows a noisy count of unclipped units, itself part of the "
                "same event"
                if facts.mechanism.count_noise
                else ""
            )
            + (
                f", and at most {data.max_records_per_unit} records of a unit are used."
                if data.max_records_per_unit
                else "."
            ),
            "mechanism",
        ),
        row(
            "relation",
            "Guarantees with other relations, units, or deltas are compared as if alike",
            "met" if claim.substitute else "open",
            "unit and delta stand beside epsilon, and the whole trade-off curve is stated; epsilon "
            "is for adding or removing a unit"
            + (
                f", and {round_up(claim.substitute.epsilon_pld)} for replacing one."
                if claim.substitute and claim.substitute.epsilon_pld is not None
                else "; the cost of replacing one was not computed."
            ),
            "mechanism",
        ),
        row(
            "groups",
            "Families, households, and others whose records resemble each other",
            "operator",
            "A group of k units is protected k times less. Whether such groups matter here is "
            "for the operator to say.",
            "limits",
        ),
    ]


def _algorithms(facts: Facts) -> list[Hazard]:
    row = _row("Algorithms")
    groups = [entry for entry in facts.utility if entry.group]
    return [
        row(
            "composition",
            "Several releases add up unnoticed",
            "met",
            f"every run on the same data is charged to one ledger whose cap is "
            f"epsilon {facts.ledger.cap.epsilon:g}; failed and repeated runs count too.",
            "ledger",
        ),
        row(
            "other-releases",
            "The same data are released in other ways, without differential privacy",
            "operator",
            "the guarantee is about what this ledger charged; a table, a dashboard or another "
            "model made from the same data elsewhere is not covered and weakens nothing here.",
            "limits",
        ),
        row(
            "tuning",
            "Settings were chosen by looking at private results",
            "met",
            "the filter stays valid when a plan depends on earlier models, and each of them "
            "was charged before its first step."
            + (
                " The best of several settings was chosen inside of the mechanism that was charged."
                if facts.selection
                else ""
            ),
            "ledger",
        ),
        row(
            "sampling",
            "Batches are drawn in another way than the accountant assumes",
            "met" if _checks_ok(facts, "sampl") else "open",
            "each unit enters each step by its own coin; "
            + ("the self-check agrees." if _checks_ok(facts, "sampl") else "no self-check of it."),
            "implementation",
        ),
        row(
            "inferred",
            "Vocabulary, labels, or sizes are inferred from the data",
            "met",
            "they come from the config or the policy; so does the number of units.",
            "mechanism",
        ),
        row(
            "utility-bias",
            "Noise hurts small groups more",
            "met" if groups else "operator",
            f"measured for {len(groups)} group{'' if len(groups) == 1 else 's'}."
            if groups
            else "no subgroup was measured in this run; whoever deploys the model must check.",
            "utility",
        ),
        row(
            "systemic-bias",
            "The data themselves are biased",
            "operator",
            "privacy neither finds nor mends it.",
            "limits",
        ),
        row(
            "queries",
            "An unlimited number of queries wears the protection down",
            "not applicable",
            "the model itself was made private; asking it again costs nothing more.",
            "",
        ),
    ]


def _implementation(facts: Facts) -> list[Hazard]:
    row = _row("Implementation")
    plain = not facts.noise.secure
    selfcheck = all(check.ok for check in facts.selfcheck)
    reference = facts.reference_values
    agrees = reference.of > 0 and reference.passed == reference.of
    return [
        row(
            "floating-point",
            "Floating-point noise has gaps that the proof does not know",
            "open" if plain else "met",
            facts.noise.caveat or f"noise precision: {facts.noise.precision}.",
            "implementation",
        ),
        row(
            "generator",
            "Noise from a guessable generator",
            "met",
            f"{facts.noise.generator}.",
            "implementation",
        ),
        row(
            "clipping",
            "Clipping that does not bound what one unit does",
            "met" if _checks_ok(facts, "clip", "influence", "sensitiv") else "open",
            "measured before the run."
            if _checks_ok(facts, "clip", "influence", "sensitiv")
            else "no passed self-check of it is recorded.",
            "implementation",
        ),
        row(
            "own-code",
            "Own code where a well-tested library would do",
            "open",
            "sampling, clipping and noise are privft's own, and few people have read them; "
            + (
                "Opacus found the same gradients before this run, "
                if _checks_ok(facts, "opacus")
                else "no comparison with a library is recorded, "
            )
            + "and all prices come from dp_accounting.",
            "implementation",
        ),
        row(
            "bugs",
            "Software that does something else than the theory",
            "met" if selfcheck and agrees and facts.audit.verdict == "passed" else "open",
            f"{sum(check.ok for check in facts.selfcheck)} of {len(facts.selfcheck)} self-checks, "
            f"{reference.passed} of {reference.of} published reference values, audit "
            f"{facts.audit.verdict}. Tests find bugs; they do not prove that there are none.",
            "attacks",
        ),
        row(
            "side-channels",
            "Timing, memory, or power tell what the output hides",
            "operator",
            "whoever can watch the machine during training is outside the guarantee.",
            "trust",
        ),
    ]


def _deployment(facts: Facts) -> list[Hazard]:
    row = _row("Deployment")
    readers = countersigned(facts, ()).wanted
    return [
        row(
            "trust-model",
            "Readers think that nobody saw the data",
            "operator",
            "this is the central model: the operator and the enclave held the text itself.",
            "trust",
        ),
        row(
            "access",
            "The data leak by another door",
            "operator",
            "the text lay encrypted and every release is in the ledger; who holds the keys, and "
            "what other copies exist, only the operator knows.",
            "trust",
        ),
        row(
            "collection",
            "The data were exposed before they came here",
            "operator",
            "the guarantee starts at intake.",
            "data",
        ),
        row(
            "review",
            "A report that nobody read",
            "met" if readers else "operator",
            f"nothing leaves before {readers} {'person' if readers == 1 else 'people'} who may "
            "approve plans signed this report too."
            if readers
            else "the policy asks for no countersignature; who read this before the release, only "
            "the operator knows.",
            "trust",
        ),
        row(
            "reset",
            "The budget is quietly reset",
            "met",
            f"it belongs to lineage {facts.data.lineage} for good; the ledger shows every entry.",
            "ledger",
        ),
        row(
            "synthetic",
            "Synthetic data taken for anonymous by themselves",
            "not applicable",
            "what is released is a model. Text that it writes is covered by the same guarantee.",
            "",
        ),
    ]


def _checks_ok(facts: Facts, *words: str) -> bool:
    """Whether a self-check speaks of one of these words, and all that do have passed."""
    named = [
        check.ok for check in facts.selfcheck if any(word in check.check.lower() for word in words)
    ]
    return bool(named) and all(named)
