"""From entries to arrays that a network can take, without losing a bit on the way."""

import glob
import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import formats, grid, identity, layouts, origins, outlines, preparations, registration, store
from osler.case import Case, Entry, Moment, Question
from osler.image import Image, evenly
from osler.inspections import duplicates, plane
from osler.preparations import Prepared
from osler.problem import Problem
from osler.recipe import ImagePlan, Registration
from osler.store import Pixels

# Squares of larger numbers are not finite in single precision.
_LARGEST = 1e18


@dataclass(frozen=True, eq=False)
class Loaded:
    """Cases with their pixels, which lie in memory or, where they are too many, in a file.

    Attributes:
        entries: those that could be read, in order.
        pixels: ``(n, time, channel, depth, height, width)``, resampled, not normalised; of several modalities the
            moments of one after the other, 0 where one is missing (see :func:`timeline`).
        digests: SHA-256 of the pixels of each case, so that it is found under any name.
        images: those of its images one by one, see :func:`osler.identity.of_each`.
        modalities: DICOM code of each, empty where unknown; of several images in their order, joined by ``/``.
        problems: what could not be read, and why.
        marks: ``(n, m)`` of type ``duplicates.MARK``, one for each of ``m`` images, empty where it is missing: what
            copies are known by that are not the same pixel for pixel.
        times: ``(n, time)``, see :func:`timeline`.
    """

    entries: tuple[Entry, ...]
    pixels: Pixels
    digests: tuple[str, ...]
    images: tuple[tuple[str, ...], ...]
    modalities: tuple[str, ...]
    problems: tuple[Problem, ...]
    marks: NDArray[Any]
    times: NDArray[np.float32]


def read_case(
    entry: Entry, questions: Sequence[Question] = (), moments: int | None = None, names: Sequence[str] = ()
) -> Case:
    """The entry with its pixels, and with its outlines as far as they answer ``questions``.

    Args:
        entry: the case.
        questions: what may be outlined in it.
        moments: at most so many of a sequence, see :func:`osler.formats.read`; for models that look at no more
            (``Recipe.moments``). All by default; outlines need all.
        names: of several images those that are read (``ImagePlan.modalities``), where the case has any of them; all
            by default. Outlines are on the first that is read.

    Raises:
        Problem: a file cannot be read, or an outline does not fit its image.
    """
    images = {name: formats.read(source, moments) for name, source in origins.looked_at(entry, names).items()}
    first = next(iter(images))
    found = outlines.read(entry, images[first], questions)
    if found.notes:
        images[first] = replace(images[first], notes=images[first].notes + found.notes)
    findings = entry.findings + found.findings
    return Case(entry.id, entry.patient, images, findings, entry.covariates, entry.metadata, found.maps, entry.images)


def read_case_at(
    path: Path | str | Mapping[str, Path | str],
    covariates: Mapping[str, float | str | None] | None = None,
    moments: int | None = None,
) -> Case:
    """One file, or a folder with one DICOM series or the pictures of one loop, as a case.

    Args:
        path: of it; of several modalities the path of each, by its name.
        covariates: what is known of the person.
        moments: at most so many of a sequence, evenly spaced; all by default.

    Raises:
        Problem: it cannot be read.
    """
    given = path if isinstance(path, Mapping) else {"image": path}
    if not given:
        raise Problem("no image is given", fix="give the path of at least one")
    listed = {name: layouts.single(Path(one)) for name, one in given.items()}
    entry = replace(next(iter(listed.values())), images={name: one.images["image"] for name, one in listed.items()})
    return replace(read_case(entry, moments=moments), covariates=dict(covariates or {}))


def the_image(case: Case, plan: ImagePlan | None = None) -> Image:
    """The image of a case: the one that it has, or those that the plan names, side by side (``Image.together``).

    Raises:
        Problem: of several the plan names none, it has none of those named, or they cannot be registered.
    """
    if plan is not None and plan.modalities:
        return _together(case, plan.modalities, plan.register)
    if len(case.images) != 1:
        has = ", ".join(sorted(case.images))
        fix = "give one image column, or name those to look at: image.modalities=[NAME, ...]"
        raise Problem(f"case {case.id} has {len(case.images)} images ({has})", fix=fix)
    return next(iter(case.images.values()))


def _together(case: Case, names: Sequence[str], register: Registration) -> Image:
    there = {name: case.images[name] for name in names if name in case.images}
    if len(names) == 1 and set(case.images) == {"image"}:
        # A file that was given without a name, to a model that looks at one image.
        return case.images["image"]
    if not there:
        looked, has = ", ".join(names), ", ".join(sorted(case.images))
        fix = f"say which image is which: --image {names[0]}=FILE, or a column image.{names[0]} of a table"
        raise Problem(f"case {case.id} has none of the images that the model looks at ({looked}) but {has}", fix=fix)
    first = next(iter(there.values()))
    if len(names) == 1:
        return first
    notes = tuple(f"{name}: {note}" for name, image in there.items() for note in image.notes)
    if register:
        there, moved = registration.onto_first(there, register)
        notes += moved
    return replace(first, notes=notes, together=tuple(there.get(name) for name in names))


def prepare(image: Image, plan: ImagePlan) -> NDArray[np.float32]:
    """The input of the network before normalisation: ``(plan.stacked, channels, *size)``, float32.

    Raises:
        Problem: a colour image for a grey network whose channels differ, or values that are not finite.
    """
    if image.together:
        one = replace(plan, modalities=())
        nothing = np.zeros((plan.frames, plan.channels, *plan.size), np.float32)
        return np.concatenate([nothing if each is None else prepare(each, one) for each in image.together])
    if image.visits:
        alone = [prepare(visit, replace(plan, frames=1))[0] for visit in image.visits]
        return np.stack([alone[moment] for moment in moments_of(image, plan)])
    ready = made_ready(image, plan).image
    array = ready.array
    if ready.frames != plan.frames:
        array = array[moments_of(ready, plan)]
    moved = Image(with_channels(array, plan.channels), ready.geometry)
    flat = grid.fit(ready, plan).to(moved).array.astype(np.float32, copy=False)
    require_numbers(flat)
    return np.ascontiguousarray(flat)


def made_ready(image: Image, plan: ImagePlan, moments: int | None = None) -> Prepared:
    """The image after ``plan.prepare``, in the moments that the network is given, or in so many of them.

    Of a series of visits or of several modalities, which are made ready one by one, it is the last.

    Raises:
        Problem: values that are not finite, or a library that is needed is not installed.
    """
    if image.visits or image.together:
        each = [made_ready(one, plan) for one in (*image.visits, *image.together) if one is not None]
        return replace(each[-1], said=tuple(dict.fromkeys(line for one in each for line in one.said)))
    if plan.prepare:
        require_numbers(image.array)
    return preparations.prepared(image, plan.prepare, moments or plan.frames)


def moments_of(image: Image, plan: ImagePlan) -> NDArray[np.int64]:
    """Which frames of ``image.array`` the network is given, ``(plan.frames,)``: evenly spaced, from first to last.

    Of a sequence that is shorter than ``plan.frames`` some come twice or more often, side by side.
    """
    return evenly(image.frames, plan.frames)


def times_of(image: Image, plan: ImagePlan) -> NDArray[np.float32]:
    """Seconds from the first frame to each that the network is given, ``(plan.frames,)``; NaN where unknown.

    A still image is its own first frame, so that its time is 0.
    """
    if not image.times:
        return np.full(plan.frames, 0.0 if image.frames == 1 else np.nan, np.float32)
    # The difference in double precision: visits may be years apart and counted from any day.
    times = np.asarray(image.times, np.float64)
    return np.asarray((times - times[0])[moments_of(image, plan)], np.float32)


def timeline(image: Image, plan: ImagePlan) -> NDArray[np.float32]:
    """When each moment was that the network is given, ``(plan.stacked,)``: seconds from the first frame.

    Infinite where that is unknown; NaN where a moment comes a second time, because the sequence is shorter than what
    the network takes: it counts once. Of several modalities those of one after the other, NaN where one is missing.
    """
    if image.together:
        one, nothing = replace(plan, modalities=()), np.full(plan.frames, np.nan, np.float32)
        return np.concatenate([nothing if each is None else timeline(each, one) for each in image.together])
    times, moments = times_of(image, plan), moments_of(image, plan)
    times[np.isnan(times)] = np.inf
    times[1:][np.diff(moments) == 0] = np.nan
    return times


def attended(image: Image, plan: ImagePlan, shares: NDArray[np.floating[Any]]) -> tuple[Moment, ...]:
    """What share each moment had that the network was given, ``(plan.frames,)``; none where it does not attend."""
    if not len(shares) or plan.frames == 1 or image.together:
        return ()
    moments, times = moments_of(image, plan), timeline(image, plan)
    numbers = image.numbers or range(image.frames)
    return tuple(
        Moment(int(numbers[frame]), float(time) if np.isfinite(time) else None, float(shares[moments == frame].sum()))
        for frame, time in zip(moments, times, strict=True) if not np.isnan(time)
    )  # fmt: skip


def with_channels(array: NDArray[np.generic], channels: int) -> NDArray[np.generic]:
    """``(t, c, d, h, w)`` with as many channels as the network takes: grey from colour, or grey repeated.

    Raises:
        Problem: there is no way from one to the other.
    """
    given = array.shape[1]
    if given == channels:
        return array
    if given == 3 and channels == 1:
        return _grey(array)
    if given == 1:
        return np.repeat(array, channels, 1)
    raise Problem(
        f"the image has {given} channels where {channels} {'is' if channels == 1 else 'are'} expected",
        fix="save it in grey or in RGB, or leave it out",
    )


def require_numbers(array: NDArray[Any]) -> None:
    """Values that a network can take.

    Raises:
        Problem: one is not finite, or so large that it can only mean that there is none (fill values of exporters).
    """
    # By the ends, where NaN shows too: nothing of the size of a volume is made.
    if array.dtype.kind == "f" and not (float(array.min()) > -_LARGEST and float(array.max()) < _LARGEST):
        raise Problem("the image holds values that are not numbers", fix="mask or repair them first")


def _grey(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Luma of ITU-R BT.601 where the channels differ, the channel itself where they do not."""
    if (array[:, :1] == array[:, 1:2]).all() and (array[:, :1] == array[:, 2:]).all():
        return array[:, :1]
    weights = np.array([0.299, 0.587, 0.114], np.float32).reshape(1, 3, 1, 1, 1)
    return np.asarray((array.astype(np.float32) * weights).sum(1, keepdims=True))


def times_digest(loaded: Loaded) -> str:
    """SHA-256 of when the moments of sequences were, after a space; empty for still images."""
    if loaded.times.shape[1] == 1:
        return ""
    rows = sorted(
        f"{pixels}|{when.tobytes().hex()}" for pixels, when in zip(loaded.digests, loaded.times, strict=True)
    )
    return " " + hashlib.sha256("\n".join(rows).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class _Read:
    """One case of :class:`Loaded`."""

    pixels: NDArray[np.float32]
    digest: str
    images: tuple[str, ...]
    modality: str
    marks: NDArray[Any]
    times: NDArray[np.float32]


def load(
    entries: Sequence[Entry],
    plan: ImagePlan,
    progress: Callable[[int], object] | None = None,
    file: Path | None = None,
    questions: Sequence[Question] = (),
) -> Loaded:
    """Reads and prepares many cases; those that cannot be read become ``problems``.

    Args:
        entries: the cases.
        plan: size, channels and frames.
        progress: is told how many are read (``osler.progress``).
        file: where pixels may go that are too many for the memory (see ``osler.store``); what was read there before,
            from the same files by the same plan, is taken from there.
        questions: cases whose outlines do not answer these become problems, too.

    Raises:
        Problem: none can be read, or the disk is full.
    """
    stamp = "" if file is None else _stamp(entries, plan)
    if file is not None:
        before = _reopened(entries, plan, questions, file, stamp)
        if before is not None:
            return before
        store.remove(file)
    numbers: list[int] = []
    digests: list[str] = []
    images: list[tuple[str, ...]] = []
    modalities: list[str] = []
    marks = np.empty((len(entries), max(1, len(plan.modalities))), duplicates.MARK)
    times = np.empty((len(entries), plan.stacked), np.float32)
    problems: list[Problem] = []
    shape = (plan.stacked, plan.channels, *plan.size)

    def pieces() -> Iterator[NDArray[np.float32]]:
        number = 0
        for piece in _in_turn(entries, plan, questions, max(1, min(256, 2**18 // math.prod(shape)))):
            read = []
            for result in piece:
                if isinstance(result, Problem):
                    problems.append(result)
                else:
                    marks[len(numbers)], times[len(numbers)] = result.marks, result.times
                    read.append(result.pixels)
                    digests.append(result.digest)
                    images.append(result.images)
                    modalities.append(result.modality)
                    numbers.append(number)
                number += 1
            if progress:
                progress(number)
            if read:
                yield np.stack(read)

    array = store.gather(pieces(), shape, len(entries), file)
    if not numbers:
        if file is not None:
            store.remove(file)
        first = f" (the first: {problems[0].clause})" if problems else ""
        raise Problem(f"none of the {len(entries)} cases can be read{first}", fix="check the files")
    if file is not None and not store.in_memory(array):
        facts = store.Facts(numbers, digests, images, modalities, marks[: len(numbers)], times[: len(numbers)])
        store.keep(file, stamp, array, facts)
    kept = tuple(entries[number] for number in numbers)
    pixels = store.all_of(array)
    known = slice(len(numbers))
    return Loaded(
        kept, pixels, tuple(digests), tuple(images), tuple(modalities), tuple(problems), marks[known], times[known]
    )


def _reopened(
    entries: Sequence[Entry], plan: ImagePlan, questions: Sequence[Question], file: Path, stamp: str
) -> Loaded | None:
    """What was read before; cases that could not be read then are tried again, so that it is said why."""
    before = store.reopen(file, stamp)
    if before is None:
        return None
    array, facts = before
    there = set(facts.numbers)
    again = [_prepared(entry, plan, questions) for number, entry in enumerate(entries) if number not in there]
    failed = tuple(result for result in again if isinstance(result, Problem))
    if len(failed) < len(again):
        return None
    kept = tuple(entries[number] for number in facts.numbers)
    pixels = store.all_of(array)
    return Loaded(
        kept,
        pixels,
        tuple(facts.digests),
        tuple(facts.images),
        tuple(facts.modalities),
        failed,
        facts.marks,
        facts.times,
    )


def _prepared(entry: Entry, plan: ImagePlan, questions: Sequence[Question]) -> _Read | Problem:
    # What asks where something is asks about every moment; whatever else looks at some of them.
    moments = None if any(question.dense for question in questions) else plan.frames
    try:
        with origins.named(entry, plan.modalities):
            case = read_case(entry, questions, moments, plan.modalities)
            # Known by what was read: registered pixels depend on the image that they were brought onto.
            raw, image = the_image(case, replace(plan, register="")), the_image(case, plan)
            each = raw.together or (raw,)
            digest, images = identity.of_each(raw, moments)
            code = "/".join("" if one is None else one.modality for one in each)
            nothing = np.zeros((), duplicates.MARK)
            marks = np.stack([nothing if one is None else duplicates.mark(one, plane(one)) for one in each])
            return _Read(prepare(image, plan), digest, images, code, marks, timeline(image, plan))
    except Problem as problem:
        return problem
    except MemoryError:
        return Problem(f"case {entry.id} does not fit into memory", fix="lower image.size")


def _in_turn(
    entries: Sequence[Entry], plan: ImagePlan, questions: Sequence[Question], together: int
) -> Iterator[list[_Read | Problem]]:
    """Some cases at a time, in order, a few of them read ahead: neither tasks nor pixels pile up."""
    workers = os.cpu_count() or 1

    def read(start: int) -> list[_Read | Problem]:
        return [_prepared(entry, plan, questions) for entry in entries[start : start + together]]

    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[_Read | Problem]]] = deque()
        for start in range(0, len(entries), together):
            ahead.append(pool.submit(read, start))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _stamp(entries: Sequence[Entry], plan: ImagePlan) -> str:
    """SHA-256 of the plan, of place, size and time of every file, and of when visits were."""
    digest = hashlib.sha256(repr(plan).encode())
    last, state = "", ""
    for entry in entries:
        outlined = [(outline.task, outline.source) for outline in entry.outlines]
        for name, source in (*sorted(entry.images.items()), *outlined):
            for second, one in source.visits or [(0.0, source)]:
                if str(one.path) != last:
                    last = str(one.path)
                    state = _state(one.path)
                digest.update(f"{name}|{second}|{one!r}|{state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _state(path: Path) -> str:
    stem = path.name.removesuffix(".gz")
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
        elif stem.lower().endswith((".hdr", ".img")):
            # The pixels are in the other file of the pair.
            files = sorted(path.parent.glob(f"{glob.escape(stem[:-4])}.*"))
        else:
            files = [path]
        return "|".join(f"{file.name}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)
    except OSError:
        return "gone"
