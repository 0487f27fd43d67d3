"""Boxes as tensors: overlap, non-maximum suppression, fusion of several answers, and answers of overlapping tiles.

A box is a row of six numbers, ``z0 y0 x0 z1 y1 x1``, by its edges in pixels; in a flat image z goes from 0 to 1, so
that the same few lines hold in 2D and 3D.
"""

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


def in_image(found: Boxes, start: Sequence[int], patch: Sequence[int], size: Sequence[int]) -> tuple[Boxes, Tensor]:
    """Boxes of a tile in the whole image, and which of them the tile's border may have cut.

    Args:
        found: in pixels of the tile.
        start: where it begins in the image, ``(depth, height, width)``.
        patch: how large it is.
        size: of the image; at its own edges nothing is cut.
    """
    shift = torch.tensor([*start, *start]).to(found.places)
    low = torch.tensor([float(s > 0) for s in start]).to(found.places)
    high = torch.tensor([float(s + p < n) for s, p, n in zip(start, patch, size, strict=True)]).to(found.places)
    ends = torch.tensor([float(p) for p in patch]).to(found.places)
    at_low = (found.places[:, :3] < 1) & (low > 0)
    at_high = (found.places[:, 3:] > ends - 1) & (high > 0)
    return Boxes(found.places + shift, found.scores, found.classes), (at_low | at_high).any(1)


def from_tiles(tiles: Sequence[tuple[Boxes, Tensor]], overlap: float) -> Boxes:
    """The boxes of all tiles of one image, each object once.

    Tiles overlap, so that what the border of one cuts lies whole in another, if it is smaller than the overlap: a box
    that may be cut is dropped where a box of its class that is not cut holds most of it. What is left of one object is
    one box by :func:`suppress`.
    """
    every, cut = join([found for found, _ in tiles]), torch.cat([part for _, part in tiles])
    whole, pieces = every[~cut], every[cut]
    if len(whole) and len(pieces):
        inside = shared(pieces.places[:, None], whole.places[None]) / volume(pieces.places)[:, None].clamp(min=1e-9)
        same = pieces.classes[:, None] == whole.classes[None]
        pieces = pieces[~((inside > 0.7) & same).any(1)]
    return suppress(join([whole, pieces]), overlap)


def merge(tiles: Sequence[tuple[Sequence[int], Boxes]], size: Sequence[int], overlap: float) -> Boxes:
    """One answer of those to overlapping tiles of an image.

    Each tile answers for its middle, up to halfway into what it shares with its neighbours and an eighth of that
    further, so that no object falls between two: boxes whose middle lies beyond are dropped. What a tile sees only a
    part of, because its edge cuts it, has its middle near that edge: of objects up to three quarters as long as tiles
    overlap no fragment is left. Non-maximum suppression then takes away what two tiles saw.

    Args:
        tiles: where each begins in the image (depth, height, width), and its boxes, by its own pixels. The tiles lie
            on a lattice: their starts are all combinations of starts along each axis.
        size: of a tile, (depth, height, width).
        overlap: intersection over union from which two boxes of one class are one object.
    """
    axes = [sorted({start[axis] for start, _ in tiles}) for axis in range(3)]
    kept = []
    for start, boxes in tiles:
        limits = [_answers_for(axes[a], start[a], size[a]) for a in range(3)]
        low, high = (boxes.places.new_tensor([limit[end] for limit in limits]) for end in (0, 1))
        middle = (boxes.places[:, :3] + boxes.places[:, 3:]) / 2
        inside = boxes[((middle >= low) & (middle < high)).all(1)]
        kept.append(Boxes(inside.places + inside.places.new_tensor([*start, *start]), inside.scores, inside.classes))
    return suppress(join(kept), overlap)


def _answers_for(starts: Sequence[int], start: int, size: int) -> tuple[float, float]:
    """Along one axis, from where to where in a tile the middle of a box may lie."""
    number = starts.index(start)
    low, high = float("-inf"), float("inf")
    if number > 0:
        shared = starts[number - 1] + size - start
        low = shared * 0.375
    if number + 1 < len(starts):
        shared = start + size - starts[number + 1]
        high = size - shared * 0.375
    return low, high
