"""A sweep is priced before any of its runs, as the ledger would charge it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from privft.budget.accounting import cost
from privft.budget.mechanism import Event
from privft.budget.priced import single_cost
from privft.budget.selection import event_from_dict
from tests.stages.world import World, base

VARY: dict[str, Any] = {"training.learning_rate": [0.01, 0.02], "lora.r": [2, 4]}
STOPPED: dict[str, Any] = {
    "charge": "random-stopping",
    "stopping": {"distribution": "truncated-negative-binomial", "shape": 0.0, "mean": 3.0},
    "score": {"noise_multiplier": 30.0, "loss_bound": 8.0, "units": 10},
    "vary": {"training.learning_rate": [0.01, 0.02], "lora.lora_alpha": [2, 4]},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Nothing here changes it."""
    return base().copied(tmp_path_factory.mktemp("sweep") / "world")


@pytest.fixture(autouse=True)
def unchanged(world: World) -> Iterator[None]:
    with world.ledger() as ledger:
        before = ledger.root
    yield
    with world.ledger() as ledger:
        assert ledger.root == before
    assert not list(world.folder.glob("*.plan"))


def written(world: World, **changes: Any) -> Path:
    world.config("run", noise=2.0)
    body = {"sweep": 1, "base": "run.yaml", "vary": VARY, "charge": "run-by-run", **changes}
    path = world.folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(body, sort_keys=False))
    return path


def test_run_by_run_costs_the_sum_of_its_runs(world: World) -> None:
    said = world.privft("plan", written(world), "--json").json
    assert len(said["candidates"]) == 4
    events = [Event.from_dict(row) for row in said["events"]]
    assert len(events) == 4
    delta = said["total"]["delta"]
    assert said["total"] == cost(events, delta).to_dict()
    one = said["candidates"][0]
    assert one["varies"] == "training.learning_rate 0.01, lora.r 2"
    assert one["cost"]["epsilon_pld"] < said["total"]["epsilon_pld"]
    assert said["budget"]["epsilon_after"] <= said["budget"]["cap"]["epsilon"]
    assert said["executable"]


def test_candidates_may_differ_in_price_when_all_are_charged(world: World) -> None:
    vary = {"privacy.max_steps": [2, 4], "privacy.noise_multiplier": [2.0, 3.0]}
    said = world.privft("plan", written(world, vary=vary), "--json").json
    assert len({row["cost"]["epsilon_pld"] for row in said["candidates"]}) == 4
    shown = world.privft("plan", written(world, vary=vary))
    assert "for all 4 together" in shown.out


def test_random_stopping_is_one_event_with_one_accountant(world: World) -> None:
    said = world.privft("plan", written(world, **STOPPED), "--json").json
    (row,) = said["events"]
    event = event_from_dict(json.loads(json.dumps(row)))
    assert said["total"]["epsilon_pld"] is None
    assert said["total"]["epsilon_rdp"] == single_cost([event], said["total"]["delta"]).epsilon_rdp
    assert len(row["events"]) == 2, "the score is part of what is charged"
    assert not said["executable"]
    free = written(world, **STOPPED | {"score": "public"})
    cheaper = world.privft("plan", free, "--json").json
    assert cheaper["total"]["epsilon_rdp"] < said["total"]["epsilon_rdp"]
    assert "stopping.most makes it a run" in world.privft("plan", free).err


def test_a_sweep_is_no_plan(world: World) -> None:
    for changes in ({}, STOPPED):
        done = world.privft("train", written(world, **changes), code=14)
        assert "is a sweep, and no plan" in done.err
        output = ("-o", world.folder / "out.plan")
        done = world.privft("plan", written(world, **changes), *output, code=2)
        assert "priced, and leaves no plan" in done.err
        assert "stopping.most" in done.err


def test_a_config_is_no_place_for_a_selection(world: World) -> None:
    config = written(world, **STOPPED).parent / "run.yaml"
    chosen = {name: STOPPED[name] for name in ("vary", "score")}
    stopping = {**STOPPED["stopping"], "most": 12}
    body = yaml.safe_load(config.read_text()) | {"selection": {**chosen, "stopping": stopping}}
    config.write_text(yaml.safe_dump(body))
    done = world.privft("plan", config, code=2)
    assert "selection is what a sweep file is turned into" in done.err


def test_a_sweep_beyond_the_budget_is_refused_with_how_much_fits(world: World) -> None:
    rates = [at / 1000 for at in range(1, 61)]
    vary = {"privacy.noise_multiplier": [0.7], "training.learning_rate": rates}
    done = world.privft("plan", written(world, vary=vary), code=11)
    fitting = int(done.err.split("the first ")[1].split(" ")[0])
    assert 0 < fitting < 60
    vary["training.learning_rate"] = rates[:fitting]
    world.privft("plan", written(world, vary=vary))
    dear = {"privacy.noise_multiplier": [0.3]}
    assert "max_epsilon_per_run" in world.privft("plan", written(world, vary=dear), code=10).err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vary": {}}, "vary"),
        ({"vary": {"lora.rank": [2]}}, "no setting 'lora.rank'"),
        ({"vary": {"privacy.max_steps": [0]}}, "max_steps"),
        ({"vary": {"privacy.declared_units": [1000, 2000]}}, "declared_units"),
        ({"vary": {"training.learning_rate": [0.1] * 201}}, "201 candidates"),
        ({"charge": "random-stopping"}, "stopping and score"),
        ({"score": "public"}, "stopping and score"),
        (STOPPED | {"score": None}, "stopping and score"),
        (STOPPED | {"vary": {"privacy.max_steps": [2, 3]}}, "privacy.max_steps varies"),
        (STOPPED | {"vary": {"lora.r": [2, 4]}}, "cost, take and look the same"),
        (STOPPED | {"score": {"noise_multiplier": 30.0}}, "score"),
        (STOPPED | {"stopping": {"distribution": "poisson", "mean": 3.0, "shape": 1.0}}, "shape"),
        (STOPPED | {"stopping": {"distribution": "geometric", "mean": 3.0}}, "distribution"),
        (STOPPED | {"stopping": {"distribution": "poisson", "mean": 9.0, "most": 8}}, "most"),
        ({"more": 1}, "more"),
        ({"sweep": 2}, "sweep"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(
    world: World, changes: dict[str, Any], words: str
) -> None:
    done = world.privft("plan", written(world, **changes), code=2)
    assert words in done.err.splitlines()[0]
