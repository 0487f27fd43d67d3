"""How well do a few numbers, or one column of a table, tell a label? Out of fold, by patient, with an interval.

A shortcut is something that tells the label though it is not the disease (Geirhos et al., *Shortcut learning in deep
neural networks*, 2020). It is looked for with the simplest thing that could use it: a regularised logistic regression
of measured numbers, or the mean label of each value of a column, learned on some patients and tried on others.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from osler import draws
from osler.case import Entry, Question
from osler.metrics.auroc import delong
from osler.metrics.estimate import NAN, Estimate, wilson

Cell = str | float | None

FOLDS = 5
# Few enough for seconds, enough that an AUROC is known to .01.
MOST_PATIENTS = 20_000
# Below that many patients with and without, no interval says much.
FEWEST_PATIENTS = 10
_BINS = 10
_MOST_LEVELS = 50


@dataclass(frozen=True, eq=False)
class Contrast:
    """One class against the rest, in the cases in which it is known.

    Attributes:
        task: name of the question.
        name: of the class; of a regression ``"NAME above its median"``.
        rows: place of each case among the entries, ``(m,)``.
        positive: whether it has the class, ``(m,)``.
        patients: number (0, 1, ...) of the patient of each, ``(m,)``.
        folds: 0 to 4, the same for all cases of a patient, with the same share of positives in each, ``(m,)``.
    """

    task: str
    name: str
    rows: NDArray[np.intp]
    positive: NDArray[np.bool_]
    patients: NDArray[np.intp]
    folds: NDArray[np.intp]


def contrasts(entries: Sequence[Entry], questions: Sequence[Question]) -> Iterator[Contrast]:
    """What can be told about each label: of two classes the second, of more each one, if enough patients have it.

    Of more than ``MOST_PATIENTS`` patients a random sample is taken, always the same. Where cases have a label as a
    whole, what is outlined in them would say the same once more.
    """
    whole = [question for question in questions if not question.dense]
    for question in whole or questions:
        for name, truth in _truths(entries, question):
            rows, patients = sample(entries, ~np.isnan(truth))
            positive = truth[rows] == 1
            if min(len(set(patients[positive])), len(set(patients[~positive]))) >= FEWEST_PATIENTS:
                yield Contrast(question.task, name, rows, positive, patients, folds(positive, patients))


def sample(
    entries: Sequence[Entry], known: NDArray[np.bool_], most: int = MOST_PATIENTS
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places of the known cases of so many patients at most, and the number of each one's patient."""
    names: dict[str, int] = {}
    patient = np.array([names.setdefault(entry.patient, len(names)) for entry in entries], np.intp)
    asked = np.zeros(len(names), bool)
    asked[patient[known]] = True
    order = draws.permutation(draws.keys(0, 1), len(names))
    drawn = np.zeros(len(names), bool)
    drawn[order[asked[order]][:most]] = True
    rows = np.flatnonzero(known & drawn[patient])
    return rows, patient[rows]


def _truths(entries: Sequence[Entry], question: Question) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Each class with 1 (has it), 0 or nan (unknown) for each case."""
    stated = [[f for f in entry.findings if f.task == question.task] for entry in entries]
    if question.kind == "regression":
        values = np.array([next((f.value for f in each if f.value is not None), NAN) for each in stated], np.float64)
        if not np.isnan(values).all():
            above = np.where(np.isnan(values), NAN, (values > np.nanmedian(values)).astype(np.float64))
            yield f"{question.classes[0]} above its median", above
        return
    one = question.kind != "multilabel" and not question.dense
    for name in question.classes[1:] if one and len(question.classes) == 2 else question.classes:
        yield name, np.array([_state(each, name, one) for each in stated], np.float64)


def _state(findings: Sequence[object], name: str, one: bool) -> float:
    stated = {f.name: f.probability for f in findings}  # type: ignore[attr-defined]
    if name in stated:
        return NAN if stated[name] is None else float(stated[name] == 1)
    return 0.0 if one and 1 in stated.values() else NAN


def folds(labels: NDArray[np.bool_] | NDArray[np.intp], patients: NDArray[np.intp]) -> NDArray[np.intp]:
    """0 to ``FOLDS - 1`` for each row, the same for all of a patient; each label is spread evenly over them."""
    names, first, place = np.unique(patients, return_index=True, return_inverse=True)
    fold = np.empty(len(names), np.intp)
    for number, label in enumerate(np.unique(labels)):
        which = np.flatnonzero(labels[first] == label)
        fold[which[draws.permutation(draws.keys(0, 2, number), len(which))]] = np.arange(len(which)) % FOLDS
    return fold[place]


def tell(features: NDArray[np.floating], contrast: Contrast, strength: float = 0.1) -> NDArray[np.float64]:
    """Out-of-fold scores, ``(m,)``, of a logistic regression of ``features``, a row for every entry ``(n, f)``.

    Args:
        features: any finite numbers; each is standardised on the patients that are learned from.
        contrast: what is to be told.
        strength: ``C`` of the ridge penalty: the smaller, the flatter.
    """
    x = np.asarray(features, np.float64)[contrast.rows]
    scores = np.zeros(len(x))
    for fold in range(FOLDS):
        out = contrast.folds == fold
        mean, deviation = x[~out].mean(0), x[~out].std(0)
        alive = deviation > 1e-9 * (1 + np.abs(mean))
        if not alive.any() or len(set(contrast.positive[~out])) < 2:
            continue
        z = np.clip((x[:, alive] - mean[alive]) / deviation[alive], -6, 6)
        fit = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
        scores[out] = fit.fit(z[~out], contrast.positive[~out]).decision_function(z[out])
    return scores


def tell_by_value(levels: NDArray[np.intp], contrast: Contrast) -> NDArray[np.float64]:
    """Out-of-fold scores, ``(m,)``, of a column: the share of positives among *other* patients of the same level.

    Args:
        levels: number (0, 1, ...) of the value of every entry, ``(n,)``, see :func:`levels`.
        contrast: what is to be told.
    """
    level = levels[contrast.rows]
    scores, most = np.zeros(len(level)), int(level.max()) + 1
    for fold in range(FOLDS):
        out = contrast.folds == fold
        share = contrast.positive[~out].mean()
        count = np.bincount(level[~out], minlength=most)
        found = np.bincount(level[~out], contrast.positive[~out], minlength=most)
        # Less the share of all that are learned from: with one patient out, that share leans the other way.
        scores[out] = ((found + 2 * share) / (count + 2) - share)[level[out]]
    return scores


def area(scores: NDArray[np.float64], contrast: Contrast, confidence: float = 0.95) -> Estimate:
    """The AUROC of scores with DeLong's interval over patients."""
    return delong(contrast.positive.astype(np.float64), scores, contrast.patients, confidence)


def family(tests: int, alarm: float = 0.01) -> float:
    """Confidence of each of so many two-sided intervals, for chance to lift any of them with probability ``alarm``.

    Bonferroni's correction. Tails that are normal only in the limit ask for less than one would allow.
    """
    return 1 - 2 * alarm / max(1, tests)


def number(cell: Cell) -> float:
    """The cell as a finite number, or nan."""
    try:
        value = NAN if cell is None else float(cell)
    except ValueError:
        return NAN
    return value if math.isfinite(value) else NAN


def levels(cells: Sequence[Cell]) -> NDArray[np.intp]:
    """A column as few levels, 0 for missing: tenths of a number with many values, else the most frequent words."""
    numbers = np.array([number(cell) for cell in cells], np.float64)
    missing = np.array([cell is None or cell == "" for cell in cells])
    known = ~np.isnan(numbers)
    if known.any() and known.sum() >= 0.9 * (~missing).sum() and len(np.unique(numbers[known])) > _BINS:
        edges = np.unique(np.quantile(numbers[known], np.linspace(0, 1, _BINS + 1)[1:-1]))
        found = np.searchsorted(edges, numbers, side="right") + 1
        return np.where(known, found, 0).astype(np.intp)
    counted = Counter(str(cell) for cell, gone in zip(cells, missing, strict=True) if not gone)
    place = {value: rank for rank, (value, _) in enumerate(sorted(counted.items(), key=lambda v: (-v[1], v[0])), 1)}
    places = [0 if gone else place[str(cell)] for cell, gone in zip(cells, missing, strict=True)]
    return np.minimum(np.array(places, np.intp), _MOST_LEVELS)


def newcombe(found: int, of: int, other_found: int, of_others: int, confidence: float = 0.95) -> Estimate:
    """The difference of two independent proportions with Newcombe's hybrid score interval (1998, method 10)."""
    one, other = wilson(found, of, confidence), wilson(other_found, of_others, confidence)
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high, of + of_others, "Newcombe")
