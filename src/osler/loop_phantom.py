"""Loops whose class lies in the order of their frames, or in one frame of many; with an exact ideal observer.

Each loop is made alone from the seed and its number: a background that stays the same in all frames, a lesion, and
white Gaussian noise. The likelihood of the frames is known under each class, and with it the ideal observer, who
knows everything but the class (Barrett and Myers, *Foundations of Image Science*, 2004, 13.2).
"""

import csv
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import logsumexp, softmax

from osler.case import Case, Finding, Role
from osler.draws import keys, normal, uniform
from osler.image import Image
from osler.problem import Problem

Array = NDArray[np.float64]
Kind = Literal["order", "needle"]
Form = Literal["npy", "png", "avi", "mp4"]
FORMS: tuple[Form, ...] = ("npy", "png", "avi", "mp4")
CLASSES: dict[Kind, tuple[str, str]] = {"order": ("grows", "shrinks"), "needle": ("normal", "lesion")}

_ROLES: tuple[Role, ...] = ("train", "validation", "calibration", "test")
# Grey values: the mean of the background, the deviation of its texture, and that of the noise at noise 1.
_GREY, _TEXTURE, _DEVIATION = 90.0, 14.0, 10.0
_SMOOTH = 3.0  # pixels, of the texture
_EDGE = 1.0  # pixels, over which a lesion ends


@dataclass(frozen=True)
class LoopPhantom:
    """What a cohort of synthetic loops is like.

    Attributes:
        kind: ``order``: a lesion grows from frame to frame, or shrinks; that is the class. The loop is one whole
            cycle and begins anywhere in it (as a heart's does), so that one step of it goes from the one end of the
            sizes to the other. Each frame alone, also with its number, and all frames without their order have the
            same distribution in both classes: a shrinking loop is a growing one backwards.
            ``needle``: one frame has a lesion, or none has.
        frames: of each loop.
        size: pixels along height and width.
        lesion: smallest and largest diameter, pixels: the ends of the cycle, or where a needle's is drawn.
        contrast: smallest and largest, drawn for each loop: 1 adds 40 grey values.
        noise: 1 is a deviation of 10 grey values in each pixel of each frame.
        prevalence: of the second class.
        gap: seconds between frames.
        cases_per_patient: mean, between 1 and 2; the loops of one patient share their background and class.
        splits: shares of the patients in train, validation, calibration and test.
        seed: of everything.
    """

    kind: Kind = "order"
    frames: int = 16
    size: int = 32
    lesion: tuple[float, float] = (4.0, 14.0)
    contrast: tuple[float, float] = (0.8, 1.4)
    noise: float = 1.0
    prevalence: float = 0.5
    gap: float = 0.04
    cases_per_patient: float = 1.0
    splits: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        for fine, sentence in (
            (self.kind in CLASSES, "kind must be order or needle"),
            (self.frames >= (3 if self.kind == "order" else 1), "order needs 3 frames or more, a needle one"),
            (self.size >= 8, "size must be 8 or more"),
            (1 <= self.lesion[0] <= self.lesion[1] <= self.size / 2, "lesion needs 1 <= low <= high <= size / 2"),
            (0 <= self.contrast[0] <= self.contrast[1] <= 2, "contrast needs 0 <= low <= high <= 2"),
            (self.noise > 0, "noise must be positive"),
            (0 < self.prevalence < 1, "prevalence must lie between 0 and 1"),
            (self.gap > 0, "gap must be positive"),
            (1 <= self.cases_per_patient <= 2, "cases_per_patient must lie between 1 and 2"),
            (min(self.splits) >= 0 and abs(sum(self.splits) - 1) < 1e-6, "splits must be shares, sum 1"),
        ):
            if not fine:
                raise Problem(f"this phantom cannot be made: {sentence}", fix="change that option")


ORDER = LoopPhantom()
NEEDLE = LoopPhantom("needle", frames=60, lesion=(7.0, 11.0))


@dataclass(frozen=True, eq=False)
class LoopCase:
    """A loop with its truth.

    Attributes:
        case: with its pixels, ``(frames, 1, 1, size, size)`` of 8 bits, and its times.
        label: its class.
        split: of its patient.
        planted: the frame that holds the lesion of a needle; ``None`` where there is none, and for ``order``.
        diameters: of the lesion in each frame, 0 where there is none.
        centre: of the lesion, or of where it would be: ``(y, x)`` in pixels.
        score: log likelihood ratio of the second class to the first: the ideal observer's.
        detectability: of ``order``, that observer's d' for this loop: given the class its score is normal with mean
            +-d'^2 / 2 and variance d'^2, so that the AUROC of loops like this one is Phi(d' / sqrt(2)).
        frame_posterior: of a needle, the chance of each frame to hold the lesion, if one does.
    """

    case: Case
    label: str
    split: Role
    planted: int | None
    diameters: tuple[float, ...]
    centre: tuple[float, float]
    score: float
    detectability: float = float("nan")
    frame_posterior: tuple[float, ...] = ()


def loop_case(number: int, spec: LoopPhantom) -> LoopCase:
    """The loop of that number, 0 or more: always the same, whichever others are made."""
    patient = _patient(number, spec)
    person, visit = keys(spec.seed, 11, patient), keys(spec.seed, 12, number)
    second = bool(uniform(person, "class")[0] < spec.prevalence)
    background = _GREY + _background(person, spec)
    reach = spec.lesion[1] / 2 + _EDGE
    centre = uniform(visit, "centre", (2,), reach, spec.size - 1 - reach)[0]
    contrast = 40 * float(uniform(visit, "contrast", (), *spec.contrast)[0])
    deviation = _DEVIATION * spec.noise
    planted: int | None = None
    if spec.kind == "order":
        both = _cycles(float(uniform(visit, "phase")[0]), spec)
        diameters = both[int(second)]
    else:
        planted = int(uniform(visit, "frame")[0] * spec.frames) if second else None
        alone = float(uniform(visit, "diameter", (), *spec.lesion)[0])
        diameters = np.where(np.arange(spec.frames) == planted, alone, 0.0)
    expected = background + contrast * _lesions(diameters, centre, spec)
    shown = expected + deviation * normal(visit, "noise", expected.shape)[0]
    pixels = np.rint(shown).clip(0, 255).astype(np.uint8)
    role = _ROLES[int(np.searchsorted(np.cumsum(spec.splits)[:-1], uniform(person, "split")[0], side="right"))]
    label = CLASSES[spec.kind][int(second)]
    times = tuple(spec.gap * frame for frame in range(spec.frames))
    case = Case(
        id=f"loop{number:05d}",
        patient=f"patient{patient:05d}",
        images={"image": Image(pixels[:, None, None], times=times if spec.frames > 1 else ())},
        findings=(Finding("label", label, probability=1.0),),
    )
    place = (float(centre[0]), float(centre[1]))
    made = LoopCase(case, label, role, planted, tuple(diameters.tolist()), place, 0.0)
    if spec.kind == "order":
        first, last = (contrast * _lesions(each, centre, spec) for each in both)
        return _order(made, pixels - background, first, last, deviation)
    signal = contrast * _lesions(np.array([alone]), centre, spec)[0]
    return _needle(made, pixels - background, signal, deviation)


def _order(made: LoopCase, seen: Array, grows: Array, shrinks: Array, deviation: float) -> LoopCase:
    between = shrinks - grows
    score = float((between * (seen - (grows + shrinks) / 2)).sum()) / deviation**2
    return replace(made, score=score, detectability=float(np.linalg.norm(between)) / deviation)


def _needle(made: LoopCase, seen: Array, signal: Array, deviation: float) -> LoopCase:
    """Each frame is as likely as any other: the mean of their likelihood ratios."""
    ratios = ((seen - signal / 2) * signal).sum((1, 2)) / deviation**2
    score = float(logsumexp(ratios) - np.log(len(ratios)))
    return replace(made, score=score, frame_posterior=tuple(softmax(ratios).tolist()))


def _patient(number: int, spec: LoopPhantom) -> int:
    """Loops 2n and 2n + 1 are of one patient as often as the mean number of loops asks for."""
    first = number - number % 2
    return first if uniform(keys(spec.seed, 10, first), "shared")[0] < 2 - 2 / spec.cases_per_patient else number


def _background(person: NDArray[np.uint64], spec: LoopPhantom) -> Array:
    rough = gaussian_filter(normal(person, "texture", (spec.size, spec.size))[0], _SMOOTH, mode="wrap")
    return np.asarray(_TEXTURE * rough / rough.std())


def _cycles(phase: float, spec: LoopPhantom) -> tuple[Array, Array]:
    """Diameters of a growing and of a shrinking loop: the first is the second backwards, from another beginning.

    The sizes of both are the same set: a whole cycle in steps of one over the number of frames, the first at
    ``phase``, which is anywhere.
    """
    steps = np.arange(spec.frames) / spec.frames
    low, high = spec.lesion
    return low + (high - low) * ((phase + steps) % 1), low + (high - low) * ((phase - steps) % 1)


def _lesions(diameters: Array, centre: Array, spec: LoopPhantom) -> Array:
    """Discs with soft edges, 1 inside: ``(frames, size, size)``."""
    y, x = np.mgrid[: spec.size, : spec.size]
    away = np.hypot(y - centre[0], x - centre[1])
    radii = np.asarray(diameters)[:, None, None] / 2
    return np.asarray(((radii - away) / _EDGE + 0.5).clip(0, 1) * (radii > 0))


def write_loop_phantom(folder: Path, spec: LoopPhantom, cases: int, form: Form = "npy") -> Path:
    """Writes loops 0 to ``cases - 1`` as a cohort and returns its folder.

    ``manifest.csv`` has a row a loop (``case``, ``patient``, ``image``, ``label``, ``split``), ``truth.json`` the
    specification and, for each, the planted frame, the diameters, the centre, and what the ideal observer says.

    Args:
        folder: made where it is missing.
        spec, cases: see above.
        form: ``npy`` (an array, without times), ``png`` (a folder of pictures, without times), ``avi`` (lossless) or
            ``mp4`` (compressed: near to what the ideal observer saw).

    Raises:
        Problem: the folder holds files already, no loop is asked for, or videos cannot be written.
    """
    if form not in FORMS:
        raise Problem(f"loops cannot be written as {form!r}", fix=f"choose one of {', '.join(FORMS)}")
    if cases < 1:
        raise Problem(f"a cohort needs at least one case, and {cases} were asked for", fix="ask for more")
    if folder.exists() and any(folder.iterdir()):
        raise Problem("the folder is not empty", path=folder, fix="name a new one")
    (folder / "loops").mkdir(parents=True)
    rows, truths = [], []
    for number in range(cases):
        made = loop_case(number, spec)
        case = made.case
        name = f"loops/{case.id}" + ("" if form == "png" else f".{form}")
        _save(folder / name, case.images["image"], form)
        rows.append(
            {"case": case.id, "patient": case.patient, "image": name, "label": made.label, "split": made.split}
        )
        ideal = {"score": made.score, "frame_posterior": made.frame_posterior}
        ideal |= {} if spec.kind == "needle" else {"detectability": made.detectability}
        about: dict[str, Any] = {"case": case.id, "label": made.label, "planted": made.planted}
        truths.append(about | {"diameters": made.diameters, "centre": made.centre} | ideal)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    truth = {"schema_version": 1, "phantom": asdict(spec), "cases": truths}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return folder


def _save(path: Path, image: Image, form: Form) -> None:
    if form == "npy":
        np.save(path, image.array, allow_pickle=False)
    elif form == "png":
        from PIL import Image as Pillow

        path.mkdir()
        for number, frame in enumerate(image.array[:, 0, 0]):
            Pillow.fromarray(frame).save(path / f"{number:04d}.png")
    else:
        from osler import catalog

        catalog.find("formats", "video").write(image, path)
