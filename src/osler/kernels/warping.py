"""Images and masks resampled through an affine map and a B-spline, whose places are never written out.

A line of output pixels along x is the unit of work: where it comes from is computed for the whole line at once and
stays in the processor's nearest cache, and threads share the lines of all images.
"""

from typing import no_type_check

import numpy as np

from osler.kernels import compiled


@compiled
@no_type_check
def images(before, after, rows, affine, spline, zero, lines):
    """Fills lines of the chosen images of ``after``, linearly interpolated.

    Args:
        before: float32 ``(b, c, d, h, w)``; depth 1 means 2D.
        after: the same.
        rows: int64 ``(n,)``, which images are moved.
        affine: float32 ``(n, 3, 4)``, from an output pixel to its place in the input, x y z, in pixels.
        spline: control points ``(n, 3, i, j, 6)`` in pixels, and what each adds at each place along z ``(i, d)``,
            y ``(j, h)`` and x ``(6, w)``, all float32; i = 0 where nothing is bent.
        zero: beyond the edge, 0 instead of the edge's pixels.
        lines: from which to which of the ``n * d * h`` lines.
    """
    _, channels, depth, height, width = before.shape
    points, place = np.zeros((3, len(spline[2]), 6), np.float32), np.zeros((3, width), np.float32)
    share = np.zeros((3, width), np.float32)
    index, step = np.zeros((3, width), np.int32), np.zeros((3, width), np.int32)
    for line in range(lines[0], lines[1]):
        n, z, y = line // (depth * height), line // height % depth, line % height
        if line == lines[0] or y == 0:
            _points(points, spline, n, z)
        _places(place, affine[n], points, spline, z, y)
        # each in a loop of its own: what one loop does alike for all pixels is done for many at once
        _neighbours(place[0], width, 1, index[0], step[0], share[0])
        _neighbours(place[1], height, width, index[1], step[1], share[1])
        _neighbours(place[2], depth, width * height, index[2], step[2], share[2])
        for channel in range(channels):
            source, target = before[rows[n], channel].reshape(-1), after[rows[n], channel, z, y]
            if depth > 1:
                _trilinear(source, index, step, share, target)
            else:
                _bilinear(source, index, step, share, target)
            if zero:
                _fade(place[0], width, target)
                _fade(place[1], height, target)
                _fade(place[2], depth, target)


@compiled
@no_type_check
def masks(before, after, rows, affine, spline, zero, lines):
    """:func:`images` for labels of any type: each output pixel takes the value of the nearest."""
    _, channels, depth, height, width = before.shape
    points, place = np.zeros((3, len(spline[2]), 6), np.float32), np.zeros((3, width), np.float32)
    index = np.zeros((3, width), np.int32)
    for line in range(lines[0], lines[1]):
        n, z, y = line // (depth * height), line // height % depth, line % height
        if line == lines[0] or y == 0:
            _points(points, spline, n, z)
        _places(place, affine[n], points, spline, z, y)
        _nearest(place[0], width, 1, index[0])
        _nearest(place[1], height, width, index[1])
        _nearest(place[2], depth, width * height, index[2])
        for channel in range(channels):
            source, target = before[rows[n], channel].reshape(-1), after[rows[n], channel, z, y]
            x_index, y_index, z_index = _rows(index)
            for x in range(width):
                target[x] = source[np.uint32(x_index[x] + y_index[x] + z_index[x])]
            if zero:
                _blank(place[0], width, target)
                _blank(place[1], height, target)
                _blank(place[2], depth, target)


@compiled
@no_type_check
def _nearest(place, size, length, index):
    """Along one axis: the pixel nearest to each place."""
    none, last = np.float32(0), np.float32(size - 1)
    for x in range(len(place)):
        index[x] = np.int32(np.rint(min(max(place[x], none), last))) * np.int32(length)


@compiled
@no_type_check
def _blank(place, size, target):
    half = np.float32(0.5)
    for x in range(len(place)):
        if place[x] < -half or place[x] > np.float32(size - 1) + half:
            target[x] = 0


@compiled
@no_type_check
def _neighbours(place, size, length, index, step, share):
    """Along one axis: the pixel before each place, how far away the next one is, and that one's share."""
    none, last = np.float32(0), np.float32(size - 1)
    for x in range(len(place)):
        inside = min(max(place[x], none), last)
        i = np.int32(inside)
        index[x] = i * np.int32(length)
        step[x] = np.int32(length) if i < np.int32(size - 1) else np.int32(0)
        share[x] = inside - np.float32(i)


@compiled
@no_type_check
def _bilinear(source, index, step, share, target):
    # rows in variables of their own: the compiler then keeps them in registers
    (x_index, y_index, _), (x_step, y_step, _), (x_share, y_share, _) = _rows(index), _rows(step), _rows(share)
    for x in range(len(target)):
        a = np.uint32(x_index[x] + y_index[x])
        target[x] = _flat(source, a, np.uint32(x_step[x]), np.uint32(y_step[x]), x_share[x], y_share[x])


@compiled
@no_type_check
def _trilinear(source, index, step, share, target):
    (x_index, y_index, z_index), (x_step, y_step, z_step) = _rows(index), _rows(step)
    x_share, y_share, z_share = _rows(share)
    for x in range(len(target)):
        a = np.uint32(x_index[x] + y_index[x] + z_index[x])
        right, down = np.uint32(x_step[x]), np.uint32(y_step[x])
        near = _flat(source, a, right, down, x_share[x], y_share[x])
        far = _flat(source, a + np.uint32(z_step[x]), right, down, x_share[x], y_share[x])
        target[x] = near + z_share[x] * (far - near)


@compiled
@no_type_check
def _rows(array):
    return array[0], array[1], array[2]


@compiled
@no_type_check
def _flat(source, a, right, down, x_share, y_share):
    b = a + down
    first = source[a] + x_share * (source[a + right] - source[a])
    second = source[b] + x_share * (source[b + right] - source[b])
    return first + y_share * (second - first)


@compiled
@no_type_check
def _fade(place, size, target):
    """What lies between the edge and the pixel beyond it, which is 0, is the edge's value, fading out."""
    none, one, last = np.float32(0), np.float32(1), np.float32(size - 1)
    for x in range(len(place)):
        target[x] *= max(none, one - abs(place[x] - min(max(place[x], none), last)))


@compiled
@no_type_check
def _points(points, spline, n, z):
    """The control points of a plane: those of the image, weighted along z."""
    control, on_z = spline[0], spline[1]
    points[:] = 0
    for i in range(control.shape[2]):
        for axis in range(3):
            for j in range(control.shape[3]):
                for k in range(control.shape[4]):
                    points[axis, j, k] += on_z[i, z] * control[n, axis, i, j, k]


@compiled
@no_type_check
def _places(place, affine, points, spline, z, y):
    """Where the pixels of a line come from, x y z; in 2D all have z = 0."""
    control, on_z, on_y, on_x = spline
    for axis in range(3 if on_z.shape[1] > 1 else 2):
        line, slope = place[axis], affine[axis, 0]
        start = affine[axis, 1] * np.float32(y) + affine[axis, 2] * np.float32(z) + affine[axis, 3]
        if control.shape[2] == 0:
            for x in range(len(line)):
                line[x] = start + slope * np.float32(x)
        else:
            a = b = c = d = e = f = np.float32(0)
            for j in range(points.shape[1]):
                weight, row = on_y[j, y], points[axis, j]
                a += weight * row[0]
                b += weight * row[1]
                c += weight * row[2]
                d += weight * row[3]
                e += weight * row[4]
                f += weight * row[5]
            # one sum, not a loop over points: so it is computed for many pixels at once
            for x in range(len(line)):
                first = a * on_x[0, x] + b * on_x[1, x] + c * on_x[2, x]
                line[x] = start + slope * np.float32(x) + first + d * on_x[3, x] + e * on_x[4, x] + f * on_x[5, x]
