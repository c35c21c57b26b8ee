"""What a run will take of a machine: memory a device and time a step, for `privft plan`.

`privft.sizing` has the formula; here it gets its numbers: sizes from the model's `config.json`, the
rest from the run's config, and the pace of this machine from `training.rehearsal`, which takes some
seconds.  No record is opened and no weight is read.  Lengths of records are private and thus
unknown, so both numbers are upper bounds: memory over every length up to `max_length`, time for
records that all have `max_length` tokens.  A run that does not fit this machine's memory is not
rehearsed on it, and has no time.  They are for people: nothing that is signed or charged depends on
them, and a plan is the same for any number of ranks.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import torch

from privft.config import PrivacyConfig, RunConfig
from privft.modelshape import shape_of
from privft.sizing import (
    REMEMBERED_BYTES,
    AdapterShape,
    Memory,
    Setting,
    largest,
    memory,
    wire_bytes,
)
from privft.stages.modelling import choose_device, lora_spec, set_up
from privft.training.basemodel import DTYPES, BaseModel
from privft.training.examples import bucket_of, buckets_upto
from privft.training.kernels import widens
from privft.training.rehearsal import Pace, Rehearsal

_SPREAD = 4.0
"""Standard deviations above its mean that the size of a Poisson sample is taken at."""


@dataclass(frozen=True, kw_only=True)
class Takes:
    """What a run takes at most, on each of its devices; bytes that each sends to the others.

    pace, seconds_a_step: None where this machine has too little memory for the run.
    widened: bfloat16 is multiplied as float32 on this machine.
    """

    memory: Memory
    pace: Pace | None
    seconds_a_step: float | None
    wire_bytes_a_step: int
    widened: bool


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What a run of `steps` steps takes on `ranks` devices like this machine's; `takes` is None
    where the formula does not know the architecture or an option."""

    ranks: int
    steps: int
    takes: Takes | None

    def to_dict(self) -> dict[str, Any]:
        """For `privft plan --json`; bytes and seconds."""
        if self.takes is None:
            return {"ranks": self.ranks, "known": False}
        memory, step = self.takes.memory, self.takes.seconds_a_step
        terms = {
            name: getattr(memory, name) for name in ("weights", "trained", "optimiser", "features")
        }
        return {
            "ranks": self.ranks,
            "known": True,
            "memory_bytes_at_most": memory.peak,
            "memory_terms": {**terms, "sums": memory.sums, **memory.moments},
            "seconds_a_step_at_most": step,
            "seconds_at_most": None if step is None else step * self.steps,
            "wire_bytes_a_step": self.takes.wire_bytes_a_step,
            "pace": None if self.takes.pace is None else vars(self.takes.pace),
            "bfloat16_as_float32": self.takes.widened,
        }

    def rows(self) -> list[list[str]]:
        """For a person: what, and how much."""
        if self.takes is None:
            return [["takes", "not known: the formula does not cover this architecture or option"]]
        memory, step = self.takes.memory, self.takes.seconds_a_step
        apart = "" if self.ranks == 1 else ", and what the wire takes"
        if self.takes.widened:
            apart += (
                "; this CPU multiplies bfloat16 as float32, so model.dtype: float32 takes more "
                "memory and less time here"
            )
        devices = "" if self.ranks == 1 else f" on each of {self.ranks} devices"
        found = [
            [
                "memory",
                f"at most {_size(memory.peak)}{devices} beside the process itself: model "
                f"{_size(memory.weights)}, adapter and optimiser "
                f"{_size(memory.trained + memory.optimiser)}, a step {_size(memory.step)}",
            ],
            [
                "time",
                "not known: this machine has too little memory for it to be tried here"
                if step is None
                else f"{_duration(step)} a step and {_duration(step * self.steps)} in all at this "
                f"machine's pace just now, if every record has max_length tokens{apart}",
            ],
        ]
        if self.ranks > 1:
            sent = _size(self.takes.wire_bytes_a_step)
            found.append(["wire", f"each rank sends {sent} a step to the others"])
        return found


def _size(count: int) -> str:
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.2g} s"


def setting_of(config: RunConfig, model_config: dict[str, Any], *, ranks: int) -> Setting | None:
    """What memory and time depend on; None for an architecture that the formula does not know, and
    for layers that are trained whole, which it does not cover."""
    causal = config.task == "causal-lm"
    shape = shape_of(model_config, head=causal)
    lora, adapter = config.lora, None
    if shape is None or (lora is not None and lora.modules_to_save):
        return None
    if lora is not None:
        targets = lora.target_modules
        adapter = AdapterShape(
            rank=lora.r,
            targets=None if targets == "all-linear" else tuple(targets),
            layers=lora.layers_to_transform,
            freeze_a=lora.freeze_a,
            dropout=lora.lora_dropout > 0,
        )
    return Setting(
        shape=shape,
        adapter=adapter,
        dtype=config.model.dtype,
        classes=len(config.labels or ()),
        adam=config.training.optim == "adamw_torch",
        ranks=ranks,
        sharded=config.ranks.shard_base,
        quantised=config.model.quantization,
        checkpointing=config.training.gradient_checkpointing,
        discrete=config.privacy.secure_noise,
        remembered=0 if lora is not None else _records(config.privacy),
    )


def _records(privacy: PrivacyConfig) -> int:
    """How many different records may take part in a run: a subject has any number of them."""
    return privacy.declared_units if privacy.unit == "record" else REMEMBERED_BYTES


def _steps(config: RunConfig) -> int:
    """All steps of a run: those of every repetition of a randomly stopped sweep."""
    if config.selection is None or config.selection.stopping.most is None:
        return config.privacy.max_steps
    return config.selection.stopping.most * config.privacy.max_steps


def foresee(config: RunConfig, base: BaseModel, *, ranks: int = 1) -> Foreseen:
    """Memory and time of a run; rehearses it on this machine for some seconds."""
    facts = json.loads((base.folder / "config.json").read_text(encoding="utf-8"))
    setting = setting_of(config, facts, ranks=ranks)
    if setting is None:
        return Foreseen(ranks=ranks, steps=_steps(config), takes=None)
    budget = config.performance.tokens_per_microbatch
    privacy = config.privacy
    expected = privacy.expected_batch_size
    sampled = int(expected + _SPREAD * expected**0.5) + 1
    fullest = largest(
        buckets_upto(config.max_length),
        token_budget=budget,
        records_per_unit=privacy.records_per_unit,
        sampled_units=sampled,
    )
    found = max((memory(setting, batch) for batch in fullest), key=lambda each: each.peak)
    longest = largest(
        [bucket_of(config.max_length)],
        token_budget=budget,
        records_per_unit=privacy.records_per_unit,
        sampled_units=sampled,
    )[-1]
    share = expected / longest.units / ranks  # of such microbatches, on each rank
    device = choose_device(config.performance.device)
    pace = seconds = None
    if found.peak < _memory_of(device):
        set_up(config)
        pace = Rehearsal(
            base=base,
            setting=setting,
            spec=lora_spec(config),
            batch=longest,
            token_budget=budget,
            device=device,
        ).pace()
        seconds = pace.seconds(setting, tokens=share * longest.tokens)
    return Foreseen(
        ranks=ranks,
        steps=_steps(config),
        takes=Takes(
            memory=found,
            pace=pace,
            seconds_a_step=seconds,
            wire_bytes_a_step=wire_bytes(setting, passes=math.ceil(share)),
            widened=device.type == "cpu" and widens(DTYPES[setting.dtype]),
        ),
    )


def _memory_of(device: torch.device) -> int:
    """Bytes that a device has, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
