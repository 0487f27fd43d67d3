"""Many cases at once, from files, series and folders, and what is written of each."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import catalog, covariates, data, files, layouts, linking, modalities, model, writing
from osler.case import DENSE, Answer, Case, Diagnosis, Entry
from osler.diagnosis import diagnose
from osler.model import Model
from osler.problem import Problem, shown_path
from osler.pseudonym import pseudonym, remember

# What lies beside images without being one.
_TABLES = (".csv", ".tsv", ".parquet", ".toml", ".npz")
_NO_IMAGES = (*_TABLES, ".json", ".txt", ".md", ".html", ".xml")
# Moments of a sequence that are shown, those with the largest share in the answer.
_SHOWN = 4


def cases_below(path: Path, *, loops: bool = False) -> tuple[list[Entry], list[Problem]]:
    """What a path holds: a file or a folder with one series is one case, a folder of files is one case each.

    Args:
        path: what is given.
        loops: a folder of nothing but pictures is one loop (for models that look at several moments).

    Returns:
        The cases, and what is no case and why.

    Raises:
        Problem: there is nothing that can be read.
    """
    if path.is_file() or not path.exists() or _one_series(path) or (loops and _only_pictures(path)):
        return [layouts.single(path)], []
    found: list[Entry] = []
    problems: list[Problem] = []
    listed = False
    try:
        listing = layouts.read(path)
        found, problems = list(listing.entries), list(listing.problems)
        listed = bool(listing.questions) or any(file.suffix.lower() in _TABLES for file in path.iterdir())
    except Problem:
        # No cohort: then its files are looked at one by one, and each says itself what is wrong.
        pass
    known = {source.path for entry in found for source in entry.images.values()} | {
        problem.path for problem in problems
    }
    # A table says what its cases are (masks beside them are none); without one, every file counts.
    for file in [] if listed else sorted(file for file in path.rglob("*") if file.is_file()):
        if file in known or file.parent in known or file.suffix.lower() in _NO_IMAGES or file.name.startswith("."):
            continue
        try:
            found.append(replace(layouts.single(file), id=str(file.relative_to(path))))
        except Problem as problem:
            problems.append(problem)
    if not found:
        first = f" (the first file: {problems[0].clause})" if problems else ""
        raise Problem(f"holds no image that can be read{first}", path=path, fix="give an image, a series or both")
    return found, problems


def _one_series(folder: Path) -> bool:
    """Only files, all of them DICOM, and of one series."""
    below = list(folder.iterdir())
    dicom = catalog.find("formats", "dicom")
    if not below or not all(file.is_file() and dicom.matches(file) for file in below):
        return False
    try:
        return len({dicom.header(file)["SeriesInstanceUID"] for file in below}) == 1
    except Problem:
        return False


def _only_pictures(folder: Path) -> bool:
    pictures = catalog.find("formats", "raster")
    below = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return bool(below) and all(path.is_file() and pictures.matches(path) for path in below)


def diagnose_paths(
    run: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    method: str = "auto",
    known: Sequence[str] = (),
    images: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> tuple[int, int]:
    """Diagnoses files, series and folders; what cannot be read is said, and the rest goes on.

    Args:
        run: run folder or model file.
        inputs: paths.
        out: gets a folder for each case, ``index.html``, ``diagnoses.json`` and the private ``names.csv``.
        method: of the overlay, ``auto`` or ``none``.
        known: covariates of the one case that is given, ``name=value`` each; those of many stand in their table.
        images: one case more, whose images these are, ``modality=path`` each.
        say: takes one line at a time.

    Returns:
        How many were diagnosed, and how many failed.
    """
    from osler import report

    made = model.load(run)
    person = covariates.named(made.recipe.covariates, known)
    files.folder(out)
    done: list[Diagnosis] = []
    plain: list[dict[str, Any]] = []
    names: list[str] = []
    failed = 0
    given: list[Path | Entry] = list(inputs)
    if images:
        given.append(layouts.by_modality(made.recipe.image.modalities, images))
    for one in given:
        listed, problems = _listed(one, loops=made.recipe.image.frames > 1)
        for problem in problems:
            say(f"left out: {problem}")
        failed += len(problems)
        if person and len(given) * len(listed) > 1:
            raise Problem("covariates are of one case, and several are given", fix="put them into a table")
        for shown, entry in listed:
            named = replace(entry, covariates={**entry.covariates, **person}) if person else entry
            try:
                found, content = _diagnosed(named, made, out, method)
            except Problem as problem:
                say(f"left out: {problem}")
                failed += 1
                continue
            done.append(replace(found, case=pseudonym(found.case)))
            plain.append(content)
            names.append(named.id)
            say(f"{shown}: {in_one_line(found)}")
    if done:
        remember(out, names)
        files.replaced(out / "diagnoses.json", json.dumps(plain, indent=1, ensure_ascii=False))
        report.diagnoses_page(done, out / "index.html", {d.case: f"{d.case}/diagnosis.html" for d in done})
    return len(done), failed


def _listed(one: Path | Entry, *, loops: bool) -> tuple[list[tuple[str, Entry]], list[Problem]]:
    """The cases of what was given, each with the name that a terminal shows, and what is none and why."""
    path = one if isinstance(one, Path) else next(iter(one.images.values())).path
    try:
        entries, problems = cases_below(one, loops=loops) if isinstance(one, Path) else ([one], [])
    except Problem as problem:
        return [], [problem]
    # The whole path makes the name, so that two folders with an image.png each stay two cases.
    if len(entries) == 1:
        return [(shown_path(path), replace(entries[0], id=str(path.resolve())))], problems
    named = [replace(entry, id=str(path.resolve() / entry.id)) for entry in entries]
    return [(shown_path(Path(e.id)), long) for e, long in zip(entries, named, strict=True)], problems


def _diagnosed(entry: Entry, made: Model, out: Path, method: str) -> tuple[Diagnosis, dict[str, Any]]:
    """The diagnosis of one case, which is written, and the same as plain data."""
    case = data.read_case(entry, moments=made.recipe.moments, names=made.recipe.image.modalities)
    found = diagnose(made, case)
    write_diagnosis(found, case, made, out, method)
    return found, writing.as_data(found, case, made.recipe.tasks)


def in_one_line(diagnosis: Diagnosis) -> str:
    """``label pneumonia 97 % (94 to 99 %)``, or what is withheld and why; seconds and memory."""
    parts = []
    for task, given in diagnosis.answers.items():
        if given.kind in DENSE:
            parts.append(f"{task} {_places_in_one_line(given)}")
            continue
        if given.kind == "regression":
            number = given.findings[0]
            span = f" ({number.interval[0]:.3g} to {number.interval[1]:.3g})" if number.interval else ""
            parts.append(f"{task} {number.value:.3g}{span} {number.unit}".rstrip())
            continue
        likely = max(given.findings, key=lambda finding: finding.probability or 0)
        stated = [f for f in given.findings if f.name in given.decision] or ([] if diagnosis.abstained else [likely])
        for one in stated or [likely]:
            low, high = one.interval or (float("nan"), float("nan"))
            parts.append(f"{task} {one.name} {one.probability:.0%} ({low:.0%} to {high:.0%})")
    text = ", ".join(parts)
    if diagnosis.concordance is not None and not diagnosis.concordance.agree:
        text += f"; the answers disagree ({'; '.join(diagnosis.concordance.statements)})"
    if diagnosis.abstained:
        text = f"withheld: {'; '.join(diagnosis.reasons)} (would be {text})"
    return f"{text}; {diagnosis.seconds:.2f} s, {diagnosis.peak_mib:.0f} MiB"


def _places_in_one_line(given: Answer) -> str:
    """``lesion 87 % (60 to 95 %), 2.3 ml; and 2 more``: what is sure enough to be stated."""
    placed = [f for f in given.findings if f.box is not None]
    certain = [f for f in placed if (f.probability or 0.0) >= (given.threshold or 0.0)]
    said = []
    for finding in (certain or placed[:1])[:3]:
        low, high = finding.interval or (float("nan"), float("nan"))
        size = "".join(f", {m.value:.3g} {m.unit}" for m in finding.measurements[:1])
        said.append(f"{finding.name} {finding.probability:.0%} ({low:.0%} to {high:.0%}){size}")
    text = "; ".join(said)
    if not certain:
        return f"nothing stated (most likely {text})" if said else "nothing found"
    return text + (f"; and {len(certain) - len(said)} more" if len(certain) > len(said) else "")


def to_json(diagnosis: Diagnosis, case: Case, made: Model) -> str:
    """The diagnosis as it is, under a pseudonym; places by numbers (see ``osler.writing``)."""
    case = _looked_at(case, made)
    return json.dumps(writing.as_data(diagnosis, case, made.recipe.tasks), indent=1, ensure_ascii=False)


def _looked_at(case: Case, made: Model) -> Case:
    """The case with the images that the model looks at: places are on the grid of the first of them."""
    names = made.recipe.image.modalities
    return replace(case, images={name: case.images[name] for name in names if name in case.images} or case.images)


def write_diagnosis(diagnosis: Diagnosis, case: Case, made: Model, out: Path, method: str = "auto") -> Path:
    """``diagnosis.json``, ``overlay.png`` and ``diagnosis.html`` in a folder named by the case's pseudonym.

    Returns:
        The folder.
    """
    from PIL import Image as Picture

    from osler import explanation, report

    folder = files.folder(out / pseudonym(diagnosis.case))
    case = _looked_at(case, made)
    image = data.the_image(case, made.recipe.image)
    decided = sorted(diagnosis.moments, key=lambda moment: -moment.share)[:_SHOWN]
    frame = image.place(decided[0].frame) if decided else None
    shown = explanation.picture(image, None, frame)
    overlays: dict[str, tuple[NDArray[np.uint8], str]] = {}
    surest = max((f for a in diagnosis.answers.values() for f in a.findings if f.box is not None),
                 key=lambda f: f.probability or 0.0, default=None)  # fmt: skip
    if made.recipe.dense:
        overlays |= _outlined(diagnosis, case, made)
    if method != "none" and (surest is not None or made.tasks):
        why = explanation.explain(made, case, surest if not made.tasks else None, method=method)
        plane = int(why.heatmap.sum((1, 2)).argmax())
        image = modalities.called(made, image, why.modality)
        shown = explanation.picture(image, plane, frame if why.frame is None else image.place(why.frame))
        caption = " ".join(why.sentences)
        overlays[why.method] = (explanation.overlay(shown, why.heatmap[plane], passed=why.passed), caption)
        Picture.fromarray(overlays[why.method][0]).save(folder / "overlay.png")
    files.replaced(folder / "diagnosis.json", to_json(diagnosis, case, made))
    unsure = {task: a.uncertainty for task, a in diagnosis.answers.items() if a.uncertainty is not None}
    unwritten = writing.write(diagnosis, case, folder, made.recipe.tasks, unsure) if made.recipe.dense else ()
    told = replace(diagnosis, case=pseudonym(diagnosis.case), notes=(*diagnosis.notes, *unwritten))
    frames = {moment.frame: explanation.picture(image, None, image.place(moment.frame)) for moment in decided}
    report.diagnosis_page(told, shown, overlays, folder / "diagnosis.html", frames)
    return folder


def _outlined(diagnosis: Diagnosis, case: Case, made: Model) -> dict[str, tuple[NDArray[np.uint8], str]]:
    """For the page: the image of each moment with what was found drawn on it, and what the drawing says."""
    from PIL import Image as Picture

    image, shown = data.the_image(case, made.recipe.image), {}
    placed = {task: given for task, given in diagnosis.answers.items() if given.kind in DENSE}
    caption = "Whole lines: stated. Broken lines: less likely (5 % or more), for those who want to look."
    groups = {task: [(given, made.recipe.tasks[task])] for task, given in placed.items()}
    if made.recipe.linked and len(placed) > 1:
        groups = {"all findings": [each for group in groups.values() for each in group], **groups}
    for name, group in groups.items():
        for frame, drawn in writing.pictures(group, image).items():
            title = f"{name}, moment {frame + 1}" if image.frames > 1 else name
            # Linked tasks are one answer: the class belongs beside what was found.
            said = [_leads(given) for given in diagnosis.answers.values()] if made.recipe.linked else []
            words = " ".join([*(f"{line}." for line in said if line), caption])
            shown[title] = (np.asarray(Picture.open(io.BytesIO(drawn)).convert("RGB")), words)
    return shown


def _leads(given: Answer) -> str:
    lead = linking.leading(given)
    if lead is None:
        return ""
    share = next(f.probability for f in given.findings if f.name == lead) or 0.0
    return f"{given.task} {lead} {share:.0%}" + ("" if given.decision else ", withheld")
