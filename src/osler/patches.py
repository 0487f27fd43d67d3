"""What a dense network is trained on: windows of images, more often where something is than chance would have it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from osler import draws
from osler.augmentation import augment, augment_boxes, augment_masks
from osler.recipe import Recipe
from osler.transforms.spatial import VISIBLE
from osler.volumes import Volume


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


def cut(array: NDArray[Any], start: tuple[int, int, int], size: tuple[int, int, int], fill: float) -> NDArray[Any]:
    """A window ``(..., *size)`` of ``(..., depth, height, width)``; what lies outside of the image is ``fill``."""
    whole = array.shape[-3:]
    inside = tuple(slice(max(0, a), min(n, a + s)) for a, s, n in zip(start, size, whole, strict=True))
    part: NDArray[Any] = array[..., inside[0], inside[1], inside[2]]
    if part.shape[-3:] == size:
        return part
    result = np.full((*array.shape[:-3], *size), fill, array.dtype)
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
    volumes: Sequence[Volume], keys: NDArray[np.uint64], plan: Recipe
) -> tuple[Float[Tensor, "b t c d h w"], dict[str, Any]]:
    """A window of each volume, not normalised, and the targets by task.

    Args:
        volumes: one for each window.
        keys: one for each; they decide where it lies.
        plan: the recipe.

    Returns:
        Images with ``t = 1``; label maps ``(b, d, h, w)`` uint8 of segmentations; for detections a list of
        ``(n, 7)`` arrays, ``None`` where nothing is known.
    """
    size = plan.image.size
    first = [starts(volume, plan, keys[i : i + 1]) for i, volume in enumerate(volumes)]
    windows = [cut(v.image, start, size, float(v.image.min())) for v, start in zip(volumes, first, strict=True)]
    x = torch.from_numpy(np.stack([np.asarray(w, np.float32) for w in windows])[:, None])
    targets: dict[str, Any] = {}
    for name, question in plan.tasks.items():
        if question.kind == "segmentation":
            nothing = np.full(size, question.unknown, np.uint8)
            maps = [
                cut(v.labels[name], start, size, 0) if name in v.labels else nothing
                for v, start in zip(volumes, first, strict=True)
            ]
            targets[name] = torch.from_numpy(np.stack(maps))
        elif question.kind == "detection":
            targets[name] = [
                cut_boxes(v.boxes[name], start, size) if name in v.boxes else None
                for v, start in zip(volumes, first, strict=True)
            ]
    return x, targets


def augmented(
    x: Float[Tensor, "b t c d h w"], targets: Mapping[str, Any], keys: NDArray[np.uint64], plan: Recipe
) -> tuple[Float[Tensor, "b t c d h w"], dict[str, Any]]:
    """Normalised windows changed at random, and their targets with them."""
    moved: dict[str, Any] = {}
    for name, target in targets.items():
        if isinstance(target, Tensor):
            moved[name] = augment_masks(target[:, None, None], keys, plan)[:, 0, 0]
        else:
            moved[name] = augment_boxes(target, keys, plan, plan.image.size)
    return augment(x, keys, plan), moved
