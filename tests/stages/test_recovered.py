"""What a restored ledger leaves behind: a warning on page one, and what doctor says of copies."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from privft import doctor
from privft.budget.entries import format_time
from privft.budget.ledger import Ledger
from privft.budget.signed import RECOVERY_TYPE, recovery_statement
from privft.errors import UsageError
from privft.report import statement
from privft.report.page import render
from privft.report.pdf import render_pdf
from privft.signing import Identity, canonical_json, dsse_sign
from privft.stages import reporting
from privft.stages.facts import _ledger_facts
from privft.stages.overlap import meets
from privft.vault.overlap import HashSet
from privft.workspace import Workspace
from tests.budget.samples import (
    CAP,
    LINEAGE,
    LOG_KEY,
    dataset_body,
    key_added,
    mechanism,
    new_ledger,
    reserve,
    run_to_the_end,
)
from tests.report.made_up import made_up_facts

PEOPLE = [Identity.generate(name) for name in ("ann", "ben")]


def recovered(folder: Path) -> tuple[Path, str]:
    """A ledger that was restored from a copy, and a run of it."""
    with new_ledger(folder) as ledger:
        for person in PEOPLE:
            ledger.append("key-added", key_added(person, "approver"), actor="ann")
        run = run_to_the_end(ledger)
    copy = folder / "copy.db"
    shutil.copy(folder / "ledger.db", copy)
    with Ledger.open(folder / "ledger.db", log_key=LOG_KEY) as ledger:
        run_to_the_end(ledger)
        lost = ledger.checkpoint()
    with Ledger.open(copy, log_key=LOG_KEY) as ledger:
        signed = recovery_statement([lost], [LINEAGE], "the disk died")
        envelope = dsse_sign(signed, RECOVERY_TYPE, [person.signing for person in PEOPLE])
        ledger.recover(actor="ann", known=[lost], reason="the disk died", envelope=envelope)
    return copy, run


def test_a_report_after_a_recovery_has_it_among_its_facts(tmp_path: Path) -> None:
    copy, run = recovered(tmp_path)
    with Ledger.open(copy, log_key=LOG_KEY) as ledger:
        plan: Any = SimpleNamespace(lineage=LINEAGE, delta=1e-6, checkpoint=ledger.checkpoint())
        facts = _ledger_facts(ledger, run, plan, [mechanism(steps=3).event()])
        (entry,) = ledger.entries(kind="recovered")
    (found,) = facts["recoveries"]
    assert found["time"] == entry.time
    assert found["kept"] == entry.index < found["seen"]
    assert found["exhausted"] is True
    assert found["reason"] == "the disk died"
    assert found["signers"] == [person.signing.public.keyid for person in PEOPLE]


def test_records_of_a_data_set_that_a_recovery_lost_get_no_new_budget(tmp_path: Path) -> None:
    workspace = workspace_at(tmp_path / "w")
    seen = HashSet.of(bytes(range(16)) + bytes(range(1, 17)))
    workspace.record_overlap_hashes("letters", seen)
    arguments: Any = ("more", "0" * 32, seen)
    with workspace.ledger() as ledger:  # of an interrupted creation: no run ever saw them
        assert not meets(workspace, ledger, *arguments)
    copy, _ = recovered(tmp_path)
    with (
        Ledger.open(copy, log_key=LOG_KEY) as ledger,
        pytest.raises(UsageError, match="2 of 2 units and texts were in data set letters, whose"),
    ):
        meets(workspace, ledger, *arguments)


def test_a_recovery_stands_on_page_one() -> None:
    facts = made_up_facts()
    before = render(statement.build(facts))
    facts["ledger"]["recoveries"] = [
        {
            "time": "2026-11-23T20:15:24Z",
            "kept": 9,
            "seen": 12,
            "exhausted": True,
            "reason": "the disk died <b>",
            "signers": ["ab" * 32, "cd" * 32],
        }
    ]
    built = statement.build(facts)
    page = render(built)
    page_one = page[page.index('id="pageone"') : page.index('aria-label="Contents"')]
    assert "The ledger has a gap" in page_one
    assert "3 or more entries are lost" in page_one
    assert "the disk died &lt;b&gt;" in page_one
    assert "The ledger has a gap" not in before
    pytest.importorskip("typst", reason="typst is not installed")
    assert render_pdf(built)[:5] == b"%PDF-"


def test_what_a_run_cost_alone_is_what_it_was_priced_at_unless_less_was_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with new_ledger(tmp_path) as ledger:
        whole, part = run_to_the_end(ledger, steps=3), reserve(ledger, steps=9).body["run"]
        ledger.settle(
            part, actor="ann", outcome="completed", reason="", steps_drawn=2, adapter=None
        )
        asked: list[Any] = []

        def price(*arguments: Any) -> Any:
            asked.append(arguments)
            return SimpleNamespace(epsilon=0.25)

        monkeypatch.setattr(reporting, "cost", price)
        rows = reporting.burn_down(ledger, CAP, LINEAGE, 1e-6)
        assert [row["run"] for row in rows] == [whole, part]
        assert [row["epsilon"] for row in rows] == [1.5, 0.25]  # 1.5 is what the samples say
        assert [events[0].count for events, _ in asked] == [2]
        assert rows[-1]["cumulative"] == pytest.approx(ledger.budget(LINEAGE).epsilon_spent)
        reporting.burn_down(ledger, CAP, LINEAGE, 1e-7)  # another delta is another price
        assert len(asked) == 3


def workspace_at(folder: Path) -> Workspace:
    owner = Identity.generate("ada")
    workspace = Workspace.create(folder / "ward", owner=owner, roles=("operator",))
    with workspace.ledger() as ledger:
        ledger.append("dataset-created", dataset_body(), actor="ada")
    return workspace


def verdict(workspace: Workspace, check: str) -> str:
    (found,) = [row for row in doctor.examine(workspace) if row.check == check]
    return found.verdict


def test_doctor_warns_without_a_backup_and_of_an_old_one(tmp_path: Path) -> None:
    workspace = workspace_at(tmp_path)
    assert verdict(workspace, "backup") == "warning"
    with workspace.ledger() as ledger:
        copied = ledger.backup(tmp_path / "copy.db")
        assert copied.root == ledger.root
    workspace.note_backup(entries=copied.size)
    assert verdict(workspace, "backup") == "ok"
    old = {"time": format_time(datetime.now(UTC) - timedelta(days=31)), "entries": 2}
    (workspace.folder / "backup.json").write_bytes(canonical_json(old) + b"\n")
    assert verdict(workspace, "backup") == "warning"
    assert verdict(workspace, "witness") == "warning"


def test_a_backup_is_whole_while_the_ledger_grows(tmp_path: Path) -> None:
    workspace = workspace_at(tmp_path)
    with workspace.ledger() as ledger:
        run_to_the_end(ledger)
        copied = ledger.backup(tmp_path / "copy.db")
        run_to_the_end(ledger)
        with Ledger.open(tmp_path / "copy.db", log_key=workspace.log.public) as copy:
            assert copy.verify().size == copied.size
            assert ledger.check_known(copy.checkpoint())
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    assert json.loads((workspace.folder / "workspace.json").read_bytes())["name"] == "ward"
