"""Dice, HD95, mean distance and NSD of two masks: Osler against MONAI; and a lesion's measurements.

    python benchmarks/masks.py --repeats 5

A CT-sized volume with an organ of 120 mm, outlined by a reader and by a model that differs by a few millimetres; and
the same for a lesion of 20 mm. Timed in turns in one process, one thread; medians and the ratio of each round are
printed. Both compute the same four figures, which are compared, too. MONAI calls them one after the other,
as in its tutorials; Osler finds the distances once for three of them.
"""

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import monai
import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy import ndimage

from osler.case import Mask
from osler.image import Image, Spacing
from osler.measurement import measure
from osler.metrics import overlap, surface

SPACING = (1.5, 0.8, 0.8)
TOLERANCE = 2.0


def organs(size: tuple[int, int, int], radius: float) -> tuple[np.ndarray, np.ndarray]:
    """A ball in the middle with a surface that waves, and the same seen by another reader."""
    random, found = np.random.default_rng(0), []
    z, y, x = (
        axis * s - n * s / 2 for axis, s, n in zip(np.ogrid[tuple(map(slice, size))], SPACING, size, strict=True)
    )
    far = np.sqrt(z**2 + y**2 + x**2)
    for _ in range(2):
        coarse = random.normal(0, 0.04 * radius, tuple(n // 16 + 1 for n in size))
        waves = ndimage.zoom(coarse, [n / m for n, m in zip(size, coarse.shape, strict=True)], order=1)
        found.append(far + waves < radius)
    return found[0], found[1]


def ours(reference: np.ndarray, prediction: np.ndarray) -> list[float]:
    apart = surface.distances(reference, prediction, SPACING)
    far = surface.hausdorff(apart), surface.assd(apart), surface.nsd(apart, TOLERANCE)
    return [overlap.dice(reference, prediction), *far]


def monais(reference: np.ndarray, prediction: np.ndarray) -> list[float]:
    y, y_pred = (torch.from_numpy(mask)[None, None] for mask in (reference, prediction))
    options = {"include_background": True, "spacing": list(SPACING)}
    return [
        compute_dice(y_pred.float(), y.float()).item(),
        compute_hausdorff_distance(y_pred, y, percentile=95, **options).item(),
        compute_average_surface_distance(y_pred, y, symmetric=True, **options).item(),
        compute_surface_dice(y_pred, y, [TOLERANCE], **options).item(),
    ]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=3, default=(160, 512, 512), help="depth, height, width")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    torch.set_num_threads(1)
    size = tuple(options.size)
    print(f"{platform.processor() or platform.machine()}, MONAI {monai.__version__}, one thread, {size} pixels")
    image = Image(np.zeros((1, 1, *size), np.uint8), Spacing(SPACING[2], SPACING[1], SPACING[0]))
    for name, radius in (("organ of 120 mm", 60.0), ("lesion of 20 mm", 10.0)):
        pair = organs(size, radius)
        np.testing.assert_allclose(ours(*pair), monais(*pair), rtol=1e-5)
        times: dict[str, list[float]] = {"osler": [], "monai": [], "measured": []}
        mask = Mask.cropped(pair[0])
        for _ in range(options.repeats):
            times["osler"].append(seconds(lambda p=pair: ours(*p)))
            times["monai"].append(seconds(lambda p=pair: monais(*p)))
            times["measured"].append(seconds(lambda m=mask: measure(m, image)))
        a, b, c = (statistics.median(times[who]) for who in ("osler", "monai", "measured"))
        ratios = sorted(theirs / mine for mine, theirs in zip(times["osler"], times["monai"], strict=True))
        print(
            f"{name}: Osler {a:.3f} s, MONAI {b:.3f} s, ratio {statistics.median(ratios):.1f} "
            f"({ratios[0]:.1f} to {ratios[-1]:.1f}); volume, axes and surface in {c:.3f} s"
        )


if __name__ == "__main__":
    main()
