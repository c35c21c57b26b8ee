"""What is trained: LoRA through peft, a head, or both; and how it leaves.

The one door to peft.  The released files are what peft itself writes, so that plain
`PeftModel.from_pretrained(base, folder)` loads it; a classifier's head goes beside it as
`head.safetensors` ("head.weight" [labels, hidden], "head.bias" [labels]).

Adapters are float32 (float64 in tests) whatever the base's type.  With B of LoRA at zero the
first step moves only B; `has_moved` is asserted before anything is released.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load, save
from torch import nn

from privft.errors import InputError, IntegrityError
from privft.training.losses import Classifier, LanguageModel, TrainedModel, trained_parameters


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The LoRA settings that privft passes on, named as in peft.

    freeze_a: train B only (FFA-LoRA, Sun et al. 2024): half the noise, and noise enters linearly.
    """

    r: int = 8
    lora_alpha: float = 16.0
    target_modules: str | Sequence[str] = "all-linear"
    layers_to_transform: Sequence[int] | None = None
    use_rslora: bool = False
    freeze_a: bool = False


def _quietly_wrapped(base: nn.Module, config: LoraConfig) -> nn.Module:
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for names that it deprecates; nothing for a user to act on
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: nn.Module = get_peft_model(base, config)
    return wrapped


def _target_names(base: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """`all-linear` spelled out, as peft refuses to combine it with `layers_to_transform`.

    Two components of each name, so that BERT's `output.dense` does not mean its pooler too, which
    is not there in training and would be there when the adapter is loaded elsewhere.
    """
    if targets != "all-linear":
        return [targets] if isinstance(targets, str) else list(targets)
    output = getattr(base, "get_output_embeddings", lambda: None)()
    return sorted(
        {
            ".".join(part for part in name.split(".")[-2:] if not part.isdigit())
            for name, module in base.named_modules()
            if isinstance(module, nn.Linear) and module is not output
        }
    )


def _wrap(base: nn.Module, spec: LoraSpec, *, seed: int, task_type: str) -> nn.Module:
    torch.manual_seed(seed)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=0.0,
        target_modules=_target_names(base, spec.target_modules),
        layers_to_transform=(
            None if spec.layers_to_transform is None else list(spec.layers_to_transform)
        ),
        use_rslora=spec.use_rslora,
        bias="none",
        task_type=task_type,
    )
    try:
        wrapped = _quietly_wrapped(base, config)
    except ValueError as error:
        raise InputError(
            "peft finds none of the lora.target_modules in this model",
            hint="name linear layers of the model (q_proj, v_proj, ...) or use all-linear",
        ) from error
    for name, parameter in wrapped.named_parameters():
        if spec.freeze_a and ".lora_A." in name:
            parameter.requires_grad_(False)
    return wrapped


def attach_language_model(
    base: nn.Module, spec: LoraSpec, *, seed: int, pad_id: int
) -> LanguageModel:
    """LoRA on a frozen causal LM; `seed` covers the start of A only."""
    base.requires_grad_(False)
    return LanguageModel(_wrap(base, spec, seed=seed, task_type="CAUSAL_LM"), pad_id=pad_id)


def attach_classifier(
    encoder: nn.Module, spec: LoraSpec | None, *, seed: int, pad_id: int, labels: int
) -> Classifier:
    """A head on a frozen encoder, with LoRA inside the encoder unless `spec` is None."""
    encoder.requires_grad_(False)
    hidden = int(encoder.config.hidden_size)  # type: ignore[arg-type, union-attr]
    body = (
        encoder if spec is None else _wrap(encoder, spec, seed=seed, task_type="FEATURE_EXTRACTION")
    )
    return Classifier(body, hidden=hidden, labels=labels, pad_id=pad_id)


def trained_snapshot(model: TrainedModel) -> dict[str, torch.Tensor]:
    """Copies of every trained parameter, to be compared by `has_moved`."""
    return {name: p.detach().clone() for name, p in trained_parameters(model).items()}


def has_moved(model: TrainedModel, before: dict[str, torch.Tensor]) -> bool:
    """Whether every trained tensor differs from `before`: an adapter that did not is broken."""
    now = trained_parameters(model)
    return set(now) == set(before) and all(not torch.equal(now[n], before[n]) for n in now)


def adapter_files(model: TrainedModel, *, base_name: str) -> dict[str, bytes]:
    """What was trained, as the files of a plain PEFT folder, by name, in memory only.

    base_name: how the base model is named in the files; never a path of this machine.
    """
    files: dict[str, bytes] = {}
    body = model.module.encoder if isinstance(model, Classifier) else model.module
    if isinstance(body, PeftModel):
        state = {k: v.cpu().contiguous() for k, v in get_peft_model_state_dict(body).items()}
        files["adapter_model.safetensors"] = save(state, metadata={"format": "pt"})
        settings = body.peft_config["default"].to_dict() | {
            "base_model_name_or_path": base_name,
            "inference_mode": True,
        }
        plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
        files["adapter_config.json"] = (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()
    if isinstance(model, Classifier):
        head = {f"head.{k}": v.cpu().contiguous() for k, v in model.head.state_dict().items()}
        files["head.safetensors"] = save(head, metadata={"format": "pt"})
    return files


def load_adapter(base: nn.Module, files: Mapping[str, bytes], *, pad_id: int) -> TrainedModel:
    """The trained model again, on a fresh base, from what `adapter_files` gave."""
    body = base
    if "adapter_config.json" in files:
        settings = json.loads(files["adapter_config.json"]) | {
            "base_model_name_or_path": None,
            "inference_mode": False,
        }
        body = _quietly_wrapped(base, LoraConfig(**settings))
        missing = set_peft_model_state_dict(body, load(files["adapter_model.safetensors"]))
        if missing.unexpected_keys:
            raise IntegrityError(
                f"the adapter holds {len(missing.unexpected_keys)} tensors that the "
                "base model lacks"
            )
    if "head.safetensors" not in files:
        return LanguageModel(body, pad_id=pad_id)
    tensors = load(files["head.safetensors"])
    labels, hidden = tensors["head.weight"].shape
    classifier = Classifier(body, hidden=hidden, labels=labels, pad_id=pad_id)
    classifier.head.load_state_dict({k.removeprefix("head."): v for k, v in tensors.items()})
    return classifier


def save_merged(base: nn.Module, files: Mapping[str, bytes], folder: Path) -> None:
    """Write the base model with the adapter added to its weights, as safetensors and config.

    The sum is taken in the base's own type, by one thread, so that it has the same bits each time.
    A classifier's head is not part of it.  Raises `InputError` when there is no LoRA to add.
    """
    if "adapter_config.json" not in files:
        raise InputError("there is no LoRA adapter to merge: only a head was trained")
    loaded = load_adapter(base, files, pad_id=0)
    body = loaded.module.encoder if isinstance(loaded, Classifier) else loaded.module
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        merged = body.merge_and_unload()  # type: ignore[operator, union-attr]
    finally:
        torch.set_num_threads(threads)
    merged.save_pretrained(folder, safe_serialization=True)
