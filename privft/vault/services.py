"""Recipients whose private key a key service keeps: any service, through a program of the operator.

A recipient is an X25519 key (`privft.vault.keys`).  Here its private half is wrapped once, by the
service, when the recipient is made; to open the vault the service unwraps it.  Disabling the key in
the service therefore closes this way into the vault, and the service's own log says who opened it.
Later epochs are wrapped to the public half and need the service not at all.

The exec protocol: one program, one JSON object on stdin, one on stdout.

    -> {"context": hex, "data": hex, "operation": "wrap" | "unwrap" | "unwrap-parquet",
        "version": 1}
    <- {"data": hex}

    exit status 0   done
    exit status 3   this key does not unwrap this (another recipient's may be tried)
    anything else   failed

`data` is 32 bytes to wrap, or what `wrap` gave (at most 8,192 bytes) to unwrap. `context` is to be
bound to the wrapped data where the service can (associated data, encryption context): it is
"privft-vault-service-v1" || public key.  To `unwrap-parquet`, `data` is a wrapped key as an
encrypted Parquet file has it (text, often base64), and `context` the name of its master key, in
UTF-8 (`privft.vault.parquet`); a program that only serves vaults need not know it.  Secrets pass
through pipes only, never through arguments or the environment.  What the program writes to stderr
goes to the operator's terminal.

Worked example: tests/vault/example_service.py speaks the protocol to a stand-in whose key is a
file; a program for Vault, OpenBao or a cloud's key service is the same with one HTTP call in place
of two lines.

The *command* is the operator's, given when the vault is opened, never read from the vault: a
manifest must not be able to name a program to run.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from privft.errors import IntegrityError, NotForThisKey, PrivftError, UsageError
from privft.vault.keys import HeldByService, KeyOpener, Recipient

_NOT_THIS_KEY = 3
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MAX_WRAPPED_BYTES = 8192
_MAX_ANSWER_BYTES = 1 << 16
_TIMEOUT_S = 60


class KeyService(Protocol):
    """Two functions, and the name under which a manifest mentions the service."""

    @property
    def name(self) -> str:
        """The name in the manifest."""

    def wrap(self, data: bytes, context: bytes) -> bytes:
        """Seal 32 bytes under a key that does not leave the service."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The inverse; NotForThisKey when it was wrapped under another key."""


def exec_service(text: str) -> ExecService:
    """The service in NAME=COMMAND; the command is split as a shell splits words, and run by none.

    Raises UsageError for another form.
    """
    name, equals, command = text.partition("=")
    try:
        words = shlex.split(command)
    except ValueError:
        words = []
    if not equals or not _NAME.fullmatch(name) or not words:
        raise UsageError(
            "a key service that is not NAME=COMMAND",
            hint="for example kms=/opt/privft/kms-program, or 'kms=/opt/kms-program --key ward'",
        )
    return ExecService(name=name, command=words)


def service_recipient(label: str, service: KeyService) -> Recipient:
    """A new recipient whose private key only the service can give back."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    wrapped = service.wrap(private.private_bytes_raw(), _context(public))
    if not 1 <= len(wrapped) <= _MAX_WRAPPED_BYTES:
        raise UsageError(
            f"key service {service.name!r} wrapped 32 bytes into {len(wrapped)},"
            f" expected 1 to {_MAX_WRAPPED_BYTES}"
        )
    if service.unwrap(wrapped, _context(public)) != private.private_bytes_raw():
        raise UsageError(f"key service {service.name!r} does not give back what it wrapped")
    holding = HeldByService(service=service.name, wrapped=wrapped.hex())
    return Recipient(label=label, public=public.hex(), holding=holding)


def service_opener(service: KeyService) -> KeyOpener:
    """Opens for the recipients whose private key this service wrapped."""
    return _ServiceOpener(service)


@dataclass(frozen=True, kw_only=True)
class ExecService:
    """A key service behind a program that speaks the exec protocol."""

    name: str
    command: Sequence[str]

    def wrap(self, data: bytes, context: bytes) -> bytes:
        """See `KeyService`."""
        return self._ask("wrap", data, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `KeyService`."""
        return self._ask("unwrap", wrapped, context)

    def unwrap_parquet(self, wrapped: bytes, master_key: str) -> bytes:
        """See `privft.vault.parquet.ParquetService`."""
        return self._ask("unwrap-parquet", wrapped, master_key.encode())

    def _ask(self, operation: str, data: bytes, context: bytes) -> bytes:
        question = {
            "context": context.hex(),
            "data": data.hex(),
            "operation": operation,
            "version": 1,
        }
        try:
            done = subprocess.run(
                list(self.command),
                input=json.dumps(question).encode(),
                stdout=subprocess.PIPE,
                timeout=_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise self._failed(type(error).__name__) from None
        if done.returncode == _NOT_THIS_KEY:
            raise NotForThisKey(f"key service {self.name!r} does not know this key")
        if done.returncode != 0:
            raise self._failed(f"exit status {done.returncode}")
        if len(done.stdout) > _MAX_ANSWER_BYTES:
            raise self._failed(f"an answer of {len(done.stdout)} bytes")
        try:
            return parse_answer(done.stdout)
        except ValueError as error:
            raise self._failed(str(error)) from None

    def _failed(self, how: str) -> PrivftError:
        return PrivftError(
            f"key service {self.name!r} failed: {how}",
            hint="run its program by hand; privft/vault/services.py describes the protocol",
        )


def parse_answer(text: bytes) -> bytes:
    """The data in a program's answer; ValueError, quoting nothing, for anything else."""
    try:
        return bytes.fromhex(json.loads(text)["data"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("an answer that is not of the protocol") from None


class _ServiceOpener:
    def __init__(self, service: KeyService) -> None:
        self._service = service

    def private_key(self, recipient: Recipient) -> bytes:
        holding = recipient.holding
        if not isinstance(holding, HeldByService) or holding.service != self._service.name:
            raise NotForThisKey(f"recipient {recipient.label!r} is not of {self._service.name!r}")
        context = _context(bytes.fromhex(recipient.public))
        private = self._service.unwrap(bytes.fromhex(holding.wrapped), context)
        if len(private) != 32:
            raise IntegrityError(
                f"key service {self._service.name!r} unwrapped {len(private)} bytes, expected 32"
            )
        return private


def _context(public: bytes) -> bytes:
    return b"privft-vault-service-v1" + public
