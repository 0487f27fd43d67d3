"""Rows of a table that are visits of one case, in order of time, become one case whose image is their sequence."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, get_args

from osler.case import CaseId, Source
from osler.problem import Problem
from osler.table import MISSING, Row, Table

Unit = Literal["seconds", "minutes", "hours", "days", "weeks", "years"]
UNITS: tuple[Unit, ...] = get_args(Unit)
# A year is that of Julius Caesar, 365.25 days.
_SECONDS = dict(zip(UNITS, (1.0, 60.0, 3600.0, 86400.0, 604800.0, 31557600.0), strict=True))
_AGES = 1000 * _SECONDS["years"]
# Dates, and dates with times, without anything between their parts, by their length.
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}


@dataclass(frozen=True)
class Visits:
    """A table with one row for each case, and the rows that it was made of.

    Attributes:
        table: each case as its last visit states it: that is when the diagnosis is made. A cell that is blank there
            has what the other visits say, where they all say the same.
        of: of each case with several visits, their seconds from the first and their rows, in order.
        problems: visits and cases that were left out, and why.
        notes: what was assumed, a sentence each.
    """

    table: Table
    of: Mapping[CaseId, Sequence[tuple[float, Row]]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


def gathered(
    data: Table,
    case: str,
    time: str,
    *,
    images: Sequence[str],
    same: Sequence[str] = (),
    unit: Unit = "days",
    missing: frozenset[str] = MISSING,
) -> Visits:
    """The table by cases. A case of one row is left as it is, whether it has a time or not.

    Args:
        data: the table.
        case, time: columns; times are numbers, or dates and times as in ISO 8601 (2026-01-31, 20260131).
        images: columns that say where pixels are: rows of one case with one time and one image are copies.
        same: columns that visits of one case may not differ in (patient, split).
        unit: of numbers.
        missing: cells that say nothing.
    """
    counts = Counter(data.column(case))
    if all(count == 1 for name, count in counts.items() if name):
        return Visits(data)
    rows: dict[CaseId, list[Row]] = {}
    for row in data.rows:
        rows.setdefault(row[case], []).append(row)
    kept: list[Row] = []
    of: dict[CaseId, list[tuple[float, Row]]] = {}
    problems: list[Problem] = []
    copies = together = 0
    apart: dict[str, None] = {}
    for name, some in rows.items():
        if len(some) == 1 or not name:
            kept += some
            continue
        try:
            timed, left = _timed(data, name, some, time, _SECONDS[unit], missing)
            for column in same:
                _check_same(data, name, some, column, missing)
        except Problem as problem:
            problems.append(problem)
            continue
        problems += left
        different: dict[tuple[float, ...] | tuple[float | str, ...], tuple[float, Row]] = {}
        for second, row in timed:
            _, first = different.setdefault((second, *(row[column] for column in images)), (second, row))
            apart |= dict.fromkeys(column for column in data.columns if row[column] != first[column])
        copies += len(timed) - len(different)
        timed = list(different.values())
        together += len(timed) - len({second for second, _ in timed})
        kept.append(_merged([row for _, row in timed], data.columns, missing))
        if len(timed) > 1:
            of[name] = [(second - timed[0][0], row) for second, row in timed]
    notes = [f"{len(of)} cases are series of visits: their labels and covariates are those of the last visit."]
    differ = f"; of those that differ in {', '.join(apart)} the first one counts" if apart else ""
    notes += [f"{copies} rows that repeat an image at the same time were left out{differ}."] if copies else []
    notes += [f"{together} visits have the time of another one: they were taken in the order of the table."] * bool(
        together
    )
    return Visits(Table(data.path, data.columns, kept), of, tuple(problems), tuple(notes) if of else ())


def images(
    visits: Visits, case: CaseId, row: Row, find: Callable[[Row], Mapping[str, Source]]
) -> Mapping[str, Source]:
    """Where the images of a case are: of a series of visits one source for all of them.

    Args:
        visits: the table by cases.
        case: its id.
        row: its row there.
        find: gives the images of one row.

    Raises:
        Problem: from ``find``.
    """
    if case not in visits.of:
        return find(row)
    found: dict[str, list[tuple[float, Source]]] = {}
    for second, visit in visits.of[case]:
        for name, source in find(visit).items():
            found.setdefault(name, []).append((second, source))
    return {name: _series(some) for name, some in found.items()}


def _series(some: Sequence[tuple[float, Source]]) -> Source:
    last = some[-1][1]
    if len(some) == 1:
        return last
    return Source(last.path, visits=tuple((second - some[0][0], source) for second, source in some))


def _timed(
    data: Table, name: CaseId, rows: Sequence[Row], time: str, factor: float, missing: frozenset[str]
) -> tuple[list[tuple[float, Row]], list[Problem]]:
    """Rows with their seconds, in order; and what is to be said of those that have none."""
    timed = [(_second(row[time], factor), row) for row in rows if row[time] not in missing]
    wrong = next((row[time] for second, row in timed if second is None), None)
    if wrong is not None:
        what = f"a visit of case {name} has the time {wrong!r}, which is neither a number nor a date"
        raise Problem(what, path=data.path, fix="correct it, or write 2026-01-31")
    if len({isinstance(second, tuple) for second, _ in timed}) > 1:
        what = f"some visits of case {name} have a date and others a number as their time"
        raise Problem(what, path=data.path, fix="write all in one way")
    if not timed:
        what = f"none of the {len(rows)} visits of case {name} says when it was, so that their order is unknown"
        raise Problem(what, path=data.path, fix=f"fill the column {time!r}, or give each image a case of its own")
    blank = len(rows) - len(timed)
    what = f"{blank} of the {len(rows)} visits of case {name} do not say when they were: they are left out"
    left = [Problem(what, path=data.path, fix=f"fill the column {time!r}")] if blank else []
    plain = [(second[0] if isinstance(second, tuple) else second or 0.0, row) for second, row in timed]
    # Sorting keeps the order of the table among equal times.
    return sorted(plain, key=lambda pair: pair[0]), left


def _second(cell: str, factor: float) -> float | tuple[float] | None:
    """A number in seconds; a date as seconds in brackets, so that the two are not mixed; ``None`` for neither."""
    try:
        number = float(cell)
    except ValueError:
        return _date(cell)
    if not math.isfinite(number):
        return None
    # Nobody lives for a thousand years: 20260131 is a day, also where a table keeps whole numbers as 20260131.0.
    dated = _date(cell.removesuffix(".0")) if number * factor > _AGES else None
    return number * factor if dated is None else dated


def _date(cell: str) -> tuple[float] | None:
    try:
        pattern = _COMPACT.get(len(cell), "") if cell.isdecimal() else ""
        stamp = datetime.strptime(cell, pattern) if pattern else datetime.fromisoformat(cell)
    except ValueError:
        return None
    return ((stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp(),)


def _check_same(data: Table, name: CaseId, rows: Sequence[Row], column: str, missing: frozenset[str]) -> None:
    stated = sorted({row[column] for row in rows} - missing)
    if len(stated) > 1:
        what = f"the visits of case {name} have several values in column {column!r}: {', '.join(stated[:3])}"
        raise Problem(what, path=data.path, fix="give each of them a case of its own")


def _merged(rows: Sequence[Row], columns: Sequence[str], missing: frozenset[str]) -> Row:
    last, others = rows[-1], rows[:-1]
    made = dict(last)
    for column in columns:
        if last[column] in missing:
            stated = {row[column] for row in others} - missing
            made[column] = stated.pop() if len(stated) == 1 else last[column]
    return made
