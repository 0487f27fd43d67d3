"""How far a case lies from the training cases: the gate before every answer.

Four distances, each of which sees what the others miss:

- of the network's feature vector from the principal subspace of the training cases (its residual; Ndiour 2020);
- of a coarse copy of the image, the Mahalanobis distance inside the principal subspace of the training images and
  the residual outside of it (as Hotelling's T2 and Q statistics; Jackson and Mudholkar 1979): another organ,
  another position;
- of its exposure, contrast and sharpness, the Mahalanobis distance: another machine, another magnification.

The logarithm of each is standardised on calibration cases; the score is the root of the sum of squares of those
that are larger than usual. The threshold is a quantile of calibration scores, so that about a stated share of cases
like these is refused.

Of several modalities each has a gate of its own; the score of a case is the root of the sum of squares of those that
it has, and each set of them has a threshold of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import calibration, subsets
from osler.asking import Outputs

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Subspace:
    """Principal axes ``(k, p)`` about a centre ``(p,)`` with the standard deviation ``(k,)`` along each."""

    centre: Array
    axes: Array
    spread: Array

    def distances(self, x: Array) -> tuple[Array, Array]:
        """Root mean squared standardised coordinate inside the subspace, and the distance from it."""
        away = x - self.centre
        inside = away @ self.axes.T
        outside = np.sqrt(np.maximum(np.square(away).sum(1) - np.square(inside).sum(1), 1e-12))
        return np.sqrt(np.square(inside / self.spread).mean(1)), outside


def subspace(x: Array, share: float = 0.95, most: int = 64) -> Subspace:
    """The axes that hold ``share`` of the variance of ``x`` ``(n, p)``, at most ``most`` and n / 4 of them."""
    x = np.asarray(x, np.float64)
    centre = x.mean(0)
    _, values, axes = np.linalg.svd(x - centre, full_matrices=False)
    held = np.cumsum(values**2) / max((values**2).sum(), 1e-12)
    count = int(np.clip(np.searchsorted(held, share) + 1, 1, max(1, min(most, len(x) // 4))))
    spread = np.maximum(values[:count] / np.sqrt(max(1, len(x) - 1)), 1e-6)
    return Subspace(centre, axes[:count], spread)


def fit(seen: Outputs) -> dict[str, Array]:
    """Arrays of one member's gate from what it saw of its training cases."""
    arrays: dict[str, Array] = {}
    spaces = {
        "vector": subspace(seen.vectors),
        "thumbnail": subspace(seen.thumbnails, share=0.9),
        "appearance": subspace(seen.appearances, share=1.0),
    }
    for name, space in spaces.items():
        arrays |= {f"{name}.centre": space.centre, f"{name}.axes": space.axes, f"{name}.spread": space.spread}
    return arrays


def distances(arrays: Mapping[str, Array], seen: Outputs) -> Array:
    """Logarithms of the four distances ``(n, 4)`` of cases from one member's training cases."""

    def apart(name: str, x: Array) -> tuple[Array, Array]:
        space = Subspace(*(arrays[f"{name}.{part}"] for part in ("centre", "axes", "spread")))
        return space.distances(np.asarray(x, np.float64))

    _, features = apart("vector", seen.vectors)
    inside, outside = apart("thumbnail", seen.thumbnails)
    appearance, _ = apart("appearance", seen.appearances)
    return np.asarray(np.log(np.stack([features, inside, outside, appearance], 1) + 1e-12))


def standardise(logs: Array) -> tuple[Array, Array]:
    """Centre and spread of each distance on calibration cases: median and 1.4826 times the median deviation."""
    centre = np.median(logs, 0)
    spread = 1.4826 * np.median(np.abs(logs - centre), 0)
    return centre, np.maximum(spread, 1e-3)


def score(logs: Array, centre: Array, spread: Array) -> Array:
    """Root of the sum of squares of the standardised distances above 0, ``(n,)``: larger is stranger."""
    return np.asarray(np.sqrt(np.square(np.maximum((logs - centre) / spread, 0)).sum(1)))


def threshold(scores: Array, refusals: float) -> float:
    """The score above which about ``refusals`` of cases like the calibration cases lie (finite-sample rank)."""
    rank = int(np.ceil((1 - refusals) * (len(scores) + 1)))
    ordered = np.sort(scores)
    if rank > len(scores):
        return float(ordered[-1] + (ordered[-1] - ordered[len(scores) // 2]) * 0.25)
    return float(ordered[rank - 1])


# --- several modalities -------------------------------------------------------------------------------------


def of_each(seen: Outputs, images: Sequence[str]) -> list[Outputs]:
    """What was seen of each modality."""
    parts = [np.split(one, len(images), 1) for one in (seen.vectors, seen.thumbnails, seen.appearances)]
    return [replace(seen, vectors=v, thumbnails=t, appearances=a) for v, t, a in zip(*parts, strict=True)]


def fit_each(
    number: int, images: Sequence[str], training: tuple[Outputs, Mask], held: tuple[Outputs, Mask]
) -> dict[str, Array]:
    """The gates of one network, one a modality, under the names that they have in a model.

    Args:
        number: of the network.
        images: names of the modalities; one empty name where there is but one image.
        training: what it saw of its training cases, and which modalities ``(n, m)`` each has.
        held: of its calibration cases.
    """
    arrays: dict[str, Array] = {}
    for s, (learned, other) in enumerate(zip(of_each(training[0], images), of_each(held[0], images), strict=True)):
        gate = fit(_rows(learned, training[1][:, s]))
        centre, spread = standardise(distances(gate, _rows(other, held[1][:, s])))
        given = {**gate, "log.centre": centre, "log.spread": spread}
        arrays |= {f"{_prefix(number, images[s])}{key}": value for key, value in given.items()}
    return arrays


def scores(arrays: Mapping[str, NDArray[Any]], number: int, images: Sequence[str], seen: Outputs) -> Array | None:
    """How far each modality of cases lies from the training cases, ``(n, m)``; ``None`` without gates."""
    found = []
    for name, part in zip(images, of_each(seen, images), strict=True):
        prefix = _prefix(number, name)
        gate = {key[len(prefix) :]: value for key, value in arrays.items() if key.startswith(prefix)}
        if "log.centre" not in gate:
            return None
        found.append(score(distances(gate, part), gate["log.centre"], gate["log.spread"]))
    return np.stack(found, 1)


def limits(each: Array, there: Mask, images: Sequence[str], refusals: float) -> dict[str, Array]:
    """Threshold and calibration scores of every set of modalities, under the names that they have in a model.

    Where too few cases have all of a set, the thresholds of its members are joined as their scores are.

    Args:
        each: of :func:`scores`, of the calibration cases.
        there: which modalities each has.
        images: their names.
        refusals: see :func:`threshold`.
    """
    arrays: dict[str, Array] = {}
    alone = [threshold(one[rows], refusals) for one, rows in zip(each.T, _enough(there.T), strict=True)]
    for name, mask in subsets.of(images).items():
        rows = np.asarray(there[:, mask].all(1), bool)
        few = rows.sum() < 20 and mask.sum() > 1
        rows = rows if rows.any() else np.ones(len(rows), bool)
        whole = np.sqrt(np.square(each[rows][:, mask]).sum(1))
        joined = float(np.sqrt(np.square(np.array(alone)[mask]).sum()))
        limit = joined if few else threshold(whole, refusals)
        arrays[calibration.key(name, "novelty.threshold")] = np.array([limit])
        arrays[calibration.key(name, "novelty.scores")] = np.sort(whole)
    return arrays


def judge(arrays: Mapping[str, NDArray[Any]], each: Array, there: Mask, images: Sequence[str]) -> tuple[Array, Array]:
    """Score of each case, in units in which ``novelty.threshold`` is its limit, and its p value.

    Args:
        arrays: of the model.
        each: of :func:`scores`.
        there: which modalities each case has.
        images: their names.
    """
    found = np.sqrt((np.square(each) * there).sum(1))
    p_value = np.full(len(each), np.nan)
    for name, mask in subsets.of(images).items():
        rows = (there == mask).all(1)
        reference = arrays[calibration.key(name, "novelty.scores")]
        p_value[rows] = (1 + len(reference) - np.searchsorted(reference, found[rows])) / (1 + len(reference))
        if name:
            found[rows] *= arrays["novelty.threshold"][0] / arrays[calibration.key(name, "novelty.threshold")][0]
    return found, p_value


def _enough(there: Mask) -> Mask:
    """Of each modality the cases that have it; all, where none has."""
    return np.where(there.any(1, keepdims=True), there, True)


def _rows(seen: Outputs, rows: Mask) -> Outputs:
    # Of what no case has, nothing can be learned; then all are looked at, so that there is a gate.
    rows = rows if rows.any() else np.ones(len(rows), bool)
    parts = (seen.vectors, seen.thumbnails, seen.appearances)
    vectors, thumbnails, appearances = (one[rows] for one in parts)
    return replace(seen, vectors=vectors, thumbnails=thumbnails, appearances=appearances)


def _prefix(number: int, image: str) -> str:
    return f"novelty.{number}." + (f"{image}." if image else "")
