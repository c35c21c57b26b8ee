"""What the report prints at full length, after all that is meant to be read through.

The page folds it away under the section that it belongs to; paper cannot fold, so the PDF has it at
its end.  Nothing of it is left out: a PDF that travels alone must let a reader compute epsilon
again, and see under which configuration and which rules the run stood.
"""

from __future__ import annotations

from typing import Any

from privft.report.facts import Facts
from privft.report.wording import plain_value, pretty_json


def annex(facts: Facts) -> dict[str, Any]:
    """One more section for `report.sections`: a table of the policy, and listings of lines."""
    return {
        "title": "Annex: as signed",
        "paragraphs": [
            f"Public key of the log that signed the checkpoint: {facts.ledger.log_key}. The "
            "entries of this run, with proofs that the ledger includes them, lie beside this "
            "document in ledger-proof.json."
        ],
        "tables": [
            {
                "caption": "The whole policy, with its reasons",
                "head": ["rule", "value", "why, and after whom"],
                "rows": [_rule(name, rule) for name, rule in sorted(facts.policy.body.items())],
            }
        ],
        "listings": [
            {
                "caption": "The events, as the accountants take them",
                "lines": [
                    line
                    for event in facts.events
                    for line in pretty_json(event.model_dump()).splitlines()
                ],
            },
            {
                "caption": "The whole configuration",
                "lines": pretty_json(facts.config.body).splitlines(),
            },
            {
                "caption": "Signed checkpoint of the ledger before this run",
                "lines": facts.ledger.checkpoint_before.splitlines(),
            },
        ],
    }


def _rule(name: str, rule: Any) -> list[str]:
    if isinstance(rule, dict) and "value" in rule:
        because = f"{rule.get('why', '')} {rule.get('source', '')}"
        return [name, plain_value(rule["value"]), because.strip()]
    return [name, plain_value(rule), ""]
