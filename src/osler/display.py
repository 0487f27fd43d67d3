"""What a slice looks like on a screen."""

import numpy as np
from jaxtyping import UInt8

from osler.image import Image


def picture(
    image: Image, plane: int | None = None, frame: int | None = None
) -> UInt8[np.ndarray, "h w"] | UInt8[np.ndarray, "h w 3"]:
    """One slice of one moment for display, ``(h, w)`` or in colour ``(h, w, 3)``.

    8-bit images are shown as they are. CT (unit HU) is shown in a lung window (centre -600, width 1500) where
    more than a tenth of the slice is lung (-950 to -500 HU), else in a soft-tissue window (40, 400). Everything
    else from the 0.5 to the 99.5 percentile.

    Args:
        image: as it was read.
        plane: number of the slice; the middle one if left out.
        frame: number of the moment; the middle one if left out.
    """
    shown = image.array[
        image.frames // 2 if frame is None else frame, :, image.size[0] // 2 if plane is None else plane
    ]
    shown = np.moveaxis(shown, 0, -1) if len(shown) == 3 else shown[0]
    if shown.dtype == np.uint8:
        return np.ascontiguousarray(shown)
    values = np.nan_to_num(shown.astype(np.float32))
    if image.unit == "HU":
        lung = float(((values > -950) & (values < -500)).mean()) > 0.1
        low, high = (-1350.0, 150.0) if lung else (-160.0, 240.0)
    else:
        low, high = map(float, np.percentile(values, [0.5, 99.5]))
        if high <= low:
            low, high = float(values.min()), float(values.max())
    return ((values - low) / max(high - low, 1e-12) * 255).clip(0, 255).round().astype(np.uint8)
