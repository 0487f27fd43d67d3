"""ReLU of a max-pooling in one pass, forward and back, without a table of indices.

ReLU never decreases, so ``relu(max(x)) = max(relu(x))``: after the pooling it has four times fewer values to look at.
PyTorch's max-pooling keeps a 64-bit index for each maximum, fills the gradient with zeros and scatters into it; on a
processor that takes a quarter of a step of the reference CNN. Here the maximum is looked up again in the values, and
each gradient is written once. Values and gradients are PyTorch's, bit for bit: of equal maxima the first one counts.

It needs the extra ``speed`` (numba) and a few seconds to compile, so it is used in training only, on a processor, for
maps that are large and lie channels-last. Everywhere else PyTorch does it.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

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
        _in_threads(_kernels()[0], (bits, _bits(pooled)), (bits.dtype.type(magnitude), bits.dtype.type(infinity)))
        ctx.save_for_backward(x, pooled)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, pooled = ctx.saved_tensors
        back = torch.empty_like(x)
        gradient = gradient.to(x.dtype).contiguous(memory_format=torch.channels_last)
        _in_threads(_kernels()[1], tuple(_bits(t) for t in (x, pooled, gradient, back)), ())
        return back


def _bits(x: Tensor) -> np.ndarray:
    """The same memory as whole numbers, ``(batch, height, width, channels)``."""
    values: np.ndarray = x.detach().permute(0, 2, 3, 1).view(_BITS[x.dtype][0]).numpy()
    return values


def _in_threads(kernel: Callable[..., None], arrays: tuple[np.ndarray, ...], rest: tuple[Any, ...]) -> None:
    """A part of the batch for each thread of torch. Images do not touch each other: the bits are always the same."""
    threads = min(torch.get_num_threads(), len(arrays[0]))
    edges = [len(arrays[0]) * number // threads for number in range(threads + 1)]

    def part(number: int) -> None:
        kernel(*(array[edges[number] : edges[number + 1]] for array in arrays), *rest)

    if threads == 1:
        part(0)
    else:
        list(_pool(threads).map(part, range(threads)))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="osler-max-relu")


@cache
def _kernels() -> tuple[Callable[..., None], Callable[..., None]]:
    import numba

    compiled = numba.njit(nogil=True, error_model="numpy")
    return compiled(_forward), compiled(_backward)


@no_type_check  # compiled as it stands: no check of shapes around it
def _forward(x: np.ndarray, pooled: np.ndarray, magnitude: Any, infinity: Any) -> None:
    """The largest of four and 0, as whole numbers; a NaN of either sign stays a NaN."""
    batch, height, width, channels = pooled.shape
    zero = x.dtype.type(0)
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                for k in range(channels):
                    a, b = x[n, 2 * i, 2 * j, k], x[n, 2 * i, 2 * j + 1, k]
                    c, d = x[n, 2 * i + 1, 2 * j, k], x[n, 2 * i + 1, 2 * j + 1, k]
                    largest = max(max(max(a, b), max(c, d)), zero)
                    extent = max(max(a & magnitude, b & magnitude), max(c & magnitude, d & magnitude))
                    pooled[n, i, j, k] = extent if extent > infinity else largest


@no_type_check
def _backward(x: np.ndarray, pooled: np.ndarray, gradient: np.ndarray, back: np.ndarray) -> None:
    """The gradient to the first of the four that is the maximum, if that is positive; the others get 0.

    ``left ^ taken`` is 0 once the gradient was taken, and the gradient before.
    """
    batch, height, width, channels = pooled.shape
    zero = x.dtype.type(0)
    for n in range(batch):
        # What an odd height or width leaves over is in no window.
        back[n, 2 * height :] = zero
        back[n, :, 2 * width :] = zero
        for i in range(height):
            for j in range(width):
                for k in range(channels):
                    largest = pooled[n, i, j, k]
                    left = gradient[n, i, j, k] if largest > zero else zero
                    taken = left if x[n, 2 * i, 2 * j, k] == largest else zero
                    back[n, 2 * i, 2 * j, k] = taken
                    left ^= taken
                    taken = left if x[n, 2 * i, 2 * j + 1, k] == largest else zero
                    back[n, 2 * i, 2 * j + 1, k] = taken
                    left ^= taken
                    taken = left if x[n, 2 * i + 1, 2 * j, k] == largest else zero
                    back[n, 2 * i + 1, 2 * j, k] = taken
                    back[n, 2 * i + 1, 2 * j + 1, k] = left ^ taken
