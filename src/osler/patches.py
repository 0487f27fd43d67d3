"""What a dense network is trained on: windows of images, more often where something is than chance would have it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from osler import draws, linking
from osler.augmentation import augment, augment_boxes, augment_masks
from osler.recipe import Recipe
from osler.transforms.spatial import VISIBLE
from osler.volumes import Volume, darkest


@dataclass(frozen=True, eq=False)
class Sample:
    """What a window is cut from: one moment of a case, or, where tasks are linked, all moments that are looked at.

    Attributes:
        moments: on the working grid, of one size.
        answers: of linked tasks that ask of the whole image, the target ``(t,)``; NaN where it is unknown.
        person: of linked tasks, covariates ``(k,)`` (``osler.covariates.encode``); None where there are none.
    """

    moments: Sequence[Volume]
    answers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    person: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a batch of ``b`` windows.

    Attributes:
        places: label maps ``(n, d, h, w)`` uint8 of segmentations, ``n`` moments in the order of the windows; of
            detections a list of ``(n, 7)`` arrays, ``None`` where nothing is known.
        answers: targets ``(b, t)`` of tasks that ask of the whole image.
        persons: covariates ``(b, k)``; None where there are none.
    """

    places: Mapping[str, Any]
    answers: Mapping[str, Float[Tensor, "b t"]] = field(default_factory=dict)
    persons: Float[Tensor, "b k"] | None = None


def completed(sample: Sample, plan: Recipe) -> Sample:
    """The sample of linked tasks with what follows from what is known of it: to learn from, not to measure by.

    Where a class means that there is nothing, nothing is outlined or boxed; around each outlined part there is a
    box; and where only boxes are known, what lies outside of them is not outlined, while the core of each is.
    """
    if not (plan.linked and plan.links.complete):
        return sample
    nothing = any(
        float(target[0]) in [plan.tasks[name].classes.index(c) for c in plan.links.nothing.get(name, ())]
        for name, target in sample.answers.items()
    )
    return replace(sample, moments=[_completed(volume, plan, nothing=nothing) for volume in sample.moments])


def _completed(volume: Volume, plan: Recipe, *, nothing: bool) -> Volume:
    labels, boxes = dict(volume.labels), dict(volume.boxes)
    for name, question in plan.tasks.items() if nothing else ():
        if question.kind == "segmentation":
            labels.setdefault(name, np.full(volume.size, question.background, np.uint8))
        elif question.kind == "detection":
            boxes.setdefault(name, np.empty((0, 7), np.float32))
    for outlined, boxed in linking.pairs(plan.tasks):
        if outlined.task in labels and boxed.task not in boxes:
            around = linking.boxes_of(labels[outlined.task], outlined, boxed)
            if around is not None:
                boxes[boxed.task] = around
        elif boxed.task in boxes and outlined.task not in labels and set(outlined.classes) == set(boxed.classes):
            labels[outlined.task] = linking.cores(boxes[boxed.task], volume.size, outlined, boxed)
    return replace(volume, labels=labels, boxes=boxes)


def tells(sample: Sample) -> bool:
    """Whether anything is known of it: a class, or where anything is."""
    return any(np.isfinite(target).any() for target in sample.answers.values()) or any(
        volume.labels or volume.boxes for volume in sample.moments
    )


def turns(samples: Sequence[Sample], plan: Recipe, key: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Which sample each window of an epoch is cut from, ``(n patches.per_case,)``: each as often as the others.

    Of linked tasks few samples may say where anything is: those are a share of ``patches.foreground`` at least, or
    what is learned from the many others drowns it; of these some are left out, other ones in each epoch.
    """
    each, many = np.arange(len(samples)), len(samples) * plan.patches.per_case
    every = each.repeat(plan.patches.per_case)
    shown = each[[any(volume.places for volume in sample.moments) for sample in samples]]
    least = round(plan.patches.foreground * many)
    if not plan.linked or not len(shown) or len(shown) * plan.patches.per_case >= least:
        return every
    others = every[~np.isin(every, shown)]
    left = others[draws.permutation(draws.keys(key, np.arange(1)), len(others))[: many - least]]
    return np.asarray(np.concatenate([np.resize(shown, least), left]), np.intp)


def starts(volume: Volume, plan: Recipe, key: NDArray[np.uint64]) -> tuple[int, int, int]:
    """Where the window of this key begins; below 0 where the image is smaller than the window.

    ``patches.foreground`` of the windows hold a random pixel of a random class somewhere near their middle
    (Isensee 2021); the others are anywhere.
    """
    chance = draws.uniform(key, "patch", (9,))[0]
    size = plan.image.size
    room = [n - s for n, s in zip(volume.size, size, strict=True)]
    if volume.places and chance[0] < plan.patches.foreground:
        places = volume.places[int(chance[1] * len(volume.places))]
        place = places[int(chance[2] * len(places))]
        # Anywhere within the middle half of the window, and never further out of the image than need be.
        wanted = [int(place[a]) - int(size[a] * (0.25 + 0.5 * chance[3 + a])) for a in range(3)]
    else:
        wanted = [int(chance[6 + a] * (room[a] + 1)) if room[a] > 0 else room[a] // 2 for a in range(3)]
    limits = [(0, room[a]) if room[a] > 0 else (room[a] // 2, room[a] // 2) for a in range(3)]
    first = [int(np.clip(w, low, high)) for w, (low, high) in zip(wanted, limits, strict=True)]
    return first[0], first[1], first[2]


def cut(
    array: NDArray[Any], start: tuple[int, int, int], size: tuple[int, int, int], fill: ArrayLike
) -> NDArray[Any]:
    """A window ``(..., *size)`` of ``(..., depth, height, width)``; what lies outside of the image is ``fill``."""
    whole = array.shape[-3:]
    inside = tuple(slice(max(0, a), min(n, a + s)) for a, s, n in zip(start, size, whole, strict=True))
    part: NDArray[Any] = array[..., inside[0], inside[1], inside[2]]
    if part.shape[-3:] == size:
        return part
    result = np.empty((*array.shape[:-3], *size), array.dtype)
    result[...] = fill
    to = [slice(i.start - a, i.stop - a) for i, a in zip(inside, start, strict=True)]
    result[..., to[0], to[1], to[2]] = part
    return result


def cut_boxes(
    boxes: NDArray[np.float32], start: tuple[int, int, int], size: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Boxes ``(n, 7)`` as the window sees them: cut at its edges, and left out where little of them is inside."""
    shift = np.tile(np.array(start, np.float32), 2)
    moved = boxes.copy()
    moved[:, :6] -= shift
    cropped = moved.copy()
    cropped[:, :6] = moved[:, :6].clip(0, np.tile(np.array(size, np.float32), 2))
    before = np.prod(moved[:, 3:6] - moved[:, :3], 1)
    after = np.prod(cropped[:, 3:6] - cropped[:, :3], 1)
    visible: NDArray[np.float32] = cropped[after > VISIBLE * before]
    return visible


def batch(
    samples: Sequence[Sample], keys: NDArray[np.uint64], plan: Recipe
) -> tuple[Float[Tensor, "b t c d h w"], Truth]:
    """A window of each sample, not normalised, and what is known of it; modalities lie side by side like moments.

    Args:
        samples: one for each window, all of as many moments.
        keys: one for each; they decide where it lies.
        plan: the recipe.
    """
    size = plan.image.size
    first = [starts(sample.moments[0], plan, keys[i : i + 1]) for i, sample in enumerate(samples)]
    each = [(v, start) for sample, start in zip(samples, first, strict=True) for v in sample.moments]
    windows = [cut(v.image, start, size, darkest(v.image)) for v, start in each]
    stacked = np.stack([np.asarray(w, np.float32) for w in windows])
    x = torch.from_numpy(stacked.reshape(len(samples), -1, plan.image.channels, *stacked.shape[2:]))
    places: dict[str, Any] = {}
    for name, question in plan.tasks.items():
        if question.kind == "segmentation":
            nothing = np.full(size, question.unknown, np.uint8)
            maps = [cut(v.labels[name], s, size, 0) if name in v.labels else nothing for v, s in each]
            places[name] = torch.from_numpy(np.stack(maps))
        elif question.kind == "detection":
            places[name] = [cut_boxes(v.boxes[name], s, size) if name in v.boxes else None for v, s in each]
    answers = {
        name: torch.from_numpy(np.stack([sample.answers[name] for sample in samples])) for name in samples[0].answers
    }
    about = [sample.person for sample in samples if sample.person is not None]
    return x, Truth(places, answers, torch.from_numpy(np.stack(about)) if about else None)


def augmented(
    x: Float[Tensor, "b t c d h w"], truth: Truth, keys: NDArray[np.uint64], plan: Recipe
) -> tuple[Float[Tensor, "b t c d h w"], Truth]:
    """Normalised windows changed at random, and what is known of them with them."""
    moved: dict[str, Any] = {}
    for name, target in truth.places.items():
        if isinstance(target, Tensor):
            maps = target.reshape(len(x), -1, 1, *target.shape[1:])
            moved[name] = augment_masks(maps, keys, plan).reshape(target.shape)
        else:
            moved[name] = augment_boxes(target, np.repeat(keys, len(target) // len(x)), plan, plan.image.size)
    return augment(x, keys, plan), replace(truth, places=moved)
