"""Generalised mean pooling (Radenovic, Tolias and Chum, 2018, arXiv:1711.02512): between average and maximum."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from osler.problem import Problem


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        p: the exponent to start from, > 0: 1 is the average, infinity the maximum.
        learned: adjust it while training.
    """

    p: float = 3.0
    learned: bool = True


class GeM(nn.Module):
    """(mean of x^p)^(1/p) over the map, one p for all features; values below 1e-6 count as 1e-6."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        # Learned as a logarithm, p cannot become 0 or negative.
        self.log_p = nn.Parameter(torch.tensor(math.log(options.p)), requires_grad=options.learned)

    def forward(self, maps: Float[Tensor, "b k *size"]) -> Float[Tensor, "b k"]:
        with torch.autocast(maps.device.type, enabled=False):
            x = maps.flatten(2)
            x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
            x = x.clamp(min=1e-6)
            # Relative to the largest value no power can overflow; the mean is homogeneous, so that the gradient
            # needs no part through ``largest``.
            largest = x.detach().amax(2, keepdim=True)
            p = self.log_p.to(x.dtype).exp()
            mean = (x / largest).pow(p).mean(2).pow(1 / p)
            return (mean * largest.squeeze(2)).to(maps.dtype)


def build(options: Options, *, features: int) -> GeM:
    """Generalised mean pooling.

    Raises:
        Problem: ``p`` is not positive.
    """
    if not (math.isfinite(options.p) and options.p > 0):
        raise Problem(
            f"the exponent p of the pooling gem must be a positive number; got {options.p}", fix="3 is usual"
        )
    return GeM(options)
