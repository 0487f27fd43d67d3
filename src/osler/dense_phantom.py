"""Synthetic cohorts with known places: lesions in flat images and volumes, and an organ of two parts.

Every case is made alone from the seed and its number. Its expected image is a tissue of ``1 / f**3`` power (Burgess,
1999) with vessels and what is to be found, blurred; white Gaussian noise of deviation 1 comes on top, so a contrast
is a contrast-to-noise ratio, and how well a lesion can be found has a closed form (:func:`detectability`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label
from scipy.stats import norm

from osler import anatomy
from osler.case import Case, Finding, Mask, Question, Role
from osler.draws import keys, normal, uniform, white
from osler.image import Affine, Image
from osler.phantom import AGE, AGE_SPREAD, ROLES
from osler.problem import Problem

Array = NDArray[np.float64]
Key = NDArray[np.uint64]
Triple = tuple[float, float, float]

TASK = "mask"
# Of a whole case, see :func:`label_of`.
LABELS = ("normal", "benign", "malignant")
_PSF = 0.6  # pixels
# What a class looks like: by which factor it takes the contrast, and how spiculated it is.
_LOOKS = {"nodule": (1.0, 0.0), "cyst": (-1.0, 0.0), "spiculated": (1.0, 1.0)}
_VESSEL = 0.9  # brightness of a vessel's axis, of the largest contrast
_TAIL = 0.6  # contrast of the second part of the organ, of that of the first
_GREY, _GREY_STEP, _HOUNSFIELD, _HOUNSFIELD_STEP = (
    110.0,
    16.0,
    -700.0,
    60.0,
)  # of tissue, and of the noise's deviation


@dataclass(frozen=True)
class DensePhantom:
    """What a synthetic cohort with places is like.

    Attributes:
        kind: ``lesions`` (any number, each a finding of its own) or ``organ`` (one, of two parts).
        size: ``(depth, height, width)`` in pixels; a depth of 1 is a flat image, which has no geometry.
        spacing: ``(z, y, x)`` in mm, of volumes.
        classes: of ``lesions`` any of ``nodule`` (bright, round), ``cyst`` (dark, round) and ``spiculated`` (bright,
            with spicules), equally frequent; of ``organ`` the names of its two parts.
        normal: share of the patients without any lesion.
        count: fewest and most lesions of the others (fewer where they do not fit).
        diameter: smallest and largest, in pixels across; spicules reach further.
        smallest: share of the lesions that have exactly the smallest diameter and lie on the centre of a pixel, so
            that an odd number is their width in pixels.
        contrast: smallest and largest, drawn for each lesion (or organ), in deviations of the noise.
        vessels: how many bright tubes run through the image; lesions lie beside them, not on them.
        texture: deviation of the tissue, in deviations of the noise.
        label_spacing: of ``organ``: its label map has a grid of its own with this spacing (z, y, x; mm), whose
            columns run the other way; ``None`` is the grid of the image.
        age_effect: of ``lesions``, by how many deviations (11 years) those with a benign lesion are older than normal
            patients (55 years), and those with a malignant one than these; 0: no age is known.
        cases_per_patient: mean, between 1 and 2; a second case is the same body with other noise.
        splits: shares of the patients in train, validation, calibration and test.
        seed: of everything.
    """

    kind: Literal["lesions", "organ"] = "lesions"
    size: tuple[int, int, int] = (1, 96, 96)
    spacing: Triple = (1.0, 1.0, 1.0)
    classes: tuple[str, ...] = ("nodule", "cyst", "spiculated")
    normal: float = 0.25
    count: tuple[int, int] = (1, 3)
    diameter: tuple[float, float] = (7.0, 20.0)
    smallest: float = 0.0
    contrast: tuple[float, float] = (2.0, 4.0)
    vessels: int = 5
    texture: float = 0.7
    label_spacing: Triple | None = None
    age_effect: float = 0.0
    cases_per_patient: float = 1.0
    splits: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        across = min(n * s / self.spacing[2] for n, s in zip(self.size, self.spacing, strict=True) if n > 1)
        known = set(self.classes) <= _LOOKS.keys() and len(self.classes) > 0
        for fine, sentence in (
            (known or self.kind == "organ", f"classes of lesions must be of {', '.join(_LOOKS)}"),
            (len(self.classes) == 2 or self.kind == "lesions", "classes must name the two parts of the organ"),
            (len(set(self.classes)) == len(self.classes), "classes must differ"),
            (self.size[0] >= 1 and min(self.size[1:]) >= 16, "size must be 16 or more, with a depth of 1 or more"),
            (min(self.spacing) > 0, "spacing must be positive"),
            (0 <= self.normal < 1, "normal must be a share below 1"),
            (1 <= self.count[0] <= self.count[1], "count needs 1 <= low <= high"),
            (1 <= self.diameter[0] <= self.diameter[1] <= across / 2, "diameter needs 1 <= low <= high <= size / 2"),
            (0 <= self.smallest <= 1, "smallest must be a share"),
            (0 < self.contrast[0] <= self.contrast[1], "contrast needs 0 < low <= high"),
            (self.vessels >= 0 and self.texture >= 0, "vessels and texture must not be negative"),
            (self.label_spacing is None or self.kind == "organ", "label_spacing is for an organ only"),
            (self.label_spacing is None or self.size[0] > 1, "label_spacing is for volumes only"),
            (self.age_effect == 0 or self.kind == "lesions", "age_effect is for lesions only"),
            (1 <= self.cases_per_patient <= 2, "cases_per_patient must lie between 1 and 2"),
            (all(s >= 0 for s in self.splits) and abs(sum(self.splits) - 1) < 1e-6, "splits must be shares, sum 1"),
        ):
            if not fine:
                raise Problem(f"this phantom cannot be made: {sentence}", fix="change that option")

    @property
    def flat(self) -> bool:
        """Whether it makes flat images."""
        return self.size[0] == 1

    @property
    def question(self) -> Question:
        """What its label maps ask: value ``n`` is the class number ``n``, from 1."""
        values = tuple((n,) for n in range(1, len(self.classes) + 1))
        return Question(TASK, "segmentation", self.classes, values=values, separate=self.kind == "lesions")

    @property
    def _axes(self) -> tuple[int, ...]:
        """Those along which there is more than one pixel."""
        return (1, 2) if self.flat else (0, 1, 2)

    @property
    def _steps(self) -> Array:
        """From pixel to pixel along each axis, in pixels across."""
        return np.array(self.spacing) / self.spacing[2]


# A flat image with lesions of three classes; volumes with nodules, a quarter of them 3 voxels wide; and an organ.
LESIONS = DensePhantom()
NODULES = DensePhantom(
    size=(32, 64, 64),
    spacing=(0.8, 0.8, 0.8),
    classes=("nodule",),
    count=(1, 4),
    diameter=(3.0, 9.0),
    smallest=0.25,
    contrast=(4.0, 7.0),
    vessels=6,
)
ORGAN = DensePhantom(
    kind="organ", size=(24, 48, 48), spacing=(2.0, 1.0, 1.0), classes=("head", "tail"), diameter=(16.0, 24.0)
)


@dataclass(frozen=True, eq=False)
class DenseCase:
    """A case with its truth.

    Attributes:
        case: with the pixels and geometry that are read from the files that are written of it, and a finding with
            mask and box for each lesion, or for each part of the organ, and one of probability 0 for each class that
            is not there.
        split: of its patient.
        labels: ``(depth, height, width)`` uint8 on the image's grid, 0 where there is nothing, else the number of
            the class, from 1.
        outline: the same as an image of its own, on the grid on which it is written.
    """

    case: Case
    split: Role
    labels: NDArray[np.uint8]
    outline: Image


def dense_case(number: int, spec: DensePhantom) -> DenseCase:
    """The case of that number, 0 or more: always the same, whichever others are made."""
    patient = _patient(number, spec)
    person, visit = keys(spec.seed, 11, patient), keys(spec.seed, 12, number)
    made = _organ(person, spec) if spec.kind == "organ" else _lesions(person, spec)
    noise = white(visit, "noise", int(np.prod(spec.size)))[0].reshape(spec.size)
    geometry = None if spec.flat else _affine(spec.size, spec.spacing)
    array = _stored(_blurred(made.image, spec) + noise, spec)
    image = Image(array[None, None]) if geometry is None else Image(array[None, None], geometry, modality="CT")
    outline = Image(made.labels[None, None]) if geometry is None else Image(made.labels[None, None], geometry)
    if spec.label_spacing is not None:
        outline = _relabelled(person, spec, spec.label_spacing)
    split = ROLES[int(np.searchsorted(np.cumsum(spec.splits)[:-1], uniform(person, "split")[0], side="right"))]
    known: dict[str, float | str | None] = {}
    if spec.age_effect:
        years = float(normal(person, "age")[0]) + spec.age_effect * LABELS.index(label_of(made.findings))
        known["age"] = round(AGE + AGE_SPREAD * years, 1)
    case = Case(f"case{number:05d}", f"patient{patient:05d}", {"image": image}, made.findings, known)
    return DenseCase(case, split, made.labels, outline)


def label_of(findings: Iterable[Finding]) -> str:
    """``normal``, ``malignant`` where a lesion is spiculated, else ``benign``."""
    names = {finding.name for finding in findings if finding.box is not None}
    return "malignant" if "spiculated" in names else "benign" if names else "normal"


def detectability(spec: DensePhantom) -> float:
    """The d' of an ideal observer for the smallest, faintest round lesion, in the middle of the image.

    The tissue is nearly Gaussian with a known power spectrum ``P``, and the noise is white; then the ideal observer
    is the prewhitened matched filter and ``d'**2`` the sum of ``|S|**2 / P`` over the frequencies of the signal ``S``
    (Barrett and Myers, *Foundations of Image Science*, 2004, 13.2.12).

    Raises:
        Problem: the cohort has no lesions.
    """
    if spec.kind != "lesions":
        raise Problem("only the lesions of a phantom have a detectability", fix="ask it of another phantom")
    size, steps = tuple(spec.size[axis] for axis in spec._axes), spec._steps[list(spec._axes)]
    centre = np.floor(np.array(size) / 2)
    ball = anatomy.lesion(keys(0), size, centre, (spec.diameter[0],) * 2, 0.0, steps)
    blur = np.zeros(size)
    blur[(0,) * len(size)] = 1
    transfer = np.abs(np.fft.fftn(gaussian_filter(blur, _PSF, mode="wrap"))) ** 2
    power = anatomy.power(size)
    spectrum = 1 + spec.texture**2 * power / power.mean() * transfer
    signal = np.abs(np.fft.fftn(spec.contrast[0] * ball.filled())) ** 2 * transfer
    return float(np.sqrt((signal / spectrum).sum() / signal.size))


def searched_sensitivity(spec: DensePhantom, false_positives: float = 1.0) -> float:
    """The sensitivity for the smallest, faintest lesion that the matched filter reaches when it must be searched for.

    A threshold lets through ``false_positives`` of an image, counting every pixel as an independent place: real
    filters see fewer, so this is a lower bound. Vessels are taken as known.
    """
    places = float(np.prod(spec.size))
    threshold = norm.isf(false_positives / places)
    return float(norm.sf(threshold - detectability(spec)))


@dataclass(frozen=True, eq=False)
class _Scene:
    """The expected image before blur, its label map, and what it holds."""

    image: Array
    labels: NDArray[np.uint8]
    findings: tuple[Finding, ...]


def _patient(number: int, spec: DensePhantom) -> int:
    """Cases 2n and 2n + 1 are of one patient as often as the mean number of cases asks for."""
    first = number - number % 2
    shared = uniform(keys(spec.seed, 10, first), "shared")[0] < 2 - 2 / spec.cases_per_patient
    return first if shared else number


def _tissue(person: Key, spec: DensePhantom) -> Array:
    size = tuple(spec.size[axis] for axis in spec._axes)
    return spec.texture * anatomy.texture(person, size).reshape(spec.size)


def _lesions(person: Key, spec: DensePhantom) -> _Scene:
    vessels = _vessels(person, spec)
    image = _tissue(person, spec) + _VESSEL * spec.contrast[1] * vessels
    labels = np.zeros(spec.size, np.uint8)
    findings: list[Finding] = []
    taken = vessels > 0.25
    wanted = int(uniform(person, "count", (), spec.count[0], spec.count[1] + 1)[0])
    for number in range(0 if uniform(person, "normal")[0] < spec.normal else wanted):
        own = keys(int(person[0]), number)
        rank = int(uniform(own, "class", (), 0, len(spec.classes))[0])
        sign, irregularity = _LOOKS[spec.classes[rank]]
        placed = _placed(own, spec, irregularity, taken)
        if placed is None:
            continue
        filled, mask = placed
        image = image + sign * float(uniform(own, "contrast", (), *spec.contrast)[0]) * filled
        labels[mask] = rank + 1
        # Two lesions stay two: a ring of pixels around each is not of another one.
        taken = taken | _grown(mask)
        cropped = Mask.cropped(mask)
        findings.append(Finding(TASK, spec.classes[rank], probability=1.0, box=cropped.box, mask=cropped))
    present = {finding.name for finding in findings}
    absent = (Finding(TASK, name, probability=0.0) for name in spec.classes if name not in present)
    return _Scene(image, labels, (*findings, *absent))


def _placed(
    own: Key, spec: DensePhantom, irregularity: float, taken: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]] | None:
    """A lesion at the first of some random places where nothing else is: its share of each pixel, and its mask."""
    axes = list(spec._axes)
    size, steps = tuple(spec.size[axis] for axis in axes), spec._steps[axes]
    least = uniform(own, "smallest")[0] < spec.smallest
    diameter = (spec.diameter[0],) * 2 if least else spec.diameter
    for attempt in range(30):
        share = uniform(own, f"place/{attempt}", (len(axes),))[0]
        margin = np.minimum((diameter[1] / 2 + 1) / steps, np.array(size) / 2 - 1)
        centre = margin + share * (np.array(size) - 1 - 2 * margin)
        body = anatomy.lesion(own, size, np.rint(centre) if least else centre, diameter, irregularity, steps)
        mask = body.mask().reshape(spec.size)
        parts, count = label(mask, np.ones((3, 3, 3)))
        if count > 1:
            # The tip of a thin spicule may come loose on the grid.
            mask = parts == np.bincount(parts[mask]).argmax()
        if mask.any() and not (mask & taken).any():
            return body.filled().reshape(spec.size), mask
    return None


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with two pixels around it."""
    grown = gaussian_filter(mask.astype(np.float32), 1.0, mode="constant", truncate=2.0) > 1e-6
    return np.asarray(grown)


def _vessels(person: Key, spec: DensePhantom) -> Array:
    """Tubes of 1 along their axes, with a Gaussian profile: each enters at a random place and bends a little."""
    axes, steps = list(spec._axes), spec._steps
    extent = np.array(spec.size)[axes] * steps[axes]
    field = np.zeros(spec.size)
    step, length = 0.25, int(4 * 1.6 * extent.max())
    for number in range(spec.vessels):
        own = keys(int(person[0]), 1000 + number)
        start = uniform(own, "vessel/start", (len(axes),))[0] * extent
        heading, bend = uniform(own, "vessel/heading", (2, len(axes)), -1.0, 1.0)[0]
        heading /= np.linalg.norm(heading)
        t = (np.arange(length) - length / 2)[:, None] * step
        points = start + t * heading + 0.6 * extent.min() * bend * (t / extent.max()) ** 2
        at = np.zeros((length, 3), int)
        at[:, axes] = np.floor(points / steps[axes])
        inside = ((at >= 0) & (at < spec.size)).all(1)
        line = np.zeros(spec.size)
        np.add.at(line, tuple(at[inside].T), step)
        width = float(uniform(own, "vessel/width", (), 0.7, 1.3)[0])
        spread = [0.0 if axis not in axes else width / steps[axis] for axis in range(3)]
        line = gaussian_filter(line, spread, mode="constant") / np.prod(steps[axes])
        field = np.maximum(field, np.minimum(line * (2 * np.pi * width**2) ** ((len(axes) - 1) / 2), 1))
    return field


def _organ(person: Key, spec: DensePhantom) -> _Scene:
    labels = _parts(person, spec, _grid(spec.size, spec.spacing))
    contrast = float(uniform(person, "contrast", (), *spec.contrast)[0])
    levels = np.array([0.0, contrast, _TAIL * contrast])
    vessels = _VESSEL * spec.contrast[1] * _vessels(person, spec) * (labels == 0)
    image = _tissue(person, spec) + vessels + levels[labels]
    findings = []
    for rank, name in enumerate(spec.classes, 1):
        cropped = Mask.cropped(labels == rank)
        findings.append(Finding(TASK, name, probability=1.0, box=cropped.box, mask=cropped))
    return _Scene(image, labels, tuple(findings))


def _grid(size: tuple[int, ...], spacing: Triple) -> list[Array]:
    """Millimetres of each pixel from the middle of the image along each axis, to be broadcast."""
    lines = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(size, spacing, strict=True)]
    return list(np.meshgrid(*lines, indexing="ij", sparse=True))


def _parts(person: Key, spec: DensePhantom, points: list[Array]) -> NDArray[np.uint8]:
    """1 in the front part of the organ at these points (z, y, x; mm from the middle), 2 in the back one, else 0.

    An ellipsoid whose radius is bent by harmonics of the second degree, cut by a plane.
    """
    u = uniform(person, "organ", (12,), -1.0, 1.0)[0]
    z, y, x = points
    radius = float(uniform(person, "organ/diameter", (), *spec.diameter)[0]) / 2 * spec.spacing[2]
    field = np.array(spec.size) * np.array(spec.spacing)
    z, y, x = (p - 0.08 * shift * extent for p, shift, extent in zip((z, y, x), u[:3], field, strict=True))
    a, b, c = (0.0 * z if spec.flat else z / (0.8 * radius)), y / (1.25 * radius), x / (0.9 * radius)
    distance = np.sqrt(a**2 + b**2 + c**2)
    square = np.maximum(distance, 1e-9) ** 2
    bent = 1 + 0.15 * (u[3] * a * b + u[4] * b * c + u[5] * a * c + u[6] * (b**2 - c**2)) / square
    cut = b + 0.2 * u[7] * a + 0.2 * u[8] * c - 0.15 * u[9]
    return np.where(distance <= bent, np.where(cut < 0, 1, 2), 0).astype(np.uint8)


def _relabelled(person: Key, spec: DensePhantom, spacing: Triple) -> Image:
    """The organ drawn on a grid of its own over the same field: not resampled, so both are the truth."""
    size = tuple(max(1, round(n * old / new)) for n, old, new in zip(spec.size, spec.spacing, spacing, strict=True))
    labels = _parts(person, spec, _grid(size, spacing))
    matrix = _affine(size, spacing).matrix @ np.array(
        [[-1.0, 0, 0, size[2] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    )
    return Image(np.ascontiguousarray(labels[None, None, :, :, ::-1]), Affine(matrix))


def _affine(size: tuple[int, ...], spacing: Triple) -> Affine:
    """The middle of the image lies at the origin; the first slice at the head, its first row in front."""
    (depth, height, width), (z, y, x) = size, spacing
    matrix = np.diag([x, y, -z, 1.0])
    matrix[:3, 3] = [-x * (width - 1) / 2, -y * (height - 1) / 2, z * (depth - 1) / 2]
    return Affine(matrix)


def apart(made: DenseCase, spec: DensePhantom) -> dict[str, Image]:
    """An image for each class, by its name, on one grid: its lesions and no others, in a tissue of its own.

    They are bright, by the mean of ``spec.contrast``. Without the image of a class nothing can be known of it.
    """
    number, plain = int(made.case.id.removeprefix("case")), made.case.images["image"]
    found = {}
    for k, name in enumerate(spec.classes, 1):
        own = keys(spec.seed, 13, k, number)
        shown = _tissue(own, spec) + (made.labels == k) * np.mean(spec.contrast)
        noise = white(own, "noise", int(np.prod(spec.size)))[0].reshape(spec.size)
        found[name] = replace(plain, array=_stored(_blurred(shown, spec) + noise, spec)[None, None])
    return found


def _blurred(image: Array, spec: DensePhantom) -> Array:
    return np.asarray(gaussian_filter(image, [_PSF if n > 1 else 0.0 for n in spec.size], mode="nearest"))


def _stored(values: Array, spec: DensePhantom) -> NDArray[np.generic]:
    """Grey values of 8 bits, or what looks like Hounsfield units of a lung."""
    if spec.flat:
        return np.clip(np.rint(_GREY + _GREY_STEP * values), 0, 255).astype(np.uint8)
    return np.rint(_HOUNSFIELD + _HOUNSFIELD_STEP * values).astype(np.int16)
