"""Bad input ends in a clear error with the right exit code, and leaves nothing behind.

`refused` runs a command that must fail and then looks at everything: the same files, bytes
included, and a ledger that holds nothing but the entries that the test names.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from privft.audit.selfcheck import Check
from privft.config import load_config
from privft.plan import Plan, parse_plan
from privft.signing import canonical_json
from privft.stages import affording, planning, running
from tests.stages.world import (
    CLASSIFY,
    NOTES,
    SIZE,
    Result,
    World,
    base,
    files_below,
    note_rows,
    privft,
    released,
    unchecked,
    write_rows,
)

MARK = "zanzibar"  # stands in rows, and never in a message


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def everything(world: World) -> dict[str, bytes]:
    """All files but the database, whose entries are compared instead."""
    found = files_below(world.folder)
    return {name: data for name, data in found.items() if "ledger.db" not in name}


@contextmanager
def nothing_left_behind(world: World, *entries: str) -> Iterator[None]:
    before, kinds = everything(world), world.kinds()
    yield
    after = everything(world)
    assert sorted(after) == sorted(before)
    assert after == before
    assert world.kinds() == [*kinds, *entries]


def refused(
    world: World, *arguments: str | Path, code: int, error: str, hint: str = "", entry: str = ""
) -> Result:
    """A command that fails with two lines on stderr, nothing on stdout, and no trace."""
    with nothing_left_behind(world, *([entry] if entry else [])):
        result = world.privft(*arguments, code=code)
    assert result.out == ""
    lines = [line for line in result.err.splitlines() if line.startswith(("error: ", "hint: "))]
    assert lines[0].startswith("error: "), result.err
    assert error in lines[0]
    assert hint in "".join(lines[1:])
    assert "unforeseen" not in result.err
    assert MARK not in result.err
    return result


# -- rows ------------------------------------------------------------------------------------------

GOOD = {"patient": "p1", "id": "n1", "note": f"ba de {MARK}"}


def lines_of(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


BAD_ROWS: dict[str, tuple[str, bytes, str]] = {
    "not JSON": ("r.jsonl", lines_of(GOOD) + b'{"note": "zanzibar', "row 2 of r.jsonl: not JSON"),
    "a list": ("r.jsonl", lines_of(GOOD, [MARK]), "row 2 of r.jsonl: not a JSON object"),
    "no text": ("r.jsonl", lines_of(GOOD | {"note": None}), "column 'note' is missing"),
    "empty text": ("r.jsonl", lines_of(GOOD | {"note": "  "}), "column 'note' is empty"),
    "a number": ("r.jsonl", lines_of(GOOD | {"note": 7}), "column 'note' is not text"),
    "nobody's": ("r.jsonl", lines_of({"id": "1", "note": MARK}), "column 'patient' is missing"),
    "one id twice": ("r.jsonl", lines_of(GOOD, GOOD), "row 2 of r.jsonl: its record id is already"),
    "not UTF-8": ("r.jsonl", lines_of(GOOD).replace(b"ba", b"\xff"), "column 'note' is not UTF-8"),
    "a short line": ("r.csv", b"patient,id,note\np1,n1\n", "2 columns where the first line has 3"),
    "a torn quote": ("r.csv", b'patient,id,note\np1,n1,"zan"zibar"\n', "not CSV"),
    "a torn gzip": ("r.jsonl.gz", gzip.compress(lines_of(GOOD))[:-9], "cannot be read"),
    "not Parquet": ("r.parquet", b"PAR1 zanzibar", "r.parquet cannot be read"),
    "some format": ("r.xlsx", b"zanzibar", "r.xlsx is of no known format"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_malformed_rows_are_named_by_line_and_leave_no_vault(world: World, case: str) -> None:
    name, content, words = BAD_ROWS[case]
    source = world.folder / name
    source.write_bytes(content)
    making = ("vault", "create", "more", "--from", source, *NOTES, *SIZE)
    refused(world, *making, code=2, error=words)
    refused(world, "vault", "add", "notes", source, code=2, error=words)


def test_the_name_is_free_again_after_a_refusal(world: World) -> None:
    source = write_rows(world.folder / "r.jsonl", [GOOD, {"note": 1}])
    making = ("vault", "create", "more", "--from", source, *NOTES, *SIZE)
    refused(world, *making, code=2, error="row 2 of r.jsonl")
    done = world.privft(*making, "--skip-bad")
    assert "1 bad rows were left out" in done.err
    assert world.kinds()[-2:] == ["dataset-created", "intake"]


def test_more_records_of_one_unit_than_declared_are_refused(world: World) -> None:
    rows = [GOOD | {"id": f"n{number}"} for number in range(4)]
    source = write_rows(world.folder / "r.jsonl", rows)
    making = ("vault", "create", "more", "--from", source, *NOTES, *SIZE)
    words = "row 4 of r.jsonl: its unit already has 3 records"
    refused(world, *making, "--max-records-per-unit", "3", code=2, error=words)


def test_people_who_have_a_budget_already_get_no_second_one(world: World) -> None:
    making = ("vault", "create", "copy", "--from", world.folder / "notes.jsonl", *NOTES, *SIZE)
    refused(world, *making, code=2, error="in data set notes already", hint="--join notes")
    same_people = [row | {"note": f"ba {row['note']}"} for row in note_rows(patients=3)]
    source = write_rows(world.folder / "r.jsonl", same_people)
    making = ("vault", "create", "copy", "--from", source, *NOTES, *SIZE)
    refused(world, *making, code=2, error="in data set notes already", hint="--join notes")
    world.privft(*making, "--join", "notes")
    with world.ledger() as ledger:
        first, *_, last = ledger.entries(kind="dataset-created")
        assert first.body["lineage"] == last.body["lineage"]
        assert ledger.entries(kind="intake")[-1].body["overlap"] == "same-lineage"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--unit", "subject", "--text", "note"), "no column is named as subject"),
        (("--unit", "record"), "a field map with no content"),
        (
            ("--unit", "record", "--text", "note", "--prompt", "note"),
            "a field map with prompt, text",
        ),
        (("--unit", "record", "--text", "note", "--join", "notes"), "not for one record"),
        (("--unit", "record", "--text", "note", "--join", "nots"), "there is no data set 'nots'"),
        (("--unit", "record", "--text", "note", "--policy", "hospitl"), "no policy 'hospitl'"),
        (
            ("--unit", "record", "--text", "note", "--policy", "hospital"),
            "no budgets for one record",
        ),
        (("--unit", "record", "--text", "a\nb"), "a column's name"),
        (
            ("--unit", "record", "--text", "note", "--max-records-per-unit", "9999999"),
            "1<=x<=1000000",
        ),
        (("--unit", "record", "--text", "note", "--from", "no.jsonl"), "there is no file no.jsonl"),
    ],
)
def test_a_vault_that_makes_no_sense_is_not_made(
    world: World, options: tuple[str, ...], words: str
) -> None:
    with nothing_left_behind(world):
        done = world.privft("vault", "create", "more", "--declared-units", "1000", *options, code=2)
    assert words in done.err
    assert "unforeseen" not in done.err


@pytest.mark.parametrize("name", ["../more", "More", "a b", "", ".hidden", "a/b", "x" * 64])
def test_a_data_set_has_a_plain_name(world: World, name: str) -> None:
    making = ("vault", "create", name, "--unit", "record", "--text", "note", *SIZE)
    refused(world, *making, code=2, error="cannot name a data set")


def test_a_folder_that_the_ledger_does_not_know_is_not_built_upon(world: World) -> None:
    (world.folder / "workspace" / "vaults" / "more").mkdir()
    making = ("vault", "create", "more", "--unit", "record", "--text", "note", *SIZE)
    refused(world, *making, code=2, error="the ledger knows of no data set 'more'", hint="look")


# -- keys ------------------------------------------------------------------------------------------


def test_the_key_of_another_person_opens_nothing(world: World) -> None:
    plan = world.planned()
    world.privft("keys", "create", "bob")
    for command in (
        ("train", plan),
        ("vault", "verify", "notes"),
        ("vault", "inspect", "notes", "--private"),
        ("vault", "add", "notes", world.folder / "public.jsonl"),
        ("vault", "rotate", "notes"),
    ):
        words = "does not open the vault"
        refused(world, *command, "--as", "bob", code=1, error=words, hint="it opens for 'ada'")


def test_a_wrong_passphrase_opens_nothing(world: World) -> None:
    given = str(piped(b"open sesame\n"))
    rows = write_rows(world.folder / "r.jsonl", [GOOD])
    making = ("vault", "create", "more", "--from", rows, *NOTES, *SIZE)
    world.privft(*making, "--recipient-passphrase-fd", given)
    looking = ("vault", "verify", "more", "--passphrase-fd")
    assert "more: whole" in world.privft(*looking, str(piped(b"open sesame\n"))).out
    refused(world, *looking, str(piped(b"open simsim\n")), code=1, error="does not open the vault")


def piped(secret: bytes) -> int:
    reading, writing = os.pipe()
    os.write(writing, secret)
    os.close(writing)
    return reading


def test_keys_that_are_not_on_the_ring_are_nobodys(world: World, tmp_path: Path) -> None:
    base_key = world.folder / "workspace" / "keys" / "ada.key"
    for name in ("ada", "eve"):
        privft("init", tmp_path / name, "--name", name)
    plan = world.planned()
    stranger = tmp_path / "eve" / "keys" / "eve.key"
    refused(world, "train", plan, "--key", stranger, code=10, error="nobody named eve")
    namesake = tmp_path / "ada" / "keys" / "ada.key"
    refused(world, "train", plan, "--key", namesake, code=10, error="other keys for ada")
    torn = world.folder / "torn.key"
    torn.write_bytes(base_key.read_bytes()[:-20])
    refused(world, "train", plan, "--key", torn, code=13, error="")
    refused(world, "train", plan, "--key", world.folder / "no.key", code=2, error="cannot read")
    refused(world, "train", plan, "--as", "eve", code=2, error="eve has no keys on this machine")
    wrong = ("--as", "eve", "--key", base_key)
    refused(world, "train", plan, *wrong, code=1, error="the keys of ada, not of eve")


def test_a_revoked_operator_acts_no_more(world: World) -> None:
    plan = world.planned()
    world.privft("keys", "create", "bob")
    world.privft("keys", "revoke", "ada", "--reason", "left", "--as", "bob")
    refused(world, "train", plan, "--as", "ada", code=13, error="the keys of ada were not good")


# -- an edited vault -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["manifest", "index", "records", "cells"])
def test_an_edited_vault_is_noticed_before_anything_is_charged(world: World, kind: str) -> None:
    plan = world.planned()
    (path,) = (world.folder / "workspace" / "vaults" / "notes").glob(f"{kind}*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(world, "train", plan, code=13, error="")
    refused(world, "vault", "verify", "notes", code=13, error="")


def test_an_older_version_of_a_vault_is_noticed(world: World, tmp_path: Path) -> None:
    vault = world.folder / "workspace" / "vaults" / "notes"
    shutil.copytree(vault, tmp_path / "backup")
    world.privft("vault", "add", "notes", world.folder / "public.jsonl")
    plan = world.planned()
    shutil.rmtree(vault)
    shutil.copytree(tmp_path / "backup", vault)
    words = "is not the version that the ledger names"
    refused(world, "train", plan, code=13, error=words, hint="backup")
    looking = ("vault", "verify", "notes", "--adopt")
    refused(world, *looking, code=1, error="is not one change ahead of the ledger's newest entry")


def test_an_older_ledger_is_noticed_by_vault_and_plan(world: World, tmp_path: Path) -> None:
    ledger = world.folder / "workspace" / "ledger.db"
    shutil.copy(ledger, tmp_path / "backup")
    world.privft("vault", "rotate", "notes")
    plan = world.planned()
    shutil.copy(tmp_path / "backup", ledger)
    refused(world, "train", plan, code=13, error="the plan has seen 7 ledger entries")


def test_a_ledger_from_before_a_run_is_noticed_by_what_the_run_has_seen(
    world: World, tmp_path: Path
) -> None:
    """The vault did not change since, and a new plan has seen nothing newer: the run would be
    free."""
    ledger = world.folder / "workspace" / "ledger.db"
    shutil.copy(ledger, tmp_path / "backup")
    run = world.trained()
    with world.ledger() as opened:
        size, newest = opened.size, opened.checkpoint()
    shutil.copy(tmp_path / "backup", ledger)
    plan = world.planned()
    refused(world, "train", plan, code=13, error=f"run {run} has seen {size} ledger entries")
    told = world.privft("ledger", "verify", code=13).err
    assert f"and a checkpoint of {size} was signed" in told
    note = tmp_path / "newest.note"
    note.write_text(newest)
    world.privft("keys", "create", "bo", "--role", "approver", "--out", tmp_path / "bo.key")
    two = ("--key", world.folder / "workspace" / "keys" / "ada.key", "--key", tmp_path / "bo.key")
    world.privft("ledger", "recover", "--known", note, "--reason", "the disk died", *two)
    gone = world.privft("plan", world.folder / "run.yaml", code=11)
    assert "spent" in gone.err, "what the run kept is excused, and no budget is left"


# -- plans -----------------------------------------------------------------------------------------


def test_a_plan_is_trained_once(world: World) -> None:
    world.trained()
    refused(
        world, "train", world.folder / "run.plan", code=14, error="this plan was trained already"
    )


def test_a_plan_is_stale_after_another_run(world: World) -> None:
    first = world.planned("first")
    world.trained("second", steps=3)  # of another config: no copy of the first plan
    words = "the plan is stale: the budget"
    refused(world, "train", first, code=14, error=words, hint="privft plan")


def test_a_plan_is_stale_after_the_data_changed(world: World) -> None:
    plan = world.planned()
    world.privft("vault", "add", "notes", world.folder / "public.jsonl")
    refused(world, "train", plan, code=14, error="the plan is stale: the data")
    again = world.planned("again")
    world.privft("vault", "rotate", "notes", "--reencrypt")
    refused(world, "train", again, code=14, error="the plan is stale: the data")


def test_entries_that_leave_the_budget_alone_do_not_make_a_plan_stale(world: World) -> None:
    plan = parse_plan(world.planned().read_bytes())
    world.privft("keys", "create", "bob")
    making = ("vault", "create", "more", "--unit", "record", "--text", "note", *SIZE)
    world.privft(*making, "--as", "ada")
    with world.ledger() as ledger:
        planning.check_unedited(plan)
        planning.check_fresh(world.workspace, ledger, plan)


def test_a_run_that_came_in_between_is_seen_before_the_reservation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes train one plan: the slower one finds it stale."""
    plan = world.planned()

    def overtaken(*_: Any) -> list[Any]:
        monkeypatch.undo()
        with unchecked():
            world.privft("train", plan)
        return []

    monkeypatch.setattr(running, "_self_check", overtaken)
    world.privft("train", plan, code=14)
    assert len(world.runs()) == 1


def test_a_failed_self_check_costs_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = [Check(check="scale of the noise", ok=False, detail="spread 0.5 of what it should be")]
    monkeypatch.setattr(running, "check_mechanism", lambda *_, **__: bad)
    plan = world.planned()
    words = "self-check failed: scale of the noise: spread 0.5"
    refused(world, "train", plan, code=13, error=words, hint="nothing was charged")


def edited(plan: Plan, field: str, value: Any) -> bytes:
    body = plan.model_dump(mode="json")
    *way, last = field.split(".")
    inner = body
    for key in way:
        inner = inner[key]
    inner[last] = value
    return canonical_json(body) + b"\n"


EDITS: list[tuple[str, Any, int]] = [
    ("mechanism.noise_multiplier", 0.5, 14),
    ("mechanism.steps", 3, 14),
    ("mechanism.clip_norm", 9.0, 14),
    ("mechanism.sampling_probability", 0.01, 14),
    ("mechanism.expected_batch_size", 1.0, 14),
    ("mechanism.unit", "record", 14),
    ("delta", 1e-4, 14),
    ("max_records_per_unit", 9, 14),
    ("cost.epsilon_pld", 0.1, 14),
    ("cost.epsilon_rdp", None, 14),
    ("substitute.epsilon_pld", 0.1, 14),
    ("config.max_length", 16, 14),
    ("config.privacy.max_grad_norm", 9.0, 14),
    ("config_sha256", "ab" * 32, 14),
    ("policy.name", "research", 14),
    ("policy.may_show_private_metrics.value", True, 14),
    ("policy_sha256", "ab" * 32, 14),
    ("manifest_root", "ab" * 32, 14),
    ("budget_sha256", "ab" * 32, 14),
    ("suite_sha256", "ab" * 32, 14),
    ("suite", "standard", 14),
    ("dataset", "intents", 14),
    ("lineage", "0" * 32, 14),
    ("model.weights_sha256", "ab" * 32, 14),
    ("model.tokenizer_sha256", "ab" * 32, 14),
    ("model.name", "lama", 14),
    ("checkpoint", "made up", 13),
    ("format", "privft-plan-v2", 14),
]


def test_an_edited_plan_is_refused_whatever_was_edited(world: World) -> None:
    path = world.planned()
    plan = parse_plan(path.read_bytes())
    for field, value, code in EDITS:
        other = world.folder / "other.plan"
        other.write_bytes(edited(plan, field, value))
        with nothing_left_behind(world):
            done = world.privft("train", other, code=code)
        assert "unforeseen" not in done.err, field
        assert done.err.startswith("error: "), field


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b'"steps":4', b'"steps": 4'),
        lambda data: b" " + data,
        lambda data: data[:-40],
        lambda data: data.replace(b'"created"', b'"Created"'),
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"\xff\xfe",
    ],
)
def test_a_file_that_is_no_plan_is_refused(world: World, change: Callable[[bytes], bytes]) -> None:
    path = world.planned()
    path.write_bytes(change(path.read_bytes()))
    with nothing_left_behind(world):
        done = world.privft("train", path, code=14)
    assert done.err.startswith("error: this ")


def test_a_plan_without_the_approval_that_the_policy_wants_is_refused(world: World) -> None:
    overlay = world.folder / "ward.yaml"
    overlay.write_text(
        "version: 1\nname: ward\nextends: default\npurpose: two people for every run here\n"
        "approvals: {value: 1, why: nobody trains alone on this ward, source: ward committee}\n"
        "four_eyes: {value: true, why: nobody trains alone on this ward, source: ward committee}\n"
        "countersignatures: {value: 1, why: somebody reads what leaves here, source: committee}\n"
    )
    rows = write_rows(world.folder / "r.jsonl", note_rows(patients=10, seed=4))
    making = ("vault", "create", "ward", "--from", rows, *NOTES, *SIZE, "--policy", overlay)
    world.privft(*making)
    config = world.config("ward-run")
    config.write_text(config.read_text().replace("dataset: notes", "dataset: ward"))
    world.privft("plan", config)
    plan = world.folder / "ward-run.plan"
    words = "and the plan has 0 approval(s): nobody"
    refused(world, "train", plan, code=14, error=words, hint="privft approve")
    world.privft("approve", plan)  # ada herself
    refused(world, "train", plan, code=14, error="and the plan has 1 approval(s): ada")
    for name, role in (("bob", "operator"), ("cyd", "approver")):
        world.privft("keys", "create", name, "--role", role, "--as", "ada")
    refused(world, "approve", plan, "--as", "bob", code=10, error="does not include approver")
    world.privft("approve", plan, "--as", "cyd")
    *kept, later = world.privft("policy", "check", plan, "--json").json
    assert all(row["ok"] for row in kept)
    assert (later["rule"], later["limit"], later["ok"]) == ("countersignatures", 1, None)
    assert "privft countersign" in world.privft("policy", "check", plan).out
    with unchecked():
        run = world.privft("train", plan, "--as", "ada", "--json").json["run"]
    released()
    assert f"next: privft countersign {run}" in world.privft("audit", run, "--as", "ada").err
    folder = world.folder / "out"
    leave, words = ("release", run, "--to", folder, "--as", "ada"), "wants 1 countersignature(s)"
    refused(world, *leave, code=10, error=words, hint="privft countersign")
    refused(world, *leave, "--dry-run", code=10, error=words, hint="privft countersign")
    assert "next: another approver's" in world.privft("countersign", run, "--as", "ada").err
    refused(world, *leave, code=10, error="it has 0: nobody", hint="privft countersign")  # herself
    world.privft("countersign", run, "--as", "cyd")
    world.privft(*leave)
    rows_seen = {row["name"]: row for row in world.privft("verify", folder, "--json").json}
    assert rows_seen["approvals"]["detail"].startswith("approved by ada, cyd")
    assert rows_seen["countersignatures"]["detail"] == "1 asked for, 1 there: cyd"


def test_a_run_beyond_the_budget_is_refused_and_the_refusal_recorded(world: World) -> None:
    """The first run, at epsilon 2.7, takes 6.5 of the 8 that the filter admits, the second 1."""
    world.trained("first", noise=0.6)
    world.trained("second", noise=0.6)
    with world.ledger() as ledger:
        lineage = ledger.runs()[0].lineage
        view = ledger.budget(lineage)
    config = world.config("third", noise=0.6)
    words = "left for dataset notes"
    result = refused(world, "plan", config, code=11, error=words, entry="run-refused")
    with world.ledger() as ledger:
        assert ledger.entries()[-1].body["code"] == 11
        assert ledger.entries()[-1].body["reason"] in result.err
        assert ledger.budget(lineage) == view
    found = re.search(r"hint: --target-epsilon ([0-9.]+) or (\d) steps instead of 4", result.err)
    assert found is not None, result.err
    with world.ledger() as ledger:
        fitted = affording.fitted(world.workspace, ledger, load_config(config))
    assert fitted.privacy.target_epsilon == float(found[1])
    event = parse_plan((world.folder / "first.plan").read_bytes()).events()[0]
    with world.ledger() as ledger:
        for steps, fits_still in ((int(found[2]), True), (int(found[2]) + 1, False)):
            new = (replace(event, count=steps),)
            assert ledger.admission(lineage, new).admitted is fits_still
    assert len(world.runs()) == 2


@pytest.mark.slow
def test_a_plan_is_fitted_into_what_the_budget_has_left(world: World) -> None:
    for name in ("first", "second"):
        world.trained(name, noise=0.6)
    config = world.config("third", noise=0.6)
    fitted = world.privft("plan", config, "--fit", "--json").json
    target = parse_plan(config.with_suffix(".plan").read_bytes()).config["privacy"][
        "target_epsilon"
    ]
    assert target - 0.01 < fitted["epsilon"] <= target
    more = config.read_text().replace("noise_multiplier: 0.6", f"target_epsilon: {target + 0.1}")
    config.write_text(more)
    refused(world, "plan", config, code=11, error="left for dataset notes", entry="run-refused")


def test_a_fitted_plan_keeps_to_what_the_policy_allows_a_run(world: World) -> None:
    """The default policy admits 8 in total and 3 a run: an untouched budget would hold more."""
    fitted = world.privft("plan", world.config("greedy", noise=0.3), "--fit", "--json").json
    assert 2.9 < fitted["epsilon"] <= 3.0


def test_a_missing_evaluation_file_is_named_before_anything_is_spent(world: World) -> None:
    config = world.config("first", noise=0.9)
    config.write_text(config.read_text().replace("public.jsonl", "pubic.jsonl"))
    before = world.kinds()
    done = world.privft("plan", config, code=2)
    assert "error: there is no evaluation file" in done.err
    assert "--config-folder" in done.err
    assert world.kinds() == before


def test_a_run_that_the_policy_does_not_allow_is_refused_and_recorded(world: World) -> None:
    config = world.config("greedy", noise=0.5, steps=8)
    before = world.kinds()
    world.privft("plan", config, "--dry-run", code=10)
    assert world.kinds() == before
    words = "policy 'default' wants max_epsilon_per_run 3, and the plan has"
    refused(world, "plan", config, code=10, error=words, hint="target", entry="run-refused")
    with world.ledger() as ledger:
        assert ledger.entries()[-1].body["code"] == 10


# -- files that people write -----------------------------------------------------------------------


def test_an_unknown_policy_field_is_named_with_the_nearest(world: World) -> None:
    policy = world.folder / "mine.yaml"
    shipped = Path(__file__).resolve().parents[2] / "policies" / "default.yaml"
    policy.write_text(shipped.read_text().replace("total_epsilon:", "totl_epsilon:"))
    words = "unknown key 'totl_epsilon'"
    making = ("vault", "create", "more", "--unit", "record", "--text", "note", *SIZE)
    refused(
        world,
        *making,
        "--policy",
        policy,
        code=2,
        error=words,
        hint="did you mean 'total_epsilon'?",
    )
    refused(world, "policy", "show", policy, code=2, error=words, hint="'total_epsilon'")


def test_a_policy_that_was_edited_after_it_came_into_force_is_noticed(world: World) -> None:
    plan = world.planned()
    (kept,) = (world.folder / "workspace" / "policies").iterdir()
    policy = json.loads(kept.read_text())
    policy["max_epsilon_per_run"]["value"] = 9.0
    kept.write_bytes(canonical_json(policy))
    refused(world, "train", plan, code=13, error="was edited after it came into force")
    refused(world, "plan", world.folder / "run.yaml", code=13, error="was edited")
    kept.unlink()
    refused(world, "train", plan, code=13, error="the policy")


@pytest.mark.parametrize(
    ("old", "new", "error", "hint"),
    [
        ("max_steps", "max_step", "unknown key 'max_step'", "did you mean 'max_steps'?"),
        ("lora: {r: 2", "lora: {rank: 2", "unknown key 'rank' in lora", "lora.r"),
        ("max_length: 32", "epochs: 3", "unknown key 'epochs'", ""),
        ("dataset: notes", "dataset: nots", "there is no data set 'nots'", "known: notes, intents"),
        ("declared_units: 1000", "declared_units: 900", "was created with 1000", "1000"),
        ("  unit: subject", "  unit: record", "max_records_per_unit", ""),
        ("name_or_path: llama", "name_or_path: lama", "'lama' is none", "privft looks nothing up"),
        ("name_or_path: llama", "name_or_path: builtin:gpt", "expected one of builtin:", ""),
    ],
)
def test_a_slip_in_a_config_is_named(
    world: World, old: str, new: str, error: str, hint: str
) -> None:
    config = world.config("slip")
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    refused(world, "plan", config, code=2, error=error, hint=hint)


@pytest.mark.parametrize("dataset", ["notes", "intents"])
def test_a_task_that_is_not_for_the_records_is_refused_at_planning(
    world: World, dataset: str
) -> None:
    config = world.config("wrong")
    text = config.read_text()
    if dataset == "notes":
        text = CLASSIFY.format(lora="null").replace("dataset: intents", "dataset: notes")
        text = text.replace("unit: record", "unit: subject\n  max_records_per_unit: 2")
    else:
        text = text.replace("dataset: notes", "dataset: intents")
        text = text.replace("unit: subject", "unit: record").replace(
            "max_records_per_unit: 2", "max_records_per_unit: 1"
        )
    config.write_text(text)
    refused(world, "plan", config, code=2, error="is not for records of the form", hint="needs")


def test_a_label_that_the_config_does_not_list_is_noticed_before_anything_is_charged(
    world: World,
) -> None:
    config = world.folder / "classify.yaml"
    text = CLASSIFY.format(lora="null").replace("[card, cash, loan]", "[card, cash]")
    config.write_text(text)
    world.privft("plan", config)
    words = "a record carries a label that the config's `labels` does not list"
    refused(world, "train", config.with_suffix(".plan"), code=2, error=words, hint="list them all")


# -- model folders ---------------------------------------------------------------------------------


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickled(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def own_code(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModel": "modeling.Mine"})


def remote_code(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", trust_remote_code=True)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def few_words(folder: Path) -> None:
    path = folder / "tokenizer.json"
    body = json.loads(path.read_text())
    words = body["model"]["vocab"]
    body["model"]["vocab"] = {w.upper() if i > 9 else w: i for i, w in enumerate(words)}
    path.write_text(json.dumps(body))


def torn(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


MODELS: dict[Callable[[Path], None], str] = {
    no_tokenizer: "holds no tokenizer.json",
    pickled: "holds pickled files (pytorch_model.bin)",
    only_pickled: "holds pickled files (pytorch_model.bin)",
    own_code: "asks for code of its own (auto_map)",
    remote_code: "asks for code of its own (trust_remote_code)",
}


@pytest.mark.parametrize("fault", MODELS, ids=lambda fault: fault.__name__)
def test_a_model_folder_that_must_not_be_loaded_is_refused_at_planning(
    world: World, fault: Callable[[Path], None]
) -> None:
    fault(world.folder / "llama")
    refused(world, "plan", world.config(), code=2, error=MODELS[fault])


@pytest.mark.parametrize("fault", MODELS, ids=lambda fault: fault.__name__)
def test_a_model_folder_that_went_bad_after_planning_is_refused(
    world: World, fault: Callable[[Path], None]
) -> None:
    plan = world.planned()
    fault(world.folder / "llama")
    refused(world, "train", plan, code=2, error=MODELS[fault])


@pytest.mark.parametrize("fault", [few_words, torn], ids=["few words", "torn weights"])
def test_a_model_that_cannot_be_used_is_noticed_before_anything_is_charged(
    world: World, fault: Callable[[Path], None]
) -> None:
    fault(world.folder / "llama")
    plan = world.planned()
    refused(world, "train", plan, code=2, error="")


def test_a_model_that_changed_after_planning_is_refused(world: World) -> None:
    plan = world.planned()
    edit_json(world.folder / "llama" / "config.json", rope_theta=9.0)
    words = "the model llama changed since the plan was made"
    refused(world, "train", plan, code=14, error=words, hint="privft plan")


def test_a_chat_without_a_template_is_noticed_before_anything_is_charged(world: World) -> None:
    chats = [
        {"id": row["id"], "who": row["patient"], "chat": [{"role": "assistant", "content": "ba"}]}
        for row in note_rows(patients=9, seed=3)
    ]
    columns = ("--messages", "chat", "--subject", "who", "--id", "id", "--unit", "subject")
    rows = write_rows(world.folder / "chats.jsonl", chats)
    world.privft("vault", "create", "chats", "--from", rows, *columns, *SIZE)
    config = world.config("chat")
    config.write_text(config.read_text().replace("dataset: notes", "dataset: chats"))
    world.privft("plan", config)
    plan = config.with_suffix(".plan")
    refused(world, "train", plan, code=2, error="no chat template", hint="chat_template")


def test_an_instruction_needs_prompts_and_a_template(world: World) -> None:
    config = world.config("asking")
    config.write_text(config.read_text() + 'instruction: "Sum up."\n')
    words = "instruction asks for completions, and data set notes has records of the form text"
    refused(world, "plan", config, code=2, error=words, hint="--prompt")

    told = [
        {"id": row["id"], "who": row["patient"], "said": "ba be", "note": "bo"}
        for row in note_rows(patients=9, seed=3)
    ]
    columns = ("--prompt", "said", "--completion", "note", "--subject", "who", "--id", "id")
    rows = write_rows(world.folder / "told.jsonl", told)
    world.privft("vault", "create", "told", "--from", rows, *columns, "--unit", "subject", *SIZE)
    config.write_text(config.read_text().replace("dataset: notes", "dataset: told"))
    world.privft("plan", config)
    plan = config.with_suffix(".plan")
    words = "the config has an instruction, and the tokenizer has no chat template"
    refused(world, "train", plan, code=2, error=words, hint="chat_template")


# -- releases and names ----------------------------------------------------------------------------


def test_what_was_not_audited_does_not_leave(world: World) -> None:
    run = world.trained()
    out = world.folder / "out"
    words = f"run {run} has not been audited: its adapter stays sealed"
    leaving = ("release", run, "--to", out)
    refused(world, *leaving, code=12, error=words, hint=f"privft audit {run}")
    refused(world, "train", "--resume", run, code=1, error=f"run {run} is trained")


def test_a_release_overwrites_nothing(tmp_path: Path) -> None:
    done = released()
    world = done.world.copied(tmp_path / "world")
    again = ("release", done.run, "--to")
    refused(world, *again, world.folder / "out", code=2, error="exists")
    refused(world, *again, world.folder / "no" / "out", code=2, error="there is no folder")
    (world.folder / "file").write_text("x")
    with nothing_left_behind(world):
        world.privft(*again, world.folder / "file", code=2)


@pytest.mark.parametrize("name", ["plan.json", "statement.dsse.json"])
def test_a_run_whose_public_files_were_edited_does_not_leave(tmp_path: Path, name: str) -> None:
    done = released()
    world = done.world.copied(tmp_path / "world")
    path = world.workspace.run_path(done.run) / name
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with nothing_left_behind(world):
        done_again = world.privft("release", done.run, "--to", world.folder / "again", code=None)
    assert done_again.code in (13, 14)


def test_a_stored_plan_exchanged_for_another_is_noticed(world: World) -> None:
    run = world.trained()
    other = parse_plan(world.planned("other", noise=1.5).read_bytes())
    path = world.workspace.run_path(run) / "plan.json"
    path.write_bytes(other.to_bytes() + b"\n")
    for command in (("audit", run), ("release", run, "--to", world.folder / "x")):
        code = 12 if command[0] == "release" else 13
        refused(world, *command, code=code, error=run)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_sealed_adapter_that_was_altered_does_not_leave(tmp_path: Path, name: str) -> None:
    done = released()
    world = done.world.copied(tmp_path / "world")
    path = world.workspace.run_path(done.run) / "adapter" / f"{name}.sealed"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    again = ("release", done.run, "--to", world.folder / "again")
    refused(world, *again, code=13, error="was altered")
    path.unlink()
    refused(world, *again, code=13, error="is not the one that was audited")


def test_unknown_runs_and_data_sets_are_named_as_such(world: World) -> None:
    for command in (("audit", "r-9"), ("train", "--resume", "r-9"), ("runs", "show", "r-9")):
        refused(world, *command, code=1, error="run r-9 is not in the ledger")
    refused(world, "release", "r-9", "--to", world.folder / "x", code=1, error="run r-9")
    for command in (("vault", "inspect", "no"), ("vault", "recipients", "list", "no")):
        refused(world, *command, code=2, error="no")
