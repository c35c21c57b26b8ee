"""The whole path, as commands: from rows to an adapter that anybody can load."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from privft.stages import running
from privft.stages.data import open_vault
from privft.stages.modelling import Workbench, find_base
from privft.stages.sealedrun import SealedRun
from privft.training.losses import Classifier, TrainedModel
from privft.workspace import opener_of
from tests.stages.world import (
    CLASSIFY,
    LABELS,
    World,
    base,
    fail_the_control,
    files_below,
    privft,
    released,
    unchecked,
)

# peft 0.21 asks transformers 5 for a name that it deprecates
PLAIN_PEFT = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def models_of(world: World, run: str) -> tuple[TrainedModel, TrainedModel]:
    """The model of a run as it was sealed, and the same before training."""
    workspace = world.workspace
    opener = opener_of(workspace.identity(name="ada"))
    with workspace.ledger() as ledger:
        plan, folder = running.stored_plan(workspace, ledger, run)
        config = plan.the_config()
        bench = Workbench.of(config, find_base(config, relative_to=folder))
        with open_vault(workspace, ledger, plan.dataset, opener) as vault:
            sealed = SealedRun(run=run, folder=workspace.run_path(run), vault=vault)
            before, after = bench.before_and_after(sealed.unseal_adapter())
            return after, before


def predicate(folder: Path) -> Any:
    envelope = json.loads((folder / "statement.dsse.json").read_text())
    return json.loads(base64.b64decode(envelope["payload"]))["predicate"]


def rows_of(path: Path, count: int) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()[:count]]


# -- from rows to a released folder ----------------------------------------------------------------


def test_every_command_of_the_path_answers_a_script_in_json() -> None:
    done = released()
    said = done.said
    assert 1.4 < said["plan"]["epsilon"] <= 1.5
    assert all(rule["ok"] for rule in said["policy"])
    assert said["train"]["epsilon"] == said["plan"]["epsilon"]
    assert (said["audit"]["run"], said["audit"]["verdict"]) == (done.run, "passed")
    assert set(said["release"]["files"]) == {path.name for path in done.folder.iterdir()}
    assert all(check["ok"] for check in said["verify"])
    shown = done.world.privft("runs", "show", done.run, "--json").json
    assert shown["state"] == "released"
    assert [entry["kind"] for entry in shown["entries"]] == [
        "run-reserved",
        "run-settled",
        "audit-started",
        "run-audited",
        "run-released",
    ]
    (row,) = done.world.privft("runs", "list", "--json").json
    assert (row["run"], row["state"], row["actor"]) == (done.run, "released", "ada")
    budgets = {row["dataset"]: row for row in done.world.privft("ledger", "show", "--json").json}
    spent = budgets["notes"]["epsilon_spent"]
    assert spent == pytest.approx(said["plan"]["budget"]["epsilon_after"])
    assert budgets["intents"]["epsilon_spent"] == 0
    checked = done.world.privft("ledger", "verify", "--json").json
    assert checked["entries"] == len(done.world.kinds())


def test_the_report_states_what_was_planned_and_measured() -> None:
    done = released()
    facts = predicate(done.folder)
    assert facts["guarantee"]["epsilon"] == done.said["plan"]["epsilon"]
    assert facts["plan"]["sha256"] == done.said["plan"]["plan_sha256"]
    assert facts["config"]["sha256"] == done.said["config"]["sha256"]
    assert facts["model"]["adapter_moved"] is True
    assert facts["synthetic"] is True
    assert (facts["utility"][0]["source"], facts["utility"][0]["n"]) == ("generated", 20)
    assert {check["ok"] for check in facts["selfcheck"]} == {True}
    assert len(facts["selfcheck"]) > 8, "the attack on the mechanism and the step of this model"
    assert "checks" in facts["policy"]
    assert (done.folder / "report.html").read_text().startswith("<!doctype html>")


def test_a_released_folder_verifies_with_the_trust_root_alone(tmp_path: Path) -> None:
    done = released()
    trust = tmp_path / "trust.json"
    trust.write_text(done.world.privft("ledger", "trust").out)
    assert "verified: everything" in privft("verify", done.folder, "--trust", trust).out


def test_a_released_folder_of_which_a_byte_was_changed_does_not_verify(world: World) -> None:
    done = released()
    for name in sorted(path.name for path in done.folder.iterdir()):
        folder = world.folder / f"with-{name}"
        folder.mkdir()
        for path in done.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        done.world.privft("verify", folder, code=13)


def test_releasing_twice_gives_the_same_bytes_whatever_the_ledger_has_seen_since(
    tmp_path: Path,
) -> None:
    done = released()
    world = done.world.copied(tmp_path / "world")
    world.privft("keys", "create", "bob", "--role", "approver")
    again = world.folder / "again"
    world.privft("release", done.run, "--to", again, "--as", "ada")
    assert files_below(again) == files_below(done.folder)
    assert world.kinds().count("run-released") == 1
    world.privft("verify", again)


def test_nobody_but_the_owner_can_read_what_is_left_behind() -> None:
    done = released()
    for path in (done.world.folder / "workspace").rglob("*"):
        if not path.is_symlink():
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_no_run_secret_outlives_its_settlement() -> None:
    done = released()
    names = {path.name for path in done.world.workspace.run_path(done.run).rglob("*")}
    assert "run-key.sealed" in names
    assert not names & {"secret.sealed", "checkpoint.sealed"}


# -- with plain peft and plain torch ---------------------------------------------------------------


@PLAIN_PEFT
def test_the_released_adapter_loads_with_plain_peft_and_gives_the_same_logits() -> None:
    done = released()
    ours, untrained = models_of(done.world, done.run)
    llama = done.world.folder / "llama"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), done.folder)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    for row in rows_of(done.world.folder / "public.jsonl", 6):
        ids = tokenizer(row["note"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            theirs = plain.eval()(input_ids=ids).logits
            assert torch.equal(theirs, ours.module(input_ids=ids).logits)
            assert not torch.allclose(theirs, untrained.module(input_ids=ids).logits, atol=1e-4)


def test_every_trained_tensor_of_the_adapter_moved() -> None:
    done = released()
    tensors = load_file(done.folder / "adapter_model.safetensors")
    ours, untrained = models_of(done.world, done.run)
    before = dict(untrained.module.named_parameters())
    after = dict(ours.module.named_parameters())
    trained = [name for name, parameter in before.items() if parameter.requires_grad]
    assert len(trained) == len(tensors)
    assert all(not torch.equal(before[name], after[name]) for name in trained)
    frozen = set(before) - set(trained)
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def python_of(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return code


@PLAIN_PEFT
@pytest.mark.parametrize("lora", ["{r: 2, lora_alpha: 4}", "null"], ids=["lora", "head-only"])
def test_the_plain_torch_of_a_released_classifier_gives_the_trained_logits(
    world: World, monkeypatch: pytest.MonkeyPatch, lora: str
) -> None:
    released()
    config = world.folder / "classify.yaml"
    config.write_text(CLASSIFY.format(lora=lora))
    world.privft("plan", config)
    with unchecked():
        run = world.privft("train", world.folder / "classify.plan", "--json").json["run"]
    folder = world.released(run)
    world.privft("verify", folder)
    names = {path.name for path in folder.iterdir()}
    assert "head.safetensors" in names
    assert ("adapter_model.safetensors" in names) is (lora != "null")

    rows = rows_of(world.folder / "intents.jsonl", 12)
    texts = [row["text"] for row in rows]
    monkeypatch.chdir(folder)
    os.symlink(world.folder / "bert", "bert")  # where the card says that the base model is
    given: dict[str, Any] = {}
    exec(python_of((folder / "README.md").read_text()), given)  # noqa: S102
    theirs = given["logits"](texts)
    assert given["labels"] == list(LABELS)

    ours, untrained = models_of(world, run)
    assert isinstance(ours, Classifier)
    assert isinstance(untrained, Classifier)
    batch = given["tokenizer"](texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = ours(batch["input_ids"], batch["attention_mask"])
        before = untrained(batch["input_ids"], batch["attention_mask"])
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(theirs, before, atol=1e-3)
    accuracies = [row for row in predicate(folder)["utility"] if row["metric"] == "accuracy"]
    assert {row["better"] for row in accuracies} == {"higher"}
    assert [row["group"] for row in accuracies] == [None, *LABELS]
    assert sum(row["n"] for row in accuracies[1:]) == accuracies[0]["n"]


# -- a failed audit, a waiver ----------------------------------------------------------------------


def test_a_failed_audit_keeps_the_adapter_in_and_a_waiver_lets_it_out_in_the_open(
    world: World,
) -> None:
    world.privft("keys", "create", "bob", "--role", "approver", "--as", "ada")
    keys = [world.folder / "workspace" / "keys" / f"{name}.key" for name in ("ada", "bob")]
    run = world.trained()
    fail_the_control(world)
    failed = world.privft("audit", run, "--as", "ada", code=12)
    assert "the control failed" in failed.err
    target = world.folder / "out"
    refused = world.privft("release", run, "--to", target, "--as", "ada", code=12)
    assert f"error: run {run} has an audit that proves nothing" in refused.err
    assert not target.exists()

    words = ["--reason", "the control is being mended", "--until", "2999-01-01T00:00:00Z"]
    world.privft("waive", run, "--key", keys[0], *words, code=2)
    world.privft("waive", run, "--key", keys[0], "--key", keys[1], *words)
    signed = ("countersign", run, "--key", keys[1])
    assert "bob would sign statement" in world.privft(*signed, "--dry-run").err
    assert not (world.workspace.run_path(run) / "countersigned.dsse.json").exists()
    world.privft(*signed)
    world.privft("release", run, "--to", target, "--as", "ada")
    verified = {row["name"]: row["detail"] for row in world.privft("verify", target, "--json").json}
    assert verified["waivers"] == "1, signed by ada, bob, in force at the release"
    assert verified["signature"] == "signed by the run key, countersigned by bob"
    facts = predicate(target)
    assert facts["audit"]["verdict"] == "failed"
    (waiver,) = facts["waivers"]
    assert waiver["reason"] == "the control is being mended"
    assert [signature["name"] for signature in waiver["signatures"]] == ["ada", "bob"]
    page = (target / "report.html").read_text()
    first = page[: page.index("1. Mechanism")]
    assert "by ada and bob: the control is being mended" in first
    assert "<strong>bob</strong>" in first
    assert (world.workspace.run_path(run) / "report.html").read_text() == page

    again = world.folder / "again"
    world.privft("release", run, "--to", again, "--as", "ada")
    assert files_below(again) == files_below(target)
