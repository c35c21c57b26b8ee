"""One step of the very model that is about to be trained, checked before the first real one.

`audit.selfcheck` attacks the mechanism on a tiny model, where many runs are cheap.  This looks at
the model at hand, on made-up units and never on the vault:

    influence         taking one unit away changes the sum of clipped gradients by at most the
                      clip norm, with short and long units, one record and several
    coverage          every trained parameter gets a gradient from every unit; looked at a little
                      off the start, since there LoRA's B (and a classifier's head) are zero, and
                      what is multiplied by them rightly gets none
    companions        whether what else is in a microbatch changes the bits of a unit's clipped
                      gradient, and if so by how much, in clip norms: rounding only, reported
    engines           Opacus, which shares no code with privft's own per-unit gradients, finds the
                      same gradient for each unit but for rounding (again off the start)

All of it as the run itself does it: with dropout on where the run has dropout (masks keyed by a
secret of this check's own; Opacus is given the same masks), with activations computed again where
the run does so (Opacus keeps them), and with layers that are trained whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch

from privft.audit.canaries import Vocabulary
from privft.audit.selfcheck import Check
from privft.budget.mechanism import Mechanism
from privft.randomness import KeyedStreams, fresh_secret
from privft.training.adaptive import joint_influence
from privft.training.clipping import COUNT, UnitGradients, clip_factors, unit_norms
from privft.training.dropout import Masks
from privft.training.examples import UnitExamples, microbatches
from privft.training.loop import clipped_sum, grid_for
from privft.training.losses import BLOCK_TOKENS, TrainedModel
from privft.training.opacus_engine import opacus_gradients

_COMPANION_LIMIT = 0.02
_TOKEN_BUDGET = 512
_OFFSET = 0.01
_ENGINES_LIMIT, _ENGINES_LIMIT_NARROW = 1e-3, 0.1  # of a unit's gradient; the second for bfloat16


def check_step(
    model: TrainedModel,
    encode: Callable[[Mapping[str, Any]], UnitExamples],
    vocabulary: Vocabulary,
    *,
    mechanism: Mechanism,
    task: Literal["causal-lm", "sequence-classification"],
    max_length: int,
    gradient_checkpointing: bool = False,
) -> list[Check]:
    """The checks of the module's docstring; `model` is afterwards what it was before."""
    units = [encode(unit) for unit in _made_up(vocabulary, task, max_length)]
    streams = KeyedStreams(fresh_secret())
    gradients_of = UnitGradients(model, recompute=gradient_checkpointing).at(streams, step=0)
    cases: list[tuple[UnitExamples, Sequence[int]]] = [(unit, (2, 4)) for unit in units]
    if task == "causal-lm":
        cases.append(_more_than_a_block(encode, vocabulary, max_length))
    return [
        _influence(gradients_of, units, mechanism),
        _coverage(gradients_of, units),
        _companions(gradients_of, cases, mechanism.clip_norm),
        _engines(model, gradients_of, units, streams),
    ]


def _made_up(vocabulary: Vocabulary, task: str, max_length: int) -> list[dict[str, Any]]:
    lengths = [[6], [12, 5], [min(24, max_length)], [12]]
    units = []
    for place, unit in enumerate(lengths):
        records = []
        for number, length in enumerate(unit):
            start = 7 * place + 3 * number
            words = [vocabulary.words[(start + i) % len(vocabulary.words)] for i in range(length)]
            record: dict[str, Any] = {"id": f"{place}-{number}", "text": " ".join(words)}
            if task == "sequence-classification":
                record["label"] = vocabulary.labels[place % len(vocabulary.labels)]
            records.append(record)
        units.append({"unit": f"check-{place}", "records": records})
    return units


def _more_than_a_block(
    encode: Callable[[Mapping[str, Any]], UnitExamples], vocabulary: Vocabulary, max_length: int
) -> tuple[UnitExamples, Sequence[int]]:
    """A long record, and so many of it (five at most) that their labels lie in two blocks."""
    words = [
        vocabulary.words[place % len(vocabulary.words)]
        for place in range(min(BLOCK_TOKENS // 2 + 2, max_length))
    ]
    unit = encode({"unit": "check-long", "records": [{"id": "long", "text": " ".join(words)}]})
    return unit, (min(5, BLOCK_TOKENS // unit.examples[0].labelled + 1),)


def _size(change: Mapping[str, torch.Tensor]) -> float:
    return float(torch.sqrt(sum((value**2).sum() for value in change.values())))  # type: ignore[arg-type]


def _influence(
    gradients_of: UnitGradients, units: Sequence[UnitExamples], mechanism: Mechanism
) -> Check:
    clip_norm, grid = mechanism.clip_norm, grid_for(mechanism, gradients_of)

    def total(some: Sequence[UnitExamples]) -> dict[str, torch.Tensor]:
        sums = clipped_sum(
            gradients_of,
            some,
            clip_norm=clip_norm,
            token_budget=_TOKEN_BUDGET,
            clipping=mechanism.clipping,
            grid=grid,
        )
        if grid is None:
            return sums
        return {n: v if n == COUNT else v.double() * grid.step for n, v in sums.items()}

    whole = total(units)
    largest = 0.0
    for place in range(len(units)):
        rest = total([*units[:place], *units[place + 1 :]])
        change = {name: whole[name] - rest[name] for name in whole}
        largest = max(largest, joint_influence(change, mechanism, clip_norm))
    return Check(
        check="influence of one unit on this model",
        ok=0 < largest <= 1 + _COMPANION_LIMIT,
        detail=f"taking away one of {len(units)} units moved the sum by at most {largest:.6f} "
        + (
            "clip norms"
            if mechanism.count_noise is None
            else "of what the noise multiplier counts, with the count of unclipped units"
        )
        + (", with dropout on" if gradients_of.drops else ""),
    )


@contextmanager
def _off_the_start(parameters: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """Parameters moved a little, and afterwards what they were before."""
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(
                _OFFSET * torch.randn(parameter.shape, generator=generator).to(parameter)
            )
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name])


def _coverage(gradients_of: UnitGradients, units: Sequence[UnitExamples]) -> Check:
    parameters = gradients_of.parameters
    with _off_the_start(parameters):
        alone = [gradients_of([unit]) for unit in units]
    bare = [n for n in parameters if not all(bool(gradient[n].any()) for gradient in alone)]
    return Check(
        check="every trained parameter gets a gradient",
        ok=bool(parameters) and not bare,
        detail=f"{len(parameters) - len(bare)} of {len(parameters)} tensors, from each of "
        f"{len(alone)} units",
    )


def _companions(
    gradients_of: UnitGradients,
    cases: Sequence[tuple[UnitExamples, Sequence[int]]],
    clip_norm: float,
) -> Check:
    """Units beside copies of themselves: the same shapes as companions of their bucket.

    cases: a unit, and how many there are of it.
    Bits are compared: of the gradient, and of the factor that clips it.
    """
    worst, differing, compared = 0.0, 0, 0
    for unit, numbers in cases:
        single = gradients_of([unit])
        factor = clip_factors(unit_norms(single), clip_norm)
        for copies in numbers:
            compared += 1
            many = gradients_of([unit] * copies)
            factors = clip_factors(unit_norms(many), clip_norm)
            same = bool(factors[-1] == factor[0]) and all(
                torch.equal(many[name][-1], single[name][0]) for name in single
            )
            change = {
                name: many[name][-1].double() * factors[-1] - single[name][0].double() * factor[0]
                for name in single
            }
            worst, differing = max(worst, _size(change) / clip_norm), differing + (not same)
    return Check(
        check="companions in a microbatch",
        ok=worst <= _COMPANION_LIMIT,
        detail=f"changed the bits of a unit's clipped gradient in {differing} of {compared} "
        + (
            f"cases, by at most {worst:.1e} clip norms (rounding of products whose kernels depend "
            "on the number of rows; not part of the proved sensitivity)"
            if differing
            else "cases"
        ),
    )


def _engines(
    model: TrainedModel,
    gradients_of: UnitGradients,
    units: Sequence[UnitExamples],
    streams: KeyedStreams,
) -> Check:
    worst = 0.0
    with _off_the_start(gradients_of.parameters):
        for batch in microbatches(units, token_budget=_TOKEN_BUDGET):
            masks = Masks(batch, streams=streams, step=0)
            ours, theirs = gradients_of(batch), opacus_gradients(model, batch, masks=masks)
            for row in range(len(batch)):
                apart = {n: ours[n][row].double() - theirs[n][row] for n in ours}
                size = _size({n: gradient[row] for n, gradient in theirs.items()})
                share = _size(apart) / size if size else math.inf
                worst = share if math.isnan(share) else max(worst, share)
    wide = all(p.dtype in (torch.float32, torch.float64) for p in model.module.parameters())
    limit = _ENGINES_LIMIT if wide else _ENGINES_LIMIT_NARROW
    return Check(
        check="Opacus finds the same gradients",
        ok=worst <= limit,
        detail=f"at most {worst:.1e} of a unit's gradient apart, in {len(units)} units",
    )
