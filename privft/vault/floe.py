"""FLOE: sealed bytes that can be written as a stream and read at random (c2sp.org/FLOE).

Fast Lightweight Online Encryption, the parameters AES-256-GCM, HKDF-Expand-SHA-384 and a 32-byte
IV, after the specification of Snowflake and C2SP (eprint 2025/2275).  It is key-committing: the
32-byte header tag is a function of key, IV and associated data, so that one sealed text opens
under one key only, and a wrong key is told from altered data.

Layout (all numbers big-endian)
    header, 74 bytes
        0    1   AEAD, 0 = AES-256-GCM
        1    1   KDF, 0 = HKDF-Expand-SHA-384
        2    4   S, length of a sealed segment
        6    4   length of the IV, 32
        10   32  IV, random
        42   32  header tag  = KDF(key, "HEADER_TAG:", 32)
    body: any number of inner segments and one final segment
        0    4   0xFFFFFFFF in an inner segment, the length of the whole segment in the final one
        4    12  nonce, random
        16   n   ciphertext: n = S - 32 in an inner segment, 0 <= n <= S - 32 in the final one
        16+n 16  tag

    KDF(k, purpose, length) = HKDF-Expand(k, header[0:42] || purpose || aad, length)
    message key  = KDF(key, "MESSAGE_KEY:", 48)
    segment key  = KDF(message key, "DEK:" || I2BE(position with its low 20 bits cleared, 8), 32)
    the AEAD's associated data = I2BE(position, 8) || (0x01 if final else 0x00)

All outputs are at most 48 bytes, so HKDF-Expand (RFC 5869, 2.3) is the single block
HMAC-SHA-384(k, info || 0x01).

Worked example: key = 32 bytes 00, aad = "", IV = 32 bytes 00, S = 64, nonce = 12 bytes 00, text =
"vault".  The sealed text has 74 + 4 + 12 + 5 + 16 = 111 bytes:
    00 00 00000040 00000020 | 00 x 32
    69eedd651b6a6838d44fcfc433cf4c102ceba8c198e3c8a2f9346340a934f25b   (header tag)
    00000025 | 00 x 12 | 5 bytes | 16 bytes
Whole examples are in tests/vectors/vault_floe.json.

The position and the final mark inside each segment's associated data are why segments cannot be
reordered, dropped, repeated or cut off; the IV inside every key is why they cannot be moved to
another text.
"""

from __future__ import annotations

import hmac
import io
import os
import struct
from collections.abc import Iterator
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privft.errors import IntegrityError

KEY_BYTES = 32
HEADER_BYTES = 74
OVERHEAD_BYTES = 32
MAX_SEGMENT_BYTES = 1 << 24
"""The largest segment that this module reads: a header cannot make it allocate more than this."""

ROTATION_BITS = 20
_MAX_SEGMENTS = 1 << 40
_IV_BYTES = 32
_TAG_BYTES = 16
_PREFIX_BYTES = 16
_PARAMS = struct.Struct(">BBII")
_MARK = struct.Struct(">I")
_PLACE = struct.Struct(">QB")
_INNER = b"\xff\xff\xff\xff"


class HeaderMismatch(IntegrityError):
    """The header tag does not match: another key, other associated data, or an altered header.

    Since FLOE commits to its key, whoever tries several keys reads this as "not this key"; whoever
    has the one right key reads it as "altered".  It is an IntegrityError so that a caller who does
    not ask gets the strict reading.
    """


def sealed_bytes(plaintext_bytes: int, segment_bytes: int) -> int:
    """Length of the sealed form of a text of this length."""
    inner = segment_bytes - OVERHEAD_BYTES
    segments = max(1, -(-plaintext_bytes // inner))
    return HEADER_BYTES + plaintext_bytes + OVERHEAD_BYTES * segments


def seal(key: bytes, plaintext: bytes, aad: bytes, *, segment_bytes: int) -> bytes:
    """Seal a whole text under a 32-byte key, in segments of `segment_bytes` (overhead included).

    Guarantees: whoever lacks the key learns the length and nothing else; any change to the sealed
    text, or to `aad`, makes `unseal` raise.
    """
    stream = _Stream.fresh(key, aad, segment_bytes)
    inner = segment_bytes - OVERHEAD_BYTES
    out = bytearray(sealed_bytes(len(plaintext), segment_bytes))
    out[:HEADER_BYTES] = stream.header
    source, target = memoryview(plaintext), memoryview(out)
    offset, position, start = HEADER_BYTES, 0, 0
    while len(source) - start > inner:
        stream.seal_into(target[offset:], source[start : start + inner], position, final=False)
        offset, position, start = offset + segment_bytes, position + 1, start + inner
    stream.seal_into(target[offset:], source[start:], position, final=True)
    return bytes(out)


def unseal(key: bytes, sealed: bytes, aad: bytes, *, rotation_bits: int = ROTATION_BITS) -> bytes:
    """Open what `seal` sealed.

    `rotation_bits` is 20 in the specification and in every file of privft; the specification's
    own rotation examples were made with 2.

    Guarantees: returns the whole text or raises IntegrityError (HeaderMismatch for a key or `aad`
    that does not fit); nothing is released before the last segment was verified.
    """
    if len(sealed) < HEADER_BYTES + OVERHEAD_BYTES:
        raise IntegrityError(f"sealed text of {len(sealed)} bytes is shorter than its overhead")
    stream = _Stream.parse(key, aad, bytes(sealed[:HEADER_BYTES]), rotation_bits)
    if len(sealed) - HEADER_BYTES <= stream.segment_bytes:  # as all cells are: no need of a stream
        return stream.unseal(memoryview(sealed)[HEADER_BYTES:], 0, True)
    return Opener(key, aad, sealed, rotation_bits=rotation_bits).read_all()


def segment_layout(sealed_length: int, segment_bytes: int) -> tuple[int, int]:
    """How many segments a sealed text of this length has, and how long its final one is."""
    body = sealed_length - HEADER_BYTES
    count = max(1, -(-body // segment_bytes))
    last = body - (count - 1) * segment_bytes
    if last < OVERHEAD_BYTES:
        raise IntegrityError(
            f"final segment of {last} bytes is shorter than its overhead of {OVERHEAD_BYTES}"
        )
    if count > _MAX_SEGMENTS:
        raise IntegrityError(f"{count} segments, the format allows {_MAX_SEGMENTS}")
    return count, last


class Sink(Protocol):
    """Where sealed bytes go: a binary file will do."""

    def write(self, data: bytes | bytearray | memoryview, /) -> object:
        """Take all of the bytes."""


Source = io.RawIOBase | io.BufferedIOBase
"""Where sealed bytes of known length come from: a file, opened for reading bytes."""


class Sealer:
    """Seal a stream: `write` as often as needed, then `close`, which writes the final segment.

    What the sink's `write` is given is only valid during the call: the buffer is used again.
    A Sealer that is left without `close` has written a text that cannot be opened as complete.
    """

    def __init__(self, key: bytes, aad: bytes, sink: Sink, *, segment_bytes: int) -> None:
        self._stream = _Stream.fresh(key, aad, segment_bytes)
        self._inner = segment_bytes - OVERHEAD_BYTES
        self._sink = sink
        self._pending: bytes | bytearray | memoryview = b""
        self._sealed = bytearray(segment_bytes)
        self._position = 0
        self._closed = False
        sink.write(self._stream.header)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes; full segments are sealed and written at once."""
        if self._closed:
            raise ValueError("expected an open sealer, got a closed one")
        view = memoryview(data)
        if len(self._pending):
            room = self._inner - len(self._pending)
            if room:
                self._pending = bytearray(self._pending)
                self._pending += view[:room]
                view = view[room:]
            if not view:
                return
            self._emit(self._pending)
        # the last segment must stay behind: only `close` knows that it is the last
        while len(view) > self._inner:
            self._emit(view[: self._inner])
            view = view[self._inner :]
        # what cannot change need not be copied
        self._pending = view if type(view.obj) is bytes else bytearray(view)

    def close(self) -> None:
        """Write the final segment.  The sink stays open."""
        if self._closed:
            return
        self._closed = True
        length = self._stream.seal_into(
            memoryview(self._sealed), self._pending, self._position, final=True
        )
        self._sink.write(memoryview(self._sealed)[:length])
        self._pending = b""

    def _emit(self, plaintext: bytes | bytearray | memoryview) -> None:
        if self._position >= _MAX_SEGMENTS - 1:
            raise ValueError(f"expected at most {_MAX_SEGMENTS} segments")
        self._stream.seal_into(memoryview(self._sealed), plaintext, self._position, final=False)
        self._sink.write(self._sealed)
        self._position += 1


class Opener:
    """Read a sealed stream of known length: front to back, or any segment.

    The source is a file, or bytes in memory, which are then not copied.

    Guarantees: only verified segments are released.  A front-to-back reading is provisional until
    it ends without an error, since only the final segment proves that nothing was cut off; a single
    segment proves its own content and place, and with it the whole length too, since which segment
    is final follows from the length.
    """

    def __init__(
        self,
        key: bytes,
        aad: bytes,
        source: Source | bytes | memoryview,
        *,
        rotation_bits: int = ROTATION_BITS,
    ) -> None:
        if isinstance(source, bytes | memoryview):
            self._view, self._file = memoryview(source), None
            self._start, total = 0, len(self._view)
        else:
            self._view, self._file = memoryview(bytearray(HEADER_BYTES)), source
            self._start = source.tell()
            total = source.seek(0, io.SEEK_END) - self._start
        if total < HEADER_BYTES:
            raise IntegrityError(f"sealed text of {total} bytes is shorter than its header")
        header = bytes(self._sealed(0, HEADER_BYTES))
        self._stream = _Stream.parse(key, aad, header, rotation_bits)
        self.segment_bytes = self._stream.segment_bytes
        self.inner_bytes = self.segment_bytes - OVERHEAD_BYTES
        self.segments, self._last = segment_layout(total, self.segment_bytes)
        self.plaintext_bytes = (self.segments - 1) * self.inner_bytes + self._last - OVERHEAD_BYTES
        if self._file is not None:
            largest = self.segment_bytes if self.segments > 1 else self._last
            self._view = memoryview(bytearray(largest))

    def segment(self, position: int) -> bytes:
        """The verified text of one segment, counted from 0."""
        return self._stream.unseal(*self._at(position))

    def segment_into(self, position: int, target: memoryview) -> int:
        """The same, written to the front of `target` (of `inner_bytes` or more); its length.

        What a segment that does not verify leaves in `target` is not to be looked at.
        """
        return self._stream.unseal_into(*self._at(position), target)

    def __iter__(self) -> Iterator[bytes]:
        for position in range(self.segments):
            yield self.segment(position)

    def copy_to(self, sink: Sink) -> None:
        """Write each segment to the sink once it is verified; provisional until this returns.

        What the sink is given is only valid during the call: the buffer is used again.
        """
        text = memoryview(bytearray(min(self.inner_bytes, self.plaintext_bytes)))
        for position in range(self.segments):
            sink.write(text[: self.segment_into(position, text)])

    def read_all(self) -> bytes:
        """The whole text, after all of it was verified."""
        return b"".join(self)

    def _at(self, position: int) -> tuple[memoryview, int, bool]:
        """A sealed segment, its position, and whether it is the final one."""
        if not 0 <= position < self.segments:
            raise ValueError(f"expected 0 <= position < {self.segments}, got {position}")
        final = position == self.segments - 1
        length = self._last if final else self.segment_bytes
        sealed = self._sealed(HEADER_BYTES + position * self.segment_bytes, length)
        return sealed, position, final

    def _sealed(self, offset: int, length: int) -> memoryview:
        if self._file is None:
            return self._view[offset : offset + length]
        sealed, filled = self._view[:length], 0
        self._file.seek(self._start + offset)
        while filled < length:
            count = self._file.readinto(sealed[filled:])
            if not count:
                raise IntegrityError(f"sealed text ends {length - filled} bytes early")
            filled += count
        return sealed


class _Stream:
    """The state that all segments of one sealed text share."""

    def __init__(
        self, key: bytes, aad: bytes, params_iv: bytes, segment_bytes: int, rotation_bits: int
    ) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"expected a key of {KEY_BYTES} bytes, got {len(key)}")
        self.segment_bytes = segment_bytes
        self._params_iv = params_iv
        self._aad = aad
        self._rotation_bits = rotation_bits
        tag = _expand(key, params_iv + b"HEADER_TAG:" + aad)[:32]
        self.header = params_iv + tag
        self._message_key = _expand(key, params_iv + b"MESSAGE_KEY:" + aad)
        self._epoch = -1
        self._cipher: AESGCM

    @classmethod
    def fresh(cls, key: bytes, aad: bytes, segment_bytes: int) -> _Stream:
        if not OVERHEAD_BYTES < segment_bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(
                f"expected {OVERHEAD_BYTES} < segment_bytes <= {MAX_SEGMENT_BYTES},"
                f" got {segment_bytes}"
            )
        params = _PARAMS.pack(0, 0, segment_bytes, _IV_BYTES)
        return cls(key, aad, params + os.urandom(_IV_BYTES), segment_bytes, ROTATION_BITS)

    @classmethod
    def parse(cls, key: bytes, aad: bytes, header: bytes, rotation_bits: int) -> _Stream:
        aead, kdf, segment_bytes, iv_bytes = _PARAMS.unpack_from(header)
        if (aead, kdf, iv_bytes) != (0, 0, _IV_BYTES):
            raise IntegrityError(
                f"sealed with AEAD {aead}, KDF {kdf}, IV of {iv_bytes} bytes; known are 0, 0, 32"
            )
        if not OVERHEAD_BYTES < segment_bytes <= MAX_SEGMENT_BYTES:
            raise IntegrityError(f"segments of {segment_bytes} bytes are outside what is allowed")
        stream = cls(key, aad, header[:42], segment_bytes, rotation_bits)
        if not hmac.compare_digest(stream.header, header):
            raise HeaderMismatch(
                "sealed data does not open: another key, another context, or an altered header"
            )
        return stream

    def _cipher_at(self, position: int) -> AESGCM:
        epoch = position >> self._rotation_bits
        if epoch != self._epoch:
            number = struct.pack(">Q", epoch << self._rotation_bits)
            info = self._params_iv + b"DEK:" + number + self._aad
            self._cipher = AESGCM(_expand(self._message_key, info)[:KEY_BYTES])
            self._epoch = epoch
        return self._cipher

    def seal_into(
        self,
        target: memoryview,
        plaintext: bytes | bytearray | memoryview,
        position: int,
        *,
        final: bool,
    ) -> int:
        """Write one sealed segment to the front of `target`; return its length."""
        length = len(plaintext) + OVERHEAD_BYTES
        nonce = os.urandom(12)
        target[:4] = _MARK.pack(length) if final else _INNER
        target[4:_PREFIX_BYTES] = nonce
        self._cipher_at(position).encrypt_into(
            nonce, plaintext, _segment_aad(position, final), target[_PREFIX_BYTES:length]
        )
        return length

    def unseal(self, sealed: memoryview, position: int, final: bool) -> bytes:
        """The text of one sealed segment, verified."""
        _check_mark(sealed, position, final)
        try:
            return self._cipher_at(position).decrypt(
                sealed[4:_PREFIX_BYTES], sealed[_PREFIX_BYTES:], _segment_aad(position, final)
            )
        except InvalidTag:
            raise IntegrityError(f"segment {position} was altered") from None

    def unseal_into(
        self, sealed: memoryview, position: int, final: bool, target: memoryview
    ) -> int:
        """The same, written to the front of `target`; its length."""
        _check_mark(sealed, position, final)
        length = len(sealed) - OVERHEAD_BYTES
        try:
            self._cipher_at(position).decrypt_into(
                sealed[4:_PREFIX_BYTES],
                sealed[_PREFIX_BYTES:],
                _segment_aad(position, final),
                target[:length],
            )
        except InvalidTag:
            raise IntegrityError(f"segment {position} was altered") from None
        return length


def _check_mark(sealed: memoryview, position: int, final: bool) -> None:
    mark = _MARK.pack(len(sealed)) if final else _INNER
    if sealed[:4] != mark:
        raise IntegrityError(f"segment {position} does not carry the mark that its place asks")


def _segment_aad(position: int, final: bool) -> bytes:
    return _PLACE.pack(position, final)


def _expand(key: bytes, info: bytes) -> bytes:
    """HKDF-Expand-SHA-384 for one block of 48 bytes (RFC 5869, 2.3)."""
    return hmac.digest(key, info + b"\x01", "sha384")
