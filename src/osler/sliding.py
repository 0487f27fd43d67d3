"""A network that sees patches, asked about a whole image: patch by patch, with answers that blend into each other."""

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from osler.problem import Problem

Size = tuple[int, int, int]
Answer = TypeVar("Answer")
# Pixels of patches that go through the network at once, at first.
_AT_ONCE = 2**21
# Bytes of an answer beyond which it lies in a file.
MOST_IN_MEMORY = 2**31


def starts(size: Sequence[int], patch: Sequence[int], overlap: float) -> list[Size]:
    """Where patches begin so that they cover an image, evenly spread, each over at least ``overlap`` of the last one.

    Args:
        size: ``(depth, height, width)`` of the image, at least that of the patch.
        patch: the same of the patch.
        overlap: share of a patch, 0 to 0.9.
    """
    along = []
    for n, p in zip(size, patch, strict=True):
        count = max(1, math.ceil((n - p) / max(1, round(p * (1 - overlap)))) + 1)
        along.append([round(i * (n - p) / max(1, count - 1)) for i in range(count)])
    return [(z, y, x) for z, y, x in itertools.product(*along)]


def bell(patch: Sequence[int]) -> Float[Tensor, "d h w"]:
    """How much a patch's answer counts at each of its pixels: a Gaussian of sigma = size / 8 (Isensee 2021).

    It is nowhere 0, so that every pixel has an answer.
    """
    along = [torch.exp(-0.5 * ((torch.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = along[0][:, None, None] * along[1][:, None] * along[2]
    return weight.clamp(min=1e-3)


def padded(image: NDArray[np.float32], patch: Sequence[int]) -> tuple[NDArray[np.float32], Size]:
    """An image ``(c, d, h, w)`` that is at least as large as a patch, and how far its first pixel moved."""
    short = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    if not any(short):
        return image, (0, 0, 0)
    before = [s // 2 for s in short]
    filled = np.empty((len(image), *(n + s for n, s in zip(image.shape[1:], short, strict=True))), np.float32)
    filled[...] = image.min((1, 2, 3), keepdims=True)
    filled[(slice(None), *(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True)))] = image
    return filled, (before[0], before[1], before[2])


def answers(
    predict: Callable[[Tensor], Answer], image: NDArray[np.float32], patch: Size, overlap: float
) -> Iterator[tuple[list[Size], Answer]]:
    """What a network says of each patch of a :func:`padded` image, some at a time, and where those begin.

    Where memory does not suffice for so many at once, they are asked about in halves from then on: the answers stay
    the same.

    Args:
        predict: from patches ``(b, 1, c, d, h, w)`` to their answers.
        image: ``(c, d, h, w)``.
        patch: ``(depth, height, width)``.
        overlap: see :func:`starts`.

    Raises:
        Problem: memory does not suffice for one patch.
    """
    places = starts(image.shape[1:], patch, overlap)
    together, done = max(1, _AT_ONCE // math.prod(patch)), 0
    while done < len(places):
        some = places[done : done + together]
        windows = [image[:, z : z + patch[0], y : y + patch[1], x : x + patch[2]] for z, y, x in some]
        try:
            found = predict(torch.from_numpy(np.ascontiguousarray(np.stack(windows)[:, None])))
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            if together == 1:
                raise Problem("not enough memory for one patch", fix="train with a smaller image.size") from error
            together = max(1, together // 2)
            continue
        yield some, found
        done += len(some)


def _lacks_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in text


def _room(*shape: int) -> Tensor:
    """Zeros, in a file without a name where they would take too much of the memory."""
    if 4 * math.prod(shape) <= MOST_IN_MEMORY:
        return torch.zeros(shape)
    with tempfile.TemporaryFile() as file:
        try:
            return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))
        except OSError as error:
            raise Problem(
                f"no room for the answer of so large an image ({error.strerror})", fix="free some space"
            ) from error


class Blend:
    """The answers of patches, added up; what is too large for the memory lies in a file.

    Args:
        channels: of an answer.
        size: of the padded image.
        patch: of a patch.
    """

    def __init__(self, channels: int, size: Sequence[int], patch: Size) -> None:
        self._weight = bell(patch)
        self._patch = patch
        self._sum, self._total = _room(channels, *size), _room(*size)

    def add(self, places: Sequence[Size], answers: Float[Tensor, "b k d h w"]) -> None:
        """The answers of patches that begin there."""
        for (z, y, x), answer in zip(places, answers.float().cpu(), strict=True):
            window = (slice(z, z + self._patch[0]), slice(y, y + self._patch[1]), slice(x, x + self._patch[2]))
            self._sum[(slice(None), *window)] += answer * self._weight
            self._total[window] += self._weight

    def result(self, shift: Size, size: Sequence[int]) -> NDArray[np.float32]:
        """Their mean ``(k, d, h, w)`` over the image without its padding; nothing can be added after that."""
        window = tuple(slice(s, s + n) for s, n in zip(shift, size, strict=True))
        self._sum /= self._total
        return np.asarray(self._sum[(slice(None), *window)].numpy(), np.float32)
