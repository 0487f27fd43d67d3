"""Synthetic cohorts with known truth, made on the spot: where the lesion is, and how well anyone could tell.

Every case is made alone from the seed and its number. Its data are drawn from a stated distribution about
noise-free expected images, one for each class, so the likelihood of the data under each class is known
exactly, and with it the ideal observer (Barrett and Myers, *Foundations of Image Science*, 2004, ch. 13):
no reader and no network can separate the classes better from the same data.
"""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import norm

from osler import anatomy
from osler.case import Case, Finding, Role
from osler.draws import keys, normal, uniform
from osler.image import Affine, Geometry, Image
from osler.problem import Problem

Array = NDArray[np.float64]
Key = NDArray[np.uint64]
Modality = Literal["xray", "ct", "ultrasound"]

ROLES: tuple[Role, ...] = ("train", "validation", "calibration", "test")
_FIELD = 340.0  # mm, field of view of the CT
AGE, AGE_SPREAD = 55.0, 11.0  # years
_QUANTA = 3000.0  # per pixel without a patient, at noise 1
_CHORD, _SOLID, _ECHO = 1.0, 50.0, -14.0  # a solid lesion: line integral, HU, dB
_BLUR = 0.6  # pixels, of focal spot and detector
_PSF = (0.55, 1.0)  # pixels, of the ultrasound beam along depth and width
_DECIBELS = 55.0  # dynamic range of the ultrasound display


@dataclass(frozen=True)
class Phantom:
    """What a synthetic cohort is like.

    Attributes:
        modality: ``xray`` (2D, line integrals through a chest, Poisson counts), ``ct`` (3D, the same chest in
            slices, Gaussian noise) or ``ultrasound`` (2D, layers of a breast, speckle).
        size: pixels along each axis.
        classes: the first has no lesion; the second a round one with a sharp edge; further ones are more and
            more spiculated.
        prevalence: of each class; sums to 1.
        lesion: smallest and largest diameter, pixels.
        contrast: smallest and largest, drawn for each patient: 1 is a solid lesion, which adds 1 to the line
            integral at its centre (xray), has 50 HU (ct) or 14 dB less echo (ultrasound); 0 is invisible.
        noise: 1 is 3000 quanta a pixel in air (xray; the count goes with its inverse square), a deviation
            of 60 HU (ct) or 4 compounded looks (ultrasound; as the count of quanta, at least 1).
        age_effect: by how many standard deviations (11 years) the mean age rises from class to class.
        sex_effect: by how much the log odds of being male rise from class to class.
        cases_per_patient: mean, between 1 and 2; a second case is the same lesion, seen again.
        splits: shares of the patients in train, validation, calibration and test.
        known: everything but class and noise is the same in every case (signal and background known exactly),
            and the noise of an ``xray`` is white and Gaussian in the line integral, deviation 0.06.
        seed: of everything.
    """

    modality: Modality = "xray"
    size: int = 64
    classes: tuple[str, ...] = ("normal", "benign", "malignant")
    prevalence: tuple[float, ...] = (0.5, 0.25, 0.25)
    lesion: tuple[float, float] = (9.0, 16.0)
    contrast: tuple[float, float] = (0.5, 1.2)
    noise: float = 1.0
    age_effect: float = 0.5
    sex_effect: float = 0.3
    cases_per_patient: float = 1.25
    splits: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2)
    known: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for fine, sentence in (
            (
                len(self.classes) > 1 and len(set(self.classes)) == len(self.classes),
                "classes must be two or more names",
            ),
            (len(self.prevalence) == len(self.classes), "prevalence must hold a share for each class"),
            (all(share > 0 for share in self.prevalence), "each share of prevalence must be positive"),
            (abs(sum(self.prevalence) - 1) < 1e-6, "the shares of prevalence must sum to 1"),
            (all(s >= 0 for s in self.splits) and abs(sum(self.splits) - 1) < 1e-6, "splits must be shares, sum 1"),
            (1 <= self.cases_per_patient <= 2, "cases_per_patient must lie between 1 and 2"),
            (self.size >= 16, "size must be 16 or more"),
            (1 <= self.lesion[0] <= self.lesion[1] <= self.size / 2, "lesion needs 1 <= low <= high <= size / 2"),
            (0 <= self.contrast[0] <= self.contrast[1], "contrast needs 0 <= low <= high"),
            (self.noise > 0, "noise must be positive"),
        ):
            if not fine:
                raise Problem(f"this phantom cannot be made: {sentence}", fix="change that option")

    @property
    def dims(self) -> int:
        """Spatial axes: 3 for CT, else 2."""
        return 3 if self.modality == "ct" else 2


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """A case with its truth.

    Attributes:
        case: with the pixels and geometry that are read from the files that :func:`write_phantom` writes.
        label: its class.
        split: of its patient.
        mask: ``(depth, height, width)``, true inside the lesion.
        boxes: ``(lesions, 2, 3)``, lowest and highest corner of each, x y z, at pixel edges (pixel coordinates
            as in :mod:`osler.image`: an edge lies half a pixel beyond the centre).
        log_likelihoods: of the data for each class, less that of the first class, by an observer who knows
            the patient's anatomy and where, how large and how strong a lesion would be.
        score: log likelihood ratio of any lesion to none: the ideal observer's.
        posterior: of each class given the data, age and sex, by that observer.
    """

    case: Case
    label: str
    split: Role
    mask: NDArray[np.bool_]
    boxes: Array
    log_likelihoods: tuple[float, ...]
    score: float
    posterior: tuple[float, ...]


def phantom_case(number: int, spec: Phantom) -> PhantomCase:
    """The case of that number, 0 or more: always the same, whichever others are made."""
    patient = _patient(number, spec)
    person, visit = keys(spec.seed, 1, patient), keys(spec.seed, 2, number)
    rank = int(np.searchsorted(np.cumsum(spec.prevalence)[:-1], uniform(person, "class")[0], side="right"))
    age, sex = _covariates(person, rank, spec)
    expected, mask = _expected(person, visit, rank, spec)
    data = _measured(expected[rank], visit, spec)
    likelihoods = np.array([_log_likelihood(data, image, spec) for image in expected])
    likelihoods -= likelihoods[0]
    prior = np.log(spec.prevalence)
    score = logsumexp(likelihoods[1:] + log_softmax(prior[1:]))
    split = ROLES[int(np.searchsorted(np.cumsum(spec.splits)[:-1], uniform(person, "split")[0], side="right"))]
    case = Case(
        id=f"case{number:05d}",
        patient=f"patient{patient:05d}",
        images={"image": _displayed(data, spec)},
        findings=(Finding("label", spec.classes[rank], probability=1.0),),
        covariates={"age": age, "sex": sex},
    )
    return PhantomCase(
        case=case,
        label=spec.classes[rank],
        split=split,
        mask=mask if spec.dims == 3 else mask[None],
        boxes=_boxes(mask if spec.dims == 3 else mask[None]),
        log_likelihoods=tuple(likelihoods.tolist()),
        score=float(score),
        posterior=tuple(softmax(prior + likelihoods + _covariate_log_likelihoods(age, sex, spec)).tolist()),
    )


def detectability(spec: Phantom) -> float:
    """The ideal observer's d' between the first two classes, where it has a closed form.

    With signal and background known exactly in white Gaussian noise it is the energy of the signal over
    the noise, ``|s1 - s0| / sigma``, and the AUROC is ``Phi(d' / sqrt(2))`` (Barrett and Myers, 2004, 13.2).

    Raises:
        Problem: the cohort is not ``known``, or is of ultrasound, whose noise is not Gaussian.
    """
    if not spec.known or spec.modality == "ultrasound":
        raise Problem("d' has a closed form for xray and ct with known=True only", fix="change the phantom")
    expected, _ = _expected(keys(spec.seed, 1, 0), keys(spec.seed, 2, 0), 0, spec)
    return float(np.linalg.norm(expected[1] - expected[0]) / _deviation(spec))


def expected_auroc(spec: Phantom) -> dict[str, float]:
    """AUROC of ideal observers of the ``image`` alone, of the ``covariates`` alone, and of ``both``.

    Given the class, image, age and sex are independent, so that their log likelihood ratios add up. Those of the
    image and of the age are Gaussian with variances ``d'^2`` and ``a^2`` and means of half of that, up or down by
    class, so that their sum has the variance ``v = d'^2 + a^2``; that of the sex takes two values. A case of the
    second class then lies above one of the first by a Gaussian of mean ``v`` and variance ``2 v``, and by the
    difference of two sexes.

    Raises:
        Problem: see :func:`detectability`; or there are more than two classes.
    """
    if len(spec.classes) != 2:
        raise Problem("the AUROC has a closed form for two classes", fix="change the phantom")
    male = [1 / (1 + np.exp(-spec.sex_effect * rank)) for rank in (0, 1)]
    ratio = [float(np.log((1 - male[1]) / (1 - male[0]))), float(np.log(male[1] / male[0]))]
    image, age = detectability(spec) ** 2, spec.age_effect**2

    def auroc(variance: float, sexed: bool) -> float:
        total = 0.0
        for one, p in enumerate((1 - male[1], male[1])):
            for other, q in enumerate((1 - male[0], male[0])):
                ahead = variance + (ratio[one] - ratio[other] if sexed else 0.0)
                step = (np.sign(ahead) + 1) / 2 if variance == 0 else norm.cdf(ahead / np.sqrt(2 * variance))
                total += p * q * float(step)
        return total

    return {"image": auroc(image, False), "covariates": auroc(age, True), "both": auroc(image + age, True)}


def write_phantom(folder: Path, spec: Phantom, cases: int) -> Path:
    """Writes cases 0 to ``cases - 1`` as a cohort and returns its folder.

    ``images/`` and ``masks/`` hold 16- and 8-bit PNG (2D) or NIfTI (3D), ``manifest.csv`` a row a case (``case``,
    ``patient``, ``image``, ``mask``, ``label``, ``split``, ``covariate.age``, ``covariate.sex``) and ``truth.json``
    the specification and, for each case, boxes and what the ideal observer says.

    Raises:
        Problem: the folder holds files already, or no case is asked for.
    """
    if cases < 1:
        raise Problem(f"a cohort needs at least one case, and {cases} were asked for", fix="ask for more")
    if folder.exists() and any(folder.iterdir()):
        raise Problem("the folder is not empty", path=folder, fix="name a new one")
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ending = "nii.gz" if spec.dims == 3 else "png"
    rows, truths = [], []
    for number in range(cases):
        made = phantom_case(number, spec)
        case, image = made.case, made.case.images["image"]
        files = {name: f"{name}s/{case.id}.{ending}" for name in ("image", "mask")}
        write_array(folder / files["image"], image.array[0, 0], image.geometry)
        write_array(
            folder / files["mask"], made.mask.astype(np.uint8) * (1 if spec.dims == 3 else 255), image.geometry
        )
        rows.append(
            {"case": case.id, "patient": case.patient}
            | files
            | {"label": made.label, "split": made.split}
            | {f"covariate.{name}": str(value) for name, value in case.covariates.items()}
        )
        ideal = {"score": made.score, "log_likelihoods": made.log_likelihoods, "posterior": made.posterior}
        truths.append({"case": case.id, "label": made.label, "boxes": made.boxes.tolist()} | ideal)
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    truth = {"schema_version": 1, "phantom": asdict(spec), "cases": truths}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return folder


def write_array(path: Path, array: NDArray[np.generic], geometry: Geometry) -> None:
    """Saves one array ``(depth, height, width)``: NIfTI where it has a place in the patient, else PNG."""
    if isinstance(geometry, Affine):
        import nibabel

        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.matrix  # NIfTI counts to the right and to the front
        volume: Any = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)  # type: ignore[no-untyped-call]
        volume.header.set_xyzt_units("mm")
        nibabel.save(volume, path)
    else:
        from PIL import Image as Pillow

        Pillow.fromarray(array[0]).save(path)


def _patient(number: int, spec: Phantom) -> int:
    """Cases 2n and 2n + 1 are of one patient as often as the mean number of cases asks for."""
    first = number - number % 2
    shared = uniform(keys(spec.seed, 0, first), "shared")[0] < 2 - 2 / spec.cases_per_patient
    return first if shared else number


def _covariates(person: Key, rank: int, spec: Phantom) -> tuple[float, str]:
    age = AGE + AGE_SPREAD * (float(normal(person, "age")[0]) + spec.age_effect * rank)
    male = uniform(person, "sex")[0] < 1 / (1 + np.exp(-spec.sex_effect * rank))
    return round(age, 1), "M" if male else "F"


def _covariate_log_likelihoods(age: float, sex: str, spec: Phantom) -> Array:
    """Of age and sex for each class, up to a constant."""
    ranks = np.arange(len(spec.classes))
    distance = (age - AGE) / AGE_SPREAD - spec.age_effect * ranks
    return np.asarray(-0.5 * distance**2 - np.logaddexp(0, spec.sex_effect * ranks * (-1 if sex == "M" else 1)))


def _expected(person: Key, visit: Key, rank: int, spec: Phantom) -> tuple[list[Array], NDArray[np.bool_]]:
    """The noise-free image under each class, and the mask of the lesion of class ``rank``."""
    if spec.known:
        person = visit = keys(spec.seed, 3)
    size = (spec.size,) * spec.dims
    shift = uniform(visit, "position", (spec.dims,), -0.04, 0.04)[0]
    contrast = float(uniform(person, "contrast", (), *spec.contrast)[0])
    if spec.modality == "ultrasound":
        background, place = anatomy.layers(person, size, shift), anatomy.place_in_gland(person, size, shift)
    else:
        body = anatomy.chest(person)
        place = anatomy.place_in_lung(body, person, size, shift)
        scene = anatomy.volume if spec.dims == 3 else anatomy.radiograph
        background = scene(body, person, size, shift)
    images, mask = [background], np.zeros(size, dtype=bool)
    for other in range(1, len(spec.classes)):
        irregularity = (other - 1) / max(1, len(spec.classes) - 2)
        lesion = anatomy.lesion(person, size, place, spec.lesion, irregularity)
        images.append(background + contrast * _signal(lesion, background, irregularity, spec))
        if other == rank:
            mask = lesion.mask()
    return [_imaged(image, spec) for image in images], mask


def _signal(lesion: anatomy.Lesion, background: Array, irregularity: float, spec: Phantom) -> Array:
    """What a lesion of contrast 1, which is solid, adds to the background."""
    if spec.modality == "xray":
        return _CHORD * lesion.thickness()
    inside = lesion.filled()
    if spec.modality == "ct":
        return np.asarray(inside * np.maximum(_SOLID - background, 0))
    # A cyst-like body lets more through to what lies behind it, a dense one casts a shadow.
    behind = gaussian_filter1d(np.maximum.accumulate(inside, axis=0) - inside, 1.0, axis=1)
    return np.asarray(_ECHO * inside + (3 - 8 * irregularity) * np.maximum(behind, 0))


def _imaged(image: Array, spec: Phantom) -> Array:
    """The mean of what is measured: line integrals become counts, decibels the power of the echo."""
    if spec.modality == "ultrasound":
        return np.asarray(10 ** (image / 10))
    if spec.modality == "ct" or spec.known:
        return np.asarray(gaussian_filter(image, _BLUR, mode="nearest"))
    return np.asarray(_quanta(spec) * gaussian_filter(np.exp(-image), _BLUR, mode="nearest"))


def _quanta(spec: Phantom) -> float:
    return _QUANTA / spec.noise**2


def _deviation(spec: Phantom) -> float:
    """Of the Gaussian noise, in Hounsfield units or in the line integral."""
    return (60.0 if spec.modality == "ct" else 0.06) * spec.noise


def _looks(spec: Phantom) -> int:
    return max(1, round(4 / spec.noise**2))


def _measured(expected: Array, visit: Key, spec: Phantom) -> Array:
    """Data: counts, values with Gaussian noise, or (real and imaginary) echoes ``(looks, 2, depth, width)``."""
    if spec.modality == "ultrasound":
        waves = normal(visit, "noise", (_looks(spec), 2, *expected.shape))[0]
        return np.asarray(waves * np.sqrt(expected / 2))
    if spec.modality == "ct" or spec.known:
        return np.asarray(expected + _deviation(spec) * normal(visit, "noise", expected.shape)[0])
    counter = np.random.Philox(key=int(visit[0]))
    return np.random.Generator(counter).poisson(expected).astype(np.float64)


def _log_likelihood(data: Array, expected: Array, spec: Phantom) -> float:
    """Of the data, up to a constant that is the same for every class.

    Independent Poisson counts; or independent Gaussian values; or independent circular complex Gaussian echoes
    (fully developed speckle: Goodman, 1975). The ultrasound display shows the echoes after the beam has smeared
    them, which can be undone, and without their phase, which cannot: there the ideal observer is that of the
    echoes and bounds any observer of the image from above.
    """
    if spec.modality == "ultrasound":
        return float(-(_looks(spec) * np.log(expected) + (data**2).sum((0, 1)) / expected).sum())
    if spec.modality == "ct" or spec.known:
        return float(-0.5 * (((data - expected) / _deviation(spec)) ** 2).sum())
    return float((data * np.log(expected) - expected).sum())


def _displayed(data: Array, spec: Phantom) -> Image:
    """The image as it is stored: 16 bits, white where much is absorbed or much comes back."""
    if spec.modality == "ct":
        step = _FIELD / spec.size
        matrix = np.diag([step, step, -step, 1.0])  # the first slice is at the head
        matrix[:3, 3] = [-_FIELD / 2 + step / 2, -_FIELD / 2 + step / 2, _FIELD / 2 - step / 2]
        hounsfield = np.clip(np.rint(data), -1024, 3071).astype(np.int16)
        return Image(hounsfield[None, None], Affine(matrix), modality="CT", unit="HU")
    if spec.modality == "ultrasound":
        beam = gaussian_filter(data, (0, 0, *_PSF), mode="reflect")
        power = (beam**2).sum((0, 1)) / _looks(spec)
        shown = 10 * np.log10(np.maximum(power, 1e-12)) / _DECIBELS + 0.85
    elif spec.known:
        shown = (data + 0.3) / 5.3
    else:
        shown = (0.3 - np.log(np.maximum(data, 0.5) / _quanta(spec))) / (0.3 + np.log(2 * _quanta(spec)))
    stored = np.rint(np.clip(shown, 0, 1) * 65535).astype(np.uint16)
    return Image(stored[None, None, None], modality="US" if spec.modality == "ultrasound" else "DX")


def _boxes(mask: NDArray[np.bool_]) -> Array:
    if not mask.any():
        return np.zeros((0, 2, 3))
    places = np.argwhere(mask)[:, ::-1]
    return np.stack([places.min(0) - 0.5, places.max(0) + 0.5])[None].astype(np.float64)
