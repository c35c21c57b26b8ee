"""Extraction: would the model write a planted secret out, given what stands before it?

Exposure (`audit.attacks`) ranks a secret among its like; this asks the plainer question that a
person asks: shown "The record number of NAME is", does the model go on with NAME's number?  The
attacker decodes greedily, so the whole number comes out exactly when each of its tokens has the
largest logit after the true tokens before it, and one forward pass over the true text tells.  It
is a lower bound on what can be extracted: sampling many times or asking in other words may find
more (Carlini et al. 2021, arXiv 2012.07805; 2023, arXiv 2202.07646).

The texts are ours and the model is private, so the result is post-processing and may be public.
It describes; it does not decide, since a number has no fair coin of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.audit.canaries import Unit
from privft.training.examples import IGNORED, Example, UnitExamples
from privft.training.losses import LanguageModel
from privft.training.scoring import units_written

_NUMBER = re.compile(r"\d\d(?: \d\d)*")


def extracted(
    model: LanguageModel, units: Sequence[Unit], encode: Callable[[Unit], UnitExamples]
) -> NDArray[np.bool_]:
    """Whether each unit's number comes out whole when its first record is begun; shape (units,).

    units: secret-bearing, as `canaries.make_canaries` makes them.
    encode: as the run encodes units.
    """
    numbers = [_number(unit, encode) for unit in units]
    asked = [UnitExamples(key="", examples=(number,)) for number in numbers if number is not None]
    written = iter(units_written(model, asked).tolist())
    return np.array([number is not None and next(written) for number in numbers], dtype=np.bool_)


def _number(unit: Unit, encode: Callable[[Unit], UnitExamples]) -> Example | None:
    """The first record, with the tokens of its number as its only labels.

    The record is encoded three times: whole, cut before the number, and cut after it; what the
    cut ones have in common with the whole tells where the cuts fall, whatever the form of record
    and however the tokenizer joins blanks to words.  None for a number that `max_length` cut off,
    or that begins the text.
    """
    whole, before, through = (
        _first(encode, _cut(unit, part)) for part in ("whole", "before", "through")
    )
    start = 0 if before is None else _common(whole, before)
    stop = 0 if through is None else _common(whole, through)
    if whole is None or not 0 < start < stop:
        return None
    labels = [IGNORED] * len(whole.input_ids)
    labels[start:stop] = whole.input_ids[start:stop]
    return Example(input_ids=whole.input_ids, labels=tuple(labels))


def _first(encode: Callable[[Unit], UnitExamples], unit: Unit) -> Example | None:
    examples = encode(unit).examples
    return examples[0] if examples else None


def _common(one: Example | None, other: Example) -> int:
    count = 0
    for left, right in zip(one.input_ids if one else (), other.input_ids, strict=False):
        if left != right:
            break
        count += 1
    return count


def _cut(unit: Unit, part: str) -> Unit:
    """The unit's first record alone, its text cut before or after the number, or whole."""

    def shortened(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: shortened(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [shortened(inner) for inner in value]
        number = _NUMBER.search(value) if isinstance(value, str) else None
        if number is None or part == "whole":
            return value
        return value[: number.start() if part == "before" else number.end()].rstrip()

    record = dict(unit["records"][0])
    content = {name: shortened(value) for name, value in record.items() if name != "id"}
    return {"unit": unit["unit"], "records": [{"id": record["id"], **content}]}
