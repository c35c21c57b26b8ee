"""A workspace on disk: where ledger, keys, vaults and runs lie, and nothing about their order.

    DIR/                     mode 0700, made by `privft init DIR`
      workspace.json         {"format": "privft-workspace-v1", "name": ..., "log_key": hex}
      ledger.db              the ledger; everything that matters is an entry there
      ledger.json            instead of it: in which database the ledger is (`budget.postgres`)
      keys/log.key           Ed25519 seed that signs checkpoints, then 32 bytes that key the hashes
                             by which overlapping data sets are recognised (64 bytes, mode 0600)
      keys/NAME.key          private keys of a person who works on this machine (mode 0600);
                             the public half is an entry of the ledger
      vaults/DATASET/        one vault each (`privft.vault`)
      overlap/DATASET        keyed hashes of its units and texts (mode 0600)
      policies/SHA256.json   the policies that data sets were created under
      runs/RUN/              what a run leaves; all sealed but for what the report publishes,
                             and the newest ledger checkpoint that it has seen (`ledger.note`)
      backup.json            when the ledger was last copied, and how many entries it had
      cache/                 results that depend on nothing private (an audit's control)

The workspace is found upward from the working folder, or named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from privft.budget.entries import Role, format_time, parse_time
from privft.budget.ledger import Ledger
from privft.budget.postgres import Database
from privft.errors import ConfigError, IntegrityError, NotForThisKey, UsageError
from privft.keyring import Person
from privft.signing import Identity, SigningKey, VerifyKey, canonical_json, parse_canonical
from privft.vault.keys import KeyOpener, agreement_opener

if TYPE_CHECKING:  # 0.2 s of every start, and most commands read no policy and no overlap
    from privft.policy import Policy
    from privft.vault.overlap import HashSet, Known

FORMAT = "privft-workspace-v1"
MARKER = "workspace.json"
PLACE = "ledger.json"
BACKUP = "backup.json"


def write_private(path: Path, data: bytes) -> None:
    """A new file of mode 0600, durable on return; replaces what was there, whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """An open workspace; `log` signs checkpoints, `overlap_key` keys the overlap hashes."""

    folder: Path
    name: str
    log: SigningKey
    overlap_key: bytes
    database: Database | None = None

    @staticmethod
    def create(
        folder: Path, *, owner: Identity, roles: Sequence[Role], database: Database | None = None
    ) -> Workspace:
        """Make a workspace in a new or empty folder, with its first person on the ring.

        database: where the ledger is to be, if not in a file of the workspace.
        """
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty", hint="name a folder that does not exist yet")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        name = folder.resolve().name
        log = SigningKey.generate(f"privft.{name}")
        overlap_key = os.urandom(32)
        write_private(folder / "keys" / "log.key", log.private_bytes() + overlap_key)
        if database is not None:
            write_private(folder / PLACE, canonical_json(database.to_dict()) + b"\n")
        workspace = Workspace(
            folder=folder.resolve(),
            name=name,
            log=log,
            overlap_key=overlap_key,
            database=database,
        )
        with Ledger.create(
            workspace.ledger_place, log_key=log, origin=log.name, workspace_id=name
        ) as ledger:
            workspace.add_person(ledger, owner, roles=roles, actor=owner.name)
        marker = {"format": FORMAT, "name": name, "log_key": log.public.hex}
        write_private(folder / MARKER, canonical_json(marker) + b"\n")  # last: it makes it one
        return workspace

    @staticmethod
    def open(folder: Path, *, ledger_password: str | None = None) -> Workspace:
        """The workspace in this very folder; the password is for the ledger's database, if any."""
        try:
            marker = json.loads((folder / MARKER).read_bytes())
            keys = (folder / "keys" / "log.key").read_bytes()
        except FileNotFoundError as error:
            raise UsageError(
                f"{folder} is not a privft workspace",
                hint="privft init DIR makes one; --workspace DIR names one",
            ) from error
        except ValueError as error:
            raise IntegrityError(f"{folder / MARKER} is not readable") from error
        if not isinstance(marker, dict) or marker.get("format") != FORMAT or len(keys) != 64:
            raise IntegrityError(f"{folder / MARKER} is not of format {FORMAT}")
        log = SigningKey.from_bytes(f"privft.{marker['name']}", keys[:32])
        if log.public.hex != marker["log_key"]:
            raise IntegrityError(f"{folder / MARKER} and keys/log.key do not belong together")
        place = folder / PLACE
        return Workspace(
            folder=folder.resolve(),
            name=marker["name"],
            log=log,
            overlap_key=keys[32:],
            database=read_place(place, password=ledger_password) if place.exists() else None,
        )

    @staticmethod
    def find(start: Path, *, ledger_password: str | None = None) -> Workspace:
        """The workspace that `start` lies in, looking upward."""
        for folder in (start.resolve(), *start.resolve().parents):
            if (folder / MARKER).is_file():
                return Workspace.open(folder, ledger_password=ledger_password)
        raise UsageError(
            "there is no privft workspace here or above",
            hint="privft init DIR makes one; --workspace DIR names one",
        )

    def ledger(self, *, writable: bool = True) -> Ledger:
        """Open the ledger; a context manager."""
        log_key = self.log if writable else self.log.public
        return Ledger.open(self.ledger_place, log_key=log_key)

    @property
    def ledger_place(self) -> Path | Database:
        """The ledger's file, or the database that `ledger.json` names."""
        return self.database or self.folder / "ledger.db"

    def note_backup(self, *, entries: int) -> None:
        """Remember that the ledger was copied just now, when it had so many entries."""
        note = {"time": format_time(datetime.now(UTC)), "entries": entries}
        write_private(self.folder / BACKUP, canonical_json(note) + b"\n")

    def last_backup(self) -> tuple[datetime, int] | None:
        """When the ledger was last copied and how many entries it had; None for never."""
        path = self.folder / BACKUP
        if not path.exists():
            return None
        note = read_canonical(path, "the note of a backup")
        return parse_time(note.get("time"), str(path)), int(str(note.get("entries")))

    def vault_path(self, dataset: str) -> Path:
        """Where the vault of a data set lies."""
        return self.folder / "vaults" / dataset

    def run_path(self, run: str) -> Path:
        """Where a run's files lie."""
        return self.folder / "runs" / run

    @property
    def cache(self) -> Path:
        """Where results lie that depend on nothing private."""
        return self.folder / "cache"

    # -- people ---------------------------------------------------------------------------------

    def place_for_keys(self, ledger: Ledger, name: str, *, key_file: Path | None = None) -> Path:
        """Where a new person's private keys go: keys/NAME.key, unless another file is named.

        Raises `UsageError` when that file exists, or somebody of the name is on the ring.
        """
        path = key_file or self.folder / "keys" / f"{name}.key"
        if path.exists():
            raise UsageError(f"{path} exists", hint="keys are never overwritten; name another file")
        check_name_is_free(ledger, name)
        return path

    def add_person(
        self,
        ledger: Ledger,
        identity: Identity,
        *,
        roles: Sequence[Role],
        actor: str,
        key_file: Path | None = None,
        expires: str | None = None,
    ) -> Path:
        """Put a person on the ring and the private keys into a file; see `place_for_keys`."""
        path = self.place_for_keys(ledger, identity.name, key_file=key_file)
        public = identity.public
        write_private(path, identity.to_bytes() + b"\n")
        try:
            ledger.append(
                "key-added",
                {
                    "name": identity.name,
                    "roles": list(roles),
                    "ed25519": public.ed25519,
                    "x25519": public.x25519,
                    "expires": expires,
                },
                actor=actor,
            )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def check_revocable(self, ledger: Ledger, name: str) -> None:
        """Raise `UsageError` for a name that nobody on the ring has now, and for the last operator,
        without whom nobody could act here any more.
        """
        now = format_time(datetime.now(UTC))
        ring = _standing(ledger)
        if all(person.name != name for person in ring):
            raise UsageError(
                f"nobody named {name} is on the ring, or they are revoked already",
                hint="privft keys list shows who is",
            )
        others = [p for p in ring if p.name != name and "operator" in p.roles and p.good_at(now)]
        if not others:
            raise UsageError(
                f"{name} is the last operator, and nobody could act here without one",
                hint="privft keys create NAME --role operator comes first",
            )

    def identity(self, *, name: str | None = None, key_file: Path | None = None) -> Identity:
        """Who acts: from a key file, by name, or the only person with keys on this machine."""
        if key_file is None:
            found = {p.stem: p for p in sorted((self.folder / "keys").glob("*.key"))}
            found.pop("log", None)
            if name is None and len(found) != 1:
                raise UsageError(
                    f"{len(found)} people have keys on this machine: "
                    f"{', '.join(found) or 'nobody'}",
                    hint="say who acts with --as NAME or --key FILE",
                )
            name = name or next(iter(found))
            if name not in found:
                raise UsageError(
                    f"{name} has no keys on this machine", hint="--key FILE names a key file"
                )
            key_file = found[name]
        try:
            data = key_file.read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read the key file {key_file}: {error.strerror}") from error
        identity = Identity.from_bytes(data.removesuffix(b"\n"))
        if name is not None and identity.name != name:
            raise NotForThisKey(f"{key_file} holds the keys of {identity.name}, not of {name}")
        return identity

    def signer_keys(self, ledger: Ledger) -> dict[str, VerifyKey]:
        """Keys of everybody who ever was an operator: who may have signed a vault's manifest.

        That a signature is old is no fault; that a manifest is old shows against the ledger.
        """
        people = ledger.keyring().people
        keys = [person.verify_key for person in people if "operator" in person.roles]
        return {key.keyid: key for key in keys}

    # -- policies -------------------------------------------------------------------------------

    def keep_policy(self, policy: Policy) -> None:
        """Keep the whole text of a policy that a data set was created under."""
        write_private(
            self.folder / "policies" / f"{policy.digest}.json", canonical_json(policy.to_dict())
        )

    def policy(self, digest: str) -> Policy:
        """A kept policy; raises `IntegrityError` when it is gone or was edited."""
        from privft.policy import Policy

        path = self.folder / "policies" / f"{digest}.json"
        try:
            policy = Policy.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise IntegrityError(
                f"the policy {digest[:12]} that the ledger names is not in {path.parent}"
            ) from error
        if policy.digest != digest:
            raise IntegrityError(f"the policy in {path} was edited after it came into force")
        return policy

    # -- overlap --------------------------------------------------------------------------------

    def overlap_known(self, dataset: str) -> Known:
        """The keyed hashes of a data set's units and texts, as last recorded."""
        from privft.vault.overlap import read_groups

        path = self.folder / "overlap" / dataset
        data = path.read_bytes() if path.exists() else b""
        return read_groups(data, dataset=dataset, overlap_key=self.overlap_key)

    def overlap_datasets(self) -> list[str]:
        """The data sets of which anything was ever recorded."""
        folder = self.folder / "overlap"
        found = folder.iterdir() if folder.is_dir() else ()
        return sorted(path.name for path in found if not path.name.startswith("."))

    def record_overlap_hashes(self, dataset: str, hashes: HashSet) -> None:
        """Add a group to what is recorded for a data set, of those that are not there yet."""
        from privft.vault.overlap import group

        path = self.folder / "overlap" / dataset
        new = hashes - self.overlap_known(dataset).hashes
        write_private(path, (path.read_bytes() if path.exists() else b"") + group(new))

    def forget_overlap_hashes(self, dataset: str) -> None:
        """Remove what is recorded for a data set that did not come to be."""
        (self.folder / "overlap" / dataset).unlink(missing_ok=True)


def read_place(path: Path, *, password: str | None = None) -> Database:
    """The database that a file names; raises `ConfigError`."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as JSON") from error
    return Database.from_dict(value, password=password)


def check_name_is_free(ledger: Ledger, name: str) -> None:
    """Raise `UsageError` when somebody of this name is on the ring."""
    if any(person.name == name for person in _standing(ledger)):
        raise UsageError(
            f"{name} is on the ring already",
            hint=f"another name, or privft keys revoke {name} first",
        )


def _standing(ledger: Ledger) -> list[Person]:
    return [person for person in ledger.keyring().people if person.revoked is None]


def opener_of(identity: Identity) -> KeyOpener:
    """Opens vaults for the person whose keys these are."""
    return agreement_opener(identity.name, identity.agreement)


def read_canonical(path: Path, what: str) -> dict[str, object]:
    """A mapping in canonical JSON from a file, as written by `canonical_json`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}") from error
    value = parse_canonical(data.removesuffix(b"\n"))
    if not isinstance(value, dict):
        raise IntegrityError(f"{what} {path} is no JSON object")
    return value
