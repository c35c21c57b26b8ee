"""What a run seals: opened by recipients, before and after rotations, and by nobody who left."""

from __future__ import annotations

from pathlib import Path

import pytest

from privft.errors import IntegrityError
from privft.stages.sealedrun import SealedRun
from tests.vault.builders import SIGNED, new_vault, reopen, ward


def test_a_rotation_loses_no_run_and_shuts_out_who_left(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    run = SealedRun(run="r-0001-ab", folder=tmp_path / "run", vault=vault)
    early = run.sealed("secret", b"early")
    with reopen(vault.path) as copied:
        vault.rotate(**SIGNED, recipients=[ward()], reencrypt=True)
        late = run.sealed("secret", b"late")
        assert [run.opened("secret", sealed) for sealed in (early, late)] == [b"early", b"late"]
        theirs = SealedRun(run=run.run, folder=run.folder, vault=copied)
        assert theirs.opened("secret", early) == b"early"
        with pytest.raises(IntegrityError, match="altered"):
            theirs.opened("secret", late)


def test_no_file_stands_in_for_another_and_every_byte_counts(tmp_path: Path) -> None:
    vault = new_vault(tmp_path / "v")
    vault.rotate(**SIGNED)
    run = SealedRun(run="r-0001-ab", folder=tmp_path / "run", vault=vault)
    other = SealedRun(run="r-0002-cd", folder=tmp_path / "run", vault=vault)
    sealed = run.sealed("secret", b"text")
    for who, name in ((run, "canaries"), (other, "secret")):
        with pytest.raises(IntegrityError):
            who.opened(name, sealed)
    for place in range(len(sealed)):
        damaged = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(IntegrityError):
            run.opened("secret", damaged)
