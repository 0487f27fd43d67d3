"""How good outlines and boxes are: every figure with its interval, as plain data beside :mod:`osler.scoring`.

A patient is one draw of the bootstrap, however many rows (:mod:`osler.dense_rows`) there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import measures
from osler.case import Question
from osler.dense_rows import THRESHOLDS, Row
from osler.measures import Measure
from osler.metrics import boxes
from osler.metrics.bootstrap import bootstrap_several
from osler.metrics.boxes import CPM_RATES, FreeResponse, Precision
from osler.metrics.estimate import Estimate
from osler.scoring import as_json, blank, said

# False positives an image at which the FROC curve is drawn.
RATES = tuple(np.geomspace(CPM_RATES[0], CPM_RATES[-1], 25).tolist())
_MOST_POINTS = 200
_FROC = "froc "
_MEANS = ("dice", "iou", "hd95", "assd", "nsd", "volume_error")
_FAR = ("hd95", "assd", "nsd")


@dataclass(frozen=True, eq=False)
class _Part:
    """Figures of one class that are found together, as a function of the weights of rows.

    Attributes:
        of: the class.
        names: of the figures.
        rows: ``(n, figures)``, which rows each is a figure of.
        values: from weights ``(n,)`` to the figures.
    """

    of: str
    names: tuple[str, ...]
    rows: NDArray[np.bool_]
    values: Callable[[NDArray[Any]], NDArray[Any]]


def summary(
    rows: Sequence[Row],
    question: Question,
    *,
    threshold: float = 0.5,
    unknown: int = 0,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is said about a dense task in ``evaluation.json``, in the form of :func:`osler.scoring.score`.

    Figures of the whole are means over the classes, those of one are under ``classes``. Overlap and distances are
    means over the rows in which the reference has the class; ``drawn_without`` is the share of the others in which
    something was drawn. Lesions are pooled: all that were found over all that there are.

    Args:
        rows: of all cases of known truth.
        question: what was asked.
        threshold: score from which a box is stated; fixed beforehand.
        unknown: how many cases have no known truth.
        draws: of the bootstrap over patients.
        seed: of the same.
    """
    result = blank(question, n=len(rows), unknown=unknown)
    result |= {"unit": rows[0].unit if rows else "", "patients": len({row.patient for row in rows})}
    if not rows:
        return result | {"notes": ["No case has a known answer, so nothing could be measured."]}
    rows, result["unit"], result["notes"] = _in_one_unit(rows)
    clusters = np.unique([row.patient for row in rows], return_inverse=True)[1]
    parts = [part for name in question.classes for part in _parts(rows, name, threshold)]
    found = _estimates(parts, question.classes, (clusters, draws, seed))
    without = {name: _without(rows, (name,), clusters, threshold) for name in question.classes}
    without[""] = _without(rows, question.classes, clusters, threshold)
    for name, measure in without.items():
        found[name]["drawn_without"] = measure.estimate(draws, seed)
    told = {
        name: {key: as_json(one) for key, one in figures.items() if not key.startswith(_FROC)}
        for name, figures in found.items()
    }
    result["metrics"] = told.pop("")
    result["classes"] = {name: _counts(rows, name) | {"metrics": told[name]} for name in question.classes}
    result["curves"] = _curves(rows, found)
    if any(row.matches for row in rows):
        result["threshold"] = dict.fromkeys(question.classes, threshold)
    return result


def compare(
    ours: Sequence[Row],
    theirs: Sequence[Row],
    question: Question,
    thresholds: tuple[float, float],
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Two models on the same cases, in the form of :func:`osler.scoring.compare`: figures of the whole, paired.

    Args:
        ours, theirs: rows of the same moments, in one order.
        question: what was asked of both.
        thresholds: score from which each states a box.
        draws: of the bootstrap over patients, the same ones for both.
        seed: of the same.

    Raises:
        ValueError: the moments differ.
    """
    if [row.patient for row in ours] != [row.patient for row in theirs]:
        raise ValueError("two models can be compared on the same cases only")
    clusters = np.unique([row.patient for row in ours], return_inverse=True)[1]
    one, other = (
        _as_a_whole(rows, question, clusters, threshold)
        for rows, threshold in zip((ours, theirs), thresholds, strict=True)
    )
    names = [name for name in one if name in other]
    every = np.ones(len(ours))

    def difference(weight: NDArray[Any]) -> NDArray[Any]:
        return np.array([one[name](weight) - other[name](weight) for name in names])

    found = bootstrap_several(difference, clusters, draws, seed)
    differences = {}
    for name, estimate in zip(names, found, strict=True):
        a, b = one[name](every), other[name](every)
        if np.isfinite(a) and np.isfinite(b):
            differences[name] = {"a": a, "b": b, **as_json(_honest(estimate))}
    return {"n": len(ours), "patients": len({row.patient for row in ours}), "differences": differences}


def _as_a_whole(
    rows: Sequence[Row], question: Question, clusters: NDArray[np.intp], threshold: float
) -> dict[str, Callable[[NDArray[Any]], float]]:
    """Each figure of the whole, the mean over classes, as a function of the weights of rows."""
    parts = [part for name in question.classes for part in _parts(rows, name, threshold)]
    labels = [name for part in parts for name in part.names]
    without = _without(rows, question.classes, clusters, threshold)
    last: tuple[NDArray[Any] | None, NDArray[Any]] = (None, np.empty(0))

    def values(weight: NDArray[Any]) -> NDArray[Any]:
        nonlocal last
        # The figures of one draw are asked for one after the other.
        if last[0] is not weight:
            last = weight, np.concatenate([np.empty(0), *(part.values(weight) for part in parts)])
        return last[1]

    def mean(weight: NDArray[Any], name: str) -> float:
        each = values(weight)[[at for at, mine in enumerate(labels) if mine == name]]
        return float(each[np.isfinite(each)].mean()) if np.isfinite(each).any() else float("nan")

    names = [name for name in dict.fromkeys(labels) if not name.startswith(_FROC)]
    return {**{name: partial(mean, name=name) for name in names}, "drawn_without": without.statistic}


def _in_one_unit(rows: Sequence[Row]) -> tuple[list[Row], str, list[str]]:
    """Distances in pixels beside others in millimetres are left out: their mean would have no meaning."""
    units = {row.unit for row in rows}
    if units != {"mm", "px"}:
        return list(rows), rows[0].unit, []
    away = dict.fromkeys(_FAR, float("nan"))
    kept = [
        row
        if row.unit == "mm"
        else replace(row, numbers={name: {**one, **away} for name, one in row.numbers.items()})
        for row in rows
    ]
    few = sum(row.unit == "px" for row in rows)
    note = f"Distances are of {len(rows) - few:,} of {len(rows):,} images: of the others no millimetres are known."
    return kept, "mm", [note]


def _parts(rows: Sequence[Row], name: str, threshold: float) -> list[_Part]:
    """The figures of one class."""
    parts = []
    if any(name in row.numbers for row in rows):
        parts.append(_shares(rows, name))
    if any(name in row.matches for row in rows):
        parts.append(_of_boxes(rows, name, threshold))
    return parts


def _column(rows: Sequence[Row], name: str, key: str) -> NDArray[np.float64]:
    return np.array([row.numbers.get(name, {}).get(key, np.nan) for row in rows], np.float64)


def _shares(rows: Sequence[Row], name: str) -> _Part:
    """Figures that are one weighted sum over another: means over cases, and shares of all lesions."""
    there = _column(rows, name, "present") == 1
    above, below = {}, {}
    for key in _MEANS:
        values = _column(rows, name, key)
        counted = there & np.isfinite(values)
        above[key], below[key] = np.where(counted, values, 0), counted
    above["volume_error_absolute"], below["volume_error_absolute"] = np.abs(above["volume_error"]), there
    real = _column(rows, name, "lesions_real")
    if np.isfinite(real).any():
        drawn, found, there_are = (_column(rows, name, f"lesions{x}") for x in ("_drawn", "_found", ""))
        above |= {"lesion_sensitivity": found, "lesion_precision": real, "false_lesions": drawn - real}
        below |= {"lesion_sensitivity": there_are, "lesion_precision": drawn, "false_lesions": np.isfinite(real)}
    top, base = (np.nan_to_num(np.stack([*x.values()], 1).astype(np.float64)) for x in (above, below))
    return _Part(name, tuple(above), base > 0, lambda w: _over(w @ top, w @ base))


def _over(above: NDArray[Any], below: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0))


def _of_boxes(rows: Sequence[Row], name: str, threshold: float) -> _Part:
    """Average precision and FROC; and where masks do not say it, which lesions were found at the threshold."""
    known = np.array([name in row.matches for row in rows])
    of_row = np.flatnonzero(known)
    found = boxes.together([row.matches[name] for row in rows if name in row.matches])
    precision, free = Precision(found), FreeResponse(found, 0)
    stated = found.score >= threshold
    hits, drawn = (
        np.bincount(found.image[x], minlength=len(of_row)).astype(float) for x in (stated & found.hit[:, 0], stated)
    )
    masks = any(name in row.numbers for row in rows)

    def values(weight: NDArray[Any]) -> NDArray[Any]:
        w = weight[of_row]
        ap = precision(w)
        # One curve for both.
        taken = free.sensitivity((*CPM_RATES, *RATES), w)
        figures = [ap[0], ap[1], ap[1:].mean(), taken[: len(CPM_RATES)].mean(), *taken[len(CPM_RATES) :]]
        if not masks:
            above, below = [w @ hits, w @ hits, w @ (drawn - hits)], [w @ found.count, w @ drawn, w.sum()]
            figures += _over(np.array(above), np.array(below)).tolist()
        return np.array(figures)

    names = ("map10", "map50", "map", "cpm", *(f"{_FROC}{number}" for number in range(len(RATES))))
    names += () if masks else ("lesion_sensitivity", "lesion_precision", "false_lesions")
    return _Part(name, names, np.repeat(known[:, None], len(names), 1), values)


def _estimates(
    parts: Sequence[_Part], classes: Sequence[str], drawn: tuple[NDArray[np.intp], int, int]
) -> dict[str, dict[str, Estimate]]:
    """By class and figure; under the empty name the mean over classes in which a figure is defined."""
    labels = [(part.of, name, rows) for part in parts for name, rows in zip(part.names, part.rows.T, strict=True)]
    names = list(dict.fromkeys(name for _, name, _ in labels))
    # rows: figures of classes; columns: figures of the whole
    into = np.array([[name == mine for name in names] for _, mine, _ in labels], float).reshape(
        len(labels), len(names)
    )

    def values(weight: NDArray[Any]) -> NDArray[Any]:
        each = np.concatenate([np.empty(0), *(part.values(weight) for part in parts)])
        defined = np.isfinite(each)
        return np.concatenate([each, _over(np.where(defined, each, 0) @ into, defined @ into)])

    found = bootstrap_several(values, *drawn)
    by_class: dict[str, dict[str, Estimate]] = {name: {} for name in (*classes, "")}
    for (of, name, rows), estimate in zip(labels, found[: len(labels)], strict=True):
        by_class[of][name] = _honest(replace(estimate, n=int(rows.sum())))
    for name, estimate in zip(names, found[len(labels) :], strict=True):
        of_any = np.any([rows for _, mine, rows in labels if mine == name], axis=0)
        by_class[""][name] = _honest(replace(estimate, n=int(of_any.sum())))
    return by_class


def _honest(estimate: Estimate) -> Estimate:
    """An interval without width would be a lie."""
    if estimate.low != estimate.high:
        return estimate
    method = f"{estimate.method}: all gave the same, so no interval"
    return replace(estimate, low=float("nan"), high=float("nan"), method=method)


def _without(rows: Sequence[Row], names: Sequence[str], clusters: NDArray[np.intp], threshold: float) -> Measure:
    """How often something was drawn where there is nothing of these classes."""
    drawn, absent = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for at, row in enumerate(rows):
        masks = [row.numbers[name] for name in names if name in row.numbers]
        matched = [row.matches[name] for name in names if name in row.matches]
        if masks:
            absent[at] = not any(one["present"] for one in masks)
            drawn[at] = any(one["drawn"] for one in masks)
        elif matched:
            absent[at] = not any(one.count.sum() for one in matched)
            drawn[at] = any((one.score >= threshold).any() for one in matched)
    return measures.share(drawn, absent, clusters)


def _counts(rows: Sequence[Row], name: str) -> dict[str, int]:
    """Rows with the class, rows in which it is known, and its lesions."""
    masks = [row.numbers[name] for row in rows if name in row.numbers]
    matched = [row.matches[name] for row in rows if name in row.matches]
    if masks:
        counted = {"n": int(sum(one["present"] for one in masks)), "known": len(masks)}
        lesion = int(sum(one["lesions"] for one in masks)) if "lesions" in masks[0] else None
        return counted if lesion is None else counted | {"lesions": lesion}
    there = [int(one.count.sum()) for one in matched]
    return {"n": int(np.count_nonzero(there)), "known": len(matched), "lesions": sum(there)}


def _curves(rows: Sequence[Row], found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
    """What the figures of a page are drawn from."""
    sizes: dict[str, Any] = {}
    froc: dict[str, Any] = {}
    recall: dict[str, Any] = {}
    for name in (name for name in found if name):
        masks = [row.numbers[name] for row in rows if name in row.numbers and row.numbers[name]["present"]]
        if masks:
            unit = next(row.size_unit for row in rows if name in row.numbers)
            sizes[name] = {key: [masks[i][key] for i in _thin(len(masks))] for key in ("size", "dice")}
            sizes[name]["unit"] = unit
        matched = [row.matches[name] for row in rows if name in row.matches]
        if not sum(int(one.count.sum()) for one in matched):
            continue
        points = [found[name][f"{_FROC}{number}"] for number in range(len(RATES))]
        froc[name] = {"rate": list(RATES)} | {
            key: [as_json(one)[key] for one in points] for key in ("value", "low", "high")
        }
        along, height = Precision(boxes.together(matched)).curve(THRESHOLDS.index(0.5))
        if len(along):
            kept = _thin(len(along))
            recall[name] = {"recall": along[kept].tolist(), "precision": height[kept].tolist()}
    curves = {"sizes": sizes, "froc": froc, "precision_recall": recall}
    return {key: curve for key, curve in curves.items() if curve}


def _thin(count: int) -> NDArray[np.intp]:
    """Which of many points are kept, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_POINTS)).round().astype(np.intp))


def describe(result: Mapping[str, Any]) -> list[str]:
    """The result of :func:`summary` in plain sentences, the most important first."""
    if not result["n"]:
        return list(result["notes"])
    metrics, cases = result["metrics"], f"Of {result['n']:,} images of {result['patients']:,} patients"
    told = ", ".join(f"{name} is in {entry['n']:,}" for name, entry in result["classes"].items())
    means = " Figures of all classes together are their mean." if len(result["order"]) > 1 else ""
    sentences = [f"{cases}, {told}.{means}"]
    if result["unknown"]:
        sentences.append(f"{result['unknown']:,} more have no known answer and are not counted.")
    if "dice" in metrics:
        sentences.append(f"Masks overlap with those of the reader with a mean Dice of {said(metrics['dice'])}.")
        sentences.append(
            f"On average 95 % of the outline lie within {said(metrics['hd95'])} {result['unit']} of the reader's "
            f"(HD95), and {said(metrics['nsd'], percent=True)} within the tolerance (NSD)."
        )
    if "map50" in metrics:
        sentences.append(f"The mean average precision is {said(metrics['map50'])} (overlap of one half).")
        sentences.append(
            f"Averaged over rates of 1/8 to 8 false boxes an image, {said(metrics['cpm'], percent=True)} of the "
            "lesions are found."
        )
    if "lesion_sensitivity" in metrics:
        sentences.append(
            f"As stated, {said(metrics['lesion_sensitivity'], percent=True)} of the lesions are found, with "
            f"{said(metrics['false_lesions'])} false ones an image{' and class' if means else ''}."
        )
    if metrics["drawn_without"]["n"]:
        share = said(metrics["drawn_without"], percent=True)
        sentences.append(f"Where there is nothing, something was drawn in {share} of images.")
    return sentences
