"""The one truth about a run: an in-toto Statement with a privft predicate.

    {"_type": "https://in-toto.io/Statement/v1",
     "subject": [{"name": "adapter_model.safetensors", "digest": {"sha256": "3f..."}}, ...],
     "predicateType": "tag:privft,2026:run-report/v1",
     "predicate": { ... report.facts.Facts ... }}

The subjects are the weights and their configuration: what was trained.  The files that are
rendered from the statement (page, model card, licence note) cannot be subjects of it; a verifier
renders them again and compares bytes.

Its bytes are canonical JSON (RFC 8785), so that the same facts always have the same digest, and
they travel as the payload of a DSSE envelope of type `application/vnd.in-toto+json` that the run
key signs.  `parse` accepts canonical bytes only: a second spelling of the same facts, a key given
twice, or a default left out is refused, so what is shown is exactly what was signed.

A change of the predicate that an old reader could misread gets a new predicateType; a change of
how a statement is rendered gets a new `RENDERER`, which every statement names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from privft.errors import IntegrityError, UsageError
from privft.report.facts import Facts
from privft.report.values import Line, Sha256, Strict
from privft.signing import canonical_json, sha256_hex

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "tag:privft,2026:run-report/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
RENDERER = "privft-report-1"


class Digest(Strict):
    """The one digest that privft writes and reads."""

    sha256: Sha256


class Subject(Strict):
    """One file that the statement is about."""

    name: Line
    digest: Digest


class Statement(Strict):
    """The in-toto Statement, whole."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Annotated[list[Subject], Field(min_length=1)]
    predicateType: Literal["tag:privft,2026:run-report/v1"]
    predicate: Facts

    @model_validator(mode="after")
    def _subjects_are_the_weights(self) -> Statement:
        named = {subject.name: subject.digest.sha256 for subject in self.subject}
        if named != self.predicate.model.adapter_files or len(named) != len(self.subject):
            raise ValueError("expected the subjects to be the model's files, once each")
        return self


def build(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The statement for these facts, as plain JSON values with every default written out.

    facts: the fields of `report.facts.Facts`, without `renderer`, which is set here.  Raises
    `UsageError` that names each field at fault: the facts come from the gate, not from outside.
    """
    try:
        checked = Facts.model_validate_json(_plain({**facts, "renderer": RENDERER}))
        subject = [
            {"name": name, "digest": {"sha256": digest}}
            for name, digest in sorted(checked.model.adapter_files.items())
        ]
        statement = Statement.model_validate_json(
            _plain(
                {
                    "_type": STATEMENT_TYPE,
                    "subject": subject,
                    "predicateType": PREDICATE_TYPE,
                    "predicate": checked.model_dump(mode="json"),
                }
            )
        )
    except ValidationError as error:
        raise UsageError(f"facts that make no statement: {_first_faults(error)}") from error
    plain: dict[str, Any] = statement.model_dump(mode="json", by_alias=True)
    return plain


def payload(statement: Mapping[str, Any]) -> bytes:
    """The bytes to sign: canonical JSON."""
    return canonical_json(dict(statement))


def digest(statement: Mapping[str, Any]) -> str:
    """SHA-256 of the payload: what the ledger entries `run-audited` and `run-released` hold."""
    return sha256_hex(payload(statement))


def validate(statement: Mapping[str, Any]) -> Statement:
    """The typed form of a statement given as JSON values; raises `IntegrityError`."""
    return parse(payload(statement))


def parse(data: bytes) -> Statement:
    """The typed form of signed bytes.

    Guarantees: the result, written again, gives `data` byte for byte.  Raises `IntegrityError`
    for anything else, naming the first fields at fault.
    """
    try:
        statement = Statement.model_validate_json(data)
    except ValidationError as error:
        raise IntegrityError(
            f"statement does not fit its schema: {_first_faults(error)}"
        ) from error
    if canonical_json(statement.model_dump(mode="json", by_alias=True)) != data:
        raise IntegrityError(
            "statement is not in canonical form",
            hint="it was written or edited by something other than privft",
        )
    return statement


def schema() -> dict[str, Any]:
    """The published JSON schema (draft 2020-12) of the whole statement."""
    body = Statement.model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{PREDICATE_TYPE}/schema",
        **body,
        "title": "privft run report",
    }


def _plain(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(value, allow_nan=False, default=_refuse).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"facts that are no JSON: {error}") from error


def _refuse(value: object) -> object:
    raise TypeError(f"a {type(value).__name__} among the facts")


def _first_faults(error: ValidationError) -> str:
    """Where and why, for at most three faults; never the value that was found."""
    faults = [
        f"{'.'.join(str(part) for part in fault['loc']) or 'whole'}: {fault['msg']}"
        for fault in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(faults[:3]) + more
