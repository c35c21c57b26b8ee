"""Parquet files with a key for each column, as people with a key service write them."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pyarrow.parquet import encryption

from privft.vault.services import ExecService

PROGRAM = Path(__file__).with_name("example_service.py")


class Writer(encryption.KmsClient):  # type: ignore[misc]
    """Wraps keys as `example_service.py` unwraps them: one AES key, the master key's name bound."""

    def __init__(self, key: bytes) -> None:
        super().__init__()
        self._service = AESGCM(key)

    def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
        nonce = os.urandom(12)
        sealed = self._service.encrypt(nonce, key_bytes, master_key_identifier.encode())
        return base64.b64encode(nonce + sealed)

    def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
        raise NotImplementedError("it writes")


def write_columns(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    master_keys: Mapping[str, Sequence[str]],
    *,
    key: bytes = bytes(32),
    **settings: bool,
) -> Path:
    """A file whose columns are encrypted under these master keys, and its footer under "footer"."""
    configuration = encryption.EncryptionConfiguration(
        footer_key="footer",
        column_keys={name: list(chosen) for name, chosen in master_keys.items()},
        data_key_length_bits=256,
        **settings,
    )
    factory = encryption.CryptoFactory(lambda _: Writer(key))
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), configuration)
    pyarrow.parquet.write_table(
        pyarrow.table(dict(columns)), path, encryption_properties=properties, row_group_size=100
    )
    return path


def reader(folder: Path, *, key: bytes = bytes(32), name: str = "kms") -> ExecService:
    """The key service that unwraps what `write_columns` wrapped."""
    path = folder / f"{name}.key"
    path.write_bytes(key)
    return ExecService(name=name, command=[sys.executable, str(PROGRAM), str(path)])
