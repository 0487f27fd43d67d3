"""Grey values changed: noise, blur, gamma. The unit of work is a piece of an image, and threads share the pieces.

Loops do one thing to all pixels of a piece, without branches, so that many pixels are computed at once; and sums are
made piece by piece, so that the number of threads changes no bit.
"""

from typing import no_type_check

import numpy as np

from osler.kernels import compiled
from osler.kernels.hashing import word

PIECE = 1 << 13
"""Pixels of a piece where neighbours do not matter: few enough for the nearest cache."""

_LANES = 128
_ONE, _HALF, _LN2 = np.float32(1), np.float32(0.5), np.float32(np.log(2))
# Polynomials of the Cephes library (Moshier, 1992) in single precision, with relative errors of about 1e-7.
_LOG = tuple(map(np.float32, (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)))  # fmt: skip
_EXP = tuple(map(np.float32, (
    1.535336188319500e-4, 1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2,
    2.402264791363012e-1, 6.931472028550421e-1,
)))  # fmt: skip
_SIN = tuple(map(np.float32, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)))
_COS = tuple(map(np.float32, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)))


@compiled
@no_type_check
def noise(before, after, rows, starts, deviation, pieces):
    """Adds ``deviation`` times the numbers of ``draws.white``.

    Args:
        before: float32 ``(b, p)``, the pixels of each image.
        after: the same; the chosen rows are filled.
        rows: int64 ``(n,)``, which images are changed.
        starts: uint64 ``(n,)``, where each one's stream begins (``draws.start``).
        deviation: float32 ``(n,)``.
        pieces: from which to which of the ``n * count(half)`` pieces of the first halves, ``half = ceil(p / 2)``.
    """
    pixels = before.shape[1]
    half = (pixels + 1) // 2
    each = count(half)
    for piece in range(pieces[0], pieces[1]):
        n, first = piece // each, piece % each * PIECE
        start, size, here = starts[n], deviation[n], min(PIECE, half - first)
        source, target = before[rows[n], first : first + here], after[rows[n], first : first + here]
        # an odd image has no partner for the last number of its first half
        far = slice(half + first, min(half + first + here, pixels))
        other_source, other_target = before[rows[n], far], after[rows[n], far]
        for i in range(len(other_target)):
            one, other = _pair(word(start, first + i))
            target[i] = source[i] + size * one
            other_target[i] = other_source[i] + size * other
        for i in range(len(other_target), len(target)):
            target[i] = source[i] + size * _pair(word(start, first + i))[0]


@compiled
@no_type_check
def count(pixels):
    """How many pieces so many pixels are."""
    return (pixels + PIECE - 1) // PIECE


@compiled
@no_type_check
def _pair(bits):
    """Two standard normal numbers (Box and Muller, 1958); so does ``draws.white``."""
    chance = np.float32(np.int32(bits >> np.uint64(40)) + np.int32(1)) * np.float32(2.0**-24)
    turn = np.float32(np.int32((bits >> np.uint64(16)) & np.uint64(0xFFFFFF))) * np.float32(2.0**-24)
    radius = np.sqrt(np.float32(-2) * _log(chance))
    quarter = np.int32(turn * np.float32(4) + _HALF)
    r = (turn - np.float32(quarter) * np.float32(0.25)) * np.float32(2 * np.pi)
    z = r * r
    sine = ((_SIN[0] * z + _SIN[1]) * z + _SIN[2]) * z * r + r
    cosine = ((_COS[0] * z + _COS[1]) * z + _COS[2]) * z * z - _HALF * z + _ONE
    odd = (quarter & 1) == 1
    x, y = sine if odd else cosine, cosine if odd else sine
    x = -x if quarter == 1 or quarter == 2 else x
    y = -y if quarter == 2 or quarter == 3 else y
    return radius * x, radius * y


@compiled
@no_type_check
def _log(x):
    """The natural logarithm of a positive float32 that is not subnormal."""
    bits = np.float32(x).view(np.int32)
    exponent = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    t = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32) - _ONE
    z, p = t * t, ((_LOG[0] * t + _LOG[1]) * t + _LOG[2]) * t + _LOG[3]
    p = ((((p * t + _LOG[4]) * t + _LOG[5]) * t + _LOG[6]) * t + _LOG[7]) * t + _LOG[8]
    return t + (p * t * z - _HALF * z) + np.float32(exponent) * _LN2


@compiled
@no_type_check
def _power(x, exponent):
    """``x ** exponent`` for x from 0 to 1 and a positive exponent; what is below 1e-37 counts as 0."""
    y = max(exponent * _log(max(x, np.float32(1e-37))) / _LN2, np.float32(-125))
    whole = np.floor(y + _HALF)
    t = y - whole
    p = ((((_EXP[0] * t + _EXP[1]) * t + _EXP[2]) * t + _EXP[3]) * t + _EXP[4]) * t + _EXP[5]
    return (p * t + _ONE) * np.int32(np.int32(np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@compiled
@no_type_check
def blur(before, after, rows, weights, planes):
    """Blurs along z, x and y, a plane at a time; beyond the edge the edge's pixels.

    Args:
        before: float32 ``(b, c, d, h, w)``.
        after: the same; the chosen images are filled.
        rows: int64 ``(n,)``, which images are blurred.
        weights: float32 ``(n, r + 1)``, of the pixel itself and of those 1 to r away on either side.
        planes: from which to which of the ``n * c * d`` planes.
    """
    _, channels, depth, height, width = before.shape
    radius = weights.shape[1] - 1
    plane, padded = np.zeros((height, width), np.float32), np.zeros(width + 2 * radius, np.float32)
    for number in range(planes[0], planes[1]):
        n, c, z = number // (channels * depth), number // depth % channels, number % depth
        source, target, weight = before[rows[n], c], after[rows[n], c, z], weights[n]
        inside = padded[radius : radius + width]
        for y in range(height):
            _sum(source[z, y], weight[0] if depth > 1 else _ONE, inside)
            for r in range(1, radius + 1 if depth > 1 else 1):
                _add(source[max(z - r, 0), y], source[min(z + r, depth - 1), y], weight[r], inside)
            for r in range(radius):
                padded[r], padded[radius + width + r] = inside[0], inside[width - 1]
            _sum(inside, weight[0], plane[y])
            for r in range(1, radius + 1):
                _add(padded[radius - r : radius - r + width], padded[radius + r :], weight[r], plane[y])
        for y in range(height):
            _sum(plane[y], weight[0], target[y])
            for r in range(1, radius + 1):
                _add(plane[max(y - r, 0)], plane[min(y + r, height - 1)], weight[r], target[y])


@compiled
@no_type_check
def _sum(source, weight, target):
    for x in range(len(target)):
        target[x] = weight * source[x]


@compiled
@no_type_check
def _add(one, other, weight, target):
    for x in range(len(target)):
        target[x] += weight * (one[x] + other[x])


@compiled
@no_type_check
def extent(images, rows, found, pieces):
    """The smallest and largest value and the sum of each piece into ``found (n, pieces of an image, 3)``."""
    pixels = images.shape[1]
    each = count(pixels)
    low, high, total = np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32), np.zeros(_LANES, np.float32)
    for piece in range(pieces[0], pieces[1]):
        n, first = piece // each, piece % each * PIECE
        source = images[rows[n], first : min(first + PIECE, pixels)]
        for lane in range(_LANES):
            low[lane], high[lane], total[lane] = source[0], source[0], 0
        for i in range(0, len(source), _LANES):
            part = source[i : i + _LANES]
            for lane in range(len(part)):
                low[lane], high[lane] = min(low[lane], part[lane]), max(high[lane], part[lane])
                total[lane] += part[lane]
        place = found[n, piece % each]
        place[0], place[1], place[2] = low[0], high[0], 0
        for lane in range(_LANES):
            place[0], place[1] = min(place[0], low[lane]), max(place[1], high[lane])
            place[2] += total[lane]


@compiled
@no_type_check
def gamma(before, after, rows, change, found, pieces):
    """``low + reach * ((x - low) / reach) ** exponent``, and the sum of each piece of the result.

    Args:
        before: float32 ``(b, p)``.
        after: the same; the chosen rows are filled.
        rows: int64 ``(n,)``.
        change: float32 ``(n, 3)``: low, reach, exponent.
        found: float64 ``(n, pieces of an image)``, filled with sums.
        pieces: from which to which of the pieces of all images.
    """
    pixels = before.shape[1]
    each = count(pixels)
    total = np.zeros(_LANES, np.float32)
    for piece in range(pieces[0], pieces[1]):
        n, first = piece // each, piece % each * PIECE
        last = min(first + PIECE, pixels)
        source, target, (low, reach, exponent) = before[rows[n], first:last], after[rows[n], first:last], change[n]
        inverse = _ONE / reach
        for i in range(len(source)):
            target[i] = low + reach * _power((source[i] - low) * inverse, exponent)
        for lane in range(_LANES):
            total[lane] = 0
        for i in range(0, len(target), _LANES):
            part = target[i : i + _LANES]
            for lane in range(len(part)):
                total[lane] += part[lane]
        found[n, piece % each] = 0
        for lane in range(_LANES):
            found[n, piece % each] += total[lane]


@compiled
@no_type_check
def scale(before, after, rows, line, pieces):
    """``line[:, 0] * x + line[:, 1]`` for each chosen image; ``after`` may be ``before``."""
    pixels = before.shape[1]
    each = count(pixels)
    for piece in range(pieces[0], pieces[1]):
        n, first = piece // each, piece % each * PIECE
        last = min(first + PIECE, pixels)
        source, target = before[rows[n], first:last], after[rows[n], first:last]
        factor, offset = line[n, 0], line[n, 1]
        for i in range(len(source)):
            target[i] = factor * source[i] + offset
