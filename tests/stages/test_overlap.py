"""Two intakes of the same people at the same moment: one of them sees the other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from privft.budget.ledger import Ledger
from privft.errors import OrderError, UsageError
from privft.stages import overlap
from privft.workspace import Workspace
from tests.stages.test_adoption import create, ward
from tests.vault.builders import rows, write_jsonl

__all__ = ["ward"]
WAITED, REFUSED = 3, 4


def second_intake(folder: Path, source: Path) -> int:
    """How an intake of the same people into another data set ends, in another process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            overlap._LOCK_WAIT_S = 0.2
            create(folder, "second", source)
            code = 0
        except OrderError:
            code = WAITED
        except UsageError:
            code = REFUSED
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("moment", ["recorded", "entered"])
def test_an_intake_waits_for_another_ones_entry(
    ward: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    people = [row | {"patient": f"q{row['id']}"} for row in rows(3, patients=3, start=500)]
    source = write_jsonl(tmp_path / "people.jsonl", people)
    ended: list[int] = []
    record, append = Workspace.record_overlap_hashes, Ledger.append

    def recording(self: Workspace, *arguments: Any) -> None:
        if moment == "recorded":
            ended.append(second_intake(ward, source))
        record(self, *arguments)

    def appending(self: Ledger, kind: str, *arguments: Any, **options: Any) -> Any:
        if moment == "entered" and kind == "dataset-created":
            ended.append(second_intake(ward, source))
        return append(self, kind, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Workspace, "record_overlap_hashes", recording)
        patch.setattr(Ledger, "append", appending)
        create(ward, "first", source)
    assert ended == [WAITED]
    assert second_intake(ward, source) == REFUSED
