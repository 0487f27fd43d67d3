"""Normalisation that was fitted on all splits: the test images have helped to set the scale of the training images.

Who subtracts the mean and divides by the deviation of everything that he has leaves a trace: over all parts together
the mean is 0 and the deviation 1 as exactly as the numbers are stored, over the training part alone they are not.
The same with the smallest value at 0 and the largest at 1.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.inspections import Evidence, Look, Trouble
from osler.probe import number

# What rounding to single precision leaves of a mean of 0 and a deviation of 1; training must be far beyond.
_EXACT, _OFF = 2e-4, 1e-3
# A column with fewer rows may have a mean of 0 by chance.
_FEWEST = 10

Sums = NDArray[np.float64]


def measure(look: Look) -> Sums:
    """Count, sum, sum of squares, smallest and largest value of all pixels, ``(5,)``; nan for whole numbers.

    Whole numbers as they are stored have not been standardised.
    """
    pixels = look.image.array
    if not np.issubdtype(pixels.dtype, np.floating):
        return np.full(5, np.nan)
    flat = pixels.reshape(-1).astype(np.float64)
    return np.array([flat.size, flat.sum(), flat @ flat, flat.min(), flat.max()], np.float64)


def find(evidence: Evidence) -> list[Trouble]:
    """``joint_normalisation``, for the images and for each column of numbers; only where parts are given."""
    parts = np.array([entry.split or "train" for entry in evidence.entries])
    troubles = []
    for what, sums in _numbers(evidence):
        for joint in _unions(parts):
            said = _joint(sums, np.isin(parts, joint), parts == "train")
            if said:
                troubles.append(
                    Trouble(
                        "joint_normalisation",
                        (),
                        f"{what} together {said}: the scale was set with the help of {' and '.join(joint[1:])}",
                        "start from the values before normalisation; the network's first layer normalises, fitted on "
                        "training cases alone",
                    )
                )
                break
    return troubles


def _numbers(evidence: Evidence) -> Iterator[tuple[str, Sums]]:
    """The sums of each case: of its pixels, and of each of its columns as one value."""
    yield "the pixels of these parts", np.asarray(evidence.measured["normalisation"], np.float64)
    for where in ("covariates", "metadata"):
        for name in dict.fromkeys(name for entry in evidence.entries for name in getattr(entry, where)):
            value = np.array([number(getattr(entry, where).get(name)) for entry in evidence.entries])
            if len(np.unique(value[~np.isnan(value)])) > _FEWEST:
                known = np.where(np.isnan(value), np.nan, 1.0)
                yield f"the values of {name!r}", np.stack([known, value, value**2, value, value], axis=1)


def _unions(parts: NDArray[Any]) -> Iterator[tuple[str, ...]]:
    """Training with each choice of the other parts, all of them first."""
    others = [name for name in ("validation", "calibration", "test") if (parts == name).any()]
    if (parts == "train").any():
        for size in range(len(others), 0, -1):
            yield from (("train", *chosen) for chosen in combinations(others, size))


def _joint(sums: Sums, joint: NDArray[np.bool_], train: NDArray[np.bool_]) -> str:
    """How all parts together are normalised while training is not; empty where they are not."""
    known = ~np.isnan(sums).any(axis=1)
    if (known & joint).sum() < _FEWEST or (known & train).sum() < 2 or not (known & joint & ~train).any():
        return ""
    (mean, deviation, low, high), (own_mean, own_deviation, own_low, own_high) = (
        _moments(sums[known & which]) for which in (joint, train)
    )
    # A deviation may have been taken with n - 1.
    count = sums[known & joint, 0].sum()
    ones = (deviation, deviation * np.sqrt(count / (count - 1)))
    standard = abs(mean) < _EXACT and min(abs(one - 1) for one in ones) < _EXACT
    if standard and max(abs(own_mean), abs(own_deviation - 1)) > _OFF:
        return (
            f"have mean {mean:.5f} and deviation {deviation:.5f}, those of training {own_mean:.4f} "
            f"and {own_deviation:.4f}"
        )
    # Of a column 0 and 1 may be natural bounds: of shares, of scores.
    pixels = sums[known, 0].max() > 1
    if pixels and (low, high) == (0, 1) and (own_low, own_high) != (0, 1):
        return f"run from exactly 0 to exactly 1, those of training from {own_low:.4g} to {own_high:.4g}"
    return ""


def _moments(sums: Sums) -> tuple[float, float, float, float]:
    count, total, squares = sums[:, :3].sum(axis=0)
    mean = total / count
    deviation = np.sqrt(max(0.0, squares / count - mean**2))
    return float(mean), float(deviation), float(sums[:, 3].min()), float(sums[:, 4].max())
