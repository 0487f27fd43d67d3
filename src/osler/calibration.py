"""Outputs to probabilities that mean what they say, and sets that hold the truth as often as promised.

Everything here is fitted on calibration cases (or on out-of-fold outputs, by patient) and stored in the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from osler import draws
from osler.tasks.classification import Classification

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What the calibration of one task knows.

    Attributes:
        temperature: outputs are divided by it ``(1,)`` (Guo 2017).
        bias: added after ``(o,)``; undoes the shift that a class-balanced loss brings (Platt 1999).
        bootstrap: ``(draws, 1 + o)`` temperatures and biases refitted on resampled patients.
        quantile: conformal score that ``coverage`` of calibration patients stay below.
        coverage: nominal.
        threshold: ``(k,)`` probability from which a yes is said (two classes: of the second one).
    """

    temperature: Array
    bias: Array
    bootstrap: Array
    quantile: Array
    coverage: Array
    threshold: Array


def _loss(task: Classification, outputs: Array, target: Array, parameters: Array) -> float:
    """Mean negative log-likelihood of what is known, with a pull to temperature 1 and bias 0."""
    scaled = outputs / np.exp(parameters[0]) + parameters[1:]
    p = np.clip(task.probabilities(scaled), 1e-12, 1 - 1e-12)
    if task.question.kind == "multilabel":
        known = np.isfinite(target)
        y = np.where(known, target, 0)
        value = -(np.where(known, y * np.log(p) + (1 - y) * np.log(1 - p), 0)).sum() / max(1, known.sum())
    else:
        value = -np.log(p[np.arange(len(p)), target[:, 0].astype(int)]).mean()
    # As if log temperature and biases were about 0.7 at most: a handful of right answers prove no certainty.
    return float(value + np.square(parameters).sum() / len(outputs))


def _scaling(task: Classification, outputs: Array, target: Array, with_bias: bool) -> Array:
    """``(1 + o,)`` temperature and biases of least loss."""
    count = 1 + (outputs.shape[1] if with_bias else 0)

    def loss(x: Array) -> float:
        return _loss(task, outputs, target, np.concatenate([x, np.zeros(1 + outputs.shape[1] - count)]))

    best = minimize(loss, np.zeros(count), method="L-BFGS-B", bounds=[(-3, 3)] + [(-8, 8)] * (count - 1)).x
    full = np.zeros(1 + outputs.shape[1])
    full[:count] = best
    full[0] = np.exp(full[0])
    return full


def key(source: str, name: str) -> str:
    """The name of what belongs to the answers by a part of the sources (``osler.subsets``); empty is by all."""
    return f"{source}.{name}" if source else name


def mixing(task: Classification, outputs: Sequence[Array], target: Array) -> Array:
    """How much the answers by several sources together and by each of them alone count, ``(1 + sources,)``.

    A network that is trained on several leans on the source that it learns soonest (Wu 2022, arXiv:2202.05306) and
    may then be worse by all than by one of them. So the evidence is weighed once more on cases that it was not
    trained on (Wolpert 1992): ``w_1 all + w_2 first + w_3 second + ...``, no weight below 0, of least loss with a
    pull to the answer by all as it is. Each is first brought to its own scale: what was learned late says little too
    softly. Where the sources are independent within a class, their sum is right. The weights of a number sum to 1.

    Args:
        task: what is asked.
        outputs: by all and by each alone, ``(n, o)`` raw, of cases the networks were not trained on.
        target: ``(n, t)``, NaN unknown.
    """
    rows = known_rows(task, target)
    given, wanted = np.stack([each[rows] for each in outputs]), target[rows]
    count, size = len(given), given.shape[2]
    alone: Array = np.eye(count)[0]
    if len(wanted) < 20:
        return alone
    if task.question.kind == "regression":
        scale = float(wanted.var()) or 1.0

        def off(x: Array) -> float:
            mixed = np.tensordot(np.array([1 - x.sum(), *x]), given, 1)
            return float(np.square(mixed - wanted).mean() / scale + np.square(x).sum() / len(wanted))

        rest = {"type": "ineq", "fun": lambda x: 1 - x.sum()}
        found = minimize(off, alone[1:], method="SLSQP", bounds=[(0, 1)] * (count - 1), constraints=rest).x.clip(0)
        return np.array([max(0.0, 1 - found.sum()), *found])

    with_bias = _least_class(task, wanted) >= 20
    fitted = [_scaling(task, each, wanted, with_bias) for each in given]
    temperatures = np.array([one[0] for one in fitted])
    scaled = np.stack([each / one[0] + one[1:] for each, one in zip(given, fitted, strict=True)])

    def loss(x: Array) -> float:
        # The bias is thrown away: it is fitted with the temperature.
        pull = np.square(x[:count] - alone).sum() / len(wanted)
        mixed = np.tensordot(x[:count], scaled, 1)
        return _loss(task, mixed, wanted, np.concatenate([[0.0], x[count:]])) + float(pull)

    begin = np.concatenate([alone, np.zeros(size)])
    best = minimize(loss, begin, method="L-BFGS-B", bounds=[(0, 3)] * count + [(-8, 8)] * size).x[:count]
    return np.asarray((best if best.sum() > 1e-3 else alone) / temperatures)


def rows_for(task: Classification, target: Array, known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """The calibration cases of which something is known beside the image, ``(n,)``; all, where those are too few."""
    every = np.ones(len(target), bool)
    if known is None:
        return every
    rows = known_rows(task, target) & known
    few = rows.sum() < 20 or (
        task.question.kind not in ("regression", "multilabel") and not _least_class(task, target[rows])
    )
    return every if few else known


def known_rows(task: Classification, target: Array) -> NDArray[np.bool_]:
    """Cases with anything known about this task."""
    return np.asarray(np.isfinite(target).any(1))


def fit(
    task: Classification,
    outputs: Array,
    target: Array,
    patients: Sequence[str],
    *,
    coverage: float,
    rule: str,
    seed: int = 0,
) -> Calibrated:
    """Temperature, biases, conformal quantile and thresholds of one task.

    Args:
        task: what is asked.
        outputs: ``(n, o)`` raw, of cases the networks were not trained on.
        target: ``(n, t)``, NaN unknown.
        patients: of each case; resampling and conformal scores go by patient.
        coverage: nominal coverage of the sets.
        rule: ``balanced`` or ``half`` thresholds.
        seed: of the bootstrap.
    """
    rows = known_rows(task, target)
    outputs, target = outputs[rows], target[rows]
    groups = np.asarray(patients)[rows]
    size = outputs.shape[1]
    neutral = np.concatenate([[1.0], np.zeros(size)])
    bootstrap = np.tile(neutral, (1, 1))
    fitted = neutral
    if task.question.kind != "regression" and len(outputs) >= 10:
        with_bias = _least_class(task, target) >= 20
        fitted = _scaling(task, outputs, target, with_bias)
        bootstrap = np.stack([
            _scaling(task, outputs[chosen], target[chosen], with_bias)
            for chosen in _resamples(groups, draws_wanted=50, seed=seed)
        ])  # fmt: skip
    p = task.probabilities(outputs / fitted[0] + fitted[1:])
    scores = conformal_scores(task, p, target)
    quantile = conformal_quantile(_one_each(scores, groups), coverage)
    return Calibrated(
        temperature=fitted[:1],
        bias=fitted[1:],
        bootstrap=bootstrap,
        quantile=np.array([quantile]),
        coverage=np.array([coverage]),
        threshold=thresholds(task, target, rule),
    )


def _least_class(task: Classification, target: Array) -> int:
    if task.question.kind == "multilabel":
        return int(min(np.nansum(target == 1, 0).min(), np.nansum(target == 0, 0).min()))
    return int(min((target == c).sum() for c in range(len(task.question.classes))))


def _resamples(groups: NDArray[Any], draws_wanted: int, seed: int) -> list[NDArray[np.intp]]:
    """Rows of patients drawn with replacement."""
    names, inverse = np.unique(groups, return_inverse=True)
    rows_of = [np.flatnonzero(inverse == i) for i in range(len(names))]
    picks = draws.uniform(draws.keys(seed, 7, np.arange(draws_wanted)), "patients", (len(names),))
    return [np.concatenate([rows_of[i] for i in (row * len(names)).astype(int)]) for row in picks]


def conformal_scores(task: Classification, p: Array, target: Array) -> Array:
    """How badly the truth fits: 1 - p of the true class (Sadinle 2019); of a number, the absolute error.

    For multilabel, ``(n,)``: the largest 1 - p among the labels that are present (0 where none is).
    """
    if task.question.kind == "regression":
        return np.asarray(np.abs(p[:, 0] - target[:, 0]))
    if task.question.kind == "multilabel":
        return np.asarray(np.where(target == 1, 1 - p, 0).max(1))
    return np.asarray(1 - p[np.arange(len(p)), target[:, 0].astype(int)])


def _one_each(scores: Array, groups: NDArray[Any]) -> Array:
    """The worst score of each patient: patients, not images, are exchangeable."""
    _, inverse = np.unique(groups, return_inverse=True)
    worst = np.full(inverse.max() + 1 if len(inverse) else 0, -np.inf)
    np.maximum.at(worst, inverse, scores)
    return worst


def conformal_quantile(scores: Array, coverage: float) -> float:
    """The finite-sample quantile of split conformal prediction (Vovk 2005): inf where there are too few."""
    rank = int(np.ceil((len(scores) + 1) * coverage))
    return float(np.sort(scores)[rank - 1]) if 0 < rank <= len(scores) else float("inf")


def sets(task: Classification, p: Array, quantile: float) -> NDArray[np.bool_]:
    """Conformal sets ``(n, k)``; never empty for exclusive classes, without gaps for ordered ones."""
    inside = p >= 1 - quantile - 1e-12
    if task.question.kind in ("multiclass", "ordinal"):
        inside[np.arange(len(p)), p.argmax(1)] = True
    if task.question.kind == "ordinal":
        inside = np.maximum.accumulate(inside, 1) & np.maximum.accumulate(inside[:, ::-1], 1)[:, ::-1]
    return np.asarray(inside)


def thresholds(task: Classification, target: Array, rule: str) -> Array:
    """Probability from which a yes is said, for each class: 0.5, or the class's share of the calibration cases.

    With calibrated probabilities, saying yes above the prevalence maximises the expected mean of sensitivity and
    specificity (Bayes' rule with both errors weighted by the other's frequency). Unlike the empirical maximum of
    Youden's index it does not hang on the two or three cases beside it.
    """
    classes = len(task.question.classes)
    result = np.full(classes, 0.5)
    if rule == "half" or task.question.kind in ("regression", "ordinal"):
        return result
    for c in range(classes):
        y = target[:, c] if task.question.kind == "multilabel" else (target[:, 0] == c).astype(float)
        known = y[np.isfinite(y)]
        if min((known == 1).sum(), (known == 0).sum()) >= 5:
            result[c] = np.clip(known.mean(), 0.01, 0.99)
    return result


def decide(task: Classification, p: Array, threshold: Array) -> NDArray[np.bool_]:
    """The classes stated ``(n, k)``: one of exclusive classes, all labels above their thresholds.

    Of two exclusive classes the second is stated from its threshold on; of more, the most probable.
    """
    match task.question.kind:
        case "multilabel":
            return np.asarray(p >= threshold)
        case "regression":
            return np.zeros(p.shape, bool)
        case "multiclass" if p.shape[1] == 2:
            chosen = (p[:, 1] >= threshold[1]).astype(int)
        case _:
            chosen = p.argmax(1)
    return np.asarray(chosen[:, None] == np.arange(p.shape[1]))


def apply(task: Classification, calibrated: Calibrated, outputs: Array) -> Array:
    """Calibrated probabilities ``(n, k)`` of the outputs ``(m, n, o)`` of m members: scaled outputs are averaged."""
    return task.probabilities((outputs / calibrated.temperature + calibrated.bias).mean(0))


def intervals(task: Classification, calibrated: Calibrated, outputs: Array) -> tuple[Array, Array]:
    """95 % interval of each probability ``(n, k)``: over resampled calibrations and members ``(m, n, o)``.

    It says how sure the *number* is, not what will happen to this patient. Of a regression it is the
    conformal interval.
    """
    if task.question.kind == "regression":
        middle = outputs.mean(0)
        return middle - calibrated.quantile, middle + calibrated.quantile
    spread = np.stack([
        task.probabilities(member / row[0] + row[1:]) for row in calibrated.bootstrap for member in outputs
    ])  # fmt: skip
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    p = apply(task, calibrated, outputs)
    return np.minimum(low, p), np.maximum(high, p)


def against_isotonic(
    task: Classification, outputs: Array, target: Array, patients: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Mean negative log-likelihood of the temperature and of isotonic regression, 5-fold by patient.

    Isotonic regression is fitted one class against the rest and renormalised (Zadrozny and Elkan 2002).
    """
    rows = known_rows(task, target)
    outputs, target, groups = outputs[rows], target[rows], np.asarray(patients)[rows]
    if task.question.kind not in ("multiclass",) or len(outputs) < 50 or _least_class(task, target) < 5:
        return {}
    names, inverse = np.unique(groups, return_inverse=True)
    fold = (draws.permutation(draws.keys(seed, 11), len(names)) % 5)[inverse]
    classes = len(task.question.classes)
    losses: dict[str, list[float]] = {"raw": [], "temperature": [], "isotonic": []}
    number = target[:, 0].astype(int)
    for k in range(5):
        train, held = fold != k, fold == k
        if not held.any() or len(np.unique(number[train])) < classes:
            continue
        row = _scaling(task, outputs[train], target[train], with_bias=_least_class(task, target) >= 20)
        raw = task.probabilities(outputs)
        scaled = task.probabilities(outputs[held] / row[0] + row[1:])
        columns = [_isotonic(raw[train, c], number[train] == c, raw[held, c]) for c in range(classes)]
        stepped = np.clip(np.stack(columns, 1), 1e-3, 1)
        stepped /= stepped.sum(1, keepdims=True)
        for name, p in (("raw", raw[held]), ("temperature", scaled), ("isotonic", stepped)):
            losses[name] += list(-np.log(np.clip(p[np.arange(held.sum()), number[held]], 1e-12, 1)))
    return {name: float(np.mean(values)) for name, values in losses.items() if values}


def _isotonic(x: Array, y: NDArray[np.bool_], new: Array) -> Array:
    order = np.argsort(x)
    fitted = isotonic_regression(y[order].astype(float)).x
    return np.asarray(np.interp(new, x[order], fitted))
