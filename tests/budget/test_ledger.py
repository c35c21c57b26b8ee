"""The ledger: order of verbs, sums, signatures, and what an altered file does."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from privft.budget.filter import Cap, gauge
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event
from privft.budget.replay import verify_bundle
from privft.budget.selection import total_rdp
from privft.budget.store import NETWORK_FILE_SYSTEMS, file_system_of
from privft.budget.translog import Checkpoint, verify_consistency, verify_inclusion
from privft.errors import (
    BudgetExceeded,
    InputError,
    IntegrityError,
    OrderError,
    PlanError,
    PolicyRefused,
    PrivftError,
    SignatureError,
)
from privft.plan import approval_message
from privft.signing import Identity
from tests.budget.samples import (
    CAP,
    HASH,
    LINEAGE,
    LOG_KEY,
    ORIGIN,
    OTHER_KEY,
    audit_bodies,
    dataset_body,
    key_added,
    mechanism,
    new_ledger,
    reservation_body,
    reserve,
    run_to_the_end,
    step_digest,
    waiver_signatures,
)

REFUSED: dict[str, Any] = {"plan_sha256": HASH, "code": 11, "reason": "x"}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with new_ledger(tmp_path) as opened:
        yield opened


def settle(ledger: Ledger, run: str, **changes: Any) -> Any:
    arguments = {"outcome": "completed", "reason": "done", "steps_drawn": 0, "adapter": None}
    return ledger.settle(run, actor="ann", **(arguments | changes))


def test_a_run_is_reserved_journalled_settled_and_counted(ledger: Ledger) -> None:
    run = reserve(ledger, steps=3).body["run"]
    reserved = ledger.budget(LINEAGE)
    assert reserved.spent == ()
    assert reserved.reserved == (mechanism(steps=3).event(),)
    for step in range(3):
        ledger.journal(run, step, step_digest(step))
    entry = settle(ledger, run, steps_drawn=3, adapter={"a": HASH})
    assert entry.body["steps_charged"] == 3
    view = ledger.budget(LINEAGE)
    assert (view.spent, view.reserved) == (reserved.reserved, ())
    assert (
        view.epsilon_spent
        == reserved.epsilon_spent
        == pytest.approx(gauge(CAP, total_rdp(view.spent, CAP.orders)))
    )
    assert view.epsilon_left == pytest.approx(CAP.epsilon - view.epsilon_spent)
    assert ledger.verify().runs == 1


def test_the_digest_of_the_budget_changes_with_the_budget_only(ledger: Ledger) -> None:
    seen = [ledger.budget(LINEAGE).digest]
    ledger.append("run-refused", REFUSED, actor="ann")
    assert ledger.budget(LINEAGE).digest == seen[0]
    run = reserve(ledger, steps=3).body["run"]
    seen.append(ledger.budget(LINEAGE).digest)
    ledger.journal(run, 0, step_digest(0))
    assert ledger.budget(LINEAGE).digest == seen[1]
    settle(ledger, run, steps_drawn=1)
    seen.append(ledger.budget(LINEAGE).digest)
    assert len(set(seen)) == 3


def test_a_run_beyond_the_cap_is_refused_and_costs_nothing(ledger: Ledger) -> None:
    reserve(ledger, steps=900)
    before = ledger.budget(LINEAGE)
    with pytest.raises(BudgetExceeded, match=r"needs epsilon \d.* of 8 is left") as caught:
        reserve(ledger, steps=9000)
    assert "steps instead of 9000" in (caught.value.hint or "")
    assert ledger.budget(LINEAGE) == before
    fewer = int((caught.value.hint or "").split(" ")[0])
    reserve(ledger, steps=fewer)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, steps=1)
    ledger.verify()


@pytest.mark.parametrize(
    ("journalled", "drawn", "outcome", "charged"),
    [(0, 0, "completed", 0), (5, 3, "completed", 5), (3, 5, "completed", 5), (2, 2, "closed", 9)],
)
def test_settlement_charges_what_ran_and_what_is_in_doubt(
    ledger: Ledger, journalled: int, drawn: int, outcome: str, charged: int
) -> None:
    run = reserve(ledger, steps=9).body["run"]
    for step in range(journalled):
        ledger.journal(run, step, step_digest(step))
    entry = settle(ledger, run, outcome=outcome, steps_drawn=drawn)
    assert entry.body["steps_charged"] == charged
    spent = sum(event.count for event in ledger.budget(LINEAGE).spent)
    assert spent == charged
    ledger.verify()


def test_nothing_is_settled_twice_or_beyond_its_reservation(ledger: Ledger) -> None:
    run = reserve(ledger, steps=3).body["run"]
    with pytest.raises(OrderError):
        settle(ledger, run, steps_drawn=4)
    with pytest.raises(IntegrityError):
        settle(ledger, run, outcome="refunded")
    settle(ledger, run, steps_drawn=1)
    with pytest.raises(OrderError):
        settle(ledger, run, steps_drawn=1)
    with pytest.raises(OrderError):
        settle(ledger, "r-9999-ffffff")


def test_the_journal_takes_steps_in_order_and_one_digest_each(ledger: Ledger) -> None:
    run = reserve(ledger, steps=3).body["run"]
    with pytest.raises(OrderError):
        ledger.journal(run, 1, step_digest(1))
    ledger.journal(run, 0, step_digest(0))
    ledger.journal(run, 0, step_digest(0))  # the replay of a step that was interrupted
    with pytest.raises(OrderError, match="another digest"):
        ledger.journal(run, 0, step_digest(7))
    for wrong in ("", "AB" * 32, "ab" * 31):
        with pytest.raises(OrderError):
            ledger.journal(run, 1, wrong)
    for step in (1, 2):
        ledger.journal(run, step, step_digest(step))
    for step in (3, -1):
        with pytest.raises(OrderError):
            ledger.journal(run, step, step_digest(3))
    assert ledger.journal_entries(run) == [(step, step_digest(step)) for step in range(3)]
    settle(ledger, run, steps_drawn=3)
    with pytest.raises(OrderError, match="settled"):
        ledger.journal(run, 2, step_digest(2))
    assert len(ledger.journal_entries(run)) == 3


def test_reservations_and_settlements_have_no_other_door(ledger: Ledger) -> None:
    body = {**reservation_body(), "run": "r-0001-ab12cd"}
    for kind in ("run-reserved", "run-settled", "workspace-created"):
        with pytest.raises(OrderError, match="alone"):
            ledger.append(kind, body, actor="ann")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"lineage": "ff" * 16}, OrderError),
        ({"dataset": "other"}, OrderError),
        ({"mechanism": mechanism(unit="record").to_dict()}, PolicyRefused),
        ({"events": [mechanism(steps=1).event().to_dict()]}, IntegrityError),
        ({"events": []}, IntegrityError),
        ({"surplus": 1}, IntegrityError),
        ({"mechanism": {}}, IntegrityError),
    ],
)
def test_a_reservation_that_does_not_fit_its_data_set_is_refused(
    ledger: Ledger, change: dict[str, Any], error: type[PrivftError]
) -> None:
    size = ledger.size
    with pytest.raises(error):
        ledger.reserve(actor="ann", body=reservation_body() | change, cap=CAP)
    assert ledger.size == size


def test_the_cap_of_a_lineage_is_fixed_at_creation(ledger: Ledger) -> None:
    wider = Cap(epsilon=80.0, delta=1e-6)
    with pytest.raises(PolicyRefused):
        ledger.reserve(actor="ann", body=reservation_body(), cap=wider)
    with pytest.raises(PolicyRefused):
        ledger.append("dataset-created", dataset_body(dataset="copy", cap=wider), actor="ann")


def test_a_copy_of_a_data_set_shares_its_budget(ledger: Ledger) -> None:
    run_to_the_end(ledger)
    ledger.append("dataset-created", dataset_body(dataset="copy"), actor="ann")
    assert ledger.budget(LINEAGE).epsilon_spent > 0
    reserve(ledger, dataset="copy", steps=900)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, steps=3000)


ANN, BEN, EVE = (Identity.generate(name) for name in ("ann", "ben", "eve"))
NOW, SOON, LATER = "2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z", "2030-02-01T00:00:00Z"
RELEASE: dict[str, Any] = {"files": {"a": HASH}, "statement_sha256": HASH}


def enrol(ledger: Ledger) -> None:
    for person, role in ((ANN, "approver"), (BEN, "approver"), (EVE, "operator")):
        ledger.append("key-added", key_added(person, role), actor="ann")


def audit(
    ledger: Ledger, run: str, verdict: str, time: str = NOW, *, findings: list[str] | None = None
) -> None:
    attempt = ledger.run(run).attempts + 1
    started, ended = audit_bodies(run, verdict, attempt=attempt, findings=findings)
    ledger.append("audit-started", started, actor="ann", time=time)
    ledger.append("run-audited", ended, actor="ann", time=time)


def release(ledger: Ledger, run: str, time: str = NOW) -> None:
    ledger.append("run-released", {"run": run, **RELEASE}, actor="ann", time=time)


def waive(ledger: Ledger, run: str, time: str = NOW, **changes: Any) -> None:
    signatures = waiver_signatures((ANN, BEN), run, reason="x", expires=SOON)
    body = {"run": run, "reason": "x", "expires": SOON, "signatures": signatures, **changes}
    ledger.append("run-waived", body, actor="ben", time=time)


def test_release_needs_a_passed_audit_or_a_waiver_in_time(ledger: Ledger) -> None:
    enrol(ledger)
    run = run_to_the_end(ledger)
    with pytest.raises(OrderError):
        release(ledger, run)
    with pytest.raises(OrderError):
        waive(ledger, run)
    unproven = ["control-failed"]
    audit(ledger, run, "failed", findings=unproven)
    with pytest.raises(OrderError):
        release(ledger, run)
    waive(ledger, run)
    with pytest.raises(OrderError):
        release(ledger, run, LATER)
    audit(ledger, run, "failed", findings=unproven)  # its newest verdict has no waiver
    with pytest.raises(OrderError):
        release(ledger, run)
    waive(ledger, run)
    release(ledger, run)
    assert ledger.verify().runs == 1


def test_a_closed_run_is_neither_audited_nor_waived_nor_released(ledger: Ledger) -> None:
    run = reserve(ledger, steps=2).body["run"]
    for state in ("open", "closed"):
        with pytest.raises(OrderError):
            audit(ledger, run, "passed")
        with pytest.raises(OrderError):
            release(ledger, run)
        if state == "open":
            settle(ledger, run, outcome="closed")


def test_nothing_is_said_of_a_run_after_its_release(ledger: Ledger) -> None:
    run = run_to_the_end(ledger)
    audit(ledger, run, "passed")
    release(ledger, run)
    size = ledger.size
    for act in (lambda: audit(ledger, run, "failed"), lambda: release(ledger, run)):
        with pytest.raises(OrderError, match="released by entry"):
            act()
    assert ledger.size == size


def test_an_audit_that_contradicts_a_run_is_the_last_one(ledger: Ledger) -> None:
    run = run_to_the_end(ledger)
    audit(ledger, run, "failed", findings=["control-failed"])  # says nothing about the run
    audit(ledger, run, "passed")
    audit(ledger, run, "failed", findings=["curve-contradicted", "control-failed"])
    size = ledger.size
    for act in (lambda: audit(ledger, run, "passed"), lambda: release(ledger, run)):
        with pytest.raises(OrderError):
            act()
    assert ledger.size == size


def test_an_audit_that_began_is_counted_and_has_to_end(ledger: Ledger) -> None:
    enrol(ledger)
    run = run_to_the_end(ledger)
    audit(ledger, run, "passed")
    started, _ = audit_bodies(run, "passed", attempt=2)
    for wrong in (1, 3):
        with pytest.raises(OrderError, match="expected attempt 2"):
            ledger.append("audit-started", {**started, "attempt": wrong}, actor="ann", time=NOW)
    ledger.append("audit-started", started, actor="ann", time=NOW)
    record = ledger.run(run)
    assert (record.attempts, record.auditing, record.verdict) == (2, True, "passed")
    with pytest.raises(OrderError, match="not ended"):
        release(ledger, run)  # its pass stands, and something was begun that may undo it
    with pytest.raises(OrderError, match="not ended"):
        waive(ledger, run)
    _, ended = audit_bodies(run, "passed", attempt=2)
    for wrong in ({"attempt": 1}, {"suite_digest": "cd" * 32}):
        with pytest.raises(OrderError, match="not the audit"):
            ledger.append("run-audited", {**ended, **wrong}, actor="ann", time=NOW)
    for odd in ({"findings": ["control-failed"]}, {"verdict": "failed"}):
        with pytest.raises(IntegrityError, match="findings"):
            ledger.append("run-audited", {**ended, **odd}, actor="ann", time=NOW)
    ledger.append("run-audited", ended, actor="ann", time=NOW)
    with pytest.raises(OrderError, match="no audit that has begun"):
        ledger.append("run-audited", ended, actor="ann", time=NOW)
    release(ledger, run)
    assert ledger.verify().runs == 1


FORGED = {
    "another reason": {"reason": "y"},
    "another end": {"expires": LATER},
    "another run": {"signatures": waiver_signatures((ANN, BEN), "r-2", reason="x", expires=SOON)},
    "no two people": {"people": (ANN, ANN)},
    "no approver": {"people": (ANN, EVE)},
    "a stranger": {"people": (ANN, Identity.generate("mallory"))},
    "a borrowed name": {"people": (ANN, Identity.generate("ben"))},
    "another statement": {"people": (ANN, BEN), "statement_sha256": "cd" * 32},
    "a third who did not sign": {"people": (ANN, BEN), "more": {"name": "eve"}},
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_waiver_that_two_approvers_did_not_sign_is_refused_and_does_not_verify(
    ledger: Ledger, forgery: str
) -> None:
    enrol(ledger)
    run = run_to_the_end(ledger)
    audit(ledger, run, "failed")
    changes = dict(FORGED[forgery])
    if people := changes.pop("people", None):
        said = {"reason": "x", "expires": SOON}
        if statement := changes.pop("statement_sha256", None):
            said["statement_sha256"] = statement
        changes["signatures"] = waiver_signatures(people, run, **said)
        if more := changes.pop("more", None):
            changes["signatures"].append(more)
    with pytest.raises((SignatureError, PolicyRefused)):
        waive(ledger, run, **changes)
    with pytest.MonkeyPatch.context() as patch:  # a program that does not look
        patch.setattr("privft.budget.judged.check_waiver", lambda *_, **__: None)
        waive(ledger, run, **changes)
        ledger.verify()
    with pytest.raises(IntegrityError):
        ledger.verify()


def test_an_approval_is_signed_by_an_approver_or_does_not_verify(ledger: Ledger) -> None:
    enrol(ledger)

    def approve(person: Identity, plan: str, name: str) -> None:
        signature = person.signing.sign(approval_message(plan)).hex()
        body = {"plan_sha256": HASH, "approver": name, "signature": signature}
        ledger.append("plan-approved", body, actor=name)

    approve(ANN, HASH, "ann")
    size = ledger.size
    for wrong in ((BEN, HASH, "ann"), (EVE, HASH, "eve"), (ANN, "cd" * 32, "ann")):
        with pytest.raises((SignatureError, PolicyRefused)):
            approve(*wrong)
    assert ledger.size == size
    ledger.verify()


def test_one_plan_is_one_run_even_when_the_run_cost_nothing(ledger: Ledger) -> None:
    before = ledger.budget(LINEAGE).digest
    run = reserve(ledger, plan=HASH).body["run"]
    settle(ledger, run)
    assert ledger.budget(LINEAGE).digest == before
    with pytest.raises(PlanError, match=f"as run {run}"):
        reserve(ledger, plan=HASH)
    assert ledger.run_of_plan(HASH) == run
    assert ledger.run_of_plan("cd" * 32) is None
    assert len(ledger.runs()) == 1


def test_a_plan_priced_against_another_budget_is_stale_inside_the_lock(ledger: Ledger) -> None:
    def reserve_against(digest: str) -> None:
        body = reservation_body()
        ledger.reserve(actor="ann", body=body, cap=CAP, budget_sha256=digest)

    seen = ledger.budget(LINEAGE).digest
    reserve_against(seen)
    with pytest.raises(PlanError, match="stale"):
        reserve_against(seen)
    reserve_against(ledger.budget(LINEAGE).digest)
    assert len(ledger.runs()) == 2


def test_time_in_the_ledger_never_runs_backwards(ledger: Ledger) -> None:
    late = ledger.append("run-refused", REFUSED, actor="ann", time="2999-01-01T00:00:00Z")
    early = ledger.append("run-refused", REFUSED, actor="ann", time="2026-01-02T00:00:00Z")
    assert early.time == late.time
    ledger.verify()


def test_entries_are_found_by_kind_run_and_data_set(ledger: Ledger) -> None:
    first, second = run_to_the_end(ledger), run_to_the_end(ledger)
    assert [entry.index for entry in ledger.entries()] == list(range(ledger.size))
    assert {entry.body["run"] for entry in ledger.entries(run=second)} == {second}
    (settled,) = ledger.entries(kind="run-settled", run=first)
    assert (settled.actor, settled.kind, settled.body["steps_charged"]) == ("ann", "run-settled", 3)
    assert {entry.kind for entry in ledger.entries(dataset="notes")} == {
        "dataset-created",
        "run-reserved",
    }
    assert ledger.entries(run="r-9999-ffffff") == []
    assert ledger.entry(1) == ledger.entries()[1]
    with pytest.raises(OrderError):
        ledger.entry(99)


def test_proofs_from_the_ledger_hold_for_its_checkpoints(ledger: Ledger) -> None:
    old = Checkpoint.open(ledger.checkpoint(), LOG_KEY.public)
    run_to_the_end(ledger)
    new = Checkpoint.open(ledger.checkpoint(), LOG_KEY.public)
    proof = ledger.consistency_proof(old.size, new.size)
    verify_consistency(old.size, new.size, old.root, new.root, proof)
    for entry in ledger.entries():
        path = ledger.inclusion_proof(entry.index, new.size)
        verify_inclusion(entry.leaf_hash, entry.index, new.size, path, new.root)
    assert new.root == ledger.root


def test_the_file_is_for_its_owner_alone(ledger: Ledger, tmp_path: Path) -> None:
    run_to_the_end(ledger)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert set(modes) == {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
    assert set(modes.values()) == {0o600}


def test_a_ledger_is_not_made_over_another(ledger: Ledger, tmp_path: Path) -> None:
    before = ledger.size
    with pytest.raises(OrderError):
        Ledger.create(tmp_path / "ledger.db", log_key=LOG_KEY, origin=ORIGIN, workspace_id="w")
    assert ledger.size == before
    assert not list(tmp_path.glob(".*"))


def test_the_public_key_reads_and_verifies_and_cannot_write(ledger: Ledger, tmp_path: Path) -> None:
    run = run_to_the_end(ledger)
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY.public) as reader:
        assert reader.verify().size == ledger.size
        assert reader.run(run).outcome == "completed"
        for write in (
            lambda: reader.append("run-refused", REFUSED, actor="ann"),
            lambda: reserve(reader),
            lambda: settle(reader, run),
            lambda: reader.journal(run, 0, step_digest(0)),
        ):
            with pytest.raises(OrderError, match="reading only"):
                write()


def test_one_process_sees_what_another_wrote(ledger: Ledger, tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY) as other:
        run = reserve(other, steps=2).body["run"]
        ledger.journal(run, 0, step_digest(0))
        other.journal(run, 1, step_digest(1))
        assert settle(ledger, run, steps_drawn=0).body["steps_charged"] == 2
        assert other.checkpoint() == ledger.checkpoint()


def test_another_log_key_opens_nothing(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError):
        Ledger.open(tmp_path / "ledger.db", log_key=OTHER_KEY)


def test_no_file_is_no_ledger_and_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY)
    (tmp_path / "other.db").write_bytes(b"SQLite format 3\0" + bytes(4080))
    with pytest.raises(PrivftError):
        Ledger.open(tmp_path / "other.db", log_key=LOG_KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["other.db"]


def closed_copy(ledger: Ledger, tmp_path: Path) -> Path:
    """A copy of a ledger's file with everything in it."""
    ledger.close()
    copy = tmp_path / "copy" / "ledger.db"
    copy.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "ledger.db", copy)
    return copy


def edit(path: Path, *statements: str) -> None:
    """What somebody with a SQLite shell could do, guard rails removed and put back."""
    connection = sqlite3.connect(path, isolation_level=None)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    triggers = triggers.fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE position = 5",
        "DELETE FROM entries WHERE position = 2",
        "UPDATE entries SET bytes = (SELECT bytes FROM entries WHERE position = 2) "
        "WHERE position = 3",
        "UPDATE entries SET bytes = replace(bytes, '40', '10') WHERE position = 4",
        "UPDATE entries SET bytes = CAST(bytes AS TEXT) WHERE position = 4",
        "UPDATE entries SET position = 9 WHERE position = 5",
        "INSERT INTO entries SELECT 6, bytes FROM entries WHERE position = 5",
        "UPDATE head SET note = replace(note, '6', '5') WHERE name = 'checkpoint'",
        "DELETE FROM head WHERE name = 'checkpoint'",
        "DELETE FROM head WHERE name = 'journal'",
        "UPDATE head SET note = (SELECT note FROM head WHERE name = 'journal')",
        "UPDATE journal SET digest = zeroblob(32)",
        "DELETE FROM journal WHERE step = 1",
        "DELETE FROM journal",
        "INSERT INTO journal VALUES (CAST('r-0099-ffffff' AS BLOB), 0, zeroblob(32))",
        "INSERT INTO journal SELECT run, step + 10, digest FROM journal",
        "CREATE TABLE more (x)",
        "PRAGMA user_version = 2",
    ],
)
def test_whatever_is_done_to_the_tables_is_noticed(
    ledger: Ledger, tmp_path: Path, statement: str
) -> None:
    run_to_the_end(ledger)
    open_run = reserve(ledger, steps=40).body["run"]
    ledger.journal(open_run, 0, step_digest(0))
    ledger.journal(open_run, 1, step_digest(1))
    ledger.append("run-refused", REFUSED, actor="ann")
    copy = closed_copy(ledger, tmp_path)
    with Ledger.open(copy, log_key=LOG_KEY) as intact:
        assert intact.verify().size == 6
    edit(copy, statement)
    with pytest.raises(PrivftError) as caught, Ledger.open(copy, log_key=LOG_KEY) as altered:
        altered.verify()
    assert isinstance(caught.value, IntegrityError)


def test_a_step_dropped_from_an_open_journal_is_noticed_at_settlement(
    ledger: Ledger, tmp_path: Path
) -> None:
    run = reserve(ledger, steps=9).body["run"]
    for step in range(3):
        ledger.journal(run, step, step_digest(step))
    copy = closed_copy(ledger, tmp_path)
    edit(copy, "DELETE FROM journal WHERE step = 2")
    with Ledger.open(copy, log_key=LOG_KEY) as altered, pytest.raises(IntegrityError):
        settle(altered, run, steps_drawn=2)


def test_a_cut_table_with_its_old_checkpoint_is_noticed_from_outside(
    ledger: Ledger, tmp_path: Path
) -> None:
    run_to_the_end(ledger)
    yesterday = closed_copy(ledger, tmp_path)
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY) as today:
        run_to_the_end(today)
        newest = today.checkpoint()
    with Ledger.open(yesterday, log_key=LOG_KEY) as restored:
        old = restored.checkpoint()
        assert restored.verify([old]).known == 1
        with pytest.raises(IntegrityError, match="has 4 entries, and a checkpoint of 6"):
            restored.verify([old, newest])
        for _ in range(3):  # grown past it again, with other entries
            restored.append("run-refused", REFUSED, actor="ann")
        with pytest.raises(IntegrityError, match="are not those"):
            restored.verify([newest])


def test_a_ledger_that_goes_back_while_it_is_open_is_noticed(
    ledger: Ledger, tmp_path: Path
) -> None:
    before = closed_copy(ledger, tmp_path)
    live = tmp_path / "live.db"
    shutil.copy(before, live)
    with Ledger.open(live, log_key=LOG_KEY) as opened:
        run_to_the_end(opened)
        note = Checkpoint(origin=ORIGIN, size=2, root=bytes(32)).signed(LOG_KEY)
        with sqlite3.connect(live) as connection:
            connection.execute(
                "UPDATE head SET note = ? WHERE name = 'checkpoint'", (note.encode(),)
            )
        connection.close()
        with pytest.raises(IntegrityError, match="went back from 4 entries to 2"):
            reserve(opened)


def test_a_checkpoint_by_another_key_is_no_checkpoint(ledger: Ledger) -> None:
    foreign = Checkpoint(origin=ORIGIN, size=1, root=bytes(32)).signed(OTHER_KEY)
    with pytest.raises(IntegrityError):
        ledger.verify([foreign])


def test_an_entry_signed_into_the_log_beyond_the_cap_is_noticed(tmp_path: Path) -> None:
    """Even the holder of the log key cannot have an overspent ledger verified."""
    with new_ledger(tmp_path, cap=Cap(epsilon=100.0, delta=1e-6)) as ledger:
        reserve(ledger, steps=4000, cap=Cap(epsilon=100.0, delta=1e-6))
        bundle = ledger.export()
    texts = [text.replace('"epsilon":100', '"epsilon":2') for text in bundle["entries"]]
    forged = bundle | {"entries": texts, "checkpoint": checkpoint_over(texts)}
    with pytest.raises(IntegrityError, match="entry 2: this run needs epsilon"):
        verify_bundle(forged, LOG_KEY.public)


def checkpoint_over(texts: list[str]) -> str:
    from privft.budget.translog import leaf_hash, push, root_of

    frontier: tuple[bytes, ...] = ()
    for size, text in enumerate(texts):
        frontier = push(frontier, size, leaf_hash(text.encode()))
    return Checkpoint(origin=ORIGIN, size=len(texts), root=root_of(frontier)).signed(LOG_KEY)


@pytest.mark.parametrize(
    "alter",
    [
        lambda bundle: bundle["entries"].pop(),
        lambda bundle: bundle["entries"].pop(1),
        lambda bundle: bundle["entries"].append(bundle["entries"][-1]),
        lambda bundle: bundle["entries"].__setitem__(2, bundle["entries"][2].replace("ann", "ben")),
        lambda bundle: bundle["entries"].__setitem__(2, bundle["entries"][2] + " "),
        lambda bundle: bundle["entries"].reverse(),
        lambda bundle: bundle["journal"].clear(),
        lambda bundle: bundle["journal"].update({"r-9999-ffffff": []}),
        lambda bundle: next(iter(bundle["journal"].values())).pop(),
        lambda bundle: bundle.update(format="privft-ledger-v2"),
        lambda bundle: bundle.update(more=1),
        lambda bundle: bundle.update(entries=3),
        lambda bundle: bundle.update(journal=[]),
        lambda bundle: bundle.update(checkpoint=""),
        lambda bundle: bundle.update(journal_note=bundle["checkpoint"]),
    ],
)
def test_an_altered_export_does_not_verify(ledger: Ledger, alter: Callable[[Any], Any]) -> None:
    run_to_the_end(ledger)
    text = json.dumps(ledger.export())
    assert verify_bundle(json.loads(text), LOG_KEY.public, [ledger.checkpoint()]).size == 4
    bundle = json.loads(text)
    alter(bundle)
    with pytest.raises(IntegrityError):
        verify_bundle(bundle, LOG_KEY.public)


MOUNTS = """\
22 1 254:0 / / rw - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/ann/local\\040disk rw - xfs /dev/sdb rw
32 22 0:42 / /mnt rw - ext4 /dev/sdc rw
33 32 0:43 / /mnt rw - cifs //server/share rw
34 22 0:44 / /srv/stra\u00dfe\\134a rw - nfs server:/x rw
"""


def test_the_file_system_of_a_path_is_the_innermost_and_latest_mount() -> None:
    for path, kind in (
        ("/var/x", "ext4"),
        ("/home/ben/x", "nfs4"),
        ("/home/ann/local disk/x", "xfs"),
        ("/homestead/x", "ext4"),
        ("/mnt/x", "cifs"),
        ("/srv/stra\u00dfe\\a/x", "nfs"),
    ):
        assert file_system_of(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("ext4", False),
        ("tmpfs", False),
        ("fuseblk", False),
        ("fuse.gocryptfs", False),
        ("fuse.sshfs", True),
        ("fuse.somebody-s-bucket", True),
        ("fuse", True),
        ("virtiofs", True),
        ("smb3", True),
    ],
)
def test_what_is_known_to_be_remote_or_not_known_to_be_local_is_refused(
    kind: str, refused: bool
) -> None:
    assert bool(NETWORK_FILE_SYSTEMS.fullmatch(kind)) is refused


def test_network_file_systems_are_refused(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privft.budget.store.file_system_of", lambda path, mounts: "nfs4")
    with pytest.raises(InputError, match="network file system"):
        Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY)
    with pytest.raises(InputError, match="network file system"):
        Ledger.create(tmp_path / "new.db", log_key=LOG_KEY, origin=ORIGIN, workspace_id="w")
    assert not (tmp_path / "new.db").exists()


def test_a_ledger_does_not_cross_a_fork(ledger: Ledger) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            ledger.append("run-refused", REFUSED, actor="ann")
        except OrderError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ledger.size == 2


def test_the_ledger_loads_without_torch_or_accountants() -> None:
    code = "import sys, privft.budget.ledger, privft.keyring; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "numpy", "scipy", "dp_accounting", "riskcal", "securesystemslib"}


def test_repeated_runs_are_summed_as_one(ledger: Ledger) -> None:
    for _ in range(3):
        run_to_the_end(ledger, steps=2)
    assert ledger.budget(LINEAGE).spent == (
        Event(noise_multiplier=1.1, sampling_probability=0.03, count=6),
    )
    assert [record.outcome for record in ledger.runs(LINEAGE)] == ["completed"] * 3
    assert ledger.runs("ff" * 16) == []
