"""The negative control: the attacks succeed where they must, and fail where nothing leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from privft.audit import control as room
from privft.audit.control import Control, control, leaky_twin
from privft.audit.suite import Suite, Task, load_suite


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_every_kind_of_attack_of_the_quick_suite_succeeds_on_the_leaky_twin(task: Task) -> None:
    found = leaky_twin(load_suite("quick")[0], task=task)
    assert found.ok
    assert min(found.kinds.values()) > 1.0
    assert set(found.kinds) == {spec.kind for spec in load_suite("quick")[0].specs(task)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "strict"])
@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_every_kind_of_attack_of_every_suite_succeeds(name: str, task: Task) -> None:
    assert leaky_twin(load_suite(name)[0], task=task).ok


def test_a_twin_that_never_saw_the_canaries_fails_the_control(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite, _ = load_suite("quick")
    sound = room._train_and_score

    def without_canaries(inside: Any, attacked: Any, *, epochs: int) -> Any:
        return sound(inside[-suite.control.others :], attacked, epochs=5)

    monkeypatch.setattr(room, "_train_and_score", without_canaries)
    assert not leaky_twin(suite, task="causal-lm").ok


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Replaces the training by a result made here, and notes how often it is asked for."""
    made: list[Task] = []

    def twin(suite: Suite, *, task: Task) -> Control:
        made.append(task)
        return Control(
            what="w",
            canaries=9,
            guesses=8,
            correct=8,
            ok=True,
            epsilon_lower=2.0,
            epsilon_lower_needed=1.0,
            kinds={"secret": 2.0},
        )

    monkeypatch.setattr(room, "leaky_twin", twin)
    return made


def test_a_control_is_held_once_a_suite_task_and_version(
    counted: list[Task], tmp_path: Path
) -> None:
    suite, digest = load_suite("quick")
    first = control(suite, digest, task="causal-lm", folder=tmp_path)
    assert control(suite, digest, task="causal-lm", folder=tmp_path) == first
    assert counted == ["causal-lm"]
    control(suite, digest, task="sequence-classification", folder=tmp_path)
    control(suite, "0" * 64, task="causal-lm", folder=tmp_path)
    assert len(counted) == 3
    assert not list(tmp_path.glob(".*")), "nothing half-written stays behind"


@pytest.mark.parametrize(
    "change",
    [
        {"privft": "other"},
        {"torch": "other"},
        {"extra": 1},
        {"result": {}},
        {"task": "sequence-classification"},
    ],
)
def test_a_kept_control_of_another_version_or_form_is_not_believed(
    counted: list[Task], tmp_path: Path, change: dict[str, Any]
) -> None:
    suite, digest = load_suite("quick")
    control(suite, digest, task="causal-lm", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    control(suite, digest, task="causal-lm", folder=tmp_path)
    assert len(counted) == 2


def test_a_kept_control_that_calls_itself_a_success_against_its_own_numbers_is_not_believed(
    counted: list[Task], tmp_path: Path
) -> None:
    suite, digest = load_suite("quick")
    control(suite, digest, task="causal-lm", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    body = json.loads(path.read_text())
    body["result"]["kinds"]["secret"] = 0.1
    path.write_text(json.dumps(body))
    control(suite, digest, task="causal-lm", folder=tmp_path)
    assert len(counted) == 2


def test_a_truncated_control_is_made_again(counted: list[Task], tmp_path: Path) -> None:
    suite, digest = load_suite("quick")
    control(suite, digest, task="causal-lm", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:40])
    control(suite, digest, task="causal-lm", folder=tmp_path)
    assert len(counted) == 2
