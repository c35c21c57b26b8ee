"""Keyed hashes by which a workspace notices that two vaults hold the same people or the same text.

A budget belongs to one lineage.  Whoever adds the same records to a second vault would have a
second budget for them, so an intake compares 16-byte hashes of unit ids and of contents with those
of the other vaults, and joins the old budget or stops.  The key is the workspace's own
(`overlap_key`): outside of it the hashes say nothing, and cannot be looked up by guessing names.

    unit     HMAC-SHA-256(overlap_key, "privft-overlap-v1:unit:" || unit id)[0:16]
    content  HMAC-SHA-256(overlap_key, "privft-overlap-v1:content:" || text)[0:16], with the text in
             lower case and every run of spaces as one
"""

from __future__ import annotations

import hmac
from typing import Literal

HASH_BYTES = 16


def overlap_hash(overlap_key: bytes, kind: Literal["unit", "content"], text: str) -> bytes:
    """16 bytes, equal in two vaults of a workspace when the text is; the module says how."""
    if kind == "content":
        text = " ".join(text.lower().split())
    message = b"privft-overlap-v1:" + kind.encode() + b":" + text.encode()
    return hmac.digest(overlap_key, message, "sha256")[:HASH_BYTES]
