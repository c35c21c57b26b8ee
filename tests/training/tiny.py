"""Tiny random models and units, made on the spot; mechanics need no real weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from privft.budget.mechanism import Mechanism
from privft.training.examples import IGNORED, Example, UnitExamples

VOCABULARY = 61


def tiny_llama(*, dtype: torch.dtype = torch.float64, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype)


def tiny_bert(*, dtype: torch.dtype = torch.float64) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    return BertModel(config, add_pooling_layer=False).to(dtype)


def text_units(lengths: list[list[int]], *, seed: int = 0) -> list[UnitExamples]:
    """One unit an inner list, one record a length; odd ones with their loss on a suffix."""
    rng = np.random.default_rng(seed)
    units = []
    for place, unit in enumerate(lengths):
        examples = []
        for length in unit:
            ids = tuple(int(x) for x in rng.integers(3, VOCABULARY, length))
            skipped = 1 + (length // 3 if length % 2 else 0)
            labels = (IGNORED,) * skipped + ids[skipped:]
            examples.append(Example(input_ids=ids, labels=labels))
        units.append(UnitExamples(key=f"u{place}", examples=tuple(examples)))
    return units


def label_units(lengths: list[list[int]], *, labels: int, seed: int = 0) -> list[UnitExamples]:
    rng = np.random.default_rng(seed)
    return [
        UnitExamples(
            key=f"u{place}",
            examples=tuple(
                Example(
                    input_ids=tuple(int(x) for x in rng.integers(3, VOCABULARY, length)),
                    labels=(int(rng.integers(labels)),),
                )
                for length in unit
            ),
        )
        for place, unit in enumerate(lengths)
    ]


def float64_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama takes its norms in float32 whatever the type; let it take them in the type at hand, so
    that in float64 two ways to one gradient agree to a billionth."""

    def forward(norm: LlamaRMSNorm, hidden: torch.Tensor) -> torch.Tensor:
        variance = hidden.pow(2).mean(-1, keepdim=True)
        return norm.weight * (hidden * torch.rsqrt(variance + norm.variance_epsilon))

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)


class ListUnits:
    """Units that lie in memory."""

    def __init__(self, units: list[UnitExamples]) -> None:
        self.units = units

    def __len__(self) -> int:
        return len(self.units)

    def examples(self, positions: NDArray[np.int64]) -> list[UnitExamples]:
        return [self.units[i] for i in positions]


def mechanism(**changes: object) -> Mechanism:
    values: dict[str, object] = {
        "unit": "subject",
        "sampling_probability": 0.5,
        "noise_multiplier": 1.0,
        "clip_norm": 0.1,
        "steps": 6,
        "expected_batch_size": 4.0,
    }
    return Mechanism(**(values | changes))  # type: ignore[arg-type]
