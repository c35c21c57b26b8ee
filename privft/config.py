"""RunConfig: one YAML file that says what a run is to do.

Keys are named as in peft (`lora:`), TRL and transformers' TrainingArguments (`training:`), so that
what people know keeps its meaning.  What is theirs but has no meaning here (`num_train_epochs`,
`per_device_train_batch_size`, `packing`, ...) is refused with a word on what to write instead.

    task: causal-lm                          # or sequence-classification
    dataset: notes-2026                      # a vault of this workspace
    model: {name_or_path: "builtin:smollm2-135m-instruct", dtype: bfloat16}
    max_length: 64
    lora: {r: 4, lora_alpha: 8, target_modules: all-linear}    # null trains a head only
    privacy:
      unit: subject                          # whose data one guarantee protects
      declared_units: 3000                   # a public number, never the live count
      target_epsilon: 3.0                    # or noise_multiplier, not both
      max_grad_norm: 1.0
      expected_batch_size: 96
      max_steps: 20
      max_records_per_unit: 4
    training: {learning_rate: 5e-3, lr_scheduler_type: constant}
    evaluation:
      public_file: public.jsonl              # free: nothing private is read
      held_out: {noise_multiplier: 20, loss_bound: 8.0, units: 150}      # noised, and charged

Everything here is public: the file and its digest go into the plan and the report.  Nothing is
inferred from records, so label names, lengths and the number of units stand here in so many words
(DESIGN.md, invariant 8).  `performance:` and `ranks:` (`wire`) never change what a run costs.

Delta.  `delta: auto` (the default) is 1/declared_units**1.1, rounded down to one significant digit:
below 1/declared_units, the largest value that means anything.  3000 units give 1e-4.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from privft.budget.mechanism import Event, auto_delta
from privft.defaults import filled_in
from privft.errors import ConfigError
from privft.evaluating import EvaluationConfig, SelectionConfig
from privft.instead import INSTEAD
from privft.signing import canonical_json
from privft.strictyaml import Document, Strict, read_path, read_text, validate
from privft.wire import RanksConfig

BUILTIN_PREFIX = "builtin:"
BUILTIN_MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")
"""Models that come as Python packages and need no network (training.basemodel knows where)."""

_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_Share = Annotated[float, Field(ge=0, lt=1)]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class ModelConfig(Strict):
    """The pretrained model that the adapter sits on."""

    name_or_path: Annotated[str, Field(min_length=1)]
    """A folder with safetensors or GGUF weights and a tokenizer, or `builtin:NAME`."""
    weights_sha256: _Sha256 | None = None
    """If given, the weights must have this digest (`privft plan` prints it)."""
    gguf_file: Annotated[str, Field(pattern=r"^[^/\\]+\.gguf$")] | None = None
    """The GGUF file inside the folder, where the weights are quantised."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the frozen weights are held in; adapters are trained in float32."""
    quantization: Literal["8-bit", "4-bit"] | None = None
    """Hold the matrices of the frozen layers in so many bits a number (4-bit is NF4); products are
    in `dtype`.  Load the released adapter onto a base that is quantised alike."""
    pooling: Literal["mean"] = "mean"
    """Classification: how token states become one vector."""

    @model_validator(mode="after")
    def _known_builtin(self) -> ModelConfig:
        if self.builtin is not None:
            if self.builtin not in BUILTIN_MODELS:
                known = ", ".join(BUILTIN_PREFIX + name for name in BUILTIN_MODELS)
                raise ValueError(f"expected one of {known}, got {self.name_or_path!r}")
            if self.gguf_file is not None:
                raise ValueError("expected no gguf_file beside a builtin model")
        return self

    @property
    def builtin(self) -> str | None:
        """The name of the packaged model, or None for a folder."""
        if self.name_or_path.startswith(BUILTIN_PREFIX):
            return self.name_or_path.removeprefix(BUILTIN_PREFIX)
        return None


class LoraConfig(Strict):
    """peft's LoraConfig, as far as privft supports it; names and meanings are peft's."""

    r: Annotated[int, Field(ge=1, le=1024)] = 8
    lora_alpha: Annotated[int, Field(ge=1)] = 16
    target_modules: Literal["all-linear"] | _Words = "all-linear"
    use_rslora: bool = False
    lora_dropout: _Share = 0.0
    """The share of the numbers going into each adapter that a step leaves out.  Masks belong to the
    unit, so the guarantee is the same; drawing them costs time.  Scoring leaves nothing out."""
    modules_to_save: _Words | None = None
    """Layers that are trained whole beside the adapter: linear, embedding and layer-norm layers, by
    name or the end of it (`[lm_head]`).  A classification head is always trained, and not named.
    Each unit of a microbatch then holds a gradient of the layer's size, and noise grows with the
    square root of the numbers that are trained."""
    freeze_a: bool = False
    """Train B alone (FFA-LoRA, Sun et al. 2024): noise then enters the product only once."""
    layers_to_transform: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None
    ) = None


class AdaptiveClippingConfig(Strict):
    """How adaptive clipping follows the units' gradient norms (Andrew et al. 2021).

    The quantile and the rate are free; the count of unclipped units is part of each step's event.
    """

    target_quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The share of units that are to be left unclipped; the median is what the paper recommends."""
    learning_rate: _Positive = 0.2
    """How fast the clip norm goes there; it changes by a factor of at most about exp of this."""
    count_noise: _Positive | None = None
    """Standard deviation of the noise on the count of unclipped units.  Null means a twentieth of
    expected_batch_size, as the paper recommends, but at least twice the noise multiplier: then
    gradients get at most 3.3% more noise than with flat clipping at the same epsilon."""


class PrivacyConfig(Strict):
    """What the guarantee is about, and the numbers of the mechanism that gives it."""

    unit: Literal["record", "subject"]
    """Whose data one guarantee protects: one record, or all records of one person."""
    declared_units: Annotated[int, Field(ge=2)]
    """Units that sampling and delta are computed with: a public number, declared beforehand."""
    target_epsilon: Annotated[float, Field(gt=0, le=1000)] | None = None
    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)] | None = None
    delta: Literal["auto"] | Annotated[float, Field(gt=0, lt=1)] = "auto"
    max_grad_norm: _Positive = 1.0
    """The clip norm: the most that one unit may move the sum of gradients (with adaptive clipping:
    in the first step).  Where it is not given, 0.3 for causal-lm: LoRA's first gradients are
    short."""
    clipping: Literal["flat", "automatic", "per-layer", "adaptive"] = "flat"
    """How a unit's gradient is brought within it: scaled down where it is longer (flat, Abadi et
    al. 2016), always scaled to nearly that length (automatic: AUTO-S of Bu et al. 2023), each
    layer scaled down to its equal part (per-layer, McMahan et al. 2018), or as flat with a clip
    norm that follows a quantile of the norms (adaptive, Andrew et al. 2021).  The cost is the
    same; adaptive clipping puts a little more noise on gradients to pay for its count."""
    adaptive: AdaptiveClippingConfig | None = None
    """With clipping: adaptive; null means its defaults."""
    expected_batch_size: _Count
    """Units expected in a step; the sampling probability is this over declared_units."""
    max_steps: _Count
    secure_noise: bool = False
    """Whole numbers from the clipped gradient to the noisy sum, with discrete Gaussian noise: safe
    from attacks on the low bits of floating-point noise, and a few per cent slower."""
    max_records_per_unit: _Count | None = None
    """For a subject: at most so many of its records take part in a step."""

    @model_validator(mode="after")
    def _consistent(self) -> PrivacyConfig:
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("expected exactly one of target_epsilon and noise_multiplier")
        if self.expected_batch_size > self.declared_units:
            raise ValueError(
                f"expected expected_batch_size of at most declared_units {self.declared_units}, "
                f"got {self.expected_batch_size}"
            )
        if self.delta_value * self.declared_units >= 1:
            raise ValueError(
                f"expected delta below 1/declared_units = {1 / self.declared_units:.3g}, "
                f"got {self.delta_value:.3g}"
            )
        if self.adaptive is not None and self.clipping != "adaptive":
            raise ValueError(
                f"expected clipping: adaptive beside the section adaptive, got {self.clipping}"
            )
        if self.unit == "subject" and self.max_records_per_unit is None:
            raise ValueError("expected max_records_per_unit, because the unit is the subject")
        if self.unit == "record" and self.max_records_per_unit not in (None, 1):
            raise ValueError(
                "expected no max_records_per_unit, because the unit is the record, "
                f"got {self.max_records_per_unit}"
            )
        return self

    @property
    def sampling_probability(self) -> float:
        """The chance of each unit to be in a step."""
        return self.expected_batch_size / self.declared_units

    @property
    def delta_value(self) -> float:
        """Delta as a number; see the module's docstring for `auto`."""
        return auto_delta(self.declared_units) if self.delta == "auto" else self.delta

    @property
    def records_per_unit(self) -> int:
        """The cap on records of one unit in a step."""
        return self.max_records_per_unit or 1


class TrainingConfig(Strict):
    """The optimiser and the loss; names are TrainingArguments' and TRL's.

    What each option does under noise: the docstring of privft/training/optimiser.py.
    """

    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    """Adam with decoupled weight decay, whose steps do not depend on clip norm and noise where
    noise dominates; or SGD, whose learning rate then has to be chosen anew for each."""
    learning_rate: _Positive = 1e-3
    """Where it is not given, 5e-3 for causal-lm (`privft.defaults` has the reasons)."""
    head_learning_rate: _Positive | None = None
    """Classification: the head's own rate; null means `learning_rate`.  A head that starts from
    zero wants one far above that of the adapter: 0.02 where it is not given."""
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "constant"
    """A falling rate leaves less of the last steps' noise in the result, and of their signal."""
    warmup_ratio: _Share = 0.0
    """Share of steps over which the rate rises; the first is not zero, since every step is paid."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Pulls what noise has moved back towards the base model; free of privacy cost."""
    momentum: _Share = 0.0
    """With sgd: averages the noise of about 1/(1 - momentum) steps, and multiplies the rate by as
    much.  Adam's own is adam_beta1."""
    adam_beta1: _Share = 0.9
    adam_beta2: _Share = 0.999
    adam_epsilon: _Positive = 1e-8
    adam_noise_correction: bool = False
    """Subtract the noise's known variance from Adam's second moment (DP-AdamBC, Tang et al. 2024).
    Off, because the evidence is mixed: better in that paper, worse with the decoupled weight decay
    that adamw_torch has in Chooi et al. 2025.  Wants a learning_rate of its own."""
    adam_noise_floor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The least that the corrected second moment may be, as a share of the noise's variance; rates
    grow by at most one over its root."""
    gradient_checkpointing: bool = False
    """Compute activations again for the backward instead of keeping them: the same bits for less
    memory and about a third more time."""
    completion_only_loss: Literal[True] = True
    """With prompt and completion, the loss is on the completion; with text, on all of it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Initialisation only; sampling and noise never depend on it."""

    @model_validator(mode="after")
    def _optimiser_fits(self) -> TrainingConfig:
        if self.momentum and self.optim != "sgd":
            raise ValueError(
                f"expected no momentum, because optim is {self.optim}: adam_beta1 is its momentum"
            )
        if self.adam_noise_correction and self.optim != "adamw_torch":
            raise ValueError(f"expected no adam_noise_correction, because optim is {self.optim}")
        return self


class PerformanceConfig(Strict):
    """Speed and memory; accounting never sees any of it."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    tokens_per_microbatch: Annotated[int, Field(ge=8)] = 2048
    threads: _Count | None = None
    """CPU threads; null leaves the choice to torch."""
    checkpoint_every: _Count = 10
    """Steps between sealed checkpoints."""


class AuditConfig(Strict):
    """The audit of the run; the policy may ask for more."""

    suite: Literal["quick", "standard", "strict"] = "quick"


class RunConfig(Strict):
    """A run, whole; the module's docstring shows the file."""

    name: _Name | None = None
    """A label for people; it goes into the report and the model card."""
    task: Literal["causal-lm", "sequence-classification"]
    dataset: _Name
    """The vault to train on, by its name in the workspace."""
    synthetic: bool = False
    """The records are made up; report and model card say so."""
    model: ModelConfig
    labels: (
        Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=2)] | None
    ) = None
    """Classification: all label names, in the order of the logits."""
    max_length: Annotated[int, Field(ge=8, le=65536)]
    """Tokens that a record is cut at."""
    instruction: Annotated[str, Field(min_length=1)] | None = None
    """With prompt and completion: ask for the completion by this request and the prompt, in the
    model's chat template; null goes on from the bare prompt.  The model card says how to ask."""
    lora: LoraConfig | None
    """The adapter; null trains a classification head alone."""
    privacy: PrivacyConfig
    training: TrainingConfig = TrainingConfig()
    performance: PerformanceConfig = PerformanceConfig()
    ranks: RanksConfig = RanksConfig()
    audit: AuditConfig = AuditConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    selection: SelectionConfig | None = None
    """The candidates of a randomly stopped sweep, of which one is kept; only a sweep file sets it
    (`privft.sweep`)."""

    @model_validator(mode="after")
    def _task_fits(self) -> RunConfig:
        if self.task == "sequence-classification":
            if self.labels is None:
                raise ValueError(
                    "expected labels, because the task is sequence-classification: label names "
                    "come from here, never from the records"
                )
            if len(set(self.labels)) != len(self.labels):
                raise ValueError("expected each label once")
            if self.instruction is not None:
                raise ValueError("expected no instruction, because a classifier is asked nothing")
        else:
            if self.labels is not None:
                raise ValueError("expected no labels, because the task is causal-lm")
            if self.lora is None:
                raise ValueError("expected lora, because the task is causal-lm: there is no head")
            if self.training.head_learning_rate is not None:
                raise ValueError(
                    "expected no training.head_learning_rate, because the task is causal-lm: "
                    "there is no head"
                )
        declared = self.privacy.declared_units
        scored = [self.evaluation.held_out]
        if self.selection is not None:
            self.selection.check_beside(self.evaluation)
            scored.append(self.selection.held_out)
        for held_out in scored:
            if held_out is not None and held_out.units >= declared:
                raise ValueError(
                    f"expected held-out units below declared_units {declared}, got {held_out.units}"
                )
        return self

    @property
    def held_out_figures(self) -> int:
        """How many figures on held-out units are let out: two for each measure, before and after
        training; 0 where the config asks for none."""
        if self.evaluation.held_out is None:
            return 0
        return 4 if self.task == "sequence-classification" else 2

    def score_events(self) -> tuple[Event, ...]:
        """What the score on held-out units is charged; nothing where there is none."""
        held_out, figures = self.evaluation.held_out, self.held_out_figures
        if held_out is None:
            return ()
        return (Event(noise_multiplier=held_out.noise_multiplier, count=figures),)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values with every default written out."""
        return self.model_dump(mode="json")

    @property
    def digest(self) -> str:
        """SHA-256 in hex over the canonical JSON (RFC 8785) of `to_dict`."""
        return hashlib.sha256(canonical_json(self.to_dict())).hexdigest()


def load_config(path: Path) -> RunConfig:
    """The config in a YAML file.  Errors: `ConfigError` with file, line, key and a hint."""
    config = _of(read_path(path))
    if config.selection is not None:
        raise ConfigError(
            f"{path.name}: selection is what a sweep file is turned into",
            hint="write a sweep file with charge: random-stopping, and this as its base",
        )
    return config


def parse_config(text: str, *, source: str = "config") -> RunConfig:
    """The config in a YAML text (JSON is YAML too).  Errors: as `load_config`."""
    return _of(read_text(text, source=source))


def _of(document: Document) -> RunConfig:
    full = replace(document, data=filled_in(document.data))
    return validate(RunConfig, full, instead=INSTEAD)


def json_schema() -> dict[str, Any]:
    """The JSON schema of the file, for editors (`# yaml-language-server: $schema=...`)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(),
    }
