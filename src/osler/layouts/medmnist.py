"""MedMNIST (Yang et al., 2023): one ``.npz`` with ``{train,val,test}_{images,labels}``."""

import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Cells, Entry, Finding, Kind, Question, Role, Source
from osler.layouts import Listing
from osler.problem import Problem

_PARTS: dict[str, Role] = {"train": "train", "val": "validation", "test": "test"}

# Class names as https://medmnist.com lists them, by the stem of the file without its size.
_CLASSES = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "chestmnist": (
        *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia"),
        *("pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia"),
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "nodulemnist3d": ("benign", "malignant"),
    "vesselmnist3d": ("vessel", "aneurysm"),
    "adrenalmnist3d": ("normal", "hyperplasia"),
}
_ORDINAL = ("retinamnist",)


def matches(path: Path) -> bool:
    """Whether this is, or a folder holds, exactly one ``.npz`` with MedMNIST's arrays."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    files = [path] if path.is_file() else sorted(path.glob("*.npz"))
    return files[0] if len(files) == 1 and files[0].suffix == ".npz" and _is_medmnist(files[0]) else None


def _is_medmnist(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(f"{part}_images.npy" in archive.namelist() for part in _PARTS)
    except (OSError, zipfile.BadZipFile):
        # A broken file is still meant as one: `read` says what is wrong with it.
        return True


def read(path: Path) -> Listing:
    """Each row is a case; upstream gives no patients. Labels ``(n, 1)`` are classes, ``(n, k)`` 0 or 1 multilabel.

    Raises:
        Problem: the file is broken, or its arrays do not fit each other.
    """
    file = _file(path)
    if file is None:
        raise Problem("there is not exactly one MedMNIST file", path=path, fix="give the .npz file")
    arrays = _arrays(file)
    labels = {part: arrays[f"{part}_labels"] for part in _PARTS if f"{part}_labels" in arrays}
    question = _question(file, labels) if labels else None
    entries = []
    where = str(file)
    for part, role in _PARTS.items():
        count = arrays.get(f"{part}_images")
        if count is None:
            continue
        if part in labels and len(labels[part]) != count:
            what = f"{part} has {count} images but {len(labels[part])} labels"
            raise Problem(what, path=file, fix="download it again")
        key = f"{part}_images"
        sources = {"image": [Source(where, key, row) for row in range(count)]}
        rows = labels[part].tolist() if question and part in labels else None
        for row in range(count):
            name = f"{role}-{row:06d}"
            findings = _stated(question, tuple(rows[row])) if question and rows else ()
            entries.append(Entry(name, name, Cells(sources, row), findings, role))
    entries.sort(key=lambda entry: entry.id)
    notes = ("No patients are given: each image was taken as a patient of its own.",)
    return Listing(tuple(entries), () if question is None else (question,), "", (), notes)


def _arrays(path: Path) -> dict[str, Any]:
    """Labels as ``(n, k)`` arrays, of images only how many there are (from the header, nothing decompressed)."""
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    if name.endswith("_images.npy"):
                        found[name.removesuffix(".npy")] = _rows(file)
                    elif name.endswith("_labels.npy"):
                        array = np.lib.format.read_array(file, allow_pickle=False)
                        found[name.removesuffix(".npy")] = array.reshape(len(array), -1)
    except Exception as error:
        # zipfile, zlib and numpy each have their own errors for a broken archive.
        raise Problem(
            "the .npz file is broken or holds pickled objects", path=path, fix="download it again"
        ) from error
    return found


def _rows(file: Any) -> int:
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return int(header(file)[0][0])


def _question(path: Path, labels: dict[str, NDArray[Any]]) -> Question:
    stem = path.stem.split("_")[0].lower()
    together = np.concatenate(list(labels.values()))
    if together.dtype.kind not in "iub" or not len(together) or together.min() < 0:
        raise Problem("its labels are not whole numbers from 0", path=path, fix="number the classes from 0")
    many = together.shape[1] > 1
    if many and together.max() > 1:
        raise Problem("its labels have several columns that are not 0 or 1", path=path, fix="use one column")
    kind: Kind = "multilabel" if many else "ordinal" if stem in _ORDINAL else "multiclass"
    count = together.shape[1] if many else int(together.max()) + 1
    names = _CLASSES.get(stem, ())
    return Question("label", kind, names if len(names) == count else tuple(map(str, range(count))))


@cache
def _stated(question: Question, row: tuple[int, ...]) -> tuple[Finding, ...]:
    if question.kind == "multilabel":
        return tuple(
            Finding(question.task, name, probability=float(value))
            for name, value in zip(question.classes, row, strict=True)
        )
    rank = float(row[0]) if question.kind == "ordinal" else None
    return (Finding(question.task, question.classes[row[0]], probability=1.0, value=rank),)
