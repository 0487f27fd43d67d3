"""How far the outlines of two masks lie apart: Hausdorff distance, mean distance, share within a tolerance.

The outline of a mask is made of its pixels that have a neighbour outside of it along an axis (4 neighbours in 2D, 6
in 3D; what lies beyond the image is outside), each standing for its centre. That is the definition of Metrics
Reloaded (Maier-Hein et al., Nature Methods 2024) and of MONAI without ``use_subvoxels``. SimpleITK's Hausdorff filter
measures between whole masks instead: one mask that lies in the other has no distance to it there, but has one here.

Rules for empty masks: with both empty there is no distance and every figure is nan; with one empty, distances are
infinite and the share within a tolerance is 0.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree

NAN, INFINITE = float("nan"), float("inf")
Pixels = Bool[np.ndarray, "*size"]


@dataclass(frozen=True, eq=False)
class Distances:
    """From each pixel of an outline to the nearest of the other, in millimetres, or pixels if no spacing was given.

    Attributes:
        of_reference: a distance for each pixel of the reference's outline; infinite where the prediction is empty.
        of_prediction: the same the other way round.
    """

    of_reference: Float[np.ndarray, " r"]
    of_prediction: Float[np.ndarray, " p"]


def outline(mask: Pixels) -> Pixels:
    """The pixels of a mask with a neighbour along an axis that is outside of it or beyond the image."""
    within = mask.copy()
    for axis in range(mask.ndim):
        along, inner = np.moveaxis(mask, axis, 0), np.moveaxis(within, axis, 0)
        inner[1:] &= along[:-1]
        inner[:-1] &= along[1:]
        inner[0] = inner[-1] = False
    return np.asarray(mask & ~within)


def distances(reference: Pixels, prediction: Pixels, spacing: tuple[float, ...] | None = None) -> Distances:
    """Distances between the outlines of two masks of the same shape, 2D or 3D.

    Args:
        reference, prediction: of the same shape.
        spacing: millimetres along each axis of the arrays; ``None`` counts pixels.

    Raises:
        ValueError: there is not one positive spacing for each axis.
    """
    scale = np.ones(reference.ndim) if spacing is None else np.asarray(spacing, np.float64)
    if scale.shape != (reference.ndim,) or not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"one positive spacing for each of {reference.ndim} axes; got {spacing}")
    around = window(reference | prediction)
    if around is None:
        return Distances(np.empty(0), np.empty(0))
    ours, theirs = outline(reference[around]), outline(prediction[around])
    return Distances(_nearest(ours, theirs, scale), _nearest(theirs, ours, scale))


def window(mask: Pixels) -> tuple[slice, ...] | None:
    """The smallest window that holds a mask, ``None`` for an empty one: all figures in it are those of the image."""
    around, left = [], mask
    # Axis by axis, each time on what is left: a small mask in a large volume costs one pass over it.
    for axis in range(mask.ndim):
        there = np.flatnonzero(left.any(tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(there):
            return None
        around.append(slice(int(there[0]), int(there[-1]) + 1))
        left = left[(slice(None),) * axis + (around[-1],)]
    return tuple(around)


def _nearest(of: Pixels, to: Pixels, scale: Float[np.ndarray, " axes"]) -> Float[np.ndarray, " n"]:
    """The distance of each pixel of one outline to the nearest of another."""
    apart = of & ~to
    found = np.zeros(int(np.count_nonzero(of)))
    if not to.any():
        found[:] = INFINITE
    elif apart.any():
        # A tree over the outline is several times faster than a distance transform of the volume; pixels that both
        # outlines share are at distance 0 and need no search.
        tree = KDTree(np.argwhere(to) * scale, leafsize=32, balanced_tree=False, compact_nodes=False)
        found[apart[of]] = tree.query(np.argwhere(apart) * scale)[0]
    return found


def hausdorff(found: Distances, percentile: float = 95) -> float:
    """The larger of both directions' percentile of the distances; 100 is the Hausdorff distance itself, 95 is HD95.

    Percentiles are interpolated linearly. nan if both masks are empty, infinite if one is.
    """
    if not len(found.of_reference) and not len(found.of_prediction):
        return NAN
    if not len(found.of_reference) or not len(found.of_prediction):
        return INFINITE
    return float(max(np.percentile(one, percentile) for one in (found.of_reference, found.of_prediction)))


def assd(found: Distances) -> float:
    """The average symmetric surface distance: the mean over all pixels of both outlines together.

    nan if both masks are empty, infinite if one is.
    """
    every = np.concatenate([found.of_reference, found.of_prediction])
    return float(every.mean()) if len(every) else NAN


def nsd(found: Distances, tolerance: float) -> float:
    """The normalised surface distance: the share of both outlines that lies within ``tolerance`` of the other.

    Nikolov et al. 2021, each pixel of an outline counting the same. nan if both masks are empty, 0 if one is.

    Raises:
        ValueError: the tolerance is negative or not finite.
    """
    if not (np.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"a tolerance is a distance of at least 0; got {tolerance}")
    every = np.concatenate([found.of_reference, found.of_prediction])
    # Three pixels of 0.7 mm are 2.1 mm, whatever rounding makes of it.
    return float((every <= tolerance * (1 + 1e-9)).mean()) if len(every) else NAN
