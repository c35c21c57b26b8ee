"""The verdict: fails on every finding, passes on none, and never claims more than it knows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from privft.audit.attacks import Claim
from privft.audit.bounds import gaussian_curve, gaussian_epsilon
from privft.audit.canaries import Canary
from privft.audit.control import Control
from privft.audit.selfcheck import Check
from privft.audit.suite import Suite, load_suite
from privft.audit.verdict import AuditResult, run_audit
from privft.errors import AuditFailed
from privft.report.facts import AuditFacts

SUITE, DIGEST = load_suite("quick")
SOUND = Check(check="a check", ok=True, detail="measured")
FAULTY = Check(check="a check", ok=False, detail="measured")
CLAIM = Claim(epsilon=3.0, delta=1e-5)


def control(ok: bool = True) -> Control:
    return Control(
        what="twin",
        canaries=10,
        guesses=10,
        correct=10 if ok else 5,
        ok=ok,
        epsilon_lower=2.0 if ok else 0.0,
        epsilon_lower_needed=1.0,
        kinds={"secret": 2.0 if ok else 0.0},
    )


def planted(seed: int = 0, suite: Suite = SUITE) -> list[Canary]:
    random = np.random.default_rng(seed)
    return [
        Canary(
            kind=spec.kind,
            unit={"unit": f"{spec.kind}:{i}", "records": []},
            included=bool(random.integers(2)),
        )
        for spec in suite.specs("causal-lm")
        for i in range(spec.count)
    ]


def audited(shift: float, *, seed: int = 0, **changed: Any) -> AuditResult:
    """An audit of a made-up model whose loss on an included canary falls by `shift` more."""
    canaries = changed.pop("canaries", None) or planted(seed)
    inside = {canary.unit["unit"] for canary in canaries if canary.included}
    random = np.random.default_rng(seed + 10_000)

    def score(units: Sequence[dict[str, Any]]) -> tuple[np.ndarray[Any, Any], ...]:
        base = np.full(len(units), 5.0)
        fell = np.array([shift * (unit["unit"] in inside) for unit in units])
        return base, base - fell - random.normal(size=len(units))

    given: dict[str, Any] = {
        "task": "causal-lm",
        "canaries": canaries,
        "score": score,
        "claim": CLAIM,
        "control": control(),
        "selfcheck": [SOUND],
        "candidates": [{"unit": f"candidate:{i}", "records": []} for i in range(31)],
    }
    return run_audit(SUITE, DIGEST, **{**given, **changed})


def test_a_model_that_remembers_little_passes_with_the_ceiling_in_words() -> None:
    result = audited(0.5)
    assert result.verdict == "passed"
    assert result.findings == ()
    assert result.words.startswith(
        "no violation found; this audit could have detected up to epsilon 3.2"
    )


def test_a_model_that_remembers_all_fails_with_the_bound_and_the_claim_in_words() -> None:
    result = audited(20.0, claim=Claim(epsilon=1.0, delta=1e-5))
    assert result.verdict == "failed"
    assert set(result.findings) == {"bound-above-claim", "curve-contradicted"}
    assert result.words == "violation: lower bound 3.2 exceeds the claimed 1.0 at 95%"


def test_a_bound_just_above_the_claim_is_printed_with_enough_digits() -> None:
    result = audited(20.0, claim=Claim(epsilon=3.2, delta=1e-5))
    assert result.words == "violation: lower bound 3.208 exceeds the claimed 3.200 at 95%"


def test_a_claim_beyond_the_ceiling_is_said_to_be_out_of_reach() -> None:
    result = audited(20.0, claim=Claim(epsilon=30.0, delta=1e-5))
    assert result.verdict == "passed"
    assert "the claimed 30.0 lies above that" in result.words


def test_a_claim_beyond_the_ceiling_whose_curve_is_within_reach_is_said_to_be_so() -> None:
    claim = Claim(epsilon=gaussian_epsilon(0.95, 1e-5), delta=1e-5, curve=gaussian_curve(0.95))
    assert claim.epsilon > 3.3
    result = audited(0.0, claim=claim)
    assert result.ceiling < claim.epsilon
    assert "only its whole trade-off curve could have been contradicted" in result.words
    assert audited(20.0, claim=claim).findings == ("curve-contradicted",)


def test_guesses_too_good_for_the_run_s_own_curve_fail_without_a_bound_above_epsilon() -> None:
    claim = Claim(epsilon=gaussian_epsilon(0.7, 1e-5), delta=1e-5, curve=gaussian_curve(0.7))
    result = audited(2.5, claim=claim)
    assert result.findings == ("curve-contradicted",)
    assert "trade-off curve" in result.words


@pytest.mark.parametrize(
    ("changed", "finding", "said"),
    [
        ({"control": control(False)}, "control-failed", "proves nothing"),
        ({"selfcheck": [SOUND, FAULTY]}, "selfcheck-failed", "mechanism failed"),
        ({"selfcheck": []}, "selfcheck-failed", "was not held"),
    ],
)
def test_a_missing_or_failed_part_never_turns_into_a_pass(
    changed: dict[str, Any], finding: str, said: str
) -> None:
    result = audited(0.0, **changed)
    assert result.verdict == "failed"
    assert finding in result.findings
    assert said in result.words


def test_no_verdict_says_that_privacy_was_proved() -> None:
    for result in (audited(0.0), audited(20.0), audited(0.0, control=control(False))):
        assert "proved private" not in result.words
        assert " is private" not in result.words
        assert " safe" not in result.words


def test_a_kept_claim_is_called_a_violation_no_more_often_than_the_suite_says() -> None:
    claim = Claim(epsilon=gaussian_epsilon(1.0, 1e-5), delta=1e-5, curve=gaussian_curve(1.0))
    failed = sum(audited(1.0, seed=seed, claim=claim).verdict == "failed" for seed in range(120))
    # 120 audits at 5%: 6 expected at most, 14 is more than three standard deviations above
    assert failed <= 13


def test_a_repeated_audit_has_less_to_spend_and_hence_a_lower_ceiling() -> None:
    first, second, third = (audited(0.0, attempt=attempt) for attempt in (1, 2, 3))
    assert first.ceiling > second.ceiling > third.ceiling
    assert first.tests[0].significance == pytest.approx(5 * second.tests[0].significance)


@pytest.mark.parametrize("all_in", [True, False])
def test_coins_that_are_not_fair_stop_the_audit(all_in: bool) -> None:
    canaries = [Canary(kind=canary.kind, unit=canary.unit, included=all_in) for canary in planted()]
    with pytest.raises(AuditFailed, match="not fair"):
        audited(0.0, canaries=canaries)


def test_coins_that_two_kinds_share_stop_the_audit() -> None:
    canaries = planted()
    coins = [canary.included for canary in canaries if canary.kind == "rare-words"]
    secrets = [canary for canary in canaries if canary.kind == "secret"]
    reused = [
        Canary(kind=canary.kind, unit=canary.unit, included=coin)
        for canary, coin in zip(secrets, coins, strict=False)
    ]
    with pytest.raises(AuditFailed, match="rare-words, secret"):
        audited(0.0, canaries=[*canaries[: len(coins)], *reused])


def test_canaries_of_another_suite_are_refused() -> None:
    with pytest.raises(ValueError, match="expected canaries"):
        audited(0.0, canaries=planted()[:-1])


def test_losses_that_are_not_numbers_stop_the_audit() -> None:
    with pytest.raises(AuditFailed, match="not finite"):
        audited(0.0, score=lambda units: (np.zeros(len(units)), np.full(len(units), np.nan)))


def test_losses_that_are_not_one_for_each_unit_and_model_stop_the_audit() -> None:
    with pytest.raises(ValueError, match="losses of each model"):
        audited(0.0, score=lambda units: (np.zeros(len(units)), np.zeros(len(units) - 1)))


def test_the_facts_are_what_the_signed_report_takes() -> None:
    facts = audited(0.5).facts()
    AuditFacts.model_validate(facts)
    assert len(facts["tests"]) == 6
    assert facts["roc"]["fpr"][0] == 0.0
    assert facts["roc"]["tpr"][-1] == 1.0


def test_everything_public_is_plain_json_and_tells_no_coin() -> None:
    canaries = planted()
    text = json.dumps(audited(0.5, canaries=canaries).to_dict(), allow_nan=False)
    assert not any(canary.unit["unit"] in text for canary in canaries)


def test_extracted_secrets_are_counted_apart_for_those_in_and_those_out() -> None:
    canaries = planted()
    inside = {canary.unit["unit"] for canary in canaries if canary.included}
    asked: list[str] = []

    def extract(units: Sequence[dict[str, Any]]) -> np.ndarray[Any, Any]:
        asked.extend(unit["unit"] for unit in units)
        return np.array([unit["unit"] in inside for unit in units])

    found = audited(0.5, canaries=canaries, extract=extract).extraction
    assert found is not None
    assert all(name.startswith("secret") for name in asked)
    assert found["extracted_of_included"] == found["included"] > 0
    assert found["extracted_of_excluded"] == 0 < found["excluded"]
    assert audited(0.5).extraction is None, "what was not asked is not reported as nothing found"


def test_secrets_that_were_remembered_are_exposed_up_to_the_ceiling_of_the_candidates() -> None:
    result = audited(20.0)
    assert result.exposure is not None
    assert set(result.exposure["ranks_included"]) == {1}
    found = result.to_dict()["exposure_bits"]
    assert found["included"]["bits"] == found["included"]["ceiling"] == 5.0
    assert found["excluded"]["bits"] < 2.5
    assert found["included"]["secrets"] + found["excluded"]["secrets"] == 44
