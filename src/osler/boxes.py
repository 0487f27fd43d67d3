"""Boxes as tensors: overlap, non-maximum suppression, fusion of several answers, and answers of overlapping tiles.

A box is a row of six numbers, ``z0 y0 x0 z1 y1 x1``, by its edges in pixels; in a flat image z goes from 0 to 1, so
that the same few lines hold in 2D and 3D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Boxes that are looked at together. Fewer take more rounds, more compare boxes that are dropped anyway.
_BLOCK = 128


@dataclass(frozen=True, eq=False)
class Boxes:
    """What was found in one image, or in one patch of it.

    Attributes:
        places: ``(n, 6)``.
        scores: ``(n,)``, higher is surer.
        classes: ``(n,)`` numbers of classes.
    """

    places: Float[Tensor, "n 6"]
    scores: Float[Tensor, " n"]
    classes: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Tensor | slice) -> "Boxes":
        """Some of them, by number, by yes and no, or the first few."""
        return Boxes(self.places[rows], self.scores[rows], self.classes[rows])

    def to(self, device: str) -> "Boxes":
        """The same on another device."""
        return Boxes(self.places.to(device), self.scores.to(device), self.classes.to(device))


def join(several: Sequence[Boxes]) -> Boxes:
    """All of them, in order; at least one must be given, though it may be without boxes."""
    return Boxes(*(torch.cat([getattr(each, name) for each in several]) for name in ("places", "scores", "classes")))


def volume(boxes: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """The content of each box, pixels; 0 where it ends before it starts."""
    return (boxes[..., 3:] - boxes[..., :3]).clamp(min=0).prod(-1)


def shared(a: Float[Tensor, "*#n 6"], b: Float[Tensor, "*#n 6"]) -> Float[Tensor, "*n"]:
    """The content that both boxes hold; shapes are broadcast."""
    low, high = torch.maximum(a[..., :3], b[..., :3]), torch.minimum(a[..., 3:], b[..., 3:])
    return (high - low).clamp(min=0).prod(-1)


def overlaps(a: Float[Tensor, "n 6"], b: Float[Tensor, "m 6"]) -> Float[Tensor, "n m"]:
    """Intersection over union of each with each; 0 where both are empty. Without gradients."""
    # Axis by axis and in place: three times as fast as with the axes in a dimension of their own.
    both = torch.ones((), dtype=a.dtype, device=a.device)
    for axis in range(3):
        low = torch.maximum(a[:, axis, None], b[:, axis])
        both = torch.minimum(a[:, axis + 3, None], b[:, axis + 3]).sub_(low).clamp_(min=0).mul_(both)
    return both.div_((volume(a)[:, None] + volume(b)).sub_(both).clamp_(min=1e-9))


def generalised_overlap(a: Float[Tensor, "*n 6"], b: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """Generalised intersection over union (Rezatofighi 2019), -1 to 1, pair by pair: it tells far from near, too."""
    both = shared(a, b)
    union = (volume(a) + volume(b) - both).clamp(min=1e-9)
    hull = (torch.maximum(a[..., 3:], b[..., 3:]) - torch.minimum(a[..., :3], b[..., :3])).prod(-1).clamp(min=1e-9)
    return both / union - (hull - union) / hull


def suppress(boxes: Boxes, overlap: float) -> Boxes:
    """Greedy non-maximum suppression, class by class, in the order of the scores, the surest first.

    A box is dropped where one of its class that was kept has a higher score (or the same, and came first) and
    an intersection over union above ``overlap``. The surest are looked at together, some at a time: who of them is
    kept is the fixed point of "nobody kept drops me", reached in as many steps as the longest chain is long
    (Cluster-NMS; Zheng 2021), and the same as going one by one. They drop what they drop of all the others, and so
    on; memory grows with the number of boxes, not with its square.
    """
    rest = boxes[boxes.scores.argsort(descending=True, stable=True)]
    kept: list[Boxes] = []
    while len(rest):
        first, rest = rest[:_BLOCK], rest[_BLOCK:]
        drops = _drops(first, first, overlap).triu_(1)
        keep = ~drops.any(0)
        while not torch.equal(keep, after := ~drops[keep].any(0)):
            keep = after
        kept.append(first[keep])
        rest = rest[~_drops(kept[-1], rest, overlap).any(0)]
    return join(kept) if kept else boxes


def _drops(a: Boxes, b: Boxes, overlap: float) -> Bool[Tensor, "n m"]:
    return (overlaps(a.places, b.places) > overlap).logical_and_(a.classes[:, None] == b.classes)


def fuse(answers: Sequence[Boxes], overlap: float) -> Boxes:
    """Weighted box fusion (Solovyev, Wang and Gabruseva, 2021) of what several networks or views say of one image.

    Boxes of one class that overlap by more than ``overlap`` become one: each of its edges is the mean of theirs,
    weighted by the scores. The score is their mean score, times the share of answers that saw it: what only one
    of five saw counts a fifth.

    Args:
        answers: one for each network or view; of one alone nothing is fused.
        overlap: least intersection over union with the box fused so far.
    """
    if len(answers) == 1:
        return answers[0]
    boxes = join(answers)
    boxes = boxes[boxes.scores.argsort(descending=True, stable=True)]
    groups = [
        _clusters(boxes[boxes.classes == c], overlap, len(answers)) for c in torch.unique(boxes.classes).tolist()
    ]
    fused = join(groups) if groups else boxes
    return fused[fused.scores.argsort(descending=True, stable=True)]


def _clusters(boxes: Boxes, overlap: float, answers: int) -> Boxes:
    """Fusion of boxes of one class, the surest first."""
    # One box after the other: numpy takes a tenth of torch's time for each of so many small steps.
    places, sure = boxes.places.cpu().numpy().astype(np.float64), boxes.scores.cpu().numpy().astype(np.float64)
    # Sums over the members of each cluster: its edges times their scores, its scores, its count.
    edges, fused = np.zeros_like(places), np.zeros_like(places)
    content, total, count, clusters = np.zeros_like(sure), np.zeros_like(sure), np.zeros_like(sure), 0
    for place, score in zip(places, sure, strict=True):
        before = fused[:clusters]
        both = (np.minimum(before[:, 3:], place[3:]) - np.maximum(before[:, :3], place[:3])).clip(0).prod(1)
        share = both / np.maximum(content[:clusters] + (place[3:] - place[:3]).prod() - both, 1e-9)
        at = int(share.argmax()) if clusters else 0
        if not clusters or share[at] <= overlap:
            at, clusters = clusters, clusters + 1
        edges[at] += place * score
        total[at] += score
        count[at] += 1
        fused[at] = edges[at] / total[at] if total[at] > 0 else place
        content[at] = (fused[at, 3:] - fused[at, :3]).prod()
    scores = total / np.maximum(count, 1) * count.clip(max=answers) / answers
    rows = slice(clusters)
    return Boxes(
        torch.from_numpy(fused[rows]).to(boxes.places),
        torch.from_numpy(scores[rows]).to(boxes.scores),
        boxes.classes[:1].expand(clusters),
    )


def mirror(places: Float[Tensor, "n 6"], size: Sequence[int], axes: Sequence[int]) -> Float[Tensor, "n 6"]:
    """The boxes in the mirrored image, or back.

    Args:
        places: the boxes.
        size: of the image, ``(depth, height, width)``.
        axes: along which it is mirrored; 0 depth, 1 height, 2 width.
    """
    result = places.clone()
    for axis in axes:
        result[:, axis], result[:, axis + 3] = size[axis] - places[:, axis + 3], size[axis] - places[:, axis]
    return result


def from_tiles(tiles: Sequence[tuple[Sequence[int], Boxes]], patch: Sequence[int], overlap: float) -> Boxes:
    """The boxes of overlapping tiles of one image, in its pixels, each object once.

    A tile answers for its middle, up to halfway into what it shares with its neighbours and an eighth of that
    further, so that no object falls between two; boxes whose middle lies beyond are dropped. What a tile sees only a
    part of, because its border cuts it, has its middle near that border: of objects up to three quarters as long as
    tiles overlap no fragment is left. Of longer ones, what touches a border is dropped where a box of its class that
    touches none holds most of it. What two tiles saw is one box by :func:`suppress`.

    Args:
        tiles: where each begins in the image (depth, height, width), and its boxes, in its own pixels. They lie on a
            lattice: their starts are all combinations of starts along each axis.
        patch: (depth, height, width) of a tile.
        overlap: intersection over union from which two boxes of one class are one object.
    """
    starts = [sorted({start[axis] for start, _ in tiles}) for axis in range(3)]
    kept, cut = [], []
    for start, found in tiles:
        limits = [_answers_for(starts[a], start[a], patch[a]) for a in range(3)]
        low, high = (found.places.new_tensor([limit[end] for limit in limits]) for end in (0, 1))
        middle = (found.places[:, :3] + found.places[:, 3:]) / 2
        inside = found[((middle >= low) & (middle < high)).all(1)]
        ends = found.places.new_tensor(patch)
        at_low = (inside.places[:, :3] < 1) & torch.isfinite(low)
        at_high = (inside.places[:, 3:] > ends - 1) & torch.isfinite(high)
        cut.append((at_low | at_high).any(1))
        shift = found.places.new_tensor([*start, *start])
        kept.append(Boxes(inside.places + shift, inside.scores, inside.classes))
    every, pieces = join(kept), torch.cat(cut)
    whole, parts = every[~pieces], every[pieces]
    if len(whole) and len(parts):
        held = shared(parts.places[:, None], whole.places[None]) / volume(parts.places)[:, None].clamp(min=1e-9)
        same = parts.classes[:, None] == whole.classes[None]
        parts = parts[~((held > 0.7) & same).any(1)]
    return suppress(join([whole, parts]), overlap)


def _answers_for(starts: Sequence[int], start: int, size: int) -> tuple[float, float]:
    """Along one axis, from where to where in a tile the middle of a box may lie."""
    number = starts.index(start)
    low, high = -math.inf, math.inf
    if number > 0:
        low = 0.375 * (starts[number - 1] + size - start)
    if number + 1 < len(starts):
        high = size - 0.375 * (start + size - starts[number + 1])
    return low, high
