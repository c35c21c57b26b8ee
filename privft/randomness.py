"""Keyed cryptographic randomness: the only source of chance in a private run.

Every draw is named by (secret, stream, step, label) and by nothing else: never by rank, world
size, microbatch or the order of calls (DESIGN.md, invariant 3).  The same name gives the same
bytes on every machine, which is what makes a resumed step the *same* step; two names give
independent streams.

Construction
    key   = HMAC-SHA-256(secret, "privft-stream-v1" || len(stream) || stream || step || len(label)
            || label), lengths as 4-byte and the step as 8-byte big-endian numbers: the encoding
            is injective, so distinct names never share a key;
    bytes = AES-256-CTR keystream under that key, counter from zero.  Each key serves one stream
            and is never reused, so the fixed counter start is safe.
A `Stream` reads its keystream once, front to back.

**Repetitions.**  Where one run trains several times and keeps the best (`budget.selection`), each
repetition has a secret of its own,

    HMAC-SHA-256(secret, "privft-repetition-v1" || number), the number in 8 bytes, big-endian,

so no stream of one is ever a stream of another, and the same noise never meets two sums.

Normal deviates are Box-Muller on 53-bit uniforms in float64.  They are deviates in floating
point, hence open to the attack of Mironov 2012 ("On significance of the least significant bits
for differential privacy"); reports label them as what they are.

The secret is fresh operating-system randomness a run (`fresh_secret`), sealed while the run
lives and destroyed at its settlement.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

SECRET_BYTES = 32
_DOMAIN = b"privft-stream-v1"
_REPETITION = b"privft-repetition-v1"
_MASK = 1 << 64


def fresh_secret() -> bytes:
    """32 bytes of operating-system randomness."""
    return os.urandom(SECRET_BYTES)


class Stream:
    """One keystream, read front to back."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._encryptor.update(bytes(count))

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """The next `count` whole numbers, uniform on [0, 2^64)."""
        return np.frombuffer(self.bytes(8 * count), dtype="<u8")

    def uniform(self, count: int) -> NDArray[np.float64]:
        """`count` numbers on the open interval (0, 1), on a grid of 2^-53 shifted by half."""
        return ((self.uint64(count) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def gaussian(self, count: int) -> NDArray[np.float64]:
        """`count` standard normal deviates in float64 (Box and Muller 1958)."""
        pairs = (count + 1) // 2
        uniform = self.uniform(2 * pairs)
        radius = np.sqrt(-2.0 * np.log(uniform[:pairs]))
        angle = 2.0 * np.pi * uniform[pairs:]
        normal = np.empty(2 * pairs, dtype=np.float64)
        np.multiply(radius, np.cos(angle), out=normal[:pairs])
        np.multiply(radius, np.sin(angle), out=normal[pairs:])
        return normal[:count]

    def coins(self, count: int) -> NDArray[np.bool_]:
        """`count` fair coins."""
        bits = np.unpackbits(np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8))
        return bits[:count].astype(np.bool_)

    def bernoulli(self, probability: float, count: int) -> NDArray[np.bool_]:
        """`count` coins of exactly floor(probability * 2^64) / 2^64, thus never above it."""
        if not 0 <= probability <= 1:
            raise ValueError(f"expected 0 <= probability <= 1, got {probability}")
        numerator, denominator = probability.as_integer_ratio()
        threshold = numerator * _MASK // denominator
        draws = self.uint64(count)
        if threshold == _MASK:
            return np.ones(count, dtype=np.bool_)
        return draws < np.uint64(threshold)

    def integers(self, high: int, count: int) -> NDArray[np.int64]:
        """`count` whole numbers, uniform on [0, high), without modulo bias (rejection)."""
        if not 0 < high <= 1 << 62:
            raise ValueError(f"expected 0 < high <= 2^62, got {high}")
        limit = np.uint64(_MASK - _MASK % high - 1)
        kept = np.empty(0, dtype=np.uint64)
        while len(kept) < count:
            draws = self.uint64(count - len(kept))
            kept = np.concatenate([kept, draws[draws <= limit]])
        return (kept % np.uint64(high)).astype(np.int64)


class KeyedStreams:
    """All streams of one secret."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise ValueError(f"expected a secret of {SECRET_BYTES} bytes, got {len(secret)}")
        self._secret = secret

    def repetition(self, number: int) -> KeyedStreams:
        """The streams of one repetition of several, counted from 0, under a secret of its own."""
        if not 0 <= number < _MASK:
            raise ValueError(f"expected 0 <= number < 2^64, got {number}")
        message = _REPETITION + struct.pack(">Q", number)
        return KeyedStreams(hmac.new(self._secret, message, hashlib.sha256).digest())

    def stream(self, name: str, *, step: int = 0, label: str = "") -> Stream:
        """The stream of this name; calling twice gives two readers of the same bytes."""
        if not 0 <= step < _MASK:
            raise ValueError(f"expected 0 <= step < 2^64, got {step}")
        encoded_name, encoded_label = name.encode(), label.encode()
        message = b"".join(
            [
                _DOMAIN,
                struct.pack(">I", len(encoded_name)),
                encoded_name,
                struct.pack(">Q", step),
                struct.pack(">I", len(encoded_label)),
                encoded_label,
            ]
        )
        return Stream(hmac.new(self._secret, message, hashlib.sha256).digest())
