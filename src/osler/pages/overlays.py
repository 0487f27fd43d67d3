"""Outlines and boxes drawn over an image: those of the reader and those of a model, in two colours and two strokes.

An overlay is inline SVG: the pixels as a PNG inside, outlines exactly along the edges of pixels, sharp at any size.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Real
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image as Pillow

from osler.case import Answer, Case, Finding, Question
from osler.image import Image

# Pixels of the longer side of a picture; more would be smaller than those of a screen.
_LONGEST = 400
# More words would hide the picture.
_MOST_WORDS = 6
# Around what is small, this many pixels at least are shown.
_SURROUNDINGS = 24


@dataclass(frozen=True, eq=False)
class Places:
    """What is drawn in one colour on one image.

    Attributes:
        masks: each ``(height, width)``; outlined one by one.
        boxes: ``(n, 4)``, edges y0 x0 y1 x1 in pixels.
        words: what is written at each box, or nothing.
    """

    masks: Sequence[Bool[np.ndarray, "h w"]] = ()
    boxes: Float[np.ndarray, "n 4"] = field(default_factory=lambda: np.empty((0, 4)))
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Example:
    """One case on a page.

    Attributes:
        case: its pseudonym.
        drawing: see :func:`overlay`.
        said: about it, e.g. the slice and Dice.
        quality: for the order, the best last; nan where there was nothing to find and nothing was drawn.
    """

    case: str
    drawing: Markup
    said: str
    quality: float


def overlay(
    image: Real[np.ndarray, "h w"], reference: Places, predicted: Places, label: str, aspect: float = 1.0
) -> Markup:
    """The image with both, cut to the surroundings of what is drawn where that is small.

    Args:
        image: grey values; those of 8 bits are shown as they are, others from their 0.5th to their 99.5th percentile.
        reference: the reader's, in a solid line.
        predicted: the model's, in a dashed line.
        label: for those who cannot see it.
        aspect: how much taller than wide a pixel is.
    """
    top, left, bottom, right = _window(image.shape, (reference, predicted))
    height, width = bottom - top, right - left
    drawn = [
        f'<g class="{name}" transform="translate({-left} {-top})">{_strokes(places)}</g>'
        for name, places in (("reference", reference), ("model", predicted))
    ]
    words = [
        f'<text class="{name}" x="{x0 - left:g}" y="{max((y0 - top) * aspect - 0.01 * width, 0.045 * width):g}" '
        f'font-size="{0.036 * width:g}">{escape(word)}</text>'
        for name, places in (("reference", reference), ("model", predicted))
        for (y0, x0, _, _), word in zip(places.boxes.tolist(), places.words, strict=False)
    ]
    crisp = ' style="image-rendering:pixelated"' if max(height, width) < 200 else ""
    picture = _png(image[top:bottom, left:right])
    # Everything that is put in is a number, a picture of our own, or escaped.
    return Markup(
        f'<svg class="overlay" role="img" aria-label="{escape(label)}" viewBox="0 0 {width} {height * aspect:g}">'
        f'<g transform="scale(1 {aspect:g})"><image width="{width}" height="{height}" '
        f'preserveAspectRatio="none"{crisp} href="{picture}"/>{"".join(drawn)}</g>{"".join(words)}</svg>'
    )


def _window(size: tuple[int, ...], shown: Sequence[Places]) -> tuple[int, int, int, int]:
    """The part of an image that is shown: all of it, or what is drawn with its surroundings."""
    ends = [places.boxes for places in shown]
    for mask in (mask for places in shown for mask in places.masks if mask.any()):
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        ends.append(np.array([[rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]], float))
    every = np.concatenate(ends)
    if not len(every):
        return 0, 0, size[0], size[1]
    low, high = every[:, :2].min(0), every[:, 2:].max(0)
    margin = np.maximum(0.6 * (high - low), _SURROUNDINGS)
    # as wide as high, so that pictures stand side by side
    half = np.max((high - low) / 2 + margin)
    start = np.clip(np.floor((low + high) / 2 - half), 0, None).astype(int)
    stop = np.clip(np.ceil((low + high) / 2 + half), None, size[:2]).astype(int)
    if (stop - start).max() > 0.7 * max(size[:2]):
        return 0, 0, size[0], size[1]
    return int(start[0]), int(start[1]), int(stop[0]), int(stop[1])


def _png(image: NDArray[np.generic]) -> str:
    if image.dtype == np.uint8:
        grey = np.asarray(image, np.uint8)
    else:
        low, high = np.nanpercentile(image.astype(np.float64), (0.5, 99.5))
        scaled = (np.nan_to_num(image.astype(np.float64), nan=low) - low) / max(high - low, 1e-12)
        grey = (255 * np.clip(scaled, 0, 1)).astype(np.uint8)
    picture, stream = Pillow.fromarray(np.ascontiguousarray(grey)), io.BytesIO()
    picture.thumbnail((_LONGEST, _LONGEST))
    picture.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _strokes(places: Places) -> str:
    paths = [_edges(mask) for mask in places.masks if mask.any()]
    paths += [f"M{x0:g} {y0:g}H{x1:g}V{y1:g}H{x0:g}Z" for y0, x0, y1, x1 in places.boxes.tolist()]
    return "".join(f'<path d="{path}"/>' for path in paths)


def _edges(mask: Bool[np.ndarray, "h w"]) -> str:
    """The edges between pixels of a mask and others, walked around, as the data of a path."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    # by side of a pixel: the pixel beyond it, and the corners from which and to which the side is walked
    sides = (
        (padded[:-2, 1:-1], (0, 0), (0, 1)),
        (padded[1:-1, 2:], (0, 1), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (1, 0)),
        (padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for beyond, start, stop in sides:
        for y, x in np.argwhere(inside & ~beyond).tolist():
            ways.setdefault((y + start[0], x + start[1]), []).append((y + stop[0], x + stop[1]))
    path = []
    for first in list(ways):
        while ways.get(first):
            path.append(_walk(ways, first))
    return "".join(path)


def _walk(ways: dict[tuple[int, int], list[tuple[int, int]]], first: tuple[int, int]) -> str:
    """One way around, back to where it began; its sides are taken out of ``ways``."""
    said, here, before = [f"M{first[1]} {first[0]}"], first, ""
    while True:
        there = ways[here].pop()
        step = "H" if there[0] == here[0] else "V"
        text = f"{step}{there[1] if step == 'H' else there[0]}"
        # sides on one line are one stroke
        said[-1 if step == before else len(said) :] = [text]
        here, before = there, step
        if here == first:
            return "".join(said) + "Z"


# --- examples of a page --------------------------------------------------------------------------------------


def example(case: Case, image: Image, answer: Answer, question: Question, quality: float) -> Example:
    """A case with the reader's places and those that the model states, in the slice that shows most of them.

    Args:
        case: its ``id`` is shown, so it should be a pseudonym.
        image: its image.
        answer: of the model.
        question: what was asked.
        quality: see :func:`osler.dense_rows.quality`; it is written below, and orders the cases.
    """
    stated = [f for f in answer.findings if f.box is not None and (f.probability or 0) >= (answer.threshold or 0)]
    readers = [f for f in case.findings if f.task == question.task and f.box is not None]
    maps = case.maps.get(question.task)
    area = np.zeros((image.frames, image.size[0]))
    for finding in (*stated, *(readers if maps is None else ())):
        _add(area, finding)
    if maps is not None:
        values = [value for group in question.values for value in group]
        area += np.isin(maps, values).sum((2, 3))
    frame, number = (int(i) for i in np.unravel_index(int(area.argmax()), area.shape))
    ours = _places(readers if maps is None else (), frame, number, image, words=False)
    if maps is not None:
        ours = Places([np.isin(maps[frame, number], group) for group in question.values])
    theirs = _places(stated, frame, number, image, words=question.kind == "detection")
    picture = image.array[frame].astype(np.float64).mean(0) if image.channels > 1 else image.array[frame, 0]
    spacing = image.spacing
    aspect = 1.0 if spacing is None else spacing[1] / spacing[2]
    where = [f"frame {frame + 1}"] * (image.frames > 1) + [f"slice {number + 1}"] * (image.size[0] > 1)
    name = "F1 of the boxes" if question.kind == "detection" else "Dice"
    measured = "nothing there, nothing drawn" if np.isnan(quality) else f"{name} {quality:.2f}"
    said = ", ".join([measured, *where])
    return Example(case.id, overlay(picture[number], ours, theirs, f"{case.id}: {said}", aspect), said, quality)


def _add(area: NDArray[np.float64], finding: Finding) -> None:
    """How many pixels of each slice of each frame a finding has."""
    if finding.mask is not None:
        first = finding.mask.start[0]
        area[finding.frame, first : first + len(finding.mask.array)] += finding.mask.array.sum((1, 2))
    elif finding.box is not None:
        (z0, y0, x0), (z1, y1, x1) = finding.box.start, finding.box.stop
        inside = slice(max(0, int(np.floor(z0))), int(np.ceil(z1)))
        area[finding.frame, inside] += (y1 - y0) * (x1 - x0)


def _places(findings: Sequence[Finding], frame: int, number: int, image: Image, *, words: bool) -> Places:
    """Findings of one slice of one frame."""
    masks, boxes, said = [], [], []
    for finding in (f for f in findings if f.frame == frame and f.box is not None):
        assert finding.box is not None
        (z0, y0, x0), (z1, y1, x1) = finding.box.start, finding.box.stop
        if finding.mask is not None:
            masks.append(finding.mask.within(image.size)[number])
        elif z0 < number + 1 and z1 > number:
            boxes.append((y0, x0, y1, x1))
            said.append(f"{finding.name} {100 * (finding.probability or 0):.0f} %" if words else "")
    return Places(masks, np.array(boxes, float).reshape(-1, 4), said if len(said) <= _MOST_WORDS else ())


def chosen(examples: Sequence[Example]) -> Mapping[str, Sequence[Example]]:
    """Of all examples the best, the middle and the worst ones, by title; up to three each, none twice."""
    order = sorted((one for one in examples if not np.isnan(one.quality)), key=lambda one: (one.quality, one.case))
    if not order:
        return {}
    few = max(1, min(3, len(order) // 3))
    middle = (len(order) - few) // 2
    parts = {
        "Best": order[: -few - 1 : -1],
        "Median": order[middle : middle + few] if len(order) > 2 else [],
        "Worst": order[:few] if len(order) > 1 else [],
    }
    return {title: some for title, some in parts.items() if some}
