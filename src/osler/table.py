"""Tables whose columns have roles: case, patient, labels, covariates, split; all others are metadata."""

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, overload

from osler.case import NOTHING, CaseId, Cells, Entry, Finding, Kind, Question, Role, Source, without_finding_first
from osler.problem import Problem

Row = Mapping[str, str]

SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = frozenset({"", "nan", "NaN", "NA", "N/A", "null", "NULL"})

_SPLITS: dict[str, Role] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("calib", "calibration"), "calibration"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
# Up to so many different whole numbers are taken as class numbers, more as a quantity.
_MOST_NUMBERED_CLASSES = 20
# So many different cells of a column are remembered, so that equal ones become one object: categories repeat, ids do
# not.
_MOST_SHARED = 1000


@dataclass(frozen=True)
class Table:
    """A table as it was read: every cell is text, stripped; blank where there was nothing."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Row]

    def column(self, name: str) -> Sequence[str]:
        """The cells of one column."""
        return self.rows.columns[name] if isinstance(self.rows, Rows) else [row[name] for row in self.rows]


class Rows(Sequence[Row]):
    """Rows that are kept by column, where equal cells are one object: a million rows fit into memory."""

    def __init__(self, columns: Mapping[str, Sequence[str]], count: int) -> None:
        self.columns, self._count = columns, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | Sequence[Row]:
        chosen = range(self._count)[number]
        return Cells(self.columns, chosen) if isinstance(chosen, int) else [self[i] for i in chosen]


@dataclass(frozen=True)
class Label:
    """The columns that answer one question.

    Attributes:
        task: its name.
        column: the one column, or empty where each class has its own.
        by_class: class to column of 0, 1 or blank (multilabel).
        kind, classes: ``None`` and ``()`` where the values decide.
        separator: between the classes of a multilabel cell; empty: ``|`` or ``;``.
        missing: cells that mean *unknown*, besides those of the table.
        rename: cell to class, e.g. ``{"1": "malignant"}``.
        unit: of a regression.
    """

    task: str
    column: str = ""
    by_class: Mapping[str, str] = field(default_factory=dict)
    kind: Kind | None = None
    classes: tuple[str, ...] = ()
    separator: str = ""
    missing: frozenset[str] = frozenset()
    rename: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""


@dataclass(frozen=True)
class Roles:
    """Which column is what; an empty name means that there is none.

    Attributes:
        case, patient, split: columns.
        labels: the questions.
        covariates: name to column.
        images: columns that only say where pixels are; they are no metadata.
        missing: cells that mean *unknown* in every column.
        placed: masks or boxes say what is asked, so that labels are not missed.
    """

    case: str
    patient: str = ""
    split: str = ""
    labels: tuple[Label, ...] = ()
    covariates: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    missing: frozenset[str] = MISSING
    placed: bool = False


@dataclass(frozen=True)
class Cases:
    """What a table says: see :class:`osler.layouts.Listing`."""

    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]
    grouping: str
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


def read(path: Path) -> Table:
    """A CSV (comma, semicolon or tab), TSV or Parquet file.

    Raises:
        Problem: unreadable, without rows, or with a column name twice, a row too long or text that is not UTF-8.
    """
    try:
        return _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise Problem("the table cannot be read", path=path, fix="save it as CSV in UTF-8") from error


def _csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        separator = max("\t" if path.suffix.lower() == ".tsv" else ",;\t", key=first.count)
        rows = csv.reader(chain([first], file), delimiter=separator, strict=True)
        stripped = ([cell.strip() for cell in row] for row in rows)
        return _by_column(path, (row for row in stripped if any(row)))


def _by_column(path: Path, rows: Iterator[list[str]]) -> Table:
    header = next(rows, [])
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise Problem(f"the column {twice[0]!r} is there twice", path=path, fix="rename one of them")
    columns: list[list[str]] = [[] for _ in header]
    known: list[dict[str, str]] = [{} for _ in header]
    count = 0
    for count, row in enumerate(rows, 1):
        if len(row) > len(header):
            what = f"row {count + 1} has more cells than the {len(header)} columns"
            raise Problem(what, path=path, fix="put cells that hold the separator in quotes")
        for column, same, cell in zip(columns, known, row, strict=False):
            column.append(same.setdefault(cell, cell) if len(same) < _MOST_SHARED else same.get(cell, cell))
        for column in columns[len(row) :]:
            column.append("")
    if not count:
        raise Problem("the table has no rows", path=path, fix="fill it")
    return Table(path, tuple(header), Rows(dict(zip(header, columns, strict=True)), count))


def _parquet(path: Path) -> Table:
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise Problem("reading Parquet needs pyarrow", path=path, fix="pip install 'osler[parquet]'") from error
    frame = pandas.read_parquet(path)
    body = ([_cell(value) for value in row] for row in frame.itertuples(index=False))
    return _by_column(path, chain([[str(name) for name in frame.columns]], body))


def _cell(value: Any) -> str:
    # pandas' missing value of whole numbers and texts is neither equal nor unequal to anything.
    if value is None or type(value).__name__ == "NAType" or value != value:
        return ""
    # A column of whole numbers with a gap comes as floats: 7.0 is the label 7.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def named_roles(table: Table, case: str, images: Iterable[str]) -> Roles:
    """Roles by name: ``patient, split, label, label.<task>, label.<task>.<class>, covariate.<name>``."""
    labels: dict[str, Label] = {}
    for column in table.columns:
        kind, _, rest = column.partition(".")
        task, _, name = rest.partition(".")
        if kind != "label":
            continue
        task = task or "label"
        before = labels.get(task, Label(task))
        if name:
            labels[task] = replace(before, kind="multilabel", by_class={**before.by_class, name: column})
        else:
            labels[task] = replace(before, column=column)
    clash = next((label.task for label in labels.values() if label.column and label.by_class), None)
    if clash:
        what = f"the task {clash!r} has both a column of its own and columns for its classes"
        raise Problem(what, path=table.path, fix="keep one of the two")
    there = set(table.columns)
    return Roles(
        case,
        "patient" if "patient" in there else "",
        "split" if "split" in there else "",
        tuple(labels.values()),
        {name.partition(".")[2]: name for name in table.columns if name.startswith("covariate.")},
        tuple(images),
    )


def cases(table: Table, roles: Roles, images: Callable[[Row], Mapping[str, Source]]) -> Cases:
    """The entries of a table, sorted by id; rows whose ``images`` raise a Problem are left out with it.

    Raises:
        Problem: a column is missing, a case id is blank or there twice, or a label cannot be understood.
    """
    _check_columns(table, roles)
    notes: list[str] = []
    asked = [(label, _question(table, label, roles.missing | label.missing, notes)) for label in roles.labels]
    if not roles.labels and not roles.placed:
        notes.append(f"No column says what the labels are; the columns are {', '.join(table.columns)}.")
    read = _Reader(table, roles, asked)
    entries, problems = [], []
    alone = 0
    for number, row in enumerate(table.rows):
        alone += bool(roles.patient) and row[roles.patient] in roles.missing
        try:
            sources = images(row)
        except Problem as problem:
            problems.append(problem)
            continue
        entries.append(read.entry(number, row, sources))
    if alone:
        notes.append(f"{alone} cases name no patient: each was taken as a patient of its own.")
    entries.sort(key=lambda entry: entry.id)
    grouping = f"column {roles.patient}" if roles.patient else ""
    return Cases(tuple(entries), tuple(question for _, question in asked), grouping, tuple(problems), tuple(notes))


class _Reader:
    """Rows to entries that share what is equal: columns, findings, splits."""

    def __init__(self, table: Table, roles: Roles, asked: Sequence[tuple[Label, Question]]) -> None:
        self.table, self.roles, self.asked = table, roles, asked
        said = [column for label in roles.labels for column in (label.column, *label.by_class.values()) if column]
        used = {roles.case, roles.patient, roles.split, *roles.images, *roles.covariates.values(), *said}
        self.said = tuple(said)
        self.covariates = {name: self._values(column) for name, column in roles.covariates.items()}
        self.metadata = {name: self._values(name) for name in table.columns if name not in used}
        self.known: dict[tuple[str, ...], tuple[Finding, ...]] = {}
        self.placed: dict[str, dict[str, list[Source]]] = {}

    def _values(self, column: str) -> list[float | str | None]:
        known: dict[str, float | str | None] = {}
        values = []
        for cell in self.table.column(column):
            value = known[cell] if cell in known else _value(cell, self.roles.missing)
            values.append(value if len(known) >= _MOST_SHARED else known.setdefault(cell, value))
        return values

    def entry(self, number: int, row: Row, sources: Mapping[str, Source]) -> Entry:
        roles = self.roles
        patient = row[roles.patient] if roles.patient else ""
        return Entry(
            id=row[roles.case],
            patient=row[roles.case] if patient in roles.missing else patient,
            images=self._images(number, sources),
            findings=self._findings(row),
            split=_split(self.table, row[roles.split], roles.missing) if roles.split else None,
            covariates=Cells(self.covariates, number) if self.covariates else NOTHING,
            metadata=Cells(self.metadata, number) if self.metadata else NOTHING,
        )

    def _findings(self, row: Row) -> tuple[Finding, ...]:
        cells = tuple(row[column] for column in self.said)
        if cells not in self.known:
            self.known[cells] = tuple(
                one
                for label, question in self.asked
                for one in _findings(self.table, row, label, question, self.roles)
            )
        return self.known[cells]

    def _images(self, number: int, sources: Mapping[str, Source]) -> Mapping[str, Source]:
        if len(sources) != 1:
            return sources
        [(name, source)] = sources.items()
        columns = self.placed.setdefault(name, {name: []})
        # Rows that were left out leave a gap, so that a case has one number in all of its columns.
        columns[name] += [source] * (number + 1 - len(columns[name]))
        return Cells(columns, number)


def _check_columns(table: Table, roles: Roles) -> None:
    wanted = [roles.case, roles.patient, roles.split, *roles.images, *roles.covariates.values()]
    for label in roles.labels:
        wanted += [label.column, *label.by_class.values()]
    absent = [name for name in wanted if name and name not in table.columns]
    if absent:
        fix = f"its columns are {', '.join(table.columns)}"
        raise Problem(f"there is no column {absent[0]!r}", path=table.path, fix=fix)
    names = table.column(roles.case)
    if len(set(names)) == len(names) and "" not in names:
        return
    ids: Counter[CaseId] = Counter(names)
    if ids[""]:
        raise Problem(f"{ids['']} rows have no case id in column {roles.case!r}", path=table.path, fix="fill them")
    twice = [name for name, count in ids.items() if count > 1]
    if twice:
        what = f"the case id {twice[0]!r} is there {ids[twice[0]]} times ({len(twice)} ids more than once)"
        raise Problem(
            what, path=table.path, fix="give each case a row of its own, or say in a column time when each was"
        )


def _question(table: Table, label: Label, missing: frozenset[str], notes: list[str]) -> Question:
    """What a label asks, as declared or as its values show."""
    if label.by_class:
        return Question(label.task, "multilabel", label.classes or tuple(label.by_class))
    values = [label.rename.get(cell, cell) for cell in table.column(label.column)]
    values = [value for value in values if value not in missing]
    kind = label.kind or _kind(label, values, notes)
    if not values and not label.classes:
        raise Problem(f"the label column {label.column!r} is blank in every row", path=table.path, fix="fill it")
    if kind == "regression":
        return Question(label.task, kind, label.classes or (label.task,), label.unit)
    parts = {
        part
        for value in set(values)
        for part in (_parts(value, label) if kind == "multilabel" else [_canonical(value)])
    }
    classes = label.classes or without_finding_first(sorted(parts, key=_natural))
    strange = sorted(parts - set(classes), key=_natural)
    if strange:
        what = f"the column {label.column!r} holds {strange[0]!r}, which is none of {', '.join(classes)}"
        raise Problem(what, path=table.path, fix="add it to the classes or to the missing values")
    return Question(label.task, kind, classes)


def _kind(label: Label, values: list[str], notes: list[str]) -> Kind:
    numbers = {_number(value) for value in set(values)}
    if values and None not in numbers:
        different = len(numbers)
        few = different <= min(_MOST_NUMBERED_CLASSES, max(5, len(values) // 3))
        if not few or any(number is None or number % 1 for number in numbers):
            return "regression"
        notes.append(f"The whole numbers of {label.column} were taken as {different} classes, not as a quantity.")
        return "multiclass"
    return "multilabel" if any("|" in value or ";" in value for value in set(values)) else "multiclass"


def _findings(table: Table, row: Row, label: Label, question: Question, roles: Roles) -> Iterable[Finding]:
    """What the reader stated; nothing where the cell is blank."""
    missing = roles.missing | label.missing
    if label.by_class:
        for name, column in label.by_class.items():
            if row[column] not in missing:
                yield Finding(label.task, name, probability=_yes_or_no(table, column, row[column]))
        return
    cell = label.rename.get(row[label.column], row[label.column])
    if cell in missing:
        return
    if question.kind == "regression":
        value = _number(cell)
        if value is None:
            what = f"the column {label.column!r} holds {cell!r}, which is no number"
            raise Problem(what, path=table.path, fix="correct it or name it as a missing value")
        yield Finding(label.task, question.classes[0], value=value, unit=label.unit)
    elif question.kind == "multilabel":
        present = _parts(cell, label)
        for name in question.classes:
            yield Finding(label.task, name, probability=float(name in present))
    else:
        name = _canonical(cell)
        rank = float(question.classes.index(name)) if question.kind == "ordinal" else None
        yield Finding(label.task, name, probability=1.0, value=rank)


def _parts(value: str, label: Label) -> list[str]:
    for separator in [label.separator] if label.separator else ["|", ";"]:
        if separator in value:
            return [part.strip() for part in value.split(separator) if part.strip()]
    return [value]


def _yes_or_no(table: Table, column: str, cell: str) -> float:
    if cell.lower() in _YES:
        return 1.0
    if cell.lower() in _NO:
        return 0.0
    what = f"the column {column!r} holds {cell!r}, which is neither 0, 1 nor blank"
    raise Problem(what, path=table.path, fix="correct it or name it as a missing value")


def _split(table: Table, cell: str, missing: frozenset[str]) -> Role | None:
    if cell in missing:
        return None
    role = split_role(cell)
    if role is None:
        raise Problem(f"{cell!r} is no split", path=table.path, fix="use train, validation, calibration or test")
    return role


def split_role(name: str) -> Role | None:
    """The part of a cohort that a word such as ``Training`` or ``val`` means, or ``None``."""
    return _SPLITS.get(name.casefold())


def _value(cell: str, missing: frozenset[str]) -> float | str | None:
    if cell in missing:
        return None
    number = _number(cell)
    return cell if number is None else number


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in cell else None


def _canonical(cell: str) -> str:
    """Class names as they are, but 1.0 is the class 1."""
    number = _number(cell)
    return str(int(number)) if number is not None and number % 1 == 0 and cell.endswith(".0") else cell


def _natural(name: str) -> tuple[int, float, str]:
    number = _number(name)
    return (1, 0.0, name) if number is None else (0, number, name)
