"""Which pixels are of which class: a label map, learned with Dice and cross-entropy (Isensee et al., 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from osler.case import Finding, Mask, Question
from osler.tasks import Dense

# Pixels that are added to both sides of the Dice coefficient: a class that is nowhere in a batch has a gradient, too.
_SMOOTH = 1.0
# Of the probabilities that expected Dice is looked at.
_STEPS = 1000
# Pixels that touch by a corner belong together.
_TOUCHING = ndimage.generate_binary_structure(3, 3)


@dataclass(frozen=True)
class Segmentation(Dense):
    """Label maps of one question.

    Attributes:
        question: what is asked.
        deep: how many levels of the decoder have a loss of their own (Lee 2015), each half that of the finer one.
    """

    question: Question
    deep: int = 1

    shows = True

    @property
    def gates(self) -> int:  # type: ignore[override]
        """As many as outputs."""
        return self.outputs

    @property
    def outputs(self) -> int:
        """Channels: the background and each class, or each region."""
        return len(self.question.classes) + (not self.regions)

    @property
    def regions(self) -> bool:
        """Whether classes share values, so that a pixel may be of several."""
        values = [value for group in self.question.values for value in group]
        return len(set(values)) < len(values)

    @property
    def background(self) -> int:
        """The value of pixels of no class."""
        return self.question.background

    @cached_property
    def _table(self) -> Float[Tensor, "v o"]:
        """Which channels are right, for each of the 256 values."""
        table = torch.zeros(256, self.outputs)
        for k, values in enumerate(self.question.values):
            table[list(values), k + (not self.regions)] = 1
        if not self.regions:
            table[:, 0] = 1 - table[:, 1:].sum(1)
        return table

    def head(self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], dims: int) -> nn.Module:
        """A 1x1 convolution on each level that has a loss; raw outputs ``(b, o, *size)``, finest first."""
        return _Head(widths[: self.deep], self.outputs, dims)

    def loss(
        self, outputs: Sequence[Float[Tensor, "b o ..."]], targets: UInt8[Tensor, "n d h w"]
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the known pixels and 1 - Dice of the batch, averaged over levels, in float32.

        Dice is that of each class over all pixels of the batch ("batch Dice"), averaged over the classes without the
        background. Pixels of the question's value for unknown count in neither. A finest map that is coarser than the
        labels is enlarged to them, as it is for the answer; for the other levels labels are thinned out.

        While linked tasks are trained, level 0 is the corrected map and level 1 its draft, as large (:meth:`gated`);
        the draft counts like any other level: where it is coarse, labels are thinned out for it.

        Args:
            outputs: one map a level, finest first; in 2D ``b`` is ``n d``.
            targets: label maps as they were read, on the grid of the image.
        """
        if outputs[0].ndim == 4:
            targets = targets.reshape(-1, *targets.shape[2:])
        weights = [0.5**level for level in range(len(outputs))]
        total = torch.zeros((), device=targets.device)
        for level, (weight, raw) in enumerate(zip(weights, outputs, strict=True)):
            seen = targets
            if raw.shape[2:] != targets.shape[1:] and not level:
                mode = "bilinear" if raw.ndim == 4 else "trilinear"
                raw = functional.interpolate(raw.float(), targets.shape[1:], mode=mode, align_corners=False)
            elif raw.shape[2:] != targets.shape[1:]:
                seen = functional.interpolate(targets[:, None], raw.shape[2:], mode="nearest-exact")[:, 0]
            total = total + weight / sum(weights) * self._level(raw.float(), seen)
        return total

    def _level(self, raw: Float[Tensor, "b o *size"], targets: UInt8[Tensor, "b ..."]) -> Float[Tensor, ""]:
        known = (targets != self.question.unknown).float()
        right = self._table.to(raw.device)[targets.long()].movedim(-1, 1)
        if self.regions:
            entropy = functional.binary_cross_entropy_with_logits(raw, right, reduction="none").mean(1)
            p = raw.sigmoid()
        else:
            logs = functional.log_softmax(raw, 1)
            entropy = -(logs * right).sum(1)
            p, right = logs.exp()[:, 1:], right[:, 1:]
        places = [0, *range(2, raw.ndim)]
        p, right = p * known[:, None], right * known[:, None]
        both, either = (p * right).sum(places), (p + right).sum(places)
        dice = (2 * both + _SMOOTH) / (either + _SMOOTH)
        return (entropy * known).sum() / known.sum().clamp(min=1) + 1 - dice.mean()

    def probabilities(
        self, outputs: Sequence[Float[Tensor, "b o *size"]], patch: Sequence[int]
    ) -> Float[Tensor, "b o d h w"]:
        """What raw outputs mean: softmax over classes, or a sigmoid for each region.

        Args:
            outputs: the finest first.
            patch: ``(depth, height, width)`` that they are about; coarser ones are interpolated, in 2D depth is 1.
        """
        raw = _enlarged(outputs[0], patch)
        return raw.sigmoid() if self.regions else raw.softmax(1)

    def presence(self, outputs: Sequence[Float[Tensor, "b o ..."]]) -> Float[Tensor, "b k ..."]:
        """The probability of each class at each pixel of the finest map."""
        raw = outputs[0].float()
        return raw.sigmoid() if self.regions else raw.softmax(1)[:, 1:]

    def gated(
        self, outputs: Sequence[Float[Tensor, "b o ..."]], gate: Float[Tensor, "b o ..."], *, draft: bool
    ) -> list[Float[Tensor, "b o ..."]]:
        """The corrected finest map, and the draft after it where it is to keep a loss of its own."""
        return [outputs[0] + gate, *(outputs if draft else ())]

    def log_odds(
        self, outputs: Sequence[Float[Tensor, "b o *size"]], finding: Finding, patch: Sequence[int]
    ) -> Float[Tensor, " b"]:
        """Of its class or region, the mean over the pixels of its mask (Vinogradova et al., 2020)."""
        assert finding.mask is not None
        raw, k = _enlarged(outputs[0], patch), self.question.classes.index(finding.name)
        there = torch.from_numpy(finding.mask.within((patch[0], patch[1], patch[2]))).to(raw.device)
        raw = raw[:, :, there]
        if self.regions:
            return raw[:, k].mean(1)
        others = torch.cat([raw[:, : k + 1], raw[:, k + 2 :]], 1)
        return (raw[:, k + 1] - others.logsumexp(1)).mean(1)

    def decode(self, probabilities: Float[NDArray[np.float32], "o d h w"]) -> UInt8[NDArray[np.uint8], "d h w"]:
        """The likeliest label map, in the values of the question.

        A class of several values is written as the first of them. Of regions each pixel takes the value that is
        likeliest if they are independent: so what is inside of another region stays inside.
        """
        if not self.regions:
            values = np.array([self.background, *(group[0] for group in self.question.values)], np.uint8)
            # Class by class: the largest of all at once would take a copy of them.
            best, labels = probabilities[0].copy(), np.full(probabilities.shape[1:], values[0])
            for value, p in zip(values[1:], probabilities[1:], strict=True):
                labels[p > best] = value
                np.maximum(best, p, out=best)
            return labels
        values = np.unique([self.background, *(v for group in self.question.values for v in group)]).astype(np.uint8)
        inside = np.array([[v in group for group in self.question.values] for v in values])
        p = np.clip(probabilities, 1e-7, 1 - 1e-7)
        yes, no = np.log(p), np.log1p(-p)
        score = np.stack([sum(yes[k] if row[k] else no[k] for k in range(len(row))) for row in inside])
        return np.asarray(values[score.argmax(0)])

    def ranked(
        self, probabilities: Float[NDArray[np.float32], "o d h w"], likeliest: UInt8[NDArray[np.uint8], "d h w"]
    ) -> UInt8[NDArray[np.uint8], "d h w"]:
        """The label map of which the highest Dice can be expected, wherever the likeliest one shows anything.

        Were pixels independent, the expected Dice of the surest ones of a class would be highest when every pixel is
        taken that is surer than half of it (Dai and Li, 2023): what is unsure is outlined further than where it is
        likelier than not. A connected part that holds no pixel of the likeliest map is left out, so that nothing is
        found that was not, and what was found is only outlined otherwise. Not for regions.

        Args:
            probabilities: background first.
            likeliest: from :meth:`decode`.
        """
        best = np.zeros(likeliest.shape, np.float32)
        labels = np.full_like(likeliest, self.background)
        for values, p in zip(self.question.values, probabilities[1:], strict=True):
            there = (p >= surest(p)) & (p > best)
            labels[there] = values[0]
            best[there] = p[there]
        for name in self.question.classes:
            there = self.of_class(labels, name)
            numbers, count = ndimage.label(there, _TOUCHING)
            kept = np.zeros(count + 1, bool)
            kept[numbers[self.of_class(likeliest, name)]] = True
            labels[there & ~kept[numbers]] = self.background
        return labels

    def of_class(self, labels: UInt8[NDArray[np.uint8], "d h w"], name: str) -> Bool[NDArray[np.bool_], "d h w"]:
        """The pixels of one class."""
        return np.isin(labels, self.question.values[self.question.classes.index(name)])

    def largest(
        self, labels: UInt8[NDArray[np.uint8], "d h w"], names: Sequence[str]
    ) -> UInt8[NDArray[np.uint8], "d h w"]:
        """Only the largest connected part of each of these classes is left, the others become background."""
        kept = labels.copy()
        for name in names:
            there = self.of_class(labels, name)
            numbers, count = ndimage.label(there, _TOUCHING)
            if count > 1:
                biggest = 1 + int(np.bincount(numbers.ravel())[1:].argmax())
                kept[there & (numbers != biggest)] = self.background
        return kept

    def findings(
        self,
        labels: UInt8[NDArray[np.uint8], "d h w"],
        probabilities: Float[NDArray[np.float32], "o d h w"],
        frame: int = 0,
        by: str = "model",
    ) -> list[Finding]:
        """What a label map on the image's own grid says, one statement for each class, or for each connected part.

        The probability of a finding is the mean of its class's probability over its pixels: a score, which held-out
        cases turn into the chance that it is true (:mod:`osler.doubt`). A class that is nowhere is stated with
        the probability 0 and no place.

        Args:
            labels: from :meth:`decode`.
            probabilities: those that it was decoded from.
            frame: the moment of the sequence.
            by: whose findings they are.
        """
        found = []
        for k, name in enumerate(self.question.classes):
            there = self.of_class(labels, name)
            chances = probabilities[k + (not self.regions)]
            numbers, count = (
                ndimage.label(there, _TOUCHING) if self.question.separate else (there.view(np.int8), int(there.any()))
            )
            for number, window in enumerate(ndimage.find_objects(numbers, count), 1):
                z, y, x = window
                mask = Mask(np.ascontiguousarray(numbers[window] == number), (z.start, y.start, x.start))
                score = min(1.0, float(chances[window][mask.array].mean()))
                found.append(Finding(self.question.task, name, by, score, box=mask.box, mask=mask, frame=frame))
            if not count:
                found.append(Finding(self.question.task, name, by, 0.0, frame=frame))
        return found

    def uncertainty(
        self, probabilities: Float[NDArray[np.float32], "o d h w"]
    ) -> Float[NDArray[np.float32], "d h w"]:
        """How undecided each pixel is, 0 to 1: the entropy of its classes over the largest possible one.

        Of regions it is the mean over them.
        """
        total = np.zeros(probabilities.shape[1:], np.float32)
        for p in probabilities:  # one by one: they are as large as the image
            total += _surprise(p)
            if self.regions:
                total += _surprise(1 - p)
        total /= np.log(2) * len(probabilities) if self.regions else np.log(len(probabilities))
        return np.clip(total, 0, 1, out=total)


def surest(p: Float[NDArray[np.float32], "d h w"]) -> float:
    """The probability from which pixels are to be taken for the highest expected Dice, in steps of a thousandth.

    Of the ``n`` surest pixels it is ``2 * (their sum) / (n + sum of all)``, as good as exact for more than a few.
    """
    count, total = np.zeros(_STEPS), np.zeros(_STEPS)
    for plane in p:  # one by one: numbers of steps take eight bytes a pixel
        step = np.minimum((plane.ravel() * _STEPS).astype(np.intp), _STEPS - 1)
        count += np.bincount(step, minlength=_STEPS)
        total += np.bincount(step, plane.ravel(), minlength=_STEPS)
    taken, sums = np.cumsum(count[::-1]), np.cumsum(total[::-1])
    expected = 2 * sums / np.maximum(taken + sums[-1], 1e-6)
    return float((_STEPS - 1 - int(expected.argmax())) / _STEPS)


def _surprise(p: Float[NDArray[np.float32], "d h w"]) -> Float[NDArray[np.float32], "d h w"]:
    p = np.clip(p, 1e-7, 1)
    return np.asarray(-p * np.log(p), np.float32)


def _enlarged(raw: Float[Tensor, "b o *size"], patch: Sequence[int]) -> Float[Tensor, "b o d h w"]:
    """In float32, as large as the patch; in 2D depth is 1."""
    raw = raw.float()
    raw = raw[:, :, None] if raw.ndim == 4 else raw
    if raw.shape[2:] == tuple(patch):
        return raw
    return functional.interpolate(raw, tuple(patch), mode="trilinear", align_corners=False)


class _Head(nn.Module):
    def __init__(self, widths: Sequence[int], outputs: int, dims: int) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.levels = nn.ModuleList(conv(width, outputs, 1) for width in widths)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Each level while training, else only the finest, which is the answer."""
        chosen = self.levels if self.training else self.levels[:1]
        return [level(x) for level, x in zip(chosen, maps, strict=False)]
