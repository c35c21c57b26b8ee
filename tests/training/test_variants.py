"""What can be trained beside plain LoRA, and how: the same exact gradients, blind to companions.

Layers trained whole (`modules_to_save`), dropout on, activations computed again, a bfloat16 base;
for a decoder with tied embeddings and for an encoder with a head.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from privft.errors import InputError
from privft.randomness import KeyedStreams
from privft.training.adapter import (
    LoraSpec,
    adapter_files,
    attach_classifier,
    attach_language_model,
    load_adapter,
    save_merged,
)
from privft.training.clipping import UnitGradients, clip_factors, unit_norms
from privft.training.dropout import Masks
from privft.training.loop import clipped_sum
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.opacus_engine import opacus_gradients
from privft.training.products import UnitProducts
from privft.training.scoring import unit_losses
from tests.training.test_clipping import apart, one_by_one, randomise
from tests.training.tiny import (
    VOCABULARY,
    float64_norms,
    label_units,
    text_units,
    tiny_bert,
    tiny_llama,
)

STREAMS = KeyedStreams(bytes(range(32)))
LENGTHS = [[5, 9, 3], [12], [21, 17], [12, 12], [2], [33]]
SAVED: dict[str, list[str]] = {
    "output embedding": ["lm_head"],
    "input embedding": ["embed_tokens"],
    "both embeddings": ["lm_head", "embed_tokens"],
    "one linear layer": ["1.mlp.down_proj"],
}
SAVED_BERT: dict[str, list[str]] = {
    "norms": ["LayerNorm"],
    "words": ["word_embeddings"],
    "linear with bias": ["1.intermediate.dense"],
    "all of these": ["LayerNorm", "word_embeddings", "intermediate.dense"],
}


def llama(
    saved: list[str] | None = None, *, rate: float = 0.0, b: float = 0.2, **more: object
) -> TrainedModel:
    spec = LoraSpec(r=2, modules_to_save=saved, lora_dropout=rate)
    base = tiny_llama(**({"dtype": torch.float64} | more))  # type: ignore[arg-type]
    model = attach_language_model(base, spec, seed=1, pad_id=0)
    randomise(model, b=b)
    return model


def bert(saved: list[str] | None = None, *, rate: float = 0.0, **more: object) -> TrainedModel:
    spec = LoraSpec(r=2, modules_to_save=saved, lora_dropout=rate)
    base = tiny_bert(**({"dtype": torch.float64} | more))  # type: ignore[arg-type]
    model = attach_classifier(base, spec, seed=1, pad_id=0, labels=5)
    if base.dtype == torch.float64:
        model.head.double()
    randomise(model)
    return model


CASES: dict[str, tuple[Callable[[], TrainedModel], str]] = {
    **{f"llama, {name}": (lambda s=saved: llama(s), "text") for name, saved in SAVED.items()},
    "llama untied, output embedding": (lambda: llama(["lm_head"], tied=False), "text"),
    **{f"bert, {name}": (lambda s=saved: bert(s), "label") for name, saved in SAVED_BERT.items()},
}


def units_for(kind: str, lengths: list[list[int]]) -> list:  # type: ignore[type-arg]
    return text_units(lengths) if kind == "text" else label_units(lengths, labels=5)


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("case", CASES)
def test_layers_trained_whole_have_the_gradients_of_one_by_one_backward(
    case: str, recompute: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    float64_norms(monkeypatch)
    make, kind = CASES[case]
    model, units = make(), units_for(kind, LENGTHS)
    names = [name for name in trained_parameters(model) if ".modules_to_save." in name]
    assert names
    expected = {n: torch.zeros_like(p) for n, p in trained_parameters(model).items()}
    clip_norm, clipped = 0.5, 0
    for unit in units:
        gradient = one_by_one(model, unit)
        assert all(bool(gradient[name].any()) for name in names)
        norm = torch.sqrt(sum((g**2).sum() for g in gradient.values()))
        clipped += bool(norm > clip_norm)
        for name, value in gradient.items():
            expected[name] += value * min(1.0, clip_norm / float(norm))
    assert clipped > 0, "the case must exercise clipping"
    gradients_of = UnitGradients(model, recompute=recompute)
    got = clipped_sum(gradients_of, units, clip_norm=clip_norm, token_budget=64)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_opacus_finds_the_same_gradients_of_layers_trained_whole(case: str) -> None:
    make, kind = CASES[case]
    model, units = make(), units_for(kind, [[12], [11, 9], [10]])
    ours, theirs = UnitGradients(model)(units), opacus_gradients(model, units)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("make", [llama, bert])
def test_opacus_finds_the_same_gradients_with_the_same_masks(
    make: Callable[..., TrainedModel],
) -> None:
    model, units = make(rate=0.4), units_for("text" if make is llama else "label", [[12], [11, 9]])
    ours = UnitGradients(model).at(STREAMS, 3)(units)
    theirs = opacus_gradients(model, units, masks=Masks(units, streams=STREAMS, step=3))
    undropped = opacus_gradients(model, units)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-8)
    assert any(not torch.allclose(theirs[n], undropped[n], rtol=0.1) for n in theirs)


# -- blind to companions, at several threads -------------------------------------------------------

OPTIONS: dict[str, tuple[list[str] | None, float, bool]] = {
    "plain": (None, 0.0, False),
    "dropout, computed again": (None, 0.3, True),
}
SAME_BUCKET = [[60], [59, 64], [62], [64, 57, 60], [61]]
COMPANIES = [[0, 1], [3, 0], [2, 4, 0, 1, 3], [0, 0, 0, 0], [4, 3, 2, 1, 0]]


@pytest.fixture(params=[2], ids=lambda count: f"{count} threads")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def wide_llama(dtype: torch.dtype) -> LlamaForCausalLM:
    """Wide and long enough that torch deals a batch, but not always a single record, to threads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).to(dtype)


def wide_bert(dtype: torch.dtype) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=128,
    )
    return BertModel(config, add_pooling_layer=False).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("option", [*OPTIONS, "trained whole"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_whole_models_unit_gradients_have_the_same_bits_in_every_company(
    family: str, option: str, dtype: torch.dtype, threads: int
) -> None:
    whole = ["lm_head", "embed_tokens"] if family == "llama" else SAVED_BERT["all of these"]
    saved, rate, recompute = OPTIONS.get(option, (whole, 0.3, True))
    spec = LoraSpec(r=4, modules_to_save=saved, lora_dropout=rate)
    if family == "llama":
        model: TrainedModel = attach_language_model(wide_llama(dtype), spec, seed=1, pad_id=0)
        units = text_units(SAME_BUCKET)
    else:
        model = attach_classifier(wide_bert(dtype), spec, seed=1, pad_id=0, labels=5)
        units = label_units(SAME_BUCKET, labels=5)
    randomise(model)
    assert len({unit.bucket for unit in units}) == 1
    gradients_of = UnitGradients(model, recompute=recompute).at(STREAMS, 7)
    alone = [gradients_of([unit]) for unit in units]
    factors = [clip_factors(unit_norms(gradient), 0.05) for gradient in alone]
    assert all(0 < float(factor) < 1 for factor in factors), "the case must exercise clipping"
    for company in COMPANIES:
        together = gradients_of([units[i] for i in company])
        clipped = clip_factors(unit_norms(together), 0.05)
        for row, i in enumerate(company):
            assert clipped[row] == factors[i][0]
            for name, gradient in together.items():
                assert torch.equal(gradient[row], alone[i][name][0]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("make", [llama, bert])
def test_computing_activations_again_changes_no_bit(
    make: Callable[..., TrainedModel], dtype: torch.dtype
) -> None:
    model = make(rate=0.3, dtype=dtype)
    units = units_for("text" if make is llama else "label", [[12], [11, 9], [10]])
    kept = UnitGradients(model).at(STREAMS, 0)(units)
    again = UnitGradients(model, recompute=True).at(STREAMS, 0)(units)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert not any("forward" in layer.__dict__ for layer in model.module.modules())


def test_activations_of_layers_are_not_kept_when_they_are_computed_again() -> None:
    def kept_bytes(recompute: bool) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        model = llama(dtype=torch.float32)
        units = text_units([[40]] * 8)
        loss = model.record_losses

        def watched(examples, length):  # type: ignore[no-untyped-def]
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return loss(examples, length)

        model.record_losses = watched  # type: ignore[method-assign]
        weights = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
        UnitGradients(model, recompute=recompute)(units)
        return sum(size for pointer, size in sizes.items() if pointer not in weights)

    assert kept_bytes(True) < kept_bytes(False) / 3


@pytest.mark.parametrize("saved", [None, ["lm_head", "embed_tokens"]], ids=["lora", "whole"])
def test_over_a_bfloat16_base_gradients_are_as_near_the_exact_ones_as_one_by_one_backward(
    saved: list[str] | None,
) -> None:
    """bfloat16 keeps 8 bits, so even torch's own backward of a unit alone and unpadded is off what
    float64 gives on the same weights by 0.5 to 1% of a gradient's length; ours by as much
    (measured: 0.7 to 1.9 times).  B is small, as in training: with a large one this model of random
    weights makes 5 to 200% of it, and which of two ways of rounding is worse is luck."""
    model = llama(saved, dtype=torch.bfloat16, b=0.006)
    assert {p.dtype for p in trained_parameters(model).values()} == {torch.float32}
    exact = llama(saved, dtype=torch.float64)
    exact.module.load_state_dict(model.module.state_dict())
    for unit in text_units(LENGTHS):
        wanted, torchs = one_by_one(exact, unit), one_by_one(model, unit)
        got = {name: of_units[0] for name, of_units in UnitGradients(model)([unit]).items()}
        off, allowed = apart(got, wanted), apart(torchs, wanted)
        assert 0 < off < 1.3 * allowed + 0.01 * apart({}, wanted)


# -- what leaves -----------------------------------------------------------------------------------


def quietly(call: Callable[[], PeftModel]) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft 0.21 on transformers 5, and on tied embeddings
        return call().eval()


@pytest.mark.parametrize("saved", [*SAVED.values()], ids=[*SAVED])
def test_plain_peft_loads_layers_that_were_trained_whole(saved: list[str], tmp_path: Path) -> None:
    trained = llama(saved, dtype=torch.float32, rate=0.2)
    files = adapter_files(trained, base_name="tiny")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert json.loads(files["adapter_config.json"])["modules_to_save"] == saved
    plain = quietly(
        lambda: PeftModel.from_pretrained(tiny_llama(dtype=torch.float32).eval(), tmp_path)
    )
    ids = torch.tensor([[5, 9, 13, 21, 4]])
    with torch.no_grad():
        expected = trained.module.eval()(input_ids=ids).logits
        assert torch.equal(plain(input_ids=ids).logits, expected)
        untrained = tiny_llama(dtype=torch.float32).eval()(input_ids=ids).logits
        assert not torch.allclose(expected, untrained, atol=1e-2)
    again = load_adapter(tiny_llama(dtype=torch.float32), files, pad_id=0)
    units = text_units(LENGTHS)
    assert (unit_losses(again, units) == unit_losses(trained, units)).all()
    assert adapter_files(again, base_name="tiny") == files


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"]], ids=str)
def test_a_merged_model_has_the_layers_that_were_trained_whole(
    saved: list[str], dtype: torch.dtype, tmp_path: Path
) -> None:
    trained = llama(saved, dtype=dtype)
    files = adapter_files(trained, base_name="tiny")
    save_merged(tiny_llama(dtype=dtype), files, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert {p.dtype for p in merged.parameters()} == {dtype}
    ids = torch.tensor([[5, 9, 13, 21, 4]])
    with torch.no_grad():
        expected = trained.module.eval()(input_ids=ids).logits
        apart = float((merged(input_ids=ids).logits - expected).norm() / expected.norm())
        assert apart < (1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (["classifier"], "names 'classifier', and the model has no such layer"),
        (["input_layernorm"], "names 'input_layernorm', a LlamaRMSNorm, and privft has gradients"),
        (["mlp"], "names 'mlp', a LlamaMLP, and privft has gradients"),
    ],
)
def test_layers_that_cannot_be_trained_whole_are_refused(saved: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        llama(saved)
    assert caught.value.hint


def test_adapters_on_the_output_embedding_are_refused() -> None:
    spec = LoraSpec(r=2, target_modules=["q_proj", "lm_head"])
    with pytest.raises(InputError, match="other than the output embedding's weight") as caught:
        attach_language_model(tiny_llama(tied=False), spec, seed=0, pad_id=0)
    assert "modules_to_save" in str(caught.value.hint)


def test_a_layer_that_sees_one_row_for_many_records_is_refused() -> None:
    model = bert(["position_embeddings"])
    units = label_units([[12], [11]], labels=5)
    with pytest.raises(InputError, match="a trained layer sees 1 rows for 2 records"):
        UnitGradients(model)(units)


def test_a_sum_over_positions_has_the_same_bits_beside_any_number() -> None:
    """Biases: torch splits a sum over rows by the size of the whole."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 256)
    inputs = torch.randn(6, 64, 8)
    scale = torch.randn(6, 64, 256)

    def bias_of(rows: list[int]) -> torch.Tensor:
        with UnitProducts(dict(layer.named_parameters()), [1] * len(rows)) as products:
            (layer(inputs[rows]) * scale[rows]).sum().backward()
        return products.gradients["bias"]

    alone = [bias_of([row])[0] for row in range(6)]
    for rows in itertools.permutations(range(6), 3):
        for place, row in enumerate(rows):
            assert torch.equal(bias_of(list(rows))[place], alone[row])
