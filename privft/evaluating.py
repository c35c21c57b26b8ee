"""What a run is measured by, and how the best of several is chosen by such a measure.

Public text is free: what is computed from a private model and public text is post-processing.  Text
of held-out units is private, so a figure on it is cut, noised and charged (`training.heldout`).
Both can be the score of a randomly stopped sweep (`budget.selection`), where the score of every
repetition is part of the mechanism that is charged.

A sweep file becomes a run's config with a `SelectionConfig` in it, so that one digest in plan,
ledger and report covers the candidates, the law of stopping, and the score.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from privft.budget.mechanism import Event
from privft.budget.selection import MOST, POISSON, TRUNCATED, Selection
from privft.strictyaml import Strict

SAME_FOR_ALL = frozenset(
    {
        "training.learning_rate",
        "training.head_learning_rate",
        "training.lr_scheduler_type",
        "training.warmup_ratio",
        "training.weight_decay",
        "training.adam_beta1",
        "training.adam_beta2",
        "training.adam_epsilon",
        "training.adam_noise_floor",
        "lora.lora_alpha",
        "lora.use_rslora",
    }
)
"""What candidates of a random stopping may differ in: settings that change neither the price, nor
the time or memory of a step, nor the shape or the first bits of what is trained.  Anything else
would show which candidate a repetition drew, in time or in the ledger's journal, and together with
the one that is kept that would say something about how many repetitions there were."""


class HeldOutConfig(Strict):
    """A score on the units that are set aside, let out with noise and charged (`training.heldout`).

    Base and trained model are measured alike: the loss of each, for a classifier the accuracy too.
    """

    noise_multiplier: Annotated[float, Field(ge=0.5, le=1e6)]
    """Standard deviation of each figure's noise over the most that one unit can move it."""
    loss_bound: Annotated[float, Field(gt=0, le=1000)]
    """Nats: a unit's loss is cut to the range from 0 to this before it is summed."""
    units: Annotated[int, Field(ge=1)]
    """How many units are set aside: a public number, declared beforehand, that sums are divided
    by; the true count stays hidden."""


class EvaluationConfig(Strict):
    """What usefulness is measured on: public records at no cost in privacy, or held-out units."""

    public_file: Annotated[str, Field(min_length=1)] | None = None
    """JSONL of the data set's own format, relative to the config's folder."""
    max_records: Annotated[int, Field(ge=1)] = 400
    held_out: HeldOutConfig | None = None


class Stopping(Strict):
    """How the number of repetitions is drawn: `selection.Selection`."""

    distribution: Literal["truncated-negative-binomial", "poisson"]
    mean: Annotated[float, Field(gt=1)]
    shape: Annotated[float, Field(ge=0, le=100)] | None = None
    most: Annotated[int, Field(ge=2, le=MOST)] | None = None
    """So many repetitions are always trained, and no more than these count, at a small price: only
    so is time fixed.  Without it a sweep has a price and cannot be run."""

    @model_validator(mode="after")
    def _shaped(self) -> Stopping:
        if (self.shape is None) is (self.distribution == TRUNCATED):
            raise ValueError(f"expected shape with {TRUNCATED}, and none with {POISSON}")
        if self.most is not None and self.most < self.mean:
            raise ValueError(f"expected most of at least the mean {self.mean:g}, got {self.most}")
        return self


def label_of(changes: Mapping[str, Any]) -> str:
    """A candidate in words: what it changes, setting by setting."""
    return ", ".join(f"{name} {value}" for name, value in changes.items())


class SelectionConfig(Strict):
    """A randomly stopped sweep, but for its base, which is the config around it."""

    vary: Annotated[dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]], Field(min_length=1)]
    """Dotted setting -> values; every combination is a candidate, drawn with equal chances."""
    stopping: Stopping
    score: HeldOutConfig | Literal["public"]
    """What the best is chosen by: the loss on held-out units, noised and charged in every
    repetition, or that on evaluation.public_file, which is free."""

    @model_validator(mode="after")
    def _alike(self) -> SelectionConfig:
        different = sorted(set(self.vary) - SAME_FOR_ALL)
        if different:
            raise ValueError(
                f"expected candidates that cost, take and look the same, and {different[0]} varies "
                f"more: random stopping may vary {', '.join(sorted(SAME_FOR_ALL))}"
            )
        return self

    def labels(self) -> list[str]:
        """Each candidate in words, in a fixed order."""
        return [
            label_of(dict(zip(self.vary, values, strict=True)))
            for values in itertools.product(*self.vary.values())
        ]

    @property
    def held_out(self) -> HeldOutConfig | None:
        """The noised score on held-out units, where it is one."""
        return self.score if isinstance(self.score, HeldOutConfig) else None

    def check_beside(self, evaluation: EvaluationConfig) -> None:
        """Raise `ValueError` unless the score can be had, and nothing else is let out."""
        if evaluation.held_out is not None:
            raise ValueError(
                "expected no evaluation.held_out, because a randomly stopped sweep has a score of "
                "its own and lets out no other"
            )
        if self.score == "public" and evaluation.public_file is None:
            raise ValueError("expected evaluation.public_file, because the score is on public text")

    def event(self, repetition: Event) -> Selection:
        """The one event of random stopping, whose repetitions train by `repetition`."""
        held_out = self.held_out
        scored = () if held_out is None else (Event(noise_multiplier=held_out.noise_multiplier),)
        return Selection(
            events=(repetition, *scored),
            mean=self.stopping.mean,
            shape=self.stopping.shape,
            most=self.stopping.most,
        )
