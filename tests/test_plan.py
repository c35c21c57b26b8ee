"""A plan's file has one form for one content; whatever else is in it is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privft.config import RunConfig, parse_config
from privft.errors import ConfigError, PlanError
from privft.plan import ModelFacts, Plan, approval_message, parse_plan, stale_reasons
from privft.policy import load_policy
from privft.signing import canonical_json, sha256_hex
from privft.stages.affording import mechanism_of
from tests.budget.samples import LINEAGE, mechanism, reservation_body

CONFIG = parse_config(
    """
task: causal-lm
dataset: notes
model: {name_or_path: llama}
max_length: 64
lora: {r: 4}
privacy:
  unit: subject
  declared_units: 3200
  noise_multiplier: 1.1
  expected_batch_size: 96
  max_steps: 40
  max_records_per_unit: 4
"""
)
POLICY = load_policy("default")
COST = reservation_body()["epsilon"]


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "created": "2026-01-01T00:00:00Z",
        "operator": "ada",
        "dataset": "notes",
        "lineage": LINEAGE,
        "manifest_root": "01" * 32,
        "mechanism": mechanism().to_dict(),
        "delta": 1e-4,
        "max_records_per_unit": 4,
        "cost": COST,
        "substitute": COST,
        "config": CONFIG.to_dict(),
        "config_sha256": CONFIG.digest,
        "policy": POLICY.to_dict(),
        "policy_sha256": POLICY.digest,
        "model": ModelFacts(name="llama", weights_sha256="02" * 32, tokenizer_sha256="03" * 32),
        "suite": "quick",
        "suite_sha256": "04" * 32,
        "budget_sha256": "05" * 32,
        "checkpoint": "a signed note",
    }
    return Plan(**(values | changes))


def test_a_plan_comes_back_with_its_digest() -> None:
    made = plan()
    for end in (b"", b"\n"):
        again = parse_plan(made.to_bytes() + end)
        assert again == made
        assert again.digest == made.digest == sha256_hex(made.to_bytes())


def test_every_field_is_in_the_digest() -> None:
    fields = {
        "created": "2027-01-01T00:00:00Z",
        "operator": "bob",
        "dataset": "other",
        "lineage": "f" * 32,
        "manifest_root": "f1" * 32,
        "mechanism": mechanism(steps=41).to_dict(),
        "delta": 2e-4,
        "max_records_per_unit": 5,
        "cost": {**COST, "epsilon_pld": 1.6},
        "substitute": {**COST, "epsilon_pld": 1.6},
        "config": {**CONFIG.to_dict(), "max_length": 32},
        "config_sha256": "f2" * 32,
        "policy": load_policy("research").to_dict(),
        "policy_sha256": "f3" * 32,
        "model": ModelFacts(name="llama", weights_sha256="f4" * 32, tokenizer_sha256="03" * 32),
        "suite": "strict",
        "suite_sha256": "f5" * 32,
        "budget_sha256": "f6" * 32,
        "checkpoint": "another",
    }
    assert set(fields) == set(Plan.model_fields) - {"format"}
    digests = {plan(**{name: value}).digest for name, value in fields.items()}
    assert len(digests | {plan().digest}) == len(fields) + 1


def test_the_charge_is_that_of_the_mechanism() -> None:
    assert plan().the_mechanism() == mechanism()
    assert plan().events() == (mechanism().event(),)


def test_the_config_must_have_the_digest_that_is_stated() -> None:
    assert plan().the_config() == CONFIG
    with pytest.raises(PlanError, match="does not have the digest"):
        plan(config={**CONFIG.to_dict(), "max_length": 32}).the_config()


def body_of(**changes: Any) -> dict[str, Any]:
    return {**plan().model_dump(mode="json"), **changes}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (body_of(format="privft-plan-v2"), "format"),
        (body_of(more=1), "more: Extra inputs"),
        (body_of(delta="0.1"), "delta"),
        (body_of(delta=1.0), "delta"),
        (body_of(manifest_root="AB" * 32), "manifest_root"),
        (body_of(max_records_per_unit=0), "max_records_per_unit"),
        (body_of(model={"name": "llama"}), "model.weights_sha256"),
        ([], "whole"),
        ("plan", "whole"),
        ({}, "created"),
    ],
)
def test_what_is_no_plan_is_named_by_the_field_at_fault(body: Any, words: str) -> None:
    with pytest.raises(PlanError, match="this is no plan") as refusal:
        parse_plan(canonical_json(body))
    assert words in refusal.value.message


def test_another_spelling_of_the_same_plan_is_refused() -> None:
    text = plan().to_bytes()
    for other in (
        b" " + text,
        text + b"\n\n",
        json.dumps(json.loads(text)).encode(),
        text.replace(b'"delta":0.0001', b'"delta":1e-4'),
        text.replace(b'"operator":"ada"', b'"operator":"eve","operator":"ada"'),
    ):
        assert other != text
        with pytest.raises(PlanError, match="this plan was changed"):
            parse_plan(other)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_plan_error(data: bytes) -> None:
    with pytest.raises(PlanError):
        parse_plan(data)


@given(
    place=st.sampled_from(sorted(Plan.model_fields)),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    ),
)
def test_any_value_in_any_field_is_a_plan_or_a_plan_error(place: str, value: Any) -> None:
    data = canonical_json(body_of(**{place: value}))
    try:
        found = parse_plan(data)
    except PlanError:
        return
    assert found.to_bytes() == data


def test_approvals_sign_the_digest_under_a_name_of_their_own() -> None:
    assert approval_message("ab") == b"privft-plan-approval-v1\nab\n"


def test_each_reason_to_be_stale_is_named() -> None:
    fresh = {
        "manifest_root": "01" * 32,
        "policy_sha256": POLICY.digest,
        "budget_sha256": "05" * 32,
        "suite_sha256": "04" * 32,
    }
    assert stale_reasons(plan(), **fresh) == []
    words = {
        "manifest_root": "the data",
        "policy_sha256": "the policy",
        "budget_sha256": "the budget",
        "suite_sha256": "the audit suite",
    }
    for name, word in words.items():
        (reason,) = stale_reasons(plan(), **{**fresh, name: "ff" * 32})
        assert reason.startswith(word)
    assert len(stale_reasons(plan(), **dict.fromkeys(fresh, "ff" * 32))) == 4


def test_the_config_chooses_the_noise_of_the_mechanism() -> None:
    config = parse_config(json.dumps(plan().config))
    privacy = config.privacy.model_copy(update={"secure_noise": True})
    assert mechanism_of(config).noise == "gaussian"
    secure = mechanism_of(config.model_copy(update={"privacy": privacy}))
    assert secure.noise == "discrete-gaussian"
    assert secure.event() == mechanism_of(config).event()


def with_clipping(noise: float, batch: int = 96, **section: Any) -> RunConfig:
    body = json.loads(json.dumps(plan().config))
    body["privacy"] |= {
        "clipping": "adaptive",
        "adaptive": section or None,
        "noise_multiplier": noise,
        "target_epsilon": None,
        "expected_batch_size": batch,
    }
    return parse_config(json.dumps(body))


@pytest.mark.parametrize(
    ("noise", "batch", "count_noise"), [(1.0, 96, 4.8), (1.0, 16, 2.0), (50.0, 96, 100.0)]
)
def test_adaptive_clipping_costs_what_flat_clipping_costs_and_little_noise(
    noise: float, batch: int, count_noise: float
) -> None:
    """A twentieth of the batch, and at least twice the noise multiplier: 3.3% more at most."""
    mechanism = mechanism_of(with_clipping(noise, batch))
    assert mechanism.count_noise == count_noise
    assert mechanism.event().noise_multiplier == noise
    assert noise < mechanism.gradient_noise_multiplier <= 1.0328 * noise


def test_a_count_noise_that_the_run_cannot_pay_for_is_refused_with_one_that_it_can() -> None:
    assert mechanism_of(with_clipping(1.0, count_noise=0.51)).count_noise == 0.51
    with pytest.raises(ConfigError, match="must be above half the noise multiplier") as caught:
        mechanism_of(with_clipping(1.0, count_noise=0.5))
    assert caught.value.hint == "leave it out, or write 2"
