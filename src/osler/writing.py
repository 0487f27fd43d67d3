"""Findings with a place, as files that other programs read: NIfTI, DICOM segmentations, pictures, a table, data.

Masks are written where a finding is *stated*: the answer is not withheld, and the finding is sure enough. The table
and the pictures show the others, too, and say so.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from numpy.typing import NDArray

from osler import display, files, formats
from osler.case import DENSE, Answer, Box, Case, Diagnosis, Finding, Question, Source
from osler.formats import dicom, nifti
from osler.formats.dicom.writing import Drawn, Maker
from osler.formats.dicom.writing import write as write_segmentation
from osler.image import Affine, Image
from osler.problem import Problem
from osler.pseudonym import pseudonym

TABLE = "findings.csv"
_COLUMNS = (
    "case",
    "task",
    "class",
    "number",
    "frame",
    "probability",
    "stated",
    "measurement",
    "value",
    "low",
    "high",
)
# Colours of classes that people with any colour vision tell apart (Okabe and Ito, 2008), on grey.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))
# Chance from which what is not stated is drawn: hundreds of boxes that are hardly there would hide the rest.
_DRAWN = 0.05
# Short side of a picture, pixels: a small image is enlarged by whole numbers.
_SIDE = 384


def write(
    diagnosis: Diagnosis,
    case: Case,
    folder: Path,
    questions: Mapping[str, Question],
    uncertainty: Mapping[str, NDArray[np.float32]] | None = None,
) -> tuple[str, ...]:
    """Writes what was found and where into the folder of a case.

    Of each task that asks where something is: masks as NIfTI on the image's own grid and, where the image is DICOM,
    as a segmentation object that refers to it; a picture for each moment in which something was found. Of all of
    them one table of measurements.

    Args:
        diagnosis: of the case; its id is written as its pseudonym.
        case: with the image as it was read.
        folder: exists.
        questions: by task, for the classes and their numbers in label maps (1, 2, ... in their order).
        uncertainty: by task ``(time, depth, height, width)``, float32; written as NIfTI beside the masks.

    Returns:
        What could not be written and why, a sentence each.
    """
    image, source = _the_image(case)
    notes: list[str] = []
    for task, answer in diagnosis.answers.items():
        if answer.kind not in DENSE:
            continue
        question = questions[task]
        for name, labels in label_maps(answer, question, image).items():
            _volume(folder / name, labels, image)
        if uncertainty and task in uncertainty:
            _volume(folder / f"{_plain(task)}-uncertainty.nii.gz", uncertainty[task], image)
        notes += _segmentation(diagnosis, answer, question, (image, source), folder)
        for frame, picture in pictures([(answer, question)], image).items():
            files.replaced(folder / f"{_plain(task)}{f'-{frame}' if image.frames > 1 else ''}.png", picture)
    if any(answer.kind in DENSE for answer in diagnosis.answers.values()):
        files.replaced(folder / TABLE, table(diagnosis))
    return tuple(notes)


def _the_image(case: Case) -> tuple[Image, Source | None]:
    name = next(iter(case.images))
    return case.images[name], case.sources.get(name)


def label_maps(
    answer: Answer, question: Question, image: Image
) -> dict[str, Shaped[np.ndarray, "time depth height width"]]:
    """File name to label map of the stated findings; empty where the task has no masks.

    Classes of which a pixel can have only one share a map, numbered from 1 in the question's order; regions, which
    may overlap, have a map each, of 0 and 1.
    """
    if question.kind != "segmentation":
        return {}
    size = (image.frames, *image.size)
    groups = [set(values) for values in question.values]
    regions = len(set().union(*groups)) < sum(map(len, groups)) if groups else False
    kind = np.uint8 if len(question.classes) < 256 else np.uint16
    names = [mask_file(question, name) for name in question.classes]
    maps = {name: np.zeros(size, kind) for name in names}
    for finding in answer.stated:
        if finding.mask is not None:
            number = 1 if regions else question.classes.index(finding.name) + 1
            inside = finding.mask.within(image.size)
            maps[mask_file(question, finding.name)][finding.frame][inside] = number
    return maps


def mask_file(question: Question, name: str) -> str:
    """The name of the file that holds the masks of a class."""
    groups = [set(values) for values in question.values]
    regions = len(set().union(*groups)) < sum(map(len, groups)) if groups else False
    return f"{_plain(question.task)}{f'-{_plain(name)}' if regions else ''}.nii.gz"


def _segmentation(
    diagnosis: Diagnosis,
    answer: Answer,
    question: Question,
    pictured: tuple[Image, Source | None],
    folder: Path,
) -> list[str]:
    """The DICOM segmentation of a task, where its image is DICOM and something is stated."""
    image, source = pictured
    stated = [finding for finding in answer.stated if finding.mask is not None]
    if not stated or source is None or formats.find(source.path) is not dicom:
        return []
    maker = Maker("Osler", metadata.version("osler"), diagnosis.model[:12])
    try:
        path = folder / f"{_plain(answer.task)}.seg.dcm"
        write_segmentation(path, source, segments(stated, question, image), maker)
    except Problem as problem:
        return [f"{answer.task}: no DICOM segmentation was written: {problem.what}."]
    return []


def segments(stated: Sequence[Finding], question: Question, image: Image) -> list[Drawn]:
    """What a DICOM segmentation holds: a segment for each class, or for each finding of one that comes in parts."""
    drawn = []
    for name in question.classes:
        own = [finding for finding in stated if finding.name == name and finding.mask is not None]
        parts = [[finding] for finding in own] if question.separate else [own] if own else []
        for number, some in enumerate(parts, 1):
            masks = np.zeros((image.frames, *image.size), bool)
            for finding in some:
                if finding.mask is not None:
                    masks[finding.frame] |= finding.mask.within(image.size)
            label = f"{name} {number}" if len(parts) > 1 else name
            drawn.append(Drawn(name, label, masks, some[0].code))
    return drawn


def pictures(answers: Sequence[tuple[Answer, Question]], image: Image) -> dict[int, bytes]:
    """Moment to PNG: the slice with the most of what was found, outlines and boxes of all answers drawn on it.

    Stated findings have a whole line, likely enough others a broken one; each class of each question has a colour of
    its own.
    """
    from PIL import Image as Pillow

    stated = {id(finding) for answer, _ in answers for finding in answer.stated}
    every = (f for answer, _ in answers for f in answer.findings if f.box is not None)
    placed = sorted(
        (f for f in every if id(f) in stated or (f.probability or 0.0) >= _DRAWN), key=lambda f: f.frame
    )  # fmt: skip
    classes = [(question.task, name) for _, question in answers for name in question.classes]
    made = {}
    for frame, some in groupby(placed, key=lambda f: f.frame):
        findings = list(some)
        level = _fullest(findings, image)
        shown = display.picture(image.frame(frame), level)
        factor = max(1, -(-_SIDE // min(shown.shape[:2])))
        canvas = np.repeat(np.repeat(shown, factor, 0), factor, 1)
        canvas = np.ascontiguousarray(np.stack([canvas] * 3, -1) if canvas.ndim == 2 else canvas)
        for finding in findings:
            if finding.mask is None and finding.box and level not in _levels(finding.box, image.size[0]):
                continue
            colour = _COLOURS[classes.index((finding.task, finding.name)) % len(_COLOURS)]
            _draw(canvas, finding, level, factor, (colour, id(finding) in stated))
        content = io.BytesIO()
        Pillow.fromarray(canvas).save(content, "PNG")
        made[frame] = content.getvalue()
    return made


def _fullest(findings: Sequence[Finding], image: Image) -> int:
    """The slice in which findings are largest, in pixels of their masks or else of their boxes."""
    area = np.zeros(image.size[0])
    for finding in findings:
        if finding.mask is not None:
            start = finding.mask.start[0]
            area[start : start + len(finding.mask.array)] += finding.mask.array.sum((1, 2))
        elif finding.box is not None:
            (_, y, x), (_, y1, x1) = finding.box.start, finding.box.stop
            area[list(_levels(finding.box, image.size[0]))] += (y1 - y) * (x1 - x)
    return int(area.argmax())


def _levels(box: Box, depth: int) -> range:
    """The slices whose middle lies in a box, at least one."""
    first = min(max(int(np.ceil(box.start[0] - 0.5)), 0), depth - 1)
    return range(first, max(first + 1, min(depth, int(np.ceil(box.stop[0] - 0.5)))))


def _draw(
    canvas: UInt8[np.ndarray, "h w 3"],
    finding: Finding,
    level: int,
    factor: int,
    style: tuple[tuple[int, int, int], bool],
) -> None:
    colour, whole = style
    height, width = canvas.shape[:2]
    line = np.zeros((height, width), bool)
    if finding.mask is not None:
        z, top, left = finding.mask.start
        if z <= level < z + len(finding.mask.array):
            inside = np.repeat(np.repeat(finding.mask.array[level - z], factor, 0), factor, 1)
            padded = np.pad(inside, 1)
            inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
            h, w = inside.shape
            line[top * factor : top * factor + h, left * factor : left * factor + w] = inside & ~inner
    elif finding.box is not None:
        (_, y, x), (_, y1, x1) = finding.box.start, finding.box.stop
        top, left = (int(np.clip(round(v * factor), 0, n - 1)) for v, n in ((y, height), (x, width)))
        bottom, right = (int(np.clip(round(v * factor) - 1, 0, n - 1)) for v, n in ((y1, height), (x1, width)))
        line[[top, bottom], left : right + 1] = True
        line[top : bottom + 1, [left, right]] = True
    if not whole:
        rows, columns = np.indices(line.shape)
        line &= (rows + columns) // 4 % 2 == 0
    canvas[line] = colour


def table(diagnosis: Diagnosis) -> str:
    """CSV with a row for each measurement of each finding with a place, or one row for a finding without any.

    ``low`` and ``high`` are the ends of the 95 % interval, empty where it is not known; ``number`` counts the
    findings of a task from 1, in the order of the answer.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*_COLUMNS, "unit"))
    name = pseudonym(diagnosis.case)
    for task, answer in diagnosis.answers.items():
        stated = {id(finding) for finding in answer.stated}
        placed = [finding for finding in answer.findings if finding.box is not None or finding.mask is not None]
        for number, finding in enumerate(placed, 1):
            said = "yes" if id(finding) in stated else "no"
            first = (name, task, finding.name, number, finding.frame, _short(finding.probability), said)
            for measured in finding.measurements:
                low, high = measured.interval or (None, None)
                numbers = map(_short, (measured.value, low, high))
                writer.writerow((*first, measured.name, *numbers, measured.unit))
            if not finding.measurements:
                writer.writerow((*first, "", "", "", "", ""))
    return text.getvalue()


def as_data(diagnosis: Diagnosis, case: Case, questions: Mapping[str, Question]) -> dict[str, Any]:
    """The diagnosis as plain data under a pseudonym: places by numbers, masks by the name of their file.

    A finding with a mask has ``mask``: its ``file`` and ``value`` there (``None`` where it is not stated, and so not
    written), and its number of ``pixels``. One with a box has ``box``: ``start`` and ``stop`` in pixels ``(depth,
    height, width)``, edges, and ``corners``: the eight of them in millimetres LPS, where the place in the patient is
    known.
    """
    image, _ = _the_image(case)
    bare = {task: replace(answer, findings=(), uncertainty=None) for task, answer in diagnosis.answers.items()}
    content = asdict(replace(diagnosis, case=pseudonym(diagnosis.case), answers=bare))
    for task, answer in diagnosis.answers.items():
        stated = {id(finding) for finding in answer.stated}
        del content["answers"][task]["uncertainty"]
        content["answers"][task]["findings"] = [
            _finding(finding, questions.get(task), image, id(finding) in stated) for finding in answer.findings
        ]
    return content


def _finding(finding: Finding, question: Question | None, image: Image, stated: bool) -> dict[str, Any]:
    content = asdict(replace(finding, mask=None, box=None))
    if finding.mask is not None and question is not None:
        name = mask_file(question, finding.name)
        shared = name == f"{_plain(question.task)}.nii.gz"
        value = question.classes.index(finding.name) + 1 if shared else 1
        content["mask"] = {
            "file": name if stated else None,
            "value": value if stated else None,
            "pixels": int(np.count_nonzero(finding.mask.array)),
        }
    if finding.box is not None:
        content["box"] = {**asdict(finding.box), "corners": None}
        if isinstance(image.geometry, Affine):
            content["box"]["corners"] = corners(finding.box, image).tolist()
    return content


def corners(box: Box, image: Image) -> Float[np.ndarray, "8 3"]:
    """The corners of a box in the patient, millimetres LPS; pixel ``i`` reaches from edge ``i`` to ``i + 1``.

    Raises:
        ValueError: the image has no place in the patient.
    """
    ends = np.array([box.start, box.stop])
    picks = np.array([[(n >> 2) & 1, (n >> 1) & 1, n & 1] for n in range(8)])
    edges = np.take_along_axis(ends, picks, 0)
    return image.to_patient(edges[:, ::-1] - 0.5)


def _short(value: float | None) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.6g}"


def _plain(name: str) -> str:
    """A name as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name) or "_"


def _volume(path: Path, values: NDArray[np.generic], image: Image) -> None:
    nifti.write(replace(image, array=values[:, None]), path)
