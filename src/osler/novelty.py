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
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.model import Outputs

Array = NDArray[np.floating[Any]]


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
