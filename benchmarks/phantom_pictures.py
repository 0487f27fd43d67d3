"""A picture of the phantoms with places: each kind once as it is and once with its outlines.

python benchmarks/phantom_pictures.py docs/images/phantoms.jpg
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy.ndimage import binary_erosion, zoom

from osler.dense_phantom import LESIONS, NODULES, ORGAN, DensePhantom, dense_case

SIDE, COUNT = 192, 4
COLOURS = np.array([[255, 196, 61], [70, 190, 255], [255, 110, 160]], np.uint8)


def row(spec: DensePhantom) -> NDArray[np.uint8]:
    """Images with something in them, in the slice with most of it, above the same with outlines."""
    pairs: list[NDArray[np.uint8]] = []
    number = 0
    while len(pairs) < COUNT:
        made = dense_case(number, spec)
        number += 1
        if not made.labels.any():
            continue
        plane = int((made.labels > 0).sum((1, 2)).argmax())
        grey = made.case.images["image"].array[0, 0, plane].astype(float)
        low, high = np.percentile(grey, [0.5, 99.8])
        grey = ((grey - low) / (high - low)).clip(0, 1) * 255
        shown = zoom(grey, SIDE / len(grey), order=1).clip(0, 255).astype(np.uint8)
        plain = np.repeat(shown[..., None], 3, 2)
        drawn = plain.copy()
        labels = zoom(made.labels[plane], SIDE / len(grey), order=0)
        for value in range(1, len(spec.classes) + 1):
            there = labels == value
            drawn[there & ~binary_erosion(there, iterations=2)] = COLOURS[value - 1]
        pairs.append(np.vstack([plain, drawn]))
    return np.hstack(pairs)


def main() -> None:
    picture = Pillow.fromarray(np.vstack([row(spec) for spec in (LESIONS, NODULES, ORGAN)]))
    picture.save(Path(sys.argv[1]), quality=82)


if __name__ == "__main__":
    main()
