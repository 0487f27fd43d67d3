"""ReLU of a max-pooling in one pass, forward and back, without a table of indices.

ReLU never decreases, so ``relu(max(x)) = max(relu(x))``: after the pooling it has four times fewer values to look at.
PyTorch's max-pooling keeps a 64-bit index for each maximum, fills the gradient with zeros and scatters into it; on a
processor that takes a quarter of a step of the reference CNN. Here the maximum is looked up again in the values, and
each gradient is written once. Values and gradients are PyTorch's, bit for bit: of equal maxima the first one counts.

It needs the extra ``speed`` (numba) and a few seconds to compile, so it is used in training only, on a processor, for
maps that are large and lie channels-last. Everywhere else PyTorch does it.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from osler import kernels

# Maps with fewer values are pooled in milliseconds: compiling would not be earned back.
LEAST = 2**22

# Numbers of one sign have the order of their bits; sign and magnitude: masks, and the bits of infinity.
_BITS = {torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80), torch.float32: (torch.int32, 0x7FFFFFFF, 0x7F800000)}


class MaxPoolReLU(nn.Module):
    """``relu(max_pool(x))`` over windows of two along each axis, along 2 or 3 spatial axes."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *half"]:
        if self.training and _suits(x):
            pooled: Tensor = _MaxPoolReLU.apply(x)  # type: ignore[no-untyped-call]
            return pooled
        return F.relu(F.max_pool2d(x, 2) if self.dims == 2 else F.max_pool3d(x, 2), inplace=True)


def _suits(x: Tensor) -> bool:
    large = x.ndim == 4 and x.numel() >= LEAST and x.requires_grad and torch.is_grad_enabled()
    here = large and x.device.type == "cpu" and x.dtype in _BITS
    return here and x.is_contiguous(memory_format=torch.channels_last) and find_spec("numba") is not None


class _MaxPoolReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pooled = x.new_empty(batch, height // 2, width // 2, channels).permute(0, 3, 1, 2)
        _, magnitude, infinity = _BITS[x.dtype]
        bits = _bits(x)
        rest = (bits.dtype.type(magnitude), bits.dtype.type(infinity))
        _in_threads("forward", (bits, _bits(pooled)), rest)
        ctx.save_for_backward(x, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, pooled = ctx.saved_tensors
        back = torch.empty_like(x)
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        _in_threads("backward", tuple(_bits(t) for t in (x, pooled, gradient, back)), ())
        return back


def _bits(x: Tensor) -> np.ndarray:
    """The same memory as whole numbers, ``(batch, height, width, channels)``."""
    values: np.ndarray = x.detach().permute(0, 2, 3, 1).view(_BITS[x.dtype][0]).numpy()
    return values


def _in_threads(name: str, arrays: tuple[np.ndarray, ...], rest: tuple[Any, ...]) -> None:
    """A part of the batch for each thread of torch. Images do not touch each other: the bits are always the same."""
    loop = getattr(kernels.find("pooling"), name)
    kernels.spread(
        lambda first, last: loop(*(array[first:last] for array in arrays), *rest),
        len(arrays[0]),
        torch.get_num_threads(),
    )
