"""Files that outline findings: from label maps and masks to maps on the image's grid, and to findings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from osler import formats, resampling
from osler.case import Entry, Finding, Mask, Outline, Question
from osler.image import Affine, Image
from osler.problem import Problem

# From here on a pixel belongs to a smoothed mask: half of what 8 bits hold.
_HALF = 128
# Touching at a corner is touching: 8 neighbours in a flat image, 26 in a volume.
_NEIGHBOURS = np.ones((3, 3, 3), int)

Labels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Outlined:
    """Where the findings of a case are.

    Attributes:
        maps: by segmentation, the label map ``(time, depth, height, width)`` in the question's values, on the
            image's grid. What nothing is known of is not there.
        findings: one for each connected part where the question asks for parts, else one for each class and moment,
            with mask and box; with probability 0 and no place where a class is nowhere. Of a detection only the box.
        notes: what was assumed, a sentence each.
    """

    maps: Mapping[str, Labels]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()


def read(entry: Entry, image: Image, questions: Sequence[Question]) -> Outlined:
    """The outlines of an entry, and the masks among its findings, as label maps and findings.

    A file on another grid is brought onto the image's by the nearest pixel, if both have an affine; without one the
    shapes must agree. Grids whose pixels nowhere lie more than half a pixel apart count as the same.

    Args:
        entry: with ``outlines``, or with masks among its findings.
        image: as it was read.
        questions: those to answer; outlines of other tasks are not read.

    Raises:
        Problem: a file cannot be read, does not lie on the image, or holds what the question does not know.
    """
    notes: list[str] = []
    maps: dict[str, Labels] = {}
    findings: list[Finding] = []
    for question in questions:
        outlines = [outline for outline in entry.outlines if outline.task == question.task]
        if not question.dense:
            continue
        _check(entry, image, question)
        if outlines:
            layers = [_layer(outline, question, image, notes) for outline in outlines]
            findings += _findings(question, layers, outlines[0].by)
            if question.kind == "segmentation":
                maps[question.task] = _together(question, [layer.labels for layer in layers], entry)
        elif question.kind == "segmentation":
            painted = _painted(entry, question, image)
            if painted is not None:
                maps[question.task] = painted
    return Outlined(maps, tuple(findings), tuple(dict.fromkeys(notes)))


def components(mask: NDArray[np.bool_]) -> Iterator[Mask]:
    """The connected parts of ``(depth, height, width)``, in the order of their first pixel."""
    numbers, count = ndimage.label(mask, _NEIGHBOURS)
    for number, window in enumerate(ndimage.find_objects(numbers, count), 1):
        z, y, x = window
        yield Mask(np.ascontiguousarray(numbers[window] == number), (z.start, y.start, x.start))


@dataclass(frozen=True, eq=False)
class _Layer:
    """One file on the image's grid: labels ``(t, d, h, w)``, and what tells its lesions apart, where it does."""

    labels: Labels
    numbers: NDArray[np.generic] | None = None


def _layer(outline: Outline, question: Question, image: Image, notes: list[str]) -> _Layer:
    path = outline.source.path
    try:
        drawn = _on_grid(_single_channel(formats.labels(outline.source)), image, notes)
        array = drawn.array[:, 0]
        if isinstance(outline.values, str):
            return _one_class(array, outline.values, question, formats.lossy(path), notes)
        return _Layer(_label_map(array, outline.values, question, lossy=formats.lossy(path)))
    except Problem as problem:
        raise Problem(problem.what, path=problem.path or path, fix=problem.fix) from problem


def _single_channel(drawn: Image) -> Image:
    array = drawn.array
    if array.shape[1] == 1:
        return drawn
    if array.shape[1] == 3 and (array[:, :1] == array).all():
        return Image(array[:, :1], drawn.geometry)
    raise Problem("the mask is in colour", fix="save it in grey or with a palette, a value for each class")


def _on_grid(drawn: Image, image: Image, notes: list[str]) -> Image:
    where = image.geometry
    if drawn.frames != image.frames:
        raise Problem(
            f"the mask has {drawn.frames} moments, its image {image.frames}", fix="draw each moment of the image"
        )
    if not (isinstance(where, Affine) and isinstance(drawn.geometry, Affine)):
        if drawn.size != image.size:
            raise Problem(
                f"the mask is of {_shape(drawn)} pixels, its image of {_shape(image)}, and not both say where they "
                "lie in the patient",
                fix="check that they belong together",
            )
        return drawn
    if where.frame and drawn.geometry.frame and where.frame != drawn.geometry.frame:
        raise Problem(
            "the mask lies in another frame of reference than its image", fix="check that they belong together"
        )
    apart = resampling.farthest(image, drawn.geometry) if drawn.size == image.size else np.inf
    if apart <= 0.5:
        return drawn
    moved = resampling.onto(drawn, where, image.size, order=0)
    before, after = np.count_nonzero(drawn.array), np.count_nonzero(moved.array)
    if not _overlap(drawn, where, image) or (before and not after):
        raise Problem(
            "the mask lies outside of its image, by what both say of their place in the patient",
            fix="check that they are of the same patient",
        )
    same = "" if np.isinf(apart) else f" (the same size, but up to {apart:.1f} pixels apart)"
    notes.append(f"The mask was brought from its own grid onto that of its image{same}.")
    return moved


def _overlap(drawn: Image, where: Affine, image: Image) -> bool:
    """Whether any pixel of the image lies in the mask's grid."""
    whole = Image(np.ones((1, 1, *drawn.size), np.uint8), drawn.geometry)
    return bool(resampling.onto(whole, where, image.size, order=0).array.any())


def _shape(image: Image) -> str:
    depth, height, width = image.size
    return f"{width} x {height}" if depth == 1 else f"{width} x {height} x {depth}"


def _one_class(array: NDArray[np.generic], name: str, question: Question, lossy: bool, notes: list[str]) -> _Layer:
    """Every value but 0 is inside; one that was smoothed or compressed on the way, from half on.

    Several values in a file that was not smoothed number its lesions.
    """
    if name not in question.classes:
        raise Problem(f"the mask is of {name!r}, which is none of {', '.join(question.classes)}", fix="rename it")
    _whole(array)
    labels = np.zeros(array.shape, np.uint8)
    number = question.values[question.classes.index(name)][0] if question.values else 1
    inside = array != 0
    values = np.unique(array[inside])
    smoothed = lossy or (len(values) > 1 and int(values[-1]) == 255 and array.dtype == np.uint8)
    if smoothed:
        inside = array >= _HALF  # type: ignore[operator]
        notes.append(f"A mask holds values between 0 and 255: pixels from {_HALF} on were taken as inside.")
    labels[inside] = number
    return _Layer(labels, array if len(values) > 1 and not smoothed else None)


def _label_map(array: NDArray[np.generic], values: Mapping[int, str], question: Question, *, lossy: bool) -> Labels:
    if lossy:
        raise Problem("a label map in a JPEG has lost its values", fix="save it as PNG")
    _whole(array)
    known = {0, *values, *({question.ignore} if question.ignore is not None else ())}
    strange = [int(value) for value in np.unique(array) if int(value) not in known]
    if strange:
        listed = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise Problem(
            f"the mask holds {'the value' if len(strange) == 1 else 'the values'} {listed}, which "
            f"{'is' if len(strange) == 1 else 'are'} no label here (known: {', '.join(map(str, sorted(known)))})",
            fix="add what it means to the labels or correct the mask",
        )
    return _in_the_questions_values(array.astype(np.uint8), values, question)


def _in_the_questions_values(labels: Labels, values: Mapping[int, str], question: Question) -> Labels:
    """The same classes with the values that the question has for them, which may be of another cohort."""
    table = np.arange(256, dtype=np.uint8)
    for value, name in values.items():
        if name not in question.classes:
            raise Problem(f"the mask has {name!r}, which is none of {', '.join(question.classes)}", fix="rename it")
        own = question.values[question.classes.index(name)] if question.values else (value,)
        # A value of several regions stands here under the name of one of them.
        table[value] = value if value in own else own[0]
    return labels if (table == np.arange(256)).all() else table[labels]


def _whole(array: NDArray[np.generic]) -> None:
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and (array == np.rint(array)).all()):
        raise Problem(
            "the mask holds fractions, such as probabilities", fix="decide what is inside and save whole numbers"
        )


def _findings(question: Question, layers: Sequence[_Layer], by: str) -> Iterator[Finding]:
    for k, name in enumerate(question.classes):
        values = question.values[k] if question.values else (1,)
        found = False
        for frame, mask in _masks(layers, values, question.separate or question.kind == "detection"):
            found = True
            shown = mask if question.kind == "segmentation" else None
            yield Finding(question.task, name, by, probability=1.0, box=mask.box, mask=shown, frame=frame)
        hidden = question.ignore is not None and any((layer.labels == question.ignore).any() for layer in layers)
        if not found and not hidden:
            yield Finding(question.task, name, by, probability=0.0)


def _masks(layers: Sequence[_Layer], values: Sequence[int], separate: bool) -> Iterator[tuple[int, Mask]]:
    """The masks of one class, with their frames; each file's lesions are its own, even where they touch."""
    inside = [np.isin(layer.labels, values) for layer in layers]
    for frame in range(len(layers[0].labels)):
        if not separate:
            whole = np.logical_or.reduce([each[frame] for each in inside])
            if whole.any():
                yield frame, Mask.cropped(whole)
            continue
        for layer, each in zip(layers, inside, strict=True):
            if layer.numbers is None:
                yield from ((frame, mask) for mask in components(each[frame]))
                continue
            for number in np.unique(layer.numbers[frame][each[frame]]):
                yield from ((frame, mask) for mask in components(layer.numbers[frame] == number))


def _together(question: Question, layers: Sequence[Labels], entry: Entry) -> Labels:
    """Several files in one label map.

    Raises:
        Problem: two classes of which a pixel can have only one claim the same.
    """
    total = layers[0].copy()
    for layer in layers[1:]:
        twice = (layer != 0) & (total != 0) & (layer != total)
        if twice.any():
            a, b = (_name(question, int(values[twice][0])) for values in (total, layer))
            raise Problem(
                f"case {entry.id}: the masks of {a} and {b} overlap in {np.count_nonzero(twice)} pixels",
                path=entry.outlines[0].source.path,
                fix="a pixel is of one class: give a label map with a value for what is both",
            )
        np.maximum(total, layer, out=total)
    return total


def _name(question: Question, value: int) -> str:
    return next((n for n, values in zip(question.classes, question.values, strict=True) if value in values), "ignore")


def _painted(entry: Entry, question: Question, image: Image) -> Labels | None:
    """The label map that the masks among the findings make; ``None`` unless something is stated of each class."""
    stated = [f for f in entry.findings if f.task == question.task]
    if {f.name for f in stated} != set(question.classes):
        return None
    labels = np.zeros((image.frames, *image.size), np.uint8)
    # What is small lies on top.
    for finding in sorted(stated, key=lambda f: -f.mask.array.sum() if f.mask else 0):
        if finding.mask is None:
            if finding.probability:
                return None
            continue
        window = tuple(slice(a, a + n) for a, n in zip(finding.mask.start, finding.mask.array.shape, strict=True))
        values = question.values[question.classes.index(finding.name)]
        labels[finding.frame][window][finding.mask.array] = values[0]
    return labels


def _check(entry: Entry, image: Image, question: Question) -> None:
    """Places that came with the entry lie in its image.

    Raises:
        Problem: one does not.
    """
    for finding in entry.findings:
        if finding.task != question.task or finding.box is None:
            continue
        if any(stop > n for stop, n in zip(finding.box.stop, image.size, strict=True)) or min(finding.box.start) < 0:
            raise Problem(
                f"case {entry.id}: a box of {finding.name} ends at {finding.box.stop[2]:g}, {finding.box.stop[1]:g} "
                f"in an image of {_shape(image)} pixels",
                path=next(iter(entry.images.values())).path,
                fix="check that they belong together",
            )
        if finding.frame >= image.frames:
            raise Problem(
                f"case {entry.id}: there is no frame {finding.frame} among {image.frames}",
                path=next(iter(entry.images.values())).path,
                fix="check that they belong together",
            )
