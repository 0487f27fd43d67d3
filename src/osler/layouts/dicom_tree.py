"""Any tree of DICOM files: one case a series, labels from an optional ``labels.csv``, outlines from SEG objects."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from osler import table
from osler.case import Entry, Outline, Question, Source
from osler.formats import dicom
from osler.layouts import Listing
from osler.problem import Problem

# What a row of labels.csv may be keyed by, the most exact first.
_KEYS = ("SeriesInstanceUID", "path", "StudyInstanceUID", "PatientID", "patient")
# Where a file lies, and what its header says.
_File = tuple[str, Mapping[str, str]]
_SEGMENTATION = "SEG"
_TASK = "mask"
_NOT_IMAGES = (_SEGMENTATION, "RTDOSE", "SR", "PR", "KO", "ANN", "SM")


def matches(path: Path) -> bool:
    """Whether a DICOM file lies anywhere below the folder."""
    return path.is_dir() and dicom.matches(path)


def read(path: Path) -> Listing:
    """Series by SeriesInstanceUID, patients by PatientID; ``labels.csv`` and segmentations ask, where they are there.

    A segmentation (SEG) outlines the series that it refers to, a class for each label of its segments. Localizers and
    objects that are no images are left out with a note, broken files with a problem.

    Raises:
        Problem: no image at all, or a ``labels.csv`` that names no series.
    """
    found, drawn, problems, notes = _series(path)
    if not found:
        raise Problem("there is no DICOM image in this folder", path=path, fix="give a folder with images")
    rows, sources = _rows(path, found)
    labels = next((path / name for name in ("labels.csv", "labels.tsv") if (path / name).is_file()), None)
    columns = tuple(rows[0])
    if labels is not None:
        columns, rows = _with_labels(labels, columns, rows)
    data = table.Table(labels or path, columns, tuple(rows))
    roles = table.named_roles(data, "SeriesInstanceUID", ("path",))
    roles = table.Roles(roles.case, "PatientID", roles.split, roles.labels, roles.covariates, roles.images)
    cases = table.cases(data, roles, lambda row: {"image": sources[row["SeriesInstanceUID"]]})
    grouping = "DICOM PatientID" if any(row["PatientID"] for row in rows) else ""
    entries, asked = _outlined(path, cases.entries, found, drawn, problems)
    if asked and any(question.task == _TASK for question in cases.questions):
        raise Problem(f"its column {_TASK} has the name of what segmentations answer", path=labels, fix="rename it")
    problems += cases.problems
    return Listing(entries, (*cases.questions, *asked), grouping, tuple(problems), (*notes, *cases.notes))


def _outlined(
    root: Path,
    entries: Sequence[Entry],
    found: Mapping[str, list[_File]],
    drawn: Sequence[str],
    problems: list[Problem],
) -> tuple[tuple[Entry, ...], tuple[Question, ...]]:
    """The entries with the segmentations that refer to their series, each segment an outline of its own."""
    outlines: dict[str, list[Outline]] = defaultdict(list)
    for file in drawn:
        path = Path(file)
        try:
            seg = dicom.segments(path)
            if seg is None:
                continue
            each = [Outline(_TASK, Source(path, key=str(one.number)), one.label) for one in seg.segments]
            for uid in _drawn_on(seg, found):
                outlines[uid] += each
        except Problem as problem:
            problems.append(Problem(problem.what, path=path, root=root, fix=problem.fix))
    if not outlines:
        return tuple(entries), ()
    classes = tuple(sorted({str(outline.values) for some in outlines.values() for outline in some}))
    values = tuple((number,) for number in range(1, len(classes) + 1))
    asked = Question(_TASK, "segmentation", classes, values=values)
    return tuple(replace(entry, outlines=tuple(outlines.get(entry.id, ()))) for entry in entries), (asked,)


def _drawn_on(seg: dicom.Segments, found: Mapping[str, list[_File]]) -> list[str]:
    """The series of the cohort that a segmentation was drawn on: those it names, else the one in its space.

    Raises:
        Problem: none, or one of another patient.
    """
    uids = [uid for uid in seg.series if uid in found]
    if not seg.series:
        study = [uid for uid, files in found.items() if files[0][1]["StudyInstanceUID"] == seg.study]
        uids = [uid for uid in study if seg.frame and dicom.frame_of_reference(Path(found[uid][0][0])) == seg.frame]
        if len(uids) > 1:
            what = f"it does not say which of {len(uids)} series in its space it was drawn on"
            raise Problem(what, fix="remove the other series")
    if not uids:
        raise Problem("the series that this segmentation was drawn on is not here", fix="put it beside it")
    if any(seg.patient and seg.patient != found[uid][0][1]["PatientID"] for uid in uids):
        raise Problem("this segmentation and the series that it was drawn on are of two patients", fix="check both")
    return uids


def _series(root: Path) -> tuple[Mapping[str, list[_File]], list[str], list[Problem], list[str]]:
    """The files of each series, the segmentations, what is broken, and what was left out."""
    found: dict[str, list[_File]] = defaultdict(list)
    drawn: list[str] = []
    problems: list[Problem] = []
    skipped: Counter[str] = Counter()
    paths = list(_files(root))
    for path, tags in zip(paths, dicom.headers_of(paths), strict=True):
        if tags is None:
            skipped["not DICOM"] += 1
        elif isinstance(tags, Problem):
            # An empty one may have been a slice: never skipped silently.
            problems.append(Problem(tags.what, path=tags.path, root=root, fix=tags.fix))
        elif tags["Modality"] == _SEGMENTATION:
            drawn.append(path)
        elif not tags["Rows"] or tags["Modality"] in _NOT_IMAGES:
            skipped["not an image"] += 1
        elif "LOCALIZER" in tags["ImageType"].upper():
            skipped["a localizer"] += 1
        elif not tags["SeriesInstanceUID"]:
            problems.append(Problem("it has no SeriesInstanceUID", path=path, root=root, fix="export it again"))
        else:
            found[tags["SeriesInstanceUID"]].append((path, tags))
    return found, drawn, problems, [f"{count} files were left out: {why}." for why, count in sorted(skipped.items())]


def _files(root: Path) -> Iterator[str]:
    # Names, not paths: making a path takes as long as reading a header.
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(place, name) for name in sorted(names) if not name.startswith("."))  # noqa: PTH118


def _rows(root: Path, found: Mapping[str, list[_File]]) -> tuple[list[dict[str, str]], dict[str, Source]]:
    """A row for each series, and where it lies: one file, or the folder that holds all of them."""
    rows, sources = [], {}
    for uid, files in sorted(found.items()):
        first, tags = files[0]
        folders = {os.path.dirname(path) for path, _ in files}  # noqa: PTH120
        place = Path(first if len(files) == 1 else os.path.commonpath(folders))
        sources[uid] = Source(place, key="" if len(files) == 1 else uid)
        names = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesDescription", "PatientSex")
        rows.append({**{name: tags[name] for name in names}, "path": place.relative_to(root).as_posix()})
    return rows, sources


def _with_labels(
    path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]
) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """The rows widened by ``labels.csv``, looked up by the most exact key that it has."""
    labels = table.read(path)
    key = next((name for name in _KEYS if name in labels.columns), None)
    if key is None:
        fix = f"its columns are {', '.join(labels.columns)}"
        raise Problem(f"none of its columns is {', '.join(_KEYS)}", path=path, fix=fix)
    twice = [cell for cell, count in Counter(row[key] for row in labels.rows).items() if count > 1]
    if twice:
        raise Problem(f"{key} {twice[0]!r} is there twice", path=path, fix="keep one row for each")
    new = tuple(name for name in labels.columns if name not in columns and name != key)
    by_key = {row[key].strip("/"): row for row in labels.rows}
    tag = "PatientID" if key == "patient" else key
    found = [by_key.get(row[tag], {}) for row in rows]
    if not any(found):
        raise Problem(f"its column {key} names none of the {len(rows)} series", path=path, fix="check the values")
    widened = [{**row, **{name: more.get(name, "") for name in new}} for row, more in zip(rows, found, strict=True)]
    return columns + new, widened
