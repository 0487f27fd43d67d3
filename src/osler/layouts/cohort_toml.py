"""Any table and any folder, mapped by a ``cohort.toml``: in the folder, or given beside a read-only one.

.. code-block:: toml

    table = "labels.csv"            # relative to the cohort's folder
    case = "id"                     # columns
    patient = "dup_group"
    image = "images/{id}.jpg"       # or [image] with a line for each modality
    missing = ["-99"]               # besides blank: unknown
    covariates = ["age"]
    [label.diagnosis]
    column = "label"                # or columns = {class = "column", ...} of 0, 1 and blank
    kind = "ordinal"
    classes = ["normal", "benign", "malignant"]

Also: ``split``, ``frame`` (take one moment of each image), ``modality`` (DICOM's code, for files that do not say
it), ``exclude = {column = ["value"]}``,
``[[join]]`` with ``table`` and ``on``; for a label also ``missing``, ``rename = {cell = "class"}``, ``separator``
and ``unit``.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from osler import table
from osler.case import Kind, Modality, Source
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


class _Join(BaseModel):
    model_config = _STRICT
    table: str
    on: str


class _File(BaseModel):
    model_config = _STRICT
    table: str
    case: str
    image: str | dict[str, str]
    patient: str = ""
    split: str = ""
    frame: int | None = None
    modality: Modality = ""
    missing: list[str] = []
    covariates: list[str] = []
    exclude: dict[str, list[str]] = {}
    join: list[_Join] = []
    label: dict[str, _Label] = {}


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
    data = _joined(path, plan)
    for column, cells in plan.exclude.items():
        _has(data, column)
        data = table.Table(data.path, data.columns, tuple(row for row in data.rows if row[column] not in cells))
    missing = table.MISSING | set(plan.missing)
    labels = tuple(_label(task, label, file) for task, label in plan.label.items())
    covariates = {name: name for name in plan.covariates}
    roles = table.Roles(plan.case, plan.patient, plan.split, labels, covariates, (), missing)
    patterns = {"image": plan.image} if isinstance(plan.image, str) else plan.image
    for pattern in patterns.values():
        for column in re.findall(r"\{([^{}]+)\}", pattern):
            _has(data, column)
    cases = table.cases(data, roles, partial(_sources, path, patterns, plan.frame, missing))
    if not cases.entries:
        first = f" (the first: {cases.problems[0]})" if cases.problems else ""
        raise Problem(f"none of the images that the cohort file describes is there{first}", path=path, fix="check it")
    return Listing(cases.entries, cases.questions, cases.grouping, cases.problems, cases.notes, plan.modality)


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
            known = _Label if first["loc"][0] == "label" else _Join if first["loc"][0] == "join" else _File
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
    data = _table(path, plan.table)
    for join in plan.join:
        other = _table(path, join.table)
        _has(data, join.on)
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
        rows = tuple({**blank, **found.get(row[join.on], {}), **row} for row in data.rows)
        data = table.Table(data.path, data.columns + new, rows)
    return data


def _table(folder: Path, name: str) -> table.Table:
    path = folder / name
    if not path.is_file():
        raise Problem("the cohort file names this table, but it is not there", path=path, root=folder)
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
        if any(row[column] in missing for column in re.findall(r"\{([^{}]+)\}", pattern)):
            continue
        path = folder / re.sub(r"\{([^{}]+)\}", lambda match: row[match[1]], pattern)
        if not path.exists():
            raise Problem("the cohort file describes this file, but it is not there", path=path, root=folder)
        sources[modality] = Source(path, frame=frame)
    if not sources:
        raise Problem("a row of the table names no image", path=folder)
    return sources
