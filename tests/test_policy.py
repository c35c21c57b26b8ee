"""What a policy promises: whole or invalid, reasons for every number, overlays that only tighten,
a check for every rule, and no refusal without a fix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from privft.budget.filter import Cap
from privft.config import auto_delta
from privft.errors import ConfigError, PolicyRefused
from privft.policy import (
    _TIGHTER,
    Age,
    Check,
    PlanFacts,
    Policy,
    Rule,
    check,
    enforce,
    json_schema,
    load_policy,
    policy_names,
)

POLICIES = Path(__file__).resolve().parents[1] / "policies"
SHIPPED = ("bank", "default", "hospital", "research")
RULES = {name for name in Policy.model_fields if name not in {"version", "name", "purpose"}} - {
    "based_on"
}
CHECKED = (
    RULES
    - {"filter_orders", "may_show_private_metrics", "retention_days"}
    - {"witness_within", "countersignatures"}  # kept where time has come for them
)
GOOD = PlanFacts(
    epsilon=2.0,
    delta=1e-6,
    two_accountants=True,
    unit="subject",
    declared_units=20_000,
    suite="strict",
    secure_noise=True,
    recipients=("x25519",),
    operator="ana",
    approvers=("ben", "cho"),
)


def overlay(folder: Path, name: str = "ward", extends: str = "hospital", **rules: Any) -> Path:
    body = {"version": 1, "name": name, "extends": extends, "purpose": "notes of one ward"}
    reasons = {"why": "the ward committee decided so", "source": "minutes"}
    body |= {rule: {"value": value, **reasons} for rule, value in rules.items()}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(body))
    return path


def broken(policy: Policy, facts: PlanFacts, cap: Cap | None = None) -> list[Check]:
    checks = check(policy, facts, cap or policy.cap(facts.declared_units))
    return [each for each in checks if not each.ok]


def test_the_four_policies_are_shipped() -> None:
    assert policy_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_number_of_a_shipped_policy_has_a_reason_and_a_source(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    for rule in RULES:
        reasoned = getattr(policy, rule)
        assert isinstance(reasoned, Rule)
        assert len(reasoned.why) >= 20
        assert reasoned.source


@pytest.mark.parametrize("name", SHIPPED)
def test_a_good_plan_passes_every_shipped_policy(name: str) -> None:
    policy = load_policy(name)
    assert broken(policy, GOOD) == []
    enforce(policy, check(policy, GOOD, policy.cap(GOOD.declared_units)))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("units", [2000, 100_000, 10**7])
def test_automatic_delta_passes_every_shipped_policy(name: str, units: int) -> None:
    policy = load_policy(name)
    facts = replace(GOOD, declared_units=units, delta=auto_delta(units))
    assert {each.rule for each in broken(policy, facts)} <= {"min_declared_units"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_caps_delta_stays_below_one_over_the_units(name: str) -> None:
    policy = load_policy(name)
    for units in (policy.min_declared_units.value, 10**6, 10**9):
        assert 0 < policy.cap(units).delta * units < 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"unit": "record"}, "units"),
        ({"unit": "household"}, "units"),
        ({"epsilon": 3.01}, "max_epsilon_per_run"),
        ({"epsilon": float("nan")}, "max_epsilon_per_run"),
        ({"epsilon": -1.0}, "max_epsilon_per_run"),
        ({"delta": 0.5 / 20_000}, "delta_factor"),
        ({"delta": 0.0}, "delta_factor"),
        ({"declared_units": 1999}, "min_declared_units"),
        ({"two_accountants": False}, "two_accountants"),
        ({"suite": "quick"}, "required_suite"),
        ({"suite": "home-made"}, "required_suite"),
        ({"recipients": ("x25519", "post-it")}, "recipients_allowed"),
        ({"recipients": ()}, "recipients_allowed"),
        ({"outputs": ("adapter", "losses")}, "public_outputs"),
        ({"approvers": ()}, "approvals"),
        ({"approvers": ("ana",)}, "four_eyes"),
    ],
)
def test_each_broken_rule_of_hospital_is_named_with_its_fix(
    change: dict[str, Any], rule: str
) -> None:
    policy = load_policy("hospital")
    found = broken(policy, replace(GOOD, **change))
    assert rule in {each.rule for each in found}
    assert all(each.fix and each.why for each in found)
    with pytest.raises(PolicyRefused, match="policy 'hospital' wants") as caught:
        enforce(policy, found)
    assert caught.value.exit_code == 10
    assert caught.value.hint


def test_a_refusal_names_every_broken_rule_and_every_fix() -> None:
    policy = load_policy("hospital")
    facts = replace(GOOD, epsilon=5.0, suite="quick")
    with pytest.raises(PolicyRefused) as caught:
        enforce(policy, check(policy, facts, policy.cap(GOOD.declared_units)))
    assert caught.value.message == (
        "policy 'hospital' wants max_epsilon_per_run 3, and the plan has 5; "
        "required_suite standard, and the plan has quick"
    )
    assert caught.value.hint == (
        "privacy.target_epsilon: 3 or less, or fewer steps; audit.suite: standard"
    )


@pytest.mark.parametrize(
    ("name", "asked"), [("hospital", True), ("bank", True), ("default", False), ("research", False)]
)
def test_noise_that_is_safe_in_floating_point_is_for_people_in_enclaves(
    name: str, asked: bool
) -> None:
    found = broken(load_policy(name), replace(GOOD, secure_noise=False))
    assert ("secure_noise" in [each.rule for each in found]) is asked


def test_secure_noise_is_asked_for_where_the_policy_says_so(tmp_path: Path) -> None:
    policy = load_policy(overlay(tmp_path, secure_noise=True))
    assert [each.rule for each in broken(policy, replace(GOOD, secure_noise=False))] == [
        "secure_noise"
    ]


@pytest.mark.parametrize(
    ("epsilon", "factor", "rule"), [(8.5, 1.0, "total_epsilon"), (8.0, 1.1, "total_delta")]
)
def test_a_data_set_with_a_larger_budget_than_the_policy_gives_is_refused(
    epsilon: float, factor: float, rule: str
) -> None:
    policy = load_policy("hospital")
    cap = policy.cap(GOOD.declared_units)
    larger = replace(cap, epsilon=epsilon, delta=cap.delta * factor)
    assert [each.rule for each in broken(policy, GOOD, larger)] == [rule]


def test_every_rule_about_a_plan_is_checked() -> None:
    policy = load_policy("hospital")
    rules = [each.rule for each in check(policy, GOOD, policy.cap(20_000))]
    assert sorted(rules) == sorted(CHECKED)


def test_approval_is_not_held_against_a_plan_that_nobody_was_asked_about() -> None:
    policy = load_policy("hospital")
    facts = replace(GOOD, approvers=None)
    assert broken(policy, facts) == []
    rules = {each.rule for each in check(policy, facts, policy.cap(20_000))}
    assert not rules & {"approvals", "four_eyes"}


def test_who_runs_the_plan_does_not_count_where_four_eyes_are_asked_for(tmp_path: Path) -> None:
    policy = load_policy(overlay(tmp_path, approvals=2))
    found = broken(policy, replace(GOOD, approvers=("ana", "ben")))
    assert [(each.rule, each.limit, each.got) for each in found] == [("approvals", 2, 1)]


def test_nothing_checked_is_a_refusal() -> None:
    with pytest.raises(PolicyRefused, match="nothing was checked"):
        enforce(load_policy("default"), [])


def test_a_check_is_plain_json() -> None:
    policy = load_policy("bank")
    for each in check(policy, GOOD, policy.cap(20_000)):
        assert set(each.to_dict()) == {"rule", "limit", "got", "ok"}
        assert not isinstance(each.limit, tuple)
        assert not isinstance(each.got, tuple)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_policy_without_one_of_its_rules_is_invalid(tmp_path: Path, rule: str) -> None:
    body = yaml.safe_load((POLICIES / "hospital.yaml").read_text())
    del body[rule]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(ConfigError, match=f"expected the key '{rule}'"):
        load_policy(tmp_path / "p.yaml")


@pytest.mark.parametrize("text", ["", "{}", "version: 1", "# nothing"])
def test_an_empty_policy_is_invalid(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_policy(tmp_path / "p.yaml")


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("max_epsilon_per_run", 0.0),
        ("max_epsilon_per_run", float("nan")),
        ("units", []),
        ("units", ["household"]),
        ("filter_orders", []),
        ("filter_orders", [1]),
        ("approvals", -1),
        ("two_accountants", "yes"),
        ("total_delta", 1.0),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(tmp_path: Path, rule: str, value: Any) -> None:
    body = yaml.safe_load((POLICIES / "hospital.yaml").read_text())
    body[rule]["value"] = value
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(ConfigError, match=f"{rule}.value"):
        load_policy(tmp_path / "p.yaml")


def test_a_number_without_a_reason_is_refused(tmp_path: Path) -> None:
    body = yaml.safe_load((POLICIES / "hospital.yaml").read_text())
    del body["total_epsilon"]["why"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(body))
    with pytest.raises(ConfigError, match="expected the key 'why' in total_epsilon"):
        load_policy(tmp_path / "p.yaml")


def test_an_unknown_rule_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    text = (POLICIES / "hospital.yaml").read_text().replace("total_epsilon:", "total_epsilom:")
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown key 'total_epsilom'") as caught:
        load_policy(tmp_path / "p.yaml")
    assert caught.value.hint == "did you mean 'total_epsilon'?"


def test_an_unknown_policy_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ConfigError, match="there is no policy 'hospitol'") as caught:
        load_policy("hospitol")
    assert caught.value.hint == "did you mean 'hospital'?"


@pytest.mark.parametrize(
    ("rule", "tighter", "looser"),
    [
        ("units", ["subject"], ["subject", "record"]),
        ("max_epsilon_per_run", 1.0, 3.5),
        ("total_epsilon", 5.0, 8.1),
        ("total_delta", 1e-7, 1e-4),
        ("delta_factor", 0.1, 0.6),
        ("min_declared_units", 5000, 1999),
        ("two_accountants", True, False),
        ("required_suite", "strict", "quick"),
        ("approvals", 2, 0),
        ("four_eyes", True, False),
        ("countersignatures", 2, None),
        ("secure_noise", True, None),
        ("recipients_allowed", ["x25519"], None),
        ("may_show_private_metrics", False, True),
        ("retention_days", 7, 31),
        ("public_outputs", ["adapter"], None),
    ],  # and witness_within, below
)
def test_an_overlay_can_tighten_each_rule_and_loosen_none(
    tmp_path: Path, rule: str, tighter: Any, looser: Any
) -> None:
    policy = load_policy(overlay(tmp_path, **{rule: tighter}))
    value = getattr(policy, rule).value
    assert (list(value) if isinstance(value, tuple) else value) == tighter
    assert policy.based_on == ("hospital",)
    assert policy.total_epsilon.why
    if looser is not None:
        with pytest.raises(ConfigError, match=f"{rule} .* would loosen policy 'hospital'"):
            load_policy(overlay(tmp_path, **{rule: looser}))


def test_no_end_of_retention_is_the_loosest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would loosen"):
        load_policy(overlay(tmp_path, retention_days=None))
    body = yaml.safe_load(overlay(tmp_path, retention_days=3650).read_text())
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(body | {"extends": "research"}))
    assert load_policy("research").retention_days.value is None
    assert load_policy(tmp_path / "study.yaml").retention_days.value == 3650


def test_a_witness_can_be_asked_for_and_then_only_more_often(tmp_path: Path) -> None:
    asked = overlay(tmp_path, witness_within={"entries": 100, "days": 7.0})
    assert load_policy("hospital").witness_within.value is None
    assert load_policy(asked).witness_within.value == Age(entries=100, days=7.0)
    for within, fine in (
        ({"entries": 50, "days": 7.0}, True),
        ({"entries": 100, "days": 8.0}, False),
        ({"entries": 101, "days": 1.0}, False),
        (None, False),
    ):
        body = yaml.safe_load(asked.read_text()) | {"extends": asked.name, "name": "second"}
        body["witness_within"]["value"] = within
        (tmp_path / "second.yaml").write_text(yaml.safe_dump(body))
        if fine:
            load_policy(tmp_path / "second.yaml")
        else:
            with pytest.raises(ConfigError, match="would loosen"):
                load_policy(tmp_path / "second.yaml")


def test_every_rule_but_the_filters_orders_can_be_overlaid() -> None:
    assert set(_TIGHTER) == RULES - {"filter_orders"}


def test_the_filters_orders_cannot_be_overlaid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key 'filter_orders'"):
        load_policy(overlay(tmp_path, filter_orders=[4]))


def test_overlays_stack_and_the_second_cannot_undo_the_first(tmp_path: Path) -> None:
    overlay(tmp_path, name="organisation", max_epsilon_per_run=2.0)
    team = overlay(tmp_path, name="team", extends="organisation.yaml", total_epsilon=4.0)
    policy = load_policy(team)
    assert policy.based_on == ("hospital", "organisation")
    assert (policy.max_epsilon_per_run.value, policy.total_epsilon.value) == (2.0, 4.0)
    overlay(tmp_path, name="team", extends="organisation.yaml", max_epsilon_per_run=2.5)
    with pytest.raises(ConfigError, match="would loosen policy 'organisation'"):
        load_policy(team)


def test_overlays_in_a_circle_end_in_an_error(tmp_path: Path) -> None:
    overlay(tmp_path, name="one", extends="two.yaml")
    overlay(tmp_path, name="two", extends="one.yaml")
    with pytest.raises(ConfigError, match="more than 4 overlays"):
        load_policy(tmp_path / "one.yaml")


def test_the_digest_follows_every_value_and_the_way_there(tmp_path: Path) -> None:
    digests = {load_policy(name).digest for name in SHIPPED}
    digests.add(load_policy(overlay(tmp_path)).digest)
    digests.add(load_policy(overlay(tmp_path, total_epsilon=7.0)).digest)
    assert len(digests) == 6
    assert load_policy("hospital").digest == load_policy("hospital").digest


def test_the_schema_takes_the_shipped_policies() -> None:
    schema = json_schema()
    for name in SHIPPED:
        body = yaml.safe_load((POLICIES / f"{name}.yaml").read_text())
        jsonschema.validate(body, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**body, "surprise": 1}, schema)
