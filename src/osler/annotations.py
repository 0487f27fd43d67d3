"""Boxes and masks as tables and label files state them: within the image or refused, absence said."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from osler import formats, table
from osler.case import Box, CaseId, Entry, Finding, Outline, Question, Source
from osler.problem import Problem

Corner = tuple[float, float, float]
Size = tuple[int, int, int]

# The class of boxes and masks that a table gives no other name.
ONE = "lesion"
# A cell that says that somebody looked and there is none; a blank one says nothing.
NONE = ("none", "[]")
# Farther beyond the edge than this a box is not a slip of rounding.
_SLIP = 1.0


# --- boxes ---------------------------------------------------------------------------------------------------


def box(start: Corner, stop: Corner, size: Size, path: Path) -> Box:
    """A box in an image of ``size``; what reaches up to one pixel over the edge is cut there.

    Args:
        start, stop: edges ``(depth, height, width)`` in pixels.
        size: of the image, ``(depth, height, width)``.
        path: the file that states the box.

    Raises:
        Problem: the box is inverted, of size zero, or farther outside.
    """
    shown = f"from ({start[2]:g}, {start[1]:g}) to ({stop[2]:g}, {stop[1]:g})"
    for a, b in zip(start, stop, strict=True):
        if not b >= a:
            what = f"the box {shown} (x, y) is inverted: it stops before it starts"
            raise Problem(what, path=path, fix="check whether it is given by its corners or by its size")
        if a == b:
            raise Problem(f"the box {shown} (x, y) has no size", path=path, fix="correct or delete it")
    over = max(max(-a, b - n) for a, b, n in zip(start, stop, size, strict=True))
    gone = any(b <= 0 or a >= n for a, b, n in zip(start, stop, size, strict=True))
    if not over <= _SLIP or gone:
        what = f"the box {shown} (x, y) reaches {over:g} pixels over the edge of an image of {size[2]} x {size[1]}"
        raise Problem(what, path=path, fix="check that both belong together")
    low = [max(0.0, float(a)) for a in start]
    high = [min(float(n), float(b)) for b, n in zip(stop, size, strict=True)]
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


@cache
def absent(task: str, name: str) -> Finding:
    """There is none of it anywhere: one object for all cases."""
    return Finding(task, name, probability=0.0)


def complete(
    task: str, classes: Sequence[str], found: Iterable[Finding], unsure: Iterable[str] = ()
) -> tuple[Finding, ...]:
    """The findings of a case that was wholly annotated, and that there is nothing of the other classes.

    Args:
        task, classes: the question.
        found: what was annotated.
        unsure: classes of which too little is known to say that there is none.
    """
    found = tuple(found)
    known = {finding.name for finding in found} | set(unsure)
    return found + tuple(absent(task, name) for name in classes if name not in known)


def by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by their name without the last suffix; hidden ones are left out."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {f.stem: f for f in files if f.suffix.lower() in suffixes and not f.name.startswith(".")}


# --- tables --------------------------------------------------------------------------------------------------

Files = Callable[[table.Row], Sequence[Path] | None]


@dataclass(frozen=True)
class Masks:
    """Where a table says that masks are.

    Attributes:
        question: a segmentation, or a detection whose boxes are those around the parts of the masks.
        files: by class, what gives the mask files of a row: none where there is nothing of the class, ``None`` where
            nothing is known. Under ``""`` label maps of all classes.
        values: of those label maps.
        frame: as :attr:`Source.frame`.
    """

    question: Question
    files: Mapping[str, Files]
    values: Mapping[int, str] = field(default_factory=dict)
    frame: int | None = None


@dataclass(frozen=True)
class Boxes:
    """Which columns of a table are boxes.

    Attributes:
        task: name of the question.
        columns: x and y of the first corner, and x and y of the second or width and height; of volumes each with z.
        corners: the last ones are a corner, not a size.
        cell: instead, the one column with all boxes of a case; see :func:`boxes_in`.
        name: their class, or the column that holds it (``by``).
        blank: blank cells say that there is none, instead of nothing.
    """

    task: str
    columns: tuple[str, ...] = ()
    corners: bool = False
    cell: str = ""
    name: str = ONE
    by: str = ""
    blank: bool = False


@dataclass(frozen=True)
class Stated:
    """A box as a table states it: class and edges ``(depth, height, width)``, the depth ``None`` in a flat image."""

    name: str
    start: tuple[float | None, float, float]
    stop: tuple[float | None, float, float]


class Annotated:
    """The masks and boxes of the cases of a table, found while its rows are read.

    Args:
        data: the table; where a row stands for a box, several rows may be of one case.
        case: the column of case ids.
        masks, boxes: what to look for.
        same: columns that may not differ between rows of one case.
        missing: cells that say nothing.
    """

    def __init__(
        self,
        data: table.Table,
        case: str,
        *,
        masks: Sequence[Masks] = (),
        boxes: Sequence[Boxes] = (),
        same: Iterable[str] = (),
        missing: frozenset[str] = table.MISSING,
    ) -> None:
        self._case, self._masks, self._boxes, self._missing = case, masks, boxes, missing
        several = any(one.columns for one in boxes)
        self.data = _one_row_each(data, case, tuple(same)) if several else data
        self._stated: dict[str, dict[CaseId, list[Stated]]] = {
            one.task: _by_case(data, case, one, missing) for one in boxes
        }
        self._classes = {task: _names(found) for task, found in self._stated.items()}
        self._outlines: dict[CaseId, tuple[Outline, ...]] = {}
        self._findings: dict[CaseId, tuple[Finding, ...]] = {}
        self._partly: Counter[str] = Counter()

    @property
    def used(self) -> frozenset[str]:
        """Columns that are no metadata."""
        return frozenset(c for one in self._boxes for c in (*one.columns, one.cell, one.by) if c)

    @property
    def questions(self) -> tuple[Question, ...]:
        """What masks and boxes ask; those of which nothing stands in the table are left out."""
        asked = [Question(task, "detection", classes) for task, classes in self._classes.items() if classes]
        return (*(one.question for one in self._masks), *asked)

    def look(self, row: table.Row, images: Mapping[str, Source]) -> None:
        """Keeps what the row says of its image.

        Raises:
            Problem: a mask is not there, or a box is not inside of the image.
        """
        name = row[self._case]
        outlines: list[Outline] = []
        findings: list[Finding] = []
        for masks in self._masks:
            self._mask(masks, row, outlines, findings)
        for boxes in self._boxes:
            stated = self._stated[boxes.task].get(name)
            if stated is not None:
                path = next(iter(images.values())).path
                size = formats.size(path) if stated else (1, 1, 1)
                made = (_placed(boxes.task, one, size, path) for one in stated)
                findings += complete(boxes.task, self._classes[boxes.task], made)
        self._outlines[name], self._findings[name] = tuple(outlines), tuple(findings)

    def _mask(self, masks: Masks, row: table.Row, outlines: list[Outline], findings: list[Finding]) -> None:
        task = masks.question.task
        given = {name: files(row) for name, files in masks.files.items()}
        known = {name: paths for name, paths in given.items() if paths is not None}
        if len(known) < len(given):
            self._partly[task] += bool(known)
            return
        drawn = [
            Outline(task, Source(path, frame=masks.frame), name or masks.values)
            for name, paths in known.items()
            for path in paths
        ]
        outlines += drawn
        if not drawn:
            findings += complete(task, masks.question.classes, ())

    def add(self, cases: table.Cases) -> table.Cases:
        """The cases with their masks and boxes."""
        entries = tuple(self._with(entry) for entry in cases.entries)
        notes = list(cases.notes)
        for task, count in (+self._partly).items():
            notes.append(
                f"{count} cases name masks of some classes of {task} and not of others: they are left out of it "
                "(a blank cell is unknown; write none where there is nothing)."
            )
        return replace(cases, entries=entries, questions=(*cases.questions, *self.questions), notes=tuple(notes))

    def _with(self, entry: Entry) -> Entry:
        outlines, findings = self._outlines.get(entry.id, ()), self._findings.get(entry.id, ())
        if not outlines and not findings:
            return entry
        return replace(entry, outlines=outlines, findings=entry.findings + findings)


def _names(found: Mapping[CaseId, Iterable[Stated]]) -> tuple[str, ...]:
    return tuple(sorted({one.name for stated in found.values() for one in stated}))


def _placed(task: str, one: Stated, size: Size, path: Path) -> Finding:
    start = (one.start[0] or 0.0, one.start[1], one.start[2])
    stop = (float(size[0]) if one.stop[0] is None else one.stop[0], one.stop[1], one.stop[2])
    return Finding(task, one.name, probability=1.0, box=box(start, stop, size, path))


def _one_row_each(data: table.Table, case: str, same: tuple[str, ...]) -> table.Table:
    """The first row of each case.

    Raises:
        Problem: its other rows say something else in a column that must be the same.
    """
    first: dict[str, table.Row] = {}
    for row in data.rows:
        before = first.setdefault(row[case], row)
        for column in same:
            if row[column] != before[column]:
                what = f"the rows of case {row[case]!r} have {before[column]!r} and {row[column]!r} in {column!r}"
                raise Problem(what, path=data.path, fix="several rows of a case may differ in their box only")
    return data if len(first) == len(data.rows) else table.Table(data.path, data.columns, tuple(first.values()))


def _by_case(data: table.Table, case: str, boxes: Boxes, missing: frozenset[str]) -> dict[CaseId, list[Stated]]:
    """The boxes of each case; a case of which nothing is known is not there."""
    found: dict[CaseId, list[Stated]] = {}
    for number, row in enumerate(data.rows, 2):
        try:
            stated = boxes_in(row[boxes.cell], boxes.name) if boxes.cell else _of_columns(row, boxes, missing)
        except ValueError as error:
            raise Problem(f"row {number}: {error}", path=data.path, fix="correct it or leave it blank") from error
        if stated is not None:
            found.setdefault(row[case], []).extend(stated)
    return found


def _of_columns(row: table.Row, boxes: Boxes, missing: frozenset[str]) -> list[Stated] | None:
    cells = [row[column] for column in boxes.columns]
    blank = [cell in missing for cell in cells]
    if all(blank):
        return [] if boxes.blank else None
    if all(cell.lower() in NONE for cell in cells):
        return []
    if any(blank):
        raise ValueError(f"only some of {', '.join(boxes.columns)} are given")
    name = row[boxes.by] if boxes.by else boxes.name
    if name in missing:
        raise ValueError(f"a box has no class in column {boxes.by!r}")
    return [_stated([*cells, name], corners=boxes.corners)]


def boxes_in(cell: str, name: str = ONE) -> list[Stated] | None:
    """All boxes of a case in one cell; ``None`` where it is blank, nothing where it is ``none`` or ``[]``.

    ``x y width height`` (of a volume ``x y z width height depth``) in pixels, and their class, if they have several;
    boxes are separated by semicolons. Or JSON: a list of such lists.

    Raises:
        ValueError: it says something else.
    """
    cell = cell.strip()
    if cell in table.MISSING:
        return None
    if cell.lower() in NONE:
        return []
    rows: Any = [re.split(r"[\s,]+", part.strip()) for part in cell.split(";") if part.strip()]
    if cell.startswith("["):
        try:
            rows = json.loads(cell)
        except ValueError as error:
            raise ValueError(f"{cell[:40]!r} is not JSON") from error
        rows = [rows] if rows and not isinstance(rows[0], list) else rows
    return [_stated([*row] if len(row) in (5, 7) else [*row, name], corners=False) for row in rows]


def _stated(row: list[Any], *, corners: bool) -> Stated:
    """Numbers and a class."""
    *cells, name = row
    try:
        numbers = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) not in (4, 6):
        raise ValueError(f"{' '.join(map(str, row))[:40]!r} is not a box: x, y, width and height in pixels")
    half = len(numbers) // 2
    low, last = numbers[:half][::-1], numbers[half:][::-1]
    high = last if corners else [a + b for a, b in zip(low, last, strict=True)]
    z: tuple[float | None, float | None] = (low[0], high[0]) if half == 3 else (None, None)
    return Stated(str(name), (z[0], low[-2], low[-1]), (z[1], high[-2], high[-1]))


def listed(folder: Path, cell: str) -> list[Path]:
    """Files that a cell names, separated by semicolons, relative to ``folder``.

    Raises:
        Problem: one is not there.
    """
    paths = [folder / name.strip() for name in cell.split(";") if name.strip()]
    for path in paths:
        if not path.exists():
            fix = "correct its path, leave the cell blank (unknown), or write none (nothing is there)"
            raise Problem("the table names this mask, but it is not there", path=path, root=folder, fix=fix)
    return paths


def mask_columns(data: table.Table, folder: Path, separate: bool = True) -> list[Masks]:
    """The columns ``mask`` (one class) or ``mask.<class>``, each cell with one or several files.

    Raises:
        Problem: there are both.
    """
    columns = {c: c.partition(".")[2] or ONE for c in data.columns if c == "mask" or c.startswith("mask.")}
    if not columns:
        return []
    if "mask" in columns and len(columns) > 1:
        raise Problem(
            "the table has a column mask and columns mask.<class>", path=data.path, fix="keep one of the two"
        )
    classes = tuple(columns.values())
    values = tuple((number,) for number in range(1, len(classes) + 1))
    question = Question("mask", "segmentation", classes, values=values, separate=separate)
    return [Masks(question, {name: _named(folder, column) for column, name in columns.items()})]


def _named(folder: Path, column: str) -> Files:
    def files(row: table.Row) -> Sequence[Path] | None:
        cell = row[column]
        return None if cell in table.MISSING else () if cell.lower() in NONE else listed(folder, cell)

    return files


_SIZES = (("x", "y", "width", "height"), ("x", "y", "z", "width", "height", "depth"))
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax"))


def box_columns(data: table.Table) -> list[Boxes]:
    """``boxes``; or ``x, y, width, height`` or ``xmin, ymin, xmax, ymax``, of volumes with z, and ``class``."""
    there = set(data.columns)
    if "boxes" in there:
        return [Boxes("boxes", cell="boxes")]
    # Those with z are looked for first: they hold the others.
    for columns in (*reversed(_SIZES), *reversed(_CORNERS)):
        if there.issuperset(columns):
            return [Boxes("boxes", columns, columns in _CORNERS, by="class" if "class" in there else "")]
    return []
