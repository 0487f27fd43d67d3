"""How well a model finds and outlines what is there, on cases that it has not seen."""

import csv
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import (
    cohort,
    covariates,
    data,
    dense_parts,
    dense_rows,
    dense_scoring,
    diagnosis,
    doubt,
    evaluation,
    files,
    identity,
    linking,
    model,
    origins,
    places,
    report,
    scoring,
)
from osler.case import Diagnosis, Entry, Question
from osler.cohort import Cohort, Test
from osler.dense_rows import Row
from osler.metrics.bootstrap import bootstrap
from osler.metrics.estimate import NAN, Estimate, wilson
from osler.model import Model, Network
from osler.pages import overlays
from osler.pages.overlays import Example
from osler.problem import Problem
from osler.progress import Progress
from osler.pseudonym import pseudonym, remember

Say = Callable[[str], None]
# Cases whose pictures are kept, to choose those of the page from.
MOST_EXAMPLES = 200


@dataclass(eq=False)
class Reviewed:
    """What was said about the cases of a cohort beside what is known of them.

    Attributes:
        entries, digests: those that were answered.
        rows: of each task, a list for each case: a row for each of its moments; empty where nothing is known.
        examples: of each task, for the page: cases of known truth with what was drawn on them.
        abstained: whether the model withheld its answer.
        seconds: wall time a case, reading included.
        seen, unread: how many the model had seen before, and how many could not be read.
        questions: what was asked of them.
        alone: of several modalities, the rows of the cases that have all of a part, answered from that part.
        concordant: of linked tasks, whether the answers agreed and whether the class was wrong; ``None`` where the
            class is unknown or no tasks are linked.
    """

    entries: list[Entry] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    rows: dict[str, list[list[Row]]] = field(default_factory=dict)
    examples: dict[str, list[Example]] = field(default_factory=dict)
    abstained: list[bool] = field(default_factory=list)
    seconds: float = 0.0
    seen: int = 0
    unread: int = 0
    questions: tuple[Question, ...] = ()
    concordant: list[tuple[bool, bool] | None] = field(default_factory=list)
    alone: dense_parts.Rows = field(default_factory=dict)


def evaluate(
    run: Path,
    made: Model,
    found: Cohort,
    out: Path,
    *,
    out_of_fold: bool,
    draws: int,
    say: Say,
    against: Path | None = None,
) -> dict[str, Any]:
    """Measures a model that only says where things are; see :func:`osler.evaluation.evaluate`.

    Raises:
        Problem: nothing can be measured honestly.
    """
    for problem in found.problems[:5]:
        say(f"left out: {problem}")
    reviewed, notes = measure(run, made, found, out_of_fold=out_of_fold, say=say)
    files.folder(out)
    digest = cohort.digest(reviewed.entries, reviewed.digests)
    named = "test" if any(entry.split == "test" for entry in found.entries) else "all"
    part = "out of fold" if out_of_fold else "unseen" if reviewed.seen else named
    told: dict[str, Any] = {
        "abstained": sum(reviewed.abstained),
        "refused_as_novel": None,
        "seconds_per_case": reviewed.seconds / len(reviewed.entries),
        "notes": notes,
        "tasks": summaries(made, reviewed, draws),
    }
    if reviewed.alone:
        told["modalities"] = {
            q.task: dense_parts.measure(q, reviewed.rows[q.task], reviewed.alone, _limit(made, q.task), draws)
            for q in reviewed.questions
        }
    if against is not None:
        told["comparison"] = against_run(against, (made, reviewed), found, out_of_fold, draws)
    times = evaluation.log(run, digest, len(reviewed.entries))
    result = evaluation.head(made, found, reviewed.entries, digest, part, times) | told
    _write(out, result, reviewed)
    for line in evaluation.lines(result):
        say(line)
    return result


def against_run(
    other: Path, ours: tuple[Model, Reviewed], found: Cohort, out_of_fold: bool, draws: int
) -> dict[str, Any]:
    """Paired differences to another run, in the form of ``comparison`` in ``evaluation.json``.

    Raises:
        Problem: there is nothing to compare.
    """
    theirs = model.load(other)
    if not set(theirs.networks[0].dense) & set(ours[0].networks[0].dense):
        raise Problem(
            "the other run looks for other things, so there is nothing to compare", path=other,
            fix="compare with a run of the same tasks",
        )  # fmt: skip
    shared = replace(found, questions=tuple(q for q in found.questions if q.task in theirs.recipe.tasks))
    reviewed, _ = measure(other, theirs, shared, out_of_fold=out_of_fold, say=lambda line: None, alone=False)
    return {"model": theirs.sha256, "tasks": compare(ours, (theirs, reviewed), draws)}


def measure(
    run: Path, made: Model, found: Cohort, *, out_of_fold: bool, say: Say, alone: bool = True
) -> tuple[Reviewed, list[str]]:
    """What is said of where things are in cases that a model has not seen, beside what is known, and notes on it.

    ``alone``: see :func:`review`.

    Raises:
        Problem: nothing can be measured honestly.
    """
    found = _asked(found, made)
    notes: list[str] = []
    part = Test(tuple([e for e in found.entries if e.split == "test"] or found.entries))
    if out_of_fold:
        part = Test(found.entries)
        of_case = folds(made, run)
        reviewed = review(
            made, part, found.questions, say, lambda digests: _network_of(made, of_case, digests[0]), alone=alone
        )
        notes.append("each case is answered by the network that was trained without its patient")
        notes.append("what makes findings sure (a few numbers) was fitted on the answers of all folds")
    else:
        seen = frozenset(made.calibration.get("seen", np.empty(0, np.int64)).tolist())
        reviewed = review(
            made, part, found.questions, say,
            lambda digests: made.networks if seen.isdisjoint(map(identity.short, digests)) else None, alone=alone,
        )  # fmt: skip
    if reviewed.unread:
        notes.append(f"{reviewed.unread} cases could not be read and are not counted")
    if reviewed.seen:
        what = "are not in the folds of this run" if out_of_fold else "the model saw their pixels in training"
        notes.append(f"{reviewed.seen} cases were left out: {what}")
    if not reviewed.entries:
        raise Problem(
            "no case of this cohort is left to measure on", path=found.root,
            fix="evaluate on other cases, or with --out-of-fold where it was trained with folds",
        )  # fmt: skip
    for question in found.questions:
        known = made.networks[0].dense[question.task].question.classes
        left = [name for name in known if name not in question.classes]
        if left:
            notes.append(f"the cohort says nothing of {', '.join(left)} ({question.task}): not measured")
    return replace(reviewed, questions=found.questions), notes


def summaries(made: Model, reviewed: Reviewed, draws: int) -> dict[str, Any]:
    """Every figure of every task that asks where something is."""
    return {q.task: _summary(made, q, reviewed, draws) for q in reviewed.questions}


def compare(ours: tuple[Model, Reviewed], theirs: tuple[Model, Reviewed], draws: int) -> dict[str, Any]:
    """Paired differences of two models, ours minus theirs, by task, on the cases that both answered."""
    (made, mine), (other, yours) = ours, theirs
    # By name: models that look at other images of a case know it by other digests.
    place = {entry.id: number for number, entry in enumerate(yours.entries)}
    both = [(a, place[entry.id]) for a, entry in enumerate(mine.entries) if entry.id in place]
    found: dict[str, Any] = {}
    for question in mine.questions:
        name = question.task
        if name not in yours.rows:
            continue
        pairs = [(mine.rows[name][a], yours.rows[name][b]) for a, b in both]
        kept = [(a, b) for a, b in pairs if len(a) == len(b)]
        rows = [row for a, _ in kept for row in a], [row for _, b in kept for row in b]
        if rows[0]:
            limits = _limit(made, name), _limit(other, name)
            found[name] = dense_scoring.compare(*rows, question, limits, draws)
    return found


def concordance(reviewed: Reviewed, draws: int) -> dict[str, Any]:
    """How often the class was wrong where answers agreed and where they did not, and the ratio of the two.

    Intervals draw patients (the ratio's stays open where one of the two was never wrong).
    """
    known = [
        (e.patient, *row) for e, row in zip(reviewed.entries, reviewed.concordant, strict=True) if row is not None
    ]
    patients = np.array([patient for patient, _, _ in known])
    agree, wrong = (np.array([row[k] for row in known], float) for k in (1, 2))

    def share(weight: NDArray[np.float64], part: NDArray[np.float64]) -> float:
        total = float((weight * part).sum())
        return float((weight * part * wrong).sum()) / total if total else float("nan")

    def ratio(weight: NDArray[np.float64]) -> float:
        low = share(weight, agree)
        return share(weight, 1 - agree) / low if low > 0 else float("nan")

    result: dict[str, Any] = {}
    for name, part in (("concordant", agree), ("discordant", 1 - agree)):
        rows = part > 0
        one = wilson(wrong[rows].sum(), rows.sum())
        result[name] = {"wrong": scoring.as_json(one), "cases": int(rows.sum())}
    result["risk_ratio"] = scoring.as_json(bootstrap(ratio, patients, draws) if known else Estimate(NAN, NAN, NAN, 0))
    return result


def _asked(found: Cohort, made: Model) -> Cohort:
    """The cohort with the questions of the model; what it does not know of its images stays unknown.

    Raises:
        Problem: it does not say where what the model looks for is.
    """
    known = {question.task: question for question in found.questions}
    asked = []
    for name, task in made.networks[0].dense.items():
        given = known.get(name)
        if given is None or not given.dense:
            where = ", ".join(q.task for q in found.questions if q.dense) or "nothing of the kind"
            raise Problem(
                f"the model answers {name!r}, the cohort says where of {where}", path=found.root,
                fix=f"name its masks or boxes {name}",
            )  # fmt: skip
        strange = [c for c in given.classes if c not in task.question.classes]
        if strange:
            raise Problem(
                f"the cohort has classes that the model does not know: {', '.join(strange)}", path=found.root,
                fix=f"rename them to {', '.join(task.question.classes)}, or leave them out",
            )  # fmt: skip
        if task.question.kind == "segmentation" and given.kind == "detection":
            raise Problem(
                f"the model outlines {name}, the cohort has boxes of it only", path=found.root, fix="give it masks"
            )
        asked.append(_in_its_values(given, task.question, found.root))
    return replace(found, questions=tuple(asked))


def _in_its_values(given: Question, wanted: Question, root: Path) -> Question:
    """The model's question about the classes that the cohort knows, with its value for pixels that are unknown.

    Classes are read by their names (``osler.outlines``), whatever their values are.

    Raises:
        Problem: the same names mean other pixels.
    """
    values = [value for group in wanted.values for value in group]
    of_model, of_cohort = (dict(zip(q.classes, q.values, strict=False)) for q in (wanted, given))
    regions = len(set(values)) < len(values)
    if regions and any(of_model[name] != group for name, group in of_cohort.items()):
        raise Problem(
            f"the regions of {wanted.task} are made up of other values than those of the model", path=root,
            fix="give them the values that the recipe of the model has in its tasks",
        )  # fmt: skip
    there = [k for k, name in enumerate(wanted.classes) if name in given.classes]
    wanted = replace(
        wanted, classes=tuple(wanted.classes[k] for k in there),
        values=tuple(wanted.values[k] for k in there) if wanted.values else (),
    )  # fmt: skip
    if given.ignore is None:
        return wanted
    if given.ignore in values:
        raise Problem(
            f"{given.ignore} stands for unknown pixels in this cohort and for a class in the model", path=root,
            fix="give unknown pixels a value that no class has",
        )  # fmt: skip
    return replace(wanted, ignore=given.ignore)


def folds(made: Model, run: Path) -> dict[int, int]:
    """Which fold left out which case, by 60 bits of the digest of its pixels.

    Raises:
        Problem: the run has no folds.
    """
    path = run / "out_of_fold.safetensors"
    if not path.exists():
        raise Problem("this run has no out-of-fold answers", path=run, fix="train with folds=5")
    _, held = model.read_tensors(path)
    return dict(zip(held["digest"].tolist(), held["fold"].tolist(), strict=True))


def _network_of(made: Model, fold: dict[int, int], digest: str) -> list[Network] | None:
    number = fold.get(identity.short(digest))
    return None if number is None else [made.networks[number]]


def review(
    made: Model,
    part: Test,
    questions: Sequence[Question],
    say: Say,
    networks: Callable[[Sequence[str]], Sequence[Network] | None],
    *,
    alone: bool = True,
) -> Reviewed:
    """Every case of a part, answered as ``diagnose`` does it, and compared with what is known.

    Args:
        made: the model.
        part: what is evaluated.
        questions: those of the model's dense tasks, in their order, as the part answers them.
        say: takes one line at a time.
        networks: from the digests of a case and of each of its images to the networks that may answer it; ``None``
            leaves it out.
        alone: of several images each case is answered from every part of them, too.
    """
    if not isinstance(part, Test):
        raise TypeError("a model is evaluated on Test, nothing else")
    tasks = dict(zip(made.networks[0].dense, questions, strict=True))
    result = Reviewed(rows={name: [] for name in tasks}, examples={name: [] for name in tasks})
    progress = Progress(len(part.entries), say)
    for number, entry in enumerate(part.entries, start=1):
        began = time.monotonic()
        try:
            with origins.named(entry, made.recipe.image.modalities):
                case = data.read_case(entry, questions, names=made.recipe.image.modalities)
                image = data.the_image(case, made.recipe.image)
                # As in training, which sees many cases too: one value that cannot be does not cost the case.
                known = covariates.possible(made.recipe.covariates, case.covariates)
                digest, each = identity.of_each(data.the_image(case, replace(made.recipe.image, register="")))
                asked = networks((digest, *each))
                if asked is None:
                    result.seen += 1
                    continue
                said = diagnosis.diagnose(made, replace(case, covariates=known), asked)
                answers = {name: (image, dense_parts.about(said.answers[name], q), q) for name, q in tasks.items()}
                rows = {name: dense_rows.of_case(case, *answer) for name, answer in answers.items()}
            result.seconds += time.monotonic() - began
            with origins.named(entry, made.recipe.image.modalities):
                from_parts = dense_parts.answered(made, case, image, questions, asked) if alone else {}
        except Problem as problem:
            result.unread += 1
            say(f"left out: {problem}")
            continue
        for name, found in from_parts.items():
            result.alone.setdefault(name, {})[len(result.entries)] = found
        result.entries.append(entry)
        result.digests.append(digest)
        result.abstained.append(said.abstained)
        result.concordant.append(_concordant(made, said, entry))
        shown = replace(case, id=pseudonym(entry.id))
        for name, row in rows.items():
            result.rows[name].append(row)
            if row:
                quality = dense_rows.mean_quality(row, said.answers[name].threshold or 0.0)
                drawn = overlays.example(shown, *answers[name], quality)
                result.examples[name] = _thinned([*result.examples[name], drawn])
        progress(number)
    return result


def _concordant(made: Model, said: Diagnosis, entry: Entry) -> tuple[bool, bool] | None:
    wrong = []
    for name, task in made.tasks.items():
        lead, target = linking.leading(said.answers[name]), task.encode(entry.findings)
        if lead is not None and np.isfinite(target[0]):
            wrong.append(lead != task.question.classes[int(target[0])])
    return (said.concordance.agree, any(wrong)) if said.concordance is not None and wrong else None


def _thinned(examples: list[Example]) -> list[Example]:
    """To choose the best, the middle and the worst from; of very many only some, or they would fill the memory."""
    if len(examples) <= MOST_EXAMPLES:
        return examples
    order = sorted(examples, key=lambda one: (np.isnan(one.quality), one.quality))
    return [*order[:10], *order[10:-10:2], *order[-10:]]


def _summary(made: Model, question: Question, reviewed: Reviewed, draws: int) -> dict[str, Any]:
    name = question.task
    limit = _limit(made, name)
    rows = [row for case in reviewed.rows[name] for row in case]
    unknown = sum(not case for case in reviewed.rows[name])
    return dense_scoring.summary(rows, question, threshold=limit, unknown=unknown, draws=draws)


def _limit(made: Model, task: str) -> float:
    """The chance from which a finding of this task is stated."""
    learned = places.of(made, list(made.networks[0].dense).index(task))
    return doubt.chance(learned.doubt, float(learned.doubt.threshold[0]))[0]


def _write(out: Path, result: dict[str, Any], reviewed: Reviewed) -> None:
    try:
        files.replaced(out / "evaluation.json", json.dumps(result, indent=1, allow_nan=False))
        files.replaced(out / "predictions.csv", csv_of(reviewed))
        report.evaluation_page(result, [], out / "evaluation.html", reviewed.examples)
        remember(out, [entry.id for entry in reviewed.entries])
    except OSError as error:
        raise files.unwritten(out, error) from error


def csv_of(reviewed: Reviewed) -> str:
    """A row for each moment of a case: the figures of each class of each task."""
    lines: list[dict[str, Any]] = []
    for number, entry in enumerate(reviewed.entries):
        frames = max((len(rows[number]) for rows in reviewed.rows.values()), default=0)
        for frame in range(max(1, frames)):
            line: dict[str, Any] = {"case": pseudonym(entry.id), "patient": pseudonym(entry.patient), "frame": frame}
            for name, rows in reviewed.rows.items():
                for row in rows[number][frame : frame + 1]:
                    for label, numbers in row.numbers.items():
                        line |= {f"{name}.{label}.{key}": value for key, value in numbers.items()}
                    for label, matched in row.matches.items():
                        line[f"{name}.{label}.boxes"] = int(matched.count.sum())
                        line[f"{name}.{label}.predicted"] = len(matched.score)
            lines.append(line | {"abstained": int(reviewed.abstained[number])})
    names = list(dict.fromkeys(key for line in lines for key in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
