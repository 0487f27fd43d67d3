"""The augmentations that only one kind of machine makes, on phantoms, in one picture.

    python benchmarks/augmentation_pictures.py docs/images/augmentations.png

Each is shown at the strong end of what its default options allow.
"""

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from osler.catalog import find
from osler.draws import keys
from osler.phantom import Phantom, phantom_case

SIDE = 128
# A row a modality: what is shown beside the untouched image. Name, key, and options besides probability 1.
Shown = tuple[str, int, dict[str, Any]]
ROWS: dict[str, tuple[Shown, ...]] = {
    "MRI": (
        ("bias", 1, {"strength": 0.6}),
        ("ghost", 2, {"low": 0.5, "fewest": 4, "most": 4}),
        ("motion", 5, {"translation": 0.03}),
        ("spike", 4, {"low": 0.4}),
    ),
    "CT": (
        ("dose", 1, {"low": 0.15, "high": 0.15}),
        ("dose", 2, {"low": 0.3}),
        ("metal", 1, {"low": 0.9}),
        ("metal", 3, {"low": 1.2}),
    ),
    "ultrasound": (
        ("speckle", 1, {"low": 0.4}),
        ("shadow", 3, {"low": 0.7, "enhancement_probability": 0.0}),
        ("shadow", 4, {"low": 0.7, "enhancement_probability": 1.0}),
        ("gain", 3, {}),
    ),
    "X-ray": (
        ("exposure", 1, {"most": 300.0}),
        ("exposure", 2, {"fewest": 30000.0, "widest": 0.8}),
        ("collimation", 1, {"low": 0.05, "white_probability": 0.0}),
        ("collimation", 4, {"low": 0.05, "white_probability": 1.0}),
    ),
}

# The head of Shepp and Logan (1974) with Toft's contrasts: value, half axes, centre, angle.
HEAD = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0),
)


def head(side: int) -> NDArray[np.float64]:
    fine = 4 * side
    y, x = np.meshgrid(np.linspace(1, -1, fine), np.linspace(-1, 1, fine), indexing="ij")
    image = np.zeros((fine, fine))
    for value, wide, tall, cx, cy, angle in HEAD:
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        u, v = (x - cx) * c + (y - cy) * s, (y - cy) * c - (x - cx) * s
        image += value * ((u / wide) ** 2 + (v / tall) ** 2 <= 1)
    return image.reshape(side, 4, side, 4).mean((1, 3))


def phantom(kind: str) -> NDArray[np.float64]:
    if kind == "MRI":
        return head(SIDE)
    if kind == "CT":
        array = phantom_case(1, Phantom(modality="ct", size=96, noise=0.2)).case.images["image"].array
        return np.clip(array[0, 0, 44].astype(float), -1000, 400)
    spec = Phantom(modality="ultrasound" if kind == "ultrasound" else "xray", size=SIDE, lesion=(20.0, 30.0))
    return phantom_case(2, spec).case.images["image"].array[0, 0, 0].astype(float)


def main(path: str) -> None:
    figure = Figure(figsize=(7.5, 6.6), layout="constrained")
    grid = figure.subplots(len(ROWS), 5)
    for axes, (kind, shown) in zip(grid, ROWS.items(), strict=True):
        plain = phantom(kind)
        image = torch.from_numpy((plain - plain.mean()) / plain.std()).float()[None, None, None]
        low, high = float(image.min()), float(image.max())
        panels = [(kind, image)]
        for name, key, options in shown:
            module = find("transforms", name)
            certain = replace(module.Options(), probability=1.0, **options)
            panels.append((name, module.apply(image, certain, keys(key))))
        for axis, (title, panel) in zip(axes, panels, strict=True):
            axis.imshow(panel[0, 0, 0].numpy(), cmap="gray", vmin=low, vmax=high)
            axis.set_title(title, fontsize=9, weight="bold" if title == kind else "normal")
            axis.axis("off")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=105)
    Image.open(drawn).convert("L").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
