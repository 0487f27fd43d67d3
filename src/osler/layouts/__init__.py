"""Folders and tables that hold a cohort: one layout a file.

Every file holds ``matches(path) -> bool`` (cheap) and ``read(path) -> Listing``, which reads names, headers and
tables but no pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osler import catalog, formats
from osler.case import Entry, Question, Source
from osler.problem import Problem

# What is asked first: a file that says what everything is goes before one that only looks like something.
_ORDER = ("cohort_toml", "medmnist", "nnunet", "voc", "coco", "yolo", "manifest", "class_folders", "dicom_tree")


@dataclass(frozen=True)
class Listing:
    """What a folder or table says about its cases.

    Attributes:
        entries: the cases, in a stable order (by id).
        questions: what the labels ask, one for each task.
        grouping: how patients were told apart, e.g. ``"column patient_id"`` or ``"DICOM PatientID"``;
            empty where nothing says so and each case counts as its own patient.
        problems: rows or files that were left out, each with its reason; the rest goes on.
        notes: what was assumed, a sentence each.
        modality: DICOM's code of all images, where a cohort file states it for files that cannot.
    """

    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]
    grouping: str = ""
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    modality: str = ""


def read(path: Path, cohort_file: Path | None = None) -> Listing:
    """Lists the cases of a cohort, in whichever layout it comes; ``cohort_file`` maps one that has none.

    Raises:
        Problem: there is nothing, or nothing that any layout knows.
    """
    if not path.exists():
        raise Problem("there is no such file or folder", path=path, fix="check the path")
    listing: Listing
    if cohort_file is not None:
        listing = catalog.find("layouts", "cohort_toml").read_with(path, cohort_file)
        return listing
    if path.is_dir() and not any(path.iterdir()):
        raise Problem("the folder is empty", path=path, fix="give a folder with a cohort")
    rest = (name for name in catalog.names("layouts") if name not in _ORDER)
    for name in (*_ORDER, *rest):
        module = catalog.find("layouts", name)
        if module.matches(path):
            listing = module.read(path)
            return listing
    raise Problem(
        "no cohort was found: no cohort.toml, MedMNIST .npz, nnU-Net, Pascal VOC, COCO or YOLO data set, table with "
        "a column image, folder for each class or DICOM files",
        path=path,
        fix="name the columns of its table in a cohort file",
    )


def single(path: Path) -> Entry:
    """One file, or a folder with one DICOM series, as a case of its own.

    Raises:
        Problem: it is missing or of no known format.
    """
    if not path.exists():
        raise Problem("there is no such file or folder", path=path, fix="check the path")
    if path.is_file() and path.stat().st_size == 0:
        raise Problem("the file is empty (0 bytes)", path=path, fix="copy it again from where it came from")
    if formats.find(path) is None:
        what = "a folder without DICOM files or pictures" if path.is_dir() else "a file of an unknown format"
        fix = f"formats that can be read: {', '.join(catalog.names('formats'))}"
        raise Problem(f"this is {what}", path=path, fix=fix)
    name = path.resolve().name
    for suffix in (".gz", ".nii", path.suffix) if path.is_file() else ():
        name = name.removesuffix(suffix)
    return Entry(name, name, {"image": Source(path)})


def by_modality(names: Sequence[str], words: Sequence[str]) -> Entry:
    """``("flair=a.nii.gz", "t1=b.nii.gz")`` as one case, for a model that looks at images of these names.

    Raises:
        Problem: not ``modality=path``, one that the model does not look at or that is given twice, or no file there.
    """
    found: dict[str, Entry] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise Problem(f"{word!r} is no image", fix="write modality=path, e.g. flair=scan.nii.gz")
        if name not in names:
            looks = f"it looks at {', '.join(names)}" if names else "it looks at one image: give its path alone"
            raise Problem(f"the model knows no modality {name!r}", fix=looks)
        if name in found:
            raise Problem(f"two images are given as {name}", fix="give one of each")
        found[name] = single(Path(path))
    first = next(iter(found.values()))
    return replace(first, images={name: one.images["image"] for name, one in found.items()})
