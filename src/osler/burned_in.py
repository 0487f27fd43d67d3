"""Text and marks that were drawn into an image: where they are, and the image without them."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# A letter stands out of what surrounds it by this share of the scale, and is no larger than this share of the image.
_CONTRAST, _LARGEST = 0.35, 0.12


def found(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Boxes around all that looks like text or drawn marks: small, sharp and among the brightest or darkest.

    It is meant for hiding: it rather takes a bright spot for a letter than a letter for a spot. That a picture was
    masked is no proof that nothing is legible in it.

    Args:
        picture: ``(height, width)`` or ``(height, width, 3)``.

    Returns:
        ``(height, width)``.
    """
    grey = picture.astype(np.float32) if picture.ndim == 2 else picture.astype(np.float32).mean(2)
    height, width = grey.shape
    side = max(3, round(_LARGEST * min(height, width)) | 1)
    mask = np.zeros((height, width), bool)
    for light in (grey, 255 - grey):
        # A white top-hat keeps what is smaller than its window and lighter than all around it.
        stands_out = light - ndimage.grey_opening(light, (side, side)) > 255 * _CONTRAST
        parts, _ = ndimage.label(stands_out & (light > np.percentile(light, 90)), np.ones((3, 3)))
        for down, across in ndimage.find_objects(parts):
            tall, wide = down.stop - down.start, across.stop - across.start
            if max(tall, wide) <= 4 * side and tall * wide >= 4:
                edge = 1 + max(tall, wide) // 8
                mask[
                    max(0, down.start - edge) : down.stop + edge, max(0, across.start - edge) : across.stop + edge
                ] = True
    return mask


def blanked(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its middle grey in the place of what :func:`found` finds."""
    made = picture.copy()
    made[found(picture)] = np.uint8(np.median(picture))
    return made
