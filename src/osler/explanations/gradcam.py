"""Grad-CAM: the last feature maps, weighted by how much the answer grows with them (Selvaraju 2017).

The score of a box or a segment comes from all levels of the network, and from one place: so there the maps of all
levels are weighted, each place with its own gradient (as in Seg-XRes-CAM; Hasany 2023), and what a level's place adds
is spread over the pixels that it stands for.
"""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from osler.explanations import Target, on_the_grid


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        gradient: ``mean`` over the map, as published; ``place``: at each place its own, which is exact where a
            linear layer follows the map (HiResCAM; Draelos and Carin, 2020, arXiv:2011.08891). With average
            pooling both are the same. Of one place always ``place``.
        shifts: the mean over so many copies of the image, along each axis on which the map is coarser than the
            image, each moved by a part of the map's step and moved back: it shows where between two places of the
            map the evidence lies. 1 is the image alone, as published; so it is for one place, which
            must not move.
    """

    gradient: Literal["mean", "place"] = "mean"
    shifts: int = 3


def available(target: Target) -> bool:
    """Always: every network has a last feature map."""
    return True


def explain(target: Target, x: Float[Tensor, "1 t c d h w"], options: Options) -> Float[Tensor, "d h w"]:
    """The sum over channels of weight times feature, its positive part, enlarged from the feature map's grid."""
    with torch.no_grad():
        first = target.levels(x)
    if target.pooling is None:
        return _once(target, x, options)
    steps = [n // places for n, places in zip(x.shape[8 - first[0].ndim :], first[0].shape[2:], strict=True)]
    total, times = x.new_zeros(x.shape[3:]), x.new_zeros(x.shape[3:])
    for shift in product(*(_shifts(step, options.shifts) for step in [1] * (3 - len(steps)) + steps)):
        moved, here, there = x, [], []
        for axis, by in enumerate(shift):
            place = torch.arange(x.shape[3 + axis], device=x.device)
            moved = moved.index_select(3 + axis, (place + by).clamp(0, len(place) - 1))
            here.append(slice(max(0, -by), len(place) - max(0, by)))
            there.append(slice(max(0, by), len(place) - max(0, -by)))
        total[tuple(there)] += _once(target, moved, options)[tuple(here)]
        times[tuple(there)] += 1
    return total / times


def _shifts(step: int, count: int) -> list[int]:
    """Evenly over one step of the map, as many to each side."""
    middle = (count - 1) / 2
    return sorted({round((number - middle) / count * step) for number in range(count)}) if step > 1 else [0]


def _once(target: Target, x: Float[Tensor, "1 t c d h w"], options: Options) -> Float[Tensor, "d h w"]:
    with torch.no_grad():
        found = target.levels(x)
    with torch.enable_grad():
        levels = [maps.clone().requires_grad_() for maps in found]
        gradients = torch.autograd.grad(target.score(levels, 1).sum(), levels, allow_unused=True)
    heat = x.new_zeros(x.shape[3:])
    for maps, gradient in zip(found, gradients, strict=True):
        if gradient is None:
            continue
        if options.gradient == "mean" and target.pooling is not None:
            gradient = gradient.mean(tuple(range(2, maps.ndim)), keepdim=True)
        # Moments share the answer among them; undone here, a longer sequence is no colder.
        moments = len(maps) // (x.shape[3] if target.dims == 2 else 1)
        evidence = (gradient * maps).sum(1).clamp(min=0) * moments
        share = 1.0 if target.pooling is not None else evidence[0].numel() / x[0, 0, 0].numel()
        heat = heat + on_the_grid(evidence.float(), x, target.dims) * share
    return heat
