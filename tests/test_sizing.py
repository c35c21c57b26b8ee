"""Memory and time are reckoned from the sizes that a model really has."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from privft import modelshape, sizing
from privft.modelshape import shape_of
from privft.sizing import AdapterShape, Microbatch, Setting, memory
from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.losses import BLOCK_TOKENS, trained_parameters

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
CONFIGS = [
    LLAMA,
    LLAMA | {"tie_word_embeddings": False},
    LLAMA | {"head_dim": 16, "attention_bias": True, "mlp_bias": True},
    LLAMA | {"model_type": "mistral"},
    LLAMA | {"model_type": "qwen2"},
    BERT,
]
BATCH = Microbatch(units=4, rows=4, length=16, labels=15)


def built(config: dict[str, Any]) -> Any:
    """What transformers makes of it, without the memory."""
    settings = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        if config["model_type"] == "bert":
            return transformers.BertModel(settings, add_pooling_layer=False)
        return transformers.AutoModelForCausalLM.from_config(settings)


def setting(config: dict[str, Any] = LLAMA, **changes: Any) -> Setting:
    shape = shape_of(config)
    assert shape is not None
    values: dict[str, Any] = {"adapter": AdapterShape(rank=4), "dtype": "float32"}
    return Setting(shape=shape, **(values | changes))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_numbers_of_a_model_are_those_that_transformers_builds(config: dict[str, Any]) -> None:
    shape = shape_of(config)
    assert shape is not None
    assert shape.numbers == sum(p.numel() for p in built(config).parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_the_matrices_of_a_layer_are_those_that_transformers_builds(config: dict[str, Any]) -> None:
    shape = shape_of(config)
    assert shape is not None
    layer = next(
        module for module in built(config).modules() if isinstance(module, torch.nn.ModuleList)
    )[0]
    theirs = {
        name: (module.out_features, module.in_features, module.bias is not None)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {m.name: (m.outputs, m.inputs, m.bias) for m in shape.matrices} == theirs


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterShape(rank=4),
        AdapterShape(rank=2, targets=("q_proj", "mlp.down_proj")),
        AdapterShape(rank=3, layers=(1,)),
        AdapterShape(rank=3, freeze_a=True, layers=(0, 2)),
    ],
)
def test_the_trained_numbers_are_those_that_peft_trains(adapter: AdapterShape) -> None:
    torch.manual_seed(0)
    base = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**LLAMA))
    model = attach_language_model(
        base,
        LoraSpec(
            r=adapter.rank,
            target_modules=adapter.targets or "all-linear",
            layers_to_transform=adapter.layers,
            freeze_a=adapter.freeze_a,
        ),
        seed=0,
        pad_id=0,
    )
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert setting(adapter=adapter).trained_numbers == trained


def test_the_trained_numbers_of_a_classifier_include_its_head() -> None:
    base = transformers.BertModel(
        transformers.AutoConfig.for_model(**BERT), add_pooling_layer=False
    )
    model = attach_classifier(base, LoraSpec(r=4), seed=0, pad_id=0, labels=7)
    trained = sum(p.numel() for p in trained_parameters(model).values())
    assert setting(BERT, classes=7).trained_numbers == trained


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", None])
def test_an_architecture_that_is_not_known_is_not_guessed(kind: str | None) -> None:
    assert shape_of(LLAMA | {"model_type": kind}) is None


def test_blocks_of_logits_are_as_large_as_the_loss_takes_them() -> None:
    assert sizing.BLOCK_LABELS == BLOCK_TOKENS


@pytest.mark.parametrize("ranks", [2, 4, 16])
def test_the_share_of_a_rank_in_the_weights_falls_as_one_over_the_ranks(ranks: int) -> None:
    whole, part = memory(setting(), BATCH), memory(setting(ranks=ranks, sharded=True), BATCH)
    assert part.weights == pytest.approx(whole.weights / ranks, abs=1)
    assert part.trained == whole.trained


def test_weights_take_what_their_type_takes() -> None:
    whole = memory(setting(), BATCH).weights
    assert whole == 4 * setting().shape.numbers
    assert memory(setting(dtype="bfloat16"), BATCH).weights == whole / 2
    eight = memory(setting(dtype="bfloat16", quantised="8-bit"), BATCH).weights
    four = memory(setting(dtype="bfloat16", quantised="4-bit"), BATCH).weights
    assert four < eight < whole / 2


@pytest.mark.parametrize("change", [{"units": 8, "rows": 8}, {"length": 32}, {"labels": 30}])
def test_a_larger_microbatch_takes_no_less(change: dict[str, int]) -> None:
    larger = replace(BATCH, **change)
    assert memory(setting(), larger).peak >= memory(setting(), BATCH).peak


def test_layers_below_the_first_trained_one_keep_nothing() -> None:
    upper = setting(adapter=AdapterShape(rank=4, layers=(2,)))
    assert [bool(sizing.kept_by_layer(upper, n)) for n in range(3)] == [False, False, True]
    assert memory(upper, BATCH).step < memory(setting(), BATCH).step


def test_the_wire_carries_the_adapter_and_no_more_unless_the_base_is_shared_out() -> None:
    count = setting().trained_numbers
    assert sizing.wire_bytes(setting(), passes=9) == 0
    two, four = setting(ranks=2), setting(ranks=4)
    assert sizing.wire_bytes(two, passes=9) == 8 * count + 32
    assert sizing.wire_bytes(four, passes=9) == 12 * count + 96
    added = sizing.wire_bytes(replace(four, sharded=True), passes=9) - (12 * count + 96)
    layers = 4 * four.shape.layers * four.shape.layer_numbers
    assert added == 9 * 3 * (2 * layers + 4 * four.shape.embeddings) // 4


def test_the_fullest_microbatches_keep_to_the_budget_and_never_split_a_unit() -> None:
    found = sizing.largest([8, 512], token_budget=256, records_per_unit=2, sampled_units=20)
    assert [(b.units, b.rows, b.length) for b in found] == [
        (20, 20, 8),
        (16, 32, 8),
        (1, 1, 512),
        (1, 2, 512),
    ]


def test_the_pure_modules_load_nothing_heavy() -> None:
    for module in (modelshape, sizing):
        assert "torch" not in vars(module)


def test_the_table_of_large_models_in_the_readme_is_the_reckoned_one() -> None:
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.spec_from_file_location("planner", root / "benchmarks" / "planner.py")
    assert spec is not None
    assert spec.loader is not None
    planner = importlib.util.module_from_spec(spec)
    sys.modules["planner"] = planner  # dataclasses look their module up
    try:
        spec.loader.exec_module(planner)
        assert planner.devices_table() in (root / "README.md").read_text(encoding="utf-8")
    finally:
        del sys.modules["planner"]
