"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages`` and, where there are any, the parts in ``ImageSets/Main``.

Corners are those of the pixels that a box holds, counted from 1, both ends included (Everingham et al., VOC2007
development kit): ``xmin`` 1 and ``xmax`` 10 are ten pixels from the left edge.
"""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from osler import annotations, formats, table
from osler.case import Entry, Finding, Question, Role, Source
from osler.layouts import Listing
from osler.problem import Problem

TASK = "boxes"
_PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


def matches(path: Path) -> bool:
    """Whether there are ``Annotations`` with XML files and ``JPEGImages``."""
    return (path / "JPEGImages").is_dir() and any((path / "Annotations").glob("*.xml"))


@dataclass(frozen=True)
class _Annotation:
    """One file: boxes as ``(name, x0, y0, x1, y1)`` by their edges, and the names of those that are difficult."""

    boxes: tuple[tuple[str, float, float, float, float], ...]
    difficult: tuple[str, ...]
    size: tuple[int, int, int]


def read(path: Path) -> Listing:
    """The annotated images. Where ``ImageSets/Main`` has parts, only what they list.

    Objects marked as difficult are left out and counted in the metadata, as they are in VOC's own figures; a class of
    which an image has only such objects is unknown there. Nothing names patients.

    Raises:
        Problem: no file can be used.
    """
    parts = _parts(path / "ImageSets" / "Main")
    pictures = annotations.by_stem(path / "JPEGImages", _PICTURES)
    files = annotations.by_stem(path / "Annotations", (".xml",))
    problems: list[Problem] = []
    read: dict[str, _Annotation] = {}
    for name in sorted(parts or files):
        try:
            read[name] = _checked(path, name, files, pictures)
        except Problem as problem:
            problems.append(problem)
    classes = tuple(sorted({one[0] for said in read.values() for one in said.boxes}))
    if not classes:
        first = f" (the first: {problems[0].clause})" if problems else ""
        raise Problem(f"no file in Annotations has a box that can be used{first}", path=path, fix="check them")
    entries = []
    for name, said in read.items():
        try:
            findings = annotations.complete(TASK, classes, _findings(said, files[name]), said.difficult)
        except Problem as problem:
            problems.append(problem)
            continue
        marked: dict[str, str | float | None] = {"difficult": float(len(said.difficult))} if said.difficult else {}
        images = {"image": Source(pictures[name])}
        entries.append(Entry(name, name, images, findings, parts.get(name), metadata=marked))
    question = Question(TASK, "detection", classes)
    notes = ["The format names no patients: each image was taken as a patient of its own."]
    if "test" in parts.values() and not (path / "ImageSets" / "Main" / "test.txt").is_file():
        notes.append("No test list is given: val is held out for the evaluation.")
    left = len(files.keys() - parts.keys()) if parts else 0
    if left:
        notes.append(f"{left} annotated images stand in no part of ImageSets/Main and were left out.")
    hard = sum(len(said.difficult) for said in read.values())
    if hard:
        notes.append(f"{hard} objects marked as difficult were left out.")
    return Listing(tuple(entries), (question,), "", tuple(problems), tuple(notes))


def _parts(folder: Path) -> dict[str, Role | None]:
    """Which part each image is in; ``trainval`` counts where there is no finer one, ``val`` as test where none is."""
    found: dict[str, Role | None] = {}
    held = (folder / "test.txt").is_file()
    for name in ("trainval", "train", "val", "test"):
        file = folder / f"{name}.txt"
        if file.is_file():
            listed = [line.split()[0] for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            role = table.split_role(name) if held or name != "val" else "test"
            twice = [stem for stem in listed if found.get(stem) not in (None, role)]
            if twice:
                what = f"{twice[0]!r} stands in two parts ({len(twice)} in all)"
                raise Problem(what, path=file, fix="keep it in one")
            found |= dict.fromkeys(listed, role)
    return found


def _checked(path: Path, name: str, files: dict[str, Path], pictures: dict[str, Path]) -> _Annotation:
    if name not in files:
        what = f"ImageSets/Main lists {name}, but it has no file in Annotations"
        fix = "copy it there, or take the name out of ImageSets"
        raise Problem(what, path=path / "Annotations" / f"{name}.xml", root=path, fix=fix)
    if name not in pictures:
        fix = "copy it there, or remove the annotation"
        raise Problem("there is no image of this name in JPEGImages", path=files[name], root=path, fix=fix)
    return _parsed(files[name], pictures[name])


def _parsed(file: Path, picture: Path) -> _Annotation:
    try:
        text = file.read_bytes()
        if b"<!ENTITY" in text or b"<!DOCTYPE" in text:
            raise Problem("the XML declares a document type", path=file, fix="save plain annotations")
        root = ElementTree.fromstring(text)
        boxes, difficult = [], []
        for one in root.iter("object"):
            name = (one.findtext("name") or "").strip()
            edges = [float(one.findtext(f"bndbox/{key}") or "") for key in ("xmin", "ymin", "xmax", "ymax")]
            if not name:
                raise ValueError
            if (one.findtext("difficult") or "0").strip() == "1":
                difficult.append(name)
            else:
                boxes.append((name, edges[0] - 1, edges[1] - 1, edges[2], edges[3]))
        width, height = (int(float(root.findtext(f"size/{key}") or 0)) for key in ("width", "height"))
    except (OSError, ValueError, ElementTree.ParseError) as error:
        what = "this is not an annotation of Pascal VOC: it is broken, or an object lacks its name or a corner"
        raise Problem(what, path=file, fix="correct or delete it") from error
    # Some writers leave the size 0.
    size = (1, height, width) if width > 0 and height > 0 else formats.size(picture)
    return _Annotation(tuple(boxes), tuple(difficult), size)


def _findings(said: _Annotation, file: Path) -> list[Finding]:
    return [
        Finding(TASK, name, probability=1.0, box=annotations.box((0, y0, x0), (1, y1, x1), said.size, file))
        for name, x0, y0, x1, y1 in said.boxes
    ]
