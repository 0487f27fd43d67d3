"""Frames and slices to one image: what is depth, what is time."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from osler.formats.dicom import geometry, pixels
from osler.formats.dicom.files import header, headers_of, load, not_an_image
from osler.image import Geometry, Image, NoGeometry, Spacing
from osler.problem import Problem

if TYPE_CHECKING:
    from pydicom import Dataset

_SLICES = 0x00540080


def files_below(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those below it, in a stable order, hidden ones left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def read_file(path: Path) -> Image:
    """A single file: one image, a volume of frames, or a loop.

    Raises:
        Problem: see :func:`osler.formats.dicom.read`.
    """
    dataset = load(path)
    other = not_an_image(dataset)
    if other is not None:
        raise other
    notes: list[str] = []
    array, unit = pixels.frames(dataset, notes)
    times: tuple[float, ...] = ()
    place: Geometry
    if len(array) == 1:
        place, array = geometry.of_one(dataset, notes), array[:, :, None]
    else:
        planes = [geometry.plane(dataset, frame) for frame in range(len(array))]
        if "PerFrameFunctionalGroupsSequence" in dataset and None not in planes:
            order, place = geometry.stack(
                [each for each in planes if each is not None], str(dataset.get("FrameOfReferenceUID") or ""), notes
            )
            array = _as_depth(array[order])
        elif dataset.get("FrameIncrementPointer") == _SLICES:
            place, array = _with_depth(geometry.of_one(dataset, notes), dataset), _as_depth(array)
        else:
            place, array, times = geometry.of_one(dataset, notes), array[:, :, None], _times(dataset, len(array))
            if not times:
                notes.append(f"Its {len(array)} frames were taken as moments; when they were taken is not stated.")
    return Image(array, place, times, str(dataset.get("Modality") or ""), unit, tuple(notes))


def _as_depth(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(np.moveaxis(array, 0, 1)[None])


def _with_depth(place: Geometry, dataset: "Dataset") -> Geometry:
    """Slices without positions of their own (nuclear medicine): only distances are known."""
    step = abs(float(dataset.get("SpacingBetweenSlices") or 0)) or None
    spacing = Image(np.zeros((1, 1, 1, 1, 1)), place).spacing
    return NoGeometry() if spacing is None else Spacing(spacing[2], spacing[1], step, "PixelSpacing")


def _times(dataset: "Dataset", count: int) -> tuple[float, ...]:
    """Seconds from the first frame: FrameTimeVector or FrameTime, both milliseconds (PS3.3 C.7.6.5)."""
    vector = dataset.get("FrameTimeVector")
    if vector is not None and not isinstance(vector, (str, float, int)) and len(vector) == count:
        return tuple(float(second) for second in np.cumsum([float(step) for step in vector]) / 1000)
    step = float(dataset.get("FrameTime") or 0) / 1000
    return tuple(step * frame for frame in range(count)) if step > 0 else ()


def read_folder(folder: Path, uid: str = "") -> Image:
    """The one series of a folder, or the one that ``uid`` names, its slices sorted by position.

    Raises:
        Problem: no series or several, or slices that do not make one volume.
    """
    notes: list[str] = []
    paths = _chosen(folder, uid, notes)
    if len(paths) == 1:
        image = read_file(paths[0])
        return Image(image.array, image.geometry, image.times, image.modality, image.unit, (*notes, *image.notes))
    datasets = _without_copies([load(path) for path in paths], notes)
    if any(int(dataset.get("NumberOfFrames") or 1) > 1 for dataset in datasets):
        raise Problem(
            f"the series has {len(datasets)} files of several frames each", path=folder, fix="give one of them"
        )
    if len({(dataset.Rows, dataset.Columns, dataset.get("SamplesPerPixel", 1)) for dataset in datasets}) > 1:
        raise Problem("its slices differ in size", path=folder, fix="give the slices of one size only")
    planes = [geometry.plane(dataset) for dataset in datasets]
    if len(datasets) > 1 and None in planes:
        what = f"its {len(datasets)} images do not say where they lie in the patient"
        raise Problem(what, path=folder, fix="they may be separate images: give one file")
    if len(datasets) == 1:
        order, place = [0], geometry.of_one(datasets[0], notes)
    else:
        frame = str(datasets[0].get("FrameOfReferenceUID") or "")
        order, place = geometry.stack([each for each in planes if each is not None], frame, notes)
    slices, units = [], set()
    for index in order:
        array, unit = pixels.frames(datasets[index], notes)
        slices.append(array[0])
        units.add(unit)
    modality = str(datasets[0].get("Modality") or "")
    unit = units.pop() if len(units) == 1 else ""
    return Image(np.stack(slices, axis=1)[None], place, (), modality, unit, tuple(dict.fromkeys(notes)))


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


def _without_copies(datasets: list["Dataset"], notes: list[str]) -> list["Dataset"]:
    """The same object twice (a copied file) is harmless; anything else at one place is not."""
    unique = {str(dataset.get("SOPInstanceUID") or number): dataset for number, dataset in enumerate(datasets)}
    if len(unique) < len(datasets):
        notes.append(f"{len(datasets) - len(unique)} files that are copies of another one were left out.")
    broken = next((other for other in map(not_an_image, unique.values()) if other is not None), None)
    if broken is not None:
        raise broken
    return list(unique.values())
