"""A box around each: a dense head on several maps of a decoder, in 2D and 3D, without anchors.

Each pixel of a map offers one box: where its centre lies from that pixel, how large it is, and a score for each
class. Which offers shall answer for which object is decided anew at each step by how well they do so far (task-
aligned assignment; Feng 2021), so that there is nothing to set by hand for objects of another size or shape; scores
learn how well their box fits (quality focal loss; Li 2020), so that the surest box is also the best placed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from osler.boxes import Boxes, generalised_overlap, overlaps, suppress
from osler.case import Finding, Question
from osler.tasks import Dense

# Intersection over union from which two boxes of one class are one object: cells of a picture lie over one another,
# things in a volume cannot; and of two boxes 3 voxels wide, one off by a voxel along each axis, a sixth is shared.
OVERLAP = {2: 0.5, 3: 0.15}
# And from which boxes of several views and networks are taken together: more, for neighbours that overlap by less
# are two objects which the same view told apart. At 0.5 in flat images, cells melted: RBC of BCCD .66, not .79.
FUSED = {2: 0.7, 3: 0.3}
# Maps finer than this see no more of what is to be found, and cost most of the time.
_FINEST = {2: 8, 3: 2}
_MAPS = 4
_BASE = 4.0  # size of a box that nothing was learned about, in pixels of its map
_LARGEST = 4.0  # natural logarithm of the largest size over that
_SURE = 10  # offers that answer for one object
_PRIOR = 0.01  # score that nothing was learned about (Lin 2017)
# Boxes of each class that :meth:`Detection.presence` draws.
_SHOWN = 8
# Score that the best offer for an object reaches for at least, however badly its box still fits. Of a box few
# voxels wide half a voxel takes a third of the overlap away: asked for no more, tiny things would drown (in a trial
# with 3D blobs of 3 to 10 voxels, sensitivity at one false positive was .79, not .91; of the tiny .50, not .79).
_FLOOR = 1.0


class Offers(NamedTuple):
    """What the head says of ``b`` patches: ``a`` offers each, from all maps.

    Attributes:
        logits: of each class, float32 ``(b, a, k)``.
        shifts: from a pixel of the map to the centre of the box, and the logarithm of its size over four pixels,
            float32 ``(b, a, 2 * dims)``; in pixels of the map, depth, height, width.
        points: centres of those pixels in the patch, ``(a, dims)``.
        strides: pixels of the patch to a pixel of the map, ``(a, dims)``.
    """

    logits: Float[Tensor, "b a k"]
    shifts: Float[Tensor, "b a e"]
    points: Float[Tensor, "a d"]
    strides: Float[Tensor, "a d"]


@dataclass(frozen=True)
class Detection(Dense):
    """Boxes of one question.

    Targets are a list, one a patch: float32 ``(n, 7)`` z0 y0 x0 z1 y1 x1 in pixels of the patch and the number of the
    class, or ``None`` where nothing is known.
    """

    question: Question
    shows = True

    def finest(self, strides: Sequence[tuple[int, ...]]) -> int:
        """The first with :data:`_FINEST` pixels of the patch to its own along some axis, else the coarsest."""
        dims = len(strides[0])
        return next((n for n, stride in enumerate(strides) if max(stride) >= _FINEST[dims]), len(strides) - 1)

    def head(self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], dims: int) -> nn.Module:
        """Two small towers, shared by the maps that are used: one for the scores, one for the boxes."""
        first = self.finest(strides)
        return _Head(widths, strides, range(first, min(first + _MAPS, len(strides))), len(self.question.classes))

    def loss(self, outputs: Offers, targets: Sequence[NDArray[np.float32] | None]) -> Float[Tensor, ""]:
        """Quality focal loss of the scores, plus twice what is missing of the generalised overlap of the boxes."""
        known = [row for row, target in enumerate(targets) if target is not None]
        if not known:
            return outputs.logits.sum() * 0 + outputs.shifts.sum() * 0
        device_type = outputs.logits.device.type
        with torch.autocast(device_type, enabled=False):
            logits, places = outputs.logits[known].float(), _places(outputs)[known]
            wanted, matched = torch.zeros_like(logits), torch.zeros_like(places)
            for row, number in enumerate(known):
                objects = torch.as_tensor(targets[number]).to(places)
                if len(objects):
                    wanted[row], matched[row] = _assign(
                        logits[row].detach(), places[row].detach(), outputs.points, outputs.strides, objects
                    )
            weight = wanted.sum(-1)
            total = weight.sum().clamp(min=1)
            probability = logits.sigmoid()
            scores = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            scores = (scores * (wanted - probability).abs() ** 2).sum()
            inside = weight > 0
            missing = 1 - generalised_overlap(places[inside], matched[inside])
            return (scores + 2 * (missing * weight[inside]).sum()) / total

    def decode(self, outputs: Offers, size: Sequence[int], *, least: float = 0.02, most: int = 300) -> list[Boxes]:
        """The boxes of each patch of a batch, the surest first, after non-maximum suppression.

        Args:
            outputs: what the head said.
            size: of the patch, ``(depth, height, width)``; boxes end at its edges.
            least: score below which nothing is said.
            most: boxes of a patch.
        """
        dims = outputs.points.shape[1]
        edges = torch.tensor([*size, *size]).to(outputs.shifts)
        places = torch.minimum(_places(outputs).clamp(min=0), edges)
        answers = []
        for place, score in zip(places, outputs.logits.float().sigmoid(), strict=True):
            offers, classes = torch.nonzero(score >= least, as_tuple=True)
            found = Boxes(place[offers], score[offers, classes], classes)
            found = found[(found.places[:, 3:] > found.places[:, :3]).all(1)]
            found = found[found.scores.argsort(descending=True, stable=True)[: 10 * most]]
            answers.append(suppress(found, OVERLAP[dims])[:most])
        return answers

    def presence(self, outputs: Offers) -> Float[Tensor, "b k *size"]:
        """Each pixel of the finest map that is used: the score of the best box that it lies in, with soft edges."""
        dims = outputs.points.shape[1]
        step = outputs.strides[0]
        own = (outputs.strides == step).all(1)
        size = [int(n) for n in (outputs.points[own].amax(0) / step + 0.5).round()]
        scores, best = outputs.logits.float().sigmoid().topk(min(_SHOWN, outputs.logits.shape[1]), 1)
        places = _places(outputs)
        inside = scores.transpose(1, 2)
        for axis, n in enumerate(size):
            # Of the best offers of each class: where they begin and end along this axis.
            ends = (places[..., side + 3 - dims + axis, None].expand(-1, -1, best.shape[-1]) for side in (0, 3))
            low, high = (end.gather(1, best) for end in ends)
            at = (torch.arange(n, device=low.device) + 0.5) * step[axis]
            # An edge is as wide as half a pixel of the map.
            soft = [(4 * d / step[axis]).sigmoid() for d in (at - low[..., None], high[..., None] - at)]
            along = (soft[0] * soft[1]).transpose(1, 2)
            inside = inside[..., None] * along.reshape(*along.shape[:3], *[1] * axis, n)
        return inside.amax(2)

    def log_odds(self, outputs: Offers, finding: Finding, patch: Sequence[int]) -> Float[Tensor, " b"]:
        """Of the best that is offered for a box: the score of its class times the overlap (Petsiuk 2021)."""
        assert finding.box is not None
        places = _places(outputs)
        box = places.new_tensor([[*finding.box.start, *finding.box.stop]])
        fit = overlaps(box, places.flatten(0, 1)).reshape(places.shape[:2])
        score = functional.logsigmoid(outputs.logits[..., self.question.classes.index(finding.name)].float())
        best = (score + (fit + 1e-6).log()).amax(1).clamp(max=-1e-6)
        return best - torch.log(-torch.expm1(best))


def _places(offers: Offers) -> Float[Tensor, "b a 6"]:
    """The boxes that are offered, by their edges in the patch."""
    dims = offers.points.shape[1]
    shifts = offers.shifts.float()
    centre = offers.points + shifts[..., :dims] * offers.strides
    half = shifts[..., dims:].clamp(-_LARGEST, _LARGEST).exp() * offers.strides * (_BASE / 2)
    low, high = centre - half, centre + half
    if dims == 2:
        low, high = functional.pad(low, (1, 0)), functional.pad(high, (1, 0), value=1.0)
    return torch.cat([low, high], -1)


def _assign(
    logits: Float[Tensor, "a k"],
    places: Float[Tensor, "a 6"],
    points: Float[Tensor, "a d"],
    strides: Float[Tensor, "a d"],
    target: Float[Tensor, "n 7"],
) -> tuple[Float[Tensor, "a k"], Float[Tensor, "a 6"]]:
    """Which offers answer for which object: the score that each shall reach, and the box that it shall have.

    Offers from within an object, or, where it is smaller than that, from within one pixel of the finest map around
    its centre, are ranked by ``score ** 0.5 * overlap ** 6`` (Feng 2021), times a bell around the centre that decides
    while nothing is learned yet.
    """
    objects, classes, dims = target[:, :6], target[:, 6].long(), points.shape[1]
    centre = (objects[:, 3 - dims : 3] + objects[:, 6 - dims :]) / 2
    half = (objects[:, 6 - dims :] - objects[:, 3 - dims : 3]) / 2
    reach = torch.maximum(half, strides.amin(0))
    away = (points[None] - centre[:, None]).abs() / reach[:, None]
    fit = overlaps(objects, places)
    rank = logits.sigmoid()[:, classes].T ** 0.5 * (0.05 + 0.95 * fit) ** 6 * torch.exp(-(away**2).sum(-1))
    rank = rank * (away < 1).all(-1)
    best, chosen = rank.topk(min(_SURE, rank.shape[1]), 1)
    mask = torch.zeros_like(rank).scatter_(1, chosen, (best > 0).to(rank.dtype))
    rank = rank * mask
    # An offer answers for one object only: for the one that it fits best.
    owner = (fit * mask).masked_fill(mask == 0, -1).argmax(0)
    taken = mask.amax(0) > 0
    rank = rank * (torch.arange(len(target), device=rank.device)[:, None] == owner)
    most = (fit * (rank > 0)).amax(1).clamp(min=_FLOOR)
    share = rank / rank.amax(1, keepdim=True).clamp(min=1e-20) * most[:, None]
    wanted = torch.zeros_like(logits)
    wanted.scatter_(1, classes[owner][:, None], (share.amax(0) * taken)[:, None])
    return wanted, objects[owner]


class _Head(nn.Module):
    """Towers over the used maps, finest first."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], used: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        dims = len(strides[0])
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.used = used
        self.strides = [strides[n] for n in used]
        # As many in each of the groups, however wide the maps are.
        width = min(128 if dims == 2 else 64, max(32, 8 * math.ceil(widths[used[0]] / 8)))
        self.enter = nn.ModuleList(conv(widths[n], width, 1) for n in self.used)

        def tower(outputs: int, start: float) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(2):
                layers += [
                    conv(width, width, 3, padding=1, bias=False),
                    nn.GroupNorm(8, width),
                    nn.SiLU(inplace=True),
                ]
            last = conv(width, outputs, 3, padding=1)
            nn.init.normal_(last.weight, std=0.01)
            assert last.bias is not None
            nn.init.constant_(last.bias, start)
            return nn.Sequential(*layers, last)

        self.score, self.place = tower(classes, -math.log(1 / _PRIOR - 1)), tower(2 * dims, 0.0)

    def forward(self, maps: list[Float[Tensor, "b _ ..."]]) -> Offers:
        parts = []
        for enter, number, stride in zip(self.enter, self.used, self.strides, strict=True):
            x = enter(maps[number])
            step = torch.tensor(stride, dtype=torch.float32, device=x.device)
            axes = [torch.arange(n, device=x.device) + 0.5 for n in x.shape[2:]]
            points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2) * step
            parts.append(
                (
                    self.score(x).float().flatten(2).transpose(1, 2),
                    self.place(x).float().flatten(2).transpose(1, 2),
                    points,
                    step.expand(len(points), -1),
                )
            )
        logits, shifts, places, steps = zip(*parts, strict=True)
        return Offers(torch.cat(logits, 1), torch.cat(shifts, 1), torch.cat(places), torch.cat(steps))
