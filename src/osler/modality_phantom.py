"""Synthetic cases of several modalities, each with a known share of the evidence, some of them missing.

Every image is a background of its own modality, a spot at its own place where the case is of the second class, and
white Gaussian noise. Background and spot are known exactly, and the noise is independent, so the log likelihood
ratios of the images add up: the ideal observer of any set of them has ``d'^2 = sum of d'_i^2`` and the AUROC
``Phi(d' / sqrt(2))`` (Barrett and Myers, *Foundations of Image Science*, 2004, 13.2). No network can do better.
"""

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from osler import phantom, subsets
from osler.case import Role
from osler.draws import keys, normal, uniform
from osler.image import NoGeometry
from osler.problem import Problem

Array = NDArray[np.float64]
CLASSES = ("normal", "tumour")
_SPOT = 1.5  # pixels, standard deviation of the spot
_RANGE = 8.0  # standard deviations of the noise that the stored values reach to either side


def _evidence() -> dict[str, float]:
    return {"t1": 0.5, "t1c": 1.2, "t2": 0.8, "flair": 1.0}


@dataclass(frozen=True)
class ModalityPhantom:
    """What such a cohort is like.

    Attributes:
        evidence: the ideal observer's d' of each modality, by its name; of all of them there may be six.
        missing: share of the images that are missing, at random; one of each case is always there.
        size: pixels along each axis.
        splits: shares of the cases in train, validation, calibration and test.
        seed: of everything.
    """

    evidence: Mapping[str, float] = field(default_factory=_evidence)
    missing: float = 0.2
    size: int = 16
    splits: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2)
    seed: int = 0

    def __post_init__(self) -> None:
        subsets.check(tuple(self.evidence), covariates=False, linked=False)
        for fine, sentence in (
            (bool(self.evidence) and all(d >= 0 for d in self.evidence.values()), "each d' must be 0 or more"),
            (0 <= self.missing < 1, "missing must be a share below 1"),
            (self.size >= 8, "size must be 8 or more"),
            (all(s >= 0 for s in self.splits) and abs(sum(self.splits) - 1) < 1e-6, "splits must be shares, sum 1"),
        ):
            if not fine:
                raise Problem(f"this phantom cannot be made: {sentence}", fix="change that option")


@dataclass(frozen=True, eq=False)
class ModalityCase:
    """A case with its truth.

    Attributes:
        id: its name.
        images: ``(size, size)`` in units of the noise, by modality; of those that are missing, too.
        missing: names of the modalities that a cohort lacks.
        label: its class.
        split: its part.
        evidence: log likelihood ratio of the second class to the first, by modality; those of a set add up.
    """

    id: str
    images: Mapping[str, Array]
    missing: tuple[str, ...]
    label: str
    split: Role
    evidence: Mapping[str, float]


def expected_auroc(spec: ModalityPhantom) -> dict[str, float]:
    """AUROC of the ideal observer of every set of modalities, by its name (``osler.subsets``); of all: ``all``."""
    energy = np.square(list(spec.evidence.values()))
    found = subsets.of(tuple(spec.evidence))
    return {name or "all": float(norm.cdf(np.sqrt(energy[mask].sum() / 2))) for name, mask in found.items()}


def case(number: int, spec: ModalityPhantom) -> ModalityCase:
    """The case of that number, 0 or more: always the same, whichever others are made."""
    key = keys(spec.seed, 1, number)
    second = bool(uniform(key, "class")[0] < 0.5)
    names = tuple(spec.evidence)
    images, evidence = {}, {}
    for s, name in enumerate(names):
        background, spot = _scene(s, spec.size, spec.seed), spec.evidence[name] * _spot(s, spec.size, spec.seed)
        noise = normal(keys(spec.seed, 2, number, s), "noise", (spec.size, spec.size))[0]
        images[name] = background + second * spot + noise
        evidence[name] = float((spot * (images[name] - background - spot / 2)).sum())
    chance = uniform(key, "missing", (len(names),))[0]
    gone = (chance < spec.missing) & (np.arange(len(names)) != chance.argmax())
    edges = np.cumsum(spec.splits)[:-1]
    split = phantom.ROLES[int(np.searchsorted(edges, uniform(key, "split")[0], side="right"))]
    missing = tuple(name for name, yes in zip(names, gone, strict=True) if yes)
    return ModalityCase(f"case{number:05d}", images, missing, CLASSES[second], split, evidence)


def write(folder: Path, spec: ModalityPhantom, cases: int) -> Path:
    """Writes cases 0 to ``cases - 1`` as a manifest with a column ``image.<modality>`` each, and returns its folder.

    ``truth.json`` holds the specification, the AUROC of the ideal observer of every set, and its evidence by case.

    Raises:
        Problem: the folder holds files already, or no case is asked for.
    """
    if cases < 1:
        raise Problem(f"a cohort needs at least one case, and {cases} were asked for", fix="ask for more")
    if folder.exists() and any(folder.iterdir()):
        raise Problem("the folder is not empty", path=folder, fix="name a new one")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows, truths = [], []
    for number in range(cases):
        made = case(number, spec)
        row = {"case": made.id, "patient": made.id}
        for name, image in made.images.items():
            row[f"image.{name}"] = "" if name in made.missing else f"images/{made.id}-{name}.png"
            if name not in made.missing:
                phantom.write_array(folder / row[f"image.{name}"], stored(image)[None], NoGeometry())
        rows.append({**row, "label": made.label, "split": made.split})
        truths.append({"case": made.id, "label": made.label, "evidence": dict(made.evidence)})
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    truth = {"schema_version": 1, "phantom": asdict(spec), "expected_auroc": expected_auroc(spec), "cases": truths}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return folder


def stored(image: Array) -> NDArray[np.uint16]:
    """As it stands in a file: 16 bits, the noise 4096 steps."""
    return np.rint(np.clip((image + _RANGE) / (2 * _RANGE), 0, 1) * 65535).astype(np.uint16)


@cache
def _scene(number: int, size: int, seed: int) -> Array:
    """The background of a modality: smooth, of another grain each, of unit deviation."""
    rough = normal(keys(seed, 3, number), "scene", (size, size))[0]
    smooth = gaussian_filter(rough, 1.0 + 0.5 * number, mode="wrap")
    return np.asarray((smooth - smooth.mean()) / smooth.std() + (number - 1.5) * 0.7)


@cache
def _spot(number: int, size: int, seed: int) -> Array:
    """A round spot of unit energy, at a place of its own."""
    middle = uniform(keys(seed, 4, number), "place", (2,), 0.3, 0.7)[0] * size
    rows, columns = np.ogrid[:size, :size]
    spot = np.exp(-0.5 * ((rows - middle[0]) ** 2 + (columns - middle[1]) ** 2) / _SPOT**2)
    return np.asarray(spot / np.linalg.norm(spot))
