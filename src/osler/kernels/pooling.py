"""ReLU of a max-pooling over windows of two by two, on the bits of the numbers (see ``osler.max_relu``).

Arrays are ``(batch, height, width, channels)`` of whole numbers with the bits of floating-point ones.
"""

from typing import no_type_check

from osler.kernels import compiled


@compiled
@no_type_check
def forward(x, pooled, magnitude, infinity):
    """The largest of four and 0, as whole numbers; a NaN of either sign stays a NaN."""
    batch, height, width, channels = pooled.shape
    zero = x.dtype.type(0)
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                for k in range(channels):
                    a, b = x[n, 2 * i, 2 * j, k], x[n, 2 * i, 2 * j + 1, k]
                    c, d = x[n, 2 * i + 1, 2 * j, k], x[n, 2 * i + 1, 2 * j + 1, k]
                    largest = max(max(max(a, b), max(c, d)), zero)
                    extent = max(max(a & magnitude, b & magnitude), max(c & magnitude, d & magnitude))
                    pooled[n, i, j, k] = extent if extent > infinity else largest


@compiled
@no_type_check
def backward(x, pooled, gradient, back):
    """The gradient to the first of the four that is the maximum, if that is positive; the others get 0.

    ``left ^ taken`` is 0 once the gradient was taken, and the gradient before.
    """
    batch, height, width, channels = pooled.shape
    zero = x.dtype.type(0)
    for n in range(batch):
        # What an odd height or width leaves over is in no window.
        back[n, 2 * height :] = zero
        back[n, :, 2 * width :] = zero
        for i in range(height):
            for j in range(width):
                for k in range(channels):
                    largest = pooled[n, i, j, k]
                    left = gradient[n, i, j, k] if largest > zero else zero
                    taken = left if x[n, 2 * i, 2 * j, k] == largest else zero
                    back[n, 2 * i, 2 * j, k] = taken
                    left ^= taken
                    taken = left if x[n, 2 * i, 2 * j + 1, k] == largest else zero
                    back[n, 2 * i, 2 * j + 1, k] = taken
                    left ^= taken
                    taken = left if x[n, 2 * i + 1, 2 * j, k] == largest else zero
                    back[n, 2 * i + 1, 2 * j, k] = taken
                    back[n, 2 * i + 1, 2 * j + 1, k] = left ^ taken
