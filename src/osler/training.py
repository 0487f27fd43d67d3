"""``osler train``: from a cohort to a model that is fitted (``osler.fitting``), calibrated and stored.

A run folder is complete at any moment: every file in it is replaced whole. The same command goes on with what is
there, whenever it was killed.
"""

import csv
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osler import (
    cohort,
    covariates,
    data,
    files,
    frozen,
    held_out,
    identity,
    localisation,
    modalities,
    model,
    patch_planning,
    planning,
    store,
    subsets,
    volumes,
)
from osler import places as where
from osler.case import Answer
from osler.cohort import Calibration, Cohort, Splits, Training, Validation
from osler.fitting import Course, Examples, Say, fit
from osler.inspections import duplicates
from osler.model import Model, Network
from osler.patches import Sample
from osler.problem import Problem
from osler.progress import Progress
from osler.recipe import Recipe
from osler.run_folder import finished, locked, same_pixels, settle
from osler.tasks.classification import Classification


def train(
    cohort_path: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    cohort_file: Path | str | None = None,
    minutes: float = 12.0,
    say: Say = print,
) -> Model:
    """Trains, calibrates and stores a model of a cohort.

    Args:
        cohort_path: the cohort, in any layout.
        out: run folder; if it holds an unfinished run of the same cohort and settings, that one goes on.
        settings: what to fix in the recipe (nested, or the content of a recipe file); the rest is planned.
        cohort_file: a ``cohort.toml`` outside the cohort's folder.
        minutes: time for training, turned into a number of epochs when planned.
        say: takes one line of progress at a time.

    Raises:
        Problem: the cohort, the settings or the run folder cannot be used.
    """
    out = Path(out)
    found = cohort.read(Path(cohort_path), None if cohort_file is None else Path(cohort_file))
    settings = dict(settings or {})
    found, notes = cohort.asking(found, settings.get("tasks"))
    for note in (*found.notes, *notes):
        say(note)
    say_problems(found.problems, say)
    with locked(out):
        derive = patch_planning.derive if any(q.dense for q in found.questions) else planning.derive
        plan = settle(found, out, settings, minutes, say, derive)
        frozen.require(plan)
        torch.set_num_threads(plan.training.threads)
        return _train(found, plan, out, say)


@dataclass(frozen=True, eq=False)
class _Cases:
    """What a run knows of its cases.

    Attributes:
        loaded: ``n`` of them, with their pixels.
        pairs: for each network the parts that it is trained, watched and calibrated on.
        targets: of the tasks that ask of the whole image, ``(n, ...)`` by task.
        persons: covariates ``(n, k)``, ``None`` where the model takes none.
    """

    loaded: data.Loaded
    pairs: Sequence[tuple[Training, Validation, Calibration]]
    targets: Mapping[str, NDArray[np.float32]]
    persons: NDArray[np.float32] | None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """By id."""
        return {entry.id: row for row, entry in enumerate(self.loaded.entries)}

    def examples(self, part: Training | Validation | Calibration) -> Examples:
        """Those of one part."""
        rows = [self.row_of[entry.id] for entry in part.entries]
        known = {name: values[rows] for name, values in self.targets.items()}
        about = None if self.persons is None else self.persons[rows]
        return Examples(part, self.loaded.pixels.take(rows), known, self.loaded.times[rows], about)

    def held(self) -> list[str]:
        """Ids of the calibration cases of every network, one after the other."""
        return [entry.id for *_, held in self.pairs for entry in held.entries]


def _train(found: Cohort, plan: Recipe, out: Path, say: Say) -> Model:
    say(f"reading {len(found.entries)} cases")
    loaded = data.load(
        found.entries, plan.image, Progress(len(found.entries), say), out / "pixels", tuple(plan.tasks.values())
    )
    say_problems(loaded.problems, say)
    digest = cohort.digest(loaded.entries, loaded.digests)
    same_pixels(out, digest + covariates.digest(plan.covariates, loaded.entries) + data.times_digest(loaded))
    done = finished(out)
    if done is not None:
        store.remove(out / "pixels")
        say(f"{out.name} is finished already; nothing was trained again")
        return done
    notes: list[str] = []

    def note(lines: Iterable[str]) -> None:
        for line in lines:
            notes.append(line)
            say(line)

    splits, lines = divide(found, loaded, plan)
    note(lines)
    there = subsets.there(loaded.times, max(1, len(plan.image.modalities)))
    note(modalities.unregistered(plan.image, loaded.entries, there))
    pairs = assign(found, loaded, splits, plan)
    tasks = {name: Classification(question) for name, question in plan.tasks.items() if not question.dense}
    said = [entry.findings for entry in loaded.entries]
    targets = {name: task.encode_all(said) for name, task in tasks.items()}
    persons: NDArray[np.float32] | None = None
    if plan.covariates.columns:
        learned = {entry.id: entry for training, *_ in pairs for entry in training.entries}
        columns, lines = covariates.learn(plan.covariates, list(learned.values()))
        note(lines)
        plan, persons = replace(plan, covariates=columns), covariates.table(columns, loaded.entries)
    cases = _Cases(loaded, pairs, targets, persons)
    _write_splits(out / "splits.csv", splits, cases, plan)
    samples = _samples(cases, plan, out, say) if plan.dense else {}
    networks = _fit(cases, samples, plan, out, say)
    say("calibrating")
    parts = ((cases.examples(training), cases.examples(held)) for training, _, held in pairs)
    fitted, card, held = held_out.calibrate(networks, parts, plan)
    if plan.dense:
        more, card["places"], answers_of = _calibrate_places(cases, networks, samples, plan)
        fitted |= more
        note(where.notes(card["places"]))
        if plan.linked:
            order = cases.held() if plan.training.folds else [entry.id for entry in pairs[0][2].entries]
            fitted["concordance"] = held_out.concordance(networks[0], fitted, held, (order, answers_of), plan)
    seen = {cases.row_of[e.id] for parts in pairs for part in parts for e in part.entries}
    fitted["seen"] = np.array(sorted({identity.short(one) for row in seen for one in loaded.images[row]}), np.int64)
    card |= {"notes": [*found.notes, *notes], "grouping": found.grouping or "each case its own patient"}
    card |= {"cohort_sha256": digest, "cases": len(loaded.entries), "training_cases": len(pairs[0][0])}
    card["modalities"] = sorted({code for each in loaded.modalities for code in each.split("/") if code})
    if len(plan.image.modalities) > 1:
        card["codes"] = modalities.codes(plan.image.modalities, loaded.modalities)
    # The folder of the weights may be somebody's name; a model file travels.
    network_plan = replace(plan.network, weights=Path(plan.network.weights).name)
    made = Model(replace(plan, network=network_plan), networks, fitted, card)
    if persons is not None:
        _write_table(out / "covariates.safetensors", cases, plan)
    if plan.training.folds:
        held["digest"] = torch.tensor([identity.short(loaded.digests[cases.row_of[name]]) for name in cases.held()])
        model.write_tensors(out / "out_of_fold.safetensors", held, {"format": "osler-out-of-fold"})
    _training_page(out, card, plan)
    made.save(out / "model.safetensors")
    store.remove(out / "pixels")
    shutil.rmtree(out / "volumes", ignore_errors=True)
    return made


def _samples(cases: _Cases, plan: Recipe, out: Path, say: Say) -> dict[str, list[Sample]]:
    """Of each case, by id, its images on the working grid with what is where in them."""
    say("reading where things are")
    left: list[Problem] = []
    moments: dict[int, list[volumes.Volume]] = {}
    entries = cases.loaded.entries
    for volume in volumes.load(entries, plan, out / "volumes", left.append, Progress(len(entries), say)):
        moments.setdefault(volume.case, []).append(volume)
    say_problems(left, say)
    return {
        entries[row].id: localisation.samples(
            some,
            {name: values[row] for name, values in cases.targets.items()},
            plan,
            None if cases.persons is None else cases.persons[row],
        )
        for row, some in moments.items()
    }


def _fit(cases: _Cases, samples: Mapping[str, list[Sample]], plan: Recipe, out: Path, say: Say) -> list[Network]:
    """The networks, one after the other."""
    began = time.monotonic()
    if plan.dense:
        return localisation.fit_all(cases.pairs, samples, plan, out, say, began)
    trained = frozen.fit if plan.training.freeze else fit
    return [
        trained(
            cases.examples(training), cases.examples(watched), plan, Course(out, number, len(cases.pairs), say, began)
        )
        for number, (training, watched, _) in enumerate(cases.pairs)
    ]


def _calibrate_places(
    cases: _Cases, networks: Sequence[Network], samples: Mapping[str, list[Sample]], plan: Recipe
) -> tuple[dict[str, NDArray[Any]], dict[str, Any], dict[str, dict[str, Answer]]]:
    parts = [
        [(entry.id, entry.patient, sample) for entry in held.entries for sample in samples.get(entry.id, [])]
        for *_, held in cases.pairs
    ]
    return where.calibrate(networks, parts, plan)


def say_problems(problems: Sequence[Problem], say: Say) -> None:
    """The first five of what was left out, and how many more there are."""
    for problem in problems[:5]:
        say(f"left out: {problem}")
    if len(problems) > 5:
        say(f"left out: {len(problems) - 5} more")


# --- who is trained on what -------------------------------------------------------------------------------


def divide(found: Cohort, loaded: data.Loaded, plan: Recipe) -> tuple[Splits, list[str]]:
    """The parts, with copies kept apart: copies of one picture count as one patient, or leave training.

    Raises:
        Problem: copies stand in several given parts and ``split.leaks`` is ``stop``; or one patient does.
    """
    notes = []
    entries, share = loaded.entries, plan.split
    folded = plan.training.folds > 0
    groups = [] if share.leaks == "ignore" else duplicates.cases(loaded.marks)
    if share.leaks != "ignore":
        entries, joined = cohort.join(entries, groups, folded=folded)
        if joined:
            notes.append(f"{joined} cases are copies of others, or nearly: they stay together in every split")
    if not found.grouping:
        notes.append("nothing says which cases share a patient: each case counts as its own patient")
    splits = cohort.split(
        replace(found, entries=entries),
        validation=0 if folded else share.validation,
        calibration=0 if folded else share.calibration,
        test=0 if folded else share.test,
        seed=plan.training.seed,
    )
    notes += splits.notes
    together = [{loaded.entries[row].id for row in rows} for rows in groups]
    splits, left = cohort.apart(splits, together)
    said = " and ".join(f"{count} {role} cases" for role, count in left.items())
    if left and share.leaks == "stop":
        raise Problem(
            f"{said} are copies of cases that are held out from them, or nearly",
            path=found.root, fix="remove them or set leaks=fix",
        )  # fmt: skip
    if left:
        notes.append(f"{said} are copies of cases that are held out from them, or nearly: they left")
    if not splits.training.entries:
        raise Problem(
            "no case is left to train on: all are copies of held-out ones", path=found.root, fix="add other cases"
        )
    return splits, notes


def assign(
    found: Cohort, loaded: data.Loaded, splits: Splits, plan: Recipe
) -> list[tuple[Training, Validation, Calibration]]:
    """For each network of :func:`divide`'s parts: what it is trained on, watched on and calibrated on."""
    if not plan.training.folds:
        return [(splits.training, splits.validation, splits.calibration)] * plan.training.members
    pool = [*splits.training.entries, *splits.validation.entries, *splits.calibration.entries]
    # A fold is watched but never chosen by: its outputs stay out of fold.
    return [
        (training, Validation(held.entries), held)
        for training, held in cohort.folds(pool, found.balanced_by, plan.training.folds, plan.training.seed)
    ]


def _write_table(path: Path, cases: _Cases, plan: Recipe) -> None:
    """Covariates and answers of the training cases, without names: what a table alone is worth is learned of them.

    ``fold`` is that whose network has *not* seen a case; without folds -1.
    """
    assert cases.persons is not None
    if plan.training.folds:
        known = [(cases.row_of[e.id], fold) for fold, (*_, held) in enumerate(cases.pairs) for e in held.entries]
    else:
        known = [(cases.row_of[e.id], -1) for e in cases.pairs[0][0].entries]
    rows = np.array([row for row, _ in known], np.intp)
    tensors = {"covariates": torch.from_numpy(cases.persons[rows]), "fold": torch.tensor([fold for _, fold in known])}
    tensors |= {f"target.{name}": torch.from_numpy(values[rows]) for name, values in cases.targets.items()}
    model.write_tensors(path, tensors, {"format": "osler-covariates"}, 0o600)


def _write_splits(path: Path, splits: Splits, cases: _Cases, plan: Recipe) -> None:
    """Which case went where, by digest of its pixels (no names).

    Raises:
        Problem: an unfinished run was begun with other parts, by another version of osler: its networks have seen
            what would be held out now.
    """

    def digests(part: Any) -> list[str]:
        return [cases.loaded.digests[cases.row_of[entry.id]] for entry in part.entries]

    rows = []
    for role in ("training", "validation", "calibration", "test"):
        rows += [(digest, role, "") for digest in digests(getattr(splits, role))]
    for fold, (*_, held) in enumerate(cases.pairs if plan.training.folds else ()):
        rows += [(digest, "fold", str(fold)) for digest in digests(held)]
    content = "sha256,part,fold\n" + "".join(",".join(row) + "\n" for row in rows)
    if path.exists() and path.read_text(encoding="utf-8") != content:
        raise Problem("this run began with other parts of the cohort", path=path, fix="give another --out")
    files.replaced(path, content)


def _training_page(out: Path, card: Mapping[str, Any], plan: Recipe) -> None:
    from osler import report

    with (out / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = (out / "recipe.toml").read_text(encoding="utf-8")
    if plan.network.weights:
        name = Path(plan.network.weights).name
        text = text.replace(quoted(plan.network.weights), quoted(name))
    report.training_page(rows, text, list(card["notes"]), out / "training.html")


def quoted(text: str) -> str:
    """As it stands in a recipe."""
    return json.dumps(text, ensure_ascii=False)
