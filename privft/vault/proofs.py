"""That a unit is in a version of a vault, or is not: a document that others can check.

`prove` makes it from an open vault; `check` needs neither vault nor key, but knows whose signatures
count.  The document is the canonical JSON of

    {"format": "privft-unit-proof-v1", "leaves": [96 hex digits, ...], "manifest": DSSE envelope,
     "paths": [[64 hex digits, ...], ...], "position": 3, "size": 9, "tag": 32 hex digits}

One leaf with its path shows that a cell of this tag is under the root that the manifest signs; two
neighbouring leaves show that none is (`privft.vault.index`).  Whose tag it is only the vault's key
can tell.  But the certificate of an erasure holds a commitment to the tag (`privft.vault.erasure`),
so that whoever has both sees that they are about the same unit of the same vault, and that the
proof is about a version from then on: erased, and still not there.

Examples, sound and with one fault each, are in tests/vectors/vault_proofs.json.

To whom a proof may be given: `position` and the lengths of `paths` betray about how many units
there are, and the manifest holds the wraps of its epoch key, at which whoever has them can try
passphrases (and has no cell to open with what they find).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from privft.errors import IntegrityError
from privft.signing import VerifyKey, canonical_json
from privft.vault.cells import unit_tag
from privft.vault.erasure import commitment, open_certificate
from privft.vault.index import Proof, prove, verify_proof
from privft.vault.keys import Hex16, Hex32, Value
from privft.vault.manifest import Count, Manifest, open_manifest, read_manifest_text
from privft.vault.state import State, read_version

Leaf = Annotated[str, Field(pattern="^[0-9a-f]{96}$")]
Path = Annotated[list[Hex32], Field(max_length=64)]


class UnitProof(Value):
    """The document; see the module's docstring."""

    format: Literal["privft-unit-proof-v1"] = "privft-unit-proof-v1"
    manifest: dict[str, Any]
    tag: Hex16
    size: Count
    position: Count
    leaves: Annotated[list[Leaf], Field(min_length=1, max_length=2)]
    paths: Annotated[list[Path], Field(min_length=1, max_length=2)]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a proof shows: whether a unit is in the version of this manifest, and, with a
    certificate, that it is the unit whose erasure the certificate states."""

    present: bool
    manifest: Manifest
    certificate: Mapping[str, Any] | None


def prove_unit(opened: State, unit: str) -> bytes:
    """The document about a unit and the version that is open."""
    state = read_version(opened.path, opened.manifest, opened.epoch_key, hashes=True)
    proof = prove(state.rows, unit_tag(state.tag_key, unit))
    document = UnitProof(
        manifest=json.loads(read_manifest_text(opened.path)),
        tag=proof.tag.hex(),
        size=proof.size,
        position=proof.position,
        leaves=[leaf.hex() for leaf in proof.leaves],
        paths=[[step.hex() for step in path] for path in proof.paths],
    )
    return canonical_json(document.model_dump())


def check(
    text: bytes,
    signer_keys: Mapping[str, VerifyKey],
    *,
    certificate: Mapping[str, Any] | None = None,
) -> Shown:
    """What the document shows.

    Raises SignatureError when nobody known signed the manifest or the certificate, IntegrityError
    when the document is none, does not hold, or is about another unit, vault or earlier version
    than the certificate.
    """
    try:
        document = UnitProof.model_validate(json.loads(text))
    except (ValueError, ValidationError, RecursionError):
        raise IntegrityError(f"{len(text)} bytes that are no proof about a unit") from None
    manifest = open_manifest(json.dumps(document.manifest).encode(), signer_keys)
    proof = Proof(
        tag=bytes.fromhex(document.tag),
        size=document.size,
        position=document.position,
        leaves=tuple(bytes.fromhex(leaf) for leaf in document.leaves),
        paths=tuple(tuple(bytes.fromhex(step) for step in path) for path in document.paths),
    )
    verify_proof(proof, bytes.fromhex(manifest.root))
    body = None if certificate is None else open_certificate(certificate, signer_keys)
    if body is not None:
        mine = commitment(bytes.fromhex(manifest.lineage), proof.tag)
        if (body["lineage"], body["commitment"]) != (manifest.lineage, mine):
            raise IntegrityError("the certificate is about another unit or vault than the proof")
        if manifest.epoch < body["epoch_after"]:
            raise IntegrityError(
                f"the proof is about epoch {manifest.epoch}, before the erasure made epoch"
                f" {body['epoch_after']}"
            )
    return Shown(present=proof.present, manifest=manifest, certificate=body)
