"""From a config to a model that can be trained or scored, and from records to its examples."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from privft.audit.canaries import Shape, Vocabulary, vocabulary_of
from privft.config import AdaptiveClippingConfig, RunConfig
from privft.errors import InputError, PlanError, UsageError
from privft.plan import ModelFacts
from privft.training import adapter, basemodel, modelfolder
from privft.training.examples import UnitExamples, encode_unit
from privft.training.kernels import use_reproducible_kernels
from privft.training.loop import Performance
from privft.training.losses import TrainedModel
from privft.training.optimiser import Optimisation
from privft.training.quantised import quantise
from privft.training.scoring import losses_of_both
from privft.vault.fields import FieldMap
from privft.vault.intake import BadRow, parse_record, stream_rows
from privft.vault.manifest import Caps
from privft.vault.store import Vault


def model_facts(found: basemodel.BaseModel) -> ModelFacts:
    """What a plan binds of a model."""
    return ModelFacts(
        name=found.name,
        weights_sha256=found.weights_sha256,
        tokenizer_sha256=found.tokenizer_sha256,
    )


def find_base(config: RunConfig, *, relative_to: Path) -> basemodel.BaseModel:
    """The base model that the config names, checked and hashed."""
    model = config.model
    return basemodel.find(
        model.name_or_path,
        gguf_file=model.gguf_file,
        weights_sha256=model.weights_sha256,
        relative_to=relative_to,
    )


def check_base(found: basemodel.BaseModel, planned: ModelFacts) -> None:
    """Raise `PlanError` when the model is not the one that was planned."""
    if model_facts(found) != planned:
        raise PlanError(
            f"the model {found.name} changed since the plan was made",
            hint="make the plan again: privft plan",
        )


def choose_device(wanted: str) -> torch.device:
    """The device of `performance.device`."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("performance.device is cuda, and there is none", hint="auto, or cpu")
    usable = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if usable else "cpu")


def set_up(config: RunConfig) -> None:
    """Kernels and number of threads of this process, as the run has them."""
    use_reproducible_kernels()
    if config.performance.threads is not None:
        torch.set_num_threads(config.performance.threads)


def lora_spec(config: RunConfig) -> adapter.LoraSpec | None:
    """The adapter of a config; None where a head alone is trained."""
    lora = config.lora
    if lora is None:
        return None
    return adapter.LoraSpec(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        target_modules=lora.target_modules,
        layers_to_transform=lora.layers_to_transform,
        use_rslora=lora.use_rslora,
        lora_dropout=lora.lora_dropout,
        modules_to_save=lora.modules_to_save,
        freeze_a=lora.freeze_a,
    )


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """Tokenizer and settings of one run; makes models and examples."""

    config: RunConfig
    base: basemodel.BaseModel
    tokenizer: Any

    @staticmethod
    def of(config: RunConfig, base: basemodel.BaseModel) -> Workbench:
        """Load the tokenizer, and set this process up."""
        set_up(config)
        return Workbench(config=config, base=base, tokenizer=basemodel.load_tokenizer(base))

    @property
    def pad_id(self) -> int:
        """What rows are filled up with; no label ever stands there."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    def base_module(self) -> torch.nn.Module:
        """The base model, frozen, on the device of the config."""
        wanted = self.config.model
        module = basemodel.load_model(self.base, task=self.config.task, dtype=wanted.dtype)
        if wanted.quantization is not None:
            quantise(module, wanted.quantization)
        return module.to(choose_device(self.config.performance.device))

    def fresh(self) -> TrainedModel:
        """The base model with a new adapter or head."""
        return self._attached(self.base_module())

    def _attached(self, module: torch.nn.Module) -> TrainedModel:
        config, seed, spec = self.config, self.config.training.seed, lora_spec(self.config)
        if config.task == "causal-lm":
            assert spec is not None
            model = adapter.attach_language_model(module, spec, seed=seed, pad_id=self.pad_id)
            model.check_against_own_loss(self._probe())
            return model
        classifier = adapter.attach_classifier(
            module, spec, seed=seed, pad_id=self.pad_id, labels=len(config.labels or ())
        )
        return classifier.to(choose_device(config.performance.device))

    def before_and_after(self, files: Mapping[str, bytes]) -> tuple[TrainedModel, TrainedModel]:
        """The model with a new adapter or head, and with the trained one; the base is read once,
        and both consist of the same tensors where they do not differ."""
        module = self.base_module()
        tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        after = adapter.load_adapter(copy.deepcopy(module, tensors), files, pad_id=self.pad_id)
        after.module.to(choose_device(self.config.performance.device))
        return self._attached(module), after

    def _probe(self) -> Any:
        text = {"unit": "probe", "records": [{"text": "The quick brown fox jumps over a dog."}]}
        return self.encode(text).examples[0]

    def encode(self, unit: Mapping[str, Any]) -> UnitExamples:
        """A unit's records as token ids."""
        return encode_unit(
            unit,
            self.tokenizer,
            task=self.config.task,
            max_length=self.config.max_length,
            labels=self.config.labels or (),
            instruction=self.config.instruction,
        )

    def losses_of_both(
        self, before: TrainedModel, after: TrainedModel, units: Sequence[Mapping[str, Any]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The losses of units as the two models have them, [U] and [U]."""
        encoded = [self.encode(unit) for unit in units]
        budget = self.config.performance.tokens_per_microbatch
        return losses_of_both(before, after, encoded, token_budget=budget)

    def vocabulary(self) -> Vocabulary:
        """Words of the public tokenizer, for canaries."""
        return vocabulary_of(self.tokenizer, labels=self.config.labels or ())

    def optimisation(self) -> Optimisation:
        """The optimiser's settings."""
        training = self.config.training
        adaptive = self.config.privacy.adaptive or AdaptiveClippingConfig()
        return Optimisation(
            optim=training.optim,
            learning_rate=training.learning_rate,
            head_learning_rate=training.head_learning_rate,
            lr_scheduler_type=training.lr_scheduler_type,
            warmup_ratio=training.warmup_ratio,
            weight_decay=training.weight_decay,
            adam_beta1=training.adam_beta1,
            adam_beta2=training.adam_beta2,
            adam_epsilon=training.adam_epsilon,
            adam_noise_correction=training.adam_noise_correction,
            adam_noise_floor=training.adam_noise_floor,
            momentum=training.momentum,
            clip_quantile=adaptive.target_quantile,
            clip_learning_rate=adaptive.learning_rate,
        )

    def performance(self) -> Performance:
        """Speed and memory."""
        performance = self.config.performance
        return Performance(
            token_budget=performance.tokens_per_microbatch,
            gradient_checkpointing=self.config.training.gradient_checkpointing,
            checkpoint_every=performance.checkpoint_every,
        )


def write_merged(
    config: RunConfig, base: basemodel.BaseModel, files: Mapping[str, bytes], folder: Path
) -> None:
    """The base model with the adapter added, and its tokenizer, into an empty folder.

    Errors: `UsageError` where the base was quantised: the sum would not be what was audited.
    """
    if config.model.quantization is not None:
        raise UsageError(
            f"the adapter was trained on a {config.model.quantization} base, and a merged model "
            "would be another one than was audited",
            hint="release without --merge",
        )
    module = basemodel.load_model(base, task=config.task, dtype=config.model.dtype)
    adapter.save_merged(module, files, folder)
    for path in modelfolder.tokenizer_files(base.folder):
        shutil.copyfile(path, folder / path.name)


def shape_of(vault: Vault) -> Shape:
    """The form of the vault's records, as canaries are shaped."""
    return vault.fields.form


class VaultUnits:
    """The units of a vault that may be trained on, opened and tokenised as they are sampled."""

    def __init__(self, vault: Vault, workbench: Workbench) -> None:
        self._vault = vault
        self._workbench = workbench
        self._numbers = np.flatnonzero(~vault.held_out_mask())

    def __len__(self) -> int:
        return len(self._numbers)

    def examples(self, positions: NDArray[np.int64]) -> list[UnitExamples]:
        """The units at these positions; in memory only."""
        numbers = [int(self._numbers[position]) for position in positions]
        return [self._workbench.encode(unit.to_dict()) for unit in self._vault.read_many(numbers)]


def evaluation_file(config: RunConfig, *, relative_to: Path) -> Path | None:
    """The file with public text, when the config names one; raises `UsageError` when it is not
    there.  Asked for when a run is planned, so that nobody learns it after training."""
    if config.evaluation.public_file is None:
        return None
    path = relative_to / config.evaluation.public_file
    if not path.is_file():
        raise UsageError(
            f"there is no evaluation file {path}",
            hint="evaluation.public_file is relative to the config's folder (--config-folder)",
        )
    return path


def public_units(path: Path, fields: FieldMap, *, most: int) -> list[dict[str, Any]]:
    """Public or generated records from a file, each as a unit of its own."""
    units: list[dict[str, Any]] = []
    for row in stream_rows(path):
        if len(units) == most:
            break
        try:
            parsed = parse_record(
                row, fields, Caps(), by_subject=False, made_id=f"public-{row.line}"
            )
        except BadRow as error:
            raise InputError(f"{path.name} line {row.line}: {error}") from None
        units.append({"unit": f"public-{row.line}", "records": [parsed.record]})
    if not units:
        raise InputError(f"the evaluation file {path} holds no records")
    return units


def labelled_texts(
    config: RunConfig, fields: FieldMap, *, relative_to: Path, count: int
) -> list[tuple[str, str | None]]:
    """`count` public texts with their labels, behind those that usefulness is measured on.

    Empty where the config names no public file, or the file has too few of them: mislabelled
    canaries then have made-up words.
    """
    path = evaluation_file(config, relative_to=relative_to)
    if path is None or config.task != "sequence-classification":
        return []
    known, skipped = config.labels or (), config.evaluation.max_records
    units = public_units(path, fields, most=skipped + count)[skipped:]
    records = [unit["records"][0] for unit in units]
    texts: list[tuple[str, str | None]] = [
        (str(r["text"]), str(r["label"])) for r in records if r["label"] in known
    ]
    return texts if len(texts) == count else []
