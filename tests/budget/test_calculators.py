"""The calculators that need no workspace: lists of events, both ways, and the curve drawn."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from privft.budget.accounting import cost, tradeoff
from privft.budget.mechanism import Event
from privft.budget.priced import single_cost
from privft.budget.selection import Selection
from privft.cli import main

RUNS = [
    Event(noise_multiplier=2.0, sampling_probability=0.02, count=50),
    Event(noise_multiplier=3.0, sampling_probability=0.05, count=20),
    Event(noise_multiplier=8.0),
]
CHOSEN = Selection(events=(RUNS[0],), mean=5.0, shape=1.0)
DELTA = 1e-6


def privft(*arguments: object, code: int | None = 0) -> Result:
    with mock.patch("privft.hardening.lock_down"):
        done = CliRunner().invoke(main, [str(each) for each in arguments])
    assert code in (None, done.exit_code), (done.stdout, done.stderr)
    return done


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "events.json"
    path.write_text(json.dumps(rows))
    return path


def test_epsilon_of_a_list_is_that_of_its_composition(tmp_path: Path) -> None:
    file = written(tmp_path, [event.to_dict() for event in RUNS])
    said = json.loads(privft("epsilon", "--events", file, "--delta", DELTA, "--json").stdout)
    priced = cost(RUNS, DELTA)
    assert (said["pld"], said["rdp"]) == (priced.epsilon_pld, priced.epsilon_rdp)


def test_epsilon_of_a_selection_has_one_accountant_and_says_so(tmp_path: Path) -> None:
    file = written(tmp_path, [CHOSEN.to_dict(), RUNS[2].to_dict()])
    said = json.loads(privft("epsilon", "--events", file, "--delta", DELTA, "--json").stdout)
    assert said["pld"] is None
    assert said["rdp"] == single_cost([CHOSEN, RUNS[2]], DELTA).epsilon_rdp
    shown = privft("epsilon", "--events", file, "--delta", DELTA).stdout
    assert "one accountant only (RDP)" in shown
    substitute = ("--adjacency", "substitute")
    privft("epsilon", "--events", file, "--delta", DELTA, *substitute, code=1)
    privft("tradeoff", "--events", file, *substitute, code=1)
    curve = json.loads(privft("tradeoff", "--events", file, "--json").stdout)
    assert curve == {**tradeoff([CHOSEN, RUNS[2]]).to_dict(), "max_accuracy": curve["max_accuracy"]}
    target = ("--target-epsilon", 2, "--delta", DELTA)
    privft("noise", "--events", file, *target, code=1)


def test_the_noise_that_a_list_lacks_meets_the_target_from_the_private_side(
    tmp_path: Path,
) -> None:
    target = 0.7
    rows = [event.to_dict() for event in RUNS]
    for row in rows[:2]:
        del row["noise_multiplier"]
    options = ("--target-epsilon", target, "--delta", DELTA, "--json")
    said = json.loads(privft("noise", "--events", written(tmp_path, rows), *options).stdout)
    events = [Event.from_dict(row) for row in said["events"]]
    assert {event.noise_multiplier for event in events[:2]} == {said["noise_multiplier"]}
    assert events[2] == RUNS[2]
    assert target * 0.995 < said["pld"] <= target
    assert said["pld"] == cost(events, DELTA).epsilon


def test_a_list_that_lacks_nothing_is_scaled_as_a_whole(tmp_path: Path) -> None:
    file = written(tmp_path, [event.to_dict() for event in RUNS])
    options = ("--target-epsilon", 0.5, "--delta", DELTA)
    said = json.loads(privft("noise", "--events", file, *options, "--json").stdout)
    assert said["noise_multiplier"] is None
    for row, event in zip(said["events"], RUNS, strict=True):
        scaled = event.noise_multiplier * said["factor"]
        assert row["noise_multiplier"] == pytest.approx(scaled)
    assert 0.5 * 0.995 < said["pld"] <= 0.5
    assert "factor" in privft("noise", "--events", file, *options).stdout


def test_a_target_below_what_is_fixed_is_an_error(tmp_path: Path) -> None:
    rows = [RUNS[0].to_dict(), {"kind": "gaussian", "count": 1}]
    options = ("--target-epsilon", 0.01, "--delta", DELTA)
    said = privft("noise", "--events", written(tmp_path, rows), *options, code=1)
    assert "what is fixed in it costs as much already" in said.stderr


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("epsilon", ("--steps", 3)),
        ("noise", ("--steps", 3, "--target-epsilon", 1)),
        ("tradeoff", ("--noise-multiplier", 1)),
    ],
)
def test_a_file_and_the_parameters_of_one_event_exclude_each_other(
    tmp_path: Path, command: str, options: tuple[object, ...]
) -> None:
    file = written(tmp_path, [RUNS[0].to_dict()])
    delta = () if command == "tradeoff" else ("--delta", DELTA)
    assert "not both" in privft(command, "--events", file, *options, *delta, code=2).stderr


@pytest.mark.parametrize("wrong", ["nan", "inf", "-1", "0"])
@pytest.mark.parametrize(
    "option", ["--noise-multiplier", "--sampling-probability", "--delta", "--target-epsilon"]
)
def test_a_number_that_makes_no_sense_is_a_usage_error(option: str, wrong: str) -> None:
    given = {"--sampling-probability": 0.1, "--steps": 3, "--delta": DELTA}
    verb = "noise" if option == "--target-epsilon" else "epsilon"
    given["--noise-multiplier" if verb == "epsilon" else option] = 1.0
    words = [word for pair in (given | {option: wrong}).items() for word in pair]
    assert option in privft(verb, *words, code=2).stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", "[3]", '[{"kind": "laplace"}]'])
def test_a_file_that_is_no_list_of_events_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "events.json").write_text(text)
    done = privft("epsilon", "--events", tmp_path / "events.json", "--delta", DELTA, code=None)
    assert done.exit_code in (1, 2)
    assert done.stderr.startswith("error: ")


def test_the_curve_is_drawn_in_the_terminal() -> None:
    options = ("--noise-multiplier", 1, "--sampling-probability", 1, "--steps", 1)
    lines = privft("tradeoff", *options).stdout.splitlines()
    drawing = [line for line in lines if "│" in line]
    assert len(drawing) == 20
    # the curve of mu 1 passes (0.5, 0.84): in column 30 the highest dot is in the fourth row or so
    column = [line.split("│")[1][30] for line in drawing]
    highest = next(row for row, cell in enumerate(column) if cell != "⠀")
    assert 0.80 < 1 - (highest + 0.5) / 20 < 0.88
    assert "most 69.1" in lines[-2]


def test_the_curve_is_drawn_as_an_svg_of_its_own(tmp_path: Path) -> None:
    target = tmp_path / "curve.svg"
    file = written(tmp_path, [event.to_dict() for event in RUNS])
    said = json.loads(privft("tradeoff", "--events", file, "--svg", target, "--json").stdout)
    assert said["fnr"] == list(tradeoff(RUNS).fnr)
    root = ElementTree.parse(target).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in target.read_text()
