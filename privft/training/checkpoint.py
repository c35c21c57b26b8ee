"""The state of a run between two steps: as bytes to be sealed, and as a digest.

Format of the bytes (never pickle): one safetensors file with
    parameter/NAME        each trained parameter
    KEY/NAME              the optimiser's tensors of that parameter (exp_avg, exp_avg_sq,
                          momentum_buffer, noise_sq, and `step` as scalars)
    clip_norm             float64, shape []: that of the next step, which adaptive clipping moves
and the metadata {"format": "privft-state-v1", "step": "<completed steps>"}.

The digest is SHA-256 over the context (hashes of plan and manifest, `Performance`, platform), the
step, the clip norm, and every tensor's name, type, shape and bytes in the order of names.  A step
may be done again only from a state of the same digest (DESIGN.md, invariant 3): the same noise on
two different sums would cancel.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import struct
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from privft.errors import IntegrityError

FORMAT = "privft-state-v1"
_SETTINGS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


def platform_facts() -> dict[str, Any]:
    """What must be equal for a step to give the same bits again.

    Libraries choose kernels by maker, instructions and caches of a processor, and by settings of
    theirs: two with AVX-512 give other bits where one of them has AMX.
    """
    processor = torch.cpu.get_capabilities()
    return {
        "machine": platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": {
            name: fact for name, fact in processor.items() if fact and not name.startswith("num_")
        },
        "kernel_settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, parameter in parameters.items():
        found[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    return dict(sorted(found.items()))


def state_digest(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    clip_norm: float,
    context: Mapping[str, Any],
) -> str:
    """The hex digest of the state after `step` completed steps."""
    digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode())
    digest.update(struct.pack(">Qd", step, clip_norm))
    for name, tensor in _tensors(parameters, optimizer).items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pack_state(
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    clip_norm: float,
) -> bytes:
    """The state after `step` completed steps, in the format of the module's docstring."""
    metadata = {"format": FORMAT, "step": str(step)}
    tensors = _tensors(parameters, optimizer)
    tensors["clip_norm"] = torch.tensor(clip_norm, dtype=torch.float64)
    packed: bytes = save_tensors(tensors, metadata=metadata)
    return packed


def restore_state(
    state: bytes, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    """Put `state` back, in place; the number of completed steps, and the clip norm of the next."""
    try:
        (length,) = struct.unpack_from("<Q", state)
        metadata = json.loads(state[8 : 8 + length])["__metadata__"]
        tensors = load_tensors(state)
        step = int(metadata["step"])
        clip_norm = float(tensors.pop("clip_norm"))
    except Exception as error:
        raise IntegrityError(
            f"a checkpoint of {len(state)} bytes is not in the format {FORMAT}"
        ) from error
    expected = {f"parameter/{name}" for name in parameters}
    found = {name for name in tensors if name.startswith("parameter/")}
    if metadata["format"] != FORMAT or expected != found:
        raise IntegrityError(
            f"a checkpoint holds {len(found)} trained parameters, this run has {len(expected)}"
        )
    for name, parameter in parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors.pop(f"parameter/{name}"))
    for full, tensor in tensors.items():
        key, name = full.split("/", 1)
        # scalars stay on the host, as torch.optim keeps its `step`
        target = parameters[name]
        optimizer.state[target][key] = tensor.to(target.device) if tensor.dim() else tensor
    return step, clip_norm
