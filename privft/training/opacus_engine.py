"""The same gradients, one a unit, by Opacus: an engine that shares no code with `products`.

Two accountants price every run, because one of them may be wrong.  For the same reason two engines
compute the gradients of made-up units before every run (`audit.stepcheck`), and the run does not
start where they disagree by more than rounding.  Opacus 1.6 records each record's part of a trained
layer's gradient by hooks; its products are torch's own, so its bits depend on the company.

Source: Yousefpour et al. 2021, "Opacus: user-friendly differential privacy library in PyTorch",
arXiv 2109.12298.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn

from privft.training.dropout import Masks, dropout_layers, masked
from privft.training.examples import IGNORED, Example, UnitExamples
from privft.training.losses import LanguageModel, TrainedModel, pad_rows, trained_parameters


def opacus_gradients(
    model: TrainedModel, units: Sequence[UnitExamples], *, masks: Masks | None = None
) -> dict[str, torch.Tensor]:
    """Gradients of the units' losses in float64, by name, each of shape [U, *parameter].

    `units` are as in `clipping.UnitGradients`; masks: what dropout drops, the one thing that both
    engines must share.  Afterwards nothing of Opacus is left on the model.
    """
    parameters = trained_parameters(model)
    model.module.eval()
    hooks = GradSampleHooks(model.module, loss_reduction="sum", strict=False)
    try:
        for layer in model.module.modules():  # Opacus records nothing outside of training mode
            if any(parameter.requires_grad for parameter in layer.parameters(recurse=False)):
                layer.train()
        counts = torch.tensor([len(unit.examples) for unit in units])
        unit_of_row = torch.repeat_interleave(torch.arange(len(units)), counts)
        examples = [example for unit in units for example in unit.examples]
        with warnings.catch_warnings(), masked(dropout_layers(model.module), masks):
            # The first trained layer's input needs no gradient; its parameters still get theirs.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            losses_R = _record_losses(model, examples, units[0].bucket)
            weights_R = (1.0 / counts.double())[unit_of_row].to(losses_R)
            (losses_R * weights_R).sum().backward()  # type: ignore[no-untyped-call]
        return {
            name: _by_unit(parameter, unit_of_row, len(units))
            for name, parameter in parameters.items()
        }
    finally:
        hooks.remove_hooks()
        model.module.eval()
        for parameter in parameters.values():
            parameter.grad = None
            for attribute in ("grad_sample", "_forward_counter"):
                if hasattr(parameter, attribute):
                    delattr(parameter, attribute)


def _record_losses(model: TrainedModel, examples: Sequence[Example], length: int) -> torch.Tensor:
    """Mean loss per label of each record, shape [R]; for a language model from the whole logits, as
    the model itself gives them, since hooks see what runs through modules only."""
    if not isinstance(model, LanguageModel):
        return model.record_losses(examples, length)
    ids_RT, _ = pad_rows(examples, length, model.pad_id, model.device)
    logits_RTV = model.module(input_ids=ids_RT, use_cache=False).logits
    logits_RTV = logits_RTV.to(torch.promote_types(logits_RTV.dtype, torch.float32))
    losses = []
    for row, example in enumerate(examples):
        labels_T = torch.tensor(example.labels[1:], device=model.device)
        logits_TV = logits_RTV[row, : len(labels_T)]
        losses.append(nn.functional.cross_entropy(logits_TV, labels_T, ignore_index=IGNORED))
    return torch.stack(losses)


def _by_unit(parameter: nn.Parameter, unit_of_row: torch.Tensor, units: int) -> torch.Tensor:
    rows: torch.Tensor = parameter.grad_sample  # type: ignore[attr-defined]
    joined = rows.new_zeros((units, *parameter.shape), dtype=torch.float64)
    return joined.index_add_(0, unit_of_row.to(rows.device), rows.double())
