"""The frozen base shared out among ranks, what is trained whole on each of them (FSDP2).

Each rank keeps 1/n of every frozen tensor (torch's `fully_shard`, Zhao et al. 2023, arXiv
2304.11277, in its second form).  A layer is gathered when it runs, forward and backward, and let go
again; embeddings are gathered for a whole pass.  Trained parameters are ignored by it: they are
small, every rank has all of them, and per-unit gradients need them whole.  What is gathered has the
bits of what was shared out, and products are the same (`kernels`), so a unit's gradient has the
same bits as without.

A gathering is one message to all: each rank must run the model as often as the others, or they
wait for each other for ever.  `passes` says how often in a step that is; a rank that has fewer
microbatches runs a made-up one and drops what comes out (`clipping.UnitGradients.idle`).

Not shared out: what a rank reads when it loads the base.  For that moment the host needs the whole
model for each of its ranks; the device needs one layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from privft.errors import InputError
from privft.training.examples import UnitExamples, microbatches
from privft.training.losses import LanguageModel, TrainedModel
from privft.training.ranks import Ranks, shares


def shard_base(model: TrainedModel, ranks: Ranks) -> None:
    """Leave 1/`ranks.size` of the frozen base in this process; in place.

    All ranks call it, after they joined and before the first step.
    Errors: `InputError` where the base has no row of layers to gather one by one, or where layers
    of it are trained whole, which every rank needs as they are.
    """
    if ranks.size == 1:
        return
    whole = [n for n, p in model.module.named_parameters() if p.requires_grad and "lora_" not in n]
    if any(not name.startswith("head.") for name in whole):
        raise InputError(
            f"{len(whole)} tensors of the base are trained whole, so it cannot be shared out",
            hint="leave out lora.modules_to_save, or ranks.shard_base",
        )
    body = _body(model)
    layers = _layers(body)
    mesh = init_device_mesh(model.device.type, (ranks.size,))
    own = {p for name, p in model.module.named_parameters() if p.requires_grad or "lora_" in name}
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=own)
    fully_shard(body, mesh=mesh, ignored_params=own)
    if isinstance(model, LanguageModel):
        if model.tied:  # the decoder's embedding is the one that is kept up to date
            model.output.weight = model.embeddings.weight
        else:
            weight = cast(torch.Tensor, model.output.weight).detach()
            shared = distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None)
            model.output.weight = nn.Parameter(shared, requires_grad=False)


def _body(model: TrainedModel) -> nn.Module:
    """The module that a pass runs through: a decoder, or an encoder."""
    if isinstance(model, LanguageModel):
        return model.decoder
    encoder: Any = model.encoder
    return cast(nn.Module, encoder.get_base_model() if hasattr(encoder, "peft_config") else encoder)


def _layers(body: nn.Module) -> Sequence[nn.Module]:
    rows: list[nn.Module] = [m for m in body.modules() if isinstance(m, nn.ModuleList)]
    if not rows:
        raise InputError(
            "this architecture has no list of layers, so its base cannot be shared out",
            hint="ranks.shard_base: false",
        )
    largest = max(rows, key=lambda row: sum(p.numel() for p in row.parameters()))
    return list(largest.children())


def frozen_bytes(model: TrainedModel) -> int:
    """Bytes of the base that this process holds between two steps, adapter not counted."""
    found = {}
    for name, parameter in model.module.named_parameters():
        if not parameter.requires_grad and "lora_" not in name:
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            storage = local.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def is_sharded(model: TrainedModel) -> bool:
    """Whether other ranks hold parts of this model's base."""
    return any(isinstance(p, DTensor) for p in model.module.parameters())


def passes(units: Sequence[UnitExamples], ranks: Ranks, *, token_budget: int) -> int:
    """How often each rank runs the model on a sample: as often as the one with most to do."""
    return max(
        sum(1 for _ in microbatches(share, token_budget=token_budget))
        for share in shares(units, ranks.size)
    )
