"""The attack on the mechanism itself: gradient canaries through the very same training loop.

Attacks on a large model are blunt; they would miss noise at half its scale.  Here the loop that
trains real models (`training.loop.train`, with its sampler, its clipping, its noise) trains a
probe whose gradients are known exactly, on generated data, and the attacker sees everything.

The probe is a linear layer of one weight a canary.  A canary's gradient lies on its own weight
alone (a Dirac canary, Nasr et al. 2023, arXiv 2302.07956) and is larger than the clip norm C, so
each of T full-batch steps adds exactly C to that weight if the canary is in, and noise of
standard deviation sigma*C in any case.  The final weight tells in from out by a shift of
mu = sqrt(T)/sigma standard deviations, which is all that the Gaussian mechanism gives away.
Canaries have disjoint weights, so every weight of every run is one independent sample.  Beside
them take part: units of several records, units that dwarf the clip norm, one with a gradient that
is not a number; and a second layer that receives noise only (but for `influence`).

    shift           the lower bound on mu reaches its share of the theory (the attack sees the
                    mechanism) and does not exceed the theory (the mechanism keeps its claim)
    noise           the spread of pure noise is sigma*C*sqrt(T), neither less nor more
    shape           pure noise of single steps is normal, and no value comes twice: noise drawn in
                    16 bits has the right spread and hides little
    independence    noise on two parameters of one shape is uncorrelated, and so is that of two
                    runs with different secrets
    empty           steps without any unit add noise like all others
    sampling        batch sizes vary as independent coins make them vary
    influence       the same run with and without one unit, under the same secret so that noise
                    cancels: the sum moves by at most C, whatever the unit, clipped as the run clips
    own rate        one run at the run's own sampling probability, noise and steps: the one-run
                    bounds find no violation of the claim
    adaptive        only where the run clips so: the noise on sum and count has the two scales that
                    make up the run's noise multiplier, and one unit moves both by at most what it
                    may, by the same runs with and without it

Each check is held at the suite's `selfcheck.significance`, far below a run's own, because a check
that cried wolf in one audit of twenty would soon be ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats

from privft.audit import bounds
from privft.audit.attacks import Claim, correct_guesses
from privft.audit.probe import (
    BACKGROUND,
    CLIP_NORM,
    OPTIMISATION,
    SCALES,
    Observed,
    background,
    observe,
    probe_mechanism,
    probe_unit,
)
from privft.audit.rates import gaussian_mu_interval, normal_spread, rates_from_scores
from privft.audit.suite import SelfcheckSpec
from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.training.adaptive import joint_influence
from privft.training.clipping import COUNT

Array = NDArray[np.float64]

_INFLUENCE = "influence of one unit"
_FEWEST_SHAPES = 16
_MOST_REPEATED = 0.01
_MOST_STEPS = 400
_OWN_RATE_CANARIES = 400
_OWN_RATE_GUESSES = 80


@dataclass(frozen=True, kw_only=True)
class Check:
    """One measured property of the mechanism; `detail` says what was measured and how surely."""

    check: str
    ok: bool
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """The fields that a report shows."""
        return {"check": self.check, "ok": self.ok, "detail": self.detail}


def check_mechanism(
    spec: SelfcheckSpec, secret: bytes, *, mechanism: Mechanism, claim: Claim
) -> list[Check]:
    """All checks, in the order of the module's docstring; one alone where no more can be said.

    secret: 32 fresh bytes; the checks touch no data.
    mechanism, claim: the run's own, for the check at its own sampling probability.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model only loses time to more
    try:
        return _checks(spec, secret, mechanism, claim)
    finally:
        torch.set_num_threads(threads)


def _checks(spec: SelfcheckSpec, secret: bytes, mechanism: Mechanism, claim: Claim) -> list[Check]:
    full = probe_mechanism(spec.noise_multiplier, 1.0, spec.steps, mechanism.noise)
    coins = KeyedStreams(secret).stream("selfcheck.coins")
    included = [coins.coins(spec.canaries) for _ in range(spec.runs)]
    seen = [
        observe(full, inside, _streams(secret, f"run:{i}"), units=background())
        for i, inside in enumerate(included)
    ]
    observed = np.concatenate([np.append(one.signal, one.quiet) for one in seen])
    if not np.all(np.isfinite(observed)):
        bad = int(np.sum(~np.isfinite(observed)))
        detail = f"{bad} of {len(observed)} trained weights are not finite"
        return [Check(check=_INFLUENCE, ok=False, detail=detail)]
    return [
        _shift(spec, full, included, seen),
        _noise(spec, full, seen),
        _shape(spec, mechanism, secret),
        _independence(spec, seen),
        _empty(spec, full, secret),
        _sampling(spec, mechanism, secret),
        _influence(spec, mechanism, secret),
        _own_rate(spec, secret, mechanism, claim),
        *([_adaptive(spec, mechanism, secret)] if mechanism.clipping == "adaptive" else []),
    ]


def _streams(secret: bytes, label: str) -> KeyedStreams:
    """Streams of one tiny run: a secret of its own, derived from the check's."""
    return KeyedStreams(KeyedStreams(secret).stream("selfcheck.run", label=label).bytes(32))


def _shift(
    spec: SelfcheckSpec,
    mechanism: Mechanism,
    included: Sequence[NDArray[np.bool_]],
    seen: Sequence[Observed],
) -> Check:
    scores = np.concatenate([one.signal[BACKGROUND:] for one in seen])
    inside = np.concatenate(included)
    theory = math.sqrt(mechanism.steps) / mechanism.noise_multiplier
    sides, half = (scores[inside], scores[~inside]), spec.significance / 2
    interval = gaussian_mu_interval(*sides, significance=spec.significance)
    # Two bounds can contradict the claim, so each gets half.
    strict = gaussian_mu_interval(*sides, significance=half)
    rates = rates_from_scores(*sides, significance=half)
    seen_enough = interval.lower >= spec.share_of_theory * theory
    keeps_claim = max(strict.lower, rates.mu) <= theory
    return Check(
        check="white-box attack on the mechanism at full batch",
        ok=seen_enough and keeps_claim,
        detail=(
            f"mu is {theory:.3f} in theory; lower bound {interval.lower:.3f}, estimate "
            f"{interval.estimate:.3f}, from {len(scores)} scores assumed normal with one spread; "
            f"without that assumption {rates.mu:.3f} ({rates.correction}; a perfect attack: "
            f"{rates.mu_ceiling:.3f}); "
            f"significance {spec.significance:g}"
        ),
    )


def _noise(spec: SelfcheckSpec, mechanism: Mechanism, seen: Sequence[Observed]) -> Check:
    expected = mechanism.noise_multiplier * mechanism.clip_norm * math.sqrt(mechanism.steps)
    values = np.concatenate([one.quiet for one in seen])
    ok, detail = normal_spread(values, expected, spec.significance)
    return Check(check="scale of the noise", ok=ok, detail=f"spread {detail}")


def _shape(spec: SelfcheckSpec, run: Mechanism, secret: bytes) -> Check:
    """A test of Kolmogorov and Smirnov on single draws, and whether they are fine enough to differ.

    64-bit draws of this number do not repeat; of a thousand in 16 bits every other one does.
    """
    one_step = probe_mechanism(spec.noise_multiplier, 1.0, 1, run.noise)
    nobody = np.zeros(spec.canaries, dtype=np.bool_)
    seen = [
        observe(one_step, nobody, _streams(secret, f"shape:{i}"), units=())
        for i in range(max(_FEWEST_SHAPES, spec.runs))
    ]
    values = np.concatenate([np.concatenate([one.signal, one.quiet]) for one in seen])
    found = stats.kstest(values / (spec.noise_multiplier * CLIP_NORM), "norm")
    repeated = len(values) - len(np.unique(values))
    return Check(
        check="shape of the noise",
        ok=bool(found.pvalue >= spec.significance) and repeated <= _MOST_REPEATED * len(values),
        detail=(
            f"{len(values)} draws lie within {found.statistic:.4f} of the normal distribution "
            f"(a chance of {found.pvalue:.2g}, {spec.significance:g} allowed); {repeated} repeat "
            "another to the last bit"
        ),
    )


def _independence(spec: SelfcheckSpec, seen: Sequence[Observed]) -> Check:
    """Correlations of pure noise: background weights have signal, so canaries' alone are used."""
    quiet = np.stack([one.quiet for one in seen])
    between_runs = float(np.mean(quiet[:-1] * quiet[1:]) / np.mean(quiet**2))
    centred = np.concatenate([one.signal[BACKGROUND:] for one in seen])
    centred = centred - centred.mean()
    beside = quiet[:, BACKGROUND:].ravel()
    between_layers = float(
        np.mean(centred * beside) / math.sqrt(np.mean(centred**2) * np.mean(beside**2))
    )
    allowed = float(special.ndtri(1 - spec.significance / 4))
    largest = max(
        abs(between_runs) * math.sqrt(quiet[1:].size), abs(between_layers) * math.sqrt(beside.size)
    )
    return Check(
        check="independence of the noise",
        ok=largest <= allowed,
        detail=(
            f"correlation {between_layers:+.4f} between two parameters, {between_runs:+.4f} "
            f"between runs: {largest:.2f} standard errors, {allowed:.2f} allowed"
        ),
    )


def _empty(spec: SelfcheckSpec, mechanism: Mechanism, secret: bytes) -> Check:
    nobody = np.zeros(spec.canaries, dtype=np.bool_)
    seen = [
        observe(mechanism, nobody, _streams(secret, f"empty:{i}"), units=())
        for i in range(max(4, spec.runs // 2))
    ]
    expected = mechanism.noise_multiplier * mechanism.clip_norm * math.sqrt(mechanism.steps)
    values = np.concatenate([np.concatenate([one.signal, one.quiet]) for one in seen])
    ok, detail = normal_spread(values, expected, spec.significance)
    return Check(check="steps on an empty sample add noise", ok=ok, detail=f"spread {detail}")


def _sampling(spec: SelfcheckSpec, run: Mechanism, secret: bytes) -> Check:
    """Sum and spread of batch sizes over many steps, against those of independent coins: of the
    canaries alone and of real units alone, because each has coins of its own."""
    steps, probability, count = 160, 0.25, 64
    mechanism = probe_mechanism(spec.noise_multiplier, probability, steps, run.noise)
    everyone = np.ones(count, dtype=np.bool_)
    units = [probe_unit(str(i), BACKGROUND + i, scale=1, records=1 + i % 2) for i in range(count)]
    seen = [
        observe(mechanism, included, _streams(secret, f"sampling:{who}"), units=there)
        for who, included, there in (("canaries", everyone, []), ("units", ~everyone, units))
    ]
    spread = math.sqrt(count * probability * (1 - probability))
    sizes = [(np.array(one.batch_sizes) - count * probability) / spread for one in seen]
    share = spec.significance / 3  # of each of the three tests here
    spread_ok, detail = normal_spread(np.concatenate(sizes), 1.0, share)
    drift = max((float(one.sum()) / math.sqrt(steps) for one in sizes), key=abs)
    allowed = float(special.ndtri(1 - share / 4))
    # What a unit's weight gained counts its own coins; equal gains mean dealt-out batches.
    gained = np.concatenate([one.signal[BACKGROUND:] for one in seen]) / CLIP_NORM
    gained = (gained - steps * probability) / math.sqrt(
        steps * (probability * (1 - probability) + spec.noise_multiplier**2)
    )
    own_ok, own = normal_spread(gained, 1.0, share)
    return Check(
        check="sampling by independent coins",
        ok=spread_ok and own_ok and abs(drift) <= allowed and {*map(len, sizes)} == {steps},
        detail=(
            f"canaries and units: spread of batch sizes {detail}; of a unit's own count {own}; "
            f"drift {drift:+.2f} standard errors, {allowed:.2f} allowed"
        ),
    )


def _influence(spec: SelfcheckSpec, run: Mechanism, secret: bytes) -> Check:
    """Neighbouring runs under one secret: what is left of the difference is one unit.

    Adaptive clipping begins as flat clipping does; what it adds is looked at in `_adaptive`.
    """
    clipping = "flat" if run.clipping == "adaptive" else run.clipping
    one_step = probe_mechanism(spec.noise_multiplier, 1.0, 1, run.noise, clipping=clipping)
    width = np.zeros(4, dtype=np.bool_)
    streams = _streams(secret, "influence")
    without = observe(one_step, width, streams, units=background())
    largest, sorts = 0.0, list(product(range(len(SCALES)), (1, 2, 4), (False, True)))
    for scale, records, in_both in sorts:
        more = probe_unit("one more", 0, scale=scale, records=records, in_both=in_both)
        with_it = observe(one_step, width, streams, units=[*background(), more])
        moved = np.concatenate([with_it.signal - without.signal, with_it.quiet - without.quiet])
        size = float(np.linalg.norm(moved))
        largest = max(largest, size if math.isfinite(size) else math.inf)
    ratio = largest / one_step.clip_norm
    return Check(
        check=_INFLUENCE,
        ok=0.5 <= ratio <= 1 + 1e-9,
        detail=(
            f"adding one of {len(sorts)} units moved the sum by at most {ratio:.9f} clip norms "
            f"({clipping} clipping), with one to four records, gradients in one layer and in both, "
            "of up to a million clip norms, and NaN"
        ),
    )


def _adaptive(spec: SelfcheckSpec, run: Mechanism, secret: bytes) -> Check:
    """The joint event of sum and count: both kinds of noise, and one unit's part in both.

    On an empty sample the clip norm moves by the count's noise alone, and by exactly so much.
    """
    assert run.count_noise is not None
    mechanism = probe_mechanism(
        run.noise_multiplier, 1.0, 160, run.noise, clipping="adaptive", count_noise=run.count_noise
    )
    nobody = np.zeros(spec.canaries, dtype=np.bool_)
    empty = observe(mechanism, nobody, _streams(secret, "adaptive"), units=())
    counts = np.array([_count(mechanism, *pair) for pair in pairwise(empty.clip_norms)])
    counts_ok, counts_detail = normal_spread(counts, run.count_noise, spec.significance / 2)

    first = dataclasses.replace(mechanism, steps=1)
    sums = np.concatenate(
        [
            np.concatenate([seen.signal, seen.quiet])
            for seen in (
                observe(first, nobody, _streams(secret, f"adaptive:{i}"), units=())
                for i in range(max(4, spec.runs // 2))
            )
        ]
    )
    scale = first.gradient_noise_multiplier * first.clip_norm
    sums_ok, sums_detail = normal_spread(sums, scale, spec.significance / 2)

    # A hair above the smallest of `SCALES`: units just below and far above the clip norm.
    first = dataclasses.replace(first, clip_norm=SCALES[0] * (1 + 2.0**-16))
    streams = _streams(secret, "adaptive influence")
    without = observe(first, nobody[:4], streams, units=background())
    largest, counted = 0.0, 0.0
    for scale_number in range(len(SCALES)):
        more = probe_unit("one more", 0, scale=scale_number, records=1)
        with_it = observe(first, nobody[:4], streams, units=[*background(), more])
        moved = np.concatenate([with_it.signal - without.signal, with_it.quiet - without.quiet])
        change = {
            "sums": torch.from_numpy(moved),
            COUNT: torch.tensor(
                2 * (_count(first, *with_it.clip_norms) - _count(first, *without.clip_norms))
            ),
        }
        largest = max(largest, joint_influence(change, first, first.clip_norm))
        counted = max(counted, float(change[COUNT].abs()) / 2)
    return Check(
        check="adaptive clipping: one event of sum and count",
        ok=counts_ok and sums_ok and 0.5 <= largest <= 1 + 1e-9,
        detail=(
            f"spread of the noise on the count {counts_detail}, on the sum {sums_detail}; one of "
            f"{len(SCALES)} units moved the count by at most {counted:.6f}, and both together by "
            f"at most {largest:.9f} of what the noise multiplier counts"
        ),
    )


def _count(mechanism: Mechanism, before: float, after: float) -> float:
    """The noisy centred count that moved the clip norm so."""
    moved = math.log(after / before) / -OPTIMISATION.clip_learning_rate
    share = moved + OPTIMISATION.clip_quantile
    return (share - 0.5) * mechanism.expected_batch_size


def _own_rate(spec: SelfcheckSpec, secret: bytes, mechanism: Mechanism, claim: Claim) -> Check:
    """Fewer steps than the run's only make the attack weaker, so the claim must hold for them."""
    steps = min(mechanism.steps, _MOST_STEPS)
    tiny = probe_mechanism(
        mechanism.noise_multiplier, mechanism.sampling_probability, steps, mechanism.noise
    )
    streams = _streams(secret, "own rate")
    included = KeyedStreams(secret).stream("selfcheck.own-rate").coins(_OWN_RATE_CANARIES)
    seen = observe(tiny, included, streams, units=background())
    correct = correct_guesses(seen.signal[BACKGROUND:], included, _OWN_RATE_GUESSES)
    rejected = bounds.fdp_rejects(
        claim.own_curve(),
        canaries=_OWN_RATE_CANARIES,
        guesses=_OWN_RATE_GUESSES,
        correct=correct,
        significance=spec.significance,
    )
    lower, ceiling = (
        bounds.fdp_gaussian_epsilon(
            canaries=_OWN_RATE_CANARIES,
            guesses=_OWN_RATE_GUESSES,
            correct=right,
            delta=claim.delta,
            significance=spec.significance,
        )
        for right in (correct, _OWN_RATE_GUESSES)
    )
    return Check(
        check="white-box attack at the run's own sampling probability",
        ok=not rejected,
        detail=(
            f"one run of {steps} steps with {_OWN_RATE_CANARIES} gradient canaries: {correct} of "
            f"{_OWN_RATE_GUESSES} guesses right; epsilon at least {lower:.2f} by the f-DP bound on "
            f"Gaussian curves (a perfect attack: {ceiling:.2f}), claimed {claim.epsilon:.2f}; the "
            f"claimed curve is {'contradicted' if rejected else 'not contradicted'} at "
            f"significance {spec.significance:g}"
        ),
    )
