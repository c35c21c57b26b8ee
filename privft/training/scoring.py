"""Losses of units without gradients, for audits and for evaluation on public text.

A score of a unit is computed exactly as its training loss is: the mean over its records of each
record's mean loss per label token.  Losses of units of the vault are private.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from privft.training.examples import Example, UnitExamples, microbatches
from privft.training.losses import Classifier, TrainedModel, pad_rows


def unit_losses(
    model: TrainedModel, units: Sequence[UnitExamples], *, token_budget: int = 4096
) -> NDArray[np.float64]:
    """The loss of each unit, shape [U], in the order of `units`; NaN for a unit with no example."""
    return _means(model, units, model.record_losses, token_budget)


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

    return _means(model, units, hits, token_budget)


def _means(
    model: TrainedModel,
    units: Sequence[UnitExamples],
    values_of: Callable[[Sequence[Example], int], torch.Tensor],
    token_budget: int,
) -> NDArray[np.float64]:
    """The mean over each unit's records of `values_of` ([R] for R records of one bucket)."""
    means: dict[int, float] = {}
    model.module.eval()
    # Two units may be equal, so they are told apart by identity.
    order = {id(unit): place for place, unit in enumerate(units)}
    with torch.inference_mode():
        for batch in microbatches(units, token_budget=token_budget):
            examples = [example for unit in batch for example in unit.examples]
            values = values_of(examples, batch[0].bucket).double().cpu().numpy()
            start = 0
            for unit in batch:
                stop = start + len(unit.examples)
                means[order[id(unit)]] = float(values[start:stop].mean())
                start = stop
    return np.array([means.get(place, np.nan) for place in range(len(units))])
