"""Several images of a case in which places are found from any part of them: how good every part is."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from osler import dense_rows, dense_scoring, diagnosis, registration, subsets
from osler.case import Answer, Case, Question
from osler.dense_rows import Row
from osler.image import Image
from osler.model import Model, Network

# Figures of the whole, and of each class, that a part is compared by.
FIGURES = ("dice", "nsd", "map50", "cpm", "lesion_sensitivity", "drawn_without")
# By part, then by number of the case, the rows of each task.
Rows = dict[str, dict[int, dict[str, list[Row]]]]


def parts(made: Model) -> dict[str, tuple[str, ...]]:
    """Every part of the modalities of a model that is not all of them, from large to small; of one image none."""
    names = made.recipe.image.modalities
    found = {}
    for part, mask in (subsets.of(names) if len(names) > 1 else {}).items():
        if part:
            found[part] = tuple(name for name, yes in zip(names, mask, strict=True) if yes)
    return found


def answered(
    made: Model, case: Case, image: Image, questions: Sequence[Question], networks: Sequence[Network]
) -> dict[str, dict[str, list[Row]]]:
    """What is found from every part that a case has, beside what is known: by part, then by task.

    The images stay on the one grid that they were brought to, on which the truth is known.

    Args:
        made: the model.
        case: with what is known of it.
        image: of :func:`osler.data.the_image`.
        questions: what is asked.
        networks: those that answer.
    """
    names = made.recipe.image.modalities
    there = {name: one for name, one in zip(names, image.together, strict=False) if one is not None}
    found = {}
    for part, members in parts(made).items():
        if set(members) <= set(there):
            laid = {name: registration.beside(there[name], image) for name in members}
            said = diagnosis.diagnose(made, replace(case, images=laid), networks)
            found[part] = {
                q.task: dense_rows.of_case(case, image, about(said.answers[q.task], q), q) for q in questions
            }
    return found


def about(answer: Answer, question: Question) -> Answer:
    """What is said about the classes that are asked."""
    return replace(answer, findings=tuple(f for f in answer.findings if f.name in question.classes))


def measure(
    question: Question, whole: Sequence[Sequence[Row]], alone: Rows, threshold: float, draws: int
) -> dict[str, Any]:
    """Figures by part, and what each is short of all images: ``modalities.<task>`` in ``evaluation.json``.

    Each part is measured on the cases that have all of it, and compared with all images on the cases that have those.

    Args:
        question: what was asked.
        whole: rows of each case, answered from all that it has.
        alone: the same from each part.
        threshold: score from which a box is stated.
        draws: of the bootstrap over patients.
    """
    task = question.task
    found = {"all": _one([rows for rows in whole if rows], question, threshold, draws)}
    for part, by_case in alone.items():
        known = {n: rows[task] for n, rows in by_case.items() if rows[task] and len(rows[task]) == len(whole[n])}
        found[part] = _one(list(known.values()), question, threshold, draws)
        complete = [n for n in known if all(n in each for each in alone.values())]
        if complete:
            ours, theirs = ([row for n in complete for row in rows[n]] for rows in (known, whole))
            compared = dense_scoring.compare(ours, theirs, question, (threshold, threshold), draws)
            found[part]["less_all"] = {k: v for k, v in compared["differences"].items() if k in FIGURES}
    return {"subsets": found}


def _one(cases: Sequence[Sequence[Row]], question: Question, threshold: float, draws: int) -> dict[str, Any]:
    told: dict[str, Any] = {"n": len(cases), "metrics": {}, "classes": {}, "less_all": {}}
    rows = [row for case in cases for row in case]
    if rows:
        summary = dense_scoring.summary(rows, question, threshold=threshold, draws=draws)
        told["metrics"] = _chosen(summary["metrics"])
        told["classes"] = {name: _chosen(one["metrics"]) for name, one in summary["classes"].items()}
    return told


def _chosen(metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: metrics[name] for name in FIGURES if name in metrics}
