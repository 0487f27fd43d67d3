"""How good predictions are: every figure with its interval, its number of cases and how it was found.

The result is plain data, the content of ``tasks.<task>`` in ``evaluation.json`` (docs/schemas). Rules that hold
throughout: metrics count *all* cases, also those that the model withheld; what is withheld is told apart under
``selective``. Unknown targets are left out one by one. A patient with several cases is one draw, not several.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from osler import curves, measures
from osler.case import Question
from osler.measures import Measures
from osler.metrics import auroc, selective
from osler.metrics.bootstrap import bootstrap
from osler.metrics.estimate import Estimate
from osler.predictions import Floats, Predictions

__all__ = ["Predictions", "compare", "describe", "figures", "score"]

SMALLEST_SUBGROUP = 20
MOST_SUBGROUPS = 12
BANDS_UP_TO = 3
_IN_SUBGROUPS = (
    "auroc",
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "quadratic_kappa",
    "mae",
    "r2",
)


def score(predictions: Predictions, draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Everything that is said about one task in ``evaluation.json``, as plain data.

    Args:
        predictions: of all cases, also of those withheld or of unknown truth.
        draws: bootstrap samples for an interval without a closed form.
        seed: of the bootstrap.

    Returns:
        ``kind, order`` (of the classes), ``n`` (cases with a known target), ``unknown, patients, metrics, classes,
        subgroups, selective, curves, notes``; an interval is ``{value, low, high, n, method}`` with ``None`` for
        what cannot be had, and then a ``note`` that says why.
    """
    question, rows = predictions.question, predictions.take(predictions.known)
    result = blank(question, n=len(rows.cases), unknown=len(predictions.cases) - len(rows.cases))
    result |= {"patients": len(set(rows.patients)), "coverage": predictions.coverage}
    if not rows.cases:
        return result | {"notes": ["No case has a known answer, so nothing could be measured."]}
    if question.kind != "regression":
        result["threshold"] = dict(zip(question.classes, rows.thresholds.tolist(), strict=True))
    result["metrics"] = _estimates(_measures(rows), draws, seed)
    result["classes"] = _classes(rows, result["metrics"], draws, seed)
    result["subgroups"], result["notes"] = _subgroups(rows, draws, seed)
    result["selective"] = _selective(rows, draws, seed)
    result["curves"] = _curves(rows, result, seed)
    return result


def blank(question: Question, *, n: int, unknown: int) -> dict[str, Any]:
    """The form of what is said about a task, before anything is.

    Args:
        question: of the task.
        n: cases, or rows of them, with a known answer.
        unknown: cases without.
    """
    return {
        "kind": question.kind,
        "unit": question.unit,
        "order": list(question.classes),
        "n": n,
        "unknown": unknown,
        "patients": 0,
        "coverage": None,
        "metrics": {},
        "classes": {},
        "subgroups": {},
        "selective": {},
        "curves": {},
        "notes": [],
    }


def figures(predictions: Predictions, names: Sequence[str], draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Some figures of a task, those of these names that it has, of the cases with a known target."""
    rows = predictions.take(predictions.known)
    if not rows.cases:
        return {}
    return _estimates({name: one for name, one in _measures(rows).items() if name in names}, draws, seed)


def compare(
    a: Predictions, b: Predictions, draws: int = 2000, seed: int = 0, only: Sequence[str] = ()
) -> dict[str, Any]:
    """Two models on the same cases: each figure of both, and their difference ``a - b`` with a paired interval.

    AUROC of one class by paired DeLong, all else by drawing the same patients for both. ``only``: figures of these
    names, where some are wanted.

    Raises:
        ValueError: the cases, the question or the truth differ.
    """
    same = a.cases == b.cases and a.question == b.question and a.patients == b.patients
    if not same or not np.array_equal(a.target, b.target, equal_nan=True):
        raise ValueError("two models can be compared on the same cases with the same truth only")
    a, b = a.take(a.known), b.take(b.known)
    ours, theirs = _measures(a), _measures(b)
    differences: dict[str, Any] = {}
    for name in (name for name in ours if name in theirs and (not only or name in only)):
        one, other = ours[name], theirs[name]
        if name == "auroc" and a.binary:
            clusters = None if a.one_each else a.clusters
            found = auroc.delong_paired(a.truth[:, 1], a.probability[:, 1], b.probability[:, 1], clusters)
        elif name.startswith("calibration"):
            continue
        else:
            paired = lambda w, f=one.statistic, g=other.statistic: f(w) - g(w)  # noqa: E731
            found = bootstrap(paired, a.clusters, draws, seed)
        every = np.ones(len(a.cases))
        differences[name] = {"a": _plain(one.statistic(every)), "b": _plain(other.statistic(every)), **as_json(found)}
    return {"n": len(a.cases), "patients": len(set(a.patients)), "differences": differences}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def as_json(estimate: Estimate) -> dict[str, Any]:
    """``{value, low, high, n, method}``, with ``None`` for what cannot be had, and then a ``note`` that says why."""
    value, low, high = (_plain(number) for number in (estimate.value, estimate.low, estimate.high))
    note = {} if value is not None else {"note": f"not defined on these {estimate.n} cases"}
    return {"value": value, "low": low, "high": high, "n": estimate.n, "method": estimate.method, **note}


def _estimates(found: Measures, draws: int, seed: int) -> dict[str, Any]:
    return {name: as_json(measure.estimate(draws, seed)) for name, measure in found.items()}


def _measures(rows: Predictions) -> Measures:
    """All figures of the question as a whole; every row has a known target."""
    clusters, kind = rows.clusters, rows.question.kind
    every = np.ones(len(rows.cases), bool)
    if kind == "regression":
        found = measures.numbers(rows.target, rows.probability[:, 0], clusters)
        if rows.low is not None and rows.high is not None:
            inside = (rows.low[:, 0] <= rows.target) & (rows.target <= rows.high[:, 0])
            width = rows.high[:, 0] - rows.low[:, 0]
            found["interval_coverage"] = measures.share(inside, every, clusters)
            found["interval_width"] = measures.average(width, clusters)
        return found
    arguments = rows.truth, rows.probability, rows.stated, clusters
    if kind == "multilabel":
        found = measures.labels(*arguments)
    elif rows.binary:
        found = _one_class(rows, 1)
    else:
        found = measures.several(*arguments)
    if kind == "ordinal":
        found |= measures.ranks(rows.truth, rows.stated, clusters)
    if rows.sets is not None:
        held = (rows.sets | (rows.truth != 1)).all(1)
        found["set_coverage"] = measures.share(held, every, clusters)
        found["set_size"] = measures.average(rows.sets.sum(1), clusters)
    return found


def _one_class(rows: Predictions, number: int) -> Measures:
    truth = rows.truth[:, number]
    known = np.isfinite(truth)
    return measures.two_sided(
        truth[known], rows.probability[known, number], rows.stated[known, number], rows.clusters[known]
    )


def _classes(rows: Predictions, whole: dict[str, Any], draws: int, seed: int) -> dict[str, Any]:
    if rows.question.kind == "regression":
        return {}
    result = {}
    for number, name in enumerate(rows.question.classes):
        truth, found = rows.truth[:, number], _one_class(rows, number)
        # Of two classes, the figures of the whole are those of the second.
        same = rows.binary and number == 1
        result[name] = {
            "n": int((truth == 1).sum()),
            "known": int(np.isfinite(truth).sum()),
            "metrics": {key: whole[key] for key in found} if same else _estimates(found, draws, seed),
        }
    return result


def _subgroups(rows: Predictions, draws: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Figures by the values of each metadata column; groups too small to say anything are counted only."""
    result, notes = {}, []
    for column, values in rows.metadata.items():
        groups, order = _grouped(values)
        count = len(order)
        if not 2 <= count <= MOST_SUBGROUPS:
            notes.append(f"No subgroups by {column}: it has {count} different value{'s' * (count != 1)}.")
            continue
        names = [*(name for name in order if name != "missing"), *(name for name in order if name == "missing")]
        result[column] = {name: _subgroup(rows.take((groups == name).to_numpy()), draws, seed) for name in names}
    return result, notes


def _grouped(values: tuple[Any, ...]) -> "tuple[pd.Series[Any], list[str]]":
    """The group of each row and the groups in order: numbers with many values in thirds, blanks as ``missing``."""
    column = pd.Series(list(values), dtype=object)
    column = column.where(column.notna() & (column != ""), None)
    number = pd.to_numeric(column, errors="coerce")
    if number.notna().sum() == column.notna().sum() and number.nunique() > MOST_SUBGROUPS // 2:
        low, high = (float(f"{edge:.4g}") for edge in number.quantile([1 / 3, 2 / 3]))
        order = [f"up to {low:g}", f"over {low:g} to {high:g}", f"over {high:g}"]
        parts = pd.Series(np.select([number <= low, number <= high], order[:2], order[2]), dtype=object)
        groups = parts.where(number.notna(), "missing")
    else:
        groups = column.map(str).where(column.notna(), "missing")
        order = sorted(set(groups)) if number.isna().any() else sorted(set(groups), key=float)
    return groups, [name for name in (*order, *({"missing"} - set(order))) if (groups == name).any()]


def _subgroup(rows: Predictions, draws: int, seed: int) -> dict[str, Any]:
    n, result = len(rows.cases), {"n": len(rows.cases), "patients": len(set(rows.patients))}
    if n < SMALLEST_SUBGROUP:
        return result | {"metrics": {}, "omitted": f"fewer than {SMALLEST_SUBGROUP} cases"}
    if rows.question.kind != "regression" and len(np.unique(rows.target[np.isfinite(rows.target)])) < 2:
        return result | {"metrics": {}, "omitted": "all cases have the same answer"}
    wanted = {name: measure for name, measure in _measures(rows).items() if name in _IN_SUBGROUPS}
    return result | {"metrics": _estimates(wanted, draws, seed)}


def _wrong(rows: Predictions) -> Floats:
    """``(n,)``: 1 for a wrong decision, the share of wrong labels, or the absolute error of a number."""
    if rows.question.kind == "regression":
        return np.abs(rows.probability[:, 0] - rows.target)
    if rows.question.kind == "multilabel":
        return np.asarray(np.nanmean(np.where(np.isfinite(rows.truth), rows.stated != rows.truth, np.nan), axis=1))
    return np.asarray((rows.stated.argmax(1) != rows.target).astype(float))


def _certainty(rows: Predictions) -> Floats | None:
    """``(n,)``: how far the answer is from being another one; ``None`` where a model does not say."""
    if rows.question.kind == "regression":
        return None if rows.low is None or rows.high is None else (rows.low - rows.high)[:, 0]
    if rows.binary or rows.question.kind == "multilabel":
        p, t = (np.clip(x, 1e-7, 1 - 1e-7) for x in (rows.probability, rows.thresholds))
        margin = np.abs(np.log(p / (1 - p)) - np.log(t / (1 - t)))
        return np.asarray(margin[:, 1] if rows.binary else margin.min(1))
    return np.asarray(rows.probability.max(1))


def _selective(rows: Predictions, draws: int, seed: int) -> dict[str, Any]:
    """What withholding answers bought: error among the answered, the withheld and all."""
    wrong, gave, every = _wrong(rows), ~rows.abstained, np.ones(len(rows.cases), bool)
    result: dict[str, Any] = {"abstained": int((~gave).sum())}
    found = {"abstained_share": measures.share(~gave, every, rows.clusters)}
    binary_error = rows.question.kind in ("multiclass", "ordinal")
    for name, among in (("error", every), ("error_answered", gave), ("error_withheld", ~gave)):
        if binary_error:
            found[name] = measures.share(wrong == 1, among, rows.clusters)
        else:
            found[name] = measures.average(wrong, rows.clusters, among)
    certainty = _certainty(rows)
    if certainty is not None:
        found["aurc"] = measures.Measure(lambda w: selective.aurc(wrong, certainty, w), rows.clusters, len(wrong))
    result |= _estimates(found, draws, seed)
    if gave.any() and not gave.all():
        brief = {k: v for k, v in _measures(rows.take(gave)).items() if k in _IN_SUBGROUPS}
        result["answered"] = _estimates(brief, draws, seed)
    return result


def _curves(rows: Predictions, result: dict[str, Any], seed: int) -> dict[str, Any]:
    """What the figures of a page are drawn from."""
    found: dict[str, Any] = {}
    certainty, question = _certainty(rows), rows.question
    if certainty is not None:
        error, answered = result["selective"]["error_answered"]["value"], float((~rows.abstained).mean())
        gate = {"coverage": answered, "risk": error}
        found["risk_coverage"] = curves.risk_coverage(_wrong(rows), certainty) | {"gate": gate}
    if question.kind == "regression":
        columns = {"target": rows.target, "value": rows.probability[:, 0]}
        if rows.low is not None and rows.high is not None:
            columns |= {"low": rows.low[:, 0], "high": rows.high[:, 0]}
        return found | {"agreement": {name: column.tolist() for name, column in columns.items()}}
    if question.kind != "multilabel":
        number = rows.target.astype(np.intp), rows.stated.argmax(1)
        found["confusion"] = curves.confusion(*number, len(question.classes))
    found |= {"roc": {}, "reliability": {}, "decision": {}}
    for j, name in enumerate(question.classes):
        truth = rows.truth[:, j]
        known = np.isfinite(truth)
        arguments = truth[known], rows.probability[known, j]
        if (rows.binary and j == 0) or not known.any():
            continue
        found["reliability"][name] = curves.reliability(*arguments)
        found["decision"][name] = curves.decision(*arguments)
        if 0 < truth[known].mean() < 1:
            few = len(question.classes) <= BANDS_UP_TO
            found["roc"][name] = curves.roc(*arguments, rows.clusters[known], seed if few else None)
    return found


def describe(result: dict[str, Any]) -> list[str]:
    """The result of :func:`score` in plain sentences, the most important first."""
    if not result["n"]:
        return list(result["notes"])
    metrics, kind, order = result["metrics"], result["kind"], result["order"]
    counted = {name: entry["n"] for name, entry in result["classes"].items()}
    cases = f"Of {result['n']:,} cases of {result['patients']:,} patients"
    told = [f"{name} in {n:,}" for name, n in counted.items()]
    labelled = " and ".join([", ".join(told[:-1]), *told[-1:]] if len(told) > 1 else told)
    sentences = [f"{cases}, the truth is {labelled}." if counted else f"{cases[3:]} were measured."]
    if result["unknown"]:
        sentences.append(f"{result['unknown']:,} more have no known answer and are not counted.")
    if len(order) == 2 and kind in ("multiclass", "ordinal"):
        sentences += _describe_two(metrics, *order)
    elif kind == "regression":
        within = f"The prediction is off by {said(metrics['mae'])} {result['unit']}".rstrip()
        sentences.append(f"{within} on average and explains {said(metrics['r2'], percent=True)} of the variance.")
    else:
        sentences.append(f"One class against the rest, the mean AUROC is {said(metrics['auroc'])}.")
        sentences.append(f"{said(metrics['accuracy'], percent=True)} of the decisions are right.")
    sentences += _describe_doubt(result)
    return sentences


def said(estimate: dict[str, Any], percent: bool = False) -> str:
    """A figure and its interval in words."""
    if estimate["value"] is None:
        return "(not defined)"
    shown = [f"{100 * x:.1f}" if percent else f"{x:.3g}" if abs(x) >= 1 else f"{x:.3f}" for x in _ends(estimate)]
    unit = " %" if percent else ""
    return f"{shown[0]}{unit}" + (f" ({shown[1]} to {shown[2]})" if len(shown) == 3 else "")


def _ends(estimate: dict[str, Any]) -> list[float]:
    ends = [estimate[key] for key in ("value", "low", "high")]
    return ends[:1] if None in ends else ends


def _describe_two(metrics: dict[str, Any], negative: str, positive: str) -> list[str]:
    if metrics["auroc"]["value"] is None:
        return ["All cases have the same answer, so how well the two are told apart cannot be measured."]
    sentences = [
        f"Given one case of each, the model ranks {positive} above {negative} in "
        f"{said(metrics['auroc'], percent=True)} of pairs (AUROC).",
        f"At the threshold fixed beforehand it finds {said(metrics['sensitivity'], percent=True)} of {positive} "
        f"(sensitivity) and clears {said(metrics['specificity'], percent=True)} of {negative} (specificity).",
    ]
    slope = metrics["calibration_slope"]
    if slope["value"] is not None:
        low, high = slope["low"], slope["high"]
        verdict = "too extreme" if high < 1 else "too cautious" if low > 1 else "neither too extreme nor too cautious"
        sentences.append(f"Its probabilities are {verdict} (calibration slope {said(slope)}; 1 is ideal).")
    return sentences


def _describe_doubt(result: dict[str, Any]) -> list[str]:
    """Sets, intervals and what was withheld."""
    metrics, doubt, sentences = result["metrics"], result["selective"], []
    promised = "" if result["coverage"] is None else f" ({100 * result['coverage']:g} % were promised)"
    if "set_coverage" in metrics:
        held, size = said(metrics["set_coverage"], percent=True), metrics["set_size"]["value"]
        sentences.append(
            f"Its sets of possible answers held the truth in {held} of cases{promised}; mean size {size:.2f}."
        )
    if "interval_coverage" in metrics:
        held = said(metrics["interval_coverage"], percent=True)
        sentences.append(f"Its prediction intervals held the truth in {held} of cases{promised}.")
    if doubt["abstained"]:
        percent = result["kind"] != "regression"
        answered, every = (said(doubt[name], percent) for name in ("error_answered", "error"))
        share = doubt["abstained_share"]["value"]
        sentences.append(
            f"It withholds its answer in {doubt['abstained']:,} cases ({100 * share:.1f} %); the error is {answered} "
            f"among the answered and {every} among all. The figures above count all."
        )
    return sentences
