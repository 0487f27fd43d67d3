"""What a model says of many cases: of those that it has not seen, or out of fold of its own."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osler import calibration, covariates, data, diagnosis, identity, modalities, model, novelty, origins, subsets
from osler.case import Diagnosis, Entry
from osler.cohort import Cohort, Test
from osler.diagnosis import Answered
from osler.image import Image
from osler.model import Model
from osler.problem import Problem
from osler.progress import Progress

Say = Callable[[str], None]
CHUNK = 64


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model said about many cases.

    Attributes:
        entries: those that could be read.
        digests: of their pixels.
        answered: arrays, a row a case.
        abstained: ``(n,)``.
        reasons: a text each, empty where it did not abstain.
        seconds: wall time a case, reading included; None where nothing was run.
        alone: what it said by every part of its sources (``Network.subsets``), where there are several.
        there: which of them each case has, ``(n, s)``.
        known: of such a model, the covariates ``(n, k)`` (see ``osler.covariates``).
        fold: of each case, that whose network had not seen it; None where cases are none of the run's own.
    """

    entries: tuple[Entry, ...]
    digests: tuple[str, ...]
    answered: Answered
    abstained: NDArray[np.bool_]
    reasons: tuple[str, ...]
    seconds: float | None
    alone: Mapping[str, Answered] = field(default_factory=dict)
    known: NDArray[np.float32] | None = None
    fold: NDArray[np.int64] | None = None
    there: NDArray[np.bool_] | None = None


def answer_all(
    made: Model, part: Test, say: Say = lambda line: None, seen: frozenset[int] = frozenset()
) -> tuple[Answers | None, int, int]:
    """Every case of a part through the one path of ``diagnose``; unreadable cases are said and left out.

    Args:
        made: the model.
        part: what is evaluated.
        say: takes one line at a time.
        seen: cases that have one of these digests (``identity.short``), or an image of them has, are not answered.

    Returns:
        The answers (``None`` where none is left), how many cases were seen before, and how many are unreadable.
    """
    if not isinstance(part, Test):
        raise TypeError("a model is evaluated on Test, nothing else")
    kept: list[Entry] = []
    digests: list[str] = []
    diagnoses: list[Diagnosis] = []
    pieces: list[dict[str, Answered]] = []
    about: list[covariates.Encoded] = []
    columns = made.recipe.covariates
    there: list[NDArray[np.bool_]] = []
    known = unread = 0
    began, progress = time.monotonic(), Progress(len(part.entries), say)
    for start in range(0, len(part.entries), CHUNK):
        ready: list[_Ready] = []
        for entry in part.entries[start : start + CHUNK]:
            try:
                with origins.named(entry, made.recipe.image.modalities):
                    one = _ready(made, entry, seen)
            except Problem as problem:
                unread += 1
                say(f"left out: {problem}")
                continue
            known += one is None
            ready += [] if one is None else [one]
        if ready:
            times = np.stack([one.times for one in ready])
            rows = np.stack([one.person.row for one in ready]) if columns.columns else None
            answered = diagnosis.answer_each(made, np.stack([one.pixels for one in ready]), times=times, known=rows)
            pieces.append(answered)
            there.append(subsets.present(len(ready), len(modalities.images(made)), times, rows))
            for row, one in enumerate(ready):
                kept.append(one.entry)
                digests.append(one.digest)
                about.append(one.person)
                found = diagnosis.conclude(made, one.entry.id, one.image, answered[""], row, 0.0, one.person)
                diagnoses.append(found)
        progress(start + CHUNK)
    if not kept:
        return None, known, unread
    reasons = tuple("; ".join(d.reasons) for d in diagnoses)
    abstained = np.array([d.abstained for d in diagnoses])
    seconds = (time.monotonic() - began) / len(kept)
    joined = {source: _concatenate([piece[source] for piece in pieces]) for source in pieces[0]}
    persons = np.stack([person.row for person in about]) if columns.columns else None
    answers = Answers(
        tuple(kept), tuple(digests), joined.pop(""), abstained, reasons, seconds, alone=joined, known=persons,
        there=np.concatenate(there),
    )  # fmt: skip
    return answers, known, unread


@dataclass(frozen=True, eq=False)
class _Ready:
    """A case as it is asked about."""

    entry: Entry
    image: Image
    digest: str
    pixels: NDArray[np.float32]
    times: NDArray[np.float32]
    person: covariates.Encoded


def _ready(made: Model, entry: Entry, seen: frozenset[int]) -> _Ready | None:
    """The case read and prepared; ``None`` where the model has seen an image of it.

    Raises:
        Problem: it cannot be read, or does not fit the model.
    """
    plan = made.recipe.image
    case = data.read_case(entry, moments=made.recipe.moments, names=plan.modalities)
    raw = data.the_image(case, replace(plan, register=""))
    digest, images = identity.of_each(raw, made.recipe.moments)
    # Models of before kept the digest of the whole case.
    if not seen.isdisjoint(map(identity.short, (digest, *images))):
        return None
    image = data.the_image(case, plan)
    # As in training, which sees many cases too: one value that cannot be does not cost the case.
    person = covariates.encode(made.recipe.covariates, entry.covariates, refuse=False)
    return _Ready(entry, image, digest, data.prepare(image, plan), data.timeline(image, plan), person)


def _concatenate(pieces: Sequence[Answered]) -> Answered:
    def joined(name: str) -> Any:
        first = getattr(pieces[0], name)
        if isinstance(first, dict):
            return {task: np.concatenate([getattr(piece, name)[task] for piece in pieces]) for task in first}
        return np.concatenate([getattr(piece, name) for piece in pieces])

    return Answered(**{name: joined(name) for name in vars(pieces[0])})


def out_of_fold(made: Model, run: Path, found: Cohort, say: Say) -> tuple[Answers, list[str]]:
    """The answers of each fold's network to the cases left out of it; calibrated without that fold, too.

    Raises:
        Problem: the run has no folds, or the cohort is not the one it was trained on.
    """
    path = run / "out_of_fold.safetensors"
    if not path.exists():
        raise Problem("this run has no out-of-fold answers", path=run, fix="train with folds=5")
    _, held = model.read_tensors(path)
    if "there" not in held:
        # A run of before: of its cases an image is there, and of some something is known of the person.
        image = torch.ones(len(held["digest"]), 1, dtype=torch.bool)
        held["there"] = torch.cat([image, held["known"][:, None]], 1) if "known" in held else image
    # Asked as in training: what asks where something is has read, and counted, every moment.
    small, asked = (
        replace(made.recipe.image, size=(1, 1, 1), fit="stretch", register=""),
        tuple(made.recipe.tasks.values()),
    )
    loaded = data.load(found.entries, small, questions=asked)
    row_of = {int(d): i for i, d in enumerate(held["digest"].tolist())}
    pairs = [(e, d, row_of[identity.short(d)]) for e, d in zip(loaded.entries, loaded.digests, strict=True)
             if identity.short(d) in row_of]  # fmt: skip
    if len(pairs) < 0.9 * len(row_of):
        raise Problem(
            "this is not the cohort that the run was trained on", path=found.root,
            fix="give that cohort, or leave out --out-of-fold",
        )  # fmt: skip
    rows = np.array([row for _, _, row in pairs])
    fold = held["fold"].numpy()
    patients = np.array([e.patient for e, _, _ in pairs])
    answered = _folded(made, (held, rows, patients))
    parts = made.networks[0].subsets
    alone = {source: _folded(made, (held, rows, patients), source) for source in parts if source}
    there = np.asarray(held["there"].numpy()[rows], bool)
    answered = diagnosis.by_what_is_there({"": answered, **alone}, there, parts)
    limit = np.zeros(len(rows))
    for k in np.unique(fold):
        others = held["novelty"].numpy()[fold != k]
        limit[fold[rows] == k] = novelty.threshold(others, made.recipe.inference.refusals)
    doubts = [answered.score > limit]
    for name, task in made.tasks.items():
        if task.question.kind in ("multiclass", "ordinal"):
            held_in = answered.sets[name]
            doubts += [held_in.sum(1) > 1, np.asarray((answered.decision[name] & ~held_in).any(1))]
    abstained = np.logical_or.reduce(doubts)
    notes = [
        "each case is answered by the network that was trained without its patient, calibrated on the other folds"
    ]
    entries, digests = tuple(e for e, _, _ in pairs), tuple(d for _, d, _ in pairs)
    columns = made.recipe.covariates
    persons = covariates.table(columns, entries) if columns.columns else None
    found_all = Answers(
        entries,
        digests,
        answered,
        abstained,
        ("",) * len(entries),
        None,
        alone,
        persons,
        np.asarray(fold[rows]),
        there,
    )
    return found_all, notes


def _folded(
    made: Model, stored: tuple[Mapping[str, Tensor], NDArray[np.intp], NDArray[Any]], source: str = ""
) -> Answered:
    """Answers of rows of the stored outputs, each calibrated on the other folds; ``source``: by what alone."""
    held, rows, patients = stored
    fold = held["fold"].numpy()
    network = made.networks[0]
    beside = subsets.beside(network.sources, network.subsets[source])
    complete = np.asarray(held["there"].numpy()[rows][:, network.subsets[source]].all(1), bool)
    answered = Answered({}, {}, {}, {}, {}, held["novelty"].numpy()[rows], np.full(len(rows), np.nan))
    for name, task in made.tasks.items():
        outputs = held[calibration.key(source, f"outputs.{name}")].numpy()[rows]
        every = [held[calibration.key(one, f"outputs.{name}")].numpy()[rows] for one in beside]
        target = held[f"target.{name}"].numpy()[rows]
        size = (len(rows), len(task.question.classes))
        p, low, high = np.zeros(size), np.zeros(size), np.zeros(size)
        sets, decision = np.zeros(size, bool), np.zeros(size, bool)
        for k in np.unique(fold):
            inside = fold[rows] == k
            others = np.flatnonzero(~inside)
            others = others[calibration.rows_for(task, target[others], complete[others])]
            if len(every) > 1:
                weights = calibration.mixing(task, [each[others] for each in every], target[others])
                outputs = np.tensordot(weights, np.stack(every), 1)
            fitted = calibration.fit(
                task, outputs[others], target[others], patients[others].tolist(),
                coverage=made.recipe.inference.coverage, rule=made.recipe.inference.threshold,
            )  # fmt: skip
            p[inside] = calibration.apply(task, fitted, outputs[None, inside])
            low[inside], high[inside] = calibration.intervals(task, fitted, outputs[None, inside])
            sets[inside] = calibration.sets(task, p[inside], float(fitted.quantile[0]))
            decision[inside] = calibration.decide(task, p[inside], fitted.threshold)
        answered.probability[name], answered.low[name], answered.high[name] = p, low, high
        answered.sets[name], answered.decision[name] = sets, decision
    return answered


def only(answers: Answers, rows: NDArray[np.bool_]) -> Answers:
    """Some of the answers."""
    at = np.flatnonzero(rows).tolist()
    entries = tuple(answers.entries[i] for i in at)
    digests, reasons = tuple(answers.digests[i] for i in at), tuple(answers.reasons[i] for i in at)
    alone = {source: _rows(each, rows) for source, each in answers.alone.items()}
    known = None if answers.known is None else answers.known[rows]
    fold = None if answers.fold is None else answers.fold[rows]
    answered = _rows(answers.answered, rows)
    there = None if answers.there is None else answers.there[rows]
    return Answers(
        entries, digests, answered, answers.abstained[rows], reasons, answers.seconds, alone, known, fold, there
    )


def _rows(answered: Answered, rows: NDArray[np.bool_]) -> Answered:
    def of(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: of(one) for name, one in value.items()}
        return value[rows] if len(value) else value

    return Answered(**{name: of(value) for name, value in vars(answered).items()})
