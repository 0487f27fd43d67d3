"""Boxes as tensors: overlap, non-maximum suppression, fusion of several answers, and answers of overlapping tiles.

A box is a row of six numbers, ``z0 y0 x0 z1 y1 x1``, by its edges in pixels; in a flat image z goes from 0 to 1, so
that the same few lines hold in 2D and 3D.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Pairs of boxes that are compared at a time: 64 MB of float32 in 2,048 x 2,048, six numbers each.
_BLOCK = 2048


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
    """Intersection over union of each with each; 0 where both are empty."""
    both = shared(a[:, None], b[None])
    return both / (volume(a)[:, None] + volume(b)[None] - both).clamp(min=1e-9)


def generalised_overlap(a: Float[Tensor, "*n 6"], b: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n"]:
    """Generalised intersection over union (Rezatofighi 2019), -1 to 1, pair by pair: it tells far from near, too."""
    both = shared(a, b)
    union = (volume(a) + volume(b) - both).clamp(min=1e-9)
    hull = (torch.maximum(a[..., 3:], b[..., 3:]) - torch.minimum(a[..., :3], b[..., :3])).prod(-1).clamp(min=1e-9)
    return both / union - (hull - union) / hull


def suppress(boxes: Boxes, overlap: float) -> Boxes:
    """Greedy non-maximum suppression, class by class, in the order of the scores, the surest first.

    A box is dropped where one of its class that was kept has a higher score (or the same, and came first) and
    an intersection over union above ``overlap``. The boxes are looked at in blocks, so that memory stays bounded;
    within a block, who is kept is the fixed point of "nobody kept drops me", which is reached in as many steps as
    the longest chain is long (Cluster-NMS; Zheng 2021) and is the same as going one by one.
    """
    order = boxes.scores.argsort(descending=True, stable=True)
    kept: list[Boxes] = []
    for rows in order.split(_BLOCK):
        block = boxes[rows]
        for before in kept:
            block = block[~_drops(before, block, overlap).any(0)] if len(block) else block
        drops = _drops(block, block, overlap).triu(1)
        keep = torch.ones(len(block), dtype=torch.bool, device=drops.device)
        while True:
            after = ~(drops & keep[:, None]).any(0)
            if torch.equal(after, keep):
                break
            keep = after
        kept.append(block[keep])
    return join(kept) if kept else boxes


def _drops(a: Boxes, b: Boxes, overlap: float) -> Bool[Tensor, "n m"]:
    return (overlaps(a.places, b.places) > overlap) & (a.classes[:, None] == b.classes[None])


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
    groups = [_clusters(boxes[boxes.classes == c], overlap, len(answers)) for c in boxes.classes.unique().tolist()]
    fused = join(groups) if groups else boxes
    return fused[fused.scores.argsort(descending=True, stable=True)]


def _clusters(boxes: Boxes, overlap: float, answers: int) -> Boxes:
    """Fusion of boxes of one class, the surest first."""
    n = len(boxes)
    # Sums over the members of each cluster: its edges times their scores, its scores, its count.
    edges, fused = boxes.places.new_zeros(n, 6), boxes.places.new_zeros(n, 6)
    total, count, clusters = boxes.scores.new_zeros(n), boxes.scores.new_zeros(n), 0
    for place, score in zip(boxes.places, boxes.scores, strict=True):
        at = clusters
        if clusters:
            best, nearest = overlaps(place[None], fused[:clusters])[0].max(0)
            at = int(nearest) if best > overlap else clusters
        edges[at] += place * score
        total[at] += score
        count[at] += 1
        fused[at] = edges[at] / total[at].clamp(min=1e-12) if total[at] > 0 else place
        clusters = max(clusters, at + 1)
    fused, total, count = fused[:clusters], total[:clusters], count[:clusters]
    scores = total / count * count.clamp(max=answers) / answers
    return Boxes(fused, scores, boxes.classes[:1].expand(clusters))


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
