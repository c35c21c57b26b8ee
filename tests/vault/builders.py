"""What the vault's tests share: small vaults, made without the cost of real passphrases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from privft.signing import SigningKey, VerifyKey
from privft.vault.fields import FieldMap
from privft.vault.keys import (
    CHEAP_FOR_TESTS,
    KeyOpener,
    Recipient,
    passphrase_opener,
    passphrase_recipient,
)
from privft.vault.manifest import Caps
from privft.vault.store import Vault, create

SIGNER = SigningKey.from_bytes("ada", bytes(range(32)))
TRUSTED: Mapping[str, VerifyKey] = {SIGNER.public.keyid: SIGNER.public}
PASSPHRASE = b"ward seven"
FIELDS = FieldMap(text="note", subject="patient", id="id")
VECTORS = Path(__file__).resolve().parents[1] / "vectors"
SIGNED: dict[str, Any] = {"signer": SIGNER, "checkpoint": "checkpoint"}
"""Arguments of every call that changes a vault."""


def ward() -> Recipient:
    return passphrase_recipient("ward", PASSPHRASE, cost=CHEAP_FOR_TESTS)


def opener() -> KeyOpener:
    return passphrase_opener(PASSPHRASE)


def new_vault(path: Path, **changes: Any) -> Vault:
    settings: dict[str, Any] = {
        "dataset": "notes",
        "unit": "subject",
        "fields": FIELDS,
        "recipients": [ward()],
        "caps": Caps(),
        **SIGNED,
        **changes,
    }
    return create(path, **settings)


def reopen(path: Path) -> Vault:
    return Vault.open(path, opener(), signer_keys=TRUSTED)


def rows(count: int, *, patients: int, start: int = 0) -> list[dict[str, Any]]:
    """Notes that no two patients share."""
    return [
        {
            "id": f"n{number}",
            "patient": f"p{number % patients}",
            "note": f"note {'abcdefghij'[number % 10] * (3 + number)} of {'xy' * number}.",
        }
        for number in range(start, start + count)
    ]


def write_jsonl(path: Path, items: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def add_rows(vault: Vault, path: Path, items: Sequence[Mapping[str, Any]], **options: Any) -> Any:
    return vault.add([write_jsonl(path, items)], who="ada", **SIGNED, **options)


def content(vault: Vault) -> dict[str, list[str]]:
    """All that is in a vault: unit -> texts."""
    return {unit.unit: [record["text"] for record in unit.records] for unit in vault}
