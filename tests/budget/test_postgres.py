"""The ledger in PostgreSQL: the same verbs, the same refusals, the same crowd; a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("psycopg", reason="psycopg is not installed (privft[postgres])")

from privft.budget.filter import Cap, admit, fits
from privft.budget.ledger import Ledger
from privft.budget.postgres import Database
from privft.budget.replay import verify_bundle
from privft.budget.translog import Checkpoint
from privft.errors import (
    BudgetExceeded,
    ConfigError,
    InputError,
    IntegrityError,
    OrderError,
    PlanError,
    PrivftError,
)
from tests.budget.samples import (
    CAP,
    HASH,
    LINEAGE,
    LOG_KEY,
    ORIGIN,
    dataset_body,
    mechanism,
    reserve,
    run_to_the_end,
    step_digest,
)
from tests.budget.server import PASSWORD, Server, running

CROWD = 32


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def place(server: Server, request: pytest.FixtureRequest) -> Database:
    """A schema of the test's own, without a ledger yet."""
    return server.database(f"s{abs(hash(request.node.name)):x}")


def new_ledger(place: Database, cap: Cap = CAP) -> Ledger:
    ledger = Ledger.create(place, log_key=LOG_KEY, origin=ORIGIN, workspace_id="ws-1")
    ledger.append("dataset-created", dataset_body(cap=cap), actor="ann")
    return ledger


def test_a_run_is_reserved_journalled_settled_and_verified(place: Database) -> None:
    with new_ledger(place) as ledger:
        run = run_to_the_end(ledger, steps=3)
        assert [step for step, _ in ledger.journal_entries(run)] == [0, 1, 2]
        first = ledger.checkpoint()
        with Ledger.open(place, log_key=LOG_KEY.public) as reader:
            assert reader.verify([first]).runs == 1
            assert reader.budget(LINEAGE).spent == (mechanism(steps=3).event(),)
            with pytest.raises(OrderError):
                reserve(reader)
            bundle = json.loads(json.dumps(reader.export()))
    assert verify_bundle(bundle, LOG_KEY.public, [first]).size == 4


def test_the_entries_are_those_that_a_file_would_hold(place: Database, tmp_path: Path) -> None:
    time = "2026-01-01T00:00:00Z"
    roots = []
    for where in (place, tmp_path / "ledger.db"):
        with Ledger.create(
            where, log_key=LOG_KEY, origin=ORIGIN, workspace_id="ws-1", time=time
        ) as ledger:
            ledger.append("dataset-created", dataset_body(), actor="ann", time=time)
            roots.append((ledger.root, ledger.checkpoint()))
    assert roots[0] == roots[1]


def test_a_refused_run_leaves_nothing(place: Database) -> None:
    with new_ledger(place) as ledger:
        size = ledger.size
        with pytest.raises(BudgetExceeded):
            reserve(ledger, steps=9000)
        reserve(ledger, steps=2, plan=HASH)
        with pytest.raises(PlanError):
            reserve(ledger, steps=2, plan=HASH)
        assert ledger.size == size + 1


@pytest.mark.parametrize("table", ["entries", "journal"])
@pytest.mark.parametrize("verb", ["UPDATE {} SET {}", "DELETE FROM {}", "TRUNCATE {}"])
def test_the_database_refuses_to_change_what_was_written(
    place: Database, server: Server, table: str, verb: str
) -> None:
    import psycopg

    with new_ledger(place) as ledger:
        run_to_the_end(ledger)
    column = "bytes = bytes" if table == "entries" else "digest = digest"
    with pytest.raises(psycopg.errors.RaiseException, match="only grows"):
        server.sql(verb.format(f"{place.schema}.{table}", column))


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE entries SET bytes = overlay(bytes placing '!'::bytea from 9) WHERE position = 2",
        "DELETE FROM entries WHERE position = 3",
        "DELETE FROM entries WHERE position = 1",
        "UPDATE entries SET position = 9 WHERE position = 3",
        "INSERT INTO entries VALUES (4, 'x')",
        "UPDATE journal SET digest = '\\x00' WHERE step = 1",
        "DELETE FROM journal WHERE step = 2",
        "DELETE FROM head WHERE name = 'journal'",
        "UPDATE head SET note = 'x' WHERE name = 'checkpoint'",
        "DROP TABLE head",
    ],
)
def test_who_owns_the_database_cannot_alter_it_unseen(
    place: Database, server: Server, edit: str
) -> None:
    with new_ledger(place) as ledger:
        run_to_the_end(ledger)
    server.sql(
        f"SET search_path = {place.schema}; DROP TRIGGER only_grows ON entries; "
        f"DROP TRIGGER only_grows ON journal; {edit}"
    )
    with pytest.raises(IntegrityError), Ledger.open(place, log_key=LOG_KEY) as altered:
        altered.verify()


def test_a_database_that_was_set_back_shows_against_a_checkpoint(
    place: Database, server: Server
) -> None:
    with new_ledger(place) as ledger:
        before = (ledger.size, ledger.checkpoint())
        run_to_the_end(ledger)
        newest = ledger.checkpoint()
    server.sql(  # what a backup would bring back
        f"SET search_path = {place.schema}; DROP TRIGGER only_grows ON entries; "
        f"DROP TRIGGER only_grows ON journal; DELETE FROM journal; "
        f"DELETE FROM entries WHERE position >= {before[0]}; UPDATE head "
        f"SET note = convert_to('{before[1]}', 'UTF8') WHERE name = 'checkpoint'"
    )
    with Ledger.open(place, log_key=LOG_KEY) as restored:
        restored.verify()
        with pytest.raises(IntegrityError, match="has 2 entries, and a checkpoint of 4"):
            restored.verify([newest])


def test_a_writer_waits_for_the_other_and_reads_what_it_wrote(place: Database) -> None:
    with new_ledger(place) as one, Ledger.open(place, log_key=LOG_KEY) as other:
        for turn in range(3):
            reserve(one, steps=1)
            reserve(other, steps=1)
            assert one.size == other.size == 4 + 2 * turn
        assert one.budget(LINEAGE) == other.budget(LINEAGE)


def test_a_lost_connection_is_an_error_once_and_then_made_anew(
    place: Database, server: Server
) -> None:
    with new_ledger(place) as ledger:
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='privft'"
        )
        with pytest.raises(PrivftError, match="cannot be reached") as caught:
            reserve(ledger, steps=1)
        assert not isinstance(caught.value, IntegrityError)
        reserve(ledger, steps=1)
        assert ledger.verify().runs == 1


def test_a_server_that_does_not_wait_for_its_disk_is_refused(
    place: Database, server: Server
) -> None:
    with new_ledger(place):
        pass
    try:
        server.sql("ALTER SYSTEM SET fsync = off")
        server.sql("SELECT pg_reload_conf()")
        with pytest.raises(InputError, match="fsync off"):  # noqa: PT012
            for _ in range(200):  # the server takes a moment to read its settings
                Ledger.open(place, log_key=LOG_KEY).close()
    finally:
        server.sql("ALTER SYSTEM RESET fsync")
        server.sql("SELECT pg_reload_conf()")
    for _ in range(200):
        with suppress(InputError):
            Ledger.open(place, log_key=LOG_KEY).close()
            break
    else:
        pytest.fail("the server did not take its setting back")


def test_there_is_no_ledger_until_one_is_made_and_never_a_second(place: Database) -> None:
    with pytest.raises(InputError, match="no ledger"):
        Ledger.open(place, log_key=LOG_KEY)
    with new_ledger(place):
        pass
    with pytest.raises(OrderError, match="already"):
        new_ledger(place)
    with Ledger.open(place, log_key=LOG_KEY) as ledger:
        assert ledger.size == 2


def test_another_role_needs_its_password_and_its_grants(place: Database, server: Server) -> None:
    with new_ledger(place):
        pass
    by_tcp = server.by_tcp(place.schema)
    with pytest.raises(PrivftError, match="cannot be reached"):
        Ledger.open(replace(by_tcp, password="wrong"), log_key=LOG_KEY)
    with pytest.raises(PrivftError, match="may not use the ledger"):
        Ledger.open(by_tcp, log_key=LOG_KEY)
    server.share(place.schema)
    with Ledger.open(by_tcp, log_key=LOG_KEY) as ledger:
        run_to_the_end(ledger)
        assert ledger.verify().runs == 1
    assert PASSWORD not in repr(by_tcp)
    assert PASSWORD not in json.dumps(by_tcp.to_dict())


def test_a_password_file_does_too(place: Database, server: Server, tmp_path: Path) -> None:
    with new_ledger(place):
        pass
    server.share(place.schema)
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"127.0.0.1:{server.port}:budget:clinic:{PASSWORD}\n")
    passfile.chmod(0o600)
    by_file = replace(server.by_tcp(place.schema, None), passfile=str(passfile))
    with Ledger.open(by_file, log_key=LOG_KEY) as ledger:
        reserve(ledger, steps=1)


def reserve_all(place: Database, cap: Cap, answer: Path) -> int:
    """What one of the crowd does, until nothing is left: its exit code."""
    try:
        with Ledger.open(place, log_key=LOG_KEY) as ledger:
            count = 0
            with suppress(BudgetExceeded):
                while True:
                    reserve(ledger, steps=10, noise=2.0, cap=cap)
                    count += 1
        answer.write_text(str(count))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def test_a_crowd_over_two_pools_of_connections_never_exceeds_the_cap(
    place: Database, server: Server, tmp_path: Path
) -> None:
    """Sixteen processes by socket as one role, sixteen by TCP as another, all at once."""
    cap = Cap(epsilon=3.0, delta=1e-6)
    with new_ledger(place, cap):
        pass
    server.share(place.schema)
    event = mechanism(steps=10, noise=2.0).event()
    room = fits(cap, [], event)
    assert CROWD < room < 4 * CROWD
    pools = (place, server.by_tcp(place.schema))
    children = []
    for number in range(CROWD):
        child = os.fork()
        if child == 0:
            os._exit(reserve_all(pools[number % 2], cap, tmp_path / f"count-{number}"))
        children.append(child)
    assert not any(os.waitpid(child, 0)[1] for child in children)
    counts = [int((tmp_path / f"count-{number}").read_text()) for number in range(CROWD)]
    with Ledger.open(place, log_key=LOG_KEY) as ledger:
        view = ledger.budget(LINEAGE)
        assert sum(counts) == view.runs == room
        assert ledger.verify().runs == room
    assert view.epsilon_spent <= cap.epsilon
    assert not admit(cap, view.reserved, [event]).admitted


def test_a_process_killed_in_the_middle_leaves_all_or_nothing(place: Database) -> None:
    with new_ledger(place) as ledger:
        run = reserve(ledger, steps=900, noise=4.0).body["run"]
    told = 0
    for _ in range(8):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                with Ledger.open(place, log_key=LOG_KEY) as ledger:
                    step = len(ledger.journal_entries(run))
                    while True:
                        ledger.journal(run, step, step_digest(step))
                        os.write(write_end, b"!")  # returned: must be there
                        step += 1
            finally:
                os._exit(1)
        os.close(write_end)
        os.read(read_end, 1)
        os.kill(child, 9)
        os.waitpid(child, 0)
        told += 1
        while data := os.read(read_end, 4096):
            told += len(data)
        os.close(read_end)
        with Ledger.open(place, log_key=LOG_KEY) as ledger:
            there = len(ledger.journal_entries(run))
            assert ledger.verify().open_runs == 1
        assert there in (told, told + 1), "what returned is there, and at most one more"
        told = there


PLACE: dict[str, Any] = {"host": "/run/postgresql", "dbname": "budget", "user": "ward7"}


def named(**changes: Any) -> Database:
    return Database.from_dict(
        {"format": "privft-ledger-place-v1", "postgresql": {**PLACE, **changes}}
    )


def test_a_place_survives_its_file() -> None:
    database = named(schema="s1", port=5433)
    assert Database.from_dict(json.loads(json.dumps(database.to_dict()))) == database
    assert named().sslmode == "verify-full"


@pytest.mark.parametrize(
    "changes",
    [
        {"password": "x"},
        {"port": "5432"},
        {"options": "-c fsync=off"},
        {"schema": "a; DROP"},
        {"host": "db.example", "sslmode": "disable"},
        {"host": "db.example", "sslmode": "require"},
        {"host": 3},
    ],
)
def test_a_place_that_is_not_safe_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        named(**changes)


@pytest.mark.parametrize("variable", ["PGPASSWORD", "PGHOST", "PGSSLMODE", "PGSERVICE"])
def test_the_environment_says_nothing_about_the_place(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(ConfigError, match=variable):
        named().conninfo()


def privft(*arguments: str | Path, stdin: int | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from privft.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        pass_fds=() if stdin is None else (stdin,),
    )


def test_a_workspace_keeps_its_ledger_in_a_database(
    place: Database, server: Server, tmp_path: Path
) -> None:
    place_file, workspace = tmp_path / "place.json", tmp_path / "ward"
    place_file.write_text(json.dumps(place.to_dict()))
    made = privft("init", workspace, "--name", "ada", "--ledger", place_file)
    assert made.returncode == 0, made.stderr
    assert not (workspace / "ledger.db").exists()
    done = privft("--workspace", workspace, "ledger", "verify", "--json")
    assert json.loads(done.stdout)["entries"] == 2, done.stderr
    # a second enclave: the same workspace, another role, its password on a file descriptor
    server.share(place.schema)
    (workspace / "ledger.json").write_text(json.dumps(server.by_tcp(place.schema).to_dict()))
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD + "\n")
    with secret.open() as file:
        options = ("--workspace", workspace, "--ledger-password-fd", str(file.fileno()))
        done = privft(*options, "keys", "list", "--json", stdin=file.fileno())
    assert [person["name"] for person in json.loads(done.stdout)] == ["ada"], done.stderr
    refused = privft("--workspace", workspace, "keys", "list", "--json")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: the ledger's database cannot be reached\nhint: ")


def test_a_checkpoint_is_the_same_note_as_ever(place: Database) -> None:
    with new_ledger(place) as ledger:
        assert Checkpoint.open(ledger.checkpoint(), LOG_KEY.public).size == 2
