"""The page of a plan: promise, price and approvals, from the plan and the ledger alone."""

from __future__ import annotations

from typing import Any

import pytest

from privft.config import parse_config
from privft.evaluating import EvaluationConfig, HeldOutConfig
from privft.plan import ModelFacts, Plan
from privft.report.planpage import render_plan
from tests.report.made_up import hexes
from tests.report.released import true_facts
from tests.report.test_page import MARKUP, Outline

CONFIG = parse_config(
    """
task: causal-lm
dataset: notes-2026
model: {name_or_path: models/smollm2-135m-instruct}
max_length: 128
lora: {r: 4, lora_alpha: 8}
privacy:
  unit: subject
  declared_units: 4000
  noise_multiplier: 0.9
  max_grad_norm: 0.5
  expected_batch_size: 96
  max_steps: 60
  max_records_per_unit: 8
"""
)
HELD_OUT = HeldOutConfig(noise_multiplier=12.5, loss_bound=8.0, units=400)


def made_up_plan(**changes: Any) -> Plan:
    facts = true_facts()
    values: dict[str, Any] = {
        "created": "2026-11-20T07:58:12Z",
        "operator": "mira-okafor",
        "dataset": "notes-2026",
        "lineage": facts["data"]["lineage"],
        "manifest_root": facts["data"]["manifest_root"],
        "mechanism": facts["mechanism"],
        "delta": 1e-5,
        "max_records_per_unit": 8,
        "cost": facts["guarantee"]["cost"],
        "substitute": facts["guarantee"]["substitute"],
        "config": CONFIG.to_dict(),
        "config_sha256": CONFIG.digest,
        "policy": facts["policy"]["body"],
        "policy_sha256": hexes("policy"),
        "model": ModelFacts(name="SmolLM2", weights_sha256=hexes("w"), tokenizer_sha256=hexes("t")),
        "suite": "standard",
        "suite_sha256": hexes("suite"),
        "budget_sha256": hexes("budget"),
        "checkpoint": "",
    }
    return Plan(**{**values, **changes})


def made(plan: Plan, **arguments: Any) -> Outline:
    facts = true_facts()
    checks = arguments.pop("checks", facts["policy"]["checks"])
    return Outline(render_plan(plan, checks=checks, budget=facts["ledger"], **arguments))


def test_page_says_promise_price_and_the_digest_to_sign() -> None:
    plan = made_up_plan()
    text = made(plan, approvals_needed=2).text
    for words in (
        plan.digest,
        "ε = 1.91",
        "will win at most",
        "2 more people must approve",
        "nothing has run yet",
        "What is protected Whether one person, with all of that person's records, took part",
        "What is not protected What is true of many people alike",
        "0.024",
        "1.90180423",
    ):
        assert words in text, words


def test_page_says_what_is_let_out_of_the_units_that_are_set_aside() -> None:
    assert "score on held-out units none" in " ".join(made(made_up_plan()).text.split())
    config = CONFIG.model_copy(update={"evaluation": EvaluationConfig(held_out=HELD_OUT)})
    plan = made_up_plan(config=config.to_dict(), config_sha256=config.digest)
    assert [event.noise_multiplier for event in plan.events()] == [0.9, 12.5]
    assert "2 figures over 400 declared units, losses cut at 8" in made(plan).text


def test_approved_plan_is_ready() -> None:
    approvals = [{"name": "amara-liu", "keyid": hexes("a"), "time": "2026-11-20T08:11:02Z"}]
    assert "Ready to run" in made(made_up_plan(), approvals=approvals, approvals_needed=1).text


def test_broken_rule_comes_first() -> None:
    rule = {"rule": "max_epsilon_per_run", "limit": 1.0, "got": 1.9, "ok": False}
    text = made(made_up_plan(), checks=[rule]).text
    assert "Against the policy" in text
    assert "Epsilon of one run, at most: 1; the plan has 1.9" in text


@pytest.mark.parametrize("field", ["operator", "dataset", "suite"])
def test_markup_in_names_stays_text(field: str) -> None:
    seen = made(made_up_plan(**{field: MARKUP}))
    assert not {tag for tag, _ in seen.tags} & {"script", "img"}
