"""Images that show nothing, or far less than the others of their cohort: blank, saturated, blurred, noisy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.inspections import Evidence, Look, Trouble

SEEN = np.dtype([("spread", np.float32), ("clipped", np.float32), ("sharpness", np.float32), ("noise", np.float32)])
# Robust standard deviations from the median. A heavy tail is usual: what is named must stand apart from it.
_FAR = 6.0
# An image of which more than this share lies at the upper end of its scale shows little.
_CLIPPED = 0.5
_FEWEST = 30


def measure(look: Look) -> NDArray[Any]:
    """Spread of the values, share at the upper end, and log sharpness and noise relative to the spread.

    Sharpness is the mean absolute difference of neighbours two apart, noise the estimate of Immerkaer (1996, "Fast
    noise variance estimation"), whose mask cancels edges and slopes; both over at most 512 x 512 pixels.
    """
    made = np.zeros((), SEEN)
    height, width = look.plane.shape
    top, left = max(0, (height - 512) // 2), max(0, (width - 512) // 2)
    plane = look.plane[top : top + 512, left : left + 512]
    made["spread"] = np.ptp(look.image.array.astype(np.float32, copy=False))
    made["clipped"] = (look.plane >= look.plane.max()).mean()
    spread = float(plane.std())
    if spread == 0 or min(plane.shape) < 8:
        return made
    step = np.abs(plane[2:] - plane[:-2]).mean() + np.abs(plane[:, 2:] - plane[:, :-2]).mean()
    down = plane[2:] - 2 * plane[1:-1] + plane[:-2]
    both = down[:, 2:] - 2 * down[:, 1:-1] + down[:, :-2]
    made["sharpness"] = np.log(max(float(step) / spread, 1e-6))
    made["noise"] = np.log(max(float(np.abs(both).mean()) / 6 / spread, 1e-6))
    return made


def find(evidence: Evidence) -> list[Trouble]:
    """Blank and saturated images, and outliers in sharpness and noise by robust z-scores within the cohort."""
    seen = evidence.measured["quality"]
    blank = seen["spread"] == 0
    clipped = ~blank & (seen["clipped"] > _CLIPPED)
    # A mask or a drawing is saturated by nature; where many images are, that is what the cohort is like.
    clipped &= bool(np.mean(clipped) < 0.1)
    rest = ~blank & ~clipped & (seen["noise"] != 0)
    sharpness, noise = _scores(seen["sharpness"], rest), _scores(seen["noise"], rest)
    # What is blurred has lost its noise, too.
    blurred, noisy = (sharpness < -_FAR) & (noise < 0), noise > _FAR
    range_ = "export them again with the full range of values, or leave them out"
    troubles = [
        _trouble("blank", blank, evidence, "show nothing: every pixel has the same value", "leave them out"),
        _trouble("saturated", clipped, evidence, "have over half of their pixels at the end of the scale", range_),
        _trouble("blurred", blurred, evidence, "are far less sharp than the others", "look at them", -sharpness),
        _trouble("noisy", noisy, evidence, "are far noisier than the others", "look at them", noise),
    ]
    return [trouble for trouble in troubles if trouble.cases]


def _scores(values: NDArray[np.float32], which: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Robust z-scores: the distance from the median over the spread of the inner two thirds on the same side."""
    scores = np.zeros(len(values))
    if which.sum() >= _FEWEST:
        low, middle, high = np.quantile(values[which].astype(float), [0.16, 0.5, 0.84])
        away = values[which] - middle
        scores[which] = away / np.maximum(np.where(away < 0, middle - low, high - middle), 0.05)
    return scores


def _trouble(
    kind: str,
    which: NDArray[np.bool_],
    evidence: Evidence,
    message: str,
    fix: str,
    order: NDArray[np.float64] | None = None,
) -> Trouble:
    rows = np.flatnonzero(which)
    if order is not None:
        rows = rows[np.argsort(-order[rows], kind="stable")]
    cases = tuple(evidence.entries[row].id for row in rows)
    return Trouble(kind, cases, f"{len(rows):,} of {len(evidence.entries):,} images {message}", fix)
