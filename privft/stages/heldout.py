"""The score on held-out units: measured once, inside a run, before its secret is destroyed.

Base and trained model are measured on every unit that is set aside; what is kept, sealed beside the
run, is the noised figures alone (`training.heldout`).  They were charged with the reservation, as
events of their own.  The audit states what it finds sealed and never measures again, so that
no second noise is drawn on the same values; a run that was killed after sealing finds them too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privft.config import RunConfig
from privft.evaluating import HeldOutConfig
from privft.randomness import KeyedStreams
from privft.report import claim
from privft.signing import sha256_hex
from privft.stages.modelling import Workbench
from privft.stages.sealedrun import SealedRun
from privft.training.heldout import noised_means
from privft.training.losses import Classifier, TrainedModel
from privft.training.scoring import unit_accuracies, unit_losses
from privft.vault.store import Vault

SCORE = "score"
"""The name of the sealed file."""
_AT_A_TIME = 64  # units opened in memory together


def seal_score(
    sealed: SealedRun,
    workbench: Workbench,
    files: Mapping[str, bytes],
    *,
    context: Mapping[str, Any],
) -> None:
    """Measure, add noise and seal, where the config asks for it and it was not done yet.

    files: the trained adapter; context: what else has to be equal for a step to be the same step.
    """
    held_out = workbench.config.evaluation.held_out
    if held_out is None or sealed.has(SCORE):
        return
    digests = {name: sha256_hex(data) for name, data in files.items()}
    base, trained = (
        _measured(sealed.vault, workbench, model) for model in workbench.before_and_after(files)
    )
    figures = noised_means(
        {f"{metric}/base": values for metric, values in base.items()}
        | {f"{metric}/trained": values for metric, values in trained.items()},
        {
            f"{metric}/{which}": bound
            for metric, bound in _bounds(workbench.config, held_out).items()
            for which in ("base", "trained")
        },
        units=held_out.units,
        noise_multiplier=held_out.noise_multiplier,
        streams=KeyedStreams(sealed.unseal("secret")),
        inputs=sha256_hex(json.dumps({"adapter": digests, **context}, sort_keys=True).encode()),
    )
    sealed.seal(SCORE, json.dumps(figures).encode())


def score_rows(sealed: SealedRun, config: RunConfig, delta: float) -> list[dict[str, Any]]:
    """The sealed figures as the statement has them (`report.findings.Utility`); [] without any."""
    held_out = config.evaluation.held_out
    if held_out is None:
        return []
    figures: dict[str, float] = json.loads(sealed.unseal(SCORE))
    rows = []
    for metric, bound in _bounds(config, held_out).items():
        base, trained = figures[f"{metric}/base"], figures[f"{metric}/trained"]
        is_loss = metric != "accuracy"
        follows = claim.noised(
            difference=trained - base,
            units=held_out.units,
            noise_multiplier=held_out.noise_multiplier,
            bound=bound,
            delta=delta,
        )
        rows.append(
            {
                "source": "noised",
                "metric": metric,
                "unit": "nats" if is_loss else None,
                "base": base,
                "trained": trained,
                "n": held_out.units,
                "better": "lower" if is_loss else "higher",
                **follows,
            }
        )
    return rows


def _bounds(config: RunConfig, held_out: HeldOutConfig) -> dict[str, float]:
    """Each measure by its name, and the most that a unit can have of it."""
    if config.task == "sequence-classification":
        return {"accuracy": 1.0, "loss per record": held_out.loss_bound}
    return {"loss per token": held_out.loss_bound}


def held_out_losses(vault: Vault, workbench: Workbench, model: TrainedModel) -> NDArray[np.float64]:
    """The loss of every unit that is set aside, shape [U]: private."""
    measured = _measured(vault, workbench, model)
    (losses,) = (values for name, values in measured.items() if name != "accuracy")
    return losses


def _measured(
    vault: Vault, workbench: Workbench, model: TrainedModel
) -> dict[str, NDArray[np.float64]]:
    """Each measure of every unit that is set aside, shape [U]: private."""
    numbers = np.flatnonzero(vault.held_out_mask())
    budget = workbench.config.performance.tokens_per_microbatch
    losses, hits = [np.empty(0)], [np.empty(0)]
    for some in _split(numbers):
        units = [workbench.encode(unit.to_dict()) for unit in vault.read_many(some.tolist())]
        losses.append(unit_losses(model, units, token_budget=budget))
        if isinstance(model, Classifier):
            hits.append(unit_accuracies(model, units, token_budget=budget))
    if isinstance(model, Classifier):
        return {"accuracy": np.concatenate(hits), "loss per record": np.concatenate(losses)}
    return {"loss per token": np.concatenate(losses)}


def _split(numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(numbers), _AT_A_TIME):
        yield numbers[start : start + _AT_A_TIME]
