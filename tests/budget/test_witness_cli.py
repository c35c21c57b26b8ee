"""Yesterday's disk image, a witness, and the lawful way on, as an operator would do it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from privft.budget.ledger import Ledger
from privft.workspace import Workspace
from tests.budget.samples import CAP, LINEAGE, dataset_body, run_to_the_end

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
COMMAND = [sys.executable, "-c", "from privft.cli import main; main()"]


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A workspace of ada and bo with one budget, and a witness beside it that it enrolled."""

    folder: Path

    @property
    def workspace(self) -> Path:
        return self.folder / "ward"

    def command(self) -> list[str]:
        return [*COMMAND, "--workspace", str(self.workspace)]

    def privft(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.command(), *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env=ENVIRONMENT,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done

    def ledger(self) -> Ledger:
        return Workspace.open(self.workspace).ledger()

    def ask(self, *, code: int = 0) -> tuple[dict[str, Any] | None, str]:
        """Ask, let the witness answer, and let the asking command end: what it said."""
        answer, challenge = self.folder / "answer.json", self.folder / "challenge.json"
        answer.unlink(missing_ok=True)
        challenge.unlink(missing_ok=True)
        options = ["--as", "ada", "--wait-s", "60", "--json"]
        with subprocess.Popen(
            [*self.command(), "ledger", "witness", "ask", "desk", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=ENVIRONMENT,
        ) as asking:
            for _ in range(600):
                if challenge.exists():
                    break
                assert asking.poll() is None, asking.stderr and asking.stderr.read()
                time.sleep(0.1)
            self.answer()
            out, err = asking.communicate(timeout=60)
        assert asking.returncode == code, (out, err)
        return (json.loads(out) if out else None), err

    def answer(self) -> None:
        """On the witness's machine: no workspace there."""
        self.privft(
            "ledger", "witness", "answer", "challenge.json", "-o", "answer.json",
            "--key", "desk.key", "--state", "ward.state", "--trust", "trust.json",
        )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(folder=tmp_path_factory.mktemp("desk"))
    desk.privft("init", desk.workspace, "--name", "ada")
    desk.privft("keys", "create", "bo", "--role", "approver", "--as", "ada")
    trust = desk.privft("ledger", "trust").stdout
    (desk.folder / "trust.json").write_text(trust)
    public = desk.privft("ledger", "witness", "key", "desk", "--out", desk.folder / "desk.key")
    (desk.folder / "desk.pub").write_text(public.stdout)
    desk.privft("ledger", "witness", "enrol", desk.folder / "desk.pub", "--as", "ada")
    with desk.ledger() as ledger:
        ledger.append("dataset-created", dataset_body(), actor="ada")
        run_to_the_end(ledger)
    return desk


@pytest.fixture
def desk(made: Desk, tmp_path: Path) -> Desk:
    shutil.copytree(made.folder, tmp_path / "desk")
    return Desk(folder=tmp_path / "desk")


def test_a_witness_whose_name_is_taken_is_a_slip_of_the_caller_and_changes_nothing(
    desk: Desk,
) -> None:
    with desk.ledger() as ledger:
        size = ledger.size
    said = desk.privft("ledger", "witness", "enrol", "desk.pub", "--as", "ada", code=2)
    assert "error: desk is on the ring already" in said.stderr
    assert "privft keys revoke desk first" in said.stderr
    with desk.ledger() as ledger:
        assert ledger.size == size


def test_yesterdays_image_is_refused_and_the_lawful_way_on_costs_every_budget(desk: Desk) -> None:
    said, _ = desk.ask()
    assert said is not None
    assert said["cosigned"]
    image = desk.folder / "image"
    shutil.copytree(desk.workspace, image)  # yesterday's disk, keys and all
    with desk.ledger() as ledger:
        run_to_the_end(ledger)
    desk.ask()
    with desk.ledger() as ledger:
        size, spent = ledger.size, ledger.budget(LINEAGE).epsilon_spent

    shutil.rmtree(desk.workspace)
    shutil.copytree(image, desk.workspace)
    desk.privft("ledger", "verify")  # from inside, it looks perfect
    said, told = desk.ask(code=13)
    assert said is None
    assert f"and a checkpoint of {size - 1} was signed" in told
    assert "hint: it was rolled back" in told
    with desk.ledger() as ledger:
        assert ledger.budget(LINEAGE).epsilon_spent < spent
        restored = ledger.size

    keys = desk.workspace / "keys"
    recover = ("ledger", "recover", "--known", desk.folder / "answer.json", "--reason", "disk died")
    two = ("--key", keys / "ada.key", "--key", keys / "bo.key")
    desk.privft(*recover, *two[:2], code=2)
    assert "dry run" in desk.privft(*recover, *two, "--dry-run").stderr
    with desk.ledger() as ledger:
        assert ledger.size == restored
    desk.privft(*recover, *two)
    with desk.ledger() as ledger:
        view = ledger.budget(LINEAGE)
        assert (view.epsilon_spent, view.epsilon_left) == (CAP.epsilon, 0.0)
        assert len(ledger.entries(kind="recovered")) == 1
    shown = json.loads(desk.privft("ledger", "show", "--json").stdout)
    assert (shown[0]["epsilon_left"], shown[0]["more_like_the_last"]) == (0.0, 0)
    # the witness's own checkpoint is excused by name; it follows again from a new beginning
    said, _ = desk.ask()
    assert said is not None
    assert not said["cosigned"]
    (desk.folder / "ward.state").unlink()
    said, _ = desk.ask()
    assert said is not None
    assert said["cosigned"]
    again = ("ledger", "recover", "--known", desk.folder / "ward.state", "--reason", "x")
    assert "is not lost" in desk.privft(*again, *two, code=1).stderr


def test_an_old_answer_does_not_pass_on_a_disk_that_was_set_back(desk: Desk) -> None:
    """The nonce was in memory, so the challenge that the old answer fits is gone for good."""
    desk.ask()
    kept = (desk.folder / "answer.json").read_bytes()
    image = desk.folder / "image"
    shutil.copytree(desk.workspace, image)
    with desk.ledger() as ledger:
        run_to_the_end(ledger)
    desk.ask()
    shutil.rmtree(desk.workspace)
    shutil.copytree(image, desk.workspace)
    answer = desk.folder / "answer.json"
    answer.unlink()
    with subprocess.Popen(
        [*desk.command(), "ledger", "witness", "ask", "desk", "--as", "ada"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=desk.folder,
        env=ENVIRONMENT,
    ) as asking:
        while not (desk.folder / "challenge.json").exists():
            assert asking.poll() is None
            time.sleep(0.1)
        answer.write_bytes(kept)
        _, told = asking.communicate(timeout=60)
    assert asking.returncode == 13, told
    assert "answer to another challenge" in told


def test_a_witness_learns_of_a_ledger_from_its_trust_root_and_keeps_to_it(desk: Desk) -> None:
    desk.ask()
    other = desk.folder / "other"
    desk.privft("init", other, "--name", "ada")
    trust = desk.folder / "other.json"
    trust.write_text(
        subprocess.run(
            [*COMMAND, "--workspace", str(other), "ledger", "trust"],
            capture_output=True,
            text=True,
            check=True,
            env=ENVIRONMENT,
        ).stdout
    )
    challenge = desk.folder / "c.json"
    with desk.ledger() as ledger:
        from privft.budget.witness import ask

        challenge.write_text(json.dumps(ask(ledger, "desk")))
    options = ("-o", "a.json", "--key", "desk.key")
    answer = ("ledger", "witness", "answer", "c.json", *options)
    desk.privft(*answer, "--state", "ward.state", "--trust", trust, code=13)
    desk.privft(*answer, "--state", "nowhere", code=2)
    desk.privft(*answer, "--state", "nowhere", "--trust", trust, code=13)
    assert not (desk.folder / "a.json").exists()
    assert not (desk.folder / "nowhere").exists()


def test_of_two_answers_at_once_the_second_knows_what_the_first_saw(desk: Desk) -> None:
    from privft.budget.witness import ask

    desk.ask()
    with desk.ledger() as ledger:
        older = ask(ledger, "desk")
        ledger.append("dataset-created", dataset_body(dataset="new", lineage="b" * 32), actor="ada")
        newer = ask(ledger, "desk")
    for name, challenge in (("older", older), ("newer", newer)):
        (desk.folder / f"{name}.json").write_text(json.dumps(challenge))

    def answering(name: str, state: str) -> list[str]:
        files = ("-o", f"{name}-answer.json", "--key", "desk.key", "--state", state)
        return [*COMMAND, "ledger", "witness", "answer", f"{name}.json", *files]

    shutil.copy(desk.folder / "ward.state", desk.folder / "first.state")
    subprocess.run(answering("newer", "first.state"), cwd=desk.folder, env=ENVIRONMENT, check=True)
    with FileLock(desk.folder / "ward.state.lock"):  # the first answer is in the making
        second = subprocess.Popen(
            answering("older", "ward.state"), cwd=desk.folder, env=ENVIRONMENT
        )
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=3)
        assert not (desk.folder / "older-answer.json").exists()
        shutil.copy(desk.folder / "first.state", desk.folder / "ward.state")
    assert second.wait(timeout=60) == 0
    answers = [
        json.loads((desk.folder / f"{n}-answer.json").read_text()) for n in ("newer", "older")
    ]
    assert [bool(answer["cosigned"]) for answer in answers] == [True, False]
    seen = answers[0]["cosigned"].split("\n\n")[0]  # by the first answer: text, then signatures
    assert answers[1]["checkpoint"].split("\n\n")[0] == seen


def test_without_an_answer_nothing_is_recorded(desk: Desk) -> None:
    with desk.ledger() as ledger:
        size = ledger.size
    ask = ("ledger", "witness", "ask", "desk", "--as", "ada", "--wait-s", "0.1")
    done = desk.privft(*ask, code=2)
    assert "no answer" in done.stderr
    (desk.folder / "answer.json").write_text("{}")
    assert "exists already" in desk.privft(*ask, code=2).stderr
    with desk.ledger() as ledger:
        assert ledger.size == size
