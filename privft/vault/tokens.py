"""A PKCS#11 token as key service: a smart card, an HSM, or SoftHSM.

The token holds an AES-256 key that was made on it and cannot leave it (`CKA_EXTRACTABLE` false,
`CKA_SENSITIVE` true).  Wrapping is AES-GCM on the token, with a nonce made here and the context as
associated data:

    wrapped = nonce (12 bytes) || ciphertext (32 bytes) || tag (16 bytes)

AES-GCM does not commit to its key, so a token cannot tell another key from altered data: both are
"not for this key" here.  Altered data is noticed before, by the signature over the manifest.

The place of a key is named by a PKCS#11 URI (RFC 7512) with exactly these three attributes, each
percent-encoded where need be:

    pkcs11:token=ward;object=vault?module-path=/usr/lib/softhsm/libsofthsm2.so

The PIN is asked for by the caller and passed as bytes; it is in no argument list, environment or
file, and a URI with a `pin-value` or `pin-source` is refused.  `python-pkcs11` is an optional
dependency, imported only here and only when a token is used.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from privft.errors import NotForThisKey, PrivftError, UsageError

_NONCE_BYTES = 12
_TAG_BITS = 128
_ATTRIBUTES = {
    "token": re.compile(r"[^\x00-\x1f\x7f]{1,32}"),
    "object": re.compile(r"[^\x00-\x1f\x7f]{1,60}"),
    "module-path": re.compile(r"[^\x00-\x1f\x7f]{1,1000}"),
}


@dataclass(frozen=True, kw_only=True)
class TokenPlace:
    """Where a key is: the vendor's library, and the labels of token and key."""

    module: Path
    token: str
    key: str


def parse_uri(uri: str) -> TokenPlace:
    """The place in a PKCS#11 URI; UsageError, quoting nothing, for any other than the module's."""
    scheme, _, rest = uri.partition(":")
    path, _, query = rest.partition("?")
    found: dict[str, str] = {}
    parts = [*path.split(";"), *query.split("&")]
    for part in parts:
        name, equals, value = part.partition("=")
        if equals and name not in found:
            found[name] = unquote(value)
    if (
        scheme != "pkcs11"
        or len(parts) != 3
        or set(found) != set(_ATTRIBUTES)
        or not all(_ATTRIBUTES[name].fullmatch(value) for name, value in found.items())
    ):
        raise UsageError(
            "a token that is not named by a PKCS#11 URI of token, object and module-path",
            hint="pkcs11:token=T;object=KEY?module-path=LIBRARY; the PIN is asked for,"
            " or comes by --pin-fd",
        )
    return TokenPlace(module=Path(found["module-path"]), token=found["token"], key=found["object"])


@dataclass(frozen=True, kw_only=True)
class TokenService:
    """One AES key on one token, as a `privft.vault.services.KeyService`.

    `module` is the vendor's PKCS#11 library; `token` and `key` are labels on the token.
    """

    module: Path
    token: str
    key: str
    pin: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The name in the manifest: says where to look, and nothing secret."""
        return f"pkcs11:{self.token}/{self.key}"

    def make_key(self) -> None:
        """Make the AES-256 key on the token; UsageError when one of this label is there."""
        pkcs11 = _library()
        with self._session(writing=True) as session:
            if self._find(session) is not None:
                raise UsageError(f"token {self.token!r} already has a key {self.key!r}")
            session.generate_key(
                pkcs11.KeyType.AES,
                256,
                label=self.key,
                store=True,
                capabilities=pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT,
                template={pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False},
            )

    def wrap(self, data: bytes, context: bytes) -> bytes:
        """See `KeyService`."""
        pkcs11 = _library()
        nonce = os.urandom(_NONCE_BYTES)
        with self._session() as session:
            sealed: bytes = self._key(session).encrypt(
                data,
                mechanism=pkcs11.Mechanism.AES_GCM,
                mechanism_param=pkcs11.GCMParams(nonce, context, _TAG_BITS),
            )
        return nonce + sealed

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `KeyService`."""
        pkcs11 = _library()
        nonce, sealed = wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:]
        with self._session() as session:
            key = self._key(session)
            try:
                data: bytes = key.decrypt(
                    sealed,
                    mechanism=pkcs11.Mechanism.AES_GCM,
                    mechanism_param=pkcs11.GCMParams(nonce, context, _TAG_BITS),
                )
            except pkcs11.PKCS11Error:
                raise NotForThisKey(f"key {self.key!r} of the token does not unwrap this") from None
        return data

    def _key(self, session: Any) -> Any:
        key = self._find(session)
        if key is None:
            raise NotForThisKey(f"token {self.token!r} has no key {self.key!r}")
        return key

    def _find(self, session: Any) -> Any:
        pkcs11 = _library()
        try:
            return session.get_key(
                object_class=pkcs11.ObjectClass.SECRET_KEY,
                key_type=pkcs11.KeyType.AES,
                label=self.key,
            )
        except pkcs11.NoSuchKey:
            return None

    @contextmanager
    def _session(self, *, writing: bool = False) -> Iterator[Any]:
        pkcs11 = _library()
        try:
            token = pkcs11.lib(str(self.module)).get_token(token_label=self.token)
            session = token.open(rw=writing, user_pin=self.pin.decode())
        except (pkcs11.NoSuchToken, pkcs11.TokenNotPresent):
            raise NotForThisKey(f"no token {self.token!r} is present") from None
        except pkcs11.PinIncorrect:
            raise NotForThisKey(
                f"not the PIN of token {self.token!r}", hint="a token locks after a few wrong PINs"
            ) from None
        except (pkcs11.PKCS11Error, RuntimeError) as error:
            raise PrivftError(f"token {self.token!r} failed: {type(error).__name__}") from None
        try:
            yield session
        finally:
            session.close()


def _library() -> Any:
    try:
        return importlib.import_module("pkcs11")
    except ImportError:
        raise UsageError(
            "tokens need the package python-pkcs11", hint="pip install python-pkcs11"
        ) from None
