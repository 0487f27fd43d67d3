"""What is in a cohort, what is wrong with it, and what to do about each: before anything is trained on it.

Every image is read once, by a few threads; each check of ``osler.inspections`` keeps a small array of it, and then
finds its troubles among those. Nothing here is quadratic, and memory is a fixed number of bytes a case.
"""

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import burned_in, catalog, cohort, data, files, formats, outlines
from osler.case import Entry, Question, Source
from osler.cohort import Cohort, label_of
from osler.inspections import Evidence, Look, Trouble, plane
from osler.problem import Problem, shown_path
from osler.progress import Progress
from osler.pseudonym import pseudonym, remember

Say = Callable[[str], None]
Fact = str | float | None

# In the place of a view: what cannot be read cannot be shown.
_NO_PICTURE = "\0"
# Of a sequence so many moments are looked at: an odd number, so that the middle one is that of all.
_MOMENTS = 9


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in a cohort.

    Attributes:
        summary: what is there, as plain data; its keys are on the docs page on inspecting.
        problems: what is wrong, the gravest first; cases by their own ids.
        unreadable: cases, or files, that could not be read, and why.
    """

    summary: Mapping[str, Any]
    problems: tuple[Trouble, ...]
    unreadable: tuple[Problem, ...]


def inspect(
    cohort_path: Path | str,
    out: Path | str,
    *,
    cohort_file: Path | str | None = None,
    masked: bool = False,
    say: Say = print,
) -> Inspection:
    """Looks at every case of a cohort; writes ``inspection.json``, ``inspection.html``, ``names.csv`` into ``out``.

    Args:
        cohort_path: the cohort, in any layout.
        out: folder to write into.
        cohort_file: a ``cohort.toml`` outside the cohort's folder.
        masked: blank in the thumbnails what looks like burned-in text.
        say: takes one line of progress at a time.

    Raises:
        Problem: there is no cohort, none of its cases can be read, or ``out`` cannot be written.
    """
    out = Path(out)
    files.folder(out)
    found = cohort.read(Path(cohort_path), None if cohort_file is None else Path(cohort_file))
    views = _views(found)
    seen: dict[str, Evidence] = {}
    failed: dict[str, dict[str, Problem]] = {}
    for view, cases in views.items():
        say(f"looking at {len(cases.entries):,} {'cases' if not view else f'images {view}'}")
        evidence, failed[view] = gather(cases, say)
        if evidence.entries:
            seen[view] = evidence
    if not seen:
        first = next(problem for some in failed.values() for problem in some.values())
        what = f"none of the {len(found.entries)} cases can be read (the first: {first.clause})"
        raise Problem(what, fix="check the files")
    kept = {entry.id for evidence in seen.values() for entry in evidence.entries}
    whole = Evidence(tuple(e for e in found.entries if e.id in kept), found.questions, found.grouping)
    unread = list(failed.values())
    told = [(trouble, _NO_PICTURE) for trouble in _unreadable(found.problems, failed.pop("", {}))]
    told += [(_of(v, trouble), _NO_PICTURE) for v, some in failed.items() for trouble in _unreadable((), some)]
    for name in catalog.names("inspections"):
        say(f"checking {name.replace('_', ' ')}")
        module = catalog.find("inspections", name)
        for view, evidence in (seen if getattr(module, "PIXELS", True) else {"": whole}).items():
            told += [(_of(view, trouble), view) for trouble in module.find(evidence)]
    told.sort(key=lambda one: ("stop", "repair", "look").index(one[0].severity))
    problems = (*found.problems, *(problem for some in unread for problem in some.values()))
    made = Inspection(_summary(found, whole, seen, len(problems)), tuple(one for one, _ in told), problems)
    say("drawing the page")
    _write(out, made, seen, [view for _, view in told], masked)
    return made


def _views(found: Cohort) -> dict[str, Cohort]:
    """Each of several modalities as a cohort of its own, under its name; a cohort of one image each under no name.

    What is outlined or boxed is held against the first image of its case; columns and patients are looked at with the
    modality that most cases have: neither is looked at again with every other.
    """
    names = [name for name, _ in Counter(name for entry in found.entries for name in entry.images).most_common()]
    if len(names) < 2:
        return {"": found}

    def alone(entry: Entry, name: str) -> Entry:
        made = replace(entry, images={name: entry.images[name]})
        if name != (names[0] if names[0] in entry.images else next(iter(entry.images))):
            made = replace(made, metadata={}, covariates={})
        if name != next(iter(entry.images)):
            whole = tuple(finding for finding in entry.findings if finding.box is None and not finding.frame)
            made = replace(made, findings=whole, outlines=())
        return made

    return {
        name: replace(
            found,
            entries=tuple(alone(entry, name) for entry in found.entries if name in entry.images),
            grouping=found.grouping if name == names[0] else "",
        )
        for name in names
    }


def _of(view: str, trouble: Trouble) -> Trouble:
    return replace(trouble, message=f"in {view}: {trouble.message}") if view else trouble


def _unreadable(listed: Sequence[Problem], cases: Mapping[str, Problem]) -> list[Trouble]:
    """One trouble for each reason: the files differ, what to do about them does not. Reasons name no file."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, problem in [*((shown_path(one.path) if one.path else "", one) for one in listed), *cases.items()]:
        reasons.setdefault((problem.what, problem.fix or "look at them"), []).append(name)
    return [
        Trouble("unreadable", tuple(filter(None, names)), f"{len(names):,} left out, unread: {what}", fix)
        for (what, fix), names in reasons.items()
    ]


# --- one pass over the images -------------------------------------------------------------------------------


def gather(found: Cohort, say: Say = print) -> tuple[Evidence, dict[str, Problem]]:
    """Reads each image once and keeps what the checks need of it.

    Returns:
        The evidence, of no case where none can be read, and for each that cannot the reason.
    """
    checks = {name: catalog.find("inspections", name) for name in catalog.names("inspections")}
    measures = {name: module.measure for name, module in checks.items() if hasattr(module, "measure")}
    fields = _Fields()
    measured: dict[str, NDArray[Any]] = {}
    kept: list[Entry] = []
    problems: dict[str, Problem] = {}
    progress = Progress(len(found.entries), say)
    for number, (entry, result) in enumerate(_in_order(found, measures), start=1):
        if isinstance(result, Problem):
            problems[entry.id] = result
        else:
            facts, rows = result
            for name, row in rows.items():
                if name not in measured:
                    measured[name] = np.empty((len(found.entries), *row.shape), row.dtype)
                measured[name][len(kept)] = row
            fields.add(facts)
            kept.append(entry)
        progress(number)
    measured = {name: rows[: len(kept)] for name, rows in measured.items()}
    return Evidence(tuple(kept), found.questions, found.grouping, fields.columns, measured), problems


Measure = Callable[[Look], NDArray[Any]]
Looked = tuple[dict[str, Fact], dict[str, NDArray[Any]]]


def _in_order(found: Cohort, measures: Mapping[str, Measure]) -> Iterator[tuple[Entry, Looked | Problem]]:
    """Entries with what was seen of them; a bounded number is under way, however many there are."""
    entries = found.entries
    look = partial(_look, questions=found.questions, measures=measures)
    threads = os.cpu_count() or 1
    size = max(1, min(64, len(entries) // (8 * threads)))
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[tuple[Sequence[Entry], Future[list[Looked | Problem]]]] = deque()
        try:
            for start in range(0, len(entries), size):
                chunk = entries[start : start + size]
                under_way.append((chunk, pool.submit(lambda some: [look(one) for one in some], chunk)))
                if len(under_way) > 2 * threads:
                    done, future = under_way.popleft()
                    yield from zip(done, future.result(), strict=True)
            while under_way:
                done, future = under_way.popleft()
                yield from zip(done, future.result(), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _look(entry: Entry, questions: Sequence[Question], measures: Mapping[str, Measure]) -> Looked | Problem:
    (source,) = entry.images.values()
    try:
        # An outline must fit each moment of its image; everything else is looked at in some of them.
        drawn = entry.outlines or any(finding.frame for finding in entry.findings)
        image = formats.read(source, None if drawn else _MOMENTS)
        data.require_numbers(image.array)
        # What is outlined must fit its image, else the case is of no use.
        outlines.read(entry, image, questions)
        look = Look(entry, image, plane(image))
        return _facts(look, source), {name: measure(look) for name, measure in measures.items()}
    except Problem as problem:
        return Problem(problem.what, path=problem.path or source.path, fix=problem.fix)
    except MemoryError:
        return Problem("the image does not fit into memory", path=source.path, fix="use a machine with more memory")


def _facts(look: Look, source: Source) -> dict[str, Fact]:
    image = look.image
    depth, height, width = image.size
    facts: dict[str, Fact] = {"height": height, "width": width, "depth": depth}
    facts |= {"frames": image.length, "channels": image.channels, "dtype": image.array.dtype.name}
    facts |= {"modality": image.modality or None, "unit": image.unit or None}
    spacing = image.spacing or (None, None, None)
    facts |= {f"spacing_{axis}": _few(value) for axis, value in zip("zyx", spacing, strict=True)}
    facts |= {"geometry": type(image.geometry).__name__, "min": _few(look.plane.min()), "max": _few(look.plane.max())}
    facts |= {"mean": _few(look.plane.mean()), "std": _few(look.plane.std())}
    facts = {f"image.{name}": value for name, value in facts.items()}
    module = formats.find(source.path) if source.index is None else None
    if module is not None and hasattr(module, "facts"):
        facts |= {f"header.{name}": value for name, value in module.facts(source.path).items()}
    return facts


def _few(value: Any) -> float | None:
    """Four significant digits: enough for a check, and equal values can share their memory."""
    return None if value is None else float(f"{value:.4g}")


class _Fields:
    """Columns that grow by a case at a time; a value that comes again costs one pointer."""

    def __init__(self) -> None:
        self.columns: dict[str, list[Fact]] = {}
        self._shared: dict[tuple[type, Fact], Fact] = {}
        self._count = 0

    def add(self, facts: Mapping[str, Fact]) -> None:
        for name in facts.keys() - self.columns.keys():
            self.columns[name] = [None] * self._count
        for name, column in self.columns.items():
            value = facts.get(name)
            column.append(self._shared.setdefault((type(value), value), value))
        self._count += 1


# --- what is written ----------------------------------------------------------------------------------------


_AXES = ("frames", "depth", "height", "width")
_VALUES = ("dtype", "channels", "modality", "unit")
_DRAWN = {"width": "width, pixels", "height": "height, pixels", "mean": "mean of the image"}


def _summary(found: Cohort, whole: Evidence, seen: Mapping[str, Evidence], unreadable: int) -> dict[str, Any]:
    entries = whole.entries

    def counted(told: Callable[[Mapping[str, list[Fact]]], Iterable[str]]) -> dict[str, int]:
        """Of several modalities each value under its name."""
        by_view = {view: _counts(told(evidence.fields)) for view, evidence in seen.items()}
        return {f"{v}: {one}" if v else one: n for v, some in by_view.items() for one, n in some.items()}

    columns = []
    if "covariates" in catalog.names("inspections"):
        columns = [asdict(one) for one in catalog.find("inspections", "covariates").propose(entries, found.questions)]
    missing: dict[str, int] = {}
    for name in sorted({name for entry in entries for name in (*entry.covariates, *entry.metadata)}):
        missing[name] = sum({**e.metadata, **e.covariates}.get(name) in (None, "") for e in entries)
    return {
        "cases": len(entries),
        "unreadable": unreadable,
        "patients": len({entry.patient for entry in entries}) if found.grouping else None,
        "grouping": found.grouping,
        "splits": _counts(entry.split or "none" for entry in entries),
        "classes": {question.task: _classes(question, entries) for question in found.questions},
        "images": {view: len(evidence.entries) for view, evidence in seen.items() if view},
        "sizes": counted(_sizes),
        "spacings": counted(_spacings),
        "values": {name: counted(partial(_words, name)) for name in _VALUES},
        "intensities": {
            f"{view} {name}".strip(): _spread(evidence.fields[f"image.{name}"])
            for view, evidence in seen.items()
            for name in ("min", "mean", "max", "std")
        },
        "covariates": columns,
        "missing": {name: count for name, count in missing.items() if count},
        "notes": list(found.notes),
    }


def _sizes(fields: Mapping[str, list[Fact]]) -> Iterator[str]:
    for size in zip(*(fields[f"image.{axis}"] for axis in _AXES), strict=True):
        yield " x ".join(str(n) for n in size if n is not None)


def _spacings(fields: Mapping[str, list[Fact]]) -> Iterator[str]:
    for size in zip(*(fields[f"image.spacing_{axis}"] for axis in "zyx"), strict=True):
        yield "unknown" if size[2] is None else " x ".join("-" if n is None else f"{n:.3g}" for n in size)


def _words(name: str, fields: Mapping[str, list[Fact]]) -> Iterator[str]:
    return map(str, fields[f"image.{name}"])


def _counts(values: Iterable[str], most: int = 12) -> dict[str, int]:
    """How often each value comes, the most frequent first; beyond ``most`` together, as ``other``."""
    counted = Counter(values).most_common()
    rest = sum(count for _, count in counted[most:])
    return dict(counted[:most]) | ({"other": rest} if rest else {})


def _classes(question: Question, entries: Sequence[Entry]) -> dict[str, int]:
    """Cases of each class (several of one case where the task allows it), and those without a label.

    Of what is outlined in files only the number of those cases: what is in them is not looked at here.
    """
    if any(outline.task == question.task for entry in entries for outline in entry.outlines):
        counted = Counter(label_of(entry, question) or "unlabelled" for entry in entries)
        return {"outlined": counted["outlined"], "nothing": counted["nothing"], "unlabelled": counted["unlabelled"]}
    stated = [[f for f in entry.findings if f.task == question.task] for entry in entries]
    there = ({f.name for f in findings if f.probability == 1 or f.value is not None} for findings in stated)
    known = Counter(name for names in there for name in names)
    return {name: known[name] for name in question.classes} | {"unlabelled": sum(not findings for findings in stated)}


def _spread(values: Sequence[Fact]) -> list[float]:
    """Quantiles 0, 0.05, 0.25, 0.5, 0.75, 0.95 and 1."""
    numbers = np.array([value for value in values if value is not None], float)
    return [float(f"{x:.4g}") for x in np.quantile(numbers, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])]


def _write(out: Path, made: Inspection, seen: Mapping[str, Evidence], views: Sequence[str], masked: bool) -> None:
    from osler import report

    problems = [
        {
            "kind": trouble.kind,
            "severity": trouble.severity,
            "cases": [pseudonym(case) for case in trouble.cases],
            "message": trouble.message,
            "fix": trouble.fix,
            "groups": [[pseudonym(case) for case in group] for group in trouble.groups],
        }
        for trouble in made.problems
    ]
    content = {"schema_version": 1, "summary": made.summary, "problems": problems}
    try:
        files.replaced(out / "inspection.json", json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False))
        remember(out, sorted({case for trouble in made.problems for case in trouble.cases}))
        by_id = {view: {entry.id: entry for entry in evidence.entries} for view, evidence in seen.items()}
        # What the table alone says is shown by whatever image a case has.
        by_id[""] = {case: entry for some in reversed(by_id.values()) for case, entry in some.items()}
        told = zip(made.problems, views, strict=True)
        shown = [_pictures(trouble, by_id.get(view, {}), masked) for trouble, view in told]
        drawn = {
            f"{view}: {title}" if view else title: [float(v or 0) for v in evidence.fields[f"image.{axis}"]]
            for view, evidence in seen.items()
            for axis, title in _DRAWN.items()
        }
        report.inspection_page(content, shown, drawn, out / "inspection.html")
    except OSError as error:
        raise files.unwritten(out, error) from error


def _pictures(
    trouble: Trouble, entries: Mapping[str, Entry], masked: bool, groups: int = 4, cases: int = 6
) -> list[list[dict[str, Any]]]:
    """Rows of a few cases each, copies side by side: pseudonym, labels, split and picture."""
    from osler import explanation

    rows = [group[:cases] for group in trouble.groups[:groups]] or [trouble.cases[: 2 * cases]]
    shown = []
    for row in rows:
        cards = []
        for entry in (entries[case] for case in row if case in entries):
            try:
                (source,) = entry.images.values()
                picture = explanation.picture(formats.read(source, _MOMENTS))
            except Problem:
                continue
            labels = sorted({f.name for f in entry.findings if f.probability == 1})
            facts = ", ".join([*labels, *([entry.split] if entry.split else [])])
            picture = burned_in.blanked(picture) if masked else picture
            cards.append({"case": pseudonym(entry.id), "facts": facts, "picture": picture})
        shown.append(cards)
    return [row for row in shown if row]


def in_lines(made: Inspection) -> list[str]:
    """What was found, a line each, for a terminal."""
    lines = [f"{trouble.severity}: {trouble.message}; {trouble.fix}" for trouble in made.problems]
    return lines or ["nothing wrong was found"]
