"""Cohorts on disk with one planted defect of each kind, and clean ones: phantom images and a table."""

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

import dicom_files
from osler.phantom import Phantom, phantom_case

Pixels = NDArray[np.uint8]
SPEC = Phantom(size=64, classes=("normal", "nodule"), prevalence=(0.5, 0.5), cases_per_patient=1.0, seed=3)
CASES = 160


@dataclass
class Planted:
    """A cohort in the making.

    Attributes:
        folder: where it is.
        rows: of its table.
        pixels: of each case, 8 bits.
        cases: the ids of those that the defect is about; empty where it is about the whole cohort.
    """

    folder: Path
    rows: list[dict[str, str]]
    pixels: dict[str, Pixels]
    cases: set[str] = field(default_factory=set)

    def add(self, like: dict[str, str], pixels: Pixels, **changed: str) -> dict[str, str]:
        """Another case, of its own patient unless said otherwise."""
        name = f"case{len(self.rows):05d}"
        row = like | {"case": name, "patient": f"patient-{name}", "image": f"{name}.png"} | changed
        self.rows.append(row)
        self.pixels[name] = pixels
        return row

    def of(self, split: str) -> list[dict[str, str]]:
        return [row for row in self.rows if row["split"] == split]

    def write(self) -> Path:
        """The table, and as PNG every image that is not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for row in self.rows:
            if not (self.folder / row["image"]).exists():
                Image.fromarray(self.pixels[row["case"]]).save(self.folder / row["image"])
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with (self.folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, names)
            table.writeheader()
            table.writerows(self.rows)
        return self.folder


def phantoms(folder: Path, spec: Phantom = SPEC, cases: int = CASES) -> Planted:
    """A clean cohort, not yet on disk; a volume is seen in its middle slice."""
    rows, pixels = [], {}
    for number in range(cases):
        made = phantom_case(number, spec)
        array = made.case.images["image"].array[0, 0].astype(np.float64)
        plane = array[len(array) // 2]
        low, high = (0, 65535) if spec.dims == 2 else (-1024, 600)
        pixels[made.case.id] = np.rint(np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8)
        rows.append(
            {
                "case": made.case.id,
                "patient": made.case.patient,
                "image": f"{made.case.id}.png",
                "label": made.label,
                "split": made.split,
                "covariate.age": str(made.case.covariates["age"]),
                "covariate.sex": str(made.case.covariates["sex"]),
            }
        )
    return Planted(folder, rows, pixels)


def _copies(change: Callable[[Pixels], Pixels]) -> Callable[[Path], Planted]:
    """Six training images stand in the test part, too, under other names."""

    def plant(folder: Path) -> Planted:
        made = phantoms(folder)
        for row in made.of("train")[:6]:
            copy = made.add(row, change(made.pixels[row["case"]]), split="test")
            made.cases |= {row["case"], copy["case"]}
        return made

    return plant


def _resized(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC))


def _shot_again(pixels: Pixels) -> Pixels:
    """The same patient a moment later: moved by half a pixel, with noise of its own."""
    moved = ndimage.shift(pixels.astype(np.float64), (0.5, -0.5), mode="nearest")
    noise = np.random.default_rng(int(pixels.sum())).normal(0, 3, pixels.shape)
    return np.asarray(np.clip(moved + noise, 0, 255), np.uint8)


def torn_patient(folder: Path) -> Planted:
    made = phantoms(folder)
    for one, other in zip(made.of("train")[:4], made.of("test")[:4], strict=True):
        other["patient"] = one["patient"]
        made.cases |= {one["case"], other["case"]}
    return made


def reencoded(folder: Path) -> Planted:
    """The same pixels in other bytes: PNG and TIFF."""
    made = phantoms(folder)
    folder.mkdir(parents=True)
    for row in made.of("train")[:6]:
        copy = made.add(row, made.pixels[row["case"]], split="test")
        copy["image"] = f"{copy['case']}.tif"
        Image.fromarray(made.pixels[row["case"]]).save(folder / copy["image"])
        made.cases |= {row["case"], copy["case"]}
    return made


def two_labels(folder: Path) -> Planted:
    made = phantoms(folder)
    for row in made.of("train")[:5]:
        other = "nodule" if row["label"] == "normal" else "normal"
        copy = made.add(row, made.pixels[row["case"]], label=other)
        made.cases |= {row["case"], copy["case"]}
    return made


def marker(folder: Path) -> Planted:
    """A letter in nine of ten images with a nodule, and in one of ten without."""
    made, chance = phantoms(folder), np.random.default_rng(1)
    for row in made.rows:
        if (row["label"] == "nodule") != (chance.random() < 0.1):
            image = Image.fromarray(made.pixels[row["case"]])
            ImageDraw.Draw(image).text((50, 48), "R", fill=255)
            made.pixels[row["case"]] = np.asarray(image)
    return made


def border(folder: Path) -> Planted:
    """A black frame around nine of ten images with a nodule, and around one of ten without."""
    made, chance = phantoms(folder), np.random.default_rng(2)
    for row in made.rows:
        if (row["label"] == "nodule") != (chance.random() < 0.1):
            framed = np.zeros_like(made.pixels[row["case"]])
            framed[3:-3, 3:-3] = made.pixels[row["case"]][3:-3, 3:-3]
            made.pixels[row["case"]] = framed
    return made


def exposure(folder: Path) -> Planted:
    """Images with a nodule come from a machine that makes them brighter."""
    made, chance = phantoms(folder), np.random.default_rng(3)
    for row in made.rows:
        if (row["label"] == "nodule") != (chance.random() < 0.05):
            made.pixels[row["case"]] = np.minimum(made.pixels[row["case"]] * 1.15, 255).astype(np.uint8)
    return made


def header(folder: Path) -> Planted:
    """DICOM files; four of five images with a nodule come from one station, four of five others from another."""
    made, chance = phantoms(folder), np.random.default_rng(4)
    for row in made.rows:
        here = (row["label"] == "nodule") != (chance.random() < 0.2)
        row["image"] = f"{row['case']}.dcm"
        tags = {"StationName": "WARD" if here else "CLINIC", "Modality": "DX", "PatientID": row["patient"]}
        dicom_files.write(folder / row["image"], dicom_files.dataset(made.pixels[row["case"]], **tags))
    return made


def outcome(folder: Path) -> Planted:
    """A covariate that is known because the diagnosis is: the size of what was taken out, nothing if nothing was."""
    made, chance = phantoms(folder), np.random.default_rng(5)
    for row in made.rows:
        size = chance.normal(12, 3) if row["label"] == "nodule" else chance.normal(1, 2)
        row["covariate.specimen_mm"] = f"{max(0.0, size):.1f}"
    return made


def joint_normalisation(folder: Path) -> Planted:
    """Less the mean and over the deviation of all images, those of the test part among them."""
    made = phantoms(folder)
    every = np.stack([made.pixels[row["case"]] for row in made.rows]).astype(np.float64)
    folder.mkdir(parents=True)
    for row in made.rows:
        row["image"] = f"{row['case']}.npy"
        scaled = (made.pixels[row["case"]] - every.mean()) / every.std()
        np.save(folder / row["image"], scaled.astype(np.float32))
    return made


# What is planted, how, and the kinds of trouble that name it.
DEFECTS: dict[str, tuple[Callable[[Path], Planted], tuple[str, ...]]] = {
    "same patient in two splits": (torn_patient, ("torn_patient",)),
    "same file in two splits": (_copies(lambda pixels: pixels), ("same_file",)),
    "same pixels in another file": (reencoded, ("reencoded_copy",)),
    "resized": (_copies(_resized), ("resized_copy",)),
    "flipped": (_copies(lambda pixels: pixels[:, ::-1].copy()), ("flipped_copy",)),
    "nearly the same": (_copies(_shot_again), ("near_copy",)),
    "one image under two labels": (two_labels, ("label_conflict",)),
    "marker": (marker, ("marker_shortcut",)),
    "border": (border, ("border_shortcut",)),
    "exposure": (exposure, ("exposure_shortcut",)),
    "header": (header, ("header_shortcut",)),
    "outcome": (outcome, ("leaking_covariate",)),
    "joint normalisation": (joint_normalisation, ("joint_normalisation",)),
}
# Of one case a patient: a second one is nearly the same picture, and is said to be.
CLEAN = {
    "radiographs": Phantom(cases_per_patient=1.0, seed=11),
    "small radiographs": Phantom(
        size=32,
        lesion=(5.0, 8.0),
        classes=("normal", "nodule"),
        prevalence=(0.7, 0.3),
        cases_per_patient=1.0,
        seed=12,
    ),
    "ultrasound": Phantom(
        "ultrasound", 48, classes=("normal", "lesion"), prevalence=(0.6, 0.4), cases_per_patient=1.0, seed=13
    ),
    "small ultrasound": Phantom("ultrasound", 32, lesion=(5.0, 8.0), cases_per_patient=1.0, seed=14),
    "slices of CT": Phantom("ct", 32, lesion=(5.0, 8.0), cases_per_patient=1.0, seed=15),
}
