"""DP-SGD, read from top to bottom (Abadi et al. 2016, Algorithm 1, on units).

    for each of mechanism.steps:
        journal the digest of the state                 durable before any noise is drawn
        sample units                                     Poisson, each by its own coin
        per microbatch: unit gradients, clip, sum        float64
        add noise once                                   noise_multiplier * clip_norm
        divide by the expected batch size                never by the realised one
        optimiser step

There is no branch on data: an empty sample goes the same way and yields noise alone.

`Mechanism` carries every number that the guarantee depends on; `Optimisation` carries what is
post-processing of noisy sums; `Performance` carries what may change speed and memory but not the
guarantee.  Secrets (`streams`) are call arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privft.budget.mechanism import Clipping, Mechanism
from privft.randomness import KeyedStreams
from privft.training.checkpoint import pack_state, restore_state, state_digest
from privft.training.clipping import UnitGradients, add_clipped
from privft.training.discrete import Grid, add_rounded, grid_of
from privft.training.examples import UnitExamples, choose_records, microbatches
from privft.training.losses import TrainedModel
from privft.training.noise import add_noise
from privft.training.sampling import poisson_sample


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """What happens to a noisy mean gradient; post-processing, so free of privacy cost.

    head_learning_rate: for parameters whose name starts with "head."; None means the common one.
    """

    optim: Literal["adamw_torch", "sgd"] = "adamw_torch"
    learning_rate: float
    head_learning_rate: float | None = None
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "constant"
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    momentum: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Performance:
    """What may change speed and memory, and nothing else."""

    token_budget: int = 4096
    checkpoint_every: int = 10


class Units(Protocol):
    """Where units come from; positions are stable during a run."""

    def __len__(self) -> int: ...

    def examples(self, positions: NDArray[np.int64]) -> list[UnitExamples]:
        """The units at these positions, opened and tokenised in memory."""
        ...


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What the loop tells after a step.  Everything but `step` is private (it depends on who is in
    the data), and shown only where the policy says so."""

    step: int
    sampled_units: int
    tokens: int


def learning_rate_factor(plan: Optimisation, step: int, steps: int) -> float:
    """What the learning rate of 0-based `step` is multiplied by."""
    warmup = math.ceil(plan.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    if plan.lr_scheduler_type == "constant":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    if plan.lr_scheduler_type == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], plan: Optimisation
) -> torch.optim.Optimizer:
    """The optimiser of the noisy means; two groups where the head has its own learning rate."""
    head = [p for name, p in parameters.items() if name.startswith("head.")]
    body = [p for name, p in parameters.items() if not name.startswith("head.")]
    head_rate = plan.head_learning_rate or plan.learning_rate
    groups = [
        {"params": group, "lr": rate, "base_lr": rate}
        for group, rate in ((body, plan.learning_rate), (head, head_rate))
        if group
    ]
    if plan.optim == "sgd":
        return torch.optim.SGD(
            groups,
            lr=plan.learning_rate,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
        )
    return torch.optim.AdamW(
        groups,
        lr=plan.learning_rate,
        betas=(plan.adam_beta1, plan.adam_beta2),
        eps=plan.adam_epsilon,
        weight_decay=plan.weight_decay,
        foreach=False,
    )


def clipped_sum(
    gradients_of: UnitGradients,
    units: Sequence[UnitExamples],
    *,
    clip_norm: float,
    token_budget: int,
    clipping: Clipping = "flat",
    grid: Grid | None = None,
) -> dict[str, torch.Tensor]:
    """The sum over `units` of their clipped gradients: float64, by parameter name; with a `grid`
    in whole numbers of its steps, int64.

    Guarantees: adding or removing one unit changes the result by at most `clip_norm` in l2 norm
    (but for the rounding of the float64 sum; with a grid exactly).
    """
    totals = {
        name: torch.zeros(
            parameter.shape,
            dtype=torch.float64 if grid is None else torch.int64,
            device=parameter.device,
        )
        for name, parameter in gradients_of.parameters.items()
    }
    for batch in microbatches(units, token_budget=token_budget):
        if grid is None:
            add_clipped(totals, gradients_of(batch), clip_norm, clipping)
        else:
            add_rounded(totals, gradients_of(batch), grid, clipping)
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
) -> None:
    """Train `model` in place.

    canaries: made-up units that take part like real ones; they change neither the sampling
        probability nor the divisor, so they cost the real units nothing.
    context: hashes of plan and data, bound into the journal's digests.
    journal: called with (step, digest) before the step's noise is drawn; must be durable on
        return, and must raise if that step was journalled with another digest.
    save: called with sealed-to-be state every `performance.checkpoint_every` steps.

    Guarantees: (epsilon, delta) of `mechanism.event()` for one unit among `units`, for an
    observer of the final parameters and of all intermediate ones.
    """
    gradients_of = UnitGradients(model)
    parameters = gradients_of.parameters
    optimizer = make_optimizer(parameters, optimisation)
    grid = grid_for(mechanism, gradients_of)
    first = 0 if resume is None else restore_state(resume, parameters, optimizer)
    for step in range(first, mechanism.steps):
        journal(step, state_digest(parameters, optimizer, step=step, context=context))

        sampled = _sample(units, canaries, mechanism, streams, step)
        sampled = [
            choose_records(unit, limit=max_records_per_unit, streams=streams, step=step)
            for unit in sampled
        ]
        sums = clipped_sum(
            gradients_of,
            sampled,
            clip_norm=mechanism.clip_norm,
            token_budget=performance.token_budget,
            clipping=mechanism.clipping,
            grid=grid,
        )
        noisy = add_noise(sums, mechanism, streams=streams, step=step)
        del sums
        for name, parameter in parameters.items():
            mean = noisy[name] / mechanism.expected_batch_size
            parameter.grad = mean.to(parameter.dtype)
        factor = learning_rate_factor(optimisation, step, mechanism.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done = step + 1
        if done % performance.checkpoint_every == 0 and done < mechanism.steps:
            save(pack_state(parameters, optimizer, step=done))
        tokens = sum(len(e.input_ids) for unit in sampled for e in unit.examples)
        tell(StepReport(step=done, sampled_units=len(sampled), tokens=tokens))


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
