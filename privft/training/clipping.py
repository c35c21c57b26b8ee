"""Exact per-unit gradients, clipped once a unit and summed in float64.

The one door to Opacus: its hooks compute one gradient a row (record) for every trained layer.
Here rows are joined to units, a unit is clipped as a whole, over all trained parameters together,
and the clipped gradients are summed.

Guarantees (DESIGN.md, invariant 2):
    - a unit's gradient is the mean over its records of each record's mean loss per label token;
    - its l2 norm after clipping is at most `clip_norm`, in float64 too: where it is scaled down,
      it is scaled to a hair (2^-40) below;
    - a unit with a non-finite gradient counts as zero;
    - nothing that depends on the companions in a microbatch enters a unit's gradient but for the
      rounding of products whose kernels depend on the number of rows; `audit.stepcheck` measures
      that rounding on the device at hand before every run, and reports state it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn

from privft.training.examples import UnitExamples
from privft.training.losses import TrainedModel, trained_parameters

_HAIR = 1.0 - 2.0**-40


class UnitGradients:
    """Computes one gradient a unit for a model whose trained layers are linear layers."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self.parameters = trained_parameters(model)
        self._layers = [
            module
            for module in model.module.modules()
            if any(p.requires_grad for p in module.parameters(recurse=False))
        ]
        for layer in self._layers:
            if not isinstance(layer, nn.Linear):
                raise ValueError(
                    f"expected trained parameters in linear layers only, got {type(layer)}"
                )
        self._hooks = GradSampleHooks(model.module, loss_reduction="sum", strict=False)

    def close(self) -> None:
        """Take the hooks off the model again."""
        self._hooks.remove_hooks()
        for parameter in self.parameters.values():
            parameter.grad = None
            for attribute in ("grad_sample", "_forward_counter"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)

    def __call__(self, units: Sequence[UnitExamples]) -> dict[str, torch.Tensor]:
        """Gradients of the units' losses in float64, by name, each of shape [U, *parameter].

        `units` all have the same bucket, and at least one example each.
        """
        # The whole model runs in evaluation mode (no dropout); only the layers that hold trained
        # parameters are in training mode, because Opacus records nothing elsewhere.
        self._model.module.eval()
        for layer in self._layers:
            layer.train()
        examples = [example for unit in units for example in unit.examples]
        counts = torch.tensor([len(unit.examples) for unit in units])
        unit_of_row = torch.repeat_interleave(torch.arange(len(units)), counts)
        device = self._model.device
        losses_R = self._model.record_losses(examples, units[0].bucket)
        weights_R = (1.0 / counts)[unit_of_row].to(losses_R)
        with warnings.catch_warnings():
            # The first trained layer's input needs no gradient; its parameters still get theirs.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            (losses_R * weights_R).sum().backward()  # type: ignore[no-untyped-call]
        gradients = {}
        for name, parameter in self.parameters.items():
            rows: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]
            joined = torch.zeros((len(units), *parameter.shape), dtype=torch.float64, device=device)
            # Sequential by row on the host and one row a unit in the common case, hence the same
            # bits whatever the companions.
            joined.index_add_(0, unit_of_row.to(device), rows.to(torch.float64))
            gradients[name] = joined
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter.grad = None
        return gradients


def unit_norms(gradients: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The l2 norm of each unit's whole gradient, shape [U], float64."""
    squares = [gradient.flatten(1).square().sum(1) for gradient in gradients.values()]
    return torch.stack(squares).sum(0).sqrt()


def clip_factors(norms_U: torch.Tensor, clip_norm: float) -> torch.Tensor:
    """What each unit's gradient is multiplied by (flat clipping, Abadi et al. 2016): 1 where the
    norm is at most `clip_norm`, else what brings it a hair below; 0 where it is not finite."""
    shrunk = clip_norm * _HAIR / norms_U.clamp(min=clip_norm)
    factors = torch.where(norms_U <= clip_norm, torch.ones_like(norms_U), shrunk)
    return torch.where(torch.isfinite(norms_U), factors, torch.zeros_like(norms_U))


def add_clipped(
    totals: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor], clip_norm: float
) -> None:
    """Add each unit's clipped gradient to `totals` (float64, by name), in place."""
    factors_U = clip_factors(unit_norms(gradients), clip_norm)
    for name, gradient in gradients.items():
        flat = torch.nan_to_num(gradient.flatten(1), nan=0.0, posinf=0.0, neginf=0.0)
        totals[name].view(-1).add_(factors_U @ flat)
