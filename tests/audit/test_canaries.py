"""Canaries: fair coins, texts that do not depend on them, units of the run's own shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from privft.audit.canaries import (
    Canary,
    Shape,
    Vocabulary,
    make_canaries,
    make_candidates,
    sample_texts,
    vocabulary_of,
)
from privft.audit.suite import Suite, Task, load_suite
from privft.errors import UsageError
from privft.randomness import KeyedStreams

WORDS = tuple(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(200))
VOCABULARY = Vocabulary(words=WORDS[:100], rare=WORDS[100:], labels=("yes", "no", "perhaps"))
QUICK, _ = load_suite("quick")
STRICT, _ = load_suite("strict")


def made(
    secret: int = 1,
    *,
    suite: Suite = QUICK,
    task: Task = "causal-lm",
    shape: Shape = "text",
    records: int = 1,
    **more: Any,
) -> list[Canary]:
    streams = KeyedStreams(bytes([secret]) * 32)
    return make_canaries(
        suite,
        streams,
        task=task,
        shape=shape,
        vocabulary=VOCABULARY,
        records_per_unit=records,
        **more,
    )


def test_the_same_secret_makes_the_same_canaries_and_another_makes_others() -> None:
    assert made(1) == made(1)
    assert {c.unit["unit"] for c in made(1)}.isdisjoint(c.unit["unit"] for c in made(2))


def test_a_suite_gets_as_many_canaries_of_each_kind_as_it_asks_for() -> None:
    kinds = [canary.kind for canary in made()]
    assert {kind: kinds.count(kind) for kind in kinds} == {"rare-words": 160, "secret": 44}


def test_coins_are_fair_and_independent_between_neighbours_and_kinds() -> None:
    coins = np.array([[c.included for c in made(secret)] for secret in range(60)])
    assert stats.binomtest(int(coins.sum()), coins.size).pvalue > 1e-4
    same = coins[:, :-1] == coins[:, 1:]
    assert stats.binomtest(int(same.sum()), same.size).pvalue > 1e-4
    across = coins[:, :44] == coins[:, 160:204]
    assert stats.binomtest(int(across.sum()), across.size).pvalue > 1e-4
    halves = coins.sum(axis=1)
    assert len(set(halves.tolist())) > 5, "a fixed share included is no set of independent coins"


def test_the_text_of_a_canary_does_not_tell_its_coin() -> None:
    lengths = [
        (len(c.unit["records"][0]["text"]), c.included)
        for secret in range(20)
        for c in made(secret)
    ]
    inside = [length for length, included in lengths if included]
    outside = [length for length, included in lengths if not included]
    assert stats.ks_2samp(inside, outside).pvalue > 1e-4


@pytest.mark.parametrize(
    ("shape", "fields"),
    [
        ("text", {"id", "text"}),
        ("prompt-completion", {"id", "prompt", "completion"}),
        ("messages", {"id", "messages"}),
    ],
)
def test_records_have_the_shape_that_the_run_trains_on(shape: Shape, fields: set[str]) -> None:
    for canary in made(shape=shape):
        assert set(canary.unit) == {"unit", "records"}
        for record in canary.unit["records"]:
            assert set(record) == fields


def test_a_subject_has_several_records_that_share_what_is_to_be_remembered() -> None:
    for canary in made(records=3):
        texts = [record["text"] for record in canary.unit["records"]]
        assert len(set(texts)) == 3
        assert texts[0] in texts[1]
        assert texts[0] in texts[2]
        assert len({record["id"] for record in canary.unit["records"]}) == 3


def test_ids_are_unique_over_all_canaries_and_candidates() -> None:
    streams = KeyedStreams(bytes([1]) * 32)
    more = make_candidates(QUICK, streams, task="causal-lm", shape="text", vocabulary=VOCABULARY)
    assert len(more) == QUICK.candidates
    names = [canary.unit["unit"] for canary in made()] + [unit["unit"] for unit in more]
    assert len(set(names)) == len(names)


def test_candidates_have_the_form_of_secrets_and_are_none_of_them() -> None:
    streams = KeyedStreams(bytes([1]) * 32)
    planted = {c.unit["records"][0]["text"] for c in made() if c.kind == "secret"}
    for unit in make_candidates(
        QUICK, streams, task="causal-lm", shape="text", vocabulary=VOCABULARY
    ):
        assert unit["records"][0]["text"] not in planted
        assert sum(character.isdigit() for character in unit["records"][0]["text"]) == 8


def test_a_mislabelled_canary_never_has_its_own_label() -> None:
    examples = [(f"text {i}", VOCABULARY.labels[i % 3]) for i in range(50)]
    canaries = made(task="sequence-classification", shape="text-label", examples=examples)
    right = dict(examples)
    wrong = [c.unit["records"][0] for c in canaries if c.kind == "mislabelled"]
    assert len(wrong) == 160
    for record in wrong:
        text = next(text for text in right if record["text"].endswith(text))
        assert record["label"] in VOCABULARY.labels
        assert record["label"] != right[text]


def test_the_coin_does_not_show_when_a_canary_is_printed() -> None:
    canary = Canary(kind="secret", unit={"unit": "u", "records": []}, included=True)
    assert "True" not in f"{canary!r} {canary}"


def test_what_a_kind_needs_and_does_not_get_is_said() -> None:
    with pytest.raises(UsageError, match="synthetic canaries need 160 generated texts, got 0"):
        made(suite=STRICT)
    with pytest.raises(UsageError, match="need records with labels"):
        made(task="sequence-classification")
    with pytest.raises(UsageError, match="two labels or more"):
        make_canaries(
            QUICK,
            KeyedStreams(bytes(32)),
            task="sequence-classification",
            shape="text-label",
            vocabulary=Vocabulary(words=WORDS),
        )


class Tokenizer:
    """Word-level, with the marks that real vocabularies carry."""

    bos_token_id, eos_token_id, all_special_ids = 0, 1, [0, 1]

    def get_vocab(self) -> dict[str, int]:
        special = {"<s>": 0, "</s>": 1, "Ġ1234": 2, "ĠOf": 3, "é": 4}
        insides = {f"inside{w}": 500 + i for i, w in enumerate(WORDS)}
        return special | {f"Ġ{w}": 5 + i for i, w in enumerate(WORDS)} | insides

    def decode(self, ids: list[int]) -> str:
        return " ".join(str(i) for i in ids)


def test_rare_words_come_from_the_end_of_the_vocabulary() -> None:
    found = vocabulary_of(Tokenizer(), words=40, rare=30, labels=("a", "b"))
    assert found.words == WORDS[:40]
    assert found.rare == WORDS[-30:]
    assert found.labels == ("a", "b")


def test_sampled_texts_are_the_same_for_the_same_secret_and_avoid_special_tokens() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
    )
    first, again, other = (
        sample_texts(model, Tokenizer(), KeyedStreams(bytes([secret]) * 32), count=12, tokens=6)
        for secret in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert len(set(first)) == 12
    tokens = {int(token) for text in first for token in text.split()}
    assert not tokens & {0, 1}
