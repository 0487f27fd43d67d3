"""What the gate of a chest X-ray model makes of images that are not its kind.

    python benchmarks/novelty.py RUN [DATA]

RUN is a model of PneumoniaMNIST, DATA the folder with the sets (default: OSLER_DATA, or ../shared/data). Prints for
each set how many are refused and the AUROC of the novelty score against the given validation part, with DeLong's
interval. Half of that part calibrated the gate, so its own refusals are a little flattered.
"""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import rotate

from osler import data, diagnosis, formats, model
from osler.case import Source
from osler.image import Image
from osler.metrics.auroc import delong
from osler.metrics.estimate import wilson

Pixels = NDArray[np.uint8]


def folder(where: Path, pattern: str, most: int = 120) -> list[Image]:
    """The first images of a folder."""
    return [formats.read(Source(path)) for path in sorted(where.rglob(pattern))[:most]]


def strangers(root: Path, own: list[Pixels]) -> Iterator[tuple[str, list[Image]]]:
    """Other organs, other hospitals, and the own images changed."""
    yield "breast ultrasound", folder(root / "busi" / "images", "*.jpg")
    yield "retina", folder(root / "drive", "*image*.png")
    yield "blood smear", folder(root / "bccd", "*.jpg")
    yield "other hospitals' chest X-rays", folder(root / "covid_cxr" / "images", "*")
    rng = np.random.default_rng(0)
    changes: dict[str, Callable[[Pixels], Pixels]] = {
        "inverted": lambda x: 255 - x,
        "rotated 90": np.rot90,
        "rotated 180": lambda x: np.rot90(x, 2),
        "rotated 45": lambda x: rotate(x, 45, reshape=False, mode="nearest"),
        "mirrored": lambda x: x[:, ::-1],
        "cropped to the middle": lambda x: x[7:21, 7:21],
        "cropped to a corner": lambda x: x[:16, :16],
        "noise": lambda x: rng.integers(0, 255, x.shape).astype(np.uint8),
    }
    for name, change in changes.items():
        yield name, [as_image(change(x)) for x in own]


def as_image(pixels: Pixels) -> Image:
    """A grey picture."""
    return Image(np.ascontiguousarray(pixels)[None, None, None])


def main(run: Path, root: Path) -> None:
    """Prints the table."""
    made = model.load(run)
    limit = float(made.calibration["novelty.threshold"][0])

    def scores(images: list[Image]) -> NDArray[np.floating]:
        pixels = np.stack([data.prepare(image, made.recipe.image) for image in images])
        return diagnosis.answer(made, pixels).score

    own = list(np.load(root / "pneumoniamnist" / "pneumoniamnist.npz")["val_images"])
    known = scores([as_image(x) for x in own])
    print(f"{'own validation part':32s} {refused(known, limit)}")
    for name, images in strangers(root, own):
        strange = scores(images)
        target = np.concatenate([np.zeros(len(known)), np.ones(len(strange))])
        found = delong(target, np.concatenate([known, strange]))
        print(
            f"{name:32s} {refused(strange, limit)}  AUROC {found.value:.3f} ({found.low:.3f} to {found.high:.3f})",
            flush=True,
        )


def refused(scores: NDArray[np.floating], limit: float) -> str:
    """The share above the limit, with Wilson's interval."""
    share = wilson(int((scores > limit).sum()), len(scores))
    return f"n {len(scores):4d}  refused {share.value:.3f} ({share.low:.3f} to {share.high:.3f})"


if __name__ == "__main__":
    default = os.environ.get("OSLER_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else default))
