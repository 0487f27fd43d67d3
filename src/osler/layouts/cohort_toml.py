"""Any table and any folder, mapped by a ``cohort.toml``: in the folder, or given beside a read-only one.

.. code-block:: toml

    table = "labels.csv"            # relative to the cohort's folder
    case = "id"                     # columns; of several, "{patient}_{side}"
    patient = "dup_group"
    image = "images/{id}.jpg"       # or [image] with a line for each modality
    missing = ["-99"]               # besides blank: unknown
    covariates = ["age"]
    [label.diagnosis]
    column = "label"                # or columns = {class = "column", ...} of 0, 1 and blank
    kind = "ordinal"
    classes = ["normal", "benign", "malignant"]

    [mask.lesion]
    file = "masks/{id}_*.png"       # or {class = "pattern", ...}; several files are several lesions
    values = {1 = "core"}           # of a label map; without them every value but 0 is inside
    separate = true                 # each connected part is a finding of its own
    [boxes.cells]
    corners = ["x0", "y0", "x1", "y1"]      # or size = ["x", "y", "w", "h"], or cell = "boxes"
    class = "cell_type"             # a column

Without ``table`` the images themselves are the cases: in ``image = "{part}/{number}_image.png"`` the names in braces
become columns. Also: ``split``, ``frame`` (take one moment of each image), ``modality`` (DICOM's code, for files that
do not say it), ``exclude = {column = ["value"]}``, ``[[join]]`` with ``table``, ``on`` and, where its key is made of
several columns here, ``key = "{patient}_{side}"``; ``time``, the column that puts several rows of one case, its
visits, in order, and ``time_unit`` (days unless another is named); for a label also
``missing``, ``rename = {cell = "class"}``, ``separator`` and ``unit``; for a mask ``ignore``, the value of pixels of
which nothing is known, and ``detect = true`` for boxes around its parts; for boxes ``name``, their class, and
``blank = "none"`` where blank cells mean that there is none.
"""

import glob
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osler import annotations, table, visits
from osler.case import Kind, Modality, Question, Source
from osler.layouts import Listing
from osler.problem import Problem

_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Label(BaseModel):
    model_config = _STRICT
    column: str = ""
    columns: dict[str, str] = {}
    kind: Kind | None = None
    classes: list[str] = []
    separator: str = ""
    missing: list[str] = []
    rename: dict[str, str] = {}
    unit: str = ""


class _Mask(BaseModel):
    model_config = _STRICT
    file: str | dict[str, str]
    values: dict[str, str] = {}
    ignore: int | None = None
    separate: bool = True
    detect: bool = False


class _Boxes(BaseModel):
    model_config = _STRICT
    corners: list[str] = []
    size: list[str] = []
    cell: str = ""
    name: str = annotations.ONE
    class_: str = Field("", alias="class")
    blank: Literal["unknown", "none"] = "unknown"


class _Join(BaseModel):
    model_config = _STRICT
    table: str
    on: str
    key: str = ""


class _File(BaseModel):
    model_config = _STRICT
    table: str = ""
    case: str
    image: str | dict[str, str]
    patient: str = ""
    split: str = ""
    frame: int | None = None
    time: str = ""
    time_unit: visits.Unit = "days"
    modality: Modality = ""
    missing: list[str] = []
    covariates: list[str] = []
    exclude: dict[str, list[str]] = {}
    join: list[_Join] = []
    label: dict[str, _Label] = {}
    mask: dict[str, _Mask] = {}
    boxes: dict[str, _Boxes] = {}


def matches(path: Path) -> bool:
    """Whether the folder holds a ``cohort.toml``."""
    return (path / "cohort.toml").is_file()


def read(path: Path) -> Listing:
    """The cases of a folder, as its own ``cohort.toml`` maps them; see :func:`read_with`."""
    return read_with(path, path / "cohort.toml")


def read_with(path: Path, file: Path) -> Listing:
    """The cases of the folder ``path``, as the cohort file maps them.

    Raises:
        Problem: an unknown key or column, a table that is not there, or none of the images is.
    """
    plan = _parsed(file)
    data = _named(_joined(path, plan), plan.case)
    for column, cells in plan.exclude.items():
        _has(data, column)
        data = table.Table(data.path, data.columns, tuple(row for row in data.rows if row[column] not in cells))
    missing = table.MISSING | set(plan.missing)
    labels = tuple(_label(task, label, file) for task, label in plan.label.items())
    covariates = {name: name for name in plan.covariates}
    patterns = {"image": plan.image} if isinstance(plan.image, str) else plan.image
    named = {column for pattern in patterns.values() for column in _columns(pattern)}
    said = {column for label in labels for column in (label.column, *label.by_class.values()) if column}
    for column in (*named, plan.case, *([plan.time] if plan.time else [])):
        _has(data, column)
    series = _visits(data, plan, sorted(named), missing, file)
    data = series.table
    drawn = annotations.Annotated(
        data,
        plan.case,
        masks=[_masks(path, data, task, mask, plan.frame, missing) for task, mask in plan.mask.items()],
        boxes=[_boxes(data, task, boxes, file) for task, boxes in plan.boxes.items()],
        same=sorted(named | said | {column for column in (plan.patient, plan.split) if column}),
        missing=missing,
    )
    placed = bool(drawn.questions)
    roles = table.Roles(
        plan.case, plan.patient, plan.split, labels, covariates, tuple(drawn.used), missing, placed=placed
    )

    def looked(row: table.Row) -> Mapping[str, Source]:
        find = partial(_sources, path, patterns, plan.frame, missing)
        sources = visits.images(series, row[plan.case], row, find)
        drawn.look(row, sources)
        return sources

    cases = drawn.add(table.cases(drawn.data, roles, looked))
    if not cases.entries:
        first = f" (the first: {cases.problems[0].clause})" if cases.problems else ""
        raise Problem(f"none of the images that the cohort file describes is there{first}", path=path, fix="check it")
    problems, notes = cases.problems + series.problems, cases.notes + series.notes
    return Listing(cases.entries, cases.questions, cases.grouping, problems, notes, plan.modality)


def _visits(data: table.Table, plan: _File, images: list[str], missing: frozenset[str], file: Path) -> visits.Visits:
    if not plan.time:
        return visits.Visits(data)
    if plan.mask or plan.boxes:
        what = "masks and boxes lie in one image, and with time a case has several"
        raise Problem(what, path=file, fix="take out time and give each visit a case of its own")
    same = [column for column in (plan.patient, plan.split) if column]
    return visits.gathered(data, plan.case, plan.time, images=images, same=same, unit=plan.time_unit, missing=missing)


def _parsed(file: Path) -> _File:
    if not file.is_file():
        raise Problem("there is no such cohort file", path=file, fix="check the path")
    try:
        return _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"this is not TOML: {error}", path=file, fix="correct it") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            parts: dict[str, type[BaseModel]] = {"label": _Label, "join": _Join, "mask": _Mask, "boxes": _Boxes}
            known = parts.get(str(first["loc"][0]), _File) if len(first["loc"]) > 1 else _File
            fix = f"known keys are {', '.join(known.model_fields)}"
            raise Problem(f"there is no key {key!r} in a cohort file", path=file, fix=fix) from error
        raise Problem(f"the key {key!r} is wrong: {first['msg'].lower()}", path=file, fix="correct it") from error


def _label(task: str, label: _Label, file: Path) -> table.Label:
    if bool(label.column) == bool(label.columns):
        raise Problem(f"the label {task!r} needs either column or columns", path=file, fix="give one of the two")
    if label.columns and label.kind not in (None, "multilabel"):
        raise Problem(f"the label {task!r} has a column for each class", path=file, fix="its kind is multilabel")
    if label.kind == "ordinal" and not label.classes:
        raise Problem(f"the ordinal label {task!r} needs classes", path=file, fix="list them from low to high")
    kind: Kind | None = "multilabel" if label.columns else label.kind
    classes = tuple(label.columns) if label.columns else tuple(label.classes)
    return table.Label(
        task,
        label.column,
        label.columns,
        kind,
        classes,
        label.separator,
        frozenset(label.missing),
        label.rename,
        label.unit,
    )


def _joined(path: Path, plan: _File) -> table.Table:
    """The table, widened by the others: each of their rows is looked up by the key."""
    data = _table(path, plan.table) if plan.table else _matching(path, plan)
    for join in plan.join:
        other = _table(path, join.table)
        for column in _columns(join.key) or (join.on,):
            _has(data, column)
        _has(other, join.on)
        twice = [key for key, count in Counter(row[join.on] for row in other.rows).items() if count > 1]
        if twice:
            raise Problem(f"{join.on} {twice[0]!r} is there twice", path=other.path, fix="keep one row for each")
        new = tuple(column for column in other.columns if column != join.on)
        clash = [column for column in new if column in data.columns]
        if clash:
            raise Problem(f"the column {clash[0]!r} is in two tables", path=other.path, fix="rename one of them")
        found = {row[join.on]: row for row in other.rows}
        blank = dict.fromkeys(new, "")
        key = join.key or f"{{{join.on}}}"
        rows = tuple({**blank, **_without(found.get(_filled(key, row), {}), join.on), **row} for row in data.rows)
        data = table.Table(data.path, data.columns + new, rows)
    return data


def _named(data: table.Table, case: str) -> table.Table:
    """Where several columns make up the name of a case, one more column, called as their pattern."""
    for column in _columns(case):
        _has(data, column)
    if not _columns(case):
        return data
    rows = tuple({**row, case: _filled(case, row)} for row in data.rows)
    return table.Table(data.path, (*data.columns, case), rows)


def _without(row: Mapping[str, str], column: str) -> dict[str, str]:
    return {name: cell for name, cell in row.items() if name != column}


def _matching(path: Path, plan: _File) -> table.Table:
    """A table of the files that the pattern of the image matches: what stands for each name in braces is a column."""
    pattern = plan.image if isinstance(plan.image, str) else next(iter(plan.image.values()))
    columns = _columns(pattern)
    parts = re.split(r"\{([^{}]+)\}", pattern)
    # Text, name, text, name, ..., text; a name that comes again must be the same.
    known: set[str] = set()
    text = ""
    for number, part in enumerate(parts):
        text += re.escape(part) if number % 2 == 0 else f"(?P=c{columns.index(part)})" if part in known else (
            f"(?P<c{columns.index(part)}>[^/]+?)"
        )  # fmt: skip
        known |= {part} if number % 2 else set()
    found = []
    for file in sorted(path.glob("".join("*" if number % 2 else part for number, part in enumerate(parts)))):
        match = re.fullmatch(text, file.relative_to(path).as_posix())
        if match:
            found.append(dict(zip(columns, match.groups(), strict=True)))
    if not columns or not found:
        what = f"no file matches {pattern!r}" if columns else f"the image {pattern!r} has no {{name}} in it"
        raise Problem(what, path=path, fix="correct the pattern or name a table in the cohort file")
    return table.Table(path, columns, tuple(found))


def _columns(pattern: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(re.findall(r"\{([^{}]+)\}", pattern)))


def _masks(
    path: Path, data: table.Table, task: str, mask: _Mask, frame: int | None, missing: frozenset[str]
) -> annotations.Masks:
    patterns = {"" if mask.values else task: mask.file} if isinstance(mask.file, str) else mask.file
    for pattern in patterns.values():
        for column in _columns(pattern):
            _has(data, column)
    if not all(re.fullmatch(r"\d{1,3}", value) and 0 < int(value) < 256 for value in mask.values):
        raise Problem(f"the values of the mask {task!r} are not numbers from 1 to 255", fix='write {1 = "name"}')
    values = {int(value): name for value, name in mask.values.items()}
    classes = tuple(dict.fromkeys(values.values())) if values else tuple(patterns)
    groups = tuple(tuple(v for v, name in values.items() if name == one) for one in classes)
    question = Question(
        task,
        "detection" if mask.detect else "segmentation",
        classes,
        values=groups if values else tuple((number,) for number in range(1, len(classes) + 1)),
        ignore=mask.ignore,
        separate=mask.separate,
    )
    files = {name: partial(_drawn, path, pattern, missing) for name, pattern in patterns.items()}
    return annotations.Masks(question, files, values, frame)


def _drawn(path: Path, pattern: str, missing: frozenset[str], row: table.Row) -> list[Path] | None:
    """The files of a row; none where a cell says ``none``, ``None`` where one is blank."""
    cells = [row[column] for column in _columns(pattern)]
    if any(cell in missing for cell in cells):
        return None
    if any(cell.lower() in annotations.NONE for cell in cells):
        return []
    name = _filled(pattern, row)
    if "*" in name:
        escaped = _filled(pattern, {column: glob.escape(row[column]) for column in _columns(pattern)})
        found = sorted(path.glob(escaped))
        if found:
            return found
    elif (path / name).exists():
        return [path / name]
    raise Problem(
        "the cohort file describes this mask, but it is not there", path=path / name, root=path,
        fix="correct the pattern of the mask, or put the file there",
    )  # fmt: skip


def _filled(pattern: str, row: Mapping[str, str]) -> str:
    return re.sub(r"\{([^{}]+)\}", lambda match: row[match[1]], pattern)


def _boxes(data: table.Table, task: str, boxes: _Boxes, file: Path) -> annotations.Boxes:
    given = [columns for columns in (boxes.corners, boxes.size, [boxes.cell] if boxes.cell else []) if columns]
    if len(given) != 1 or (not boxes.cell and len(given[0]) not in (4, 6)):
        what = f"the boxes {task!r} need one of corners and size, with 4 columns (6 of a volume), or cell"
        raise Problem(what, path=file, fix='write for example corners = ["x0", "y0", "x1", "y1"]')
    for column in (*given[0], *([boxes.class_] if boxes.class_ else [])):
        _has(data, column)
    columns = () if boxes.cell else tuple(given[0])
    return annotations.Boxes(
        task, columns, bool(boxes.corners), boxes.cell, boxes.name, boxes.class_, boxes.blank == "none"
    )


def _table(folder: Path, name: str) -> table.Table:
    path = folder / name
    if not path.is_file():
        raise Problem(
            "the cohort file names this table, but it is not there", path=path, root=folder,
            fix="correct its path, which is relative to the cohort's folder",
        )  # fmt: skip
    return table.read(path)


def _has(data: table.Table, column: str) -> None:
    if column not in data.columns:
        fix = f"its columns are {', '.join(data.columns)}"
        raise Problem(f"there is no column {column!r}", path=data.path, fix=fix)


def _sources(
    folder: Path, patterns: Mapping[str, str], frame: int | None, missing: frozenset[str], row: table.Row
) -> Mapping[str, Source]:
    sources = {}
    for modality, pattern in patterns.items():
        if any(row[column] in missing for column in _columns(pattern)):
            continue
        path = folder / _filled(pattern, row)
        if not path.exists():
            fix = "correct the pattern of the image, or put the file there"
            raise Problem("the cohort file describes this file, but it is not there", path=path, root=folder, fix=fix)
        sources[modality] = Source(path, frame=frame)
    if not sources:
        raise Problem("a row of the table names no image", path=folder, fix="name one in it, or delete the row")
    return sources
