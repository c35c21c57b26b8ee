"""Accounting events as the signed statement has them, and what is told of a choice among several.

They restate `budget.mechanism.Event` and `budget.selection.Selection` field by field, each kind
with exactly its own fields, so that what is signed is what the ledger has; and are turned back into
those values to be computed with.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from privft.report.values import Positive, Strict, Words


class GaussianEvent(Strict):
    """A Gaussian mechanism on all the data, `count` times."""

    kind: Literal["gaussian"]
    noise_multiplier: Positive
    count: Annotated[int, Field(ge=1)]


class PoissonGaussianEvent(Strict):
    """A Gaussian mechanism on a Poisson sample, `count` times."""

    kind: Literal["poisson-gaussian"]
    noise_multiplier: Positive
    sampling_probability: Annotated[float, Field(gt=0, lt=1)]
    count: Annotated[int, Field(ge=1)]


PlainEventFacts = Annotated[GaussianEvent | PoissonGaussianEvent, Field(discriminator="kind")]


class StoppedEvent(Strict):
    """The best of a random number of repetitions of `events`, at most `most`, mean before the cut
    (`budget.selection`)."""

    kind: Literal["random-stopping"]
    mean: Annotated[float, Field(ge=1)]
    most: Annotated[int, Field(ge=1)]
    events: Annotated[list[PlainEventFacts], Field(min_length=1, max_length=2)]


class PoissonStoppedEvent(StoppedEvent):
    """That number has a Poisson distribution."""

    distribution: Literal["poisson"]


class BinomialStoppedEvent(StoppedEvent):
    """That number has a truncated negative binomial distribution."""

    distribution: Literal["truncated-negative-binomial"]
    shape: Annotated[float, Field(ge=0, le=100)]


StoppedEventFacts = Annotated[
    PoissonStoppedEvent | BinomialStoppedEvent, Field(discriminator="distribution")
]
EventFacts = Annotated[
    GaussianEvent | PoissonGaussianEvent | StoppedEventFacts, Field(discriminator="kind")
]


class SelectionFacts(Strict):
    """Of a randomly stopped sweep: what was in the draw, and which of them was kept.

    The settings of what is kept are part of what the mechanism answers.  score: what the best was
    chosen by.  Scores, and how many repetitions counted, are told nowhere.
    """

    candidates: Annotated[list[Words], Field(min_length=1)]
    chosen: Words
    score: Literal["public", "held-out"]
