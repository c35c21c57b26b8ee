"""Suites: strict, sound in their significance, and true to their comments."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from privft.audit.bounds import one_run_ceiling
from privft.audit.suite import METHODS, Suite, Task, load_suite, parse_suite, shipped_suites
from privft.errors import ConfigError

AUDITS = Path(__file__).resolve().parents[2] / "audits"
TASKS: tuple[Task, ...] = ("causal-lm", "sequence-classification")


def body(name: str = "quick") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((AUDITS / f"{name}.yaml").read_text())
    return loaded


def parse(changed: dict[str, Any]) -> Suite:
    return parse_suite(yaml.safe_dump(changed).encode())[0]


def test_the_three_suites_ship_and_are_named_by_the_hash_of_their_file() -> None:
    assert shipped_suites() == ("quick", "standard", "strict")
    for name in shipped_suites():
        suite, digest = load_suite(name)
        assert suite.name == name
        assert digest == hashlib.sha256((AUDITS / f"{name}.yaml").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", shipped_suites())
def test_every_number_of_a_shipped_suite_has_its_reason(name: str) -> None:
    lines = (AUDITS / f"{name}.yaml").read_text().splitlines()
    for i, line in enumerate(lines):
        code = line.split("#")[0]
        if not re.search(r":.*\d", code) or code.startswith("version"):
            continue
        above = i
        while lines[above - 1].strip() and lines[above - 1].split("#")[0].strip():
            above -= 1
            if lines[above].rstrip().endswith(":"):
                break
        near = lines[max(0, above - 1) : i]
        assert any("#" in other for other in near), f"{name}, line {i + 1}: {line}"


@pytest.mark.parametrize("name", shipped_suites())
@pytest.mark.parametrize("task", TASKS)
def test_all_tests_of_all_attempts_share_one_significance(name: str, task: Task) -> None:
    suite, _ = load_suite(name)
    tests = sum(len(spec.guesses) for spec in suite.specs(task)) * len(METHODS)
    spent = sum(tests * suite.test_significance(task, attempt) for attempt in range(1, 60))
    assert spent <= suite.significance * (1 + 1e-9)
    assert spent == pytest.approx(suite.significance)
    with pytest.raises(ValueError, match="attempt"):
        suite.test_significance(task, 0)


@pytest.mark.parametrize(("name", "ceiling"), [("quick", 3.2), ("standard", 4.4), ("strict", 5.2)])
def test_the_ceilings_that_the_suites_state_hold(name: str, ceiling: float) -> None:
    suite, _ = load_suite(name)
    best = max(
        one_run_ceiling(
            canaries=spec.count,
            guesses=guesses,
            delta=1e-5,
            significance=suite.test_significance("causal-lm"),
        )
        for spec in suite.specs("causal-lm")
        for guesses in spec.guesses
    )
    assert best == pytest.approx(ceiling, abs=0.05)
    assert f"epsilon of {ceiling}" in (AUDITS / f"{name}.yaml").read_text().replace("\n    # ", " ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"significance": 0.5}, "significance"),
        ({"significance": "0.05"}, "significance"),
        ({"version": 2}, "version"),
        ({"fails_on": ["bound-above-claim"]}, "curve-contradicted"),
        ({"fails_on": ["bound-above-claim", "curve-contradicted", "control-failed"]}, "selfcheck"),
        ({"fails_on": []}, "fails_on"),
        ({"candidates": -1}, "candidates"),
        ({"name": "../quick"}, "name"),
    ],
)
def test_a_suite_that_says_anything_unknown_or_unsound_is_refused(
    change: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(named)):
        parse({**body(), **change})


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "rare-words", "count": 16, "guesses": [17]},
        {"kind": "rare-words", "count": 16, "guesses": [3]},
        {"kind": "rare-words", "count": 16, "guesses": [4, 4]},
        {"kind": "rare-words", "count": 16, "guesses": []},
        {"kind": "mislabelled", "count": 16, "guesses": [4]},
        {"kind": "no-such-kind", "count": 16, "guesses": [4]},
        {"kind": "rare-words", "count": 16, "guesses": [4], "typo": 1},
    ],
)
def test_a_canary_kind_that_cannot_be_is_refused(spec: dict[str, Any]) -> None:
    changed = body()
    changed["canaries"]["causal-lm"] = [spec]
    with pytest.raises(ConfigError, match=r"canaries|classification only"):
        parse(changed)


def test_a_kind_named_twice_is_refused() -> None:
    changed = body()
    first = changed["canaries"]["causal-lm"][0]
    changed["canaries"]["causal-lm"] = [first, {**first, "guesses": [*first["guesses"]]}]
    with pytest.raises(ConfigError, match="once a task"):
        parse(changed)


def test_a_key_given_twice_is_refused_and_not_overridden() -> None:
    content = (AUDITS / "quick.yaml").read_bytes() + b"\nsignificance: 0.1\n"
    with pytest.raises(ConfigError, match="a second 'significance'"):
        parse_suite(content)


def test_an_unknown_suite_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        load_suite("../policies/default")
    assert caught.value.hint == "one of quick, standard, strict"


@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)))
def test_no_bytes_break_the_parser(content: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_suite(content)
