"""Does a heatmap point at the lesion: the pointing game and the energy inside, each against chance."""

import numpy as np
from jaxtyping import Bool, Float


def pointing_game(heatmap: Float[np.ndarray, "*size"], mask: Bool[np.ndarray, "*size"]) -> bool:
    """Whether the hottest place lies inside the mask (Zhang 2018, without a tolerance around it).

    Of several equally hot places all must, so that a map that is the same everywhere never wins.
    """
    return bool(mask[heatmap == heatmap.max()].all())


def energy_inside(heatmap: Float[np.ndarray, "*size"], mask: Bool[np.ndarray, "*size"]) -> float:
    """The share of the map's sum that lies inside the mask (Wang 2020); nan for an empty map.

    Raises:
        ValueError: the map has negative values, of which shares make no sense.
    """
    if heatmap.min() < 0:
        raise ValueError("the energy of a map with negative values is not defined")
    total = float(heatmap.sum(dtype=np.float64))
    return float(heatmap[mask].sum(dtype=np.float64)) / total if total > 0 else float("nan")


def chance(mask: Bool[np.ndarray, "*size"]) -> float:
    """What a map that knows nothing reaches on average in both: the share of the image inside the mask."""
    return float(mask.mean())
