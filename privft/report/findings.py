"""What was found out about a run: the second half of the predicate's vocabulary.

Self-checks of the mechanism, attacks on canaries, usefulness, and what people took on themselves.
`report.facts` holds the first half (what was run, on what, at what cost) and puts both together.

Everything here may be public (DESIGN.md, invariant 8): counts are of canaries, usefulness comes
from public or generated text or is released with noise and its own charge.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from privft.report.values import Amount, Count, Line, Rate, Sha256, Strict, Time, Words


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
    """What the attacks on planted canaries achieved; the verdict gates release."""

    suite: Line
    suite_sha256: Sha256
    verdict: Literal["passed", "failed"]
    words: Words
    tests: Annotated[list[AuditTest], Field(min_length=1)]
    control: Control | None
    roc: Roc | None


class Utility(Strict):
    """One thing that the training achieved, measured where that is free or paid for.

    `interval` holds the difference with 95% confidence; `group` names a subgroup of the test
    text; `n` counts what was tested (public or generated text, so the count is no secret).
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


class Waiver(Strict):
    """Two people's decision to release in spite of a failed check."""

    reason: Words
    expires: Time
    signatures: Annotated[list[dict[str, str]], Field(min_length=2)]


class Attestation(Strict):
    """What a person of the operator's vouches for: a hazard that no machine can check."""

    hazard: Line
    words: Words
    name: Line
    time: Time
