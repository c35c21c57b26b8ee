"""A randomly stopped sweep in the ledger: one reservation and one charge, whatever was drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from privft.budget.filter import Cap, admit, fits
from privft.budget.ledger import Ledger
from privft.budget.mechanism import Event
from privft.budget.replay import verify_bundle
from privft.budget.selection import Selection, event_from_dict
from privft.errors import BudgetExceeded, IntegrityError, OrderError
from tests.budget.samples import (
    CAP,
    HASH,
    LINEAGE,
    LOG_KEY,
    mechanism,
    new_ledger,
    reserve,
    run_to_the_end,
    selection,
    step_digest,
    stopped_body,
)

STEPS, MOST = 3, 5


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with new_ledger(tmp_path) as made:
        yield made


def reserved(ledger: Ledger, *, steps: int = STEPS, cap: Cap = CAP, **body: Any) -> str:
    entry = ledger.reserve(actor="ann", body=stopped_body(steps=steps, most=MOST, **body), cap=cap)
    return str(entry.body["run"])


def settled(ledger: Ledger, run: str, *, drawn: int, outcome: str = "completed") -> None:
    ledger.settle(
        run,
        actor="ann",
        outcome=outcome,
        reason="all steps ran",
        steps_drawn=drawn,
        adapter={"adapter_model.safetensors": HASH} if outcome == "completed" else None,
    )


def journalled(ledger: Ledger, run: str, steps: int) -> None:
    for step in range(steps):
        ledger.journal(run, step, step_digest(step))


CHOSEN = selection(steps=STEPS, most=MOST)


def test_a_selection_is_reserved_whole_and_settled_whole(ledger: Ledger) -> None:
    run = reserved(ledger)
    assert ledger.run(run).steps == STEPS * MOST
    view = ledger.budget(LINEAGE)
    assert (view.reserved, view.spent) == ((CHOSEN,), ())
    journalled(ledger, run, STEPS * MOST)
    settled(ledger, run, drawn=STEPS * MOST)
    after = ledger.budget(LINEAGE)
    assert (after.reserved, after.spent) == ((), (CHOSEN,))
    assert after.epsilon_spent == view.epsilon_spent == admit(CAP, [], [CHOSEN]).epsilon_after
    (entry,) = ledger.entries(kind="run-settled")
    assert [event_from_dict(event) for event in entry.body["events"]] == [CHOSEN]
    assert entry.body["steps_charged"] == STEPS * MOST


@pytest.mark.parametrize("steps", [0, 1, STEPS, STEPS * MOST - 1])
def test_a_selection_that_stopped_early_is_charged_whole_or_not_settled(
    ledger: Ledger, steps: int
) -> None:
    run = reserved(ledger)
    journalled(ledger, run, steps)
    with pytest.raises(OrderError, match="charged whole"):
        settled(ledger, run, drawn=steps)
    assert ledger.budget(LINEAGE).reserved == (CHOSEN,)
    settled(ledger, run, drawn=0, outcome="closed")
    assert ledger.run(run).charged == (CHOSEN,)
    assert ledger.entries(kind="run-settled")[0].body["steps_charged"] == STEPS * MOST
    ledger.verify()


def test_no_step_beyond_the_last_repetition_is_journalled(ledger: Ledger) -> None:
    run = reserved(ledger)
    journalled(ledger, run, STEPS * MOST)
    with pytest.raises(OrderError, match="15 of 15"):
        ledger.journal(run, STEPS * MOST, step_digest(0))


def test_selections_and_plain_runs_share_one_budget(ledger: Ledger, tmp_path: Path) -> None:
    run_to_the_end(ledger)
    for _ in range(2):
        run = reserved(ledger)
        journalled(ledger, run, STEPS * MOST)
        settled(ledger, run, drawn=STEPS * MOST)
    reserve(ledger, steps=4)
    plain = Event(noise_multiplier=1.1, sampling_probability=0.03, count=3)
    view = ledger.budget(LINEAGE)
    assert view.spent == (plain, CHOSEN, CHOSEN)
    more = Event(noise_multiplier=1.1, sampling_probability=0.03, count=4)
    gauge = admit(CAP, [], [plain, CHOSEN, CHOSEN, more]).epsilon_after
    assert view.epsilon_spent == pytest.approx(gauge)
    left = ledger.more_like(LINEAGE, CHOSEN)
    assert left == fits(CAP, [plain, CHOSEN, CHOSEN, more], CHOSEN) > 0
    check = ledger.verify()
    assert (check.runs, check.open_runs) == (4, 1)
    assert verify_bundle(ledger.export(), LOG_KEY.public).size == check.size
    with Ledger.open(tmp_path / "ledger.db", log_key=LOG_KEY) as again:
        assert again.budget(LINEAGE) == view


def test_the_filter_refuses_the_selection_that_goes_beyond_the_cap(tmp_path: Path) -> None:
    alone = admit(CAP, [], [CHOSEN]).epsilon_after
    cap = Cap(epsilon=1.2 * alone, delta=CAP.delta)
    with new_ledger(tmp_path, cap=cap) as ledger:
        reserved(ledger, cap=cap)
        with pytest.raises(BudgetExceeded) as refused:
            reserved(ledger, cap=cap)
        assert "fewer repetitions" in str(refused.value.hint)
        assert len(ledger.runs()) == 1


OTHER = mechanism(steps=STEPS + 1).event()


@pytest.mark.parametrize(
    "events",
    [
        [Selection(events=(OTHER,), mean=2.0, shape=1.0, most=MOST)],
        [Selection(events=(mechanism(steps=STEPS).event(),), mean=2.0, shape=1.0)],
        [CHOSEN, CHOSEN],
        [CHOSEN, mechanism(steps=STEPS).event()],
        [mechanism(steps=STEPS).event(), CHOSEN],
    ],
    ids=["another mechanism", "without an end", "twice", "with its mechanism", "beside it"],
)
def test_a_selection_of_something_else_is_not_reserved(ledger: Ledger, events: list[Any]) -> None:
    body = {**stopped_body(steps=STEPS), "events": [event.to_dict() for event in events]}
    with pytest.raises(IntegrityError, match=r"other events than its mechanism|most"):
        ledger.reserve(actor="ann", body=body, cap=CAP)
    assert ledger.runs() == []


@pytest.mark.parametrize(
    "change", [{"mean": 0.5}, {"most": None}, {"more": 1}, {"distribution": "geometric"}]
)
def test_a_selection_that_is_none_is_no_entry(ledger: Ledger, change: dict[str, Any]) -> None:
    body = stopped_body(steps=STEPS)
    body["events"] = [{**body["events"][0], **change}]
    with pytest.raises(IntegrityError):
        ledger.reserve(actor="ann", body=body, cap=CAP)


def test_a_smaller_charge_for_a_selection_is_found_on_replay(ledger: Ledger) -> None:
    """Whoever holds the log's key and writes a cheaper settlement is found by any reader."""
    run = reserved(ledger)
    journalled(ledger, run, STEPS)
    history = ledger._history
    with ledger._reading():
        for steps, events in ((STEPS, [CHOSEN]), (STEPS * MOST, []), (STEPS * MOST, [OTHER])):
            body = {
                "run": run,
                "outcome": "completed",
                "steps_charged": steps,
                "events": [event.to_dict() for event in events],
            }
            with pytest.raises((OrderError, IntegrityError)):
                history._check_settlement(body)
