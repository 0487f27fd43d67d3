"""Integrated gradients: each pixel's share of the way from a plain image to this one (Sundararajan 2017)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osler.explanations import Target, blurred, score, spread_out


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        steps: points on the way, at which the gradient is taken (Gauss-Legendre).
        baseline: where the way begins: the image ``blur``red, or the ``mean`` of each channel.
        blur: sigma of the Gaussian of that baseline, a share of each axis: about as small as what is looked for.
        smooth: each pixel's share is given to its neighbours with a Gaussian of this sigma, a share of each axis,
            because single pixels flicker; the sum stays. 0 leaves the pixels alone.
    """

    steps: int = 16
    baseline: Literal["blur", "mean"] = "blur"
    blur: float = 0.06
    smooth: float = 0.08


def available(target: Target) -> bool:
    """Always: every network has gradients."""
    return True


def explain(target: Target, x: Float[Tensor, "1 t c d h w"], options: Options) -> Float[Tensor, "d h w"]:
    """*Signed*, summed over channels and moments: the map sums to score(x) - score(baseline), up to the steps."""
    plain = start(x, options)
    points, weights = np.polynomial.legendre.leggauss(options.steps)
    on_the_way, share = (
        torch.from_numpy(one).to(x).view(-1, 1, 1, 1, 1, 1) for one in ((points + 1) / 2, weights / 2)
    )
    total, batch = torch.zeros_like(x), max(1, min(16, 2**20 // x.numel()))
    for first in range(0, options.steps, batch):
        part, weight = on_the_way[first : first + batch], share[first : first + batch]
        point = (x * part + plain * (1 - part)).detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(target, point).sum(), point)
        total += (gradient * weight).sum(0, keepdim=True)
    return spread_out(((x - plain) * total).sum((0, 1, 2)), options.smooth)


def start(x: Float[Tensor, "1 t c d h w"], options: Options) -> Float[Tensor, "1 t c d h w"]:
    """The plain image that the way begins at."""
    return blurred(x, options.blur) if options.baseline == "blur" else x.mean((3, 4, 5), keepdim=True).expand_as(x)
