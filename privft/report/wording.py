"""How the report says things: units in plain words, odds, and numbers that are never flattering.

Rounding goes against the claim.  An epsilon that is claimed or spent, and the attacker's odds, are
rounded up; an epsilon that an attack proved, and what is left of a budget, are rounded down.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privft.report.findings import Utility

RULES = {
    "units": "Whose data one guarantee is about",
    "max_epsilon_per_run": "Epsilon of one run, at most",
    "total_epsilon": "Epsilon of all runs on these data, at most",
    "total_delta": "Delta of all runs on these data, at most",
    "delta_factor": "Delta of one run, below",
    "min_declared_units": "Declared number of units, at least",
    "two_accountants": "Priced by two accountants",
    "required_suite": "Audit suite, at least",
    "secure_noise": "Noise that is safe in floating point too",
    "recipients_allowed": "How the keys to the data may be held",
    "public_outputs": "What may leave",
    "approvals": "Approvals of the plan, at least",
    "four_eyes": "Somebody other than who runs it approved",
}
COMPANIONS = (
    "a unit's clipped gradient is computed so that the other units of its microbatch change none "
    "of its bits; the self-check of this name says whether it was so for this model on this "
    "machine. To our knowledge, as of November 2026, Opacus, opake, dp-transformers, fastDP and "
    "jax_privacy document no such promise; what each of them does on a given machine is not "
    "measured here."
)
"""What a report says of the bits of a gradient, beside the self-check that measured them."""


def rule_words(rule: str) -> str:
    """What a policy's rule is about, in words; its own name where there are none."""
    return RULES.get(rule, rule)


def limit_words(limit: object) -> str:
    """A rule's limit: what is only asked for or not is said so."""
    if isinstance(limit, bool):
        return "required" if limit else "not asked for"
    return plain_value(limit)


def one_in(probability: float) -> str:
    """A small probability as people say it, never smaller than it is: one in 100,000."""
    return f"one in {math.floor(1 / probability * (1 + 1e-12)):,}"


def unit_words(unit: str) -> dict[str, str]:
    """How the page speaks of one unit to somebody who is one."""
    if unit == "subject":
        return {
            "one": "one person, with all of that person's records",
            "your": "your records were",
            "short": "person",
            "many": "people",
        }
    return {
        "one": "one record",
        "your": "your record was",
        "short": "record",
        "many": "records",
    }


def bets(percent: float) -> int:
    """How many of 100 bets the attacker wins at most: rounded up."""
    return min(100, math.ceil(percent - 1e-9))


def odds_of(epsilon: float, delta: float) -> float:
    """The best accuracy, in percent, against any (epsilon, delta) private mechanism.

    With equal odds beforehand: 1/2 + (e^epsilon - 1 + 2 delta) / (2 (e^epsilon + 1)) (Kairouz, Oh,
    Viswanath 2015, theorem 2.1: the trade-off curve's corner).
    """
    grown = math.exp(min(epsilon, 700.0))
    return 100 * min(1.0, 0.5 + (grown - 1 + 2 * delta) / (2 * (grown + 1)))


def task_words(task: str) -> str:
    """What the model is trained to do."""
    return "causal language model" if task == "causal-lm" else "sequence classification"


def most_records_words(most: int | None) -> str:
    """How many records of one unit a step uses at most."""
    return "no limit; the gradient of the whole unit is clipped" if most is None else str(most)


def answer_words(answer: str) -> str:
    """A hazard's answer; the one that waits for somebody says so."""
    return "operator must attest" if answer == "operator" else answer


def share_words(around: tuple[float, float] | None) -> str:
    """An interval of a share, in percent."""
    return "–" if around is None else f"{100 * around[0]:.0f} to {100 * around[1]:.0f}%"


def paid_words(entry: Utility) -> str:
    """How a figure on held-out units came to leave, and at what price; `entry` has `paid`."""
    paid = entry.paid
    assert paid is not None
    return (
        f"{entry.metric} on held-out units: each unit’s value is cut to between 0 and "
        f"{exact(paid.bound)}, summed, given Gaussian noise of multiplier "
        f"{exact(paid.noise_multiplier)}, and divided by the declared {entry.n} units. The "
        "interval is that of the noise alone. Base and trained together cost epsilon "
        f"{round_up(paid.epsilon)}, which the epsilon of this run includes."
    )


def round_up(value: float, digits: int = 2) -> str:
    """A claimed or spent amount: never shown smaller than it is."""
    scale = 10**digits
    return f"{math.ceil(value * scale - 1e-9) / scale:.{digits}f}"


def round_down(value: float, digits: int = 2) -> str:
    """A proven lower bound, or what is left: never shown larger than it is."""
    scale = 10**digits
    return f"{math.floor(value * scale + 1e-9) / scale:.{digits}f}"


def exact(value: float) -> str:
    """The number as it is signed: the shortest text that reads back as the same number."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value)


def pretty_json(value: object) -> str:
    """Indented JSON with sorted keys, for the reader."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def plain_value(value: object) -> str:
    """A policy's limit or what was found, on one line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, (int, float)):
        return exact(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(plain_value(item) for item in value)
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
