"""Attacks: from losses to guesses, and from guesses to findings.

On canaries.  The score of a canary is how much its loss fell in training (`loss-drop`: loss of
the base model minus loss of the trained one), which takes each text's own difficulty out
(calibration by a reference model: Watson et al. 2022, arXiv 2111.08440; here the base model is the
reference, and no shadow models are trained as for LiRA).  The highest scores are guessed "in",
the lowest "out", in numbers that the suite fixed before; each number is tested by the one-run
bounds at its own part of the significance.  What comes out is post-processing of the private model
and of texts that we made: it may be public.

On planted secrets.  Exposure (Carlini et al. 2019) says how far a secret stands out among texts
of the same form that were never in the run, in bits.  It describes; the coins decide.

On real units.  The same scores on units that were trained on against units held out by a keyed
hash.  That touches private data again, so the result is a `PrivateMembership`, a type of its own
that no public dictionary accepts: advice to a person inside the enclave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.audit import bounds
from privft.audit.rates import exposure_rank
from privft.audit.suite import METHODS, MembershipSpec, Score
from privft.budget.accounting import cost, tradeoff
from privft.budget.selection import AnyEvent, Selection
from privft.errors import AuditFailed

Array = NDArray[np.float64]

_NOISE_FACTORS = (4.0, 2.0, 1.4, 0.7, 0.5)

_FEWEST_FALSE_POSITIVES = 5
"""A rate is measurable when the held-out units are expected to hold this many false positives."""


@dataclass(frozen=True, kw_only=True)
class CurveAt:
    """A trade-off curve and the epsilon that it has at the claim's delta."""

    epsilon: float
    curve: bounds.Curve


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the run claims, and what the attacks try to contradict.

    curve: the run's own trade-off curve; `bounds.profile_curve` makes a safe one.  Without it the
        curve is the one that (epsilon, delta) alone promises.
    relatives: curves of the same mechanism with more or less noise, each above the next as epsilon
        grows, so that a bound in terms of epsilon can be given; being nested they cost no
        significance.  A violation is found on the claimed curve alone.
    """

    epsilon: float
    delta: float
    curve: bounds.Curve | None = None
    relatives: tuple[CurveAt, ...] = ()

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and math.isfinite(self.epsilon) and 0 < self.delta < 1):
            raise ValueError(
                "expected a finite epsilon >= 0 and 0 < delta < 1, "
                f"got {self.epsilon}, {self.delta}"
            )

    def own_curve(self) -> bounds.Curve:
        """The trade-off curve that a violation is measured against."""
        return self.curve or bounds.profile_curve([self.epsilon], [self.delta])

    def family(self) -> tuple[CurveAt, ...]:
        """The claimed curve and its relatives."""
        return (*self.relatives, CurveAt(epsilon=self.epsilon, curve=self.own_curve()))


def claim_of(
    events: Sequence[AnyEvent], *, epsilon: float, delta: float, relatives: bool = True
) -> Claim:
    """The claim of a run whose accounting events these are, with its own trade-off curve.

    epsilon: what the run states at `delta`.
    relatives: also the curves at other noise multipliers (about a second each), which turn the
        f-DP test into a bound in terms of epsilon; without them it only says yes or no.
    """
    family = []
    for factor in _NOISE_FACTORS if relatives else ():
        other = [_with_noise(event, factor) for event in events]
        family.append(CurveAt(epsilon=cost(other, delta).epsilon, curve=_curve_of(other)))
    return Claim(epsilon=epsilon, delta=delta, curve=_curve_of(events), relatives=tuple(family))


def _with_noise(event: AnyEvent, factor: float) -> AnyEvent:
    """The same event with so many times the noise; of a selection, in each repetition."""
    if isinstance(event, Selection):
        return replace(
            event,
            events=tuple(
                replace(each, noise_multiplier=each.noise_multiplier * factor)
                for each in event.events
            ),
        )
    return replace(event, noise_multiplier=event.noise_multiplier * factor)


def _curve_of(events: Sequence[AnyEvent]) -> bounds.Curve:
    """The accountant's own bound on the false negative rate, which is safe between its points."""
    found = tradeoff(events)
    return lambda fpr: 1 - found.tpr_bound(fpr)


@dataclass(frozen=True, kw_only=True)
class CanaryTest:
    """One attack on canaries, as it is reported.

    epsilon_lower: every smaller epsilon is contradicted at `significance` (for f-DP: among the
        curves of the claim's family); ceiling: the same for a perfect attack.
    contradicts: whether the run's own claim is contradicted.
    """

    kind: str
    method: str
    canaries: int
    guesses: int
    correct: int
    significance: float
    epsilon_lower: float
    ceiling: float
    contradicts: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a report (without `contradicts`, which the verdict holds)."""
        values = asdict(self)
        del values["contradicts"]
        return values


def scores_from_losses(base: Array, trained: Array, score: Score) -> Array:
    """Scores, high for what looks trained on.

    base, trained: mean loss in nats per unit, shape (units,).
    Errors: AuditFailed when a score is not a number, because nothing follows from it.
    """
    if base.shape != trained.shape or base.ndim != 1:
        raise ValueError(f"expected two lists of one length, got {base.shape}, {trained.shape}")
    values = base - trained if score == "loss-drop" else -trained
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise AuditFailed(
            f"{bad} of {len(values)} attack scores are not finite",
            hint="the model's losses overflow; nothing can be said about such a model",
        )
    return np.asarray(values, dtype=np.float64)


def correct_guesses(scores: Array, included: NDArray[np.bool_], guesses: int) -> int:
    """How many of `guesses` are right: half "in" from the top of the scores, half "out" below.

    Ties are broken by position, which says nothing about the coins.
    """
    if guesses % 2 or not 0 < guesses <= len(scores):
        raise ValueError(f"expected an even number of guesses up to {len(scores)}, got {guesses}")
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int(np.sum(included[order[-half:]]) + np.sum(~included[order[:half]]))


def attack_canaries(
    kind: str,
    scores: Array,
    included: NDArray[np.bool_],
    *,
    guesses: Sequence[int],
    claim: Claim,
    significance: float,
) -> list[CanaryTest]:
    """Both one-run tests for each number of guesses, each at `significance`.

    Guarantees: for a run that keeps its claim, each test contradicts it with probability at most
    `significance`, given independent fair coins.
    """
    return [
        test
        for number in guesses
        for test in _test_count(
            kind,
            len(scores),
            number,
            correct_guesses(scores, included, number),
            claim,
            significance,
        )
    ]


def _test_count(
    kind: str, canaries: int, guesses: int, correct: int, claim: Claim, significance: float
) -> list[CanaryTest]:
    """The two tests of one count of right guesses, in the order of `METHODS`."""

    def plain(right: int) -> float:
        return bounds.one_run_epsilon(
            canaries=canaries,
            guesses=guesses,
            correct=right,
            delta=claim.delta,
            significance=significance,
        )

    def rejects(curve: bounds.Curve, right: int) -> bool:
        return bounds.fdp_rejects(
            curve,
            canaries=canaries,
            guesses=guesses,
            correct=right,
            significance=significance,
        )

    def on_curves(right: int) -> float:
        family = claim.family()
        return max((one.epsilon for one in family if rejects(one.curve, right)), default=0.0)

    lower = plain(correct)
    found = [
        (METHODS[0], lower, plain(guesses), lower > claim.epsilon),
        (METHODS[1], on_curves(correct), on_curves(guesses), rejects(claim.own_curve(), correct)),
    ]
    return [
        CanaryTest(
            kind=kind,
            method=method,
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            significance=significance,
            epsilon_lower=epsilon_lower,
            ceiling=ceiling,
            contradicts=contradicts,
        )
        for method, epsilon_lower, ceiling, contradicts in found
    ]


def roc(scores: Array, included: NDArray[np.bool_]) -> tuple[list[float], list[float]]:
    """False and true positive rates over all thresholds, from (0, 0) to (1, 1), ties in one step.

    Errors: ValueError when all or none are included, because one rate then has no denominator.
    """
    positives, negatives = int(included.sum()), int((~included).sum())
    if not positives or not negatives:
        raise ValueError(f"expected scores of both sorts, got {positives} in, {negatives} out")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)
    tpr = np.cumsum(included[order])[last_of_tie] / positives
    fpr = np.cumsum(~included[order])[last_of_tie] / negatives
    return [0.0, *fpr.tolist()], [0.0, *tpr.tolist()]


def auc(scores: Array, included: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the chance that an included unit scores above another one."""
    fpr, tpr = roc(scores, included)
    return float(np.trapezoid(tpr, fpr))


def secret_ranks(
    scores: Array, included: NDArray[np.bool_], candidate_scores: Array
) -> dict[str, Any]:
    """Where planted secrets stand among never-included texts of the same form, 1 for the first.

    The ranks of those that were in and of those that were not, each in rising order, so that they
    tell which place was taken and not by which secret; `rates.exposure_of_ranks` has them in bits.
    """
    ranks = [exposure_rank(-float(value), -candidate_scores) for value in scores]
    inside = included.tolist()
    return {
        "candidates": len(candidate_scores),
        "ranks_included": sorted(r for r, was_in in zip(ranks, inside, strict=True) if was_in),
        "ranks_excluded": sorted(r for r, was_in in zip(ranks, inside, strict=True) if not was_in),
    }


@dataclass(frozen=True, kw_only=True)
class PrivateMembership:
    """What attacks on real units achieved: private, for a person inside the enclave."""

    attacks: tuple[dict[str, Any], ...]
    members: int
    held_out: int

    def __repr__(self) -> str:
        return "PrivateMembership(...)"

    def private_dict(self) -> dict[str, Any]:
        """Plain values for the sealed audit record, and for nothing else."""
        return {
            "private": True,
            "attacks": [dict(attack) for attack in self.attacks],
            "members": self.members,
            "held_out": self.held_out,
        }


def membership_attack(
    *,
    member_base: Array,
    member_trained: Array,
    held_out_base: Array,
    held_out_trained: Array,
    spec: MembershipSpec,
    seed: int = 0,
) -> PrivateMembership:
    """Attacks that tell units trained on from units held out, with bootstrap intervals.

    All arrays: mean loss in nats per unit.  `loss` uses the trained model alone, `loss-drop` the
    base model as reference, `rmia` the likelihood ratio of RMIA's offline form (Zarifzadeh et al.
    2024, arXiv 2312.03262, with a = 0.3) on per-token likelihoods.  For each: the area under the
    curve and the true positive rate at each asked false positive rate, or "not measurable with n"
    where fewer than 5 false positives are expected among the n held-out units.
    Errors: ValueError on fewer than two units a side.
    """
    if min(len(member_base), len(held_out_base)) < 2:
        raise ValueError(
            f"expected two units a side, got {len(member_base)} and {len(held_out_base)}"
        )
    base = np.concatenate([member_base, held_out_base])
    trained = np.concatenate([member_trained, held_out_trained])
    inside = np.arange(len(base)) < len(member_base)
    reference = np.exp(-base)
    attacks = {
        "loss": scores_from_losses(base, trained, "loss"),
        "loss-drop": scores_from_losses(base, trained, "loss-drop"),
        "rmia": np.exp(-trained) / (0.5 * (1.3 * reference + 0.7)),
    }
    return PrivateMembership(
        attacks=tuple(
            _measure(name, scores[inside], scores[~inside], spec, np.random.default_rng(seed))
            for name, scores in attacks.items()
        ),
        members=len(member_base),
        held_out=len(held_out_base),
    )


def _measure(
    name: str, inside: Array, outside: Array, spec: MembershipSpec, random: np.random.Generator
) -> dict[str, Any]:
    rates = sorted(spec.false_positive_rates)
    draws = [
        _point(random.choice(inside, len(inside)), random.choice(outside, len(outside)), rates)
        for _ in range(spec.bootstrap)
    ]
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0)
    here = _point(inside, outside, rates)
    at_rates: list[dict[str, Any]] = []
    for i, rate in enumerate(rates, start=1):
        if rate * len(outside) < _FEWEST_FALSE_POSITIVES:
            at_rates.append({"fpr": rate, "words": f"not measurable with {len(outside)}"})
        else:
            interval = [float(low[i]), float(high[i])]
            at_rates.append({"fpr": rate, "tpr": here[i], "interval": interval})
    return {
        "attack": name,
        "auc": here[0],
        "auc_interval": [float(low[0]), float(high[0])],
        "tpr_at_fpr": at_rates,
    }


def _point(inside: Array, outside: Array, rates: Sequence[float]) -> list[float]:
    """AUC and the true positive rates at the false positive rates (never above them)."""
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, side="left")
    up_to = np.searchsorted(ordered, inside, side="right")
    area = float(np.mean(below + up_to) / 2 / len(outside))
    found = [area]
    for rate in rates:
        allowed = math.floor(rate * len(outside) + 1e-9)
        threshold = ordered[len(outside) - 1 - allowed] if allowed < len(outside) else -math.inf
        found.append(float(np.mean(inside > threshold)))
    return found
