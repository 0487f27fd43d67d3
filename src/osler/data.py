"""From entries to arrays that a network can take, without losing a bit on the way."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import formats, layouts
from osler.case import Case, Entry
from osler.image import Image
from osler.inspections import duplicates, plane
from osler.problem import Problem
from osler.recipe import ImagePlan

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's grid: its ``(depth, height, width)`` there, and where it starts."""

    original: tuple[int, int, int]
    size: tuple[int, int, int]
    start: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Loaded:
    """Cases in memory.

    Attributes:
        entries: those that could be read, in order.
        pixels: float32 ``(n, time, channel, depth, height, width)``, resampled, not normalised.
        digests: SHA-256 of each image's own pixels, so that copies are found under any name.
        modalities: DICOM code of each, empty where unknown.
        problems: what could not be read, and why.
        marks: what copies are known by that are not the same pixel for pixel (``duplicates.MARK``).
    """

    entries: tuple[Entry, ...]
    pixels: NDArray[np.float32]
    digests: tuple[str, ...]
    modalities: tuple[str, ...]
    problems: tuple[Problem, ...]
    marks: NDArray[Any]


def read_case(entry: Entry) -> Case:
    """The entry with its pixels.

    Raises:
        Problem: a file cannot be read.
    """
    images = {name: formats.read(source) for name, source in entry.images.items()}
    return Case(entry.id, entry.patient, images, entry.findings, entry.covariates, entry.metadata)


def read_case_at(path: Path | str) -> Case:
    """One file, or a folder with one DICOM series, as a case.

    Raises:
        Problem: it cannot be read.
    """
    return read_case(layouts.single(Path(path)))


def the_image(case: Case) -> Image:
    """The image of a case that has one.

    Raises:
        Problem: it has several: fusing them is not built yet.
    """
    if len(case.images) != 1:
        names = ", ".join(sorted(case.images))
        raise Problem(f"case {case.id} has {len(case.images)} images ({names})", fix="give one image column")
    return next(iter(case.images.values()))


def place(image: Image, plan: ImagePlan) -> Placement:
    """Where the image goes in the network's grid: all of it, or with ``pad`` the middle, keeping its shape."""
    if plan.fit == "stretch":
        return Placement(image.size, plan.size, (0, 0, 0))
    _, height, width = image.size
    spacing = image.spacing
    tall, wide = (height, width) if spacing is None else (height * spacing[1], width * spacing[2])
    factor = min(plan.size[1] / tall, plan.size[2] / wide)
    size = (plan.size[0], max(1, round(tall * factor)), max(1, round(wide * factor)))
    start = (0, (plan.size[1] - size[1]) // 2, (plan.size[2] - size[2]) // 2)
    return Placement(image.size, size, start)


def prepare(image: Image, plan: ImagePlan) -> NDArray[np.float32]:
    """The input of the network before normalisation: ``(frames, channels, *size)``, float32.

    Raises:
        Problem: a colour image for a grey network whose channels differ, or values that are not finite.
    """
    array = image.array
    if image.frames != plan.frames:
        moments = np.linspace(0, image.frames - 1, plan.frames).round().astype(int)
        array = array[moments]
    if image.channels != plan.channels:
        if image.channels == 3 and plan.channels == 1:
            array = _grey(array)
        elif image.channels == 1:
            array = np.repeat(array, plan.channels, 1)
        else:
            raise Problem(f"the image has {image.channels} channels where {plan.channels} are expected")
    where = place(image, plan)
    flat = Image(array, image.geometry).resample(where.size).array.astype(np.float32, copy=False)
    if not np.isfinite(flat).all():
        raise Problem("the image holds values that are not numbers", fix="mask or repair them first")
    if where.size == plan.size:
        return np.ascontiguousarray(flat)
    canvas = np.empty((plan.frames, plan.channels, *plan.size), np.float32)
    canvas[...] = flat.min(axis=(2, 3, 4), keepdims=True)
    window = tuple(slice(a, a + n) for a, n in zip(where.start, where.size, strict=True))
    canvas[(slice(None), slice(None), *window)] = flat
    return canvas


def _grey(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Luma of ITU-R BT.601 where the channels differ, the channel itself where they do not."""
    if (array[:, :1] == array[:, 1:2]).all() and (array[:, :1] == array[:, 2:]).all():
        return array[:, :1]
    weights = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1, 1)
    return np.asarray((array.astype(np.float32) * weights).sum(1, keepdims=True))


def pixel_digest(image: Image) -> str:
    """SHA-256 of the pixels and their shape, in whatever file they stand."""
    head = f"{image.array.shape}{image.array.dtype.str}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(image.array).tobytes()).hexdigest()


def load(entries: Sequence[Entry], plan: ImagePlan, progress: Progress | None = None) -> Loaded:
    """Reads and prepares many cases; those that cannot be read become ``problems``.

    Raises:
        Problem: none can be read.
    """

    def one(entry: Entry) -> tuple[NDArray[np.float32], str, str, NDArray[Any]] | Problem:
        try:
            image = the_image(read_case(entry))
            return prepare(image, plan), pixel_digest(image), image.modality, duplicates.mark(image, plane(image))
        except Problem as problem:
            return problem
        except MemoryError:
            return Problem(f"case {entry.id} does not fit into memory", fix="lower image.size")

    kept: list[Entry] = []
    digests: list[str] = []
    modalities: list[str] = []
    problems: list[Problem] = []
    marks = np.empty(len(entries), duplicates.MARK)
    pixels = np.empty((len(entries), plan.frames, plan.channels, *plan.size), np.float32)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (entry, result) in enumerate(zip(entries, pool.map(one, entries), strict=True), start=1):
            if isinstance(result, Problem):
                problems.append(result)
            else:
                pixels[len(kept)], digest, modality, marks[len(kept)] = result
                modalities.append(modality)
                kept.append(entry)
                digests.append(digest)
            if progress:
                progress(number, len(entries))
    if not kept:
        first = f" (the first: {problems[0]})" if problems else ""
        raise Problem(f"none of the {len(entries)} cases can be read{first}", fix="check the files")
    count = len(kept)
    return Loaded(tuple(kept), pixels[:count], tuple(digests), tuple(modalities), tuple(problems), marks[:count])
