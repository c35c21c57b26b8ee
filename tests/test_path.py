"""The whole path, as commands: from rows to an adapter that plain peft loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from privft.stages import running
from privft.stages.data import open_vault
from privft.stages.modelling import Workbench, find_base
from privft.stages.sealedrun import SealedRun
from privft.training.losses import Classifier, TrainedModel
from privft.workspace import opener_of
from tests.stages.world import CLASSIFY, RUN, World, base, files_below, privft, released


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def trained_model(world: World, run: str) -> tuple[TrainedModel, TrainedModel, Workbench]:
    """The model of a run as it was trained, the same untrained, and the bench they came from."""
    workspace = world.workspace
    with workspace.ledger() as ledger:
        plan, folder = running.stored_plan(workspace, ledger, run)
    config = plan.the_config()
    bench = Workbench.of(config, find_base(config, relative_to=folder))
    opener = opener_of(workspace.identity())
    with (
        workspace.ledger() as ledger,
        open_vault(workspace, ledger, plan.dataset, opener) as vault,
    ):
        files = SealedRun(run=run, folder=workspace.run_path(run), vault=vault).unseal_adapter()
    return bench.trained(files), bench.fresh(), bench


def test_every_step_of_the_path_answers_a_script_in_json(world: World) -> None:
    config = world.folder / "priced.yaml"
    config.write_text(RUN.format(price="target_epsilon: 1.5", steps=3))
    checked = world.privft("config", "validate", config, "--json").json
    planned = world.privft("plan", config, "--json").json
    assert planned["epsilon"] <= 1.5
    plan = Path(planned["file"])
    rules = world.privft("policy", "check", plan, "--json").json
    assert all(rule["ok"] for rule in rules)
    trained = world.privft("train", plan, "--json").json
    run = trained["run"]
    assert trained["epsilon"] == planned["epsilon"]
    audited = world.privft("audit", run, "--json").json
    assert (audited["run"], audited["verdict"]) == (run, "passed")
    target = world.folder / "out"
    released = world.privft("release", run, "--to", target, "--json").json
    assert set(released["files"]) == {path.name for path in target.iterdir()}
    verified = world.privft("verify", target, "--json").json
    assert all(check["ok"] for check in verified)
    shown = world.privft("runs", "show", run, "--json").json
    assert shown["state"] == "released"
    assert [row["state"] for row in world.privft("runs", "list", "--json").json] == ["released"]
    (notes,) = [
        row for row in world.privft("ledger", "show", "--json").json if row["dataset"] == "notes"
    ]
    assert notes["epsilon_spent"] == pytest.approx(planned["budget"]["epsilon_after"])
    statement = envelope_payload(target)
    assert statement["predicate"]["config"]["sha256"] == checked["sha256"]
    assert world.privft("ledger", "verify", "--json").json["entries"] == len(world.kinds())


def envelope_payload(folder: Path) -> Any:
    import base64

    envelope = json.loads((folder / "statement.dsse.json").read_text())
    return json.loads(base64.b64decode(envelope["payload"]))


def test_a_released_folder_verifies_with_the_trust_root_alone(tmp_path: Path) -> None:
    world, _ = released()
    trust = tmp_path / "trust.json"
    trust.write_text(world.privft("ledger", "trust").out)
    result = privft("verify", world.folder / "released", "--trust", trust)
    assert "verified: everything" in result.out


def test_the_released_adapter_loads_with_plain_peft_and_gives_the_same_logits() -> None:
    world, run = released()
    ours, untrained, bench = trained_model(world, run)
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world.folder / "llama"), world.folder / "released"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(world.folder / "llama")
    rows = json.loads(
        "[" + ",".join((world.folder / "public.jsonl").read_text().split("\n")[:6]) + "]"
    )
    for row in rows:
        ids = tokenizer(row["note"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            theirs = plain(input_ids=ids).logits
            assert torch.equal(theirs, ours.module(input_ids=ids).logits)
            assert not torch.allclose(theirs, untrained.module(input_ids=ids).logits, atol=1e-4)
