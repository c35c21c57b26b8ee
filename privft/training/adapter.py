"""What is trained: LoRA through peft, whole layers, a head, or any of these; and how it leaves.

The one door to peft.  The released files are what peft itself writes, so that plain
`PeftModel.from_pretrained(base, folder)` loads it; a classifier's head goes beside it as
`head.safetensors` ("head.weight" [labels, hidden], "head.bias" [labels]).

Whole layers (`modules_to_save`) are trained as copies beside the originals, as peft does it:
linear, embedding and layer-norm layers.  Where the base ties its input and output embeddings,
the copy of one is trained on its own and the other stays what it was (peft's `ensure_weight_tying:
false`).

What is trained is float32 (float64 in tests) whatever the base's type; a copy's inputs and outputs
are cast there and back.  Loaded onto a bfloat16 base by plain peft, copies of layers are rounded to
it; onto a float32 base they are what was trained.  With B of LoRA at zero the first step moves only
B; `has_moved` is asserted before anything is released.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import Linear as PeftLinear
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load, save
from torch import nn

from privft.errors import InputError, IntegrityError
from privft.training.dropout import UnitDropout
from privft.training.losses import Classifier, LanguageModel, TrainedModel, trained_parameters
from privft.training.lowrank import Lora, Siblings, lora_linears
from privft.training.products import active, has_unit_gradients
from privft.training.quantised import QuantisedLinear


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """The LoRA settings that privft passes on, named as in peft.

    lora_dropout: the share of the numbers going into A that a step leaves out, by masks that belong
        to the unit (`dropout`).
    modules_to_save: names, or ends of names, of layers that are trained whole.
    freeze_a: train B only (FFA-LoRA, Sun et al. 2024): half the noise, and noise enters linearly.
    """

    r: int = 8
    lora_alpha: float = 16.0
    target_modules: str | Sequence[str] = "all-linear"
    layers_to_transform: Sequence[int] | None = None
    use_rslora: bool = False
    lora_dropout: float = 0.0
    modules_to_save: Sequence[str] | None = None
    freeze_a: bool = False


class _LoraLinear(PeftLinear):  # type: ignore[misc]
    """peft's layer, taken in one step where gradients of units are taken; see `lowrank`."""

    _name: str
    _family: Mapping[str, _Parts]  # this layer and those that are given the same input
    _siblings: Siblings

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output, of the type of `x`."""
        products = active()
        if products is None or not self._family[self._name].are_plain:
            whole: torch.Tensor = super().forward(x, *args, **kwargs)
            return whole

        def compute() -> Mapping[str, torch.Tensor]:
            plain = {name: parts for name, parts in self._family.items() if parts.are_plain}
            tensors = [parts.tensors for parts in plain.values()]
            outputs = lora_linears(products, x, tensors, self.scaling["default"])
            return dict(zip(plain, outputs, strict=True))

        return self._siblings.output(self._name, x, compute)


class _Parts(NamedTuple):
    """What a LoRA layer consists of.  Not the layer: it knows its family, and would be in a cycle,
    with its base's weights, until Python looks for cycles."""

    base: nn.Module
    dropouts: nn.ModuleDict
    a: nn.ModuleDict
    b: nn.ModuleDict

    @property
    def are_plain(self) -> bool:
        drops = not isinstance(self.dropouts["default"], nn.Identity)
        return not drops and not isinstance(self.base, QuantisedLinear)

    @property
    def tensors(self) -> Lora:
        base: Any = self.base
        a, b = (cast(torch.Tensor, each["default"].weight) for each in (self.a, self.b))
        return Lora(base.weight, base.bias, a, b)


_FAMILIES = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
)
"""Layers of one parent that are given the same input, as models of transformers name them."""


def _introduce(parent: nn.Module) -> None:
    """Tell the LoRA layers directly below `parent` who is of their family."""
    layers = {name: layer for name, layer in parent.named_children() if type(layer) is _LoraLinear}
    related = {name for names in _FAMILIES for name in names}
    for names in (*_FAMILIES, *((name,) for name in layers if name not in related)):
        family = {name: layers[name] for name in names if name in layers}
        parts = {
            name: _Parts(layer.get_base_layer(), layer.lora_dropout, layer.lora_A, layer.lora_B)
            for name, layer in family.items()
        }
        siblings = Siblings()
        for name, layer in family.items():
            layer._name, layer._family, layer._siblings = name, parts, siblings


def _wrapped(base: nn.Module, config: LoraConfig) -> nn.Module:
    """The base with peft's layers in it, dropout keyed and copies of layers in a wide type."""
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for names that it deprecates; nothing for a user to act on
        warnings.simplefilter("ignore", FutureWarning)
        # known and meant: see the module's docstring
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        wrapped: nn.Module = get_peft_model(base, config)
    for name, module in wrapped.named_modules():
        if type(module) is PeftLinear:
            module.__class__ = _LoraLinear
        elif isinstance(module, nn.ModuleDict) and name.endswith(".lora_dropout"):
            for key, layer in module.items():
                if isinstance(layer, nn.Dropout):
                    module[key] = UnitDropout(layer.p, layer=name.removesuffix(".lora_dropout"))
        elif isinstance(module, ModulesToSaveWrapper):
            _widen(module)
    for module in wrapped.modules():
        _introduce(module)
    return wrapped


def _widen(saved: ModulesToSaveWrapper) -> None:
    """Hold the trained copy of a layer in float32 where the base is narrower, casting around it."""
    narrow = saved.original_module.weight.dtype
    if narrow not in (torch.bfloat16, torch.float16):
        return
    saved.modules_to_save.float()
    saved.register_forward_pre_hook(
        lambda module, inputs: tuple(x.float() if x.is_floating_point() else x for x in inputs)
    )
    saved.register_forward_hook(lambda module, inputs, output: output.to(narrow))


def _check_saved(base: nn.Module, names: Sequence[str]) -> None:
    """Refuse `modules_to_save` that name nothing in the model, or what cannot be trained whole."""
    for wanted in names:
        found = [module for name, module in base.named_modules() if name.endswith(wanted)]
        if not found:
            raise InputError(
                f"lora.modules_to_save names {wanted!r}, and the model has no such layer",
                hint="a classification head is always trained and needs no naming",
            )
        odd = sorted({type(m).__name__ for m in found if not has_unit_gradients(m)})
        if odd:
            raise InputError(
                f"lora.modules_to_save names {wanted!r}, a {odd[0]}, and privft has gradients of "
                "units for linear, embedding and layer-norm layers only",
                hint="name single layers of these kinds, or reach the layers of a block by "
                "lora.target_modules",
            )


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
    _check_saved(base, spec.modules_to_save or ())
    torch.manual_seed(seed)
    config = LoraConfig(
        r=spec.r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        modules_to_save=None if spec.modules_to_save is None else list(spec.modules_to_save),
        target_modules=_target_names(base, spec.target_modules),
        layers_to_transform=(
            None if spec.layers_to_transform is None else list(spec.layers_to_transform)
        ),
        use_rslora=spec.use_rslora,
        bias="none",
        task_type=task_type,
    )
    try:
        wrapped = _wrapped(base, config)
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
        # what is not trained is not saved, embeddings of another size included
        trained = get_peft_model_state_dict(body, save_embedding_layers=False)
        state = {k: v.cpu().contiguous() for k, v in trained.items()}
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
        body = _wrapped(base, LoraConfig(**settings))
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

    The sum is taken in the base's own type, by one thread, so that it has the same bits each time;
    layers that were trained whole take the place of their originals, in that type too.  A
    classifier's head is not part of it.  Raises `InputError` when there is no LoRA to add.
    """
    if "adapter_config.json" not in files:
        raise InputError("there is no LoRA adapter to merge: only a head was trained")
    dtype = next(base.parameters()).dtype
    loaded = load_adapter(base, files, pad_id=0)
    body = loaded.module.encoder if isinstance(loaded, Classifier) else loaded.module
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            # embeddings of which one was trained are tied no longer, and the saved config says so
            warnings.filterwarnings("ignore", message="Input and output embeddings are no longer")
            merged = body.merge_and_unload()  # type: ignore[operator, union-attr]
    finally:
        torch.set_num_threads(threads)
    merged.to(dtype).save_pretrained(folder, safe_serialization=True)
