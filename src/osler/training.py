"""``osler train``: from a cohort to a model that is fitted (``osler.fitting``), calibrated and stored.

A run folder is complete at any moment: every file in it is replaced whole. The same command goes on with what is
there, whenever it was killed.
"""

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osler import (
    calibration,
    cohort,
    covariates,
    data,
    draws,
    frozen,
    linking,
    localisation,
    modalities,
    model,
    novelty,
    patch_planning,
    planning,
    recipe,
    store,
    subsets,
    volumes,
)
from osler import places as where
from osler.case import Answer, Finding
from osler.checkpoints import write_text
from osler.cohort import Calibration, Cohort, Splits, Training, Validation
from osler.fitting import Course, Examples, Say, fit
from osler.inspections import duplicates
from osler.model import Model, Network
from osler.patches import Sample
from osler.problem import Problem
from osler.recipe import Recipe
from osler.tasks.classification import Classification

Derive = Callable[[Cohort, Mapping[str, Any], float], tuple[Recipe, dict[str, str]]]


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


def _train(found: Cohort, plan: Recipe, out: Path, say: Say) -> Model:
    say(f"reading {len(found.entries)} cases")
    loaded = data.load(found.entries, plan.image, None, out / "pixels", tuple(plan.tasks.values()))
    say_problems(loaded.problems, say)
    digest = cohort.digest(loaded.entries, loaded.digests)
    same_pixels(out, digest + covariates.digest(plan.covariates, loaded.entries) + data.times_digest(loaded))
    done = _finished(out)
    if done is not None:
        store.remove(out / "pixels")
        say(f"{out.name} is finished already; nothing was trained again")
        return done
    splits, notes = divide(found, loaded, plan)
    for note in notes:
        say(note)
    row_of = {entry.id: i for i, entry in enumerate(loaded.entries)}
    tasks = {name: Classification(question) for name, question in plan.tasks.items() if not question.dense}
    said = [entry.findings for entry in loaded.entries]
    targets = {name: task.encode_all(said) for name, task in tasks.items()}

    pairs = assign(found, loaded, splits, plan)
    persons: NDArray[np.float32] | None = None
    if plan.covariates.columns:
        learned = {entry.id: entry for training, *_ in pairs for entry in training.entries}
        columns, more = covariates.learn(plan.covariates, list(learned.values()))
        plan, notes = replace(plan, covariates=columns), [*notes, *more]
        for note in more:
            say(note)
        persons = covariates.table(columns, loaded.entries)

    def examples(part: Any) -> Examples:
        rows = [row_of[entry.id] for entry in part.entries]
        known = {name: values[rows] for name, values in targets.items()}
        about = None if persons is None else persons[rows]
        return Examples(part, loaded.pixels.take(rows), known, loaded.times[rows], about)

    _write_splits(out / "splits.csv", splits, pairs if plan.training.folds else [], loaded, row_of)
    networks: list[Network] = []
    began = time.monotonic()
    samples: dict[str, list[Sample]] = {}
    if plan.dense:
        say("reading where things are")
        left: list[Problem] = []
        moments: dict[int, list[volumes.Volume]] = {}
        for volume in volumes.load(loaded.entries, plan, out / "volumes", left.append):
            moments.setdefault(volume.case, []).append(volume)
        say_problems(left, say)
        for row, some in moments.items():
            answers = {name: values[row] for name, values in targets.items()}
            samples[loaded.entries[row].id] = localisation.samples(some, answers, plan)
        networks = localisation.fit_all(pairs, samples, plan, out, say, began)
    else:
        for number, (training, validation, _) in enumerate(pairs):
            course = Course(out, number, len(pairs), say, began)
            trained = frozen.fit if plan.training.freeze else fit
            networks.append(trained(examples(training), examples(validation), plan, course))
    say("calibrating")
    digests = [data.short(loaded.digests[row_of[e.id]]) for _, _, c in pairs for e in c.entries]
    fitted, card, held = _calibrate(networks, ((examples(t), examples(c)) for t, _, c in pairs), plan)
    if persons is not None:
        _write_table(out / "covariates.safetensors", pairs, (row_of, persons, targets), plan)
    if plan.dense:
        parts = [[(e.id, e.patient, s.moments) for e in c.entries for s in samples.get(e.id, [])] for *_, c in pairs]
        of_places, card["places"], answers_of = where.calibrate(networks, parts, plan)
        fitted |= of_places
        more = where.notes(card["places"])
        notes = [*notes, *more]
        for note in more:
            say(note)
        if plan.linked:
            order = [e.id for _, _, c in (pairs if plan.training.folds else pairs[:1]) for e in c.entries]
            fitted["concordance"] = _concordance(tasks, fitted, held, (order, answers_of), plan)
    seen = {row_of[e.id] for t, v, c in pairs for part in (t, v, c) for e in part.entries}
    fitted["seen"] = np.array(sorted({data.short(one) for row in seen for one in loaded.images[row]}), np.int64)
    card |= {"notes": [*found.notes, *notes], "grouping": found.grouping or "each case its own patient"}
    card |= {"cohort_sha256": digest, "cases": len(loaded.entries)}
    card |= {
        "training_cases": len(pairs[0][0]),
        "modalities": sorted({code for m in loaded.modalities for code in m.split("/") if code}),
    }
    if len(plan.image.modalities) > 1:
        card["codes"] = modalities.codes(plan.image.modalities, loaded.modalities)
    # The folder of the weights may be somebody's name; a model file travels.
    network_plan = replace(plan.network, weights=Path(plan.network.weights).name)
    made = Model(replace(plan, network=network_plan), networks, fitted, card)
    if plan.training.folds:
        held["digest"] = torch.tensor(digests)
        model.write_tensors(out / "out_of_fold.safetensors", held, {"format": "osler-out-of-fold"})
    _training_page(out, card, plan)
    made.save(out / "model.safetensors")
    store.remove(out / "pixels")
    shutil.rmtree(out / "volumes", ignore_errors=True)
    return made


# --- the plan and the folder -------------------------------------------------------------------------------


def settle(
    found: Cohort, out: Path, settings: dict[str, Any], minutes: float, say: Say, derive: Derive = planning.derive
) -> Recipe:
    """The recipe in the run folder if there is one, else a new one, written there with its reasons.

    Raises:
        Problem: the folder holds a run of another cohort or with other settings; or ``derive`` finds no recipe.
    """
    request = {"settings": settings, "minutes": minutes, "cohort": _listing_hash(found)}
    request_file, recipe_file = out / "request.json", out / "recipe.toml"
    if recipe_file.exists() and request_file.exists():
        before = json.loads(request_file.read_text(encoding="utf-8"))
        if before != request:
            different = [key for key in request if before.get(key) != json.loads(json.dumps(request[key]))]
            if different:
                raise Problem(
                    f"holds a run that began with other {' and '.join(different)}", path=out, fix="give another --out"
                )
        say(f"going on with the run in {out.name}")
        return recipe.build(recipe.read(recipe_file))
    say("planning")
    names = not isinstance(settings.get("tasks", {}), Mapping)
    given = {key: value for key, value in settings.items() if not (names and key == "tasks")}
    plan, reasons = derive(found, given, minutes)
    recipe.write(plan, reasons, out / "recipe.toml.part")
    (out / "recipe.toml.part").replace(recipe_file)
    write_text(request_file, json.dumps(request, indent=1))
    size = " x ".join(str(n) for n in plan.image.size)
    say(
        f"plan: {plan.network.backbone} on {size}, {plan.training.epochs} epochs of {plan.training.batch}, "
        f"{plan.training.precision}, {plan.training.folds or 'no'} folds; reasons in recipe.toml"
    )
    return plan


def _listing_hash(found: Cohort) -> str:
    return cohort.digest(found.entries, [f"{entry.id}|{entry.patient}|{entry.split}" for entry in found.entries])


def same_pixels(out: Path, digest: str) -> None:
    """A run goes on with the images that it began with.

    Raises:
        Problem: the files have changed since.
    """
    path = out / "cohort.sha256"
    if path.exists() and path.read_text(encoding="utf-8").strip() != digest:
        what = "this run began with other images, labels, covariates or times"
        raise Problem(what, path=out, fix="give another --out")
    write_text(path, digest + "\n")


def _finished(out: Path) -> Model | None:
    try:
        return model.load(out / "model.safetensors") if (out / "model.safetensors").exists() else None
    except Problem:
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One training in a folder at a time."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "lock").open("w")
    except OSError as error:
        raise Problem(
            f"the run folder cannot be written ({error.strerror})", path=out, fix="give another --out"
        ) from error
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows: no lock.
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Problem("another training is running in this folder", path=out, fix="wait for it") from error
        yield


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
    question = next(iter(plan.tasks.values()))
    # A fold is watched but never chosen by: its outputs stay out of fold.
    return [
        (training, Validation(held.entries), held)
        for training, held in cohort.folds(pool, question, plan.training.folds, plan.training.seed)
    ]


def _write_table(
    path: Path,
    pairs: Sequence[tuple[Training, Validation, Calibration]],
    known: tuple[Mapping[str, int], NDArray[np.float32], Mapping[str, NDArray[np.float32]]],
    plan: Recipe,
) -> None:
    """Covariates and answers of the training cases, without names: what a table alone is worth is learned of them.

    ``fold`` is that whose network has *not* seen a case; without folds -1.
    """
    row_of, persons, targets = known
    if plan.training.folds:
        cases = [(row_of[entry.id], fold) for fold, (*_, held) in enumerate(pairs) for entry in held.entries]
    else:
        cases = [(row_of[entry.id], -1) for entry in pairs[0][0].entries]
    rows = np.array([row for row, _ in cases], np.intp)
    tensors = {"covariates": torch.from_numpy(persons[rows]), "fold": torch.tensor([fold for _, fold in cases])}
    tensors |= {f"target.{name}": torch.from_numpy(values[rows]) for name, values in targets.items()}
    model.write_tensors(path, tensors, {"format": "osler-covariates"}, 0o600)


def _write_splits(
    path: Path, splits: Splits, pairs: Sequence[Any], loaded: data.Loaded, row_of: Mapping[str, int]
) -> None:
    """Which case went where, by digest of its pixels (no names)."""
    rows = []
    for role in ("training", "validation", "calibration", "test"):
        rows += [(loaded.digests[row_of[e.id]], role, "") for e in getattr(splits, role).entries]
    for fold, (_, _, held) in enumerate(pairs):
        rows += [(loaded.digests[row_of[e.id]], "fold", str(fold)) for e in held.entries]
    write_text(path, "sha256,part,fold\n" + "".join(",".join(row) + "\n" for row in rows))


# --- what makes a network's outputs a diagnosis ------------------------------------------------------------


def _calibrate(
    networks: Sequence[Network], parts: Iterable[tuple[Examples, Examples]], plan: Recipe
) -> tuple[dict[str, NDArray[Any]], dict[str, Any], dict[str, Tensor]]:
    """Fits everything of ``osler.calibration`` and ``osler.novelty`` on cases that each network has not seen.

    Returns:
        Arrays by name for the model, facts for its card, and the held-out outputs (for out-of-fold evaluation).
    """
    views = model.moved_copies(plan.inference.views)
    arrays: dict[str, NDArray[Any]] = {}
    raw: dict[str, list[NDArray[np.float64]]] = {}
    torn: dict[str, list[NDArray[np.float64]]] = {}
    logs, fold, held_parts = [], [], []
    images = plan.image.modalities if len(plan.image.modalities) > 1 else ("",)
    sources, parts_of = networks[0].sources, networks[0].subsets
    for number, (network, (training, held)) in enumerate(zip(networks, parts, strict=True)):
        if not isinstance(held.part, Calibration):
            raise TypeError("calibration is fitted on Calibration, nothing else")
        if not len(held):
            continue
        chosen = draws.permutation(draws.keys(plan.training.seed, number, 5), len(training))[:3000]
        chosen = np.sort(chosen)
        when = None if training.times is None else training.times[chosen]
        learned = model.outputs(network, training.pixels[chosen], views[:1], times=when)
        seen = model.outputs(network, held.pixels, views, times=held.times, covariates=held.covariates)
        there = subsets.present(len(held), len(images), held.times, held.covariates)
        known = subsets.present(len(chosen), len(images), when, None)
        arrays |= novelty.fit_each(number, images, (learned, known), (seen, there))
        held_parts.append((held.part, held.targets, there))
        away = novelty.scores(arrays, number, images, seen)
        assert away is not None
        logs.append(away)
        fold.append(np.full(len(held), number))
        for source, answers in {"": seen.answers, **seen.alone}.items():
            for name, value in answers.items():
                raw.setdefault(calibration.key(source, name), []).append(value)
        for name, value in seen.torn.items():
            torn.setdefault(name, []).append(value)
    if not logs:
        return arrays, {"calibrated": False}, {}
    # Folds answer for different cases; members of one ensemble answer the same cases together.
    together = np.concatenate if plan.training.folds else _mean
    held_parts = held_parts if plan.training.folds else held_parts[:1]
    present = np.concatenate([there for *_, there in held_parts])
    away, shown = together(logs), present[:, : len(images)]
    arrays |= novelty.limits(away, shown, images, plan.inference.refusals)
    scores, _ = novelty.judge(arrays, away, shown, images)
    patients = [entry.patient for part, *_ in held_parts for entry in part.entries]
    held_tensors = {"fold": torch.from_numpy(together(fold).astype(np.int64)), "novelty": torch.from_numpy(scores)}
    held_tensors |= {f"torn.{name}": torch.from_numpy(together(values)) for name, values in torn.items()}
    card: dict[str, Any] = {"calibrated": True, "calibration_cases": len(scores), "isotonic": {}}
    # A case of which something is missing is answered from what is there, and calibrated as such.
    held_tensors["there"] = torch.from_numpy(present)
    for number, (name, task) in enumerate(networks[0].tasks.items()):
        target = np.concatenate([targets[name] for _, targets, _ in held_parts])
        held_tensors[f"target.{name}"] = torch.from_numpy(target)
        answers = {source: together(raw[calibration.key(source, name)]) for source in parts_of}
        held_tensors |= {
            calibration.key(source, f"outputs.{name}"): torch.from_numpy(values) for source, values in answers.items()
        }
        for source, outputs in answers.items():
            complete = np.asarray(present[:, parts_of[source]].all(1), bool)
            rows = calibration.rows_for(task, target, complete)
            beside = subsets.beside(sources, parts_of[source])
            if len(beside) > 1:
                weights = calibration.mixing(task, [answers[one][rows] for one in beside], target[rows])
                arrays[calibration.key(source, f"mixing.{number}")] = weights
                outputs = np.asarray(np.tensordot(weights, np.stack([answers[one] for one in beside]), 1))
            fitted = calibration.fit(
                task, outputs[rows], target[rows], [p for p, yes in zip(patients, rows, strict=True) if yes],
                coverage=plan.inference.coverage, rule=plan.inference.threshold,
            )  # fmt: skip
            arrays |= {calibration.key(source, f"task.{number}.{k}"): v for k, v in vars(fitted).items()}
            if len(images) > 1:
                # Before they were weighed against others on these very cases.
                p = calibration.apply(task, fitted, answers[source][None, complete])
                of = [person for person, yes in zip(patients, complete, strict=True) if yes]
                found = modalities.held_out(task.question, p, target[complete], of)
                card.setdefault("subsets", {}).setdefault(source or "all", {})[name] = found
            if not source:
                card["isotonic"][name] = calibration.against_isotonic(task, outputs, target, patients)
    return arrays, card, held_tensors


def _concordance(
    tasks: Mapping[str, Classification],
    fitted: Mapping[str, NDArray[Any]],
    held: Mapping[str, Tensor],
    said: tuple[Sequence[str], Mapping[str, Mapping[str, Answer]]],
    plan: Recipe,
) -> NDArray[np.int64]:
    """How many held-out cases had a wrong class, and how many there were: where answers agreed, and where not.

    Args:
        tasks: those that ask of the whole image.
        fitted: their calibration.
        held: their outputs, as :func:`_calibrate` gives them.
        said: ids of the held-out cases in the order of ``held``, and the other answers to each.
        plan: the recipe.
    """
    counts = np.zeros((2, 2), np.int64)
    order, others = said
    exclusive = {name: task for name, task in tasks.items() if task.question.kind in ("multiclass", "ordinal")}
    found: dict[str, NDArray[Any]] = {}
    for number, (name, task) in enumerate(tasks.items()):
        if name in exclusive and held:
            prefix = f"task.{number}."
            own = calibration.Calibrated(**{k[len(prefix) :]: v for k, v in fitted.items() if k.startswith(prefix)})
            found[name] = calibration.apply(task, own, held[f"outputs.{name}"].numpy()[None])
    for row, case in enumerate(order if held else ()):
        if case not in others:
            continue
        answers = dict(others[case])
        wrong = []
        for name, p in found.items():
            question = tasks[name].question
            findings = [Finding(name, c, "model", float(p[row, k])) for k, c in enumerate(question.classes)]
            answers[name] = Answer(name, question.kind, tuple(findings), ())
            target = float(held[f"target.{name}"][row, 0])
            if np.isfinite(target):
                wrong.append(int(p[row].argmax()) != int(target))
        torn = {name: float(held[f"torn.{name}"][row]) for name in found if f"torn.{name}" in held}
        if wrong:
            counts[int(bool(linking.disagreements(answers, torn, plan)))] += (any(wrong), 1)
    return counts


def _mean(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.asarray(np.mean(values, axis=0))


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
