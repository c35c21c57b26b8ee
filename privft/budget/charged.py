"""The parts of ledger entries that say what a run does and costs, field by field.

`entries` puts them into reservations and settlements.  Each restates a value of this room
(`mechanism`, `selection`, `priced`) for the strict reading of an entry, where nothing is guessed
and nothing is left out; `history` turns them into those values, which check themselves again.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Words = Annotated[str, Field(max_length=2000)]


class Body(BaseModel):
    """What all bodies share: strict types, no unknown field, no default."""

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True
    )


class PlainEventBody(Body):
    """A plain accounting event: see `mechanism.Event`."""

    kind: Literal["gaussian", "poisson-gaussian"]
    noise_multiplier: Annotated[float, Field(gt=0)]
    sampling_probability: Annotated[float, Field(gt=0, lt=1)] | None = None
    count: Annotated[int, Field(ge=1)]


class SelectionBody(Body):
    """The best of a random number of repetitions of `events`: see `selection.Selection`."""

    kind: Literal["random-stopping"]
    distribution: Literal["truncated-negative-binomial", "poisson"]
    shape: Annotated[float, Field(ge=0, le=100)] | None = None
    mean: Annotated[float, Field(ge=1)]
    most: Annotated[int, Field(ge=1)]
    events: Annotated[list[PlainEventBody], Field(min_length=1)]


EventBody = Annotated[PlainEventBody | SelectionBody, Field(discriminator="kind")]


class MechanismBody(Body):
    """What a run does: see `mechanism.Mechanism`."""

    unit: Literal["record", "subject"]
    adjacency: Literal["add-remove"]
    sampler: Literal["poisson"]
    sampling_probability: Annotated[float, Field(gt=0, le=1)]
    noise_multiplier: Annotated[float, Field(gt=0)]
    clip_norm: Annotated[float, Field(gt=0)]
    steps: Annotated[int, Field(ge=1)]
    expected_batch_size: Annotated[float, Field(gt=0)]
    normaliser: Literal["expected-batch-size"]
    noise: Literal["gaussian", "discrete-gaussian"]
    clipping: Literal["flat", "automatic", "per-layer", "adaptive"]
    count_noise: Annotated[float, Field(gt=0)] | None


class CostBody(Body):
    """What the accountants said when the run was planned: see `priced.Cost`."""

    epsilon_pld: Annotated[float, Field(ge=0)] | None
    epsilon_rdp: Annotated[float, Field(ge=0)] | None
    note: Words | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    adjacency: Literal["add-remove", "substitute"]
    best_order: float | None
    order_at_edge: bool
