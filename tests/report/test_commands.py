"""The report's verbs, as commands on a real run: what they write, and what they leave alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from privft.report.exports import PACKS
from tests.report.test_page import Outline
from tests.stages.world import World, base, files_below, privft, released
from tests.test_path import PLAIN_PEFT


@pytest.fixture
def audited(tmp_path: Path) -> tuple[World, str]:
    """A copy of the released world, as it was after the audit: nothing has left."""
    done = released()
    world = done.world.copied(tmp_path / "world")
    shutil.rmtree(world.folder / "out")
    return world, done.run


def _files(world: World) -> dict[str, bytes]:
    """All but what SQLite keeps beside a database that was read."""
    found = files_below(world.folder)
    return {name: data for name, data in found.items() if not name.endswith(("-shm", "-wal"))}


def run_folder(world: World, run: str) -> Path:
    return world.workspace.run_path(run)


def test_audit_writes_page_statement_and_pdf_of_one_content() -> None:
    done = released()
    folder = run_folder(done.world, done.run)
    stated = json.loads((folder / "report.json").read_text())
    assert stated["predicate"]["run"]["id"] == done.run
    assert (folder / "report.html").read_bytes() == (done.folder / "report.html").read_bytes()
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF-")


def test_report_json_fits_the_published_schema() -> None:
    done = released()
    schema = privft("report", "schema").json
    assert schema["$id"] == "tag:privft,2026:run-report/v1/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    stated = json.loads((run_folder(done.world, done.run) / "report.json").read_text())
    jsonschema.validate(stated, schema)
    stated["predicate"]["guarantee"]["epsilon"] = "small"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(stated, schema)


def test_plan_writes_its_page_and_the_approver_can_make_it_again(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    planned = world.privft("plan", world.config("shown"), "--json").json
    page = Path(planned["page"])
    assert page == world.folder / "shown.html"
    text = Outline(page.read_text()).text
    assert planned["plan_sha256"] in text
    assert "nothing has run yet" in text
    world.privft("report", "plan", planned["file"], "-o", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_bytes() == page.read_bytes()
    elsewhere = world.folder / "elsewhere.html"
    world.privft("plan", world.config("other"), "--html", elsewhere)
    assert elsewhere.exists()
    assert not (world.folder / "other.html").exists()


def test_index_links_to_every_audited_run(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    world.privft("report", "index")
    assert "No run has been reported yet" in (world.folder / "workspace" / "index.html").read_text()
    done = released()
    target = tmp_path / "index.html"
    done.world.privft("report", "index", "-o", target)
    (link,) = [
        a["href"]
        for tag, a in Outline(target.read_text()).tags
        if tag == "a" and a["href"] != "#main"
    ]
    assert "Budget of notes" in target.read_text()
    assert "Budget of intents" in target.read_text()
    assert (tmp_path / str(link)).resolve() == run_folder(done.world, done.run) / "report.html"


@pytest.mark.parametrize("name", PACKS)
def test_export_is_printed_or_written(tmp_path: Path, name: str) -> None:
    done = released()
    shown = done.world.privft("report", "export", done.run, "--as", name)
    assert "DRAFT for a person to finish" in " ".join(shown.out.split())
    assert PACKS[name].as_of in shown.err
    if name == "registry":
        entry = yaml.safe_load(shown.out)["deployment"]
        assert entry["administrative"]["status"] == "Draft"
    target = tmp_path / PACKS[name].file
    done.world.privft("report", "export", done.run, "--as", name, "-o", target)
    assert target.read_text() == shown.out


def test_nothing_is_exported_of_a_run_that_was_not_audited(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    world.privft("report", "export", "r-0001-000000", "--as", "dpia", code=1)
    run = world.trained()
    done = world.privft("report", "export", run, "--as", "dpia", code=1)
    assert "has not been audited" in done.err
    world.privft("report", "index", "-o", tmp_path / "index.html")
    text = Outline((tmp_path / "index.html").read_text()).text
    assert f"{run} trained notes charged; no report" in text


def test_recipe_is_printed_and_is_no_part_of_a_release() -> None:
    assert privft("report", "recipe").out.startswith("# Checking a release without privft")
    assert not any("recipe" in path.name.lower() for path in released().folder.iterdir())


def test_dry_run_of_a_release_names_what_would_leave_and_writes_nothing(
    audited: tuple[World, str],
) -> None:
    world, run = audited
    before, target = _files(world), world.folder / "out"
    shown = world.privft("release", run, "--to", target, "--dry-run", "--json")
    real = {path.name: path.stat().st_size for path in released().folder.iterdir()}
    assert shown.json["bytes"] == {k: v for k, v in real.items() if k != "ledger-proof.json"}
    assert "dry run: nothing was changed" in shown.err
    assert "ledger-proof.json" in world.privft("release", run, "--to", target, "--dry-run").err
    assert _files(world) == before
    world.privft("release", run, "--to", world.folder, "--dry-run", code=2)


def test_first_release_fixes_whether_there_is_a_merged_model(audited: tuple[World, str]) -> None:
    world, run = audited  # it was released without one
    done = world.privft("release", run, "--to", world.folder / "two", "--merge", code=2)
    assert "was released before without a merged model" in done.err
    assert not (world.folder / "two").exists()
    assert not [path for path in world.folder.iterdir() if path.name.startswith(".two")]


@PLAIN_PEFT
def test_merged_model_is_base_and_adapter_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    run = world.trained()
    world.privft("audit", run)
    once, twice = world.folder / "once", world.folder / "twice"
    world.privft("release", run, "--to", once, "--merge")
    world.privft("release", run, "--to", twice, "--merge")
    assert files_below(once) == files_below(twice)
    assert all(row["ok"] for row in world.privft("verify", once, "--json").json)
    assert str(world.folder) not in "".join(
        path.read_text() for path in (once / "merged").glob("*.json")
    )
    plain = AutoModelForCausalLM.from_pretrained(world.folder / "llama")
    with_adapter = PeftModel.from_pretrained(plain, once).eval()
    merged = AutoModelForCausalLM.from_pretrained(once / "merged").eval()
    tokens = AutoTokenizer.from_pretrained(once / "merged")("ba de fi", return_tensors="pt")
    with torch.no_grad():
        wanted, got = (model(**_inputs(tokens)).logits for model in (with_adapter, merged))
        untrained = AutoModelForCausalLM.from_pretrained(world.folder / "llama")(**_inputs(tokens))
    assert torch.allclose(wanted, got, atol=1e-5)
    assert not torch.allclose(untrained.logits, got, atol=1e-4)
    done = world.privft("release", run, "--to", world.folder / "three", code=2)
    assert "was released before with a merged model" in done.err


def _inputs(tokens: Any) -> dict[str, torch.Tensor]:
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def test_countersigning_needs_an_approver_whom_the_statement_names(
    audited: tuple[World, str],
) -> None:
    world, run = audited
    assert "is released" in world.privft("countersign", run, "--as", "ada", code=1).err


def test_trust_root_says_how_long_it_holds_and_who_was_revoked(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    world.privft("keys", "create", "bob", "--role", "approver", "--as", "ada")
    world.privft("keys", "revoke", "bob", "--reason", "left the ward", "--as", "ada")
    root = world.privft("ledger", "trust", "--days", "30").json
    assert root["issued"] < root["expires"]
    assert {person["name"]: bool(person["revoked"]) for person in root["people"]} == {
        "ada": False,
        "bob": True,
    }
