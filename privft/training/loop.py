"""DP-SGD, read from top to bottom (Abadi et al. 2016, Algorithm 1, on units).

    for each of mechanism.steps:
        journal the digest of the state                 durable before any noise is drawn
        sample units                                     Poisson, each by its own coin
        per microbatch: unit gradients, clip, sum        float64; over all ranks, if there are more
        add noise once                                   noise_multiplier * clip_norm
        divide by the expected batch size                never by the realised one
        optimiser step

There is no branch on data: an empty sample goes the same way and yields noise alone.  With
adaptive clipping a noisy count of who was not clipped is part of the same step, and gives the next
clip norm.

`Mechanism` carries every number that the guarantee depends on; `Optimisation` carries what is
post-processing of noisy sums; `Performance` carries what may change speed and memory but not the
guarantee.  Secrets (`streams`) are call arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from privft.budget.mechanism import Clipping, Mechanism
from privft.randomness import KeyedStreams
from privft.training.adaptive import next_clip_norm, noisy_count
from privft.training.checkpoint import pack_state, restore_state, state_digest
from privft.training.clipping import COUNT, UnitGradients, add_clipped
from privft.training.discrete import Grid, add_rounded, grid_of
from privft.training.examples import UnitExamples, choose_records, microbatches
from privft.training.losses import TrainedModel
from privft.training.noise import add_noise
from privft.training.optimiser import Optimisation, make_optimizer, set_step
from privft.training.ranks import ALONE, Ranks
from privft.training.sampling import poisson_sample
from privft.training.sharding import is_sharded, passes


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What may change speed and memory, and nothing else.

    gradient_checkpointing: activations are computed again for the backward instead of kept.
    """

    token_budget: int = 4096
    gradient_checkpointing: bool = False
    checkpoint_every: int = 10


class Units(Protocol):
    """Where units come from; positions are stable during a run."""

    def __len__(self) -> int: ...

    def examples(self, positions: NDArray[np.int64]) -> list[UnitExamples]:
        """The units at these positions, opened and tokenised in memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What the loop tells after a step.  Numbers of units and tokens are private (they depend on
    who is in the data), and shown only where the policy says so; the clip norm of the next step is
    not (what it depends on is noisy)."""

    step: int
    sampled_units: int
    tokens: int
    clip_norm: float


def clipped_sum(
    gradients_of: UnitGradients,
    units: Sequence[UnitExamples],
    *,
    clip_norm: float,
    token_budget: int,
    clipping: Clipping = "flat",
    grid: Grid | None = None,
    passes: int = 0,
) -> dict[str, torch.Tensor]:
    """The sum over `units` of their clipped gradients: float64, by parameter name; with a `grid`
    in whole numbers of its steps, int64.  With adaptive clipping, under `COUNT`, also how many were
    not clipped less how many were, int64.

    passes: how often the model has to run at least, because other ranks wait for it (`sharding`).

    Guarantees: adding or removing one unit changes the sums by at most `clip_norm` in l2 norm (but
    for the rounding of the float64 sum; with a grid exactly), and the count by 1.
    """
    totals = {
        name: torch.zeros(
            parameter.shape,
            dtype=torch.float64 if grid is None else torch.int64,
            device=parameter.device,
        )
        for name, parameter in gradients_of.parameters.items()
    }
    if clipping == "adaptive":
        totals[COUNT] = torch.zeros((), dtype=torch.int64)
    gradients_of = gradients_of.between_steps()
    idle = passes
    for batch in microbatches(units, token_budget=token_budget):
        idle -= 1
        if grid is None:
            add_clipped(totals, gradients_of(batch), clip_norm, clipping)
        else:
            add_rounded(totals, gradients_of(batch), grid, clipping)
    for _ in range(idle):
        gradients_of.idle()
    return totals


def grid_for(mechanism: Mechanism, gradients_of: UnitGradients) -> Grid | None:
    """The grid on which this mechanism sums, or None where it sums in floating point."""
    if mechanism.noise == "gaussian":
        return None
    return grid_of(mechanism, sum(p.numel() for p in gradients_of.parameters.values()))


def train(
    model: TrainedModel,
    *,
    units: Units,
    canaries: Sequence[UnitExamples],
    mechanism: Mechanism,
    max_records_per_unit: int,
    optimisation: Optimisation,
    performance: Performance,
    streams: KeyedStreams,
    context: Mapping[str, Any],
    journal: Callable[[int, str], None],
    save: Callable[[bytes], None],
    resume: bytes | None = None,
    tell: Callable[[StepReport], None] = lambda report: None,
    ranks: Ranks = ALONE,
) -> None:
    """Train `model` in place.

    canaries: made-up units that take part like real ones; they change neither the sampling
        probability nor the divisor, so they cost the real units nothing.
    context: hashes of plan and data, bound into the journal's digests.
    journal: called with (step, digest) before the step's noise is drawn; must be durable on
        return, and must raise if that step was journalled with another digest.
    save: called with sealed-to-be state every `performance.checkpoint_every` steps.
    ranks: the processes that share the work; all call this with the same arguments, but `journal`
        and `save` do something on rank 0 alone.

    Guarantees: (epsilon, delta) of `mechanism.event()` for one unit among `units`, for an
    observer of the final parameters and of all intermediate ones.
    """
    gradients_of = UnitGradients(model, recompute=performance.gradient_checkpointing)
    parameters = gradients_of.parameters
    optimizer = make_optimizer(parameters, optimisation)
    sharded = is_sharded(model)
    first, clip_norm = 0, mechanism.clip_norm
    if resume is not None:
        first, clip_norm = restore_state(resume, parameters, optimizer)
    for step in range(first, mechanism.steps):
        now = replace(mechanism, clip_norm=clip_norm)
        digest = state_digest(
            parameters, optimizer, step=step, clip_norm=clip_norm, context=context
        )
        journal(step, digest)
        ranks.agree(step, digest)  # no rank passes before the intent is durable

        sampled = _sample(units, canaries, now, streams, step)
        sampled = [
            choose_records(unit, limit=max_records_per_unit, streams=streams, step=step)
            for unit in sampled
        ]
        sums = clipped_sum(
            gradients_of.at(streams, step),
            ranks.share(sampled),
            clip_norm=clip_norm,
            token_budget=performance.token_budget,
            clipping=now.clipping,
            grid=grid_for(now, gradients_of),
            passes=passes(sampled, ranks, token_budget=performance.token_budget) if sharded else 0,
        )
        ranks.add_up(sums)
        if now.clipping == "adaptive":
            clip_norm = next_clip_norm(
                clip_norm,
                noisy_count(sums.pop(COUNT), now, streams=streams, step=step),
                expected_batch_size=now.expected_batch_size,
                target_quantile=optimisation.clip_quantile,
                learning_rate=optimisation.clip_learning_rate,
            )
        noisy = add_noise(sums, now, streams=streams, step=step)
        del sums
        for name, parameter in parameters.items():
            mean = noisy.pop(name) / now.expected_batch_size
            parameter.grad = mean.to(parameter.dtype)
        noise = now.gradient_noise_multiplier * now.clip_norm / now.expected_batch_size
        set_step(optimizer, optimisation, step=step, steps=now.steps, noise=noise)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if done % performance.checkpoint_every == 0 and done < now.steps:
            save(pack_state(parameters, optimizer, step=done, clip_norm=clip_norm))
        tokens = sum(len(e.input_ids) for unit in sampled for e in unit.examples)
        tell(StepReport(step=done, sampled_units=len(sampled), tokens=tokens, clip_norm=clip_norm))


def _sample(
    units: Units,
    canaries: Sequence[UnitExamples],
    mechanism: Mechanism,
    streams: KeyedStreams,
    step: int,
) -> list[UnitExamples]:
    positions = {
        population: poisson_sample(
            streams,
            step=step,
            units=count,
            probability=mechanism.sampling_probability,
            population=population,
        )
        for population, count in (("units", len(units)), ("canaries", len(canaries)))
    }
    return units.examples(positions["units"]) + [canaries[i] for i in positions["canaries"]]
