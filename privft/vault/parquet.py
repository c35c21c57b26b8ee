"""Encrypted Parquet -> rows (Parquet modular encryption), by pyarrow itself.

`datasets` has no way to pass keys on, so these files do not go through it.  There are two ways to
encrypt one, and an opener for each:

    one key for all of the file, which the operator has: 16, 24 or 32 bytes
    keys for each column and the footer, which the file holds itself, wrapped under *master keys*
    that a key service has: then the service unwraps them, by the exec protocol of
    `privft.vault.services`.  Files that pyarrow or Spark wrote with a KMS are of this kind, be it
    with one master key or with several, with double wrapping or without

Only the columns that the vault's field map names are read, so that the service need not give up
the master keys of any other column.  Key material in a file beside the Parquet file is not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from privft.errors import PrivftError

MAGIC = b"PARE"
"""How a file begins whose footer is encrypted."""

_ROWS_AT_ONCE = 256


class ParquetService(Protocol):
    """Who has the master keys."""

    def unwrap_parquet(self, wrapped: bytes, master_key: str) -> bytes:
        """A key of the file, from its wrapped form; PrivftError when there is none to be had."""


ParquetOpener = bytes | ParquetService
"""The key of the whole file, or who unwraps the keys in it."""


def encrypted_rows(
    source: Path, opener: ParquetOpener, columns: Sequence[str] | None
) -> Iterator[Mapping[str, Any]]:
    """The rows of a Parquet file, encrypted or not, in batches of boundedly many; of `columns`, or
    with None of all.

    Raises PrivftError as the service raised it, and whatever pyarrow raises.
    """
    import pyarrow.parquet

    refused: list[PrivftError] = []
    try:
        properties = _one_key(opener) if isinstance(opener, bytes) else _by(opener, refused)
        with pyarrow.parquet.ParquetFile(source, decryption_properties=properties) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                yield from batch.to_pylist()
    except Exception:
        if not refused:
            raise
    if refused:
        # raised out here, so that pyarrow's error is not its context
        raise refused[0]


def _one_key(key: bytes) -> Any:
    from pyarrow.parquet import encryption

    return encryption.create_decryption_properties(key, allow_plaintext_files=True)


def _by(service: ParquetService, refused: list[PrivftError]) -> Any:
    """What pyarrow needs to ask the service; its refusals go to `refused`."""
    from pyarrow.parquet import encryption

    class Client(encryption.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> str:
            raise NotImplementedError("nothing is encrypted here")

        def unwrap_key(self, wrapped_key: str, master_key_identifier: str) -> bytes:
            try:
                return service.unwrap_parquet(wrapped_key.encode(), master_key_identifier)
            except PrivftError as error:
                refused.append(error)
                raise

    factory = encryption.CryptoFactory(lambda _: Client())
    return factory.file_decryption_properties(encryption.KmsConnectionConfig())
