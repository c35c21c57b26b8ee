"""A record as token ids: what the loss is taken on, and that nothing depends on other records."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from privft.errors import InputError
from privft.randomness import KeyedStreams
from privft.training.examples import (
    IGNORED,
    Example,
    UnitExamples,
    choose_records,
    encode_unit,
    microbatches,
)

TURNS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
ASKING = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"


def tokenizer(template: str | None = ASKING) -> Any:
    """Bytes as tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(["|", *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="|")
    made.chat_template = template
    return made


BYTES = tokenizer()


def encode(record: dict[str, Any], *, with_tokenizer: Any = BYTES, **options: Any) -> Any:
    unit = {"unit": "u", "records": [record]}
    settings = {"task": "causal-lm", "max_length": 200, **options}
    return encode_unit(unit, with_tokenizer, **settings)


def read(record: dict[str, Any], **options: Any) -> tuple[str, str]:
    """(the whole row, what of it the loss is taken on), as text."""
    (example,) = encode(record, **options).examples
    taken = [label for label in example.labels if label != IGNORED]
    return BYTES.decode(example.input_ids), BYTES.decode(taken)


def test_text_is_learnt_but_for_its_first_token() -> None:
    assert read({"text": "fever"}) == ("fever|", "ever|")


def test_a_completion_is_learnt_and_its_prompt_is_not() -> None:
    assert read({"prompt": "says: ", "completion": "cough"}) == ("says: cough|", "cough|")


def test_with_an_instruction_the_completion_is_what_the_assistant_says() -> None:
    record = {"prompt": "he says", "completion": "cough"}
    row, taken = read(record, instruction="Sum up.")
    assert row == "<user>Sum up.\n\nhe says|<assistant>cough|"
    assert taken == "cough|"


def test_an_instruction_asks_for_what_a_conversation_would_say() -> None:
    """The same tokens and labels as the same exchange written as messages."""
    asked = encode({"prompt": "he says", "completion": "cough"}, instruction="Sum up.")
    messages = [
        {"role": "user", "content": "Sum up.\n\nhe says"},
        {"role": "assistant", "content": "cough"},
    ]
    (said,) = encode({"messages": messages}).examples
    (example,) = asked.examples
    assert example.input_ids == said.input_ids
    # a conversation's loss also covers the words by which the template opens a turn
    opening = len(BYTES("<assistant>")["input_ids"])
    assert [x for x in example.labels if x != IGNORED] == [x for x in said.labels if x != IGNORED][
        opening:
    ]


def test_only_the_assistant_is_learnt() -> None:
    messages = [
        {"role": "user", "content": "who?"},
        {"role": "assistant", "content": "me"},
        {"role": "user", "content": "why?"},
    ]
    assert read({"messages": messages})[1] == "<assistant>me|"


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    rewriting = tokenizer("{{ messages|length }}" + TURNS)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(InputError, match="rewrites earlier messages"):
        encode({"messages": messages}, with_tokenizer=rewriting)


def test_what_is_cut_off_is_neither_seen_nor_learnt() -> None:
    assert read({"prompt": "abcd", "completion": "efgh"}, max_length=6) == ("abcdef", "ef")


def test_a_prompt_that_fills_the_length_leaves_nothing_to_learn() -> None:
    assert encode({"prompt": "abcdef", "completion": "g"}, max_length=6).examples == ()


def test_a_label_that_the_config_does_not_list_is_refused() -> None:
    with pytest.raises(InputError, match="does not list"):
        encode({"text": "a", "label": "odd"}, task="sequence-classification", labels=("yes", "no"))


def units_of(lengths: list[list[int]]) -> list[UnitExamples]:
    return [
        UnitExamples(
            key=str(number),
            examples=tuple(Example(input_ids=(0,) * n, labels=(0,) * n) for n in own),
        )
        for number, own in enumerate(lengths)
    ]


@given(
    st.lists(st.lists(st.integers(1, 300), max_size=4), max_size=20),
    st.integers(8, 2000),
)
def test_microbatches_hold_every_unit_once_and_whole(lengths: list[list[int]], budget: int) -> None:
    """One bucket each; never over the token budget but for a unit that is over it alone."""
    units = units_of(lengths)
    batches = list(microbatches(units, token_budget=budget))
    assert sorted(u.key for batch in batches for u in batch) == sorted(
        u.key for u in units if u.examples
    )
    for batch in batches:
        assert len({unit.bucket for unit in batch}) == 1
        tokens = sum(unit.bucket * len(unit.examples) for unit in batch)
        assert tokens <= budget or len(batch) == 1


def test_which_records_take_part_depends_on_unit_and_step_and_not_on_what_they_say() -> None:
    streams = KeyedStreams(bytes(32))
    (unit,), (other,) = units_of([[5, 6, 7, 8, 9]]), units_of([[15, 16, 17, 18, 19]])

    def chosen(of: UnitExamples, step: int) -> list[int]:
        kept = choose_records(of, limit=2, streams=streams, step=step).examples
        return [of.examples.index(example) for example in kept]

    assert chosen(unit, 3) == chosen(other, 3)
    assert len({tuple(chosen(unit, step)) for step in range(40)}) > 3
