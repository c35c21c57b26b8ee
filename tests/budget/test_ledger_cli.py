"""What `privft ledger` tells a person: what is spent, what is left, and by which runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from click.testing import CliRunner, Result

from privft.budget.accounting import cost
from privft.budget.filter import fits
from privft.budget.ledger import Ledger
from privft.cli import main
from privft.signing import Identity
from privft.workspace import Workspace
from tests.budget.samples import CAP, LINEAGE, dataset_body, mechanism, reserve, run_to_the_end

OTHER = "fedcba9876543210" * 2


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two data sets of one lineage, one of another; three runs, one of them open."""
    owner = Identity.generate("ada")
    made = Workspace.create(tmp_path / "ward", owner=owner, roles=("operator",))
    with made.ledger() as ledger:
        ledger.append("dataset-created", dataset_body(), actor="ada")
        ledger.append("dataset-created", dataset_body(dataset="copy"), actor="ada")
        other = dataset_body(dataset="letters", lineage=OTHER)
        ledger.append("dataset-created", other, actor="ada")
        run_to_the_end(ledger, steps=3)
        run_to_the_end(ledger, steps=5)
        reserve(ledger, dataset="copy", steps=7, noise=2.0)
    return made


def privft(workspace: Workspace, *arguments: str | Path, code: int = 0) -> Result:
    command = ["--workspace", str(workspace.folder), *map(str, arguments)]
    with mock.patch("privft.hardening.lock_down"):
        done = CliRunner().invoke(main, command)
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done


def test_show_says_what_is_spent_left_and_fits_for_each_data_set(workspace: Workspace) -> None:
    rows = json.loads(privft(workspace, "ledger", "show", "--json").stdout)
    assert [row["dataset"] for row in rows] == ["notes", "copy", "letters"]
    with workspace.ledger() as ledger:
        view = ledger.budget(LINEAGE)
    for row in rows[:2]:  # a copy stands under the same budget
        assert row["epsilon_spent"] == view.epsilon_spent
        assert row["epsilon_left"] == pytest.approx(CAP.epsilon - view.epsilon_spent)
        spent = (*view.spent, *view.reserved)
        last = mechanism(steps=7, noise=2.0).event()
        assert row["more_like_the_last"] == fits(CAP, spent, last)
    assert (rows[2]["epsilon_spent"], rows[2]["more_like_the_last"]) == (0.0, None)


def test_show_lists_the_runs_of_each_budget(workspace: Workspace) -> None:
    (row, *_) = json.loads(privft(workspace, "ledger", "show", "--json").stdout)
    runs = row["run_table"]
    assert [run["dataset"] for run in runs] == ["notes", "notes", "copy"]
    assert [run["steps_charged"] for run in runs] == [3, 5, 7]
    assert [run["state"].split(":")[0] for run in runs] == ["completed", "completed", "open"]
    after = [run["epsilon_after"] for run in runs]
    assert after == sorted(after)
    assert after[-1] == pytest.approx(row["epsilon_spent"])
    (newest,) = json.loads(privft(workspace, "ledger", "show", "--last", "1", "--json").stdout)[0][
        "run_table"
    ]
    assert newest == runs[-1]
    shown = privft(workspace, "ledger", "show", "--last", "2").stdout
    assert "Runs on notes and copy, the last 2 of 3" in shown
    assert runs[0]["run"] not in shown
    assert "Runs on letters" not in shown


def test_runs_composed_by_pld_are_shown_on_request_with_what_that_assumes(
    workspace: Workspace,
) -> None:
    assumption = "if parameters had been chosen without looking at earlier outputs"
    assert assumption not in privft(workspace, "ledger", "show").stdout
    shown = " ".join(privft(workspace, "ledger", "show", "--composed").stdout.split())
    assert shown.index("Budgets") < shown.index(assumption), "it never headlines"
    assert f"by PLD, {assumption}; the guarantee is the cap" in shown
    rows = json.loads(privft(workspace, "ledger", "show", "--composed", "--json").stdout)
    with workspace.ledger() as ledger:
        view = ledger.budget(LINEAGE)
    together = cost((*view.spent, *view.reserved), CAP.delta).epsilon_pld
    assert rows[0]["composed"] == {
        "epsilon_pld": together,
        "delta": CAP.delta,
        "holds": assumption,
        "why_not": None,
    }
    assert rows[2]["composed"]["epsilon_pld"] == 0.0


def test_backup_copies_the_ledger_and_remembers_when(workspace: Workspace, tmp_path: Path) -> None:
    privft(workspace, "ledger", "backup", tmp_path / "copy.db")
    with Ledger.open(tmp_path / "copy.db", log_key=workspace.log.public) as copy:
        size = copy.verify().size
    last = workspace.last_backup()
    assert last is not None
    assert last[1] == size
    privft(workspace, "ledger", "backup", tmp_path / "copy.db", code=2)  # never over another


def test_verify_compares_with_a_checkpoint_from_outside(
    workspace: Workspace, tmp_path: Path
) -> None:
    note = tmp_path / "kept.note"
    note.write_text(privft(workspace, "ledger", "checkpoint").stdout)
    with workspace.ledger() as ledger:
        run_to_the_end(ledger)
    said = json.loads(privft(workspace, "ledger", "verify", "--checkpoint", note, "--json").stdout)
    assert (said["checkpoints"], said["superseded"]) == (1, 0)


def test_an_export_verifies_elsewhere_by_the_trust_root_alone(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    privft(workspace, "ledger", "export", "-o", "bundle.json")
    for name, verb in (("trust.json", "trust"), ("kept.note", "checkpoint")):
        Path(name).write_text(privft(workspace, "ledger", verb).stdout)
    (tmp_path / "ward").rename(tmp_path / "far away")
    check = ("ledger", "verify", "--bundle", "bundle.json")
    said = json.loads(without_workspace(*check, "--trust", "trust.json", "--json").stdout)
    assert (said["entries"], said["runs"], said["open_runs"], said["budgets"]) == (10, 3, 1, 2)
    without_workspace(*check, "--trust", "trust.json", "--checkpoint", "kept.note")
    assert "whose signatures count" in without_workspace(*check, code=2).stderr
    without_workspace("ledger", "verify", "--trust", "trust.json", code=2)
    bundle = json.loads(Path("bundle.json").read_text())
    short = bundle | {"entries": bundle["entries"][:-1]}
    wrongs: list[Any] = [short, [], "x", bundle | {"more": 1}]
    for wrong in wrongs:
        Path("bundle.json").write_text(json.dumps(wrong))
        without_workspace(*check, "--trust", "trust.json", code=13)
    Path("bundle.json").write_text("{")
    without_workspace(*check, "--trust", "trust.json", code=13)


def without_workspace(*arguments: str, code: int = 0) -> Result:
    with mock.patch("privft.hardening.lock_down"):
        done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done
