"""Areas under the ROC curve of many bootstrap draws."""

from typing import no_type_check

import numpy as np

from osler.kernels import compiled
from osler.kernels.hashing import word


@compiled
@no_type_check
def areas(starts, groups, of_positives, of_negatives, below, upto, area):
    """Draws patients and computes the area of each draw: whole numbers, thus exact, until its last division.

    Args:
        starts: uint64, where the stream of each draw begins (``draws.start``).
        groups: how many patients there are, and how many each draw draws.
        of_positives: uint32, the patient of each positive row.
        of_negatives: uint32, the patient of each negative row, from the lowest score up.
        below: uint32, how many negative rows have a lower score than each positive row.
        upto: uint32, the same, with those of the same score.
        area: float64, filled: the area of each draw, nan without a positive or without a negative.
    """
    half = (groups + 1) // 2
    range_of, low = np.uint64(groups), np.uint64(0xFFFFFFFF)
    drawn, times = np.zeros(2 * half, np.uint32), np.zeros(groups, np.uint16)
    beaten = np.zeros(len(of_negatives) + 1, np.int32)
    for draw in range(len(starts)):
        # in two loops: several words are hashed at once, but counted one by one
        for i in range(half):
            bits = word(starts[draw], i)
            drawn[2 * i] = ((bits & low) * range_of) >> np.uint64(32)
            drawn[2 * i + 1] = ((bits >> np.uint64(32)) * range_of) >> np.uint64(32)
        times[:] = 0
        for i in range(groups):
            times[drawn[i]] += np.uint16(1)
        negatives, positives, won = np.int32(0), np.int64(0), np.int64(0)
        for i in range(len(of_negatives)):
            negatives += np.int32(times[of_negatives[i]])
            beaten[i + 1] = negatives
        for i in range(len(of_positives)):
            here = np.int64(times[of_positives[i]])
            positives += here
            won += here * (np.int64(beaten[below[i]]) + np.int64(beaten[upto[i]]))
        pairs = 2 * positives * np.int64(negatives)
        area[draw] = won / pairs if pairs else np.nan
