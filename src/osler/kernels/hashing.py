"""The hash of :mod:`osler.draws`, for other kernels: the same numbers to the last bit."""

from typing import no_type_check

import numpy as np

from osler.kernels import compiled

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@compiled
@no_type_check
def word(start, number):
    """The 64 bits at place ``number`` (from 0) of the stream that begins at ``start`` (``draws.start``)."""
    z = start + (np.uint64(number) + np.uint64(1)) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
