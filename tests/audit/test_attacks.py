"""Attacks: guesses counted right, claims kept are not contradicted, claims broken are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from privft.audit.attacks import (
    Claim,
    CurveAt,
    attack_canaries,
    auc,
    claim_of,
    correct_guesses,
    membership_attack,
    roc,
    scores_from_losses,
    secret_ranks,
)
from privft.audit.bounds import gaussian_curve, gaussian_epsilon
from privft.audit.rates import exposure_of_ranks
from privft.audit.suite import MembershipSpec
from privft.budget.accounting import cost
from privft.budget.mechanism import Event
from privft.errors import AuditFailed

CLAIM = Claim(epsilon=1.0, delta=1e-5)
SPEC = MembershipSpec(units=200, bootstrap=200, false_positive_rates=[0.01, 0.001])


def coins(random: np.random.Generator, count: int) -> NDArray[np.bool_]:
    return random.integers(2, size=count).astype(bool)


def test_guesses_are_half_in_from_the_top_and_half_out_from_the_bottom() -> None:
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0])
    included = np.array([True, False, True, True, False, True])
    assert correct_guesses(scores, included, 2) == 1  # top right, bottom wrong
    assert correct_guesses(scores, included, 4) == 2
    assert correct_guesses(scores, included, 6) == 3
    with pytest.raises(ValueError, match="even number"):
        correct_guesses(scores, included, 3)


def test_ties_are_not_broken_in_favour_of_the_attack() -> None:
    included = np.array([True] * 10 + [False] * 10)
    right = correct_guesses(np.zeros(20), included, 20)
    right_reversed = correct_guesses(np.zeros(20), ~included, 20)
    assert right + right_reversed == 20


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_stop_the_audit(bad: float) -> None:
    with pytest.raises(AuditFailed, match="1 of 3"):
        scores_from_losses(np.array([1.0, 2.0, 3.0]), np.array([1.0, bad, 3.0]), "loss-drop")


def test_a_loss_that_fell_is_a_high_score() -> None:
    base, trained = np.array([3.0, 9.0]), np.array([1.0, 8.5])
    assert scores_from_losses(base, trained, "loss-drop").tolist() == [2.0, 0.5]
    assert scores_from_losses(base, trained, "loss").tolist() == [-1.0, -8.5]


def test_a_perfect_attack_reaches_the_ceiling_and_contradicts_the_claim() -> None:
    included = coins(np.random.default_rng(1), 200)
    tests = attack_canaries(
        "any",
        included.astype(float),
        included,
        guesses=[120],
        claim=CLAIM,
        significance=0.01,
    )
    assert [test.correct for test in tests] == [120, 120]
    assert all(test.contradicts for test in tests)
    assert all(test.epsilon_lower == test.ceiling for test in tests)


def test_a_claim_that_is_kept_is_contradicted_no_more_often_than_stated() -> None:
    # Independent Gaussian canaries of shift mu: the claimed curve is the true one.
    random, mu, significance, runs = np.random.default_rng(2), 0.8, 0.05, 300
    claim = Claim(epsilon=gaussian_epsilon(mu, 1e-5), delta=1e-5, curve=gaussian_curve(mu))
    contradicted = np.zeros(2)
    for _ in range(runs):
        included = coins(random, 100)
        scores = random.normal(size=100) + mu * included
        tests = attack_canaries(
            "any", scores, included, guesses=[40], claim=claim, significance=significance
        )
        contradicted += [test.contradicts for test in tests]
    # 300 runs at 5%: 15 expected, 27 is three standard deviations above
    assert contradicted.max() <= 27


def test_the_run_s_own_curve_finds_what_epsilon_alone_misses() -> None:
    # The truth is mu 1.5; the claim is mu 0.75.  The (epsilon, delta) bound is too blunt for it.
    random = np.random.default_rng(3)
    included = coins(random, 1000)
    scores = random.normal(size=1000) + 1.5 * included
    claim = Claim(epsilon=gaussian_epsilon(0.75, 1e-5), delta=1e-5, curve=gaussian_curve(0.75))
    plain, curve = attack_canaries(
        "any", scores, included, guesses=[100], claim=claim, significance=0.01
    )
    assert not plain.contradicts
    assert curve.contradicts


def test_relatives_of_the_claimed_curve_give_a_bound_in_epsilon() -> None:
    random = np.random.default_rng(4)
    included = coins(random, 1000)
    scores = random.normal(size=1000) + 1.0 * included
    relatives = tuple(
        CurveAt(epsilon=gaussian_epsilon(mu, 1e-5), curve=gaussian_curve(mu))
        for mu in (0.2, 0.4, 0.6, 0.8, 1.5, 3.0)
    )
    claim = Claim(
        epsilon=gaussian_epsilon(1.0, 1e-5),
        delta=1e-5,
        curve=gaussian_curve(1.0),
        relatives=relatives,
    )
    _, test = attack_canaries(
        "any", scores, included, guesses=[100], claim=claim, significance=0.01
    )
    assert not test.contradicts
    assert gaussian_epsilon(0.4, 1e-5) <= test.epsilon_lower < claim.epsilon
    assert test.ceiling >= claim.epsilon


def test_the_claim_of_a_run_tests_the_run_s_own_curve_and_finds_half_the_noise() -> None:
    # A subsampled run; its canaries leak as at full batch with a quarter of the noise.
    events = [Event(noise_multiplier=1.0, sampling_probability=0.05, count=50)]
    epsilon = cost(events, 1e-5).epsilon
    claim = claim_of(events, epsilon=epsilon, delta=1e-5)
    assert len({one.epsilon for one in claim.family()}) == 6
    random = np.random.default_rng(11)
    included = coins(random, 400)
    kept, broken = (
        attack_canaries(
            "any",
            random.normal(size=400) + mu * included,
            included,
            guesses=[80],
            claim=claim,
            significance=0.01,
        )[1]
        for mu in (0.2, 3.0)
    )
    assert not kept.contradicts
    assert broken.contradicts
    assert broken.epsilon_lower >= epsilon
    assert broken.ceiling >= epsilon


def test_roc_and_auc_are_the_definition_with_ties_in_one_step() -> None:
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    included = np.array([True, True, False, False])
    assert roc(scores, included) == ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    random = np.random.default_rng(5)
    scores, included = random.integers(0, 9, 60).astype(float), coins(random, 60)
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a in scores[included]
        for b in scores[~included]
    ]
    assert auc(scores, included) == pytest.approx(np.mean(pairs))


def test_planted_secrets_that_were_learnt_are_exposed_and_others_are_not() -> None:
    random = np.random.default_rng(6)
    included = coins(random, 100)
    scores = random.normal(size=100) + 8 * included
    ranks = secret_ranks(scores, included, random.normal(size=63))
    assert len(ranks["ranks_included"]) == included.sum()
    inside, outside = (
        exposure_of_ranks(ranks[f"ranks_{which}"], 63) for which in ("included", "excluded")
    )
    assert inside.ceiling == 6.0
    assert inside.bits > 5.9
    assert outside.bits == pytest.approx(outside.chance, abs=0.5)


def membership(shift: float, count: int, seed: int = 7) -> dict[str, object]:
    random = np.random.default_rng(seed)
    base = random.normal(4, 1, 2 * count)
    trained = base - 0.5 + random.normal(0, 0.2, 2 * count)
    trained[:count] -= shift
    found = membership_attack(
        member_base=base[:count],
        member_trained=trained[:count],
        held_out_base=base[count:],
        held_out_trained=trained[count:],
        spec=SPEC,
    ).private_dict()
    return {attack["attack"]: attack for attack in found["attacks"]}


def test_a_model_that_forgot_who_was_in_it_gives_chance_within_its_interval() -> None:
    for attack in membership(0.0, 400).values():
        low, high = attack["auc_interval"]  # type: ignore[index]
        assert low < 0.5 < high
        assert high - low < 0.12


def test_the_reference_takes_the_difficulty_of_a_text_out() -> None:
    found = membership(0.4, 400)
    assert found["loss-drop"]["auc"] > 0.88  # type: ignore[index]
    assert found["loss"]["auc"] < 0.7  # type: ignore[index]
    assert found["rmia"]["auc"] > found["loss"]["auc"]  # type: ignore[index]


def test_a_rate_that_the_sample_cannot_resolve_is_not_reported_as_a_number() -> None:
    at_one_percent, at_one_in_a_thousand = membership(0.4, 800)["loss-drop"]["tpr_at_fpr"][::-1]  # type: ignore[index]
    assert at_one_percent["fpr"] == 0.01
    low, high = at_one_percent["interval"]
    assert low <= at_one_percent["tpr"] <= high
    assert at_one_in_a_thousand == {"fpr": 0.001, "words": "not measurable with 800"}


def test_results_on_real_units_stay_out_of_print_and_are_marked_private() -> None:
    random = np.random.default_rng(8)
    found = membership_attack(
        member_base=random.normal(size=20),
        member_trained=random.normal(size=20),
        held_out_base=random.normal(size=20),
        held_out_trained=random.normal(size=20),
        spec=SPEC,
    )
    assert "20" not in repr(found)
    assert found.private_dict()["private"] is True
    json.dumps(found.private_dict(), allow_nan=False)
