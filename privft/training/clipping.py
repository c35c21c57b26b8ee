"""Exact per-unit gradients, clipped once a unit and summed in float64.

`products` gives one gradient a unit for every trained layer.  Here a unit is clipped as a whole,
over all trained parameters together, and the clipped gradients are summed.

How (C is the clip norm, n a unit's norm), each with a sensitivity of C:
    flat        times min(1, C / n)                         Abadi et al. 2016, Algorithm 1
    automatic   times C / (n + 0.01), AUTO-S                Bu et al. 2023, arXiv 2206.07136: all
                units weigh nearly alike, and the learning rate takes over the clip norm's part
    per-layer   each of L layers to C / sqrt(L)             McMahan et al. 2018, arXiv 1710.06963:
                coarser, of use where a few layers dwarf the others
    adaptive    as flat, with a C that follows a quantile of the norms (Andrew et al. 2021); for
                that it counts who was not clipped, which is part of the same event (`adaptive`)

Guarantees (DESIGN.md, invariant 2):
    - a unit's gradient is the mean over its records of each record's mean loss per label token;
    - its l2 norm after clipping is at most `clip_norm`, in float64 too: where it is scaled down,
      it is scaled to a hair (2^-40) below;
    - a unit with a non-finite gradient counts as zero;
    - what else is in a microbatch does not change the bits of a unit's clipped gradient where
      `kernels` says so; `audit.stepcheck` measures it on the device at hand before every run, and
      reports state what it found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy

import torch

from privft.budget.mechanism import Clipping
from privft.errors import InputError
from privft.randomness import KeyedStreams
from privft.training.dropout import Masks, dropout_layers, masked
from privft.training.examples import IGNORED, Example, UnitExamples
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.products import UnitProducts, has_unit_gradients
from privft.training.recompute import recomputable_layers, recomputed

_HAIR = 1.0 - 2.0**-40
COUNT = "unclipped units"
"""The count's name among the sums; no parameter is called so, since their names have no spaces."""
AUTOMATIC_STABILITY = 0.01
"""What AUTO-S adds to the norm (gamma of Bu et al. 2023, their recommended value)."""


class UnitGradients:
    """Computes one gradient a unit for a model whose trained layers are known to `products`.

    recompute: layers keep their inputs only and are computed again for the backward; the same bits
        for less memory and more time.

    Errors: `InputError` when a trained parameter lies elsewhere.
    """

    def __init__(self, model: TrainedModel, *, recompute: bool = False) -> None:
        self._model = model
        self._dropout = dropout_layers(model.module)
        self._recomputed = recomputable_layers(model.module) if recompute else []
        self._place: tuple[KeyedStreams, int] | None = None
        self._kept: dict[tuple[object, ...], torch.Tensor] | None = None
        self.parameters = trained_parameters(model)
        for layer in model.module.modules():
            trained = any(p.requires_grad for p in layer.parameters(recurse=False))
            if trained and not has_unit_gradients(layer):
                raise InputError(
                    f"parameters of a {type(layer).__name__} are trained, and privft has gradients "
                    "of units for linear, embedding and layer-norm layers only",
                    hint="name other lora.target_modules or lora.modules_to_save",
                )

    @property
    def drops(self) -> bool:
        """Whether the model has dropout."""
        return bool(self._dropout)

    def at(self, streams: KeyedStreams, step: int) -> UnitGradients:
        """The same, dropping what `streams` drop in `step`."""
        placed = copy(self)
        placed._place = streams, step
        return placed

    def between_steps(self) -> UnitGradients:
        """The same, for calls between which no parameter changes: what is made of parameters alone
        is made in the first of them."""
        steady = copy(self)
        steady._kept = {}
        return steady

    def __call__(self, units: Sequence[UnitExamples]) -> dict[str, torch.Tensor]:
        """Gradients of the units' losses, by name, each of shape [U, *parameter].

        `units` all have the same bucket, and at least one example each.
        Errors: `InputError` when a trained parameter has no part in the loss; `ValueError` when the
        model has dropout and `at` did not say whose.
        """
        if self._model.module.training:  # setting it visits every layer
            self._model.module.eval()  # only keyed dropout; nothing else depends on the mode
        examples = [example for unit in units for example in unit.examples]
        records = [len(unit.examples) for unit in units]
        weights = [1.0 / count for count in records for _ in range(count)]
        with (
            UnitProducts(self.parameters, records, self._kept) as products,
            masked(self._dropout, self._masks(units)),
            recomputed(self._recomputed, products),
        ):
            losses_R = self._model.record_losses(examples, units[0].bucket)
            weights_R = torch.tensor(weights, dtype=torch.float64).to(losses_R)
            torch.autograd.backward([losses_R], [weights_R])
        missing = [name for name in self.parameters if name not in products.gradients]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.parameters)} trained parameters have no part in the "
                f"loss, {missing[0]} among them",
                hint="name other lora.target_modules, or lora.layers_to_transform that the model "
                "runs through",
            )
        return {name: products.gradients[name] for name in self.parameters}

    def idle(self) -> None:
        """Run the model on a made-up record and drop what comes out; see `sharding`."""
        labels = (0,) if self._model.task == "sequence-classification" else (IGNORED, 0)
        example = Example(input_ids=(0, 0), labels=labels)
        self([UnitExamples(key="idle", examples=(example,))])

    def _masks(self, units: Sequence[UnitExamples]) -> Masks | None:
        if not self._dropout:
            return None
        if self._place is None:
            raise ValueError("expected streams and a step, because the model has dropout")
        streams, step = self._place
        return Masks(units, streams=streams, step=step)


def unit_norms(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The l2 norm of each unit's whole gradient, shape [U], float64.

    Sums of a unit's own shape, in float64 and without copies in it: one unit at a time, because
    torch sums a lone row in another order than rows among others.
    """
    norms_UP = torch.stack(
        [
            torch.stack([torch.linalg.vector_norm(part, dtype=torch.float64) for part in unit])
            for unit in zip(*(gradient.unbind() for gradient in gradients.values()), strict=True)
        ]
    )
    return torch.stack([row_P.square().sum() for row_P in norms_UP]).sqrt()


def clip_factors(norms_U: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """What each unit's gradient is multiplied by (flat clipping, Abadi et al. 2016): 1 where the
    norm is at most `clip_norm`, else what brings it a hair below; 0 where it is not finite."""
    shrunk = clip_norm * _HAIR / norms_U.clamp(min=clip_norm)
    factors = torch.where(norms_U <= clip_norm, torch.ones_like(norms_U), shrunk)
    return torch.where(torch.isfinite(norms_U), factors, torch.zeros_like(norms_U))


def unit_factors(
    gradients: Mapping[str, torch.Tensor], clip_norm: float, clipping: Clipping
) -> dict[str, list[float]]:
    """What each unit's gradient of each parameter is multiplied by: U numbers by name.

    Guarantees: a unit's whole gradient then has an l2 norm of at most `clip_norm`.
    """
    norms_U = unit_norms(gradients)
    if clipping in ("flat", "adaptive"):
        factors_U = clip_factors(norms_U, clip_norm).tolist()
        return dict.fromkeys(gradients, factors_U)
    if clipping == "automatic":
        automatic_U = clip_norm * _HAIR / (norms_U + AUTOMATIC_STABILITY)
        kept_U = torch.where(torch.isfinite(norms_U), automatic_U, torch.zeros_like(norms_U))
        return dict.fromkeys(gradients, kept_U.tolist())
    layers = sorted({name.rpartition(".")[0] for name in gradients})
    share = clip_norm / math.sqrt(len(layers)) * _HAIR
    factors = {}
    for layer in layers:
        own = {n: g for n, g in gradients.items() if n.rpartition(".")[0] == layer}
        layer_U = clip_factors(unit_norms(own), share)
        # one layer that is not finite takes the unit out as a whole
        kept_U = torch.where(torch.isfinite(norms_U), layer_U, torch.zeros_like(layer_U))
        factors.update(dict.fromkeys(own, kept_U.tolist()))
    return factors


def add_count(totals: Mapping[str, torch.Tensor], factors: Mapping[str, list[float]]) -> None:
    """Add each unit's 1 if it was not clipped, or -1, to the count in `totals`, if there is one.

    factors: as `unit_factors` gives them; exactly 1 for a unit that was not clipped.

    Guarantees: a unit moves the count by exactly 1 up or down, whatever its gradient.
    """
    if COUNT in totals:
        of_units = next(iter(factors.values()))
        totals[COUNT].add_(sum(1 if factor == 1.0 else -1 for factor in of_units))


def add_clipped(
    totals: Mapping[str, torch.Tensor],
    gradients: Mapping[str, torch.Tensor],
    clip_norm: float,
    clipping: Clipping = "flat",
) -> None:
    """Add each unit's clipped gradient to `totals` (float64, by name), in place, unit by unit, so
    that the sum does not depend on how units were dealt to microbatches."""
    factors = unit_factors(gradients, clip_norm, clipping)
    add_count(totals, factors)
    for name, gradient in gradients.items():
        for row, factor in zip(gradient.unbind(), factors[name], strict=True):
            if factor:  # a unit whose gradient is not finite has factors of 0
                totals[name].add_(row, alpha=factor)  # in float64, the type of the total
