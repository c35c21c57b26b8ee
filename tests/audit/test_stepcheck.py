"""The checks before the first step pass on a sound model, find each fault, and change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from privft.audit import stepcheck
from privft.audit.canaries import Vocabulary
from privft.audit.selfcheck import Check
from privft.training import dropout, loop, products
from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.clipping import COUNT, UnitGradients, unit_norms
from privft.training.dropout import dropout_layers
from privft.training.examples import IGNORED, Example, UnitExamples
from privft.training.losses import TrainedModel, trained_parameters
from tests.training.tiny import VOCABULARY, mechanism, tiny_bert, tiny_llama

WORDS = tuple(f"w{number}" for number in range(3, VOCABULARY))
LABELS = ("yes", "no", "maybe")
INFLUENCE, COVERAGE, COMPANIONS, ENGINES = range(4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def language_model() -> TrainedModel:
    return attach_language_model(tiny_llama(dtype=torch.float32), LoraSpec(r=2), seed=5, pad_id=0)


EVERYTHING = {"r": 2, "lora_dropout": 0.3, "modules_to_save": ["lm_head", "embed_tokens"]}


def everything() -> TrainedModel:
    return attach_language_model(
        tiny_llama(dtype=torch.float32), LoraSpec(**EVERYTHING), seed=5, pad_id=0
    )


def classifier(spec: LoraSpec | None = None) -> TrainedModel:
    bert = tiny_bert(dtype=torch.float32)
    return attach_classifier(bert, spec, seed=5, pad_id=0, labels=len(LABELS))


def encode(unit: Mapping[str, Any]) -> UnitExamples:
    """A word is a token; the label, if there is one, is its place among `LABELS`."""
    examples = []
    for record in unit["records"]:
        ids = tuple(int(word[1:]) for word in record["text"].split())
        labelled = "label" in record
        labels = (LABELS.index(record["label"]),) if labelled else (IGNORED, *ids[1:])
        examples.append(Example(input_ids=ids, labels=labels))
    return UnitExamples(key=unit["unit"], examples=tuple(examples))


def checked(
    model: TrainedModel, clip_norm: float = 0.1, *, recompute: bool = False, **more: Any
) -> list[Check]:
    return stepcheck.check_step(
        model,
        encode,
        Vocabulary(words=WORDS, labels=LABELS),
        mechanism=mechanism(clip_norm=clip_norm, **more),
        task=model.task,  # type: ignore[arg-type]
        max_length=32,
        gradient_checkpointing=recompute,
    )


MODELS: dict[str, Callable[[], TrainedModel]] = {
    "language model": language_model,
    "classifier": lambda: classifier(LoraSpec(r=2)),
    "bare head": classifier,
    "dropout and layers trained whole": everything,
}


SAME_BITS = (" in 0 of 8 cases", " in 0 of 9 cases")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("clip_norm", [1e-3, 0.1, 1e3], ids=["clipped", "some", "unclipped"])
def test_a_sound_model_passes_whatever_is_clipped(kind: str, clip_norm: float) -> None:
    found = checked(MODELS[kind](), clip_norm)
    assert [check.check for check in found if not check.ok] == []
    assert len(found) == 4


@pytest.mark.parametrize("kind", MODELS)
def test_a_sound_model_passes_when_activations_are_computed_again(kind: str) -> None:
    model = MODELS[kind]()
    found = checked(model, recompute=True)
    assert ("with dropout on" in found[INFLUENCE].detail) is bool(dropout_layers(model.module))
    assert [check.check for check in found if not check.ok] == []
    assert found[COMPANIONS].detail.endswith(SAME_BITS)


@pytest.mark.parametrize("kind", MODELS)
def test_whole_numbers_pass_too_and_companions_change_no_bit(kind: str) -> None:
    found = checked(MODELS[kind](), noise="discrete-gaussian")
    assert [check.check for check in found if not check.ok] == []
    assert found[COMPANIONS].detail.endswith(SAME_BITS)


@pytest.mark.parametrize("noise", ["gaussian", "discrete-gaussian"])
def test_a_unit_moves_sum_and_count_by_no_more_than_they_may(noise: str) -> None:
    more = {"clipping": "adaptive", "count_noise": 0.6, "noise": noise}
    for clip_norm in (1e-3, 0.1, 1e3):
        check = checked(language_model(), clip_norm, **more)[INFLUENCE]
        assert check.ok
        assert check.detail.endswith("counts, with the count of unclipped units")


def test_a_count_that_a_unit_moves_by_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncentred(*args: Any, **more: Any) -> dict[str, torch.Tensor]:
        sums = loop.clipped_sum(*args, **more)
        sums[COUNT] = sums[COUNT] + 4 * len(args[1])
        return sums

    monkeypatch.setattr(stepcheck, "clipped_sum", uncentred)
    assert not checked(language_model(), clipping="adaptive", count_noise=0.6)[INFLUENCE].ok


@pytest.mark.parametrize("kind", MODELS)
def test_the_model_is_afterwards_what_it_was_before(kind: str) -> None:
    model, untouched = MODELS[kind](), MODELS[kind]()
    checked(model)
    after, before = trained_parameters(model), trained_parameters(untouched)
    assert list(after) == list(before)
    for name, parameter in after.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")
    assert not any(layer._forward_hooks for layer in model.module.modules())


def test_a_sum_that_is_not_clipped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def unclipped(gradients_of: UnitGradients, units: Any, **_: Any) -> dict[str, torch.Tensor]:
        return loop.clipped_sum(gradients_of, units, clip_norm=1e9, token_budget=512)

    monkeypatch.setattr(stepcheck, "clipped_sum", unclipped)
    check = checked(language_model(), 1e-3)[INFLUENCE]
    assert not check.ok
    assert "of 4 units moved the sum by at most" in check.detail


def test_units_that_share_one_clip_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum that is clipped as a whole moves by more than its share when a unit goes."""

    def clipped_together(gradients_of: UnitGradients, units: Any, **_: Any) -> Any:
        total = loop.clipped_sum(gradients_of, units, clip_norm=1e9, token_budget=512)
        size = stepcheck._size(total)
        return {name: value * (4 * 1e-3 / size) for name, value in total.items()}

    monkeypatch.setattr(stepcheck, "clipped_sum", clipped_together)
    assert not checked(language_model(), 1e-3)[INFLUENCE].ok


def test_no_gradient_at_all_is_found() -> None:
    def silent(unit: Mapping[str, Any]) -> UnitExamples:
        ids = tuple(int(word[1:]) for word in unit["records"][0]["text"].split())
        return UnitExamples(key="u", examples=(Example(input_ids=ids, labels=(IGNORED, *ids[1:])),))

    model = language_model()
    with torch.no_grad():
        model.module.get_output_embeddings().weight.zero_()
    found = stepcheck.check_step(
        model,
        silent,
        Vocabulary(words=WORDS),
        mechanism=mechanism(),
        task="causal-lm",
        max_length=32,
    )
    assert not found[INFLUENCE].ok
    assert not found[COVERAGE].ok


def test_a_layer_that_adds_nothing_to_the_model_is_found() -> None:
    model = language_model()
    names = list(trained_parameters(model))
    layer = model.module.get_submodule(names[0].split(".lora_")[0])
    layer.register_forward_hook(
        lambda module, inputs, output: module.base_layer(*inputs) + 0 * output
    )
    check = checked(model)[COVERAGE]
    assert not check.ok
    assert check.detail.startswith(f"{len(names) - 2} of {len(names)} tensors")


def test_a_loss_that_mixes_companions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over the batch: a unit's gradient shrinks as companions come."""
    model = language_model()
    own = model.record_losses
    gradients_of = UnitGradients(model)
    alone = gradients_of([encode({"unit": "u", "records": [{"text": "w3 w4 w5 w6 w7 w8"}]})])
    size = float(unit_norms(alone))

    def mixed(examples: Any, length: int) -> torch.Tensor:
        return own(examples, length) / len(examples)

    assert checked(model, size)[COMPANIONS].ok
    monkeypatch.setattr(model, "record_losses", mixed)
    assert not checked(model, size)[COMPANIONS].ok


@pytest.mark.parametrize("kind", MODELS)
def test_a_gradient_that_misses_an_output_is_found_by_the_other_engine(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else can see it: it is clipped, covers all parameters and depends on nobody."""
    whole = products._weight_gradients

    def short(inputs: torch.Tensor, gradient: torch.Tensor, records: Any) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[:, ..., :1] = 0  # one output of each layer
        return whole(inputs, gradient, records)

    monkeypatch.setattr(products, "_weight_gradients", short)
    found = checked(MODELS[kind]())
    assert found[INFLUENCE].ok
    assert found[COMPANIONS].ok
    assert not found[ENGINES].ok


@pytest.mark.parametrize("spec", [{"r": 2}, EVERYTHING], ids=["lora", "everything"])
def test_the_engines_agree_in_bfloat16_too(spec: dict[str, Any]) -> None:
    base = tiny_llama(dtype=torch.bfloat16)
    model = attach_language_model(base, LoraSpec(**spec), seed=5, pad_id=0)
    assert checked(model)[ENGINES].ok


def test_masks_that_follow_the_row_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that sits in another row then has another gradient."""
    own = dropout.Masks.dropped

    def by_row(masks: dropout.Masks, layer: str, *, level: int, shape: Any) -> torch.Tensor:
        rows = own(masks, layer, level=level, shape=shape)
        return torch.stack([row.roll(place, 0) for place, row in enumerate(rows)])

    spec = LoraSpec(r=2, lora_dropout=0.3)
    base = tiny_llama(dtype=torch.float32)
    model = attach_language_model(base, spec, seed=5, pad_id=0)
    assert checked(model, 1e-3)[COMPANIONS].detail.rpartition(" in 0 of ")[2] in (
        "8 cases",
        "9 cases",
    )
    monkeypatch.setattr(dropout.Masks, "dropped", by_row)
    assert not checked(model, 1e-3)[COMPANIONS].ok
