"""Training images changed at random: the transforms of a recipe, one after the other.

Each takes what it draws from the key of a case, so an image and its masks can be changed in two calls, and alike.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from osler import catalog, recipe
from osler.recipe import Recipe


def augment(x: Float[Tensor, "b t c d h w"], key: NDArray[np.uint64], plan: Recipe) -> Float[Tensor, "b t c d h w"]:
    """Every transform of the recipe, in its order; the moments of a case move together.

    Args:
        x: a batch, normalised.
        key: one for each case (``osler.draws.keys``).
        plan: whose ``augmentation`` says what is done.
    """
    flat, keys = x.reshape(-1, *x.shape[2:]), np.repeat(key, x.shape[1])
    for name, given in plan.augmentation.items():
        options = recipe.options("transforms", name, given)
        flat = catalog.find("transforms", name).apply(flat, options, keys)
    return flat.reshape(x.shape)


def augment_masks(
    masks: Shaped[Tensor, "b t c d h w"], key: NDArray[np.uint64], plan: Recipe
) -> Shaped[Tensor, "b t c d h w"]:
    """The labels of pixels, of any type, moved as :func:`augment` moves the images of the same keys.

    Each pixel takes the label of the nearest one; what a transform does to grey values leaves labels alone.
    """
    flat, keys = masks.reshape(-1, *masks.shape[2:]), np.repeat(key, masks.shape[1])
    for name, given in plan.augmentation.items():
        transform = catalog.find("transforms", name)
        if hasattr(transform, "move_masks"):
            flat = transform.move_masks(flat, recipe.options("transforms", name, given), keys)
    return flat.reshape(masks.shape)


def augment_boxes(
    boxes: Sequence[NDArray[np.float32] | None], key: NDArray[np.uint64], plan: Recipe, size: tuple[int, int, int]
) -> list[NDArray[np.float32] | None]:
    """Boxes moved as :func:`augment` moves the images of the same keys.

    Args:
        boxes: of each image ``(n, 7)``: start and stop as (depth, height, width) edges, and a class; ``None`` where
            nothing is known.
        key: one for each image.
        plan: whose ``augmentation`` says what is done.
        size: ``(depth, height, width)`` of the images.
    """
    moved = list(boxes)
    for name, given in plan.augmentation.items():
        transform = catalog.find("transforms", name)
        if hasattr(transform, "move_boxes"):
            options = recipe.options("transforms", name, given)
            moved = [
                None if each is None else transform.move_boxes(each, options, key[i : i + 1], size)
                for i, each in enumerate(moved)
            ]
    return moved
