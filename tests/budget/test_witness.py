"""A witness notices a ledger that was set back; a lawful recovery costs every budget."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.budget.replay import verify_bundle
from privft.budget.signed import RECOVERY_TYPE, recovery_statement
from privft.budget.witness import (
    Freshness,
    accept,
    answer,
    ask,
    cosign,
    cosigned_at,
    freshness,
)
from privft.errors import (
    BudgetExceeded,
    IntegrityError,
    OrderError,
    PolicyRefused,
    SignatureError,
)
from privft.policy import Age, Policy, load_policy
from privft.signing import Identity, SigningKey, dsse_sign
from tests.budget.samples import (
    CAP,
    LINEAGE,
    LOG_KEY,
    OTHER_KEY,
    key_added,
    new_ledger,
    reservation_body,
    reserve,
    run_to_the_end,
)

WITNESS = Identity.generate("desk")
DESK = WITNESS.signing


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with new_ledger(tmp_path) as opened:
        body, early = key_added(WITNESS, "witness"), "2026-01-01T00:00:00Z"
        opened.append("key-added", body, actor="ann", time=early)
        yield opened


def answered(ledger: Ledger, newest: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    challenge = json.loads(json.dumps(ask(ledger, "desk")))
    reply, kept = answer(
        challenge, newest=newest, witness=DESK, log_key=LOG_KEY.public, posix_time=1795464924
    )
    return challenge, json.loads(json.dumps(reply)), kept


def witnessed(ledger: Ledger, newest: str) -> str:
    challenge, reply, kept = answered(ledger, newest)
    accept(ledger, challenge, reply, witness="desk", actor="ann")
    return kept


def test_a_witness_follows_a_growing_ledger(ledger: Ledger) -> None:
    kept = ""
    for _ in range(3):
        newest = ledger.checkpoint()
        kept = witnessed(ledger, kept)
        assert kept == newest
        run_to_the_end(ledger)
    (*_, last) = ledger.entries(kind="witnessed")
    assert cosigned_at(last.body["cosigned"], DESK.public) == 1795464924
    assert ledger.verify([kept]).known == 1


def test_a_ledger_set_back_is_refused_by_its_witness(ledger: Ledger, tmp_path: Path) -> None:
    kept = witnessed(ledger, "")
    ledger.close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "yesterday.db")
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY) as today:
        run_to_the_end(today)
        kept = witnessed(today, kept)
    with Ledger.open(tmp_path / "yesterday.db", log_key=LOG_KEY) as restored:
        challenge, reply, still = answered(restored, kept)
        assert (reply["cosigned"], still) == ("", kept)
        size = restored.size
        with pytest.raises(IntegrityError, match="and a checkpoint of"):
            accept(restored, challenge, reply, witness="desk", actor="ann")
        assert restored.size == size
        # grown past the checkpoint with other entries: the witness does not cosign, nor the
        # ledger believe itself
        for _ in range(4):
            reserve(restored, steps=1)
        challenge, reply, still = answered(restored, kept)
        assert (reply["cosigned"], still) == ("", kept)
        with pytest.raises(IntegrityError, match="are not those"):
            accept(restored, challenge, reply, witness="desk", actor="ann")


def test_a_witness_that_lags_behind_is_caught_up_in_two_rounds(ledger: Ledger) -> None:
    first = witnessed(ledger, "")
    run_to_the_end(ledger)
    witnessed(ledger, first)
    run_to_the_end(ledger)
    # the witness was itself restored to `first`: no proof from there, so no cosignature yet
    challenge, reply, kept = answered(ledger, first)
    assert (reply["cosigned"], kept) == ("", first)
    accept(ledger, challenge, reply, witness="desk", actor="ann")
    newest = ledger.checkpoint()
    assert witnessed(ledger, first) == newest


def test_a_forked_log_is_an_error_at_the_witness(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "fork.db")
    with Ledger.open(tmp_path / "fork.db", log_key=LOG_KEY) as fork:
        reserve(fork, steps=1)
        other = fork.checkpoint()
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY) as mine:
        reserve(mine, steps=2)
        with pytest.raises(IntegrityError):
            answered(mine, other)


def test_an_old_or_foreign_answer_is_refused(ledger: Ledger) -> None:
    challenge, reply, _ = answered(ledger, "")
    later = ask(ledger, "desk")
    with pytest.raises(SignatureError, match="another challenge"):
        accept(ledger, later, reply, witness="desk", actor="ann")
    forged, _ = answer(
        challenge,
        newest="",
        witness=SigningKey(name="desk", seed=OTHER_KEY.seed),
        log_key=LOG_KEY.public,
        posix_time=1,
    )
    with pytest.raises(SignatureError):
        accept(ledger, challenge, forged, witness="desk", actor="ann")
    with pytest.raises(PolicyRefused, match="nobody named stranger"):
        accept(ledger, challenge, {**reply, "witness": "stranger"}, witness="stranger", actor="ann")
    for field in ("nonce", "checkpoint", "cosigned", "signature", "format"):
        with pytest.raises(IntegrityError):
            accept(ledger, challenge, {**reply, field: "x"}, witness="desk", actor="ann")
    with pytest.raises(IntegrityError):
        accept(ledger, challenge, {**reply, "more": "x"}, witness="desk", actor="ann")
    accept(ledger, challenge, reply, witness="desk", actor="ann")


def test_what_no_witness_said_is_not_recorded_and_does_not_verify(ledger: Ledger) -> None:
    _, reply, _ = answered(ledger, "")
    body = {name: value for name, value in reply.items() if name != "format"} | {"nonce": "0" * 32}
    with pytest.raises(SignatureError):
        ledger.append("witnessed", body, actor="ann")
    with pytest.MonkeyPatch.context() as patch:  # a program that does not look
        patch.setattr("privft.budget.history.check_witnessed", lambda *_: None)
        ledger.append("witnessed", body, actor="ann")
    with pytest.raises(IntegrityError):
        ledger.verify()


def test_the_age_of_a_witness_is_counted_in_entries_and_days(ledger: Ledger) -> None:
    asked = "2026-11-23T20:15:24Z"  # POSIX time 1795464924, at which the witness answers here

    def reserve_at(time: str) -> None:
        ledger.reserve(actor="ann", body=reservation_body(steps=1), cap=CAP, time=time)

    assert freshness(ledger, asked) is None
    challenge, reply, kept = answered(ledger, "")
    accept(ledger, challenge, reply, witness="desk", actor="ann", time=asked)
    assert freshness(ledger, asked) == Freshness(witness="desk", entries=0, days=0.0)
    reserve_at("2026-11-25T20:15:24Z")
    later = freshness(ledger, "2026-11-26T08:15:24Z")
    assert later == Freshness(witness="desk", entries=1, days=2.5)
    # a clock that was set back makes no witness younger than the ledger's last entry says
    back = freshness(ledger, "2026-11-01T00:00:00Z")
    assert back == Freshness(witness="desk", entries=1, days=2.0)
    # an answer without a cosignature is no word of a witness
    reserve_at("2026-11-25T20:15:24Z")
    challenge, reply, _ = answered(ledger, "")
    reply, _ = answer(
        challenge | {"since": 1},
        newest=kept,
        witness=DESK,
        log_key=LOG_KEY.public,
        posix_time=1795464925,
    )
    assert reply["cosigned"] == ""
    accept(ledger, challenge, reply, witness="desk", actor="ann", time="2026-11-25T20:15:24Z")
    again = freshness(ledger, "2026-11-26T08:15:24Z")
    assert again is not None
    assert (again.entries, again.days) == (3, 2.5)


def test_a_policy_that_wants_a_witness_refuses_to_train_without_its_word(ledger: Ledger) -> None:
    from privft.stages import standing

    def check_witnessed(ledger: Ledger, policy: Policy) -> None:
        standing.check_witnessed(ledger, policy, now=format_time(datetime.now(UTC)))

    policy = load_policy("default")
    check_witnessed(ledger, policy)  # asks for none
    within = policy.witness_within.model_copy(update={"value": Age(entries=2, days=7.0)})
    asking = policy.model_copy(update={"witness_within": within})
    with pytest.raises(PolicyRefused, match="no witness ever cosigned"):
        check_witnessed(ledger, asking)
    kept = witnessed_now(ledger, "")
    check_witnessed(ledger, asking)
    for _ in range(2):
        reserve(ledger, steps=1)
    check_witnessed(ledger, asking)
    reserve(ledger, steps=1)
    with pytest.raises(PolicyRefused, match=r"3 entries and 0\.0 days old, by desk"):
        check_witnessed(ledger, asking)
    witnessed_now(ledger, kept)
    check_witnessed(ledger, asking)
    old = within.model_copy(update={"value": Age(entries=2, days=1e-9)})
    time.sleep(1.1)
    with pytest.raises(PolicyRefused, match="within 2 entries and 1e-09 days"):
        check_witnessed(ledger, policy.model_copy(update={"witness_within": old}))


def witnessed_now(ledger: Ledger, newest: str) -> str:
    challenge = ask(ledger, "desk")
    reply, kept = answer(
        challenge,
        newest=newest,
        witness=DESK,
        log_key=LOG_KEY.public,
        posix_time=int(time.time()),
    )
    accept(ledger, challenge, reply, witness="desk", actor="ann")
    return kept


@pytest.mark.parametrize(
    "change",
    [
        {"format": "x"},
        {"since": "1"},
        {"proof": [3]},
        {"checkpoint": ""},
        {"more": 1},
        {"proof": {}},
    ],
)
def test_a_malformed_challenge_is_refused(ledger: Ledger, change: dict[str, Any]) -> None:
    kept = witnessed(ledger, "")
    challenge = ask(ledger, "desk") | change
    with pytest.raises(IntegrityError):
        answer(challenge, newest=kept, witness=DESK, log_key=LOG_KEY.public, posix_time=1)


def test_a_cosignature_names_its_witness_and_time(ledger: Ledger) -> None:
    note = cosign(ledger.checkpoint(), DESK, posix_time=77)
    assert cosigned_at(note, DESK.public) == 77
    with pytest.raises(SignatureError):
        cosigned_at(note, OTHER_KEY.public)
    with pytest.raises(SignatureError):
        cosigned_at(note.replace("\n3\n", "\n4\n"), DESK.public)


PEOPLE = [Identity.generate(name) for name in ("ann", "ben", "eve")]


def enrol(ledger: Ledger) -> None:
    for person, role in zip(PEOPLE, ("approver", "approver", "operator"), strict=True):
        ledger.append("key-added", key_added(person, role), actor="ann")


def recover(ledger: Ledger, known: list[str], signers: list[Identity], **changes: Any) -> Any:
    statement = recovery_statement(known, changes.get("lineages", [LINEAGE]), "disk died")
    envelope = dsse_sign(statement, RECOVERY_TYPE, [person.signing for person in signers])
    return ledger.recover(actor="ann", known=known, reason="disk died", envelope=envelope)


def test_a_recovery_exhausts_every_budget_and_excuses_what_it_lists(
    ledger: Ledger, tmp_path: Path
) -> None:
    enrol(ledger)
    ledger.close()
    shutil.copy(tmp_path / "ledger.db", tmp_path / "backup.db")
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY) as today:
        run_to_the_end(today)
        middle = today.checkpoint()
        run_to_the_end(today)
        lost = today.checkpoint()
    with Ledger.open(tmp_path / "backup.db", log_key=LOG_KEY) as backup:
        with pytest.raises(IntegrityError, match="at least 2"):
            recover(backup, [lost], PEOPLE[:1])
        with pytest.raises(SignatureError):
            recover(backup, [lost], [PEOPLE[0], PEOPLE[2]])  # an operator is no approver
        with pytest.raises(SignatureError):
            recover(backup, [lost], PEOPLE[:2], lineages=[])
        with pytest.raises(OrderError, match="not lost"):
            recover(backup, [backup.checkpoint()], PEOPLE[:2])
        recover(backup, [lost], PEOPLE[:2])
        view = backup.budget(LINEAGE)
        assert view.exhausted
        assert (view.epsilon_spent, view.epsilon_left) == (view.cap.epsilon, 0.0)
        with pytest.raises(BudgetExceeded):
            reserve(backup, steps=1)
        check = backup.verify([lost])
        assert (check.known, check.superseded) == (0, 1)
        with pytest.raises(IntegrityError):
            backup.verify([middle])
        bundle = backup.export()
    assert verify_bundle(bundle, LOG_KEY.public, [lost]).superseded == 1
