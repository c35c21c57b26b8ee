"""Extraction: exactly what greedy decoding would write, for every form of record."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from privft.audit.canaries import Canary, Shape, Vocabulary, make_canaries
from privft.audit.extraction import extracted
from privft.audit.suite import load_suite
from privft.randomness import KeyedStreams
from privft.training.examples import UnitExamples, encode_unit
from privft.training.losses import LanguageModel

WORDS = tuple(f"{a}{b}{c}" for a in "bdfg" for b in "aeiou" for c in "lmnr")


def tokenizer() -> Any:
    """Bytes as tokens: numbers take several, and blanks are tokens of their own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: i for i, token in enumerate(["<s>", *letters])}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>")
    made.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    return made


TOKENIZER = tokenizer()


def encode(unit: Any, max_length: int = 96) -> UnitExamples:
    return encode_unit(unit, TOKENIZER, task="causal-lm", max_length=max_length)


def secrets(count: int, shape: Shape = "text") -> list[Canary]:
    suite, _ = load_suite("quick")
    canaries = make_canaries(
        suite,
        KeyedStreams(bytes(32)),
        task="causal-lm",
        shape=shape,
        vocabulary=Vocabulary(words=WORDS),
    )
    return [canary for canary in canaries if canary.kind == "secret"][:count]


def model_that_learnt(units: list[Any], steps: int) -> LanguageModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            initializer_range=0.1,
        )
    )
    model.lm_head.requires_grad_(False)
    wrapped = LanguageModel(model, pad_id=0)
    examples = [encode(unit).examples[0] for unit in units]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=8e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        wrapped.record_losses(examples, 96).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return wrapped


def written_by(model: LanguageModel, text: str, tokens: int) -> str:
    """What greedy decoding appends, one token at a time."""
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(model.module(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(TOKENIZER.decode(ids[start:]))


@pytest.mark.parametrize("shape", ["text", "prompt-completion", "messages"])
def test_a_model_that_knows_its_secrets_by_heart_gives_them_away(shape: Shape) -> None:
    units = [canary.unit for canary in secrets(5, shape)]
    known = units[:3]
    model = model_that_learnt(known, 80)
    assert extracted(model, units, encode).tolist() == [True] * 3 + [False] * 2
    assert not extracted(model_that_learnt(known, 0), units, encode).any()


def test_it_is_what_decoding_token_by_token_gives() -> None:
    units = [canary.unit for canary in secrets(8)]
    model = model_that_learnt(units[:4], 60)
    found = []
    for unit in units:
        text = unit["records"][0]["text"]
        number = text[-13:-1]  # with the blank before it
        found.append(written_by(model, text[:-13], len(number)) == number)
    assert extracted(model, units, encode).tolist() == found
    assert 0 < sum(found) < len(found), "both answers occur"


def test_a_number_that_was_cut_off_is_never_extracted() -> None:
    units = [canary.unit for canary in secrets(3)]
    model = model_that_learnt(units, 80)
    assert not extracted(model, units, partial(encode, max_length=12)).any()
