"""Random numbers that depend on what they are for and on nothing else.

A counter-based generator: each number is a hash of (key, stream, position). The key of a case is made from
the seed, the epoch and the case, so an interrupted training draws the same augmentation again, whatever
happened before, in whatever order the cases come. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, 2014) applied twice.
"""

import math
import zlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)))


def keys(*parts: int | NDArray[np.integer]) -> NDArray[np.uint64]:
    """One 64-bit key from whole numbers, e.g. ``keys(seed, epoch, case_numbers)``; arrays broadcast."""
    key = np.zeros((1,), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            key = _mix(key + _GOLDEN + _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64) + _GOLDEN))
    return key


def _bits(key: NDArray[np.uint64], stream: str, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    count = math.prod(shape)
    tag = np.uint64(zlib.crc32(stream.encode()))
    with np.errstate(over="ignore"):
        start = _mix(key + _mix(np.atleast_1d(tag) + _GOLDEN))[:, None]
        position = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        return _mix(start + position[None]).reshape(len(key), *shape)


def uniform(
    key: NDArray[np.uint64], stream: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0
) -> NDArray[np.float64]:
    """Numbers in ``[low, high)``, shape ``(len(key), *shape)``; ``stream`` names what they are for."""
    unit = (_bits(key, stream, shape) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    # Rounding can carry the last number below 1 up to high itself.
    return np.minimum(low + (high - low) * unit, max(low, math.nextafter(high, low)))


def normal(key: NDArray[np.uint64], stream: str, shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Standard normal numbers (Box and Muller, 1958), shape ``(len(key), *shape)``."""
    count = math.prod(shape)
    pairs = ((count + 1) // 2,)
    radius = np.sqrt(-2 * np.log1p(-uniform(key, stream + "/radius", pairs)))
    angle = 2 * np.pi * uniform(key, stream + "/angle", pairs)
    both = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1).reshape(len(key), -1)
    return np.asarray(both[:, :count].reshape(len(key), *shape))


def permutation(key: NDArray[np.uint64], count: int) -> NDArray[np.intp]:
    """A random order of ``count`` things for one key."""
    return np.asarray(np.argsort(_bits(key[:1], "order", (count,))[0], kind="stable"))
