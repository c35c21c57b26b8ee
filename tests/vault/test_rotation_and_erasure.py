"""Rotation and erasure: what no longer opens, what still does, and what is signed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from privft.errors import InputError, IntegrityError, NotForThisKey, SignatureError, UsageError
from privft.signing import SigningKey
from privft.vault import cells, erasure, preview
from privft.vault.erasure import CANNOT_PROMISE, commitment, open_certificate
from privft.vault.index import read_index
from privft.vault.keys import (
    CHEAP_FOR_TESTS,
    passphrase_opener,
    passphrase_recipient,
    unwrap,
    wrap_context,
)
from privft.vault.state import place_of
from privft.vault.store import Vault
from privft.vault.verify import verify_files
from tests.vault.builders import (
    PASSPHRASE,
    SIGNED,
    TRUSTED,
    add_rows,
    content,
    new_vault,
    opener,
    reopen,
    rows,
)


@pytest.fixture
def filled(tmp_path: Path) -> Vault:
    vault = new_vault(tmp_path / "v")
    add_rows(vault, tmp_path / "a.jsonl", rows(20, patients=8))
    add_rows(vault, tmp_path / "b.jsonl", rows(6, patients=3, start=40))
    return vault


def everything(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(path.iterdir()))


def test_rotation_changes_epoch_and_index_and_no_cell(filled: Vault) -> None:
    before, old = content(filled), filled.manifest
    filled.rotate(**SIGNED)
    new = filled.manifest
    assert (new.epoch, new.sequence, new.root) == (old.epoch + 1, old.sequence + 1, old.root)
    assert new.segments == old.segments
    assert new.previous == old.digest
    assert content(reopen(filled.path)) == before
    assert filled.verify().strangers == ()


def test_nothing_that_remains_opens_with_an_old_epoch_key(filled: Vault) -> None:
    old_key, old_wraps = filled._state.epoch_key, filled.manifest.recipients
    filled.rotate(**SIGNED)
    data = everything(filled.path)
    assert not any(wrapped.epoch_key.encode() in data for wrapped in old_wraps)
    manifest = filled.manifest
    for file in (manifest.index, manifest.records):
        with pytest.raises(IntegrityError):
            read_index(filled.path, file, old_key, place_of(manifest))


def test_reencryption_makes_every_cell_anew(filled: Vault) -> None:
    before = content(filled)
    keys = {row["key"].tobytes() for row in filled._state.rows}
    bytes_before = {filled._reader.read(*place(row)) for row in filled._state.rows}
    root = filled.manifest_root
    filled.rotate(**SIGNED, reencrypt=True)
    assert not keys & {row["key"].tobytes() for row in filled._state.rows}
    assert not bytes_before & {filled._reader.read(*place(row)) for row in filled._state.rows}
    assert filled.manifest_root != root
    assert content(reopen(filled.path)) == before
    assert filled.verify().dead_bytes == 0


def place(row: Any) -> tuple[int, int, int]:
    return int(row["segment"]), int(row["offset"]), int(row["length"])


def test_recipients_come_and_go(filled: Vault) -> None:
    night = passphrase_recipient("night", b"moon", cost=CHEAP_FOR_TESTS)
    filled.add_recipient(night, **SIGNED)
    for words in (PASSPHRASE, b"moon"):
        Vault.open(filled.path, passphrase_opener(words), signer_keys=TRUSTED).close()
    filled.remove_recipient("ward", **SIGNED)
    with pytest.raises(NotForThisKey):
        Vault.open(filled.path, passphrase_opener(PASSPHRASE), signer_keys=TRUSTED)
    assert [recipient.label for recipient in filled.recipients] == ["night"]
    with pytest.raises(UsageError, match="no recipient"):
        filled.remove_recipient("ward", **SIGNED)
    with pytest.raises(UsageError, match="0 recipients"):
        filled.remove_recipient("night", **SIGNED)
    with pytest.raises(UsageError, match="same label"):
        filled.add_recipient(night, **SIGNED)
    filled.verify()


def test_an_erased_unit_is_gone_and_the_others_stay(filled: Vault) -> None:
    before = content(filled)
    filled.erase("p1", who="ada", **SIGNED)
    after = content(reopen(filled.path))
    assert "p1" not in after
    assert after == {unit: texts for unit, texts in before.items() if unit != "p1"}
    check = filled.verify()
    assert check.units == 7
    assert filled.inspect()["private"]["erased"] == 1


def test_neither_key_nor_cell_of_an_erased_unit_remains(filled: Vault) -> None:
    number = filled.number_of("p1")
    assert number is not None
    row = filled._state.rows[number]
    key, cell = row["key"].tobytes(), filled._reader.read(*place(row))
    wraps = filled.manifest.recipients
    assert cell in everything(filled.path)
    filled.erase("p1", who="ada", **SIGNED)
    data = everything(filled.path)
    assert cell not in data
    assert cell[:74] not in data
    assert key not in data
    assert not any(wrapped.epoch_key.encode() in data for wrapped in wraps)
    assert key not in {row["key"].tobytes() for row in filled._state.rows}


def test_no_earlier_cell_of_an_erased_unit_remains(tmp_path: Path) -> None:
    """A unit that grew left dead cells in older files; an erasure takes those away too."""
    vault, cells_of_p1 = new_vault(tmp_path / "v"), []
    for serial in range(3):
        add_rows(vault, tmp_path / f"{serial}.jsonl", rows(8, patients=8, start=8 * serial))
        number = vault.number_of("p1")
        assert number is not None
        cells_of_p1.append(vault._reader.read(*place(vault._state.rows[number])))
    assert all(cell in everything(vault.path) for cell in cells_of_p1)
    dry = preview.erasure(vault.state, "p1")
    assert dry.rewritten_bytes == sum(file.size_bytes for file in vault.manifest.segments)
    vault.erase("p1", who="ada", **SIGNED)
    assert not any(cell[74:] in everything(vault.path) for cell in cells_of_p1)
    assert vault.verify().dead_bytes == 0
    assert len(content(reopen(vault.path))) == 7


def test_without_compaction_the_sealed_cell_stays_and_its_key_does_not(filled: Vault) -> None:
    number = filled.number_of("p1")
    assert number is not None
    cell = filled._reader.read(*place(filled._state.rows[number]))
    filled.erase("p1", who="ada", compacting=False, **SIGNED)
    assert cell in everything(filled.path)
    check = filled.verify()
    assert check.dead_bytes is not None
    assert check.dead_bytes >= len(cell)
    for row in filled._state.rows:
        with pytest.raises(IntegrityError):
            cells.open_body(
                row["key"].tobytes(),
                bytes.fromhex(filled.lineage),
                cells.unit_tag(filled._state.tag_key, "p1"),
                cell,
            )


def test_the_certificate(filled: Vault) -> None:
    root, epoch = filled.manifest_root, filled.manifest.epoch
    erased = filled.erase("p1", who="ada", runs=["r-0001-ab", "r-0002-cd"], **SIGNED)
    body = open_certificate(erased.envelope, TRUSTED)
    assert body["commitment"] == erased.commitment == filled.commitment("p1")
    assert body["commitment"] != filled.commitment("p2")
    assert body["ledger_entry"] == {"kind": "vault-erased", "commitment": erased.commitment}
    assert (body["root_before"], body["root_after"]) == (root, filled.manifest_root)
    assert (body["epoch_before"], body["epoch_after"]) == (epoch, epoch + 1)
    assert body["manifest_after"] == filled.manifest_digest
    assert body["runs"] == ["r-0001-ab", "r-0002-cd"]
    promises = " ".join(body["cannot_promise"])
    for word in ("models", "backups", "recipient", "storage", "source files"):
        assert word in promises
    assert "p1" not in str({**body, "cannot_promise": [], "runs": []})
    stranger = SigningKey.generate("eve").public
    with pytest.raises(SignatureError):
        open_certificate(erased.envelope, {stranger.keyid: stranger})
    assert body["cannot_promise"] == CANNOT_PROMISE


def test_the_worked_example_of_a_commitment() -> None:
    assert commitment(bytes(range(16)), bytes(range(16, 32))) in str(erasure.__doc__)


def test_erasing_what_is_not_there_changes_nothing(filled: Vault) -> None:
    digest = filled.manifest_digest
    with pytest.raises(InputError, match="no such unit") as caught:
        filled.erase("Nobody-17", who="ada", **SIGNED)
    assert "Nobody-17" not in str(caught.value)
    assert reopen(filled.path).manifest_digest == digest


def test_an_erased_unit_may_come_again_as_a_new_one(tmp_path: Path, filled: Vault) -> None:
    filled.erase("p1", who="ada", **SIGNED)
    summary = add_rows(filled, tmp_path / "c.jsonl", rows(1, patients=8, start=1))
    assert summary.units_new == 1
    filled.verify()


def test_a_backup_defeats_erasure_as_the_certificate_says(tmp_path: Path, filled: Vault) -> None:
    shutil.copytree(filled.path, tmp_path / "backup")
    filled.erase("p1", who="ada", **SIGNED)
    assert "p1" in content(reopen(tmp_path / "backup"))
    with pytest.raises(IntegrityError, match="ledger says"):
        Vault.open(
            tmp_path / "backup", opener(), signer_keys=TRUSTED, expected_root=filled.manifest_root
        )


def test_wraps_are_bound_to_vault_and_epoch(filled: Vault) -> None:
    wraps = filled.manifest.recipients
    lineage = bytes.fromhex(filled.lineage)
    assert unwrap(wraps, opener(), wrap_context(lineage, 1)) == filled._state.epoch_key
    for context in (wrap_context(lineage, 2), wrap_context(bytes(16), 1)):
        with pytest.raises(IntegrityError):
            unwrap(wraps, opener(), context)


def test_verification_without_the_key(filled: Vault) -> None:
    check = verify_files(filled.path, TRUSTED)
    assert (check.units, check.records, check.dead_bytes) == (None, None, None)
    assert check.manifest_digest == filled.manifest_digest
    assert check.files == 4
