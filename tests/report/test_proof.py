"""The thread to the ledger: what the proof lets through, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privft.errors import IntegrityError, SignatureError
from privft.report.proof import build_proof, check_proof
from privft.signing import canonical_json
from tests.report.released import LOG, STRANGER, MemoryLedger, write_release


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder: Path = tmp_path_factory.mktemp("release")
    write_release(folder)
    return (folder / "ledger-proof.json").read_bytes()


def test_proof_gives_the_entries_of_the_run_in_order(proof: bytes) -> None:
    kinds = [entry.kind for entry in check_proof(proof, LOG.public).entries]
    assert kinds == [
        "plan-approved",
        "plan-approved",
        "run-reserved",
        "run-settled",
        "audit-started",
        "run-audited",
        "run-released",
    ]


def test_another_log_key_opens_nothing(proof: bytes) -> None:
    with pytest.raises(SignatureError):
        check_proof(proof, STRANGER.public)


def test_every_flipped_byte_is_refused(proof: bytes) -> None:
    for at in range(0, len(proof), 7):
        spoiled = bytearray(proof)
        spoiled[at] ^= 1
        with pytest.raises(IntegrityError):
            check_proof(bytes(spoiled), LOG.public)


def _edited(proof: bytes, edit: Any) -> bytes:
    value = json.loads(proof)
    edit(value)
    return canonical_json(value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v["entries"][2]["entry"]["body"]["mechanism"].update(noise_multiplier=2.0),
        lambda v: v["entries"][2]["entry"].update(index=3),
        lambda v: v["entries"].reverse(),
        lambda v: v["entries"].append(v["entries"][-1]),
        lambda v: v["entries"][0]["proof"].pop(),
        lambda v: v["entries"][0]["proof"].append("0" * 64),
        lambda v: v["extends"]["proof"].pop(),
        lambda v: v["extends"].update(checkpoint=v["checkpoint"]),
        lambda v: v.update(more=1),
        lambda v: v.update(entries=[]),
        lambda v: v.update(format="privft-ledger-proof-v2"),
        lambda v: v.update(checkpoint=v["checkpoint"].replace("\n13\n", "\n14\n")),
    ],
)
def test_edited_proof_is_refused(proof: bytes, edit: Any) -> None:
    with pytest.raises(IntegrityError):
        check_proof(_edited(proof, edit), LOG.public)


def test_run_that_the_ledger_does_not_know_has_no_proof() -> None:
    ledger = MemoryLedger()
    ledger.append("key-revoked", {"name": "old", "reason": "x"}, "mira", "2026-11-20T07:00:00Z")
    with pytest.raises(IntegrityError, match="no entry of run"):
        build_proof(ledger, run="r-9", log_key=LOG.public)


def test_ledger_rewritten_since_the_plan_is_refused(proof: bytes) -> None:
    other = MemoryLedger()
    for i in range(6):
        other.append(
            "key-revoked", {"name": f"other-{i}", "reason": "x"}, "mira", "2026-11-20T07:00:00Z"
        )
    forged = _edited(proof, lambda v: v["extends"].update(checkpoint=other.checkpoint()))
    with pytest.raises(IntegrityError, match="extend"):
        check_proof(forged, LOG.public)


@settings(max_examples=60)
@given(st.binary(max_size=120) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_refused_with_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        check_proof(data, LOG.public)
