"""The audit of one run: attack the canaries, weigh the findings, say it in words.

`run_audit` is given canaries with their coins, a way of scoring text (by the model before and
after training), the claim, the control and the self-check.  It never sees a real unit: attacks on
those (`attacks.membership_attack`) are run beside it, and their result has a type of its own that
no public dictionary here takes up.

A verdict is `passed` or `failed`.  Failed means one of the suite's findings:

    bound-above-claim    a lower bound on epsilon exceeds the claimed epsilon
    curve-contradicted   guesses were better than the claimed trade-off curve allows
    control-failed       the same attacks found nothing in a model made to leak
    selfcheck-failed     the attack on the mechanism found a fault, or was not held

Passed means that no violation was found by these attacks, up to the stated ceiling, and nothing
more.  What was not examined counts as failed, never as passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from privft.audit.attacks import (
    Array,
    CanaryTest,
    Claim,
    attack_canaries,
    auc,
    roc,
    scores_from_losses,
    secret_ranks,
)
from privft.audit.canaries import Canary, Unit
from privft.audit.control import Control
from privft.audit.rates import exposure_of_ranks
from privft.audit.selfcheck import Check
from privft.audit.suite import METHODS, Suite, Task
from privft.budget.entries import Finding
from privft.errors import AuditFailed

ScoreUnits = Callable[[Sequence[Unit]], tuple[Array, Array]]
"""Units in, mean loss in nats of each out, by the model before training and by the one after it."""
ExtractUnits = Callable[[Sequence[Unit]], NDArray[np.bool_]]
"""Secret-bearing units in, whether the model writes each one's number out, in the same order."""

_UNFAIR = 1e-9
_MOST_ROC_POINTS = 400


@dataclass(frozen=True, kw_only=True)
class AuditResult:
    """What an audit found; all of it may be public.

    epsilon_lower: the highest bound of the (epsilon, delta) tests; ceiling: what a perfect attack
        would have shown.  exposure, extraction and auc: description, not part of the verdict.
    seconds: what each part took, for whoever held the audit; no part of the facts.
    """

    suite: str
    suite_sha256: str
    attempt: int
    verdict: Literal["passed", "failed"]
    words: str
    findings: tuple[Finding, ...]
    tests: tuple[CanaryTest, ...]
    epsilon_lower: float
    ceiling: float
    control: Control
    selfcheck: tuple[Check, ...]
    auc: dict[str, float]
    exposure: dict[str, Any] | None
    extraction: dict[str, int] | None
    roc_fpr: tuple[float, ...]
    roc_tpr: tuple[float, ...]
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """The part that goes into the signed report under `audit`."""
        return {
            "suite": self.suite,
            "suite_sha256": self.suite_sha256,
            "attempt": self.attempt,
            "verdict": self.verdict,
            "findings": list(self.findings),
            "words": self.words,
            "tests": [test.to_dict() for test in self.tests],
            "exposure": self.exposure,
            "extraction": self.extraction,
            "control": self.control.facts(),
            "roc": {"fpr": list(self.roc_fpr), "tpr": list(self.roc_tpr)},
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            **self.facts(),
            "epsilon_lower": self.epsilon_lower,
            "ceiling": self.ceiling,
            "control": asdict(self.control),
            "selfcheck": [check.to_dict() for check in self.selfcheck],
            "auc": dict(self.auc),
            "exposure_bits": self.exposure_bits(),
            "seconds": {part: dict(took) for part, took in self.seconds.items()},
        }

    def exposure_bits(self) -> dict[str, Any] | None:
        """Exposure in bits of the secrets that were in and of those that were not."""
        if self.exposure is None:
            return None
        among = self.exposure["candidates"]
        return {
            name: asdict(exposure_of_ranks(self.exposure[f"ranks_{name}"], among))
            for name in ("included", "excluded")
            if self.exposure[f"ranks_{name}"]
        }


def run_audit(
    suite: Suite,
    suite_sha256: str,
    *,
    task: Task,
    canaries: Sequence[Canary],
    score: ScoreUnits,
    claim: Claim,
    control: Control,
    selfcheck: Sequence[Check],
    candidates: Sequence[Unit] = (),
    extract: ExtractUnits | None = None,
    attempt: int = 1,
) -> AuditResult:
    """Audit one run.

    canaries: from `canaries.make_canaries` with the same suite, those in and those out alike.
    candidates: from `canaries.make_candidates`; empty when no exposure is asked for.
    extract: tells which planted secrets the trained model writes out (`extraction.extracted`).
    attempt: how many audits of this run were begun, this one included; each later one has less
        significance to spend.

    Guarantees: a run that keeps its claim is said to violate it with probability at most
    `suite.significance`, over all kinds, guesses, methods and attempts together.
    Errors: AuditFailed when coins or scores are not what they must be; ValueError when the
    canaries are not those of the suite.
    """
    kinds = [canary.kind for canary in canaries]
    included = np.array([canary.included for canary in canaries], dtype=np.bool_)
    _check_canaries(suite, task, kinds, included)
    units = [canary.unit for canary in canaries] + list(candidates)
    base, trained = _scored(score, units)
    significance = suite.test_significance(task, attempt)
    tests: list[CanaryTest] = []
    areas: dict[str, float] = {}
    ranks: dict[str, Any] | None = None
    standing = np.zeros(len(canaries))
    for spec in suite.specs(task):
        here = np.array([kind == spec.kind for kind in kinds])
        scores = scores_from_losses(
            base[: len(kinds)][here], trained[: len(kinds)][here], spec.score
        )
        tests += attack_canaries(
            spec.kind,
            scores,
            included[here],
            guesses=spec.guesses,
            claim=claim,
            significance=significance,
        )
        areas[spec.kind] = auc(scores, included[here])
        standing[here] = stats.rankdata(scores) / len(scores)
        if spec.kind == "secret" and candidates:
            others = scores_from_losses(base[len(kinds) :], trained[len(kinds) :], spec.score)
            ranks = secret_ranks(scores, included[here], others)
    findings = _findings(suite, tests, control, selfcheck)
    fpr, tpr = _thinned(*roc(standing, included))
    plain = [test for test in tests if test.method == METHODS[0]]
    return AuditResult(
        suite=suite.name,
        suite_sha256=suite_sha256,
        attempt=attempt,
        verdict="failed" if findings else "passed",
        words=verdict_words(suite, claim, tests, findings),
        findings=findings,
        tests=tuple(tests),
        epsilon_lower=max(test.epsilon_lower for test in plain),
        ceiling=max(test.ceiling for test in plain),
        control=control,
        selfcheck=tuple(selfcheck),
        auc=areas,
        exposure=ranks,
        extraction=_extraction(canaries, extract),
        roc_fpr=tuple(fpr),
        roc_tpr=tuple(tpr),
    )


def _extraction(canaries: Sequence[Canary], extract: ExtractUnits | None) -> dict[str, int] | None:
    """How many planted secrets come out, of those that were in and of those that were not."""
    secrets = [canary for canary in canaries if canary.kind == "secret"]
    if extract is None or not secrets:
        return None
    out = extract([canary.unit for canary in secrets])
    inside = np.array([canary.included for canary in secrets], dtype=np.bool_)
    return {
        "included": int(inside.sum()),
        "extracted_of_included": int((out & inside).sum()),
        "excluded": int((~inside).sum()),
        "extracted_of_excluded": int((out & ~inside).sum()),
    }


def _check_canaries(
    suite: Suite, task: Task, kinds: Sequence[str], included: NDArray[np.bool_]
) -> None:
    """The canaries are the suite's, and their coins look fair and differ between kinds."""
    expected: dict[str, int] = {spec.kind: spec.count for spec in suite.specs(task)}
    found = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    if found != expected:
        raise ValueError(f"expected canaries {expected}, got {found}")
    coins = {kind: included[[k == kind for k in kinds]] for kind in expected}
    chances = {
        kind: float(stats.binomtest(int(own.sum()), len(own)).pvalue) for kind, own in coins.items()
    }
    # Fair coins of two kinds agree as often as not.  (A test of independence: the coins of kinds
    # that share a stream agree always.)
    names = list(coins)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            length = min(len(coins[first]), len(coins[second]))
            agree = int(np.sum(coins[first][:length] == coins[second][:length]))
            chances[f"{first}, {second}"] = float(stats.binomtest(agree, length).pvalue)
    for name, chance in chances.items():
        if chance < _UNFAIR:
            raise AuditFailed(
                f"the coins of the canaries ({name}) are not fair and independent: "
                f"a chance of {chance:.1e}",
                hint="no bound holds without fair coins; this run cannot be audited",
            )


def _scored(score: ScoreUnits, units: Sequence[Unit]) -> tuple[Array, Array]:
    base, trained = (np.asarray(values, dtype=np.float64) for values in score(units))
    if not base.shape == trained.shape == (len(units),):
        raise ValueError(
            f"expected {len(units)} losses of each model, got shapes {base.shape}, {trained.shape}"
        )
    return base, trained


def _findings(
    suite: Suite, tests: Sequence[CanaryTest], control: Control, selfcheck: Sequence[Check]
) -> tuple[Finding, ...]:
    by_method = {
        method: any(test.contradicts for test in tests if test.method == method)
        for method in METHODS
    }
    held: dict[Finding, bool] = {
        "bound-above-claim": by_method[METHODS[0]],
        "curve-contradicted": by_method[METHODS[1]],
        "control-failed": not control.ok,
        "selfcheck-failed": not selfcheck or not all(check.ok for check in selfcheck),
    }
    return tuple(finding for finding, found in held.items() if found and finding in suite.fails_on)


def verdict_words(
    suite: Suite, claim: Claim, tests: Sequence[CanaryTest], findings: Sequence[Finding]
) -> str:
    """The verdict as a person reads it.  It never says that privacy was proved."""
    confidence = f"{100 * (1 - suite.significance):g}%"
    plain = [test for test in tests if test.method == METHODS[0]]
    lower, ceiling = (max(values) for values in _columns(plain))
    words: list[str] = []
    if "bound-above-claim" in findings:
        shown, claimed = _apart(lower, claim.epsilon)
        words.append(
            f"violation: lower bound {shown} exceeds the claimed {claimed} at {confidence}"
        )
    elif "curve-contradicted" in findings:
        kinds = sorted({test.kind for test in tests if test.contradicts})
        words.append(
            f"violation: {' and '.join(kinds)} canaries were told apart better than the claimed "
            f"trade-off curve allows, at {confidence}"
        )
    if "control-failed" in findings:
        words.append(
            "the control failed: the same attacks found too little in a model made to leak, so "
            "this audit proves nothing"
        )
    if "selfcheck-failed" in findings:
        words.append("the attack on the mechanism failed or was not held")
    if words:
        return "; ".join(words)
    found = f"no violation found; this audit could have detected up to epsilon {_down(ceiling, 1)}"
    if lower > 0:
        found += f"; the attacks show an epsilon of at least {_down(lower, 2)} at {confidence}"
    if ceiling > claim.epsilon:
        return found
    found += f"; the claimed {claim.epsilon:.1f} lies above that, "
    if any(test.ceiling >= claim.epsilon for test in tests if test.method == METHODS[1]):
        return found + "and only its whole trade-off curve could have been contradicted"
    return found + "so even a perfect attack of this size could not have contradicted it"


def _columns(tests: Sequence[CanaryTest]) -> tuple[list[float], list[float]]:
    return [test.epsilon_lower for test in tests], [test.ceiling for test in tests]


def _down(value: float, digits: int) -> str:
    """A bound is rounded down: what is printed must still hold."""
    return f"{math.floor(value * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def _apart(lower: float, claimed: float) -> tuple[str, str]:
    """Both numbers with as few digits as show that the first is larger."""
    for digits in range(1, 6):
        shown = _down(lower, digits)
        if float(shown) > claimed:
            return shown, f"{claimed:.{digits}f}"
    return repr(lower), repr(claimed)


def _thinned(fpr: Sequence[float], tpr: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_MOST_ROC_POINTS` points of a curve, both ends kept."""
    keep = np.unique(np.linspace(0, len(fpr) - 1, _MOST_ROC_POINTS).round().astype(int))
    return [float(fpr[i]) for i in keep], [float(tpr[i]) for i in keep]
