"""One rank of `test_sharding`: runs every case on a whole base and on one that is shared out.

    python -m tests.training.sharded FOLDER RANK SIZE

Writes FOLDER/RANK.json: by case, what was compared and what came out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from privft.randomness import KeyedStreams
from privft.training.adapter import LoraSpec, attach_classifier, attach_language_model
from privft.training.clipping import UnitGradients
from privft.training.kernels import use_reproducible_kernels
from privft.training.loop import Optimisation, Performance, train
from privft.training.losses import TrainedModel, trained_parameters
from privft.training.quantised import Bits, quantise
from privft.training.ranks import Ranks, joined
from privft.training.sharding import frozen_bytes, shard_base
from tests.training.tiny import ListUnits, label_units, mechanism, text_units, tiny_bert, tiny_llama

LENGTHS = [[9], [17, 5], [40], [12], [33, 33], [8]]
CASES: dict[str, dict[str, Any]] = {
    "tied, float64": {},
    "untied, float32": {"tied": False, "dtype": torch.float32},
    "tied, bfloat16": {"dtype": torch.bfloat16},
    "upper layer, A frozen": {"spec": LoraSpec(r=2, layers_to_transform=[1], freeze_a=True)},
    "encoder with a head": {"encoder": True},
    "8-bit": {"dtype": torch.float32, "bits": "8-bit"},
}


def model_of(
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float64,
    spec: LoraSpec | None = None,
    encoder: bool = False,
    bits: Bits | None = None,
) -> TrainedModel:
    spec = spec or LoraSpec(r=2)
    model: TrainedModel
    if encoder:
        model = attach_classifier(tiny_bert(dtype=dtype), spec, seed=1, pad_id=0, labels=3)
    else:
        base = tiny_llama(dtype=dtype, tied=tied)
        if bits is not None:
            quantise(base, bits)
        model = attach_language_model(base, spec, seed=1, pad_id=0)
    with torch.no_grad():  # off its start, where A has no gradient
        for name, parameter in trained_parameters(model).items():
            torch.manual_seed(len(name))
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def units_of(*, encoder: bool = False, **rest: Any) -> list[Any]:
    return label_units(LENGTHS, labels=3) if encoder else text_units(LENGTHS)


def gradients(model: TrainedModel, units: list[Any]) -> list[dict[str, torch.Tensor]]:
    again, of_units = UnitGradients(model, recompute=True), UnitGradients(model)
    return [of_units([unit]) for unit in units] + [again([unit]) for unit in units[:2]]


def trained(model: TrainedModel, units: list[Any], ranks: Ranks) -> dict[str, torch.Tensor]:
    train(
        model,
        units=ListUnits(units),
        canaries=[],
        mechanism=mechanism(steps=3, sampling_probability=0.6),
        max_records_per_unit=2,
        optimisation=Optimisation(learning_rate=0.1),
        performance=Performance(token_budget=40),
        streams=KeyedStreams(bytes(32)),
        context={},
        journal=lambda step, digest: None,
        save=lambda state: None,
        ranks=ranks,
    )
    return {name: p.detach() for name, p in trained_parameters(model).items()}


def compare(case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    units = units_of(**case)
    whole, part = model_of(**case), model_of(**case)
    whole_bytes = frozen_bytes(whole)
    shard_base(part, ranks)
    expected, found = gradients(whole, units), gradients(part, units)
    equal = all(
        torch.equal(one[name], other[name])
        for one, other in zip(expected, found, strict=True)
        for name in one
    )
    moving = all(bool(gradient.any()) for gradient in found[0].values())
    rest = frozen_bytes(part)
    after_whole, after_part = trained(whole, units, ranks), trained(part, units, ranks)
    return {
        "gradients_equal": equal,
        "every_gradient_moves": moving,
        "share": rest / whole_bytes,
        "share_after_training": frozen_bytes(part) / whole_bytes,
        "trained_equal": all(torch.equal(after_whole[n], after_part[n]) for n in after_whole),
    }


def main(folder: Path, rank: int, size: int) -> None:
    use_reproducible_kernels()
    store = dist.FileStore(str(folder / "store"), size)
    with joined(store, rank=rank, size=size, hosts=1, local_rank=0, timeout_s=120) as ranks:
        found = {name: compare(case, ranks) for name, case in CASES.items()}
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
