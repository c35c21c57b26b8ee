"""A randomly stopped sweep, trained: all repetitions, of which the best of a hidden number is kept.

    K  <-  the cut distribution, from the run's secret            how many of `most` count
    for each of `most` repetitions, whatever K is:
        candidate  <-  uniform, from the repetition's own secret
        train it from the start, under that secret                every step journalled as ever
        score it                                                  public text, or noised and charged
        hold the best among the first K                           sealed, always written again
    keep what is held; where K is 0, nothing

`budget.selection` has the price, which holds while nobody learns K.  So nothing that can be seen
depends on it, or on scores and candidates of repetitions that are not kept:

* the number of trainings, of journalled steps, of scorings and of sealed files is the same;
* candidates may differ only in what changes neither the time of a step nor the form of what is
  trained (`evaluating.SAME_FOR_ALL`), so the length of what is held is the same as well;
* the digest of a step binds which candidate was drawn through a mark that is keyed by the secret:
  it says nothing to whoever lacks that, and no digest can be guessed and matched to a model;
* what is held is written after every repetition, changed or not, in the same file as the training
  state.  It is sealed, and goes with the run's secret at settlement.

Ties are broken by the order of repetitions.  They are alike in distribution and independent of each
other, so this is the same law as a tie broken by a coin, which is how scores become a total order.

**Going on after a crash.**  The checkpoint holds the number of whole repetitions, what is held, and
the state inside the repetition that is under way.  K, candidates, samples and noise come out of the
secret again, and steps of the same state are the same steps; any other state closes the run, which
is charged whole either way.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from privft.budget.selection import Selection, draw_repetitions
from privft.config import RunConfig
from privft.errors import IntegrityError
from privft.plan import Plan
from privft.randomness import KeyedStreams
from privft.signing import sha256_hex
from privft.stages.heldout import held_out_losses
from privft.stages.modelling import Workbench, evaluation_file, public_units
from privft.stages.sealedrun import SealedRun, config_folder_of
from privft.sweep import candidates_of
from privft.training.adapter import trained_snapshot
from privft.training.examples import UnitExamples
from privft.training.heldout import noised_means
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.scoring import unit_losses

CHOSEN = "chosen"
"""The name of the sealed file that says which candidate was kept."""
NOTHING = "the number of repetitions that count came out as 0, so nothing is kept"
_HEAD = struct.Struct(">8sQQd?Q")
_MAGIC = b"privftS1"


class TrainOne(Protocol):
    """One whole training; `running` has it."""

    def __call__(
        self,
        bench: Workbench,
        streams: KeyedStreams,
        *,
        save: Any,
        resume: bytes | None,
        first: int = 0,
        context: Mapping[str, Any] | None = None,
    ) -> TrainedModel:
        """first: the number of the first step in the run's journal; context: what a step is bound
        to beside the run's own."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """The best so far, after `done` whole repetitions.

    counts: whether it is one of the first K; without any such, the first repetition is held, so
    that what is sealed has the same length.  tensors: what was trained, as safetensors.
    """

    done: int
    candidate: int
    score: float
    counts: bool
    tensors: bytes

    def after(self, other: Held) -> Held:
        """What is held once `other`, the repetition that follows, has ended."""
        better = other.counts and other.score > self.score
        return other if better else replace(self, done=other.done)


def pack(held: Held | None, state: bytes) -> bytes:
    """The checkpoint: what is held, then the state inside the repetition that is under way."""
    if held is None:
        return _HEAD.pack(_MAGIC, 0, 0, 0.0, False, 0) + state
    head = (held.done, held.candidate, held.score, held.counts, len(held.tensors))
    return _HEAD.pack(_MAGIC, *head) + held.tensors + state


def unpack(checkpoint: bytes) -> tuple[Held | None, bytes]:
    """The inverse of `pack`; raises `IntegrityError` for anything else."""
    try:
        magic, done, candidate, score, counts, length = _HEAD.unpack_from(checkpoint)
    except struct.error as error:
        raise IntegrityError("a checkpoint is too short to be one of a selection") from error
    body = checkpoint[_HEAD.size :]
    if magic != _MAGIC or len(body) < length:
        raise IntegrityError("a checkpoint is not one of a selection")
    if done == 0:
        return None, body
    held = Held(done=done, candidate=candidate, score=score, counts=counts, tensors=body[:length])
    return held, body[length:]


def train_repetitions(
    plan: Plan,
    selection: Selection,
    sealed: SealedRun,
    workbench: Workbench,
    *,
    secret: bytes,
    train_one: TrainOne,
    resume: bytes | None,
) -> TrainedModel | None:
    """Train all repetitions and keep the best of the first K; None where K is 0.

    Guarantees: `selection` is what this costs one unit, for an observer of the model that is
    returned and of everything outside of the sealed files; the module's docstring says why.
    """
    root, candidates = KeyedStreams(secret), candidates_of(workbench.config)
    counted = draw_repetitions(selection, root.stream("repetitions"))
    public = _public(sealed, workbench)
    steps = plan.the_mechanism().steps
    held, state = unpack(resume) if resume is not None else (None, b"")
    assert selection.most is not None
    for number in range(0 if held is None else held.done, selection.most):
        streams = root.repetition(number)
        drawn = int(streams.stream("candidate").integers(len(candidates), 1)[0])
        bench = replace(workbench, config=candidates[drawn][1])
        mark = streams.stream("candidate-mark", label=str(drawn)).bytes(32).hex()
        before = held
        model = train_one(
            bench,
            streams,
            save=lambda inner, before=before: sealed.seal("checkpoint", pack(before, inner)),
            resume=state or None,
            first=number * steps,
            context={"repetition": number, "candidate": mark},
        )
        tensors = save_tensors(_on_host(trained_snapshot(model)))
        this = Held(
            done=number + 1,
            candidate=drawn,
            score=_score(model, sealed, workbench, public, streams, inputs=sha256_hex(tensors)),
            counts=number < counted,
            tensors=tensors,
        )
        held, state = (this if held is None else held.after(this)), b""
        sealed.seal("checkpoint", pack(held, state))
    assert held is not None
    return _restored(held, sealed, workbench, candidates) if held.counts else None


def selection_facts(sealed: SealedRun, config: RunConfig) -> dict[str, Any] | None:
    """What the statement says of the choice: the candidates, which was kept, and by what score;
    None for one training."""
    if config.selection is None:
        return None
    labels = config.selection.labels()
    return {
        "candidates": labels,
        "chosen": labels[json.loads(sealed.unseal(CHOSEN))["candidate"]],
        "score": "public" if config.selection.held_out is None else "held-out",
    }


def _restored(
    held: Held,
    sealed: SealedRun,
    workbench: Workbench,
    candidates: Sequence[tuple[str, RunConfig]],
) -> TrainedModel:
    model = replace(workbench, config=candidates[held.candidate][1]).fresh()
    tensors = load_tensors(held.tensors)
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            parameter.copy_(tensors.pop(name))
    if tensors:
        raise IntegrityError(f"what is held has {len(tensors)} tensors that the model lacks")
    sealed.seal(CHOSEN, json.dumps({"candidate": held.candidate}).encode())
    return model


def _on_host(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _public(sealed: SealedRun, workbench: Workbench) -> list[UnitExamples]:
    """The public text that repetitions are scored on; empty where held-out units are."""
    config = workbench.config
    if config.selection is None or config.selection.held_out is not None:
        return []
    path = evaluation_file(config, relative_to=config_folder_of(sealed.folder))
    assert path is not None, "the config asks for it"
    units = public_units(path, sealed.vault.fields, most=config.evaluation.max_records)
    return [workbench.encode(unit) for unit in units]


def _score(
    model: TrainedModel,
    sealed: SealedRun,
    workbench: Workbench,
    public: Sequence[UnitExamples],
    streams: KeyedStreams,
    *,
    inputs: str,
) -> float:
    """The score of one repetition, larger for the better: less loss.

    inputs: digest of what was trained, on which alone the values depend; the same values meet the
    same noise again after a crash.  A loss without a finite value is the worst.
    """
    asked = workbench.config.selection
    assert asked is not None
    if asked.held_out is not None:
        noised = noised_means(
            {"loss": held_out_losses(sealed.vault, workbench, model)},
            {"loss": asked.held_out.loss_bound},
            units=asked.held_out.units,
            noise_multiplier=asked.held_out.noise_multiplier,
            streams=streams,
            inputs=inputs,
        )
        return -noised["loss"]
    budget = workbench.config.performance.tokens_per_microbatch
    losses = unit_losses(model, public, token_budget=budget)
    known = losses[np.isfinite(losses)]
    return -float(known.mean()) if len(known) == len(losses) else -math.inf
