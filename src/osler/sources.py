"""What image and covariates are each worth: the image alone, the covariates alone, both, and a table method beside.

Whoever adds covariates wants to know whether the image still adds anything, and whether a network was needed at all.
So the same cases are answered four times, by one model with the other source hidden, and by gradient-boosted trees
(scikit-learn's histogram-based ones) that were trained on the covariates of the same training cases.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import model, scoring
from osler.case import Question
from osler.model import Model
from osler.pages.wording import SOURCES
from osler.predictions import Predictions

# What depends on no threshold.
_FIGURES = ("auroc", "brier", "mae", "r2")
_DIFFERENCES = (("both", "image"), ("both", "covariates"), ("covariates", "table"), ("both", "table"))
Rows = NDArray[np.float32]


def measure(by: Mapping[str, Predictions], known: NDArray[np.bool_], draws: int = 2000) -> dict[str, Any]:
    """Figures by source and their paired differences, the content of ``covariates.<task>`` in ``evaluation.json``.

    Args:
        by: source to what was said by it, of the same cases.
        known: of which cases anything is known beside the image.
        draws: of the bootstrap.
    """
    found: dict[str, Any] = {"n": len(known), "known": int(known.sum()), "sources": {}, "differences": {}}
    for name, rows in by.items():
        found["sources"][name] = scoring.figures(rows, _FIGURES, draws)
    for first, second in _DIFFERENCES:
        if first in by and second in by:
            compared = scoring.compare(by[first], by[second], draws, only=_FIGURES)
            found["differences"][f"{first} - {second}"] = compared["differences"]
    return found


def describe(task: str, found: Mapping[str, Any]) -> list[str]:
    """In lines: each source with its first figure, then the differences."""
    first = next((name for name in _FIGURES if name in found["sources"]["both"]), None)
    if first is None:
        return []
    title = {"auroc": "AUROC", "brier": "Brier score", "mae": "mean error", "r2": "R2"}[first]
    parts = [f"{SOURCES[name]} {scoring.said(one[first])}" for name, one in found["sources"].items()]
    lines = [f"{task}, {title}: {'; '.join(parts)}."]
    for name, one in found["differences"].items():
        left, right = name.split(" - ")
        if first in one and one[first]["value"] is not None:
            lines.append(f"{SOURCES[left]} less {SOURCES[right]}: {scoring.said(one[first])}.")
    return lines


# --- a table method beside ----------------------------------------------------------------------------------


def boosted(run: Path, made: Model, known: Rows, fold: NDArray[np.int64] | None) -> dict[str, NDArray[np.float64]]:
    """What gradient-boosted trees say of each task from the covariates alone, ``(n, classes)``.

    Args:
        run: run folder, or the model in it; without the folder there are no training cases, and the answer is empty.
        made: its model.
        known: the covariates ``(n, k)`` of the cases.
        fold: of each case, the fold whose training cases it must not be judged by; ``None``: all may be used.
    """
    path = (run if run.is_dir() else run.parent) / "covariates.safetensors"
    if not path.exists():
        return {}
    _, stored = model.read_tensors(path)
    rows, at = stored["covariates"].numpy(), stored["fold"].numpy()
    plan = made.recipe.covariates
    labels = [plan.kinds[name] == "category" for name in plan.columns]
    found = {}
    for name, task in made.tasks.items():
        target = stored[f"target.{name}"].numpy()
        said = np.full((len(known), len(task.question.classes)), np.nan)
        for k in [None] if fold is None else np.unique(fold):
            inside = np.ones(len(known), bool) if k is None else fold == k
            training = np.ones(len(rows), bool) if k is None else at != k
            said[inside] = trees(task.question, (rows[training], target[training]), known[inside], labels)
        if np.isfinite(said).all():
            found[name] = said
    return found


def trees(
    question: Question, training: tuple[Rows, Rows], asked: Rows, labels: Sequence[bool]
) -> NDArray[np.float64]:
    """Probabilities (of a regression the value) ``(n, classes)`` by histogram-based gradient boosting.

    A class that no training case has gets probability 0, and where there is but one, that one gets 1.

    Args:
        question: what is asked.
        training: covariates ``(m, k)`` and targets ``(m, t)``, NaN unknown.
        asked: covariates ``(n, k)``.
        labels: which columns are categories.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    rows, target = training
    # A column without any value cannot be binned, and says nothing.
    useful = [i for i in range(rows.shape[1]) if np.isfinite(rows[:, i]).any()]
    options: dict[str, Any] = {
        "min_samples_leaf": max(2, min(20, len(rows) // 10)),
        "categorical_features": [labels[i] for i in useful] if any(labels[i] for i in useful) else None,
        "early_stopping": False,
        "random_state": 0,
    }

    def probabilities(y: Rows, classes: int) -> NDArray[np.float64]:
        there = np.isfinite(y)
        present = np.unique(y[there]).astype(int)
        found = np.zeros((len(asked), classes))
        if len(present) < 2 or not useful:
            shares = [(y[there] == c).mean() if there.any() else 1 / classes for c in range(classes)]
            return np.asarray(found + np.array(shares))
        made = HistGradientBoostingClassifier(**options).fit(rows[there][:, useful], y[there].astype(int))
        found[:, present] = made.predict_proba(asked[:, useful])
        return found

    if question.kind == "regression":
        there = np.isfinite(target[:, 0])
        if not useful or not there.any():
            return np.full((len(asked), 1), float(np.nanmean(target[:, 0])) if there.any() else 0.0)
        made = HistGradientBoostingRegressor(**options).fit(rows[there][:, useful], target[there, 0])
        return np.asarray(made.predict(asked[:, useful])[:, None], np.float64)
    if question.kind == "multilabel":
        return np.stack([probabilities(target[:, c], 2)[:, 1] for c in range(target.shape[1])], 1)
    return probabilities(target[:, 0], len(question.classes))


def as_predictions(like: Predictions, said: NDArray[np.float64]) -> Predictions:
    """The trees' answers to the cases of other ones."""
    return replace(like, probability=said, decision=None, sets=None, low=None, high=None, coverage=None)
