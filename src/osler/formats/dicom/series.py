"""Frames and slices to one image: what is depth, what is time."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.formats.dicom import geometry, moments, pixels, times
from osler.formats.dicom.files import header, headers_of, load, not_an_image
from osler.image import Geometry, Image, NoGeometry, Spacing, evenly
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

_SLICES = 0x00540080
_ONE = "give one image only"
# Share of the distance between slices up to which another statement of it is a rounded one.
_DIFFERENT = 0.05


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those below it, in a stable order, hidden ones left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


@dataclass(frozen=True, eq=False)
class Arranged:
    """Which slice or frame lies where in an image, before pixels are decoded.

    Attributes:
        datasets: the files, in any order.
        where: ``(time, depth, 2)``, the number of the data set and that of the frame in it.
        geometry, times: those of the image.
    """

    datasets: list["Dataset"]
    where: NDArray[np.int64]
    geometry: Geometry
    times: tuple[float, ...] = ()


def read(path: Path, uid: str = "", most: int | None = None) -> Image:
    """One image: of a file, or of the one series of a folder, or of the one that ``uid`` names.

    Args:
        path, uid: see above.
        most: of a file with more moments only so many are decoded, evenly spaced, and the bytes of the others are
            never in memory; of a folder all are read.

    Raises:
        Problem: see :func:`osler.formats.dicom.read`.
    """
    notes: list[str] = []
    arranged = arrange(path, uid, notes, lazy=most is not None and path.is_file())
    if most is not None and len(arranged.datasets) == 1 and len(arranged.where) > most:
        return _sample(path, arranged, most, notes)
    values: list[NDArray[Any]] = []
    units = set()
    for dataset in arranged.datasets:
        try:
            array, unit = pixels.frames(dataset, notes)
        except Problem as problem:
            raise Problem(problem.what, path=getattr(dataset, "filename", None), fix=problem.fix) from problem
        values.append(array)
        units.add(unit)
    if len(units) > 1:
        raise Problem("some of its slices are in Hounsfield units and some are not", fix=_ONE)
    array = _frames(values[0], arranged) if len(values) == 1 else _placed(values, arranged)
    modality = str(arranged.datasets[0].get("Modality") or "")
    kept = tuple(dict.fromkeys(notes))
    return Image(array, arranged.geometry, arranged.times, modality, units.pop(), kept)


def _frames(values: NDArray[Any], arranged: Arranged) -> NDArray[Any]:
    """``(t, c, d, h, w)`` of the frames of one file; a single copy, or none where they are in order."""
    order = arranged.where[..., 1]
    if not (order.ravel() == np.arange(order.size)).all():
        values = values[order.ravel()]
    return np.ascontiguousarray(np.moveaxis(values.reshape(*order.shape, *values.shape[1:]), 1, 2))


def _placed(values: list[NDArray[Any]], arranged: Arranged) -> NDArray[Any]:
    """``(t, c, d, h, w)`` of the frames of several files."""
    moments, places, _ = arranged.where.shape
    kind, (channels, height, width) = np.result_type(*values), values[0].shape[1:]
    array = np.empty((moments, channels, places, height, width), kind)
    for moment, row in enumerate(arranged.where.tolist()):
        for place, (file, frame) in enumerate(row):
            array[moment, :, place] = values[file][frame]
    return array


def _sample(path: Path, arranged: Arranged, most: int, notes: list[str]) -> Image:
    """Some moments of the frames of one file."""
    [dataset], count = arranged.datasets, len(arranged.where)
    chosen = evenly(count, most)
    frames = arranged.where[chosen, :, 1]
    needed, places = np.unique(frames, return_inverse=True)
    array, unit = pixels.frames(dataset, notes, needed.tolist(), path)
    array = np.moveaxis(array[places.ravel()].reshape(*frames.shape, *array.shape[1:]), 1, 2)
    return Image(
        np.ascontiguousarray(array),
        arranged.geometry,
        tuple(arranged.times[moment] for moment in chosen) if arranged.times else (),
        str(dataset.get("Modality") or ""),
        unit,
        tuple(dict.fromkeys(notes)),
        tuple(chosen.tolist()),
        count,
    )


def arrange(path: Path, uid: str, notes: list[str], *, lazy: bool = False) -> Arranged:
    """What :func:`read` reads, with the headers of its slices; ``lazy`` leaves large values in the files.

    Raises:
        Problem: no series or several, or slices that do not make one volume.
    """
    paths = _chosen(path, uid, notes) if path.is_dir() else [path]
    datasets = [load(file, lazy=lazy) for file in paths]
    for dataset in datasets:
        other = not_an_image(dataset)
        if other is not None:
            raise other if len(datasets) == 1 else Problem(other.what, path=dataset.filename, fix=other.fix)
    if len(datasets) == 1:
        return _of_file(datasets[0], notes)
    _check_alike(datasets)
    planes = [_planes(dataset) for dataset in datasets]
    lost = sum(each is None for some in planes for each in some)
    if lost:
        several = any(len(some) > 1 for some in planes)
        what = f"{lost} of its {len(planes)} images do not say where they lie in the patient"
        what = f"the series has {len(planes)} files of several frames each" if several else what
        raise Problem(what, path=path, fix="they may be separate images: give one file")
    return _stacked(datasets, [[each for each in some if each is not None] for some in planes], notes)


def _planes(dataset: "Dataset") -> list[geometry.Plane | None]:
    count = pixels.count(dataset)
    try:
        return [geometry.plane(dataset, frame if count > 1 else None) for frame in range(count)]
    except Problem as problem:
        raise Problem(problem.what, path=getattr(dataset, "filename", None), fix=problem.fix) from problem


def _of_file(dataset: "Dataset", notes: list[str]) -> Arranged:
    """A single slice, a volume of frames, or a loop."""
    count = pixels.count(dataset)
    loop = np.stack([np.zeros(count, np.int64), np.arange(count)], axis=1)
    if count == 1:
        return Arranged([dataset], loop[None], geometry.of_one(dataset, notes))
    if "PerFrameFunctionalGroupsSequence" in dataset:
        planes = _planes(dataset)
        known = [each for each in planes if each is not None]
        if len(known) == count:
            return _stacked([dataset], [known], notes)
        if known:
            what = f"{count - len(known)} of its {count} frames do not say where they lie in the patient"
            raise Problem(what, fix="export it again from where it came from")
    elif dataset.get("FrameIncrementPointer") == _SLICES:
        return Arranged([dataset], loop[None], _with_depth(geometry.of_one(dataset, notes), dataset))
    taken = times.of_frames(dataset, count, notes)
    if not taken:
        notes.append(f"Its {count} frames were taken as moments; when they were taken is not stated.")
    return Arranged([dataset], loop[:, None], geometry.of_one(dataset, notes), taken)


def _stacked(datasets: list["Dataset"], planes: list[list[geometry.Plane]], notes: list[str]) -> Arranged:
    """Slices that say where they lie, as moments of one volume."""
    where = np.array([(file, frame) for file, some in enumerate(planes) for frame in range(len(some))])
    known = [
        moments.facts(datasets[file], frame if len(planes[file]) > 1 else None) for file, frame in where.tolist()
    ]
    flat = [each for some in planes for each in some]
    levels = geometry.levels(flat)
    kept = np.array(_without_twins(datasets, where, known, levels, notes))
    known, flat, where = [known[i] for i in kept], [flat[i] for i in kept], where[kept]
    order, taken = moments.split(known, levels[kept])
    ordered = [flat[index] for index in order[0]]
    frame = geometry.frame_of_reference(datasets[0])
    if len(ordered) == 1:
        place = geometry.of_one(datasets[0], notes, None if len(planes[0]) == 1 else 0)
    else:
        geometry.check_gaps(ordered)
        place = geometry.volume(ordered, np.arange(len(ordered)), frame, notes)
        _compare_spacing(datasets[0], ordered, notes)
    return Arranged(datasets, where[order], place, taken)


def _compare_spacing(dataset: "Dataset", planes: list[geometry.Plane], notes: list[str]) -> None:
    stated = geometry.spacing_between(dataset)
    found = float((planes[-1].position - planes[0].position) @ planes[0].normal) / (len(planes) - 1)
    if stated is not None and abs(stated - found) > _DIFFERENT * found:
        notes.append(
            f"SpacingBetweenSlices says {stated:.4g} mm, the positions are {found:.4g} mm apart: those were taken."
        )


def _without_twins(
    datasets: list["Dataset"],
    where: NDArray[np.int64],
    known: list[moments.Facts],
    levels: NDArray[np.int64],
    notes: list[str],
) -> list[int]:
    """The slices without those that another one repeats pixel for pixel, under whichever name."""
    kept, seen = [], set()
    counts = np.bincount(levels)
    for index, (file, _) in enumerate(where.tolist()):
        if counts[levels[index]] > 1 and int(datasets[file].get("NumberOfFrames") or 1) == 1:
            content = hashlib.sha256(datasets[file].get("PixelData") or b"").digest()
            slope, intercept = datasets[file].get("RescaleSlope"), datasets[file].get("RescaleIntercept")
            mark = (content, levels[index], slope, intercept, tuple(known[index].values.values()))
            if mark in seen:
                continue
            seen.add(mark)
        kept.append(index)
    if len(kept) < len(where):
        notes.append(f"{len(where) - len(kept)} files that are copies of another one were left out.")
    return kept


def _with_depth(place: Geometry, dataset: "Dataset") -> Geometry:
    """Slices without positions of their own (nuclear medicine): only distances are known."""
    step = abs(float(dataset.get("SpacingBetweenSlices") or 0)) or None
    spacing = Image(np.zeros((1, 1, 1, 1, 1)), place).spacing
    return NoGeometry() if spacing is None else Spacing(spacing[2], spacing[1], step, "PixelSpacing")


def _chosen(folder: Path, uid: str, notes: list[str]) -> list[Path]:
    """The files of the one series; localizers and objects without pixels are left out and noted."""
    series: dict[str, list[Path]] = {}
    skipped: Counter[str] = Counter()
    paths = list(files_below(folder))
    for path, tags in zip(paths, headers_of(paths), strict=True):
        if isinstance(tags, Problem):
            # A file named like DICOM that cannot be read may be a lost slice: never skip it silently.
            if path.suffix.lower() in (".dcm", ".dicom", ".ima") or path.stat().st_size == 0:
                raise tags
            tags = None
        if tags is None:
            skipped["not DICOM"] += 1
            continue
        if uid and tags["SeriesInstanceUID"] != uid:
            continue
        if not tags["Rows"] or tags["Modality"] in ("SEG", "RTDOSE"):
            skipped["not an image"] += 1
        elif "LOCALIZER" in tags["ImageType"].upper():
            skipped["a localizer"] += 1
            series.setdefault("localizer", []).append(path)
        else:
            series.setdefault(tags["SeriesInstanceUID"], []).append(path)
    localizers = series.pop("localizer", [])
    if not series and localizers:
        series, skipped["a localizer"] = {"": localizers}, 0
    notes += [f"{count} files were left out: {why}." for why, count in skipped.items() if count]
    if not series:
        raise Problem("no DICOM image is in this folder", path=folder, fix="give the folder of one series")
    if len(series) > 1:
        listed = ", ".join(sorted(_described(paths) for paths in series.values()))
        raise Problem(
            f"{len(series)} series are in this folder ({listed})", path=folder, fix="give the folder of one"
        )
    return next(iter(series.values()))


def _described(paths: list[Path]) -> str:
    tags = header(paths[0])
    return f"{tags['Modality'] or 'image'} series {tags['SeriesNumber'] or '?'} of {len(paths)}"


# Keyword: what is said where the files of a series have several of its values.
_SAME = {
    "PatientID": "its files are of {count} patients",
    "Modality": "its files are of {count} modalities ({values})",
    "FrameOfReferenceUID": "its slices are placed in {count} different frames of reference",
    "SamplesPerPixel": "some of its slices are in colour and some are not",
    "PhotometricInterpretation": "its slices are stored in {count} ways ({values})",
    "Rows": "its slices differ in size",
    "Columns": "its slices differ in size",
    "Units": "its slices are in {count} different units ({values})",
    "RescaleType": "its slices are in {count} different units ({values})",
}


def _check_alike(datasets: list["Dataset"]) -> None:
    """What one volume can have only one of; what a file does not state contradicts nothing."""
    for name, what in _SAME.items():
        values = {str(value) for value in (each.get(name) for each in datasets) if value not in (None, "")}
        if len(values) > 1:
            raise Problem(what.format(count=len(values), values=" and ".join(sorted(values))), fix=_ONE)
    stated = {each.get("RescaleSlope") is not None for each in datasets if int(each.get("NumberOfFrames") or 1) == 1}
    if len(stated) > 1:
        raise Problem("some of its slices state a rescale slope and some do not", fix=_ONE)
    names: dict[str, Dataset] = {}
    for each in datasets:
        uid = str(each.get("SOPInstanceUID") or "")
        first = names.setdefault(uid, each) if uid else each
        if first.get("PixelData") != each.get("PixelData") or not _same_place(first, each):
            raise Problem("two of its files have one SOPInstanceUID and differ", path=each.filename, fix=_ONE)


def _same_place(one: "Dataset", other: "Dataset") -> bool:
    return bool(one.get("ImagePositionPatient") == other.get("ImagePositionPatient"))
