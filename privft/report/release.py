"""What a released folder holds, by name, and how all of it but weights and proof is made.

    adapter_config.json  adapter_model.safetensors  head.safetensors   what was trained (those that
                                                                      the statement names)
    statement.dsse.json   the signed truth: a DSSE envelope, one line of canonical JSON
    README.md  report.html  LICENSE-NOTE.txt                          rendered from the statement
    ledger-proof.json     the thread to the ledger (`report.proof`)
    merged/               only where it was asked for: the base model with the adapter added

Order of making: render (here), log the `run-released` entry with the digests of weights and
rendered files, prove it (`proof.build_proof`), write.  The proof comes last because it contains the
entry that lists the others; its own strictness guards it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from privft.errors import IntegrityError
from privft.report.card import render_card, render_licence_note
from privft.report.page import render
from privft.report.statement import payload
from privft.signing import canonical_json

STATEMENT, PAGE, CARD = "statement.dsse.json", "report.html", "README.md"
STATEMENT_TEXT, PDF = "report.json", "report.pdf"  # beside the page in a run's folder only
PROOF, LICENCE_NOTE = "ledger-proof.json", "LICENSE-NOTE.txt"
WEIGHTS = ("adapter_config.json", "adapter_model.safetensors", "head.safetensors")
MERGED = "merged"


def rendered_files(statement: Mapping[str, Any], envelope: Mapping[str, Any]) -> dict[str, bytes]:
    """The four files that follow from a statement and its envelope, by name.

    Guarantees: the same two give the same bytes.  Raises `IntegrityError` when the envelope is
    around another statement.
    """
    if base64.b64decode(envelope["payload"]) != payload(statement):
        raise IntegrityError("the envelope holds another statement")
    return {
        STATEMENT: canonical_json(dict(envelope)) + b"\n",
        PAGE: render(statement, envelope).encode(),
        CARD: render_card(statement).encode(),
        LICENCE_NOTE: render_licence_note(statement).encode(),
    }
