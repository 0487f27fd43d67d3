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


def start(key: NDArray[np.uint64], stream: str) -> NDArray[np.uint64]:
    """Where the numbers of each key for one purpose begin: number ``n`` from 0 hashes this plus ``n + 1`` steps."""
    with np.errstate(over="ignore"):
        return _mix(key + _mix(np.atleast_1d(np.uint64(zlib.crc32(stream.encode()))) + _GOLDEN))


def _bits(key: NDArray[np.uint64], stream: str, shape: tuple[int, ...]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        position = (np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        return _mix(start(key, stream)[:, None] + position).reshape(len(key), *shape)


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


def white(key: NDArray[np.uint64], stream: str, count: int) -> NDArray[np.float32]:
    """Standard normal numbers in single precision, shape ``(len(key), count)``: for noise, of which millions are
    wanted.

    One hash gives two (Box and Muller, 1958): number ``n`` of the first half and number ``n`` of the second. They
    reach 5.77 standard deviations.
    """
    bits = _bits(key, stream, ((count + 1) // 2,))
    chance = ((bits >> np.uint64(40)) + np.uint64(1)).astype(np.float32) * np.float32(2.0**-24)
    turn = (bits >> np.uint64(16) & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)
    radius, angle = np.sqrt(np.float32(-2) * np.log(chance)), np.float32(2 * np.pi) * turn
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


def whole(key: NDArray[np.uint64], stream: str, count: int, below: int) -> NDArray[np.int64]:
    """Whole numbers from 0 to ``below - 1``, shape ``(len(key), count)``; ``below`` is at most 2**32.

    Two of each hash, half of its bits times ``below`` (Lemire, 2019, without his correction: the chances of two
    numbers differ by a share of ``below / 2**32`` at most).
    """
    bits = _bits(key, stream, ((count + 1) // 2,)).astype("<u8", copy=False)
    return np.asarray((bits.view("<u4")[:, :count] * np.uint64(below)) >> np.uint64(32)).view(np.int64)


def permutation(key: NDArray[np.uint64], count: int) -> NDArray[np.intp]:
    """A random order of ``count`` things for one key."""
    return np.asarray(np.argsort(_bits(key[:1], "order", (count,))[0], kind="stable"))
