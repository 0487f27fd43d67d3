"""Shortcuts in the picture: marks, borders and exposure that tell the label, whatever the disease looks like.

Calipers stand where somebody saw a lesion, the ward's portable machine leaves another border than the clinic's
(DeGrave, Janizek and Lee, *AI for radiographic COVID-19 detection selects shortcuts over signal*, 2021). From each
image a few numbers are measured that know nothing of anatomy; if they tell the label of patients that they were not
fitted on, a network can use what they see.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from osler.inspections import Evidence, Look, Trouble
from osler.metrics.estimate import Estimate
from osler.probe import Contrast, area, contrasts, family, newcombe, tell

_GRID = 4
_ZONES = _GRID * _GRID
# Strokes of graphics are at most five pixels wide, of an image of at most _LARGEST on its longer side.
_STROKE, _LARGEST = 3, 512
_CONTRAST, _BRIGHT, _FLAT = 0.5, 0.7, 0.01
# What of a mark must be there, in units of a 128th of the image: less is noise.
_FEWEST = 6
# Of each side: where borders are looked for, and what exposure leaves out.
_FRAME = 0.2
_QUANTILES = (1, 5, 25, 50, 75, 95, 99)
_SAMPLE = 1 << 14

# Beyond what cohorts without shortcuts show (``tests/planted.py``).
_MARK_DIFFERENCE, _MARK_TELLS = 0.1, 0.6
_BORDER_TELLS, _EXPOSURE_TELLS, _PLACE_TELLS = 0.65, 0.7, 0.62

_KINDS = ("bright", "dark", "coloured")
_MARKS = slice(0, len(_KINDS) * 2 * _ZONES)
_BORDER = slice(_MARKS.stop, _MARKS.stop + 12)
_EXPOSURE = slice(_BORDER.stop, _BORDER.stop + len(_QUANTILES) + 4)
_PLACES = slice(_EXPOSURE.stop, _EXPOSURE.stop + 2 * _ZONES)
_LEFT, _UP = np.array([0, 1]), np.array([1, 0])
_DOWN = ("top", "upper middle", "lower middle", "bottom")
_ACROSS = ("left", "left middle", "right middle", "right")

Plane = NDArray[np.float32]
Rows = NDArray[np.float64]


def measure(look: Look) -> NDArray[np.float32]:
    """Marks by zone (bright, dark, coloured), border and exposure, whole and by zone: float32 ``(151,)``."""
    height, width = look.plane.shape
    y, x = int(_FRAME * height), int(_FRAME * width)
    within = look.plane[y : height - y, x : width - x]
    parts = _marks(look), _border(look.plane), _exposure(_sampled(within)), _by_place(within)
    return np.concatenate(parts).astype(np.float32)


def _sampled(plane: Plane) -> Plane:
    """Some ten thousand pixels, for quantiles; the step is odd, so that it meets every column."""
    return plane.reshape(-1)[:: plane.size // _SAMPLE | 1]


def find(evidence: Evidence) -> list[Trouble]:
    """``marker_shortcut``, ``border_shortcut`` and ``exposure_shortcut``: each for the class that it tells best."""
    rows = np.asarray(evidence.measured["shortcuts"], np.float64)
    asked = list(contrasts(evidence.entries, evidence.questions))
    confidence = family((len(_KINDS) + 3) * len(asked))
    found: dict[tuple[str, str], tuple[float, Trouble]] = {}
    for contrast in asked:
        for value, trouble in (
            *_marked(rows[:, _MARKS], contrast, evidence, confidence),
            *_bordered(rows[:, _BORDER], contrast, confidence),
            *_exposed(rows[:, _EXPOSURE], rows[:, _PLACES], contrast, confidence),
        ):
            key = (trouble.kind, contrast.task)
            if key not in found or value > found[key][0]:
                found[key] = (value, trouble)
    return [trouble for _, trouble in found.values()]


def _bordered(border: Rows, contrast: Contrast, confidence: float) -> Iterator[tuple[float, Trouble]]:
    scores = tell(border, contrast)
    if area(scores, contrast, confidence).low > _BORDER_TELLS:
        told = area(scores, contrast)
        said = (
            f"the border of the image (its padding, and lines along the outermost fifth of a side) alone tells "
            f"{contrast.name!r} ({contrast.task}) in patients that it was not fitted on: {_auroc(told)}"
        )
        fix = "crop all images to the same field, without padding, frames and collimation, and inspect again"
        yield told.value, Trouble("border_shortcut", (), said, fix)


def _exposed(exposure: Rows, places: Rows, contrast: Contrast, confidence: float) -> Iterator[tuple[float, Trouble]]:
    """Exposure is that of the whole image: where only some places tell the label, it is what lies there."""
    scores = tell(exposure, contrast)
    if not area(scores, contrast, confidence).low > _EXPOSURE_TELLS:
        return
    zones = [area(tell(places[:, [2 * i, 2 * i + 1]], contrast), contrast).value for i in range(_ZONES)]
    if np.quantile(zones, 0.25) > _PLACE_TELLS:
        told = area(scores, contrast)
        said = (
            f"the brightness and contrast alone tell {contrast.name!r} ({contrast.task}) in patients that they were "
            f"not fitted on: {_auroc(told)}; they do so in {sum(zone > _PLACE_TELLS for zone in zones)} of {_ZONES} "
            "places of the image"
        )
        fix = (
            "if the disease itself does not change them, bring all images to one scale or collect all classes with "
            "the same settings"
        )
        yield told.value, Trouble("exposure_shortcut", (), said, fix)


def _auroc(found: Estimate) -> str:
    return f"AUROC {found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


# --- marks --------------------------------------------------------------------------------------------------


def _marks(look: Look) -> NDArray[np.float64]:
    """Pixels of bright, dark and coloured lines in each zone of a grid of 4 x 4, see :func:`_by_zone`; ``(96,)``."""
    image, found = look.image, [_by_zone(_shrunk(look.plane)), _by_zone(_shrunk(-look.plane))]
    colour = image.array[image.frames // 2, :, image.size[0] // 2]
    if image.channels == 3 and (spread := np.ptp(colour.astype(np.float32), axis=0)).any():
        # Faint colour is noise of a camera or of compression: it is measured on the scale of the brightness.
        found.append(_by_zone(_shrunk(spread), float(np.ptp(look.plane))))
    else:
        found.append(np.zeros(2 * _ZONES))
    return np.concatenate(found)


def _shrunk(plane: Plane) -> Plane:
    """The brightest pixel of each block: thin bright lines survive."""
    height, width = plane.shape
    step = -(-max(height, width) // _LARGEST)
    if step == 1 or min(height, width) < step:
        return plane
    cut = plane[: height // step * step, : width // step * step]
    return np.asarray(cut.reshape(height // step, step, -1, step).max(axis=(1, 3)))


def _by_zone(plane: Plane, scale: float = 0.0) -> NDArray[np.float64]:
    """Pixels of lines down, then of lines across, in each zone, blocks among both; in 128ths of the shorter side.

    A line is among the brighter pixels, far brighter than what lies three pixels beside it on both sides, and goes on
    for two pixels. Larger blocks must be as good as constant, too.
    """
    low, high = map(float, np.percentile(_sampled(plane), [1, 99.9]))
    span = max(high - low, scale)
    if not span > 0:
        return np.zeros(2 * _ZONES)
    y, x = np.nonzero(plane >= low + _BRIGHT * span)
    shown = np.clip((plane - low) / span, 0, 1)
    lines = []
    for step in (_LEFT, _UP):
        line = np.zeros(plane.shape, bool)
        line[y, x] = _stands_out(shown, y, x, _STROKE * step, edge=True)
        # A line goes on for two pixels at least: a single one is noise.
        lines.append(_counted(line[:-1] & line[1:] if step[1] else line[:, :-1] & line[:, 1:]))
    wide = max(_STROKE + 1, min(plane.shape) // 10)
    blocks = np.zeros(plane.shape, bool)
    blocks[y, x] = np.logical_and(*(_stands_out(shown, y, x, wide * step, edge=False) for step in (_LEFT, _UP)))
    y, x = np.nonzero(blocks)
    around = [_at(shown, y + i, x + j, edge=True) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    blocks[y, x] = np.ptp(np.stack(around), axis=0) <= _FLAT
    counts = np.concatenate([line + _counted(blocks) for line in lines])
    return np.asarray(counts / max(0.35, min(plane.shape) / 128))


def _counted(mask: NDArray[np.bool_]) -> Rows:
    y, x = np.nonzero(mask)
    zone = y * _GRID // mask.shape[0] * _GRID + x * _GRID // mask.shape[1]
    return np.bincount(zone, minlength=_ZONES).astype(np.float64)


def _stands_out(
    shown: Plane, y: NDArray[np.intp], x: NDArray[np.intp], step: NDArray[np.intp], *, edge: bool
) -> NDArray[np.bool_]:
    """Which of those pixels are brighter by half of the range than both pixels a step away."""
    beside = np.maximum(*(_at(shown, y + sign * step[0], x + sign * step[1], edge=edge) for sign in (-1, 1)))
    return np.asarray(shown[y, x] - beside > _CONTRAST)


def _at(shown: Plane, y: NDArray[np.intp], x: NDArray[np.intp], *, edge: bool) -> NDArray[np.float32]:
    """The pixels at those places; outside of the image the nearest one, or without ``edge`` black."""
    height, width = shown.shape
    found = shown[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return found if edge else np.where((y >= 0) & (y < height) & (x >= 0) & (x < width), found, np.float32(0))


def _marked(
    marks: Rows, contrast: Contrast, evidence: Evidence, confidence: float
) -> Iterator[tuple[float, Trouble]]:
    """Marks of one kind that are there more often in one class, or marks that stand elsewhere in it."""
    counts = _unlike_tissue(marks)
    scores = tell(np.log1p(counts.reshape(len(counts), -1)), contrast)
    told, elsewhere = area(scores, contrast), area(scores, contrast, confidence).low > _MARK_TELLS
    counts = counts[contrast.rows]
    rates = [
        [_rate(has, contrast.patients, contrast.positive == one) for one in (True, False)]
        for has in (counts.sum(axis=2) >= _FEWEST).T
    ]
    usual = [newcombe(*inside, *outside) for inside, outside in rates]
    strict = [newcombe(*inside, *outside, confidence) for inside, outside in rates]
    kind = int(np.argmax([_apart(each) for each in strict]))
    if not elsewhere and not (_apart(strict[kind]) > 0 and _apart(usual[kind]) > _MARK_DIFFERENCE):
        return
    (inside, outside), sums = rates[kind], counts[:, kind].sum(axis=1)
    more = (contrast.positive == (strict[kind].value >= 0)) & (sums >= _FEWEST)
    order = np.flatnonzero(more)[np.argsort(-sums[more], kind="stable")]
    place = int(counts[order, kind].mean(axis=0).argmax()) if len(order) else 0
    said = (
        f"{_KINDS[kind]} marks as of text, arrows or calipers, most at the {_DOWN[place // _GRID]} "
        f"{_ACROSS[place % _GRID]}, are in {inside[0] / inside[1]:.0%} of the patients with {contrast.name!r} "
        f"({contrast.task}) and in {outside[0] / outside[1]:.0%} of the others; where they are tells it with "
        f"{_auroc(told)}"
    )
    fix = "blank the marks in all images, or take images without them: a network would read them, not the tissue"
    cases = tuple(evidence.entries[contrast.rows[i]].id for i in order)
    yield max(told.value, 0.5 + abs(strict[kind].value) / 2), Trouble("marker_shortcut", cases, said, fix)


def _unlike_tissue(marks: Rows) -> Rows:
    """Of each kind of mark the lines in the direction in which there are fewer of them, ``(n, 3, 16)``.

    Tissue has bright lines, too, but in one direction (the layers of an ultrasound image); letters, arrows and
    crosses have both.
    """
    counts = marks.reshape(len(marks), len(_KINDS), 2, _ZONES)
    share = (counts.sum(axis=3) >= _FEWEST).mean(axis=0)
    return counts[:, np.arange(len(_KINDS)), share.argmin(axis=1)]


def _apart(difference: Estimate) -> float:
    """How far from 0 its interval stays; negative where it holds 0."""
    return max(difference.low, -difference.high)


def _rate(present: NDArray[np.bool_], patients: NDArray[np.intp], which: NDArray[np.bool_]) -> tuple[int, int]:
    """How many of the patients have a mark in any of those cases, and how many patients there are."""
    return len(np.unique(patients[which & present])), len(np.unique(patients[which]))


# --- border and exposure ------------------------------------------------------------------------------------


def _border(plane: Plane) -> NDArray[np.float64]:
    """Of each side the share that is constant, and the largest step along a line beside it, with its place.

    The step is the median over the line, so that it must run along most of the side: frames, bars and collimators
    do, and what lies in the patient and reaches the border (the shadow of a lesion) does not.
    """
    if min(plane.shape) < 2:
        return np.zeros(12)
    low, high = map(float, np.percentile(_sampled(plane), [1, 99]))
    span, found = max(high - low, 1e-9), []
    for turn in range(4):
        side = np.rot90(plane, turn)
        near = side[: max(2, round(_FRAME * len(side)))]
        steps = np.median(np.diff(near, axis=0), axis=1) / span
        place = int(np.abs(steps).argmax())
        constant = np.ptp(side, axis=1) < _FLAT * span
        padding = len(side) if constant.all() else int(constant.argmin())
        found += [padding / len(side), np.clip(steps[place], -1, 1), abs(steps[place]) * place / len(near)]
    return np.array(found, np.float64)


def _exposure(sampled: Plane) -> NDArray[np.float64]:
    """Quantiles, mean and deviation of the stored values, and the shares at their smallest and largest."""
    extremes = [(sampled == sampled.min()).mean(), (sampled == sampled.max()).mean()]
    return np.array([*np.percentile(sampled, _QUANTILES), sampled.mean(), sampled.std(), *extremes], np.float64)


def _by_place(plane: Plane) -> NDArray[np.float64]:
    """Mean and deviation of the stored values in each zone of a grid of 4 x 4, ``(32,)``."""
    zones = [zone for rows in np.array_split(plane, _GRID) for zone in np.array_split(rows, _GRID, axis=1)]
    return np.array([(zone.mean(), zone.std()) if zone.size else (0, 0) for zone in zones], np.float64).reshape(-1)
