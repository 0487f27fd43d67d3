"""A CSV, TSV or Parquet table with a column ``image`` (or ``image.<modality>``); paths are relative to it.

Other columns: ``case, patient, label, label.<task>, label.<task>.<class>, split, covariate.<name>``; ``mask`` or
``mask.<class>`` with files, several of a case separated by ``;``; ``boxes`` with all boxes of a case in a cell, or a
row for each box with ``x, y, width, height`` or ``xmin, ymin, xmax, ymax`` and ``class``. All the rest is metadata.
An image may be a folder of pictures: a loop. With a column ``time`` (days, or dates) several rows of one case are its
visits: one case, whose image is their sequence.
"""

import csv
import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from osler import annotations, table, visits
from osler.case import Source
from osler.layouts import Listing
from osler.problem import Problem


def matches(path: Path) -> bool:
    """Whether this is a table, or a folder with a table that has a column ``image``."""
    return path.suffix.lower() in table.SUFFIXES if path.is_file() else bool(_tables(path))


def _tables(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in table.SUFFIXES and path.is_file())
    return [path for path in paths if any(map(_is_image, _columns(path)))]


def _columns(path: Path) -> list[str]:
    """The header alone; nothing for a file that is not a table."""
    try:
        if path.suffix.lower() == ".parquet":
            return list(table.read(path).columns)
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
        return [cell.strip() for cell in next(csv.reader([first], delimiter=max(",;\t", key=first.count)), [])]
    except (OSError, ValueError, csv.Error, Problem):
        return []


def _is_image(column: str) -> bool:
    return column == "image" or column.startswith("image.")


def read(path: Path) -> Listing:
    """The cases of the table; without a column ``case`` the image's own name is its id.

    Raises:
        Problem: several tables, no column ``image``, a misspelt label, or none of the files is there.
    """
    if path.is_dir():
        found = _tables(path)
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise Problem(f"several tables have a column image: {names}", path=path, fix="give the one to read")
        path = found[0]
    data = table.read(path)
    images = [column for column in data.columns if _is_image(column)]
    if not images:
        fix = f"its columns are {', '.join(data.columns)}; name them so or write a cohort file"
        raise Problem("the table has no column image or image.<modality>", path=path, fix=fix)
    case = "case" if "case" in data.columns else images[0]
    series = _visits(data, case, images)
    data = series.table
    roles = table.named_roles(data, case, images)
    masks, boxes = annotations.mask_columns(data, path.parent), annotations.box_columns(data)
    said = [column for label in roles.labels for column in (label.column, *label.by_class.values()) if column]
    same = {column for column in (*images, *said, roles.patient, roles.split) if column}
    drawn = annotations.Annotated(data, case, masks=masks, boxes=boxes, same=sorted(same))
    masked = [column for column in data.columns if column == "mask" or column.startswith("mask.")]
    roles = replace(roles, images=(*images, *masked, *sorted(drawn.used)), placed=bool(drawn.questions))
    if not roles.labels and not drawn.questions:
        alike = difflib.get_close_matches("label", [name.lower() for name in data.columns], cutoff=0.75)
        if alike:
            fix = f"rename {alike[0]!r}; its columns are {', '.join(data.columns)}"
            raise Problem("the table has no column label or label.<task>", path=path, fix=fix)
    cases = drawn.add(table.cases(drawn.data, roles, partial(_looked, path.parent, images, series, drawn)))
    if not cases.entries:
        first = f" (the first: {cases.problems[0].clause})" if cases.problems else ""
        what = f"none of the {len(data.rows)} cases has its files{first}"
        raise Problem(what, path=path, fix="paths are relative to the table")
    problems, notes = cases.problems + series.problems, cases.notes + series.notes
    return Listing(cases.entries, cases.questions, cases.grouping, problems, notes)


def _visits(data: table.Table, case: str, images: list[str]) -> visits.Visits:
    """Rows of one case by their time, unless rows are boxes, or masks say where things are in one image."""
    placed = annotations.mask_columns(data, data.path.parent) or annotations.box_columns(data)
    if case != "case" or "time" not in data.columns or placed:
        return visits.Visits(data)
    same = [column for column in ("patient", "split") if column in data.columns]
    return visits.gathered(data, case, "time", images=images, same=same)


def _looked(
    folder: Path, columns: list[str], series: visits.Visits, drawn: annotations.Annotated, row: table.Row
) -> Mapping[str, Source]:
    sources = visits.images(series, row.get("case", ""), row, partial(_sources, folder, columns))
    drawn.look(row, sources)
    return sources


def _sources(folder: Path, columns: list[str], row: table.Row) -> Mapping[str, Source]:
    sources = {}
    for column in columns:
        if row[column] in table.MISSING:
            continue
        path = folder / row[column]
        if not path.exists():
            fix = "put it there, or correct its path, which is relative to the table"
            raise Problem("the table names this file, but it is not there", path=path, root=folder, fix=fix)
        sources[column.partition(".")[2] or "image"] = Source(path)
    if not sources:
        raise Problem("a row of the table names no image", path=folder, fix="name one in it, or delete the row")
    return sources
