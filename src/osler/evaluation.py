"""How good a model is on cases that it has not seen, with intervals, and how often that was looked at."""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import (
    cohort,
    covariates,
    data,
    dense_scoring,
    diagnosis,
    files,
    modalities,
    model,
    report,
    scoring,
    sources,
)
from osler.answers import Answers, answer_all, only
from osler.answers import out_of_fold as folded_answers
from osler.case import DENSE, Entry, Finding, Question
from osler.cohort import Cohort, Test
from osler.model import Model
from osler.predictions import Predictions
from osler.problem import Problem
from osler.pseudonym import pseudonym, remember

Say = Callable[[str], None]


def evaluate(
    run: Path | str,
    cohort_path: Path | str,
    out: Path | str,
    *,
    cohort_file: Path | str | None = None,
    against: Path | str | None = None,
    out_of_fold: bool = False,
    draws: int = 2000,
    say: Say = print,
) -> dict[str, Any]:
    """Measures a model on the test part of a cohort, or on all of a cohort that names no parts.

    Cases whose pixels the model has seen in training or calibration are left out, and it is said.

    Args:
        run: run folder or model file.
        cohort_path: in any layout; ``cohort_file`` is a ``cohort.toml`` outside of it.
        out: folder for ``evaluation.json``, ``predictions.csv``, ``evaluation.html``, ``names.csv``.
        cohort_file: see above.
        against: another run, compared case by case on the same cases.
        out_of_fold: instead take the answers that each fold's network gave to the cases it was not trained on,
            calibrated on the other folds.
        draws: of the bootstrap.
        say: takes one line at a time.

    Returns:
        The content of ``evaluation.json``.

    Raises:
        Problem: nothing can be measured honestly.
    """
    run, out = Path(run), Path(out)
    made = model.load(run)
    given = cohort.read(Path(cohort_path), None if cohort_file is None else Path(cohort_file))
    other = None if against is None else Path(against)
    if made.recipe.dense:
        from osler import dense_evaluation
    if made.recipe.dense and not made.recipe.linked:
        return dense_evaluation.evaluate(
            run, made, given, out, out_of_fold=out_of_fold, draws=draws, say=say, against=other
        )
    found, notes = _in_the_models_words(given, made)
    for problem in found.problems[:5]:
        say(f"left out: {problem}")
    answers, more = folded_answers(made, run, found, say) if out_of_fold else _unseen(made, found, say)
    notes += [*more, *_refused_values(made, answers)]
    notes += modalities.unregistered(made.recipe.image, answers.entries, answers.there)
    digest = cohort.digest(answers.entries, answers.digests)
    files.folder(out)
    tables = [_predictions(made, name, answers) for name in made.tasks]
    part = _part_name(found, out_of_fold, notes)
    told: dict[str, Any] = {
        "abstained": int(answers.abstained.sum()),
        "refused_as_novel": None if out_of_fold else _refused(made, answers),
        "seconds_per_case": answers.seconds,
        "notes": notes,
        "tasks": {name: scoring.score(table, draws=draws) for name, table in zip(made.tasks, tables, strict=True)},
    }
    if made.networks[0].sources == model.ALONE:
        told["covariates"] = _sources(made, run, answers, tables, draws)
    elif answers.alone:
        told["modalities"] = _modalities(made, answers, tables, draws)
    reviewed = None
    if made.recipe.linked:
        reviewed, more = dense_evaluation.measure(run, made, given, out_of_fold=out_of_fold, say=say)
        notes += [note for note in more if note not in notes]
        told["tasks"] |= dense_evaluation.summaries(made, reviewed, draws)
        told["concordance"] = dense_evaluation.concordance(reviewed, draws)
    if other is not None:
        theirs = model.load(other)
        told["comparison"] = {"model": theirs.sha256, "tasks": {}}
        if theirs.tasks:
            told["comparison"] = _compare(other, answers, tables, say, found if out_of_fold else None)
        if reviewed is not None and theirs.recipe.dense:
            compared = dense_evaluation.against_run(other, (made, reviewed), given, out_of_fold, draws)
            told["comparison"]["tasks"] |= compared["tasks"]
    # Counted once it is measured: what ended in an error told nobody anything.
    result = head(made, found, answers.entries, digest, part, log(run, digest, len(answers.entries))) | told
    if reviewed is not None:
        files.replaced(out / "places.csv", dense_evaluation.csv_of(reviewed))
    _write(out, result, tables, answers, None if reviewed is None else reviewed.examples)
    for line in lines(result):
        say(line)
    return result


def head(made: Model, found: Cohort, entries: Sequence[Entry], digest: str, part: str, times: int) -> dict[str, Any]:
    """What ``evaluation.json`` begins with, of whatever is measured.

    ``entries``: those of the cohort that were answered, with the ``digest`` of them and their pixels; ``times``: how
    often that was evaluated (:func:`log`).
    """
    return {
        "schema_version": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": made.sha256,
        "cohort": digest,
        "part": part,
        "times_evaluated": times,
        "cases": len(entries),
        "patients": len({entry.patient for entry in entries}),
        "grouping": found.grouping or "each case its own patient",
    }


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What an evaluation says."""
    yield from result["notes"]
    for one in result["tasks"].values():
        yield from (dense_scoring if one["kind"] in DENSE else scoring).describe(one)
    for name, one in result.get("covariates", {}).items():
        yield from sources.describe(name, one)
    for name, one in result.get("modalities", {}).items():
        yield from modalities.describe(name, one)
    if "concordance" in result:
        yield _in_words(result["concordance"])
    times = result["times_evaluated"]
    yield f"this cohort was evaluated {times} time{'s' if times > 1 else ''} with models of this run folder"


def _refused_values(made: Model, answers: Answers) -> list[str]:
    """What a diagnosis of one case refuses counts as unknown here, as it did in training: that is said."""
    plan = made.recipe.covariates
    names = [name for e in answers.entries for name in covariates.encode(plan, e.covariates, refuse=False).refused]
    return [
        f"{count} cases have a value of {name} that cannot be right: it counts as missing"
        for name, count in Counter(names).items()
    ]


def _in_words(found: Mapping[str, Any]) -> str:
    """What an evaluation says of concordance."""
    parts = []
    for name in ("concordant", "discordant"):
        wrong = found[name]["wrong"]
        if wrong["value"] is not None:
            span = f"({wrong['low']:.0%} to {wrong['high']:.0%})"
            parts.append(f"{wrong['value']:.0%} {span} of {found[name]['cases']} {name} cases")
    ratio = found["risk_ratio"]
    times = "" if ratio["value"] is None else f": {ratio['value']:.1f} times as often"
    if times and ratio["low"] is not None:
        times += f" ({ratio['low']:.1f} to {ratio['high']:.1f})"
    return f"the class was wrong in {' and '.join(parts)}{times}"


def _part_name(found: Cohort, out_of_fold: bool, notes: Sequence[str]) -> str:
    if out_of_fold:
        return "out of fold"
    if notes and any("were left out: the model saw" in note for note in notes):
        return "unseen"
    return "test" if any(entry.split == "test" for entry in found.entries) else "all"


def _refused(made: Model, answers: Answers) -> int:
    limit = made.calibration.get("novelty.threshold")
    return 0 if limit is None else int((answers.answered.score > limit[0]).sum())


# --- labels ------------------------------------------------------------------------------------------------


def _in_the_models_words(found: Cohort, made: Model) -> tuple[Cohort, list[str]]:
    """The cohort with its tasks and classes named as the model names them.

    Raises:
        Problem: the cohort lacks a task of the model, or has a class that the model does not know.
    """
    notes: list[str] = []
    if not found.questions:
        raise Problem(
            "the cohort has no labels, so nothing can be measured", path=found.root, fix="use osler diagnose"
        )
    renamed: dict[str, str] = {}
    for name, task in made.tasks.items():
        given = next((q for q in found.questions if q.task == name), None)
        if given is None and len(found.questions) == 1 and len(made.tasks) == 1:
            given = found.questions[0]
            notes.append(f"the cohort's {given.task} is taken for the model's {name}")
        if given is None:
            known = ", ".join(q.task for q in found.questions)
            raise Problem(
                f"the model answers {name!r}, the cohort has labels for {known}", path=found.root,
                fix=f"name the label {name}: a column label.{name}, or [label.{name}] in a cohort.toml",
            )  # fmt: skip
        renamed[given.task] = name
        found, note = _same_classes(found, given, task.question)
        notes += note
    entries = tuple(
        replace(e, findings=tuple(replace(f, task=renamed[f.task]) for f in e.findings if f.task in renamed))
        for e in found.entries
    )
    return replace(found, entries=entries, questions=tuple(t.question for t in made.tasks.values())), notes


def _same_classes(found: Cohort, given: Question, wanted: Question) -> tuple[Cohort, list[str]]:
    if given.kind != wanted.kind and {given.kind, wanted.kind} != {"multiclass", "ordinal"}:
        raise Problem(
            f"the model answers {wanted.task} as {wanted.kind}, the cohort's labels are {given.kind}",
            path=found.root, fix="say the kind in a cohort.toml",
        )  # fmt: skip
    strange = [name for name in given.classes if name not in wanted.classes]
    if not strange or wanted.kind == "regression":
        return found, []
    if all(name.isdigit() and int(name) < len(wanted.classes) for name in given.classes):
        table = {name: wanted.classes[int(name)] for name in given.classes}

        def named(finding: Finding) -> Finding:
            return replace(finding, name=table[finding.name]) if finding.task == given.task else finding

        entries = tuple(replace(e, findings=tuple(named(f) for f in e.findings)) for e in found.entries)
        pairs = ", ".join(f"{a} = {b}" for a, b in table.items())
        return replace(found, entries=entries), [f"the classes have numbers, taken in the model's order: {pairs}"]
    raise Problem(
        f"the cohort has classes that the model does not know: {', '.join(strange)}",
        path=found.root,
        fix=f"rename them to {', '.join(wanted.classes)}",
    )


# --- answers -----------------------------------------------------------------------------------------------


def _unseen(made: Model, found: Cohort, say: Say) -> tuple[Answers, list[str]]:
    """Answers for the test part (or all), without what the model has seen."""
    part = [e for e in found.entries if e.split == "test"] or list(found.entries)
    seen = frozenset(made.calibration.get("seen", np.empty(0, np.int64)).tolist())
    answers, known, unread = answer_all(made, Test(tuple(part)), say, seen)
    notes = []
    if unread:
        notes.append(f"{unread} cases could not be read and are not counted")
    if known:
        notes.append(f"{known} cases were left out: the model saw their pixels in training or calibration")
    if answers is None:
        raise Problem(
            "the model has seen every case of this cohort" if known else "no case could be read", path=found.root,
            fix="evaluate on other cases, or with --out-of-fold where it was trained with folds",
        )  # fmt: skip
    return answers, notes


def _predictions(made: Model, name: str, answers: Answers, source: str = "") -> Predictions:
    """What was said of one task; ``source``: by what alone."""
    task = made.tasks[name]
    question = task.question
    target = np.stack([task.encode(entry.findings) for entry in answers.entries]).astype(float)
    # Identifiers are no subgroups, and have no business in a report.
    columns = {key for e in answers.entries for key in (*e.metadata, *e.covariates)}
    names = sorted(key for key in columns if not key.lower().endswith(("uid", "path", "id")))
    metadata = {key: tuple({**e.metadata, **e.covariates}.get(key) for e in answers.entries) for key in names}
    fitted = diagnosis.calibrated(made, name, source)
    number = question.kind == "regression"
    a = answers.alone[source] if source else answers.answered
    plan = made.recipe.image

    def picture(row: int) -> NDArray[np.uint8]:
        from osler import explanation

        case = data.read_case(answers.entries[row], moments=made.recipe.moments, names=plan.modalities)
        return explanation.picture(data.the_image(case, replace(plan, register="")))

    return Predictions(
        cases=tuple(pseudonym(e.id) for e in answers.entries),
        patients=tuple(pseudonym(e.patient) for e in answers.entries),
        question=question,
        target=target if question.kind == "multilabel" else target[:, 0],
        probability=a.probability[name],
        abstained=answers.abstained,
        threshold=None if number else fitted.threshold,
        decision=None if number else a.decision[name],
        low=a.low[name] if number and np.isfinite(a.low[name]).all() else None,
        high=a.high[name] if number and np.isfinite(a.high[name]).all() else None,
        sets=None if number else a.sets[name],
        coverage=float(fitted.coverage[0]),
        novelty=a.score if np.isfinite(a.score).all() else None,
        metadata=metadata,
        images=picture,
    )


def _sources(made: Model, run: Path, answers: Answers, tables: Sequence[Predictions], draws: int) -> dict[str, Any]:
    """Of each task: the image alone, the covariates alone, both, and a table method, on the same cases."""
    assert answers.known is not None
    boosted = sources.boosted(run, made, answers.known, answers.fold)
    result = {}
    for table in tables:
        name = table.question.task
        by = {source: _predictions(made, name, answers, source) for source in model.ALONE}
        by["both"] = table
        if name in boosted:
            by["table"] = sources.as_predictions(table, boosted[name])
        result[name] = sources.measure(by, np.asarray(np.isfinite(answers.known).any(1), bool), draws)
    return result


def _modalities(made: Model, answers: Answers, tables: Sequence[Predictions], draws: int) -> dict[str, Any]:
    """Of each task: every set of modalities on the cases that have it."""
    assert answers.there is not None
    parts = made.networks[0].subsets
    result = {}
    for table in tables:
        name = table.question.task
        by = {part: _predictions(made, name, answers, part) if part else table for part in parts}
        result[name] = modalities.measure(by, answers.there, parts, draws)
    return result


def _compare(
    other: Path, answers: Answers, tables: Sequence[Predictions], say: Say, folded: Cohort | None = None
) -> dict[str, Any]:
    """Paired differences, this run minus the other, on the cases that both can be measured on.

    ``folded``: of a cohort that both were trained on with folds, their answers out of fold are compared.
    """
    made = model.load(other)
    for table in tables:
        asked = made.tasks.get(table.question.task)
        if asked is not None and asked.question != table.question:
            raise Problem(
                f"the other run has other classes of {table.question.task}", path=other, fix="compare like with like"
            )
    known = 0
    theirs: Answers | None
    if folded is not None:
        inside = {entry.id for entry in answers.entries}
        theirs, _ = folded_answers(made, other, folded, say)
        theirs = only(theirs, np.array([entry.id in inside for entry in theirs.entries]))
    else:
        seen = frozenset(made.calibration.get("seen", np.empty(0, np.int64)).tolist())
        theirs, known, _ = answer_all(made, Test(answers.entries), say, seen)
    if theirs is None:
        raise Problem(
            "the other run has seen all of these cases, so there is nothing to compare", path=other,
            fix="compare on cases that neither was trained on",
        )  # fmt: skip
    if known:
        say(f"compared without {known} cases that the other run has seen")
    place = {entry.id: i for i, entry in enumerate(answers.entries)}
    rows = np.array([place[entry.id] for entry in theirs.entries])
    mask = np.zeros(len(answers.entries), bool)
    mask[rows] = True
    result: dict[str, Any] = {"model": made.sha256, "tasks": {}}
    for table in tables:
        if table.question.task in made.tasks:
            second = _predictions(made, table.question.task, theirs)
            result["tasks"][table.question.task] = scoring.compare(table.take(mask), second)
    return result


# --- what is written ---------------------------------------------------------------------------------------


def log(run: Path, digest: str, cases: int) -> int:
    """Notes this evaluation beside the model; returns how often this cohort was evaluated there."""
    path = (run if run.is_dir() else run.parent) / "evaluations.jsonl"
    before = []
    if path.exists():
        # A line that a full disk cut short must not stop every later evaluation.
        before = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    row = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cohort": digest, "cases": cases}
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        what = f"the log of evaluations cannot be written ({error.strerror})"
        raise Problem(what, path=path, fix="make the run folder writable") from error
    return 1 + len([entry for entry in before if entry["cohort"] == digest])


def _write(
    out: Path, result: dict[str, Any], tables: Sequence[Predictions], answers: Answers, examples: Any = None
) -> None:
    try:
        text = json.dumps(result, indent=1, allow_nan=False, default=lambda array: array.tolist())
        files.replaced(out / "evaluation.json", text)
        files.replaced(out / "predictions.csv", _csv(tables, answers))
        remember(out, [entry.id for entry in answers.entries])
        report.evaluation_page(result, list(tables), out / "evaluation.html", examples)
    except OSError as error:
        raise files.unwritten(out, error) from error


def _csv(tables: Sequence[Predictions], answers: Answers) -> str:
    """A row a case: truth, probabilities, decision, conformal set, of each task; novelty, abstained, reasons."""
    columns: dict[str, Sequence[Any]] = {"case": tables[0].cases, "patient": tables[0].patients}
    for table in tables:
        name, classes = table.question.task, table.question.classes
        if table.question.kind == "multilabel":
            columns |= {f"{name}.{c}.truth": table.target[:, k].tolist() for k, c in enumerate(classes)}
        elif table.question.kind == "regression":
            columns[f"{name}.truth"] = table.target.tolist()
        else:
            columns[f"{name}.truth"] = [classes[int(t)] if np.isfinite(t) else "" for t in table.target]
        columns |= {f"{name}.{c}": table.probability[:, k].tolist() for k, c in enumerate(classes)}
        if table.question.kind != "regression":
            columns[f"{name}.stated"] = [_words(classes, row) for row in table.stated]
            if table.sets is not None:
                columns[f"{name}.set"] = [_words(classes, row) for row in table.sets]
    columns |= {"novelty": answers.answered.score.tolist(), "abstained": answers.abstained.astype(int).tolist()}
    columns["reasons"] = answers.reasons
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _words(classes: Sequence[str], row: NDArray[np.bool_]) -> str:
    return "|".join(name for name, yes in zip(classes, row, strict=True) if yes)
