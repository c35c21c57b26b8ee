"""Losses of units without gradients, for audits and for evaluation on public text.

A score of a unit is computed exactly as its training loss is: the mean over its records of each
record's mean loss per label token.  Losses of units of the vault are private.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from privft.training.examples import UnitExamples, microbatches
from privft.training.losses import Classifier, TrainedModel, pad_rows


def unit_losses(
    model: TrainedModel, units: Sequence[UnitExamples], *, token_budget: int = 4096
) -> NDArray[np.float64]:
    """The loss of each unit, shape [U], in the order of `units`; NaN for a unit with no example."""
    losses: dict[int, float] = {}
    model.module.eval()
    # Two units may be equal, so they are told apart by identity.
    order = {id(unit): place for place, unit in enumerate(units)}
    with torch.inference_mode():
        for batch in microbatches(units, token_budget=token_budget):
            examples = [example for unit in batch for example in unit.examples]
            values = model.record_losses(examples, batch[0].bucket).double().cpu().numpy()
            start = 0
            for unit in batch:
                stop = start + len(unit.examples)
                losses[order[id(unit)]] = float(values[start:stop].mean())
                start = stop
    return np.array([losses.get(place, np.nan) for place in range(len(units))])


def accuracy(
    model: Classifier, units: Sequence[UnitExamples], *, token_budget: int = 4096
) -> float:
    """The share of records whose label has the largest logit."""
    hits = total = 0
    model.eval()
    with torch.inference_mode():
        for batch in microbatches(units, token_budget=token_budget):
            examples = [example for unit in batch for example in unit.examples]
            logits = model(*pad_rows(examples, batch[0].bucket, model.pad_id, model.device))
            for row, example in zip(logits.argmax(-1).tolist(), examples, strict=True):
                hits += row == example.labels[0]
                total += 1
    return hits / total
