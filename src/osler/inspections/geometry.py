"""Shapes, spacings and units that disagree within a cohort: where a few cases are not like all the others."""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from osler.inspections import Evidence, Trouble

_NAMES = {
    "channels": ("numbers of channels", "convert them to one kind"),
    "frames": ("numbers of moments", "choose one moment of each, or keep loops apart"),
    "modality": ("modalities", "keep modalities apart"),
    "unit": ("units of values", "export all with the same rescaling"),
    "geometry": ("kinds of geometry", "export all with their spacing: without it a size means nothing"),
    "dtype": ("types of values", "export all with the same number of bits"),
}
# A smaller share is a few among many; a larger one is a mixture, which the summary shows.
_FEW = 0.1
_FEWEST = 10
_TIMES = 2.0


def find(evidence: Evidence) -> list[Trouble]:
    """Cases unlike nearly all others in what should be one for all, or by a factor in spacing or shape."""
    count = len(evidence.entries)
    if count < _FEWEST:
        return []
    troubles = []
    for name, (words, fix) in _NAMES.items():
        values = evidence.fields.get(f"image.{name}", [None] * count)
        usual, _ = Counter(values).most_common(1)[0]
        odd = [row for row, value in enumerate(values) if value != usual]
        if name == "frames" and usual != 1:
            # Loops differ in length by nature; a still among them does not belong.
            odd = [row for row in odd if values[row] == 1]
        if 0 < len(odd) <= _FEW * count:
            others = ", ".join(
                str(value or "none") for value, _ in Counter(values[row] for row in odd).most_common(3)
            )
            message = (
                f"{len(odd):,} of {count:,} cases have other {words} ({others}) than the rest ({usual or 'none'})"
            )
            troubles.append(Trouble("geometry", _ids(evidence, odd), message, fix))
    for words, columns in (
        ("spacing", [_numbers(evidence, f"spacing_{axis}") for axis in "xyz"]),
        ("shape (width over height)", [_numbers(evidence, "width") / _numbers(evidence, "height")]),
    ):
        odd = _far(columns)
        if 0 < len(odd) <= _FEW * count:
            message = f"the {words} of {len(odd):,} of {count:,} cases is over {_TIMES:g} times off the median"
            fix = "check that they show the same part of the body, whole, and that their headers are right"
            troubles.append(Trouble("geometry", _ids(evidence, odd), message, fix))
    return troubles


def _numbers(evidence: Evidence, name: str) -> NDArray[np.float64]:
    """A field as positive numbers, NaN where it has none."""
    values = evidence.fields.get(f"image.{name}", [None] * len(evidence.entries))
    return np.array([float(value) if isinstance(value, (int, float)) and value > 0 else np.nan for value in values])


def _far(columns: list[NDArray[np.float64]]) -> list[int]:
    """Rows that are more than a factor away from the median of any column, the furthest first."""
    away = np.zeros(len(columns[0]))
    for column in columns:
        known = np.isfinite(column)
        if known.sum() < _FEWEST:
            continue
        logs = np.log(column[known])
        distance = np.abs(logs - np.median(logs))
        # Where a quarter of a cohort differs that much, it differs by nature.
        if np.quantile(distance, 0.75) < np.log(_TIMES) / 2:
            away[known] = np.maximum(away[known], distance)
    rows = np.flatnonzero(away > np.log(_TIMES) * (1 + 1e-9))
    return [int(row) for row in rows[np.argsort(-away[rows], kind="stable")]]


def _ids(evidence: Evidence, rows: list[int]) -> tuple[str, ...]:
    return tuple(evidence.entries[row].id for row in rows)
