"""The folder of a run: what is sealed in it, and for how long.

    runs/RUN/
      plan.json               the plan, as approved (public)
      place.json              what paths in its config are relative to
      secret.sealed           the run secret; gone at settlement
      checkpoint.sealed       the newest training state (of a randomly stopped sweep also
                              the best so far); gone at settlement
      run-key.sealed          the Ed25519 seed that signs the statement
      canaries.sealed         the secret that the canaries' coins and texts are made from
      selfcheck.sealed        what the checks before the first step found (JSON)
      ranks.sealed            on how many processes and hosts it was trained (JSON); if on several
      adapter/NAME.sealed     what was trained
      chosen.sealed           of a randomly stopped sweep: which candidate was kept (JSON)
      score.sealed            the noised score on held-out units, if one was asked for (JSON)
      audit-private.sealed    findings on real units, for the enclave's eyes (JSON)
      statement.dsse.json, report.html, ...     after the audit (public)

Sealed means FLOE under a key of its own, the newest `Vault.subkeys` of the purpose
"run/<run>/<name>", AAD "privft-run-v1/<run>/<name>".  So only a recipient of the vault opens them,
rotation does not lose them, no file can stand in for another, and whoever was a recipient only
before a rotation opens nothing that was sealed after it.  (Such a one could still *write* a file
that opens, under an old key, if the disk is theirs to write.)  What rank 0 tells the other ranks of
a run travels in the same form (`stages.ranked`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from privft.errors import IntegrityError, OrderError
from privft.vault import floe
from privft.vault.store import Vault
from privft.workspace import sync_folder, write_private

SEGMENT_BYTES = 1 << 16


def forget_secrets(folder: Path) -> None:
    """Remove what settlement ends the use of: the run secret and the newest checkpoint.

    Their keys live on in the vault, so copies made elsewhere stay readable to its recipients.
    """
    for name in ("secret", "checkpoint"):
        (folder / f"{name}.sealed").unlink(missing_ok=True)
    if folder.is_dir():
        sync_folder(folder)


def config_folder_of(folder: Path) -> Path:
    """The folder that paths in the config of the run in `folder` are relative to."""
    return Path(json.loads((folder / "place.json").read_bytes())["config_folder"])


@dataclass(frozen=True, kw_only=True)
class SealedRun:
    """One run's folder, with the vault that holds its keys."""

    run: str
    folder: Path
    vault: Vault

    def _context(self, name: str) -> tuple[list[bytes], bytes]:
        return (
            self.vault.subkeys(f"run/{self.run}/{name}"),
            f"privft-run-v1/{self.run}/{name}".encode(),
        )

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.sealed"

    def seal(self, name: str, plaintext: bytes) -> None:
        """Write one sealed file, durably; replaces an older one whole."""
        write_private(self._path(name), self.sealed(name, plaintext))

    def sealed(self, name: str, plaintext: bytes) -> bytes:
        """What `seal` would write."""
        keys, aad = self._context(name)
        return floe.seal(keys[0], plaintext, aad, segment_bytes=SEGMENT_BYTES)

    def unseal(self, name: str) -> bytes:
        """The content of a sealed file; `OrderError` when there is none."""
        try:
            return self.opened(name, self._path(name).read_bytes())
        except FileNotFoundError as error:
            raise OrderError(f"run {self.run} has no {name}") from error

    def opened(self, name: str, sealed: bytes) -> bytes:
        """The inverse of `sealed`; `IntegrityError` for anything else."""
        keys, aad = self._context(name)
        for key in keys:
            try:
                return floe.unseal(key, sealed, aad)
            except floe.HeaderMismatch:
                continue  # FLOE commits to its key: sealed before the newest rotation, or altered
            except IntegrityError:
                break
        raise IntegrityError(f"{name} of run {self.run} was altered")

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._path(name).exists()

    def seal_adapter(self, files: Mapping[str, bytes]) -> None:
        """Seal every file of the adapter."""
        for name, data in files.items():
            self.seal(f"adapter/{name}", data)

    def unseal_adapter(self) -> dict[str, bytes]:
        """Every file of the adapter, by name."""
        folder = self.folder / "adapter"
        names = sorted(path.name.removesuffix(".sealed") for path in folder.glob("*.sealed"))
        return {name: self.unseal(f"adapter/{name}") for name in names}
