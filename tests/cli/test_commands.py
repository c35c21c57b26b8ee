"""Every command explains itself; data goes to stdout, talk and errors to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from privft import errors
from privft.audit.bounds import bound_report
from privft.cli import _COMMANDS, main
from privft.errors import PrivftError
from tests.stages.world import base, privft, released

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = click.Context(main)


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command and group, as words."""
    for name in group.list_commands(CONTEXT):
        command = group.get_command(CONTEXT, name)
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = list(commands())


def command_at(path: tuple[str, ...]) -> click.Command:
    command: click.Command | None = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.get_command(CONTEXT, name)
    assert command is not None
    return command


def shell(*arguments: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as a shell runs it."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from privft.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, str(ROOT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


# -- help ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_has_help_for_itself_and_all_it_takes(path: tuple[str, ...]) -> None:
    done = privft(*path, "--help")
    assert done.out.startswith(f"Usage: main {' '.join(path)} ")
    command = command_at(path)
    assert command.help
    assert command.help.strip().endswith(".")
    first = command.help.strip().splitlines()[0]
    assert len(first) <= 90
    assert " ".join(first.split()) in " ".join(done.out.split())
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in SELF_EXPLAINING:
            assert parameter.help, f"{' '.join(path)} {parameter.opts}"


SELF_EXPLAINING = {  # what the paper calls it, and what it is called everywhere
    *("noise_multiplier", "sampling_probability", "steps", "delta", "adjacency", "target_epsilon"),
    *("canaries", "guesses", "correct", "significance", "unit", "folder", "max_records_per_unit"),
}


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_line_in_the_list_is_the_commands_own_first_line(name: str) -> None:
    command = command_at((name,))
    assert command.help is not None
    assert _COMMANDS[name][1] == command.help.strip().splitlines()[0]


def test_the_list_shows_every_command_with_its_line() -> None:
    shown = " ".join(privft("--help").out.split())
    for name, (_, words) in _COMMANDS.items():
        assert f"{name} {words}" in shown


def test_help_answers_at_once() -> None:
    """Half a second on a free machine; three times as much is left for a busy one."""
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        assert shell("--help").returncode == 0
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 1.5


def test_groups_name_their_commands_in_their_line() -> None:
    for name in _COMMANDS:
        group = command_at((name,))
        if isinstance(group, click.Group) and ": " in _COMMANDS[name][1]:
            named = _COMMANDS[name][1].split(": ")[1].rstrip(".").split(", ")
            assert set(named) <= {*group.list_commands(CONTEXT), "schema of the statement"}


def test_the_version_is_the_packages() -> None:
    import privft as package

    assert privft("--version").out.strip() == f"privft, version {package.__version__}"


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_is_one_line_and_a_hint_on_stderr_and_the_exit_code_its_own() -> None:
    for arguments, code, error, hint in (
        (("runs", "list"), 2, "there is no privft workspace here or above", "privft init DIR"),
        (("verify", "no"), 2, "there is no folder no", ""),
    ):
        done = shell(*arguments, cwd=Path("/"))
        assert done.returncode == code
        assert done.stdout == ""
        first, *rest = done.stderr.splitlines()
        assert first.startswith(f"error: {error}")
        assert not first.endswith(".")
        assert [line for line in rest if not line.startswith("hint: ")] == []
        assert hint in "".join(rest)


KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, PrivftError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_error_ends_with_its_code(
    kind: type[PrivftError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise kind("what and how much", hint="what to do")

    monkeypatch.setattr("privft.cli.policy.policy_names", fail)
    done = privft("policy", "list", code=kind.exit_code)
    assert done.err == "error: what and how much\nhint: what to do\n"
    assert done.out == ""


def test_the_tree_in_the_docstring_has_every_kind_with_its_code() -> None:
    tree = (errors.__doc__ or "").split("\n\n")[2]
    for kind in KINDS:
        (line,) = [x for x in tree.splitlines() if x.strip("│├└─ ").split()[0] == kind.__name__]
        assert line.strip("│├└─ ").split()[1] == str(kind.exit_code)


@pytest.mark.parametrize(
    ("failure", "code", "shown"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.Abort(), 130, "interrupted\n"),
        (
            OSError(28, "No space left on device", "ledger.db"),
            1,
            "error: No space left on device: ledger.db\n"
            "hint: nothing was lost; free space or mend access, then try again\n",
        ),
    ],
)
def test_interruptions_and_full_disks_are_said_plainly(
    monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int, shown: str
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr("privft.cli.policy.policy_names", fail)
    assert privft("policy", "list", code=code).err.lstrip() == shown


def test_an_unforeseen_error_names_its_place_and_not_its_content(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def careless(*_: Any) -> None:
        raise ValueError("patient Zanzibar has diabetes")

    monkeypatch.setattr("privft.cli.policy.policy_names", careless)
    done = privft("policy", "list", code=1)
    assert "Zanzibar" not in done.err + done.out
    assert "Traceback" not in done.err
    assert done.err.startswith("error: unforeseen ValueError at test_commands.py:")
    assert " careless < policy.py:" in done.err


def test_a_mistyped_command_or_option_is_usage() -> None:
    for arguments in (("trane",), ("ledger", "sho"), ("train",), ("plan",), ("epsilon", "--no")):
        done = privft(*arguments, code=2)
        assert done.out == ""
        assert done.err


def test_a_reader_that_closes_early_is_no_error_report(tmp_path: Path) -> None:
    """privft ... | head -1"""
    code = f'{sys.executable} -c \'import sys; sys.path.insert(0, "{ROOT}"); '
    code += "from privft.cli import main; main()' config schema | head -1"
    done = subprocess.run(
        ["bash", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.stdout == "{\n"
    assert done.stderr == ""


# -- stdout is for data ----------------------------------------------------------------------------


READERS = [
    ("policy", "list", "--json"),
    ("policy", "show", "hospital", "--json"),
    ("config", "schema"),
    ("report", "schema"),
    ("keys", "list", "--json"),
    ("runs", "list", "--json"),
    ("ledger", "show", "--json"),
    ("ledger", "show", "--entries", "--json"),
    ("ledger", "verify", "--json"),
    ("ledger", "export"),
    ("ledger", "trust"),
    ("vault", "inspect", "notes", "--json"),
    ("vault", "inspect", "notes", "--private", "--json"),
    ("doctor", "--json"),
    ("bound", "--canaries", "100", "--guesses", "50", "--correct", "40", "--delta", "0", "--json"),
]


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_what_a_script_reads_is_one_json_value_on_stdout(arguments: tuple[str, ...]) -> None:
    assert base().privft(*arguments).json is not None


def test_a_bound_by_hand_is_the_one_that_audits_compute() -> None:
    counts = {"canaries": 160, "guesses": 128, "correct": 71}
    words = [word for name, count in counts.items() for word in (f"--{name}", str(count))]
    said = privft("bound", *words, "--delta", "1e-5", "--significance", "0.00667", "--json").json
    assert said == bound_report(**counts, delta=1e-5, significance=0.00667)
    assert said["epsilon_lower"] <= said["ceiling"] == pytest.approx(3.2, abs=0.05)
    assert said["gaussian_epsilon_lower"] < said["gaussian_ceiling"]


def test_the_commands_of_the_path_say_json_alone() -> None:
    said = released().said
    assert set(said) == {"config", "plan", "policy", "train", "audit", "release", "verify"}
    assert all(said.values())


WRITERS = [
    ("keys", "create", "bob"),
    ("vault", "rotate", "notes"),
    ("vault", "add", "notes", "public.jsonl"),
]


@pytest.mark.parametrize("arguments", WRITERS, ids=" ".join)
def test_commands_that_change_something_talk_on_stderr_alone(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    world = base().copied(tmp_path / "world")
    words = [world.folder / word if word.endswith(".jsonl") else word for word in arguments]
    done = world.privft(*words)
    assert done.out == ""
    assert done.err


def test_tables_say_the_same_as_json() -> None:
    done = released()
    world = done.world
    assert done.run in world.privft("runs", "list").out
    shown = world.privft("runs", "show", done.run).out
    assert f"Run {done.run}: released" in shown
    assert f"next: privft release {done.run} --to DIR" in shown
    (notes, _) = world.privft("ledger", "show", "--json").json
    assert f"{notes['epsilon_spent']:.2f}" in world.privft("ledger", "show").out
    assert "ada" in world.privft("keys", "list").out
    assert "run-released" in world.privft("ledger", "show", "--entries").out
    assert notes["lineage"] in world.privft("vault", "inspect", "notes").out


def test_a_dry_run_prices_and_writes_nothing(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    config = world.config("dry")
    done = world.privft("plan", config, "--dry-run", "--json")
    assert done.json["file"] is None
    assert not config.with_suffix(".plan").exists()
    assert world.kinds() == base().kinds()


def test_private_numbers_of_a_vault_are_shown_to_its_key_alone() -> None:
    public = base().privft("vault", "inspect", "notes", "--json").json
    assert "private" not in public
    assert "units" not in json.dumps(public).replace("units_", "")
    private = base().privft("vault", "inspect", "notes", "--private", "--json").json["private"]
    assert private["units"] == 40


def test_nobody_is_asked_where_nobody_can_answer() -> None:
    for flags in ((), ("--no-input",)):
        done = privft(
            *flags,
            "--workspace",
            base().folder / "workspace",
            *("vault", "verify", "notes", "--passphrase"),
            code=2,
        )
        assert "error: a passphrase is needed and nobody can be asked" in done.err
        assert "hint: --passphrase-fd N" in done.err


# -- the ring, checkpoints, calculators ------------------------------------------------------------


def test_people_come_and_go_through_the_ledger(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    out = tmp_path / "bob.key"
    world.privft("keys", "create", "bob", "--role", "approver", "--days", "30", "--out", out)
    people = {row["name"]: row for row in world.privft("keys", "list", "--json").json}
    assert people["bob"]["roles"] == ["approver"]
    assert people["bob"]["expires"] > people["bob"]["added"]
    assert json.loads(out.read_text())["name"] == "bob"
    world.privft("keys", "revoke", "bob", "--reason", "left the ward")
    people = {row["name"]: row for row in world.privft("keys", "list", "--json").json}
    assert people["bob"]["revoked"] is not None
    before = world.kinds()
    world.privft("keys", "create", "a b", code=2)
    twice = world.privft("keys", "create", "ada", "--out", tmp_path / "again.key", code=2)
    assert "error: ada is on the ring already" in twice.err
    assert not (tmp_path / "again.key").exists()
    for stranger in ("nobody", "bob"):  # bob is revoked already
        done = world.privft("keys", "revoke", stranger, "--reason", "x", code=2)
        assert f"error: nobody named {stranger} is on the ring" in done.err
    assert world.kinds() == before


def test_the_last_operator_is_not_revoked(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    done = world.privft("keys", "revoke", "ada", "--reason", "left the ward", code=2)
    assert "error: ada is the last operator" in done.err
    world.privft("keys", "create", "cyd", "--role", "operator", "--out", tmp_path / "cyd.key")
    world.privft("keys", "revoke", "ada", "--reason", "left the ward")
    assert {row["name"]: row for row in world.privft("keys", "list", "--json").json}["ada"][
        "revoked"
    ]


def test_a_ledger_is_held_against_a_checkpoint_from_outside(tmp_path: Path) -> None:
    world = base().copied(tmp_path / "world")
    other = base().copied(tmp_path / "other")
    world.privft("keys", "create", "bob")
    kept = tmp_path / "checkpoint"
    kept.write_text(world.privft("ledger", "checkpoint").out)
    assert world.privft("ledger", "verify", "--checkpoint", kept, "--json").json["checkpoints"] == 1
    other.privft("ledger", "verify", "--checkpoint", kept, code=13)
    world.privft("ledger", "verify", "--checkpoint", tmp_path / "no", code=2)


def test_a_workspace_is_found_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = base().copied(tmp_path / "world")
    monkeypatch.chdir(world.folder / "workspace" / "vaults")
    assert privft("ledger", "show", "--json").json[0]["dataset"] == "notes"
    monkeypatch.chdir("/")
    privft("ledger", "show", code=2)


def test_the_calculators_agree_with_each_other() -> None:
    event = ("--sampling-probability", "0.05", "--steps", "4", "--delta", "5e-4", "--json")
    noise = privft("noise", "--target-epsilon", "2", *event).json
    back = privft("epsilon", "--noise-multiplier", repr(noise["noise_multiplier"]), *event).json
    assert 1.99 < back["pld"] <= 2
    assert back["pld"] == noise["pld"]
    assert back["rdp"] >= back["pld"]


def test_the_calculators_take_events_as_the_ledger_has_them(tmp_path: Path) -> None:
    events = tmp_path / "events.json"
    (run,) = released().world.privft("runs", "list", "--json").json
    events.write_text(json.dumps(run["events"]))
    found = privft("epsilon", "--events", events, "--delta", "5e-4", "--json").json
    assert found["pld"] == pytest.approx(released().said["plan"]["epsilon"])
    bound = privft("tradeoff", "--events", events, "--json").json
    assert 0.5 < bound["max_accuracy"] < 1
    for bad in ("{", "{}", "[1]", '[{"kind": "gaussian"}]', '[{"kind": "laplace", "count": 1}]'):
        events.write_text(bad)
        done = privft("epsilon", "--events", events, "--delta", "5e-4", code=None)
        assert done.code != 0
        assert "unforeseen" not in done.err, bad
