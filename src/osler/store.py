"""Pixels of many cases: in memory or, where they are too many, in a file of which only what is asked for is read."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.problem import Problem

# Pixels of more bytes than this go to a file, where there is a folder for one.
MOST_IN_MEMORY = 2**28
_TYPES = (np.uint8, np.float32)
_TOGETHER = 1024


@dataclass(frozen=True, eq=False)
class Pixels:
    """Images of cases, float32 to everyone who asks; parts of a cohort are rows of one array.

    Attributes:
        array: ``(m, time, channel, depth, height, width)``; ``uint8`` where every value is a whole number from 0 to
            255, so that nothing is lost, else ``float32``; in memory, or in a file that is mapped.
        rows: which of them, in order.
    """

    array: NDArray[np.uint8] | NDArray[np.float32]
    rows: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.rows), *self.array.shape[1:])

    def __getitem__(self, chosen: slice | NDArray[np.integer]) -> NDArray[np.float32]:
        """A copy of some images."""
        images: NDArray[np.float32] = self.array[self.rows[chosen]].astype(np.float32, copy=False)
        return images

    def take(self, rows: Sequence[int]) -> "Pixels":
        """Some of these cases; no pixel is copied."""
        return replace(self, rows=self.rows[np.asarray(rows, np.intp)])


Images = Pixels | NDArray[np.float32]


def all_of(array: NDArray[Any]) -> Pixels:
    """Every row of an array, as it is."""
    return Pixels(array, np.arange(len(array)))


def gather(
    pieces: Iterable[NDArray[np.float32]], shape: tuple[int, ...], most: int, file: Path | None
) -> NDArray[Any]:
    """Images that come a few at a time, in one array: ``uint8`` if that loses nothing, else ``float32``.

    Args:
        pieces: ``(k, *shape)`` each.
        shape: of one image.
        most: how many there can be.
        file: where they may go if they can become too many for the memory, without its ending; it is readable by its
            owner only, and there whole or not at all. ``None``: always in memory.

    Raises:
        Problem: the disk is full.
    """
    return _gather(iter(pieces), shape, most, file, np.uint8)


def _gather(
    pieces: Iterator[NDArray[np.float32]], shape: tuple[int, ...], most: int, file: Path | None, kind: type[Any]
) -> NDArray[Any]:
    place = _Place(shape, most, file, kind)
    for piece in pieces:
        if kind is np.uint8 and not _whole(piece):
            # Everything so far is copied, once in a lifetime.
            done = place.done()
            again = (done[i : i + _TOGETHER].astype(np.float32) for i in range(0, len(done), _TOGETHER))
            try:
                return _gather(chain(again, [piece], pieces), shape, most, file, np.float32)
            finally:
                place.remove()
        place.add(piece)
    return place.done()


def _whole(piece: NDArray[np.float32]) -> bool:
    """Whether every value is a whole number from 0 to 255."""
    return bool(piece.min() >= 0 and piece.max() <= 255 and (piece.astype(np.uint8) == piece).all())


class _Place:
    """Room for images of one type: memory, or a file that is written from front to back."""

    def __init__(self, shape: tuple[int, ...], most: int, file: Path | None, kind: type[Any]) -> None:
        self._shape, self._kind, self._count = shape, kind, 0
        large = most * math.prod(shape) * np.dtype(kind).itemsize > MOST_IN_MEMORY
        self._path = _named(file, kind) if file is not None and large else None
        if self._path is None:
            self._array = np.empty((most, *shape), kind)
        else:
            with _in_one_sentence(self._path):
                self._out = os.fdopen(_private(_part(self._path)), "wb")

    def add(self, piece: NDArray[np.float32]) -> None:
        if self._path is None:
            self._array[self._count : self._count + len(piece)] = piece
        else:
            with _in_one_sentence(self._path, self._out):
                self._out.write(piece.astype(self._kind, copy=False).tobytes())
        self._count += len(piece)

    def done(self) -> NDArray[Any]:
        if self._path is None:
            return self._array[: self._count]
        with _in_one_sentence(self._path, self._out):
            self._out.close()
            _part(self._path).replace(self._path)
        return _mapped(self._path, self._kind, (self._count, *self._shape))

    def remove(self) -> None:
        if self._path is not None:
            _unlink(self._path)


@dataclass(frozen=True)
class Facts:
    """What is known of the images in a file, in order.

    Attributes:
        numbers: of their cases in the cohort; those between could not be read.
        digests, images, modalities, marks, times: see :class:`osler.data.Loaded`.
    """

    numbers: Sequence[int]
    digests: Sequence[str]
    images: Sequence[tuple[str, ...]]
    modalities: Sequence[str]
    marks: NDArray[Any]
    times: NDArray[np.float32]


def in_memory(array: NDArray[Any]) -> bool:
    """Whether :func:`gather` found room in memory."""
    return not isinstance(array.base, np.memmap)


def keep(file: Path, stamp: str, array: NDArray[Any], facts: Facts) -> None:
    """Notes beside the images of :func:`gather` what they are, so that :func:`reopen` finds them.

    Raises:
        Problem: the disk is full.
    """
    path = _named(file, None)
    head = {"stamp": stamp, "type": array.dtype.name, "shape": array.shape}
    rows = zip(facts.numbers, facts.digests, map("/".join, facts.images), facts.modalities, strict=True)
    with _in_one_sentence(path):
        for beside, values in ((_marked(file), facts.marks), (_timed(file), facts.times)):
            with os.fdopen(_private(beside), "wb") as out:
                np.save(out, values, allow_pickle=False)
        with os.fdopen(_private(_part(path)), "w", encoding="utf-8", newline="\n") as out:
            out.write(json.dumps(head) + "\n")
            out.writelines(",".join(map(str, row)) + "\n" for row in rows)
        _part(path).replace(path)


def reopen(file: Path, stamp: str) -> tuple[NDArray[Any], Facts] | None:
    """Images that were kept under the same stamp; ``None`` where there are none, or not all of them."""
    try:
        with _named(file, None).open(encoding="utf-8") as lines:
            head = json.loads(next(lines))
            kind, shape = np.dtype(head["type"]).type, tuple(head["shape"])
            size = math.prod(shape) * np.dtype(kind).itemsize
            if head["stamp"] != stamp or _named(file, kind).stat().st_size != size:
                return None
            rows = [line.rstrip("\n").split(",") for line in lines]
        marks = np.load(_marked(file), allow_pickle=False)
        times = np.load(_timed(file), allow_pickle=False)
        images = [tuple(row[2].split("/")) if row[2] else () for row in rows]
        facts = Facts(
            [int(row[0]) for row in rows], [row[1] for row in rows], images, [row[3] for row in rows], marks, times
        )
        whole = len(rows) == len(marks) == len(times) == shape[0]
        return (_mapped(_named(file, kind), kind, shape), facts) if whole else None
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration):
        # Whatever is wrong with it: the images are there to be read again.
        return None


def remove(file: Path) -> None:
    """Deletes what :func:`gather` and :func:`keep` wrote, if they did."""
    for path in (_named(file, None), _marked(file), _timed(file), *(_named(file, kind) for kind in _TYPES)):
        _unlink(path)
        _unlink(_part(path))


def _named(file: Path, kind: type[Any] | None) -> Path:
    return file.with_name(f"{file.name}.{'csv' if kind is None else np.dtype(kind).name}")


def _marked(file: Path) -> Path:
    return file.with_name(f"{file.name}.marks.npy")


def _timed(file: Path) -> Path:
    return file.with_name(f"{file.name}.times.npy")


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _private(path: Path) -> int:
    """A new file that only its owner may read."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)


def _mapped(path: Path, kind: type[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return np.asarray(np.memmap(path, kind, "r", shape=shape)) if shape[0] else np.empty(shape, kind)


def _unlink(path: Path) -> None:
    # Windows does not delete what is still mapped.
    with suppress(OSError):
        path.unlink()


@contextmanager
def _in_one_sentence(path: Path, out: Any = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        with suppress(OSError):
            # Tries to write what is left, and fails again.
            if out is not None:
                out.close()
        _unlink(_part(path))
        what = f"the pixels do not fit into memory, and cannot be written ({error.strerror})"
        raise Problem(what, path=path, fix="free some space, or give an --out on another disk") from error
