"""Grad-CAM: the last feature maps, weighted by how much the answer grows with them (Selvaraju 2017)."""

from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from osler.explanations import Explained, log_odds, on_the_grid


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        gradient: ``mean`` over the map, as published; ``place``: at each place its own, which is exact where a
            linear layer follows the map (HiResCAM; Draelos and Carin, 2020, arXiv:2011.08891). With average
            pooling both are the same.
        shifts: the mean over so many copies of the image, along each axis on which the map is coarser than the
            image, each moved by a part of the map's step and moved back: it shows where between two places of the
            map the evidence lies. 1 is the image alone, as published.
    """

    gradient: Literal["mean", "place"] = "mean"
    shifts: int = 3


def available(network: Explained) -> bool:
    """Always: every network has a last feature map."""
    return True


def explain(
    network: Explained, x: Float[Tensor, "1 t c d h w"], task: str, target: int, options: Options
) -> Float[Tensor, "d h w"]:
    """The sum over channels of weight times feature, its positive part, enlarged from the feature map's grid."""
    with torch.no_grad():
        first = network.maps(x)
    steps = [n // places for n, places in zip(x.shape[8 - first.ndim :], first.shape[2:], strict=True)]
    total, times = x.new_zeros(x.shape[3:]), x.new_zeros(x.shape[3:])
    for shift in product(*(_shifts(step, options.shifts) for step in [1] * (3 - len(steps)) + steps)):
        moved, here, there = x, [], []
        for axis, by in enumerate(shift):
            place = torch.arange(x.shape[3 + axis], device=x.device)
            moved = moved.index_select(3 + axis, (place + by).clamp(0, len(place) - 1))
            here.append(slice(max(0, -by), len(place) - max(0, by)))
            there.append(slice(max(0, by), len(place) - max(0, -by)))
        total[tuple(there)] += _once(network, moved, task, target, options)[tuple(here)]
        times[tuple(there)] += 1
    return total / times


def _shifts(step: int, count: int) -> list[int]:
    """Evenly over one step of the map, as many to each side."""
    middle = (count - 1) / 2
    return sorted({round((number - middle) / count * step) for number in range(count)}) if step > 1 else [0]


def _once(
    network: Explained, x: Float[Tensor, "1 t c d h w"], task: str, target: int, options: Options
) -> Float[Tensor, "d h w"]:
    with torch.no_grad():
        maps = network.maps(x)
    with torch.enable_grad():
        maps = maps.clone().requires_grad_()
        outputs = network.answer(network.vector(maps, 1))[task]
        (gradient,) = torch.autograd.grad(log_odds(outputs, network.tasks[task].question, target).sum(), maps)
    if options.gradient == "mean":
        gradient = gradient.mean(tuple(range(2, maps.ndim)), keepdim=True)
    # Moments share the answer among them; undone here, a longer sequence is no colder.
    evidence = (gradient * maps.detach()).sum(1).clamp(min=0) * x.shape[1]
    return on_the_grid(evidence.float(), x, network.dims)
