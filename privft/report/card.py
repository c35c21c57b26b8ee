"""The model card (README.md) and the licence note of a released folder.

Both are rendered from the signed statement and from nothing else, so that a verifier can render
them again and compare bytes.  The card opens with the YAML block that the Hugging Face hub reads,
shows how to load the adapter with plain peft (and, for a classifier, how to apply its head with
plain torch), and states the privacy guarantee with what it does not cover.

Names in the statement are other people's text: in Markdown they are escaped, in YAML and in the
Python lines they are written by those languages' own quoting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import jinja2
import yaml

from privft.report.facts import Facts
from privft.report.notices import secrets
from privft.report.page import verdict
from privft.report.statement import digest, validate
from privft.report.stopped import selected
from privft.report.wording import (
    bets,
    exact,
    paid_words,
    plain_value,
    round_down,
    round_up,
    unit_words,
)

_SPECIAL = re.compile(r"([\\`*_\[\]|~])|^([#>+-]|\d+[.)])")


def render_card(statement: Mapping[str, Any]) -> str:
    """README.md of the released folder; raises `IntegrityError` on a statement out of schema."""
    facts = validate(statement).predicate
    return (
        environment()
        .get_template("card.md")
        .render(
            facts=facts,
            metadata=yaml.safe_dump(
                _metadata(facts), sort_keys=False, allow_unicode=True, width=10_000
            ).rstrip("\n"),
            words=unit_words(facts.guarantee.unit),
            bets=bets(facts.guarantee.odds_percent),
            verdict=verdict(facts),
            secrets=secrets(facts.audit),
            stopped=selected(facts),
            statement_sha256=digest(statement),
            has_adapter="adapter_model.safetensors" in facts.model.adapter_files,
        )
    )


def render_licence_note(statement: Mapping[str, Any]) -> str:
    """LICENSE-NOTE.txt: whose terms hold for what; privft itself grants nothing."""
    facts = validate(statement).predicate
    return environment().get_template("licence.txt").render(facts=facts)


def _metadata(facts: Facts) -> dict[str, Any]:
    """The block that the hub reads; unknown keys are allowed there, so the guarantee goes in."""
    model, classifies = facts.model, facts.run.task == "sequence-classification"
    return {
        "base_model": model.name,
        "library_name": "peft",
        "pipeline_tag": "text-classification" if classifies else "text-generation",
        "license": (model.licence or "other").lower(),
        "tags": ["differential-privacy", "dp-sgd", "lora", "privft"]
        + (["synthetic-training-data"] if facts.synthetic else []),
        "privacy": {
            "unit": facts.guarantee.unit,
            "adjacency": facts.guarantee.adjacency,
            "epsilon": facts.guarantee.epsilon,
            "delta": facts.guarantee.delta,
            "epsilon_of_all_runs_at_most": facts.ledger.cap.epsilon,
            "statement": "statement.dsse.json",
        },
    }


def markdown(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    plain = " ".join(str(text).split())
    plain = plain.replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(lambda found: "\\" + found[0], plain)


def quoted(text: object) -> str:
    """A Python (and JSON) string literal."""
    return json.dumps(str(text))


@cache
def environment() -> jinja2.Environment:
    """Templates of Markdown and plain text, which escape by their own filters."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("privft.report", "templates"),
        autoescape=False,  # Markdown and plain text: escaped by the filters here instead
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        md=markdown,
        quoted=quoted,
        up=round_up,
        down=round_down,
        exact=exact,
        value=plain_value,
        paid=paid_words,
    )
    return environment
