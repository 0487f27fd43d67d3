"""What each augmentation is worth: the same training without and with it, seen on the same held-out patients."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osler import (
    asking,
    cohort,
    covariates,
    data,
    draws,
    files,
    identity,
    measures,
    model,
    recipe,
    report,
    run_folder,
    training,
)
from osler.case import Entry
from osler.cohort import Cohort
from osler.corruptions import CORRUPTIONS, corrupt
from osler.metrics.bootstrap import bootstrap
from osler.metrics.rows import mean
from osler.model import Model
from osler.problem import Problem
from osler.progress import Progress
from osler.recipe import Recipe
from osler.tasks.classification import Classification

Say = Callable[[str], None]
Drawn = dict[str, NDArray[np.float64]]  # by figure: itself, then its value in each bootstrap sample
BASE = ("spatial", "intensity")
FIGURES = ("auroc", "robust", "brier", "log_loss")


@dataclass(frozen=True)
class Arm:
    """One training: its name, the augmentations that are on, and what is added to the seed."""

    name: str
    augmentation: tuple[str, ...]
    seed: int = 0

    @property
    def folder(self) -> str:
        return self.name.replace(" ", "")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Cases that are held out, and which networks answer for them.

    Attributes:
        pixels: ``(n, t, c, d, h, w)``; ``target`` ``(n, t)``; ``patients`` number of each case's patient.
        times: ``(n, t)``, see :func:`osler.data.timeline`; ``entries``: for what is known of the persons.
        answers: rows, and the numbers of the networks that have not seen them.
    """

    ids: tuple[str, ...]
    pixels: NDArray[np.float32]
    times: NDArray[np.float32]
    key: NDArray[np.uint64]
    target: NDArray[np.float32]
    patients: NDArray[np.intp]
    answers: tuple[tuple[NDArray[np.intp], tuple[int, ...]], ...]
    entries: tuple[Entry, ...] = ()


def ablate(
    cohort_path: Path | str,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    cohort_file: Path | str | None = None,
    minutes: float = 12.0,
    bootstraps: int = 2000,
    say: Say = print,
) -> dict[str, Any]:
    """Trains the plan with :data:`BASE`, with nothing, with each further augmentation on top, and with all.

    All else is the same: split, seed, epochs, and so the order of the cases. A second training of the base with
    another seed shows how much is chance. Every arm is a run folder in ``out``; a finished one is not trained again,
    and after each the comparison so far is written.
    Networks answer for the unmoved image, without calibration, for cases that they have not seen: out of fold, or
    of the validation and calibration parts, on which nothing is chosen or fitted here. The test part stays unseen.

    Args:
        cohort_path: in any layout; ``cohort_file`` is a ``cohort.toml`` outside of it.
        out: folder for the runs, ``ablation.json`` and ``ablation.html``.
        settings: what to fix in the recipe; an augmentation is tried if its probability there is not 0.
        cohort_file: see above.
        minutes: time for each training, turned into a number of epochs once for all.
        bootstraps: draws of patients for the intervals.
        say: takes one line at a time.

    Returns:
        The content of ``ablation.json``.

    Raises:
        Problem: nothing can be compared: no augmentation is planned, no case is held out, the task is a regression
            or asks where something is.
    """
    out = Path(out)
    found = cohort.read(Path(cohort_path), None if cohort_file is None else Path(cohort_file))
    found, _ = cohort.asking(found, dict(settings or {}).get("tasks"))
    if any(question.dense for question in found.questions):
        raise Problem(
            "the arms are compared by AUROC, and what asks where something is has none", path=found.root,
            fix="give a cohort with labels, or tasks=NAME of a label",
        )  # fmt: skip
    with run_folder.locked(out):
        plan = run_folder.settle(found, out, dict(settings or {}), minutes, say)
        # Stopping early would choose by the cases that are compared.
        plan = replace(plan, training=replace(plan.training, patience=0))
        task = Classification(next(iter(plan.tasks.values())))
        if task.question.kind == "regression":
            raise Problem(
                "the arms are compared by AUROC, and a regression has none", path=found.root,
                fix="give a cohort with classes, or tasks=NAME of a label with classes",
            )  # fmt: skip
        arms = arms_of(plan)
        loaded = data.load(found.entries, plan.image, Progress(len(found.entries), say))
        known = covariates.digest(plan.covariates, loaded.entries) + data.times_digest(loaded)
        run_folder.same_pixels(out, cohort.digest(loaded.entries, loaded.digests) + known)
        held = held_out(found, loaded, plan, task)
        again = held_out(found, loaded, _of(plan, arms[1]), task)
        if set(again.ids) != set(held.ids):
            say("another seed would hold out other cases, so no second training of the base shows how much is chance")
            del arms[1]
        say(f"{len(arms)} trainings, compared on {len(held.ids)} held-out cases")
        result = _about(plan, held, task, bootstraps)
        result |= {"cohort": cohort.digest(loaded.entries, loaded.digests)}
        result |= {"grouping": found.grouping or "each case its own patient"}
        base: Drawn = {}
        for number, arm in enumerate(arms, start=1):
            say(f"{arm.name} ({number} of {len(arms)})")

            def train(arm: Arm = arm) -> Model:
                given = _fixed(_of(plan, arm), plan)
                return training.train(
                    cohort_path, out / arm.folder, given, cohort_file=cohort_file, minutes=minutes, say=say
                )

            part = again if arm.seed else held
            said, seconds = _answers(out / arm.folder, part, task, train)
            order = np.array([part.ids.index(i) for i in held.ids])
            statistics = _statistics({name: p[order] for name, p in said.items()}, held, task)
            row, drawn = _compared(arm, seconds, statistics, held, bootstraps, base)
            base = base or drawn
            result["arms"].append(row)
            _write(out, result)
    return result


def _write(out: Path, result: Mapping[str, Any]) -> None:
    try:
        files.replaced(out / "ablation.json", json.dumps(result, indent=1, allow_nan=False))
        report.ablation_page(result, out / "ablation.html")
    except OSError as error:
        raise files.unwritten(out, error) from error


def arms_of(plan: Recipe) -> list[Arm]:
    """The base, the same with another seed, none, the base with each further augmentation of the plan, and all.

    Raises:
        Problem: the plan has no augmentation.
    """
    chosen = [name for name, given in plan.augmentation.items()
              if recipe.options("transforms", name, given).probability > 0]  # fmt: skip
    if not chosen:
        raise Problem("no augmentation is planned, so there is nothing to compare", fix="leave out augmentation=none")
    base = tuple(name for name in chosen if name in BASE)
    rest = [name for name in chosen if name not in BASE]
    arms = [Arm("base", base), Arm("base again", base, seed=1)]
    arms += [Arm("none", ())] if base else []
    arms += [Arm(f"base + {name}", (*base, name)) for name in rest]
    return [*arms, Arm("all", tuple(chosen))] if len(rest) > 1 else arms


def _of(plan: Recipe, arm: Arm) -> Recipe:
    kept = {name: given for name, given in plan.augmentation.items() if name in arm.augmentation}
    seed = replace(plan.training, seed=plan.training.seed + arm.seed)
    return replace(plan, augmentation=kept, training=seed)


def _fixed(plan: Recipe, whole: Recipe) -> dict[str, Any]:
    """The recipe as settings that leave nothing to the plan: what would be added is switched off by name."""
    content = recipe.to_dict(plan)
    if plan.augmentation:
        off = {name: {**given, "probability": 0.0} for name, given in whole.augmentation.items()}
        content["augmentation"] = {**off, **plan.augmentation}
    return content


def held_out(found: Cohort, loaded: data.Loaded, plan: Recipe, task: Classification) -> HeldOut:
    """The cases with a known label that a training by this plan holds out; never those of the test part.

    Raises:
        Problem: there are none.
    """
    splits, _ = training.divide(found, loaded, plan)
    pairs = training.assign(found, loaded, splits, plan)
    parts: list[tuple[tuple[Entry, ...], tuple[int, ...]]]
    if plan.training.folds:
        parts = [(held.entries, (number,)) for number, (_, _, held) in enumerate(pairs)]
    else:
        entries = (*splits.validation.entries, *splits.calibration.entries)
        parts = [(entries, tuple(range(len(pairs))))]
    known = {e.id for entries, _ in parts for e in entries if np.isfinite(task.encode(e.findings)).any()}
    kept = [entry for entries, _ in parts for entry in entries if entry.id in known]
    if not kept:
        raise Problem(
            "no case is held out to compare on", path=found.root, fix="set folds=5, or split.validation=0.2"
        )
    row_of = {entry.id: i for i, entry in enumerate(loaded.entries)}
    rows = [row_of[entry.id] for entry in kept]
    place = {entry.id: i for i, entry in enumerate(kept)}
    return HeldOut(
        ids=tuple(entry.id for entry in kept),
        pixels=loaded.pixels[np.asarray(rows)],
        times=loaded.times[rows],
        key=draws.keys(np.array([identity.short(loaded.digests[row]) for row in rows])),
        target=np.stack([task.encode(entry.findings) for entry in kept]),
        patients=np.unique([entry.patient for entry in kept], return_inverse=True)[1].astype(np.intp),
        answers=tuple(
            (np.array([place[e.id] for e in entries if e.id in known], np.intp), numbers)
            for entries, numbers in parts
        ),
        entries=tuple(kept),
    )


def _answers(
    folder: Path, held: HeldOut, task: Classification, train: Callable[[], Model]
) -> tuple[dict[str, NDArray[np.float64]], float | None]:
    """Probabilities ``(n, k)`` of the held-out cases, clean and under each corruption, and the seconds of training.

    The seconds are unknown where the training was interrupted.
    """
    path = folder / "held_out.safetensors"
    if path.exists():
        header, tensors = model.read_tensors(path)
        return {name: tensor.numpy() for name, tensor in tensors.items()}, json.loads(header["seconds"])
    whole, began = not (folder / "checkpoints").exists(), time.monotonic()
    made = train()
    seconds = round(time.monotonic() - began, 1) if whole else None
    said = {"clean": _said(made, held, held.pixels, task)}
    for name in CORRUPTIONS:
        said[name] = _said(made, held, corrupt(name, held.pixels, held.key), task)
    header = {"format": "osler-held-out", "seconds": json.dumps(seconds)}
    model.write_tensors(path, {name: torch.from_numpy(p) for name, p in said.items()}, header)
    return said, seconds


def _said(made: Model, held: HeldOut, pixels: NDArray[np.float32], task: Classification) -> NDArray[np.float64]:
    name = task.question.task
    result = np.empty((len(pixels), len(task.question.classes)))
    columns = made.recipe.covariates
    known = covariates.table(columns, held.entries) if columns.columns else None
    for rows, numbers in held.answers:
        if len(rows):
            about = None if known is None else known[rows]
            seen = [
                asking.outputs(made.networks[i], pixels[rows], [_unmoved], times=held.times[rows], covariates=about)
                for i in numbers
            ]
            result[rows] = task.probabilities(np.mean([each.answers[name] for each in seen], axis=0))
    return result


def _unmoved(x: torch.Tensor) -> torch.Tensor:
    return x


# --- figures ----------------------------------------------------------------------------------------------


def _statistics(
    said: Mapping[str, NDArray[np.float64]], held: HeldOut, task: Classification
) -> dict[str, measures.Statistic]:
    """Each of :data:`FIGURES`, and the AUROC under each corruption, as a function of the weight of each case."""
    many = task.question.kind == "multilabel"
    target = held.target.astype(float)
    truth = target if many else (target == np.arange(len(task.question.classes))).astype(float)
    figures = measures.labels if many else measures.several
    found = {name: figures(truth, p, p >= 0.5 if many else p == p.max(1, keepdims=True), held.patients)
             for name, p in said.items()}  # fmt: skip
    ranked = {name: one["auroc"].statistic for name, one in found.items()}
    p = np.clip(said["clean"], 1e-12, 1 - 1e-12)
    each = -np.where(truth == 1, np.log(p), np.log1p(-p) if many else 0.0)
    losses = np.nanmean(np.where(np.isfinite(truth), each, np.nan), axis=1) if many else each.sum(1)
    corrupted = [ranked[name] for name in CORRUPTIONS]
    return {
        "auroc": ranked["clean"],
        "robust": lambda w: float(np.mean([one(w) for one in corrupted])),
        "brier": found["clean"]["brier"].statistic,
        "log_loss": lambda w: mean(losses, w),
        **{name: ranked[name] for name in CORRUPTIONS},
    }


def _about(plan: Recipe, held: HeldOut, task: Classification, bootstraps: int) -> dict[str, Any]:
    folds = plan.training.folds
    return {
        "schema_version": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": task.question.task,
        "held_out": f"out of {folds} folds" if folds else "validation and calibration parts",
        "cases": len(held.ids),
        "patients": len(set(held.patients.tolist())),
        "epochs": plan.training.epochs,
        "bootstraps": bootstraps,
        "corruptions": list(CORRUPTIONS),
        "arms": [],
    }


def _compared(
    arm: Arm,
    seconds: float | None,
    statistics: Mapping[str, measures.Statistic],
    held: HeldOut,
    bootstraps: int,
    base: Drawn,
) -> tuple[dict[str, Any], Drawn]:
    """An arm's row of ``ablation.json``, and what was drawn of it; ``base``: of the base, empty where this is it."""
    drawn = {name: _drawn(statistics[name], held.patients, bootstraps) for name in FIGURES}
    every = np.ones(len(held.ids))
    row = _row(arm, seconds, drawn, base or None)
    return row | {"corrupted": {name: _plain(statistics[name](every)) for name in CORRUPTIONS}}, drawn


def _row(arm: Arm, seconds: float | None, drawn: Drawn, base: Drawn | None) -> dict[str, Any]:
    """An arm's figures, and its paired differences to the base, with 95 % intervals over the same drawn patients."""
    return {
        "name": arm.name,
        "augmentation": list(arm.augmentation),
        "seconds": seconds,
        "figures": {name: _estimate(values) for name, values in drawn.items()},
        "differences": base and {name: _estimate(values - base[name]) for name, values in drawn.items()},
    }


def _drawn(statistic: measures.Statistic, patients: NDArray[np.intp], count: int) -> NDArray[np.float64]:
    """The figure itself, then its value in each bootstrap sample of patients: the same samples for every arm."""
    values: list[float] = []

    def recorded(weight: NDArray[Any]) -> float:
        values.append(statistic(weight))
        return values[-1]

    bootstrap(recorded, patients, count)
    return np.array(values)


def _estimate(values: NDArray[np.float64]) -> dict[str, float | None]:
    known = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return {"value": _plain(values[0]), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def table(result: Mapping[str, Any]) -> list[str]:
    """The comparison as lines of text: figures, and below them differences to the base, each with its interval."""
    heads = ("AUROC", "corrupted", "Brier", "log loss")
    wide = max(len(arm["name"]) for arm in result["arms"]) + 2
    lines = [f"{result['cases']} cases of {result['patients']} patients, {result['held_out']}; 95 % intervals"]
    lines.append(" " * wide + "".join(f"{head:<30}" for head in heads) + "seconds")
    for arm in result["arms"]:
        cells = "".join(f"{_cell(arm['figures'][name]):<30}" for name in FIGURES)
        lines.append(f"{arm['name']:<{wide}}{cells}{'?' if arm['seconds'] is None else round(arm['seconds'])}")
    lines.append("less the base, paired")
    for arm in result["arms"]:
        if arm["differences"]:
            cells = "".join(f"{_cell(arm['differences'][name], '+'):<30}" for name in FIGURES)
            lines.append(f"{arm['name']:<{wide}}{cells}".rstrip())
    return lines


def _cell(estimate: Mapping[str, float | None], sign: str = "") -> str:
    value, low, high = ("–" if estimate[k] is None else f"{estimate[k]:{sign}.4f}" for k in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
