"""The newest ledger checkpoint that each run has seen, kept beside the run.

A ledger whose file alone was set back, by a restored backup for example, still looks whole, and a
vault that did not change since agrees with it: the runs in between would be free.  So each run
keeps, in `runs/RUN/ledger.note`, the signed checkpoint as of its reservation, and then as of its
settlement, audit and release; and no run starts or goes on while the ledger does not begin with all
of them.  A lawful recovery names those that it gives up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from privft.budget.ledger import Ledger
from privft.errors import IntegrityError
from privft.stages.data import check_extends
from privft.workspace import Workspace, write_private

NOTE = "ledger.note"


def keep(folder: Path, ledger: Ledger) -> None:
    """Write down what a run, whose files lie in `folder`, sees now; nothing where it has none."""
    if folder.is_dir():
        write_private(folder / NOTE, ledger.checkpoint().encode())


def kept(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """(run, signed checkpoint) of each run that has one; raises `IntegrityError` for no text."""
    for path in sorted((workspace.folder / "runs").glob(f"*/{NOTE}")):
        try:
            yield path.parent.name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{path} is not a checkpoint") from error


def check_runs(workspace: Workspace, ledger: Ledger) -> None:
    """Raise `IntegrityError` unless the ledger grew out of all that its runs have seen."""
    for run, note in kept(workspace):
        check_extends(ledger, note, f"run {run}")
