"""COCO: JSON files with ``images``, ``annotations`` and ``categories`` (Lin et al., 2014).

``annotations/instances_<part>.json`` with the images in ``<part>``, ``images/<part>`` or ``images``;
``<part>/_annotations.coco.json`` beside its images; or one JSON file. ``bbox`` is x, y, width and height by the edges
of pixels; ``segmentation`` polygons, or run lengths down the columns, as a list or packed in a text.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import annotations, polygons, table
from osler.case import Entry, Finding, Mask, Question, Role, Source
from osler.layouts import Listing
from osler.problem import Problem

BOXES, MASKS = "boxes", "mask"
_KEYS = (b'"images"', b'"annotations"', b'"categories"')
# So many pixels of masks are kept in memory, a byte each; beyond, the boxes alone.
_MOST_PIXELS = 500_000_000


def matches(path: Path) -> bool:
    """Whether there is a JSON file with the three lists of COCO."""
    return any(map(_is_coco, _files(path)))


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    for pattern in ("annotations/instances_*.json", "*/_annotations.coco.json", "annotations/*.json", "*.json"):
        found = sorted(file for file in path.glob(pattern) if not file.name.startswith("."))
        if found:
            return found
    return []


def _is_coco(file: Path) -> bool:
    content = file.read_bytes()
    return all(key in content for key in _KEYS)


def read(path: Path) -> Listing:
    """The images of every file; parts as the names of files or folders say, ``val`` as test where there is none.

    Groups of objects (``iscrowd``) are left out; a class of which an image has only such is unknown there. Where
    each object has an outline there is a question about masks, too. ``patient`` or ``patient_id`` of an image is its
    patient, where the file has it.

    Raises:
        Problem: a file is broken, or no image can be used.
    """
    root = path if path.is_dir() else path.parent
    files = [file for file in _files(path) if _is_coco(file)]
    parts = [_part(file) for file in files]
    roles = [table.split_role(re.sub(r"\d+$", "", part)) for part in parts]
    notes: list[str] = []
    if "validation" in roles and "test" not in roles:
        roles = ["test" if role == "validation" else role for role in roles]
        notes.append("No test part is given: val is held out for the evaluation.")
    read = [_Set.read(file, part, role, root) for file, part, role in zip(files, parts, roles, strict=True)]
    used = {one.name for each in read for one in each.objects()}
    classes = tuple(dict.fromkeys(name for each in read for name in each.names.values() if name in used))
    if not classes:
        raise Problem("no image has an object", path=path, fix="check that the annotations name their images")
    masked = _masked(read, notes)
    problems: list[Problem] = []
    entries = []
    for each in read:
        for image in each.images:
            try:
                entries.append(_entry(each, image, classes, masked=masked, several=len(read) > 1))
            except Problem as problem:
                problems.append(problem)
    crowds = sum(one.crowd for each in read for said in each.said.values() for one in said)
    if crowds:
        notes.append(f"{crowds} groups of objects (iscrowd) were left out.")
    questions = [Question(BOXES, "detection", classes)]
    if masked:
        values = tuple((number,) for number in range(1, len(classes) + 1))
        questions.append(Question(MASKS, "segmentation", classes, values=values, separate=True))
    grouping = "patient of the images" if any(_patient(image) for each in read for image in each.images) else ""
    if not grouping:
        notes.append("The file names no patients: each image was taken as a patient of its own.")
    entries.sort(key=lambda entry: entry.id)
    return Listing(tuple(entries), tuple(questions), grouping, tuple(problems), tuple(notes))


def _part(file: Path) -> str:
    return file.parent.name if file.name == "_annotations.coco.json" else file.stem.removeprefix("instances_")


@dataclass(frozen=True)
class _Object:
    name: str
    bbox: Sequence[float]
    outline: Any
    crowd: bool


@dataclass(frozen=True)
class _Set:
    """One file."""

    file: Path
    root: Path
    part: str
    role: Role | None
    names: Mapping[int, str]
    images: Sequence[Mapping[str, Any]]
    said: Mapping[Any, list[_Object]] = field(default_factory=dict)

    @classmethod
    def read(cls, file: Path, part: str, role: Role | None, root: Path) -> "_Set":
        said: dict[Any, list[_Object]] = defaultdict(list)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            kinds = sorted(content["categories"], key=lambda kind: kind["id"])
            names = {kind["id"]: str(kind["name"]) for kind in kinds}
            images = [dict(image, file_name=str(image["file_name"])) for image in content["images"]]
            there = {image["id"] for image in images}
            for one in content["annotations"]:
                if one["image_id"] not in there:
                    what = f"the annotation {one.get('id')} is of image {one['image_id']}, which is not listed"
                    raise Problem(what, path=file, fix="add the image or delete it")
                outline, crowd = one.get("segmentation"), bool(one.get("iscrowd", 0))
                said[one["image_id"]].append(_Object(names[one["category_id"]], one["bbox"], outline, crowd))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"this is not COCO: it is broken, or {error} is missing"
            raise Problem(what, path=file, fix="write images, annotations and categories as COCO does") from error
        return cls(file, root, part, role, names, images, said)

    def objects(self) -> Iterator[_Object]:
        """All that count."""
        return (one for said in self.said.values() for one in said if not one.crowd)

    def find(self, name: str) -> Path:
        """The file of an image."""
        top = self.root
        for folder in (self.file.parent, top / self.part, top / "images" / self.part, top / "images", top):
            if (folder / name).is_file():
                return folder / name
        what = f"{self.file.name} names this image, but it is not there"
        raise Problem(what, path=top / name, root=top, fix="copy it there, or take it out of that file")


def _masked(read: Sequence[_Set], notes: list[str]) -> bool:
    """Whether masks are asked for: each object has an outline, and all of them fit into memory."""
    outlined = [bool(one.outline) for each in read for one in each.objects()]
    if not all(outlined):
        if any(outlined):
            notes.append("Only some objects have an outline: masks are not asked for.")
        return False
    try:
        pixels = sum(float(one.bbox[2]) * float(one.bbox[3]) for each in read for one in each.objects())
    except (ValueError, TypeError, IndexError):
        # Said of each case.
        return True
    if pixels > _MOST_PIXELS:
        notes.append(f"The masks hold {pixels / 1e6:,.0f} million pixels: only their boxes are used.")
    return pixels <= _MOST_PIXELS


def _patient(image: Mapping[str, Any]) -> str:
    return str(image.get("patient_id") or image.get("patient") or "")


def _entry(each: _Set, image: Mapping[str, Any], classes: Sequence[str], *, masked: bool, several: bool) -> Entry:
    source = each.find(image["file_name"])
    name = f"{each.part}/{image['file_name']}" if several else image["file_name"]
    said = each.said.get(image["id"], [])
    unsure = [one.name for one in said if one.crowd]
    boxes, masks = [], []
    try:
        size = (int(image["height"]), int(image["width"]))
        for one in said:
            if one.crowd:
                continue
            x, y, width, height = (float(number) for number in one.bbox)
            box = annotations.box((0, y, x), (1, y + height, x + width), (1, *size), source)
            boxes.append(Finding(BOXES, one.name, probability=1.0, box=box))
            if masked:
                mask = _mask(one.outline, size)
                masks.append(Finding(MASKS, one.name, probability=1.0, box=mask.box, mask=mask))
    except (KeyError, ValueError, TypeError) as error:
        what = "its size, a box or an outline cannot be read as COCO has them"
        raise Problem(what, path=source, root=each.root, fix="correct the annotation") from error
    findings = annotations.complete(BOXES, classes, boxes, unsure)
    if masked:
        findings += annotations.complete(MASKS, classes, masks, unsure)
    return Entry(name, _patient(image) or name, {"image": Source(source)}, findings, each.role)


def _mask(outline: Any, size: tuple[int, int]) -> Mask:
    if isinstance(outline, list):
        corners = [np.asarray(one, float).reshape(-1, 2) for one in outline]
        return polygons.mask(corners, size)
    counts = outline["counts"]
    if tuple(outline["size"]) != size:
        raise ValueError("the mask is of another size than its image")
    return Mask.cropped(_runs(_unpacked(counts) if isinstance(counts, str) else counts, size)[None])


def _runs(counts: Sequence[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Lengths of runs of 0, 1, 0, ... down the columns."""
    values = np.arange(len(counts)) % 2 == 1
    flat = np.repeat(values, counts)
    if len(flat) != size[0] * size[1]:
        raise ValueError("the runs of the mask do not add up to its image")
    return flat.reshape(size[::-1]).T


def _unpacked(text: str) -> list[int]:
    """Run lengths from COCO's text: 5 bits a letter, the lowest first; from the fourth on less the last but one.

    As ``rleFrString`` of its ``maskApi.c``.
    """
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            letter = ord(text[at]) - 48
            value |= (letter & 31) << shift
            more = bool(letter & 32)
            at, shift = at + 1, shift + 5
            if not more and letter & 16:
                value |= -1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts
