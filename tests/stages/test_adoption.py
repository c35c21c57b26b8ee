"""A change of a vault killed at any of its writes is not there at all, or can be completed: with
the entry, the provenance and the certificate that it would have had.

Each case runs in a forked child that ends, without any cleaning up, just before its k-th write: of
the vault, of the workspace's files, or of the ledger (where also just after one).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privft import workspace as workspace_module
from privft.budget.ledger import Ledger
from privft.errors import IntegrityError, OrderError, UsageError
from privft.policy import load_policy
from privft.signing import Identity
from privft.stages import data
from privft.vault import durable
from privft.vault.adding import provenance_digest
from privft.vault.erasure import open_certificate
from privft.vault.keys import agreement_recipient
from privft.vault.manifest import Caps
from privft.vault.state import Provenance
from privft.vault.store import Vault
from privft.workspace import Workspace, opener_of
from tests.vault.builders import FIELDS, rows, write_jsonl
from tests.vault.test_crash import KILLED, FailingOs, kill

ADA = Identity.generate("ada")
BOB = Identity.generate("bob")
OPENER = opener_of(ADA)


class Counted(FailingOs):
    """`os`, and with `at` any other place, that ends the process at the k-th write."""

    def at(self, name: str) -> None:
        self.calls += 1
        if self.calls == self._stop_at:
            self._how(name, ())


def watch(counted: Counted, setattr_: Callable[[Any, str, Any], None]) -> None:
    """Let `counted` see every write of vault, workspace and ledger."""
    append = Ledger.append

    def appending(self: Ledger, *arguments: Any, **options: Any) -> Any:
        counted.at("before the entry")
        entry = append(self, *arguments, **options)
        counted.at("after the entry")
        return entry

    setattr_(durable, "os", counted)
    setattr_(workspace_module, "os", counted)
    setattr_(Ledger, "append", appending)


def create(folder: Path, dataset: str, source: Path, **options: Any) -> None:
    workspace = Workspace.open(folder)
    with workspace.ledger() as ledger:
        vault, _ = data.create_vault(
            workspace,
            ledger,
            actor=ADA,
            dataset=dataset,
            unit="subject",
            fields=FIELDS,
            caps=Caps(),
            declared_units=100,
            policy=load_policy("default"),
            recipients=[agreement_recipient("ada", bytes.fromhex(ADA.public.x25519))],
            sources=[source],
            **options,
        )
        vault.close()


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    """A workspace of two operators with the data set notes, and rows that may be added."""
    folder = tmp_path / "ward"
    workspace = Workspace.create(folder, owner=ADA, roles=["operator"])
    with workspace.ledger() as ledger:
        workspace.add_person(ledger, BOB, roles=["operator"], actor="ada")
    create(folder, "notes", write_jsonl(tmp_path / "notes.jsonl", rows(8, patients=4)))
    write_jsonl(folder / "more.jsonl", rows(6, patients=3, start=100))
    return folder


def opened(folder: Path, change: Callable[[Workspace, Ledger, Vault], Any]) -> Any:
    workspace = Workspace.open(folder)
    with workspace.ledger() as ledger, data.open_vault(workspace, ledger, "notes", OPENER) as vault:
        return change(workspace, ledger, vault)


def intake(folder: Path) -> None:
    source = [folder / "more.jsonl"]
    opened(folder, lambda w, g, vault: data.add_records(w, g, vault, source, actor=ADA))


def rotation(folder: Path) -> None:
    opened(folder, lambda w, g, vault: data.rotate_vault(w, g, vault, actor=ADA))


def erasure(folder: Path) -> None:
    opened(folder, lambda w, g, vault: data.erase_unit(w, g, vault, "p1", actor=ADA))


OPERATIONS = {"intake": intake, "vault-rotated": rotation, "vault-erased": erasure}


def adopt(folder: Path, actor: Identity = BOB) -> str | None:
    workspace = Workspace.open(folder)
    with workspace.ledger() as ledger:
        return data.adopt(workspace, ledger, "notes", OPENER, actor=actor)


def run_in_child(folder: Path, operation: Callable[[Path], None], counted: Counted) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            watch(counted, setattr)
            operation(folder)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_entry(folder: Path, kind: str) -> None:
    """The vault is whole and the newest entry says all of its last change."""

    def look(workspace: Workspace, ledger: Ledger, vault: Vault) -> None:
        vault.verify()
        body = data.newest_version(ledger, "notes").body
        assert data.newest_version(ledger, "notes").kind == kind
        assert body["manifest_root"] == vault.manifest_root
        facts = vault.inspect()["private"]
        if kind == "intake":
            last = Provenance.model_validate(facts["intakes"][-1])
            assert (last.name, last.who) == ("more.jsonl", "ada")
            assert body["provenance_sha256"] == provenance_digest([last])
            assert body["overlap"] == "none"
            known = workspace.overlap_known("notes")
            assert vault.unit_hashes(workspace.overlap_key) <= known.hashes
            assert body["known"] == known.commitments[-1]
        if kind == "vault-erased":
            text = data.certificate_path(workspace, body["commitment"]).read_bytes()
            certificate = open_certificate(json.loads(text), workspace.signer_keys(ledger))
            assert body["certificate_sha256"] == data.sha256_hex(text.rstrip(b"\n"))
            assert certificate["commitment"] == body["commitment"] == vault.commitment("p1")
            assert certificate["manifest_after"] == body["manifest_digest"]
            assert certificate["who"] == "ada"
            assert vault.number_of("p1") is None

    opened(folder, look)


def killed_at(ward: Path, kind: str, stop_at: int) -> tuple[Path, int]:
    folder = ward.parent / f"case-{stop_at}"
    shutil.copytree(ward, folder)
    return folder, run_in_child(folder, OPERATIONS[kind], Counted(stop_at, kill))


@pytest.mark.parametrize("kind", OPERATIONS)
def test_a_kill_at_each_write_leaves_a_change_that_is_absent_or_can_be_completed(
    ward: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    counted = Counted(-1, kill)
    done = ward.parent / "done"
    shutil.copytree(ward, done)
    with monkeypatch.context() as patch:
        watch(counted, patch.setattr)
        OPERATIONS[kind](done)
    check_entry(done, kind)
    states = []
    for stop_at in range(1, counted.calls + 1):
        folder, code = killed_at(ward, kind, stop_at)
        assert code == KILLED, stop_at
        completed = adopt(folder)
        assert adopt(folder) is None
        if completed is not None:
            assert completed == kind
            states.append("completed")
        else:
            newest = opened(folder, lambda w, g, vault: data.newest_version(g, "notes").index)
            before = opened(ward, lambda w, g, vault: data.newest_version(g, "notes").index)
            states.append("old" if newest == before else "new")
        if states[-1] == "old":
            OPERATIONS[kind](folder)
        check_entry(folder, kind)
    assert states == sorted(states, key=["old", "completed", "new"].index)
    assert set(states) == {"old", "completed", "new"}
    assert len(states) >= 20


def put_in_without_asking(folder: Path, source: Path) -> None:
    """What an operator could do who calls the vault's own functions instead of the commands."""
    opened(
        folder,
        lambda w, g, vault: vault.add(
            [source], signer=ADA.signing, checkpoint=g.checkpoint(), who="ada"
        ),
    )


def test_adoption_is_no_way_round_the_comparison_with_other_budgets(ward: Path) -> None:
    others = [row | {"patient": f"q{row['id']}"} for row in rows(3, patients=3, start=500)]
    create(ward, "other", write_jsonl(ward / "other.jsonl", others))
    put_in_without_asking(ward, ward / "other.jsonl")
    with pytest.raises(UsageError, match="in data set other already"):
        adopt(ward)
    with pytest.raises(IntegrityError, match="not the version"):
        opened(ward, lambda *_: None)


def test_adoption_records_what_later_intakes_are_compared_with(ward: Path) -> None:
    put_in_without_asking(ward, ward / "more.jsonl")
    assert adopt(ward) == "intake"
    with pytest.raises(UsageError, match="in data set notes already"):
        create(ward, "other", ward / "more.jsonl")


def test_an_adopted_intake_that_meets_its_own_budget_says_so(ward: Path) -> None:
    create(ward, "other", ward / "more.jsonl", join="notes")
    put_in_without_asking(ward, ward / "more.jsonl")
    assert adopt(ward) == "intake"
    body = opened(ward, lambda w, g, vault: data.newest_version(g, "notes").body)
    assert body["overlap"] == "same-lineage"


def test_a_vault_two_changes_ahead_is_not_adopted(ward: Path) -> None:
    put_in_without_asking(ward, ward / "more.jsonl")
    workspace = Workspace.open(ward)
    with (
        workspace.ledger() as ledger,
        Vault.open(
            workspace.vault_path("notes"), OPENER, signer_keys=workspace.signer_keys(ledger)
        ) as vault,
    ):
        vault.rotate(signer=ADA.signing, checkpoint=ledger.checkpoint())
    with pytest.raises(OrderError, match="not one change ahead"):
        adopt(ward)


@pytest.mark.parametrize("change", [rotation, intake, erasure])
def test_a_vault_from_before_a_change_is_refused_and_not_adopted(
    ward: Path, change: Callable[[Path], None]
) -> None:
    """Also after a rotation that took somebody's key away: the root is then the same."""
    vault = ward / "vaults" / "notes"
    shutil.copytree(vault, ward / "backup")
    change(ward)
    shutil.rmtree(vault)
    shutil.copytree(ward / "backup", vault)
    with pytest.raises(IntegrityError, match="not the version"):
        opened(ward, lambda *_: None)
    with pytest.raises(OrderError, match="not one change ahead"):
        adopt(ward)
