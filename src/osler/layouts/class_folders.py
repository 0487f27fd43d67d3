"""A folder for each class: ``root/<class>/...`` or ``root/<split>/<class>/...``; a DICOM series is one case."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from osler import formats, table
from osler.case import Cells, Entry, Finding, Question, Role, Source, without_finding_first
from osler.formats import dicom
from osler.layouts import Listing
from osler.problem import Problem

# Folders that other layouts have: they hold roles, not classes.
_ROLES = frozenset(
    (
        *("image", "images", "imagestr", "imagests", "jpegimages", "videos", "data", "rawdata", "derivatives"),
        *("mask", "masks", "label", "labels", "labelstr", "labelsts", "annotations", "imagesets"),
    )
)


def matches(path: Path) -> bool:
    """Whether there are two or more folders that look like classes, with images in them.

    A tree of DICOM files counts only if each folder holds several patients: else folders are patients or series.
    """
    if not path.is_dir():
        return False
    classes = [folder for _, folder in _classes(path)]
    if len({folder.name for folder in classes}) < 2 or any(folder.name.lower() in _ROLES for folder in classes):
        return False
    with_images = [first for first in map(_first_image, classes) if first is not None]
    if len(with_images) < 2:
        return False
    return not all(map(_is_dicom, with_images)) or _several_patients_each(classes)


def _classes(path: Path) -> list[tuple[Role | None, Path]]:
    folders = _folders(path)
    roles = [table.split_role(folder.name) for folder in folders]
    if folders and all(roles):
        return [(role, below) for role, folder in zip(roles, folders, strict=True) for below in _folders(folder)]
    return [(None, folder) for folder in folders]


def _folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder in a stable order, hidden ones and those in hidden folders left out."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in sorted(names) if not name.startswith("."))


def _first_image(folder: Path) -> Path | None:
    return next((path for path in _files(folder) if formats.find(path) is not None), None)


def _is_dicom(path: Path) -> bool:
    return formats.find(path) is dicom


def _several_patients_each(folders: list[Path]) -> bool:
    """By PatientID, or by study where anonymising gave all patients the same one."""
    headers = []
    for folder in folders:
        # What is broken counts as nobody's; `read` says what is wrong with it.
        found = [tags for tags in dicom.headers_of(list(_files(folder))) if isinstance(tags, Mapping)]
        if all(len({tags[key] for tags in found}) < 2 for key in ("PatientID", "StudyInstanceUID")):
            return False
        headers.append(found)
    one = len({tags["PatientID"] for folder in headers for tags in folder}) == 1
    key = "StudyInstanceUID" if one else "PatientID"
    return all(len({tags[key] for tags in folder}) > 1 for folder in headers)


def read(path: Path) -> Listing:
    """The images of each class folder; the folder's name is the class, its place below may be the split.

    Patients are told apart by DICOM PatientID, else by the folders below the class, where there are any.

    Raises:
        Problem: there are fewer than two classes.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    others = 0
    told: set[str] = set()
    sources: list[Source] = []
    images = {"image": sources}
    for role, folder in _classes(path):
        stated = (Finding("label", folder.name, probability=1.0),)
        for source in _sources(folder):
            if not source.is_dir() and formats.find(source) is None:
                others += 1
                continue
            try:
                patient, how = _patient(path, folder, source)
            except Problem as problem:
                problems.append(problem)
                continue
            told.add(how)
            name = source.relative_to(path).as_posix()
            sources.append(Source(source))
            entries.append(Entry(name, patient or name, Cells(images, len(sources) - 1), stated, role))
    classes = without_finding_first(sorted({entry.findings[0].name for entry in entries}))
    if len(classes) < 2:
        raise Problem(
            "there are images in fewer than two class folders", path=path, fix="make a folder for each class"
        )
    entries.sort(key=lambda entry: entry.id)
    notes = [f"{others} files that are not images were ignored."] if others else []
    if "" in told:
        notes.append("Some images do not say whose they are: each was taken as a patient of its own.")
    grouping = ", ".join(sorted(told - {""}))
    return Listing(
        tuple(entries), (Question("label", "multiclass", classes),), grouping, tuple(problems), tuple(notes)
    )


def _sources(folder: Path) -> Iterator[Path]:
    """Image files; a folder below the class that holds several DICOM files stands for all of them."""
    whole: set[Path] = set()
    for path in _files(folder):
        if path.parent == folder or not _is_dicom(path):
            yield path
        elif path.parent not in whole:
            whole.add(path.parent)
            siblings = [other for other in path.parent.iterdir() if other.is_file() and _is_dicom(other)]
            yield path.parent if len(siblings) > 1 else path


def _patient(root: Path, folder: Path, source: Path) -> tuple[str, str]:
    """Whose image it is and how that is known; blank where it is not."""
    first = next(filter(_is_dicom, _files(source)), source) if source.is_dir() else source
    if _is_dicom(first):
        patient = dicom.header(first)["PatientID"]
        if patient:
            return patient, "DICOM PatientID"
    below = source.relative_to(folder).parts[:-1]
    return (below[0], "folder below the class") if below else ("", "")
