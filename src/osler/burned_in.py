"""Text and marks that were drawn into an image: where they are, and the image without them."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# A stroke is thinner than this share of the image, stands out of what surrounds it by this share of the scale, and is
# nearly as light, or as dark, as anything in the image.
_STROKE, _CONTRAST, _EXTREME = 0.02, 0.4, 0.85


def found(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """All that looks like text or drawn marks: thin, sharp, and nearly the lightest or the darkest there is.

    It is meant for hiding: it rather takes a bright spot for a letter than a letter for a spot. That a picture was
    masked is no proof that nothing is legible in it.

    Args:
        picture: ``(height, width)`` or ``(height, width, 3)``.

    Returns:
        ``(height, width)``.
    """
    grey = picture.astype(np.float32) if picture.ndim == 2 else picture.astype(np.float32).mean(2)
    side = max(5, round(_STROKE * min(grey.shape)) | 1)
    mask = np.zeros(grey.shape, bool)
    low, high = float(grey.min()), float(grey.max())
    for light in (grey - low, high - grey):
        # A white top-hat keeps what is thinner than its window and lighter than all around it.
        stands_out = light - ndimage.grey_opening(light, (side, side)) > (high - low) * _CONTRAST
        strokes = stands_out & (light > (high - low) * _EXTREME)
        # What lies between two strokes of a letter, or two letters of a word, belongs to them.
        mask |= ndimage.binary_closing(np.pad(strokes, side), iterations=side)[side:-side, side:-side]
    return np.asarray(ndimage.binary_dilation(mask, iterations=max(2, side // 3)))


def blanked(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its middle grey in the place of what :func:`found` finds."""
    made = picture.copy()
    made[found(picture)] = np.uint8(np.median(picture))
    return made
