"""Images of many sizes on the grid of a dense network, with what is known of where things are in them."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import data, draws, files, grid, origins, registration
from osler.case import Case, Entry, Finding, Question
from osler.grid import Grid
from osler.image import Geometry, Image
from osler.problem import Problem
from osler.recipe import Recipe

# Pixels beyond this many bytes lie in files, where there is a folder for them.
MOST_IN_MEMORY = 3 * 2**30
PLACES = 500


@dataclass(frozen=True, eq=False)
class Volume:
    """One moment of a case on the working grid.

    Attributes:
        image: ``(channel, depth, height, width)``, not normalised by the network yet; ``uint8`` or ``float32``.
        labels: of each segmentation that is known, the label map ``(depth, height, width)`` in the question's values.
        boxes: of each detection that is known ``(n, 7)``: start and stop as (depth, height, width) edges, and the
            class; float32.
        places: of each class that is here, some of its pixels ``(m, 3)``; of a box its middle.
        case, frame: which case of its cohort, and which moment.
        grid: and the way back.
        geometry: of the working grid.
    """

    image: NDArray[Any]
    labels: Mapping[str, NDArray[np.uint8]]
    boxes: Mapping[str, NDArray[np.float32]]
    places: Sequence[NDArray[np.int32]]
    case: int
    frame: int
    grid: Grid
    geometry: Geometry

    @property
    def size(self) -> tuple[int, int, int]:
        depth, height, width = self.image.shape[1:]
        return depth, height, width


def read(case: Case, plan: Recipe, number: int = 0) -> list[Volume]:
    """The moments of a case.

    Raises:
        Problem: the case has several images and the recipe names none, channels that the network cannot take, or no
            millimetres where the recipe counts in them.
    """
    image = data.the_image(case, plan.image)
    where, moved = on_grid(image, plan)
    geometry = where.to(Image(np.broadcast_to(np.uint8(0), (1, 1, *image.size)), image.geometry)).geometry
    found = []
    for frame in range(image.frames):
        labels, boxes, places = {}, {}, []
        for name, question in plan.tasks.items():
            if question.kind == "segmentation" and name in case.maps:
                full = case.maps[name][frame]
                labels[name] = where.labels_to(full)
                places += _places(labels[name], question, number)
            elif question.kind == "detection":
                stated = boxes_of(case.findings, question, frame)
                if stated is not None:
                    boxes[name] = np.concatenate([where.boxes_to(stated[:, :6]), stated[:, 6:]], 1)
                    places += [_middles(boxes[name][boxes[name][:, 6] == k]) for k in np.unique(boxes[name][:, 6])]
        found.append(Volume(moved[frame], labels, boxes, places, number, frame, where, geometry))
    return found


def on_grid(image: Image, plan: Recipe) -> tuple[Grid, NDArray[np.float32]]:
    """The working grid of an image, and the image on it ``(t, c, d, h, w)``, brought to one scale if asked for.

    Channels are as many as the network takes: those of one modality after the other, NaN where it is missing.

    Raises:
        Problem: see :func:`read`.
    """
    if image.visits:
        what = "the visits of this case differ in size, and what asks where something is needs one grid"
        raise Problem(what, fix="give each visit a case of its own")
    where = grid.find(image, plan)
    each = [one and _moved(one, image, where, plan) for one in image.together or (image,)]
    there = next(one for one in each if one is not None)
    return where, np.concatenate([np.full_like(there, np.nan) if one is None else one for one in each], 1)


def _moved(image: Image, first: Image, where: Grid, plan: Recipe) -> NDArray[np.float32]:
    image = data.made_ready(image, plan.image, image.frames).image
    image = replace(image, array=data.with_channels(image.array, plan.image.channels))
    if plan.image.intensity == "image" and not plan.linked:
        image = grid.standardised(image)
    array = where.to(registration.beside(image, first)).array
    data.require_numbers(array)
    return np.asarray(array, np.float32)


def darkest(image: NDArray[Any]) -> NDArray[Any]:
    """Of each channel of ``(c, d, h, w)`` the smallest value, ``(c, 1, 1, 1)``; NaN where it is missing."""
    return np.asarray(image.min((1, 2, 3), keepdims=True))


def boxes_of(findings: Sequence[Finding], question: Question, frame: int) -> NDArray[np.float32] | None:
    """Boxes of a detection question ``(n, 7)``, on the image as it was read; ``None`` where nothing is stated."""
    stated = [f for f in findings if f.task == question.task and f.name in question.classes]
    if not stated:
        return None
    rows = [
        (*f.box.start, *f.box.stop, question.classes.index(f.name))
        for f in stated if f.box is not None and f.frame == frame and f.probability
    ]  # fmt: skip
    return np.array(rows, np.float32).reshape(-1, 7)


def _places(labels: NDArray[np.uint8], question: Question, number: int) -> list[NDArray[np.int32]]:
    """Some pixels of each class, the same ones each time."""
    found = []
    for k, values in enumerate(question.values):
        there = np.flatnonzero(np.isin(labels, values))
        if len(there):
            chosen = draws.permutation(draws.keys(number, k, 77), len(there))[:PLACES]
            found.append(np.stack(np.unravel_index(there[chosen], labels.shape), 1).astype(np.int32))
    return found


def _middles(boxes: NDArray[np.float32]) -> NDArray[np.int32]:
    return ((boxes[:, :3] + boxes[:, 3:6]) / 2).astype(np.int32)


def load(
    entries: Sequence[Entry],
    plan: Recipe,
    folder: Path | None = None,
    say: Callable[[Problem], None] | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Volume]:
    """Reads cases whose images are known to be readable; ``Volume.case`` is the row of the entry.

    Args:
        entries: the cases.
        plan: the recipe.
        folder: for pixels that are too many for the memory.
        say: is told which case does not suit the recipe; that one is left out.
        progress: is told how many are read (``osler.progress``).

    Raises:
        Problem: the disk is full; without ``say``, also where a case does not suit the recipe.
    """
    found: list[Volume] = []
    taken = 0
    for done, volumes in enumerate(_in_turn(entries, plan), start=1):
        if progress:
            progress(done)
        if isinstance(volumes, Problem):
            if say is None:
                raise volumes
            say(volumes)
            continue
        for volume in volumes:
            image = volume.image
            if image.min() >= 0 and image.max() <= 255 and (image == image.astype(np.uint8)).all():
                image = image.astype(np.uint8)
            labels = dict(volume.labels)
            taken += image.nbytes + sum(each.nbytes for each in labels.values())
            if folder is not None and taken > MOST_IN_MEMORY:
                image = _in_file(image, folder / f"{len(found)}.npy")
                labels = {
                    n: _in_file(each, folder / f"{len(found)}-{k}.npy") for k, (n, each) in enumerate(labels.items())
                }
            found.append(replace(volume, image=image, labels=labels))
    return found


def _in_turn(entries: Sequence[Entry], plan: Recipe) -> Iterator[list[Volume] | Problem]:
    workers = os.cpu_count() or 1
    questions = tuple(plan.tasks.values())

    def one(number: int) -> list[Volume] | Problem:
        entry = entries[number]
        try:
            with origins.named(entry, plan.image.modalities):
                return read(data.read_case(entry, questions, names=plan.image.modalities), plan, number)
        except Problem as problem:
            return problem

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(entries), 4 * workers):
            some = range(start, min(start + 4 * workers, len(entries)))
            yield from pool.map(one, some)


def _in_file(array: NDArray[Any], path: Path) -> NDArray[Any]:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        np.save(path, array, allow_pickle=False)
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise files.unwritten(path, error, "the pixels cannot be kept") from error
    return mapped
