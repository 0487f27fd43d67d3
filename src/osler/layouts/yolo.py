"""YOLO: a text file beside each image, a line for each object, and ``data.yaml`` or ``classes.txt`` with their names.

A line is the number of the class and centre and size of a box, or three or more corners of an outline, all as
fractions of the width and height of the image. Labels lie in ``labels`` where images lie in ``images``, else beside
them. Of ``data.yaml`` are read ``path``, ``train``, ``val``, ``test`` and ``names``, in the simple forms that the
tools write; no other YAML.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osler import annotations, formats, polygons, table
from osler.case import Entry, Finding, Question, Role, Source
from osler.layouts import Listing
from osler.problem import Problem

BOXES, MASKS = "boxes", "mask"
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
_NAMES = ("classes.txt", "obj.names")
# So many text files are looked at for one that holds labels.
_LOOKED_AT = 1000
_PARTS = ("train", "val", "test")


def matches(path: Path) -> bool:
    """Whether there is a YAML file with names of classes and parts, or a list of classes and a folder of labels."""
    if not path.is_dir():
        return False
    if any("names" in _yaml(file) for file in _yamls(path)):
        return True
    folders = [path, path / "labels", path / "images"]
    named = any((folder / name).is_file() for folder in folders for name in _NAMES)
    return named and any(_is_label(file) for file in islice(path.rglob("*.txt"), _LOOKED_AT))


def _is_label(file: Path) -> bool:
    """Whether the first line is that of an object."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return re.match(r"\d+(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", lines.readline()) is not None


def _yamls(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() in (".yaml", ".yml"))


def _yaml(file: Path) -> dict[str, list[str]]:
    """Top-level keys with their values: one, or those of a list or of numbered lines, in the order of the numbers."""
    found: dict[str, list[str]] = {}
    numbered: dict[str, dict[int, str]] = {}
    last = ""
    for line in file.read_text(encoding="utf-8-sig").splitlines():
        text = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        top = re.match(r"([A-Za-z_]\w*)\s*:\s*(.*)$", text)
        item = re.match(r"\s*-\s+(.*)$", text)
        pair = re.match(r"\s+(\d+)\s*:\s*(.*)$", text)
        if top:
            last, value = top[1], top[2].strip()
            found[last] = [_plain(part) for part in _items(value)]
            numbered[last] = _pairs(value)
        elif item and last:
            found[last].append(_plain(item[1]))
        elif pair and last:
            numbered[last][int(pair[1])] = _plain(pair[2])
    return found | {key: [pairs[i] for i in sorted(pairs)] for key, pairs in numbered.items() if pairs}


def _items(value: str) -> list[str]:
    if value.startswith("[") and value.endswith("]"):
        return [part for part in value[1:-1].split(",") if part.strip()]
    return [value] if value else []


def _pairs(value: str) -> dict[int, str]:
    """``{0: a, 1: b}`` in one line."""
    if not (value.startswith("{") and value.endswith("}")):
        return {}
    parts = (part.partition(":") for part in value[1:-1].split(",") if part.strip())
    return {int(key): _plain(name) for key, _, name in parts if key.strip().isdigit()}


def _plain(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


@dataclass(frozen=True)
class _Object:
    """Name of the class, and corners ``(n, 2)`` x, y as fractions; of a box two of them."""

    name: str
    corners: NDArray[np.float64]


def read(path: Path) -> Listing:
    """The images that have a file of labels; an empty one says that nothing is there. ``val`` is test if nothing is.

    Raises:
        Problem: the names of the classes, or all labels, are missing.
    """
    names, parts = _said(path)
    notes: list[str] = []
    roles = {part: table.split_role(part) for part, _ in parts}
    if "validation" in roles.values() and "test" not in roles.values():
        roles = {part: "test" if role == "validation" else role for part, role in roles.items()}
        notes.append("No test part is given: val is held out for the evaluation.")
    problems: list[Problem] = []
    read: dict[Path, tuple[Role | None, list[_Object]]] = {}
    unlabelled = 0
    for part, pictures in parts:
        for picture in pictures:
            label = _label(path, picture)
            if label is None:
                unlabelled += 1
                continue
            try:
                read[picture] = (roles[part], _objects(label, names))
            except Problem as problem:
                problems.append(problem)
    used = {one.name for _, said in read.values() for one in said}
    classes = tuple(name for name in names if name in used)
    if not classes:
        first = f" (the first: {problems[0].clause})" if problems else ""
        raise Problem(f"no image has an object with a label{first}", path=path, fix="put labels beside the images")
    outlined = [len(one.corners) > 2 for _, said in read.values() for one in said]
    masked = all(outlined)
    if any(outlined) and not masked:
        notes.append("Only some objects have an outline: masks are not asked for.")
    entries = []
    for picture, (role, said) in read.items():
        name = picture.relative_to(path).as_posix() if picture.is_relative_to(path) else picture.name
        try:
            findings = _findings(picture, said, classes, masked=masked)
        except Problem as problem:
            problems.append(problem)
            continue
        entries.append(Entry(name, name, {"image": Source(picture)}, findings, role))
    if unlabelled:
        notes.append(
            f"{unlabelled} images have no file of labels and were left out (an empty file: nothing is there)."
        )
    notes.append("The format names no patients: each image was taken as a patient of its own.")
    questions = [Question(BOXES, "detection", classes)]
    if masked:
        values = tuple((number,) for number in range(1, len(classes) + 1))
        questions.append(Question(MASKS, "segmentation", classes, values=values, separate=True))
    entries.sort(key=lambda entry: entry.id)
    return Listing(tuple(entries), tuple(questions), "", tuple(problems), tuple(notes))


def _said(path: Path) -> tuple[list[str], list[tuple[str, list[Path]]]]:
    """Names of the classes, and the images of each part."""
    found = [content for content in map(_yaml, _yamls(path)) if "names" in content]
    if found:
        parts = [(part, _images(path, found[0], found[0][part])) for part in _PARTS if found[0].get(part)]
        if not any(pictures for _, pictures in parts):
            what = "none of the folders that the YAML file names as train, val or test holds images"
            raise Problem(what, path=path, fix="name them relative to that file")
        return found[0]["names"], parts
    files = [folder / name for folder in (path, path / "labels", path / "images") for name in _NAMES]
    lines = next(file for file in files if file.is_file()).read_text(encoding="utf-8-sig").splitlines()
    by_part: dict[str, list[Path]] = {}
    for picture in _below(path):
        words = [word for word in picture.relative_to(path).parts[:-1] if table.split_role(word)]
        by_part.setdefault(words[0] if words else "", []).append(picture)
    return [line.strip() for line in lines if line.strip()], list(by_part.items())


def _below(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.suffix.lower() in _PICTURES)
    return sorted(file for file in files if not file.name.startswith("."))


def _images(path: Path, content: Mapping[str, Sequence[str]], given: Sequence[str]) -> list[Path]:
    """Images in folders or lists of a part. ``path`` is where somebody else had them: it is tried last."""
    base = path / next(iter(content.get("path", [])), ".")
    pictures: list[Path] = []
    for name in given:
        # One tool writes ../train/images for what lies beside the file.
        places = [path / name, path / re.sub(r"^(\.\./)+", "", name), base / name]
        place = next((place for place in places if place.exists()), None)
        if place is not None and place.is_dir():
            pictures += _below(place)
        elif place is not None:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
            listed = ((place.parent / line.strip(), base / line.strip()) for line in lines if line.strip())
            pictures += [next((file for file in both if file.is_file()), both[0]) for both in listed]
    return pictures


def _label(root: Path, picture: Path) -> Path | None:
    """The text file of an image: in ``labels`` for the last ``images`` of its path, else beside it."""
    inner = picture.relative_to(root).parts if picture.is_relative_to(root) else picture.parts
    places = [number for number, part in enumerate(inner[:-1]) if part == "images"]
    candidates = [picture.with_suffix(".txt")]
    if places:
        moved = Path(*inner[: places[-1]], "labels", *inner[places[-1] + 1 :])
        candidates.insert(0, (root / moved).with_suffix(".txt"))
    return next((file for file in candidates if file.is_file()), None)


def _objects(file: Path, names: Sequence[str]) -> list[_Object]:
    return list(_lines(file, names))


def _lines(file: Path, names: Sequence[str]) -> Iterator[_Object]:
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            kind, numbers = int(words[0]), np.array(words[1:], float)
        except ValueError:
            kind, numbers = -1, np.empty(0)
        known = len(numbers) == 4 or (len(numbers) >= 6 and len(numbers) % 2 == 0)
        if not known or not np.isfinite(numbers).all() or kind < 0:
            what = (
                f"line {number} is neither a box (class, x, y, width, height) nor an outline of three or more corners"
            )
            raise Problem(what, path=file, fix="correct or delete it")
        if kind >= len(names):
            what = f"line {number} is of class {kind}, but there are names for 0 to {len(names) - 1} only"
            raise Problem(what, path=file, fix="add its name")
        corners = numbers.reshape(-1, 2)
        if len(corners) == 2:
            centre, extent = corners
            corners = np.stack([centre - extent / 2, centre + extent / 2])
        yield _Object(names[kind], corners)


def _findings(picture: Path, said: Sequence[_Object], classes: Sequence[str], *, masked: bool) -> tuple[Finding, ...]:
    boxes, masks = [], []
    size = formats.size(picture) if said else (1, 1, 1)
    for one in said:
        corners = one.corners * size[:0:-1]
        (x0, y0), (x1, y1) = (corners[0], corners[1]) if len(corners) == 2 else (corners.min(0), corners.max(0))
        box = annotations.box((0, float(y0), float(x0)), (1, float(y1), float(x1)), size, picture)
        boxes.append(Finding(BOXES, one.name, probability=1.0, box=box))
        if masked:
            mask = polygons.mask([corners], size[1:])
            masks.append(Finding(MASKS, one.name, probability=1.0, box=mask.box, mask=mask))
    findings = annotations.complete(BOXES, classes, boxes)
    return findings + annotations.complete(MASKS, classes, masks) if masked else findings
