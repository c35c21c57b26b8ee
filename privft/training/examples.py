"""A unit's records as token ids, and how they are laid out in microbatches.

Formats of a record (what intake stores) and what the loss is taken on:
    {"text"}                    every token but the first
    {"prompt", "completion"}    the completion only, and its end-of-text token; with an
                                instruction, as what the assistant says when asked for it
    {"messages"}                what the assistant says, under the tokenizer's chat template
    {"text", "label"}           the label, for classification

Layout.  All rows of a unit are padded on the right to one length, the *bucket* of the unit: the
smallest of a fixed list that its longest record fits.  It depends on the unit alone, never on its
companions (DESIGN.md, invariant 2: what else is in a microbatch must not change the bits of a
unit's gradient).  A microbatch holds whole units of one bucket, so it carries no padding beyond
the bucket's own, and as many as the token budget allows; a unit that alone exceeds the budget is
a microbatch of its own, for a unit is never split.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from privft.errors import InputError
from privft.randomness import KeyedStreams

IGNORED = -100
Task = Literal["causal-lm", "sequence-classification"]
_BUCKETS = (
    list(range(8, 64, 8)) + list(range(64, 256, 16)) + list(range(256, 1024, 64))
    + list(range(1024, 65536 + 1, 512))
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Example:
    """One record: `input_ids` of length T; `labels` of length T (`IGNORED` where no loss is
    taken), or of length 1 for classification."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def labelled(self) -> int:
        """How many positions carry a label."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True, kw_only=True)
class UnitExamples:
    """All records of one unit that take part."""

    key: str
    examples: tuple[Example, ...]

    @property
    def bucket(self) -> int:
        """The length that each of the unit's rows is padded to."""
        return bucket_of(max(len(example.input_ids) for example in self.examples))


def bucket_of(length: int) -> int:
    """The smallest bucket of at least `length` tokens."""
    position = bisect.bisect_left(_BUCKETS, length)
    if position == len(_BUCKETS):
        raise InputError(f"a record of {length} tokens exceeds the longest bucket, {_BUCKETS[-1]}")
    return _BUCKETS[position]


def buckets_upto(length: int) -> list[int]:
    """All buckets up to the one of `length`."""
    return [bucket for bucket in _BUCKETS if bucket <= bucket_of(length)]


def encode_unit(
    unit: Mapping[str, Any],
    tokenizer: Any,
    *,
    task: Task,
    max_length: int,
    labels: Sequence[str] = (),
    instruction: str | None = None,
) -> UnitExamples:
    """Token ids of `unit` ({"unit": id, "records": [...]}), each record cut at `max_length`.

    instruction: what is asked, in the chat template, before each prompt; None for bare prompts.

    A record that has nothing left to take a loss on (a prompt as long as `max_length`) is dropped;
    a unit may thus have no examples, and then contributes a gradient of zero.
    """
    encoded = (
        _encode_label(record, tokenizer, max_length, labels)
        if task == "sequence-classification"
        else _encode_text(record, tokenizer, max_length, instruction)
        for record in unit["records"]
    )
    kept = tuple(example for example in encoded if example.labelled)
    return UnitExamples(key=str(unit["unit"]), examples=kept)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _cut(ids: Sequence[int], labels: Sequence[int], max_length: int) -> Example:
    # The first position predicts nothing, so its label never counts.
    return Example(
        input_ids=tuple(ids[:max_length]),
        labels=(IGNORED, *labels[1:max_length]),
    )


def question(tokenizer: Any, instruction: str, prompt: str) -> str:
    """What an assistant is asked: the instruction, an empty line and the prompt, as the chat
    template puts it, up to where the answer begins."""
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": f"{instruction}\n\n{prompt}"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    return text


def _encode_text(
    record: Mapping[str, Any], tokenizer: Any, max_length: int, instruction: str | None
) -> Example:
    end = [tokenizer.eos_token_id]
    if "text" in record:
        ids = _ids(tokenizer, record["text"]) + end
        if tokenizer.bos_token_id is not None and ids[0] != tokenizer.bos_token_id:
            ids = [tokenizer.bos_token_id, *ids]
        return _cut(ids, ids, max_length)
    if "completion" in record:
        if instruction is not None:
            prompt = _ids(tokenizer, question(tokenizer, instruction, record["prompt"]))
        else:
            prompt = _ids(tokenizer, record["prompt"])
            if tokenizer.bos_token_id is not None:
                prompt = [tokenizer.bos_token_id, *prompt]
        completion = _ids(tokenizer, record["completion"]) + end
        return _cut(prompt + completion, [IGNORED] * len(prompt) + completion, max_length)
    if "messages" in record:
        return _encode_messages(record["messages"], tokenizer, max_length)
    raise InputError(f"expected text, prompt and completion, or messages, got {sorted(record)}")


def _encode_messages(
    messages: Sequence[Mapping[str, str]], tokenizer: Any, max_length: int
) -> Example:
    ids: list[int] = []
    labels: list[int] = []
    for count, message in enumerate(messages, start=1):
        text = tokenizer.apply_chat_template(
            list(messages[:count]), tokenize=False, add_generation_prompt=False
        )
        upto = _ids(tokenizer, text)
        if upto[: len(ids)] != ids:
            raise InputError(
                "the tokenizer's chat template rewrites earlier messages, so losses on the "
                "assistant's turns alone cannot be taken"
            )
        new = upto[len(ids) :]
        ids = upto
        labels += new if message["role"] == "assistant" else [IGNORED] * len(new)
    return _cut(ids, labels, max_length)


def _encode_label(
    record: Mapping[str, Any], tokenizer: Any, max_length: int, labels: Sequence[str]
) -> Example:
    if record["label"] not in labels:
        raise InputError(
            "a record carries a label that the config's `labels` does not list",
            hint="labels come from the config, never from the records: list them all",
        )
    encoded = tokenizer(record["text"], truncation=True, max_length=max_length)
    return Example(
        input_ids=tuple(encoded["input_ids"]), labels=(list(labels).index(record["label"]),)
    )


def choose_records(
    unit: UnitExamples, *, limit: int, streams: KeyedStreams, step: int
) -> UnitExamples:
    """At most `limit` of the unit's records, chosen by the run's generator and not by the data."""
    count = len(unit.examples)
    if count <= limit:
        return unit
    order = streams.stream("records", step=step, label=unit.key).uint64(count).argsort()
    chosen = tuple(unit.examples[i] for i in sorted(order[:limit]))
    return UnitExamples(key=unit.key, examples=chosen)


def microbatches(
    units: Sequence[UnitExamples], *, token_budget: int
) -> Iterator[list[UnitExamples]]:
    """Whole units of one bucket each, longest first, up to `token_budget` padded tokens."""
    ordered = sorted(
        (unit for unit in units if unit.examples), key=lambda unit: unit.bucket, reverse=True
    )
    batch: list[UnitExamples] = []
    tokens = 0
    for unit in ordered:
        size = unit.bucket * len(unit.examples)
        if batch and (unit.bucket != batch[0].bucket or tokens + size > token_budget):
            yield batch
            batch, tokens = [], 0
        batch.append(unit)
        tokens += size
    if batch:
        yield batch
