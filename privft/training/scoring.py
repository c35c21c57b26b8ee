"""Losses of units without gradients, for audits and for evaluation on public text.

A score of a unit is computed exactly as its training loss is, by the same products: the mean over
its records of each record's mean loss per label token.  Losses of units of the vault are private.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privft.training.examples import Example, UnitExamples, microbatches
from privft.training.losses import (
    Classifier,
    LanguageModel,
    TrainedModel,
    pad_rows,
    trained_parameters,
)
from privft.training.products import UnitProducts
from privft.training.trunk import Trunk


def unit_losses(
    model: TrainedModel, units: Sequence[UnitExamples], *, token_budget: int = 4096
) -> NDArray[np.float64]:
    """The loss of each unit, shape [U], in the order of `units`; NaN for a unit with no example."""
    return _means([model], units, model.record_losses, token_budget)[:, 0]


def losses_of_both(
    before: TrainedModel,
    after: TrainedModel,
    units: Sequence[UnitExamples],
    *,
    token_budget: int = 4096,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`unit_losses` of each, [U] and [U]; layers that are the same in both run once."""
    trunk = Trunk(before.module, after.module)

    def losses(examples: Sequence[Example], length: int) -> torch.Tensor:
        with trunk.kept():
            first = before.record_losses(examples, length)
        with trunk.handed():
            second = after.record_losses(examples, length)
        return torch.stack([first, second], dim=-1)

    found = _means([before, after], units, losses, token_budget)
    return found[:, 0], found[:, 1]


def unit_accuracies(
    model: Classifier, units: Sequence[UnitExamples], *, token_budget: int = 4096
) -> NDArray[np.float64]:
    """The share of each unit's records whose label has the largest logit, shape [U], in the order
    of `units`; NaN for a unit with no example."""

    def hits(examples: Sequence[Example], length: int) -> torch.Tensor:
        logits = model(*pad_rows(examples, length, model.pad_id, model.device))
        labels = torch.tensor([example.labels[0] for example in examples], device=model.device)
        right: torch.Tensor = logits.argmax(-1) == labels
        return right

    return _means([model], units, hits, token_budget)[:, 0]


def units_written(model: LanguageModel, units: Sequence[UnitExamples]) -> NDArray[np.bool_]:
    """Whether the model, decoding greedily, writes all labels of a unit's records, shape [U]; every
    unit has a record."""
    return np.equal(_means([model], units, model.writes, 4096)[:, 0], 1.0)


def _means(
    models: Sequence[TrainedModel],
    units: Sequence[UnitExamples],
    values_of: Callable[[Sequence[Example], int], torch.Tensor],
    token_budget: int,
) -> NDArray[np.float64]:
    """The mean over each unit's records of `values_of` ([R] for R records of one bucket, or [R, M]
    for M models), [U, M]."""
    means = np.full((len(units), len(models)), np.nan)
    parameters: dict[str, nn.Parameter] = {}
    for place, model in enumerate(models):
        model.module.eval()
        parameters |= {f"{place} {name}": p for name, p in trained_parameters(model).items()}
    # Two units may be equal, so they are told apart by identity.
    order = {id(unit): place for place, unit in enumerate(units)}
    with torch.no_grad():
        for batch in microbatches(units, token_budget=token_budget):
            examples = [example for unit in batch for example in unit.examples]
            with UnitProducts(parameters, [len(unit.examples) for unit in batch]):
                found = values_of(examples, batch[0].bucket).double().cpu().numpy()
            values = found.reshape(len(examples), len(models))
            start = 0
            for unit in batch:
                stop = start + len(unit.examples)
                means[order[id(unit)]] = values[start:stop].mean(axis=0)
                start = stop
    return means
