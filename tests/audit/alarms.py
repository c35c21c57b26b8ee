"""How often each bound accuses a mechanism that keeps its promise, counted on made-up runs.

Every mechanism here gives away all that its promise allows, so a bound that accused it more often
than it states would be caught, and one that hardly ever did would be blunt:

    randomised response        the worst (epsilon, 0)-private mechanism there is; with a chance of
                               delta for each coin that it is told outright, (epsilon, delta)
    Gaussian canaries          each on a coordinate of its own, as the mechanism's own attack reads
                               them: the trade-off curve of that mu, and no less

`evidence` puts the rows on its page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from privft.audit.attacks import Claim
from privft.audit.bounds import fdp_rejects, gaussian_curve, gaussian_epsilon, one_run_epsilon
from privft.audit.rates import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    gaussian_mu_interval,
    rates_from_scores,
)
from tests.audit.test_verdict import audited

SIGNIFICANCE = 0.05
MU = 1.0
Random = np.random.Generator


def false_alarms() -> list[dict[str, Any]]:
    """A row for each bound; fresh random numbers each time."""
    random = np.random.default_rng()
    return [
        _row("one-run (epsilon, delta)", "randomised response", _one_run(random, delta=0.0)),
        _row(
            "one-run (epsilon, delta)",
            "randomised response that tells one coin in a thousand",
            _one_run(random, delta=1e-3),
        ),
        _row("one-run f-DP", "Gaussian canaries", _f_dp(random)),
        _row("error rates, Bonferroni over ranks", "Gaussian scores", _rates(random, "bonferroni")),
        _row("error rates, split", "Gaussian scores", _rates(random, "split")),
        _row("mu of normal scores, lower end", "Gaussian scores", _mu(random)),
        _row("whole first audit with quick", "Gaussian canaries", _audits(random)),
    ]


def _row(bound: str, mechanism: str, accusations: Iterable[bool]) -> dict[str, Any]:
    accused = [bool(one) for one in accusations]
    runs, count = len(accused), sum(accused)
    low, high = (f(count, runs, 0.025) for f in (clopper_pearson_lower, clopper_pearson_upper))
    return {
        "bound": bound,
        "mechanism": mechanism,
        "runs": runs,
        "accused": count,
        "interval": [low, high],
        "stated": SIGNIFICANCE,
        # at 99.9%, so that an exact bound does not fail its evidence one time in forty
        "ok": clopper_pearson_lower(count, runs, 0.001) <= SIGNIFICANCE,
    }


def _each(right: NDArray[np.int64], accuses: Callable[[int], bool]) -> list[bool]:
    """One answer a run, worked out once for each number of right guesses."""
    answers = {int(v): accuses(int(v)) for v in np.unique(right)}
    return [answers[int(v)] for v in right]


def _one_run(random: Random, *, delta: float) -> list[bool]:
    guesses, epsilon = 100, 1.0
    right = random.binomial(guesses, delta + (1 - delta) * special.expit(epsilon), 20_000)

    def accuses(correct: int) -> bool:
        bound = one_run_epsilon(
            canaries=guesses,
            guesses=guesses,
            correct=correct,
            delta=delta,
            significance=SIGNIFICANCE,
        )
        return bound > epsilon

    return _each(right, accuses)


def _f_dp(random: Random) -> list[bool]:
    canaries, guesses, runs = 300, 60, 20_000
    included = random.integers(2, size=(runs, canaries)).astype(bool)
    order = np.argsort(random.normal(size=(runs, canaries)) + MU * included, axis=1)
    sorted_coins = np.take_along_axis(included, order, axis=1)
    half = guesses // 2
    right = sorted_coins[:, -half:].sum(axis=1) + (~sorted_coins[:, :half]).sum(axis=1)
    curve = gaussian_curve(MU)
    return _each(
        right,
        lambda correct: fdp_rejects(
            curve, canaries=canaries, guesses=guesses, correct=correct, significance=SIGNIFICANCE
        ),
    )


def _rates(random: Random, correction: Any) -> list[bool]:
    return [
        rates_from_scores(
            random.normal(MU, 1, 200),
            random.normal(0, 1, 200),
            significance=SIGNIFICANCE,
            correction=correction,
        ).mu
        > MU
        for _ in range(2000)
    ]


def _mu(random: Random) -> list[bool]:
    return [
        gaussian_mu_interval(
            random.normal(MU, 1, 30), random.normal(0, 1, 40), significance=SIGNIFICANCE
        ).lower
        > MU
        for _ in range(2000)
    ]


def _audits(random: Random) -> list[bool]:
    claim = Claim(epsilon=gaussian_epsilon(MU, 1e-5), delta=1e-5, curve=gaussian_curve(MU))
    seeds = random.integers(1 << 40, size=400).tolist()
    return [audited(MU, seed=seed, claim=claim).verdict == "failed" for seed in seeds]
