"""Pairs of masks for comparison with other libraries: random ones, and ones that break things."""

import numpy as np


def ball(size: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]) -> np.ndarray:
    """The pixels whose centres lie within a distance; everything in millimetres, pixel 0 at 0."""
    axes = np.ogrid[tuple(slice(n) for n in size)]
    far = sum((axis * s - c) ** 2 for axis, s, c in zip(axes, spacing, centre, strict=True))
    return np.asarray(far <= radius**2)


def box(size: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def pairs() -> dict[str, tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
    """By name: reference, prediction, spacing; neither is empty."""
    random = np.random.default_rng(0)
    found: dict[str, tuple[np.ndarray, np.ndarray, tuple[float, ...]]] = {}
    for dims, size in ((2, (23, 31)), (3, (9, 17, 21))):
        unit, uneven = (1.0,) * dims, (2.5, 0.8, 0.35)[-dims:]
        ours, theirs = (random.uniform(size=size) < share for share in (0.3, 0.4))
        found[f"noise {dims}D"] = ours, theirs, uneven
        middle, aside = (size[0] // 2,) + (8,) * (dims - 1), (size[0] // 2 + 1,) + (10,) * (dims - 1)
        found[f"balls {dims}D"] = ball(size, middle, 4, unit), ball(size, aside, 5, unit), unit
        found[f"uneven {dims}D"] = (*found[f"balls {dims}D"][:2], uneven)
        found[f"same {dims}D"] = found[f"balls {dims}D"][0], found[f"balls {dims}D"][0].copy(), uneven
        found[f"within {dims}D"] = ball(size, middle, 5, unit), ball(size, middle, 2, unit), uneven
        first, last = box(size, (0,) * dims, (1,) * dims), box(size, tuple(n - 1 for n in size), size)
        found[f"corners {dims}D"] = first, last, uneven
        beside = box(size, (0, 1) + (0,) * (dims - 2), (1, 2) + (1,) * (dims - 2))
        found[f"touching pixels {dims}D"] = first, beside, uneven
        found[f"whole image {dims}D"] = np.ones(size, bool), found[f"balls {dims}D"][0], uneven
        found[f"line {dims}D"] = box(size, (0,) * dims, size[:1] + (1,) * (dims - 1)), first, uneven
    return found
