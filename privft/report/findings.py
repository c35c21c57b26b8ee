"""What was found out about a run: the second half of the predicate's vocabulary.

Self-checks of the mechanism, attacks on canaries, usefulness, and what people took on themselves.
`report.facts` holds the first half (what was run, on what, at what cost) and puts both together.

Everything here may be public (DESIGN.md, invariant 8): counts are of canaries, usefulness comes
from public or generated text or is released with noise and its own charge.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from privft.report.values import Amount, Count, Line, Positive, Rate, Sha256, Strict, Time, Words


class SelfCheck(Strict):
    """One measured check of the mechanism, on the machine that ran it."""

    check: Line
    ok: bool
    detail: Words


class ReferenceValues(Strict):
    """How many published values the accountants of this installation reproduced, and when."""

    passed: Count
    of: Count
    held: Time


class AuditTest(Strict):
    """One attack.  Out of `canaries` planted by fair coins, `guesses` were guessed in or out and
    `correct` of them rightly; `epsilon_lower` is what that proves at `significance`, `ceiling`
    what a flawless attack with as many guesses would have proved."""

    kind: Line
    method: Line
    canaries: Annotated[int, Field(ge=1)]
    guesses: Count
    correct: Count
    significance: Annotated[float, Field(gt=0, lt=1)]
    epsilon_lower: Amount
    ceiling: Amount

    @model_validator(mode="after")
    def _counts_nest(self) -> AuditTest:
        if not self.correct <= self.guesses <= self.canaries:
            raise ValueError(
                f"expected correct <= guesses <= canaries in {self.kind}, "
                f"got {self.correct}, {self.guesses}, {self.canaries}"
            )
        return self


class Control(Strict):
    """The same attack where it must succeed (or must fail), which shows that it has teeth."""

    what: Words
    canaries: Count
    guesses: Count
    correct: Count
    ok: bool


class Exposure(Strict):
    """Where planted secrets stand among `candidates` texts of the same form that were never in,
    1 for the one that the model finds likeliest: the ranks of those that were in and of those that
    were not, in rising order.  `audit.rates.exposure_of_ranks` has them in bits."""

    candidates: Annotated[int, Field(ge=1)]
    ranks_included: list[Annotated[int, Field(ge=1)]]
    ranks_excluded: list[Annotated[int, Field(ge=1)]]

    @model_validator(mode="after")
    def _ranks_are_in_order_and_in_range(self) -> Exposure:
        for ranks in (self.ranks_included, self.ranks_excluded):
            if ranks != sorted(ranks) or ranks[-1:] > [self.candidates + 1]:
                raise ValueError(f"expected ranks up to {self.candidates} + 1, in rising order")
        return self


class Extraction(Strict):
    """How many planted secrets the model writes out when it is given their beginning."""

    included: Count
    extracted_of_included: Count
    excluded: Count
    extracted_of_excluded: Count

    @model_validator(mode="after")
    def _counts_nest(self) -> Extraction:
        pairs = (
            (self.extracted_of_included, self.included),
            (self.extracted_of_excluded, self.excluded),
        )
        if any(out > planted for out, planted in pairs):
            raise ValueError("expected no more secrets extracted than there are")
        return self


class Roc(Strict):
    """The attack's own curve on the canaries, sorted by `fpr`."""

    fpr: Annotated[list[Rate], Field(min_length=2, max_length=2000)]
    tpr: Annotated[list[Rate], Field(min_length=2, max_length=2000)]

    @model_validator(mode="after")
    def _same_length_and_sorted(self) -> Roc:
        if len(self.fpr) != len(self.tpr) or self.fpr != sorted(self.fpr):
            raise ValueError("expected as many tpr as fpr, in rising order of fpr")
        return self


class AuditFacts(Strict):
    """What the attacks on planted canaries achieved; the verdict gates release.

    attempt: how often an audit of this run was begun, this one included: attempts share one
    significance.  findings: why it failed; none when it passed.
    """

    suite: Line
    suite_sha256: Sha256
    attempt: Annotated[int, Field(ge=1)]
    verdict: Literal["passed", "failed"]
    findings: list[Line]
    words: Words
    tests: Annotated[list[AuditTest], Field(min_length=1)]
    exposure: Exposure | None
    extraction: Extraction | None
    control: Control | None
    roc: Roc | None

    @model_validator(mode="after")
    def _verdict_follows_from_findings(self) -> AuditFacts:
        if (self.verdict == "failed") is not bool(self.findings):
            raise ValueError(f"an audit that {self.verdict} with {len(self.findings)} findings")
        return self

    @model_validator(mode="after")
    def _secrets_are_the_same_everywhere(self) -> AuditFacts:
        ranks, out = self.exposure, self.extraction
        planted = {test.canaries for test in self.tests if test.kind == "secret"}
        split = []
        if ranks is not None:
            split.append((len(ranks.ranks_included), len(ranks.ranks_excluded)))
        if out is not None:
            split.append((out.included, out.excluded))
        counts = {*planted, *(inside + outside for inside, outside in split)}
        if len(set(split)) > 1 or len(counts) > 1:
            raise ValueError("the audit contradicts itself on how many secrets were planted")
        return self


class Paid(Strict):
    """What a measure on held-out units was let out with (`training.heldout`) and cost.

    Each unit has between 0 and `bound` of it; both figures have Gaussian noise of
    `noise_multiplier` times half of that on their sums.  epsilon: of the two alone, at the run's
    delta; the run's epsilon includes it.
    """

    noise_multiplier: Positive
    bound: Positive
    epsilon: Amount


class Utility(Strict):
    """One thing that the training achieved, measured where that is free or paid for.

    `interval` holds the difference with 95% confidence; `group` names a subgroup of the test
    text; `n` counts what was tested (public or generated text, so the count is no secret).  With
    `paid`, the interval is that of the noise alone and `n` is the declared number of units.
    """

    source: Literal["public", "generated", "noised"]
    metric: Line
    unit: Line | None
    base: float
    trained: float
    difference: float
    interval: tuple[float, float] | None
    n: Annotated[int, Field(ge=1)]
    better: Literal["lower", "higher"] = "lower"
    group: Line | None = None
    paid: Paid | None = None

    @model_validator(mode="after")
    def _paid_exactly_when_noised(self) -> Utility:
        if (self.source == "noised") is not (self.paid is not None):
            raise ValueError(f"expected `paid` with noised figures only, got {self.source}")
        if self.paid is not None and (self.interval is None or self.group is not None):
            raise ValueError("expected an interval and no group with noised figures")
        return self


class WaiverSignature(Strict):
    """An approver's Ed25519 signature, in hexadecimal, over `budget.signed.waiver_message`."""

    name: Line
    keyid: Sha256
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]


class Waiver(Strict):
    """Two people's decision to release in spite of a failed check, until `expires`."""

    reason: Words
    expires: Time
    signatures: Annotated[list[WaiverSignature], Field(min_length=2)]


class Attestation(Strict):
    """What a person of the operator's vouches for: a hazard that no machine can check."""

    hazard: Line
    words: Words
    name: Line
    time: Time
