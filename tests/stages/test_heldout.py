"""The score on held-out units: charged before it is measured, drawn once, stated with its price."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from privft.budget.accounting import cost
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event
from privft.config import parse_config
from privft.policy import load_policy
from privft.stages import heldout, running
from privft.stages.affording import mechanism_of
from privft.stages.data import open_vault
from privft.stages.modelling import Workbench, find_base
from privft.stages.sealedrun import SealedRun
from privft.training.scoring import unit_accuracies, unit_losses
from privft.workspace import opener_of
from tests.stages.world import CLASSIFY, World, base, unchecked

SCORE: dict[str, Any] = {"noise_multiplier": 20.0, "loss_bound": 10.0, "units": 200}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def with_score(path: Path, **changes: Any) -> Path:
    config = yaml.safe_load(path.read_text())
    config["evaluation"]["held_out"] = SCORE | changes
    path.write_text(yaml.safe_dump(config))
    return path


def planned(world: World, **changes: Any) -> Path:
    world.privft("plan", with_score(world.config(), **changes))
    return world.folder / "run.plan"


def trained(world: World, plan: Path, *, code: int | None = 0) -> str:
    with unchecked():
        world.privft("train", plan, code=code)
    return world.runs()[-1]


def sealed_score(world: World, run: str) -> dict[str, float]:
    workspace = world.workspace
    with world.ledger() as ledger:
        dataset = ledger.run(run).dataset
        opener = opener_of(workspace.identity(name="ada"))
        with open_vault(workspace, ledger, dataset, opener) as vault:
            sealed = SealedRun(run=run, folder=workspace.run_path(run), vault=vault)
            found: dict[str, float] = json.loads(sealed.unseal(heldout.SCORE))
    return found


def noised_rows(world: World, run: str) -> list[Mapping[str, Any]]:
    stated = json.loads((world.workspace.run_path(run) / "report.json").read_text())
    return [row for row in stated["predicate"]["utility"] if row["source"] == "noised"]


def test_the_score_is_charged_with_the_run_stated_with_its_price_and_verifies(
    world: World,
) -> None:
    plan = planned(world)
    run = trained(world, plan)
    with world.ledger() as ledger:
        (reserved,) = ledger.entries(kind="run-reserved", run=run)
        (settled,) = ledger.entries(kind="run-settled", run=run)
        charged = ledger.run(run).charged
    score = {"kind": "gaussian", "noise_multiplier": 20.0, "count": 2}
    assert reserved.body["events"][1:] == settled.body["events"][1:] == [score]
    delta = reserved.body["epsilon"]["delta"]
    assert reserved.body["epsilon"]["epsilon_pld"] == cost(charged, delta).epsilon
    assert cost(charged, delta).epsilon > cost(charged[:1], delta).epsilon

    folder = world.released(run)
    (row,) = noised_rows(world, run)
    figures = sealed_score(world, run)
    assert (row["base"], row["trained"]) == tuple(
        figures[f"loss per token/{which}"] for which in ("base", "trained")
    )
    assert row["n"] == SCORE["units"]
    alone = cost([Event(noise_multiplier=20.0, count=2)], delta).epsilon
    assert row["paid"] == {"noise_multiplier": 20.0, "bound": 10.0, "epsilon": alone}
    checks = {row["name"]: row for row in world.privft("verify", folder, "--json").json}
    assert "noised measures, interval and charge" in checks["epsilon"]["detail"]


def test_figures_are_the_true_means_but_for_their_noise(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the noise taken away they are the cut and centred means over all held-out units."""
    monkeypatch.setattr(
        "privft.training.heldout.discrete_gaussian", lambda *_: np.zeros(1, dtype=np.int64)
    )
    config = world.folder / "intents.yaml"
    config.write_text(CLASSIFY.format(lora="{r: 2}"))
    world.privft("plan", with_score(config, loss_bound=1.1))
    run = trained(world, world.folder / "intents.plan")
    found = sealed_score(world, run)

    workspace = world.workspace
    with world.ledger() as ledger:
        plan, folder = running.stored_plan(workspace, ledger, run)
        opener = opener_of(workspace.identity(name="ada"))
        with open_vault(workspace, ledger, "intents", opener) as vault:
            sealed = SealedRun(run=run, folder=workspace.run_path(run), vault=vault)
            bench = Workbench.of(
                plan.the_config(), find_base(plan.the_config(), relative_to=folder)
            )
            numbers = np.flatnonzero(vault.held_out_mask())
            assert 0 < len(numbers) < len(vault)
            units = [bench.encode(u.to_dict()) for u in vault.read_many(numbers.tolist())]
            files = sealed.unseal_adapter()
    for which, model in zip(("base", "trained"), bench.before_and_after(files), strict=True):
        losses = np.clip(unit_losses(model, units), 0, 1.1)
        hits = unit_accuracies(model, units)  # type: ignore[arg-type]
        for metric, values, bound in (
            ("loss per record", losses, 1.1),
            ("accuracy", hits, 1.0),
        ):
            expected = bound / 2 + np.sum(values - bound / 2) / SCORE["units"]
            assert found[f"{metric}/{which}"] == pytest.approx(expected, abs=1e-6)
    with world.ledger() as ledger:
        assert ledger.run(run).charged[1] == Event(noise_multiplier=20.0, count=4)


def test_a_second_audit_states_the_same_figures_and_draws_no_second_noise(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(world, planned(world))
    assert not (world.workspace.run_path(run) / "secret.sealed").exists()
    world.privft("audit", run)
    first = noised_rows(world, run)

    def draws(*_: Any, **__: Any) -> None:
        raise AssertionError("noise was drawn again")

    monkeypatch.setattr("privft.stages.heldout.noised_means", draws)
    world.privft("audit", run)
    assert noised_rows(world, run) == first


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_killed_around_its_score_ends_with_the_score_that_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(running, "fresh_secret", lambda: bytes(range(32)))
    whole, cut = (base().copied(tmp_path / name) for name in ("whole", "cut"))
    plan = planned(whole)
    for name in ("run.plan", "run.yaml"):
        (cut.folder / name).write_bytes((whole.folder / name).read_bytes())
    expected = sealed_score(whole, trained(whole, plan))

    class Killed(BaseException):
        pass

    def dies(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        holder, name = (running, "seal_score") if moment == "before" else (Ledger, "settle")
        patch.setattr(holder, name, dies)
        with pytest.raises(Killed):
            trained(cut, cut.folder / "run.plan", code=None)
    run = cut.runs()[-1]
    cut.privft("train", "--resume", run)
    assert sealed_score(cut, run) == expected


def test_a_target_epsilon_includes_the_score() -> None:
    text = """
task: causal-lm
dataset: notes
model: {name_or_path: llama}
max_length: 64
lora: {r: 4}
privacy: {unit: record, declared_units: 3200, target_epsilon: 2.0, expected_batch_size: 96,
          max_steps: 40}
evaluation: {held_out: {noise_multiplier: 6.0, loss_bound: 8.0, units: 300}}
"""
    config = parse_config(text)
    events = (mechanism_of(config).event(), *config.score_events())
    epsilon = cost(events, config.privacy.delta_value).epsilon
    assert 1.99 < epsilon <= 2.0
    bare = parse_config(text.split("evaluation:")[0])
    assert mechanism_of(bare).noise_multiplier < mechanism_of(config).noise_multiplier


def test_a_score_is_refused_where_no_units_are_set_aside(world: World) -> None:
    rows = world.folder / "notes.jsonl"
    changed = world.folder / "other.jsonl"
    changed.write_text(
        rows.read_text().replace("p0-", "q0-").replace("n0-", "m0-").replace("ba", "su")
    )
    world.privft(
        "vault", "create", "whole", "--from", changed, "--text", "note", "--subject", "patient",
        "--id", "id", "--unit", "subject", "--declared-units", "1000",
    )  # fmt: skip
    config = with_score(world.config())
    config.write_text(config.read_text().replace("dataset: notes", "dataset: whole"))
    said = world.privft("plan", config, code=2)
    assert "sets no units aside" in said.err


def test_a_policy_that_does_not_name_the_score_refuses_it(world: World) -> None:
    policy = load_policy("default")
    outputs = policy.public_outputs.model_copy(update={"value": ("adapter", "report")})
    overlay = world.folder / "closed.yaml"
    overlay.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "name": "closed",
                "extends": "default",
                "purpose": "no figures on real units leave, noised or not",
                "public_outputs": {
                    "value": [*outputs.value, "canary-scores", "public-evaluation"],
                    "why": "nobody outside needs to know how well it does",
                    "source": "a committee",
                },
            }
        )
    )
    rows = world.folder / "notes.jsonl"
    changed = world.folder / "other.jsonl"
    changed.write_text(
        rows.read_text().replace("p0-", "q0-").replace("n0-", "m0-").replace("ba", "su")
    )
    world.privft(
        "vault", "create", "closed", "--from", changed, "--text", "note", "--subject", "patient",
        "--id", "id", "--unit", "subject", "--declared-units", "1000", "--held-out-share", "0.2",
        "--policy", overlay,
    )  # fmt: skip
    config = with_score(world.config())
    config.write_text(config.read_text().replace("dataset: notes", "dataset: closed"))
    said = world.privft("plan", config, code=10)
    assert "public_outputs" in said.err
