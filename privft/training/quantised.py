"""A frozen base held in 8 or 4 bits a number.

    8-bit   whole numbers from -127 to 127 with one float32 scale a row: the largest size in it
            (the weights' part of Dettmers et al. 2022, arXiv 2208.07339)
    4-bit   NormalFloat 4 with one float32 scale for each 64 numbers of a row, two numbers a byte,
            the first in the upper half (Dettmers et al. 2023, QLoRA, arXiv 2305.14314)

The numbers are those of bitsandbytes (`load_in_4bit` with nf4 and no double quantisation; a test
compares), so that what is trained here fits a base that is loaded so.  Its layers are not used.
The 8-bit one quantises activations too, and singles out columns in which any row of the batch has
a large number, so that a unit's gradient would depend on its companions; the 4-bit one multiplies
by routines whose bits depend on the number of rows.  Here weights alone are quantised: a matrix is
turned back into the base's own type when it is needed, forward and backward, and multiplied as any
other (`kernels.product`).  Gradients are exact for the base that the numbers stand for, and
companions change no bit more than they do on a whole base.

Quantised are the linear layers inside the row of layers; embeddings, output embedding and norms
stay as they are.  They are quantised when the base is loaded, on the host, before anything moves
to a device; for that moment the host holds the whole base.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from privft.errors import InputError
from privft.training.kernels import product

Bits = Literal["8-bit", "4-bit"]
_BLOCK = 64
_LEAST = 1e-30
"""A scale of zero would divide by zero; its numbers are zero whatever they are divided by."""
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values of NormalFloat 4: QLoRA, appendix E."""


class QuantisedLinear(nn.Linear):
    """A frozen linear layer.  `weight` holds what is stored: int8 [N, K], or uint8 [N, K/2], two
    numbers a byte; `scales` float32 [N, 1], or [N, K/64].  Rows can be shared out (`sharding`)."""

    def __init__(self, layer: nn.Linear, bits: Bits) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bits = layer.in_features, layer.out_features, bits
        self.wide = layer.weight.dtype
        stored, scales = _quantise(layer.weight.detach(), bits)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = layer.bias

    def whole(self) -> torch.Tensor:
        """The matrix, [N, K], in the base's type."""
        return _dequantise(self.weight, self.scales, self.bits).to(self.wide)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As `nn.Linear`."""
        result: torch.Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    """x W^T + b with a W that is made when it is needed, and not kept."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return product(input, layer.whole(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return product(gradients[0], ctx.layer.whole().t(), None), None


def quantise(base: nn.Module, bits: Bits) -> None:
    """Quantise the frozen linear layers of a base, in place.

    Errors: `InputError` where there are none, or a row of one does not divide into blocks.
    """
    rows = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    if not rows:
        raise InputError("this architecture has no list of layers, so it cannot be quantised")
    for parent in [module for row in rows for module in row.modules()]:
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, QuantisedLinear(layer, bits))


def _quantise(weight_NK: torch.Tensor, bits: Bits) -> tuple[torch.Tensor, torch.Tensor]:
    """What is stored, and its scales."""
    rows, columns = weight_NK.shape
    wide = weight_NK.float()
    if bits == "8-bit":
        scales = wide.abs().amax(1, keepdim=True)
        return (wide * (127 / scales.clamp(min=_LEAST))).round().to(torch.int8), scales
    if columns % _BLOCK:
        raise InputError(
            f"a matrix has rows of {columns} numbers, which are not blocks of {_BLOCK}",
            hint="model.quantization: 8-bit, or none",
        )
    blocks = wide.reshape(rows, -1, _BLOCK)
    scales = blocks.abs().amax(2)
    code = torch.tensor(_NF4)
    between = (code[1:] + code[:-1]) / 2
    places = torch.bucketize(blocks / scales.clamp(min=_LEAST)[..., None], between)
    pairs = places.reshape(rows, -1, 2).to(torch.uint8)
    return pairs[..., 0] << 4 | pairs[..., 1], scales


def _dequantise(stored: torch.Tensor, scales: torch.Tensor, bits: Bits) -> torch.Tensor:
    """[N, K], float32."""
    if bits == "8-bit":
        return stored.float() * (scales / 127)
    rows = stored.shape[0]
    places = torch.stack((stored >> 4, stored & 15), dim=-1)
    code = torch.tensor(_NF4, device=stored.device)
    blocks = code[places.int()].reshape(rows, -1, _BLOCK)
    return (blocks * scales[..., None]).reshape(rows, -1)
