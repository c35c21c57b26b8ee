"""What attacks on a private mechanism say about its epsilon: lower bounds with stated confidence.

An audit guesses which canaries were in the data.  The bounds here turn right guesses into
statements of the form "were the mechanism (epsilon, delta)-private, this many right guesses would
happen with probability at most `significance`".  They never say that a mechanism is private: a
weak attack gives a low bound on any mechanism.  That is why every bound comes with its *ceiling*,
the value that a perfect attack would have given with the same number of guesses.

    (epsilon, delta)   Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), theorem 5.2
    a trade-off curve  Mahloujifar, Melis, Chaudhuri 2024 (arXiv 2410.22235), algorithm 3

Assumptions.  Each canary was included by its own fair coin, independent of all else, and the
number of guesses was fixed before the scores were seen.  Nothing is assumed about the scores, and
canaries may influence one another: they all live in one training run.  Bounds from independent
runs are in `audit.rates`.

Whoever looks at several numbers of guesses, kinds or scores divides the significance among them
beforehand (Bonferroni).  Picking the best threshold afterwards without that division is the usual
way of finding violations that are not there.

Trade-off curves are functions from a false positive rate to the least false negative rate, for
both directions of add/remove at once (so they are their own inverse).  A curve must nowhere lie
above the true one: chords between exact points do, supporting lines (`profile_curve`) do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special  # the rest of scipy takes half a second, and `privft verify` waits for it

Curve = Callable[[float], float]

_TOLERANCE = 1e-7
_LARGEST_EPSILON = 200.0
_LARGEST_MU = 100.0


def check_counts(canaries: int, guesses: int, correct: int) -> None:
    """ValueError unless 0 <= correct <= guesses <= canaries and there is a guess."""
    if not 0 <= correct <= guesses <= canaries or guesses < 1:
        raise ValueError(
            "expected 0 <= correct <= guesses <= canaries and guesses >= 1, "
            f"got {correct}, {guesses}, {canaries}"
        )


def check_probability(name: str, value: float, *, zero: bool = False) -> None:
    """ValueError unless the value lies strictly between 0 and 1; 0 passes with `zero`."""
    if not (0 <= value < 1 if zero else 0 < value < 1):
        raise ValueError(f"expected {'0 <=' if zero else '0 <'} {name} < 1, got {value}")


def _largest_rejected(rejects: Callable[[float], bool], largest: float) -> float:
    """The top of the range of parameters that are rejected, rounded down; 0 when 0 is not."""
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
        if high > largest:
            return low
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


# --- one run, (epsilon, delta) -------------------------------------------------------------


def one_run_p_value(
    *, canaries: int, guesses: int, correct: int, epsilon: float, delta: float
) -> float:
    """Largest chance of `correct` or more right guesses under (epsilon, delta)-privacy.

    With q = 1/(1+exp(-epsilon)), beta = P[Bin(r,q) >= v] and
    alpha = max over 1 <= i <= v of P[v > Bin(r,q) >= v-i]/i, it is beta + 2*m*delta*alpha
    (Steinke, Nasr and Jagielski 2023, theorem 5.2) for m canaries, r guesses, v right.

    Errors: ValueError on counts or probabilities out of range.
    """
    check_counts(canaries, guesses, correct)
    check_probability("delta", delta, zero=True)
    if not epsilon >= 0:
        raise ValueError(f"expected epsilon >= 0, got {epsilon}")
    q = special.expit(epsilon)
    beta = float(_at_least(correct, guesses, q))
    if delta == 0 or correct == 0:
        return min(beta, 1.0)
    i = np.arange(1, correct + 1)
    between = _at_least(correct - i, guesses, q) - beta
    alpha = max(0.0, float(np.max(between / i)))
    return min(beta + 2 * canaries * delta * alpha, 1.0)


def _at_least(counts: Any, trials: int, chance: float) -> Any:
    """P[Bin(trials, chance) >= count] of each count in 0..trials (DLMF 8.17.5)."""
    some = special.betainc(np.maximum(counts, 1), trials + 1 - np.maximum(counts, 1), chance)
    return np.where(np.equal(counts, 0), 1.0, some)


def one_run_epsilon(
    *, canaries: int, guesses: int, correct: int, delta: float, significance: float
) -> float:
    """Lower bound on epsilon from one training run.

    Guarantees: a run that is (epsilon, delta)-private gets a bound above epsilon with probability
    at most `significance`, provided that canaries were included by independent fair coins and the
    number of guesses did not depend on the scores.
    """
    check_probability("significance", significance)
    check_counts(canaries, guesses, correct)

    def rejects(epsilon: float) -> bool:
        p_value = one_run_p_value(
            canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta
        )
        return p_value < significance

    return _largest_rejected(rejects, _LARGEST_EPSILON)


def one_run_ceiling(*, canaries: int, guesses: int, delta: float, significance: float) -> float:
    """The bound that a perfect attack gets; at delta 0 it is logit(significance ** (1/guesses))."""
    return one_run_epsilon(
        canaries=canaries,
        guesses=guesses,
        correct=guesses,
        delta=delta,
        significance=significance,
    )


# --- one run, a trade-off curve ------------------------------------------------------------


def _recursion_rejects(
    inverse: Callable[[float], float],
    *,
    canaries: int,
    guesses: int,
    correct: int,
    significance: float,
) -> bool:
    """Algorithm 3 of Mahloujifar et al. 2024; `inverse(r)` is the least mass that r must leave.

    r and h are, in units of guesses over canaries, the mass of right and of wrong guesses in the
    event of at least i right ones.  Were `correct` right guesses as probable as `significance`,
    privacy would force the masses at i = 0 to add up to at least what the recursion finds; more
    than all guesses is a contradiction.
    """
    right = significance * correct / canaries
    wrong = significance * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        grown = max(wrong, inverse(right))
        if grown == wrong:
            break  # neither can change again
        right = min(right + i / (guesses - i) * (grown - wrong), 1.0)
        wrong = grown
    return right + wrong > guesses / canaries


def fdp_rejects(
    curve: Curve, *, canaries: int, guesses: int, correct: int, significance: float
) -> bool:
    """Whether one run's guesses contradict the trade-off curve that the run claims.

    curve: false positive rate -> least false negative rate, both directions of add/remove.

    Guarantees: a run whose true trade-off lies nowhere below `curve` is rejected with probability
    at most `significance` (same conditions as `one_run_epsilon`).
    Errors: ValueError when `curve` is no trade-off curve.
    """
    check_counts(canaries, guesses, correct)
    check_probability("significance", significance)
    _check_curve(curve)
    return _recursion_rejects(
        lambda mass: curve(1.0 - mass),
        canaries=canaries,
        guesses=guesses,
        correct=correct,
        significance=significance,
    )


def _check_curve(curve: Curve) -> None:
    """A trade-off curve falls and stays between 0 and 1 - x (blind guessing)."""
    previous = 1.0
    for x in np.linspace(0, 1, 33):
        value = curve(float(x))
        if not -1e-12 <= value <= min(previous, 1 - float(x)) + 1e-9:
            raise ValueError(
                "expected a falling trade-off curve between 0 and 1 - x, "
                f"got {value:.6g} at {float(x):.6g}"
            )
        previous = value


def gaussian_curve(mu: float) -> Curve:
    """The trade-off of telling N(0,1) from N(mu,1): Phi(Phi^-1(1-x) - mu) (Dong, Roth, Su 2022)."""
    if not mu >= 0:
        raise ValueError(f"expected mu >= 0, got {mu}")
    return lambda x: float(special.ndtr(-special.ndtri(x) - mu))


def profile_curve(epsilons: Sequence[float], deltas: Sequence[float]) -> Curve:
    """The trade-off curve that a privacy profile promises, from any number of its points.

    epsilons, deltas: pairs at each of which the mechanism is (epsilon, delta)-private for
    add/remove.  The curve is the upper envelope of max(0, 1-delta-exp(epsilon) x,
    exp(-epsilon) (1-delta-x)) (Wasserman and Zhou 2010), which never exceeds the true curve
    whatever points are given: fewer points only cost power.

    Errors: ValueError when the lists differ in length, are empty, or hold impossible values.
    """
    eps, dlt = np.asarray(epsilons, dtype=np.float64), np.asarray(deltas, dtype=np.float64)
    if eps.shape != dlt.shape or eps.ndim != 1 or eps.size == 0:
        raise ValueError(f"expected two lists of one length, got {eps.shape} and {dlt.shape}")
    if not (np.all(eps >= 0) and np.all((dlt >= 0) & (dlt <= 1))):
        raise ValueError("expected epsilons >= 0 and deltas in [0, 1]")
    growth, kept = np.exp(eps), 1 - dlt

    def curve(x: float) -> float:
        return max(0.0, float(np.max(np.maximum(kept - growth * x, (kept - x) / growth))))

    return curve


def fdp_gaussian_mu(*, canaries: int, guesses: int, correct: int, significance: float) -> float:
    """The largest mu whose Gaussian trade-off curve one run's guesses contradict.

    A statement about Gaussian curves only: subsampled mechanisms have other curves, and their
    verdict comes from `fdp_rejects` on their own.
    """
    check_counts(canaries, guesses, correct)
    check_probability("significance", significance)

    def rejects(mu: float) -> bool:
        return _recursion_rejects(
            lambda mass: float(special.ndtr(special.ndtri(mass) - mu)),
            canaries=canaries,
            guesses=guesses,
            correct=correct,
            significance=significance,
        )

    return _largest_rejected(rejects, _LARGEST_MU)


def fdp_gaussian_epsilon(
    *, canaries: int, guesses: int, correct: int, delta: float, significance: float
) -> float:
    """`fdp_gaussian_mu` as an epsilon at `delta`."""
    mu = fdp_gaussian_mu(
        canaries=canaries, guesses=guesses, correct=correct, significance=significance
    )
    return gaussian_epsilon(mu, delta)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of a Gaussian mechanism of shift `mu` (1/noise multiplier) at `delta`.

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu)
    (Balle and Wang 2018, theorem 8).
    """
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, got {delta}")
    if not 0 <= mu <= _LARGEST_MU:
        raise ValueError(f"expected 0 <= mu <= {_LARGEST_MU}, got {mu}")
    if mu == 0:
        return 0.0

    from scipy.optimize import brentq

    def excess(epsilon: float) -> float:
        first = special.log_ndtr(mu / 2 - epsilon / mu)
        second = epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)
        return float(math.exp(first) - math.exp(second) - delta)

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high, xtol=1e-10))


def bound_report(
    *, canaries: int, guesses: int, correct: int, delta: float, significance: float
) -> dict[str, Any]:
    """All one-run bounds for counts given by hand, as plain values (`privft bound`)."""

    def plain(right: int) -> float:
        return one_run_epsilon(
            canaries=canaries,
            guesses=guesses,
            correct=right,
            delta=delta,
            significance=significance,
        )

    def gaussian(right: int) -> float | None:
        """A Gaussian curve has no finite epsilon at delta 0."""
        if delta == 0:
            return None
        return fdp_gaussian_epsilon(
            canaries=canaries,
            guesses=guesses,
            correct=right,
            delta=delta,
            significance=significance,
        )

    return {
        "canaries": canaries,
        "guesses": guesses,
        "correct": correct,
        "delta": delta,
        "significance": significance,
        "epsilon_lower": plain(correct),
        "ceiling": plain(guesses),
        "gaussian_epsilon_lower": gaussian(correct),
        "gaussian_ceiling": gaussian(guesses),
    }
