"""Occlusion: how much less sure the answer is when a box of the image is hidden (Zeiler and Fergus, 2014)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from osler.explanations import Target, removed, score

Window = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        box: side of the box, as a share of each axis.
        places: of the box along each axis; 0: 9 in a plane, 5 in a volume.
    """

    box: float = 0.22
    places: int = 0


def available(target: Target) -> bool:
    """Always: nothing but answers is needed."""
    return True


def explain(target: Target, x: Float[Tensor, "1 t c d h w"], options: Options) -> Float[Tensor, "d h w"]:
    """At each pixel the mean fall of the score over the boxes that hid it; where it rose, 0.

    A box counts most for its middle, and is filled in from around it.
    """
    total, times = x.new_zeros(x.shape[3:]), x.new_zeros(x.shape[3:])
    windows = boxes(x.shape[3:], options)
    with torch.no_grad():
        whole = score(target, x)
        parts = [score(target, part) for part in removed(x, _outside(windows, total))]
    hat = _hat([part.stop - part.start for part in windows[0]]).to(x)
    for window, fall in zip(windows, whole - torch.cat(parts), strict=True):
        total[window] += fall * hat
        times[window] += hat
    return (total / times).clamp(min=0)


def boxes(size: torch.Size, options: Options) -> list[Window]:
    """Boxes that together cover an image of ``(depth, height, width)`` evenly."""
    wanted = options.places or (9 if size[0] == 1 else 5)
    along = []
    for length in size:
        side = min(length, max(1, round(options.box * length)))
        places = max(wanted, -(-length // side))
        starts = np.unique(np.linspace(0, length - side, min(places, length - side + 1)).round().astype(int))
        along.append([slice(int(start), int(start) + side) for start in starts])
    return list(product(*along))


def _outside(windows: list[Window], like: Tensor) -> Iterator[Tensor]:
    for window in windows:
        kept = torch.ones_like(like)
        kept[window] = 0
        yield kept


def _hat(sides: list[int]) -> Float[Tensor, "d h w"]:
    """1 in the middle of a box and falling in straight lines towards its faces, where it stays above 0."""
    depth, height, width = (1 - (torch.arange(n) - (n - 1) / 2).abs() / (n / 2) for n in sides)
    return depth[:, None, None] * height[:, None] * width
