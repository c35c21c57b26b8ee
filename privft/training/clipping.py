"""Exact per-unit gradients, clipped once a unit and summed in float64.

`products` gives one gradient a unit for every trained layer.  Here a unit is clipped as a whole,
over all trained parameters together, and the clipped gradients are summed.

Guarantees (DESIGN.md, invariant 2):
    - a unit's gradient is the mean over its records of each record's mean loss per label token;
    - its l2 norm after clipping is at most `clip_norm`, in float64 too: where it is scaled down,
      it is scaled to a hair (2^-40) below;
    - a unit with a non-finite gradient counts as zero;
    - what else is in a microbatch does not change the bits of a unit's clipped gradient where
      `products` says so; `audit.stepcheck` measures it on the device at hand before every run, and
      reports state what it found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from privft.errors import InputError
from privft.training.examples import UnitExamples
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.products import UnitProducts

_HAIR = 1.0 - 2.0**-40


class UnitGradients:
    """Computes one gradient a unit for a model whose trained layers are linear layers."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self.parameters = trained_parameters(model)
        for layer in model.module.modules():
            trained = any(p.requires_grad for p in layer.parameters(recurse=False))
            if trained and not isinstance(layer, nn.Linear):
                raise ValueError(
                    f"expected trained parameters in linear layers only, got {type(layer)}"
                )

    def __call__(self, units: Sequence[UnitExamples]) -> dict[str, torch.Tensor]:
        """Gradients of the units' losses, by name, each of shape [U, *parameter].

        `units` all have the same bucket, and at least one example each.
        Errors: `InputError` when a trained parameter has no part in the loss.
        """
        self._model.module.eval()  # no dropout; nothing else depends on the mode
        examples = [example for unit in units for example in unit.examples]
        records = [len(unit.examples) for unit in units]
        weights = [1.0 / count for count in records for _ in range(count)]
        with UnitProducts(self.parameters, records) as products:
            losses_R = self._model.record_losses(examples, units[0].bucket)
            torch.autograd.backward([losses_R], [torch.tensor(weights).to(losses_R)])
        missing = [name for name in self.parameters if name not in products.gradients]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.parameters)} trained parameters have no part in the "
                f"loss, {missing[0]} among them",
                hint="name other lora.target_modules, or lora.layers_to_transform that the model "
                "runs through",
            )
        return {name: products.gradients[name] for name in self.parameters}


def unit_norms(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The l2 norm of each unit's whole gradient, shape [U], float64.

    One sum a unit over all its numbers in one order, because torch sums a lone row in another
    order than rows among others.
    """
    count = next(iter(gradients.values())).shape[0]
    squares = [
        torch.cat([gradient[u].flatten() for gradient in gradients.values()]).double().square()
        for u in range(count)
    ]
    return torch.stack([each.sum() for each in squares]).sqrt()


def clip_factors(norms_U: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """What each unit's gradient is multiplied by (flat clipping, Abadi et al. 2016): 1 where the
    norm is at most `clip_norm`, else what brings it a hair below; 0 where it is not finite."""
    shrunk = clip_norm * _HAIR / norms_U.clamp(min=clip_norm)
    factors = torch.where(norms_U <= clip_norm, torch.ones_like(norms_U), shrunk)
    return torch.where(torch.isfinite(norms_U), factors, torch.zeros_like(norms_U))


def add_clipped(
    totals: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], clip_norm: float
) -> None:
    """Add each unit's clipped gradient to `totals` (float64, by name), in place, unit by unit, so
    that the sum does not depend on how units were dealt to microbatches."""
    factors = clip_factors(unit_norms(gradients), clip_norm).tolist()
    for name, gradient in gradients.items():
        for row, factor in zip(gradient, factors, strict=True):
            if factor:  # a gradient that is not finite has the factor 0
                totals[name].add_(row.double(), alpha=factor)
