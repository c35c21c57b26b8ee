"""The whole path with what can be trained beside plain LoRA: options reach the released files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stages.world import RUN, World, base, released, unchecked
from tests.test_path import PLAIN_PEFT, models_of, predicate, rows_of


@pytest.fixture
def world(tmp_path: Path) -> World:
    return base().copied(tmp_path / "world")


def trained_with(world: World, lora: str, training: str = "") -> str:
    """The id of a settled run of the tiny causal model with these settings."""
    text = RUN.format(price="noise_multiplier: 0.8", steps=3)
    config = world.folder / "variant.yaml"
    config.write_text(
        text.replace("lora: {r: 2, lora_alpha: 4}", f"lora: {lora}").replace(
            "learning_rate: 2.0e-2", f"learning_rate: 2.0e-2{training}"
        )
    )
    world.privft("plan", config)
    with unchecked():
        said = world.privft("train", world.folder / "variant.plan", "--json").json
    return str(said["run"])


@PLAIN_PEFT
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_dropout_a_trained_output_embedding_and_activations_computed_again(world: World) -> None:
    released()
    lora = "{r: 2, lora_alpha: 4, lora_dropout: 0.1, modules_to_save: [lm_head]}"
    run = trained_with(world, lora, ", gradient_checkpointing: true")
    folder = world.released(run)
    world.privft("verify", folder)
    checks = {check["check"]: check for check in predicate(folder)["selfcheck"]}
    assert checks["every trained parameter gets a gradient"]["detail"].startswith(
        "29 of 29 tensors"
    )
    assert checks["companions in a microbatch"]["detail"].endswith("in 0 of 9 cases")
    assert checks["Opacus finds the same gradients"]["ok"]
    assert "document no such promise" in (folder / "report.html").read_text()

    ours, untrained = models_of(world, run)
    llama = world.folder / "llama"
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(llama)
    ours.module.eval()
    untrained.module.eval()
    for row in rows_of(world.folder / "public.jsonl", 3):
        ids = tokenizer(row["note"], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            theirs = plain(input_ids=ids).logits
            assert torch.equal(theirs, ours.module(input_ids=ids).logits)
            assert not torch.allclose(theirs, untrained.module(input_ids=ids).logits, atol=1e-4)


def test_with_a_frozen_only_b_moves(world: World) -> None:
    released()
    run = trained_with(world, "{r: 2, lora_alpha: 4, freeze_a: true}")
    folder = world.released(run)
    world.privft("verify", folder)
    _, untrained = models_of(world, run)
    start = {
        name.replace(".default.", "."): parameter
        for name, parameter in untrained.module.named_parameters()
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    halves = {half: [n for n in tensors if f".lora_{half}." in n] for half in "AB"}
    assert len(halves["A"]) == len(halves["B"]) == 14
    assert all(torch.equal(tensors[name], start[name]) for name in halves["A"])
    assert not any(torch.equal(tensors[name], start[name]) for name in halves["B"])
    stated = predicate(folder)["model"]["trained_parameters"]
    assert stated == sum(tensors[name].numel() for name in halves["B"])


def test_what_cannot_be_trained_whole_is_refused_before_anything_is_reserved(world: World) -> None:
    with pytest.raises(
        AssertionError, match="a LlamaRMSNorm, and privft has gradients of units for"
    ):
        trained_with(world, "{r: 2, lora_alpha: 4, modules_to_save: [input_layernorm]}")
    assert world.runs() == []
