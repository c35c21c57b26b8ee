"""How long a step takes: a few layers of the model are trained on this machine, and timed.

Layers are alike, so the time of a step is a straight line in how many there are.  Models of one
and of a few layers, of the real sizes and with made-up weights, do steps of privft's own loop on
made-up units; straight lines are drawn through what they take (`Pace`):

    a step = (tokens of the step / tokens of the rehearsal)
                 * (fixed + frozen layers * below + other layers * layer)
             + trained numbers * number

    layer     the slope over layers with an adapter, forward and backward
    below     the slope over layers below the first with an adapter, forward alone
    fixed     what is left of one layer's model: embeddings, last norm, logits and their loss
    number    a step on an empty sample, a trained number: journal's digest, noise, optimiser

No option needs a formula of its own (dropout, checkpointing, a quantised base, noise on a grid):
what is rehearsed is what is run.  Kept short, so that a plan does not wait: at most about
`_OPERATIONS` floating-point operations in the longest step; a shorter record of the same width
stands for one that is longer, which leaves out that attention grows with the square of the length.
The result is what the machine gives at the moment: where it is busy, so is the rehearsal.  What is
on the wire between ranks is not in it.

How well the line holds is what `benchmarks/planner.py` measures.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams
from privft.sizing import Microbatch, Setting
from privft.training import adapter, basemodel
from privft.training.examples import IGNORED, Example, UnitExamples, bucket_of
from privft.training.loop import Performance, train
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.optimiser import Optimisation
from privft.training.quantised import quantise

_FEW = 3  # layers of the larger model
_STEPS = 4  # of which the first does not count
_TOKENS = 64, 1024  # of a rehearsal, at least and at most
_OPERATIONS = {"cpu": 4e11, "cuda": 4e13}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of the parts of a step, `tokens` in a microbatch; see the module's docstring."""

    tokens: int
    fixed: float
    below: float
    layer: float
    number: float

    def seconds(self, setting: Setting, *, tokens: float) -> float:
        """A step on `tokens` tokens of all units together."""
        frozen = min(setting.first_trained, setting.shape.layers)
        trained = setting.shape.layers - frozen
        passes = tokens / self.tokens
        return (
            passes * (self.fixed + frozen * self.below + trained * self.layer)
            + setting.trained_numbers * self.number
        )


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """What is rehearsed: the run's own settings, as far as time depends on them.

    setting: for sizes.  batch: the microbatch that is foreseen.
    """

    base: basemodel.BaseModel
    setting: Setting
    spec: adapter.LoraSpec | None
    batch: Microbatch
    token_budget: int
    device: torch.device

    def pace(self) -> Pace:
        """Rehearse; seconds, of processors that do nothing else meanwhile."""
        layers, frozen = self.setting.shape.layers, self.setting.first_trained
        few = min(_FEW, layers)
        batch = _shortened(self.batch, self._operations(few), self.device)
        one, number = self._measured(1, lowest=0, batch=batch)

        def slope(lowest: int) -> float:
            if few == 1:
                return one
            more = self._measured(few, lowest=lowest, batch=batch)[0]
            return max(0.0, (more - one) / (few - 1))

        layer = slope(0) if frozen < layers else 0.0
        below = slope(few - 1) if frozen else 0.0
        return Pace(
            tokens=batch.tokens,
            fixed=max(0.0, one - (layer if frozen < layers else below)),
            below=below,
            layer=layer,
            number=number,
        )

    def _operations(self, layers: int) -> float:
        """Floating-point operations a token, by the products alone."""
        shape = self.setting.shape
        head = 0 if self.setting.classes else shape.vocabulary * shape.hidden
        return 4.0 * (layers * shape.layer_numbers + head)

    def _measured(self, layers: int, *, lowest: int, batch: Microbatch) -> tuple[float, float]:
        """Seconds of a microbatch in a model whose layers from `lowest` on have an adapter, and
        of the rest of a step, a trained number."""
        model = self._model(layers, lowest)
        numbers = sum(p.numel() for p in trained_parameters(model).values())
        rest = self._step_seconds(model, None)
        whole = self._step_seconds(model, batch)
        return whole - rest, rest / numbers

    def _model(self, layers: int, lowest: int) -> TrainedModel:
        setting, causal = self.setting, not self.setting.classes
        base = basemodel.made_up(
            self.base,
            task="causal-lm" if causal else "sequence-classification",
            dtype=setting.dtype,
            layers=layers,
        )
        if setting.quantised is not None:
            quantise(base, setting.quantised)
        base.to(self.device)
        adapted = range(lowest, layers)
        spec = self.spec and replace(self.spec, layers_to_transform=tuple(adapted))
        if causal:
            assert spec is not None
            return adapter.attach_language_model(base, spec, seed=0, pad_id=0)
        return adapter.attach_classifier(base, spec, seed=0, pad_id=0, labels=setting.classes).to(
            self.device
        )

    def _step_seconds(self, model: TrainedModel, batch: Microbatch | None) -> float:
        moments: list[float] = []

        def note() -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            moments.append(time.perf_counter())

        train(
            model,
            units=_MadeUp(self.setting, batch),
            canaries=[],
            mechanism=Mechanism(
                unit="record",
                sampling_probability=1.0,
                noise_multiplier=1.0,
                clip_norm=1.0,
                steps=_STEPS,
                expected_batch_size=1.0,
                noise="discrete-gaussian" if self.setting.discrete else "gaussian",
            ),
            max_records_per_unit=self.batch.rows,
            optimisation=Optimisation(
                optim="adamw_torch" if self.setting.adam else "sgd", learning_rate=1e-3
            ),
            performance=Performance(
                token_budget=self.token_budget,
                gradient_checkpointing=self.setting.checkpointing,
                checkpoint_every=_STEPS,
            ),
            streams=KeyedStreams(bytes(32)),
            context={},
            journal=lambda step, digest: None,
            save=lambda state: None,
            tell=lambda report: note(),
        )
        return statistics.median(b - a for a, b in itertools.pairwise(moments))


class _MadeUp:
    """Units that fill a microbatch, with a label wherever one may be; new ones in each step, since
    a head remembers what it has seen."""

    def __init__(self, setting: Setting, batch: Microbatch | None) -> None:
        self._setting, self._batch = setting, batch
        self._rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return 0 if self._batch is None else self._batch.units

    def examples(self, positions: NDArray[np.int64]) -> list[UnitExamples]:
        batch = self._batch
        if batch is None:
            return []
        records = range(batch.rows // batch.units)
        return [
            UnitExamples(key=f"{n}", examples=tuple(self._example(batch.length) for _ in records))
            for n in positions
        ]

    def _example(self, length: int) -> Example:
        ids = tuple(self._rng.integers(self._setting.shape.vocabulary, size=length).tolist())
        labels = (0,) if self._setting.classes else (IGNORED, *ids[1:])
        return Example(input_ids=ids, labels=labels)


def _shortened(batch: Microbatch, operations: float, device: torch.device) -> Microbatch:
    """As much of a microbatch as may be rehearsed: fewer units, and then shorter records."""
    least, most = _TOKENS
    tokens = min(most, max(least, int(_OPERATIONS[device.type] / operations)))
    records = batch.rows // batch.units
    units = max(1, min(batch.units, tokens // (records * batch.length)))
    length = min(batch.length, bucket_of(max(2, tokens // (units * records))))
    return Microbatch(units=units, rows=units * records, length=length, labels=length - 1)
