"""Bounds from independent runs: error rates, the mu of a Gaussian mechanism, exposure of secrets.

Where `audit.bounds` lives with one training run, these ask for scores that are independent draws:
many tiny runs, or canaries that touch disjoint coordinates of one noisy sum.  Within one real run
scores are not independent, so these bounds serve the check of the mechanism, not the verdict on a
run; exposure describes and does not decide.

    both error rates          Clopper and Pearson 1934; Nasr et al. 2021 (arXiv 2101.04535)
    a Gaussian mechanism's mu Dong, Roth, Su 2022; the non-central t distribution
    the spread of noise       a chi-square test
    exposure                  Carlini et al. 2019 (arXiv 1802.08232), section 4

Every bound says how the choice of a threshold was paid for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from privft.audit.bounds import check_counts, check_probability


def clopper_pearson_upper(successes: int, trials: int, significance: float) -> float:
    """One-sided upper confidence bound on a success probability (Clopper and Pearson 1934)."""
    check_counts(trials, trials, successes)
    if successes == trials:
        return 1.0
    return float(special.betaincinv(successes + 1, trials - successes, 1 - significance))


def clopper_pearson_lower(successes: int, trials: int, significance: float) -> float:
    """One-sided lower confidence bound on a success probability."""
    return 1 - clopper_pearson_upper(trials - successes, trials, significance)


_QUADRATURE = 4096


@dataclass(frozen=True, kw_only=True)
class RateBound:
    """Bounds from both error rates of a threshold attack on independent runs.

    ceiling, mu_ceiling: what scores that separate perfectly would have given; correction says how
    the choice of the threshold was paid for.
    """

    epsilon: float
    ceiling: float
    mu: float
    mu_ceiling: float
    false_positives: int
    correction: str


def epsilon_from_rates(
    *,
    true_positives: int,
    positives: int,
    false_positives: int,
    negatives: int,
    significance: float,
    delta: float = 0.0,
) -> float:
    """Lower bound on epsilon from the error rates of an attack that was fixed beforehand.

    Each rate gets half of the significance; both directions of the inequality
    TPR <= exp(epsilon) FPR + delta rest on the same two bounds and cost no more.
    """
    check_probability("significance", significance)
    check_probability("delta", delta, zero=True)
    tpr = clopper_pearson_lower(true_positives, positives, significance / 2)
    fpr = clopper_pearson_upper(false_positives, negatives, significance / 2)
    found = [0.0]
    for gain, loss in ((tpr, fpr), (1 - fpr, 1 - tpr)):
        if gain > delta and loss > 0:
            found.append(math.log((gain - delta) / loss))
    return max(found)


def _mu_from_rates(
    true_positives: int, positives: int, false_positives: int, negatives: int, significance: float
) -> float:
    tpr = clopper_pearson_lower(true_positives, positives, significance / 2)
    fpr = clopper_pearson_upper(false_positives, negatives, significance / 2)
    return max(0.0, float(special.ndtri(tpr) - special.ndtri(fpr)))


def rates_from_scores(
    in_scores: ArrayLike,
    out_scores: ArrayLike,
    *,
    significance: float,
    delta: float = 0.0,
    correction: Literal["bonferroni", "split"] = "bonferroni",
    ranks: Sequence[int] = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610, 987),
) -> RateBound:
    """Bounds from scores of independent runs with the canary in and with it out; high means in.

    The attack says "in" above the k-th largest score of the out runs, for the k in `ranks`, which
    are fixed beforehand.  The out score that serves as threshold has a false positive rate of
    exactly Beta(k, n-k+1), so the Clopper-Pearson bound for k-1 false positives holds for it,
    and given the threshold the true positives are binomial: every rank is an exact test.

    correction: "bonferroni" divides the significance among the ranks; "split" picks the rank on
    every other score and tests on the rest.
    Errors: ValueError when either list is empty or holds a value that is not a number.
    """
    inside, outside = _scores("in", in_scores), _scores("out", out_scores)
    check_probability("significance", significance)
    if correction == "split":
        chosen = _best_rank(inside[::2], outside[::2], ranks, significance, delta)
        inside, outside = inside[1::2], outside[1::2]
        candidates = [max(1, min(chosen, len(outside)))]
        words = "rank picked on one half, tested on the other"
    else:
        candidates = [k for k in ranks if 1 <= k <= len(outside)]
        words = f"Bonferroni over {len(candidates)} ranks fixed beforehand"
    if not candidates or len(inside) == 0:
        raise ValueError(f"expected more scores, got {len(inside)} in and {len(outside)} out")
    share = significance / len(candidates)
    rows = [_at_rank(inside, outside, k, share, delta) for k in candidates]
    perfect = [
        _at_hits(len(inside), len(inside), len(outside), k, share, delta) for k in candidates
    ]
    return RateBound(
        epsilon=max(row[0] for row in rows),
        ceiling=max(row[0] for row in perfect),
        mu=max(row[1] for row in rows),
        mu_ceiling=max(row[1] for row in perfect),
        false_positives=max(rows)[2],
        correction=words,
    )


def _at_rank(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    rank: int,
    significance: float,
    delta: float,
) -> tuple[float, float, int]:
    threshold = np.sort(outside)[-rank]
    hits = int(np.sum(inside > threshold))
    return _at_hits(hits, len(inside), len(outside), rank, significance, delta)


def _at_hits(
    hits: int, positives: int, negatives: int, rank: int, significance: float, delta: float
) -> tuple[float, float, int]:
    epsilon = epsilon_from_rates(
        true_positives=hits,
        positives=positives,
        false_positives=rank - 1,
        negatives=negatives,
        significance=significance,
        delta=delta,
    )
    mu = _mu_from_rates(hits, positives, rank - 1, negatives, significance)
    return epsilon, mu, rank - 1


def _best_rank(
    inside: NDArray[np.float64],
    outside: NDArray[np.float64],
    ranks: Sequence[int],
    significance: float,
    delta: float,
) -> int:
    possible = [k for k in ranks if 1 <= k <= len(outside)] or [1]
    if len(inside) == 0 or len(outside) == 0:
        return 1
    return max(possible, key=lambda k: _at_rank(inside, outside, k, significance, delta)[:2])


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or bool(np.any(np.isnan(array))):
        raise ValueError(f"expected a list of {name} scores without NaN, got shape {array.shape}")
    return array


@dataclass(frozen=True, kw_only=True)
class MuInterval:
    """A shift in standard deviations with one-sided bounds, each at the stated significance.

    There is no ceiling: scores that separate perfectly may be any number of spreads apart.
    """

    lower: float
    estimate: float
    upper: float


def gaussian_mu_interval(
    in_scores: ArrayLike, out_scores: ArrayLike, *, significance: float
) -> MuInterval:
    """Interval for mu from independent normal scores of one spread, shifted by mu spreads.

    The two-sample t statistic is then non-central t with parameter mu / sqrt(1/n + 1/m), which is
    inverted exactly.  The assumption is the price of its power: it suits an attack that reads the
    mechanism's own Gaussian noise, and `rates_from_scores` gives a bound beside it without it.
    Errors: ValueError on fewer than two scores a side or no spread at all.
    """
    from scipy.optimize import brentq

    inside, outside = _scores("in", in_scores), _scores("out", out_scores)
    n, m = len(inside), len(outside)
    if min(n, m) < 2:
        raise ValueError(f"expected two scores a side or more, got {n} and {m}")
    freedom = n + m - 2
    squares = (n - 1) * inside.var(ddof=1) + (m - 1) * outside.var(ddof=1)
    spread = math.sqrt(squares / freedom)
    if not spread > 0:
        raise ValueError("expected scores that vary, got a spread of 0")
    scale = math.sqrt(1 / n + 1 / m)
    shift = float(inside.mean() - outside.mean()) / spread
    statistic = shift / scale

    # P[T <= t] = E[Phi(t*s - parameter)] over s = sqrt(chi-square/freedom), taken at the midpoints
    # of equal shares of s: library routines for the non-central t give NaN in its far tails.
    middles = (np.arange(_QUADRATURE) + 0.5) / _QUADRATURE
    s = np.sqrt(special.chdtri(freedom, middles) / freedom)

    def parameter(probability: float) -> float:
        """The non-centrality at which the statistic has this cumulative probability."""
        width = 10 + abs(statistic)
        return float(
            brentq(
                lambda ncp: float(special.ndtr(statistic * s - ncp).mean()) - probability,
                statistic - width,
                statistic + width,
                xtol=1e-9,
            )
        )

    return MuInterval(
        lower=parameter(1 - significance) * scale,
        estimate=shift,
        upper=parameter(significance) * scale,
    )


def normal_spread(
    values: NDArray[np.float64], expected: float, significance: float
) -> tuple[bool, str]:
    """Whether independent normal values of mean 0 have this spread, and the measurement in words:
    a two-sided chi-square test."""
    statistic = float(np.sum(np.square(values / expected)))
    low = float(special.chdtri(len(values), 1 - significance / 2))
    high = float(special.chdtri(len(values), significance / 2))
    measured = math.sqrt(statistic / len(values))
    return low <= statistic <= high, (
        f"{measured:.4f} of what it should be, from {len(values)} values "
        f"({math.sqrt(low / len(values)):.3f} to {math.sqrt(high / len(values)):.3f} allowed)"
    )


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """How far secrets stand out among candidates of their kind, in bits, on average.

    interval: Student's 95% interval of the average, from how the secrets differ among themselves
        (None for fewer than ten); most: the largest; ceiling: the most that so few candidates could
        have shown; chance: the average of a secret that the model knows nothing of.
    """

    secrets: int
    bits: float
    interval: tuple[float, float] | None
    most: float
    ceiling: float
    chance: float


_FEWEST_SECRETS = 10


def exposure_rank(secret_loss: float, candidate_losses: ArrayLike) -> int:
    """The place of a secret among candidates never seen in training, 1 for the most exposed.

    Ties count against the attack.  A secret that the model knows nothing of has each of the
    candidates + 1 places with the same probability.
    """
    losses = _scores("candidate", candidate_losses)
    if math.isnan(secret_loss):
        raise ValueError("expected a loss, got NaN")
    return 1 + int(np.sum(losses <= secret_loss))


def exposure_of_ranks(ranks: Sequence[int], candidates: int) -> Exposure:
    """Exposure of secrets from their ranks: log2(N+1) - log2(rank) among N candidates.

    Source: Carlini et al. 2019, section 4.2, with a sample in place of the whole space.  The
    average that chance gives is log2(N+1) - log2((N+1)!)/(N+1): 1.44 for many candidates, less for
    few.
    Errors: ValueError on no ranks, or one outside 1 to candidates + 1.
    """
    places = np.asarray(ranks, dtype=np.float64)
    if candidates < 1 or not len(places) or places.min() < 1 or places.max() > candidates + 1:
        raise ValueError(f"expected ranks from 1 to {candidates} + 1, got {len(places)} ranks")
    ceiling = math.log2(candidates + 1)
    bits = ceiling - np.log2(places)
    middle, interval = float(bits.mean()), None
    if len(bits) >= _FEWEST_SECRETS:
        spread = float(bits.std(ddof=1)) / math.sqrt(len(bits))
        half = float(special.stdtrit(len(bits) - 1, 0.975)) * spread
        interval = max(0.0, middle - half), min(ceiling, middle + half)
    return Exposure(
        secrets=len(bits),
        bits=middle,
        interval=interval,
        most=float(bits.max()),
        ceiling=ceiling,
        chance=ceiling - float(special.gammaln(candidates + 2)) / math.log(2) / (candidates + 1),
    )


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of Clopper and Pearson for a share, 2.5% on either side."""
    return (
        clopper_pearson_lower(successes, trials, 0.025),
        clopper_pearson_upper(successes, trials, 0.025),
    )
