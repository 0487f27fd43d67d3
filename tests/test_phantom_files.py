import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from osler.case import Source
from osler.catalog import find
from osler.dense_phantom import LESIONS, NODULES, ORGAN, DensePhantom, dense_case
from osler.phantom_files import LayoutName, write_dense_phantom
from osler.problem import Problem

SMALL = replace(LESIONS, size=(1, 48, 40), diameter=(4.0, 8.0), vessels=2)
VOLUMES = replace(NODULES, size=(12, 24, 20), diameter=(3.0, 5.0))

Places = list[tuple[str, tuple[float, ...], tuple[float, ...]]]


def truth(number: int, spec: DensePhantom) -> Places:
    findings = dense_case(number, spec).case.findings
    return sorted((f.name, f.box.start, f.box.stop) for f in findings if f.box is not None)


def flat(
    name: str, left: float, top: float, right: float, bottom: float
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    return name, (0, top, left), (1, bottom, right)


def manifest(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    return find("formats", "nifti" if path.name.endswith(".nii.gz") else "raster").read(Source(path)).array[0, 0]


@pytest.mark.parametrize("spec", [SMALL, VOLUMES], ids=["flat", "volumes"])
def test_masks_in_a_manifest(spec: DensePhantom, tmp_path: Path) -> None:
    folder = write_dense_phantom(tmp_path / "cohort", replace(spec, cases_per_patient=1.5), 6)
    for number, row in enumerate(manifest(folder)):
        made = dense_case(number, replace(spec, cases_per_patient=1.5))
        assert (row["case"], row["patient"], row["split"]) == (made.case.id, made.case.patient, made.split)
        image = made.case.images["image"].array
        read = pixels(folder / row["image"])
        assert read.dtype == image.dtype and np.array_equal(read, image[0, 0])
        drawn = np.zeros_like(made.labels)
        for value, name in enumerate(spec.classes, 1):
            if row[f"mask.{name}"] == "none":
                assert not (made.labels == value).any()
            else:
                drawn[pixels(folder / row[f"mask.{name}"]) > 0] = value
        assert np.array_equal(drawn, made.labels)


@pytest.mark.parametrize("spec", [SMALL, VOLUMES], ids=["flat", "volumes"])
def test_boxes_in_a_manifest(spec: DensePhantom, tmp_path: Path) -> None:
    folder = write_dense_phantom(tmp_path / "cohort", spec, 6, "boxes")
    for number, row in enumerate(manifest(folder)):
        boxes = []
        for cell in row["boxes"].split("; ") if row["boxes"] != "none" else []:
            *numbers, name = cell.split()
            half = len(numbers) // 2
            corner, size = (np.array(numbers[part], float)[::-1] for part in (slice(half), slice(half, None)))
            flat = (0.0,) if half == 2 else ()
            boxes.append((name, (*flat, *corner), (*(1.0 for _ in flat), *(corner + size))))
        assert sorted(boxes) == truth(number, spec)


@pytest.mark.parametrize("spec", [SMALL, replace(ORGAN, label_spacing=(1.0, 1.0, 1.0))], ids=["flat", "grids"])
def test_nnunet(spec: DensePhantom, tmp_path: Path) -> None:
    folder = write_dense_phantom(tmp_path / "cohort", spec, 8, "nnunet")
    about = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert about["labels"] == {"background": 0} | {name: n for n, name in enumerate(spec.classes, 1)}
    ending = about["file_ending"]
    assert about["numTraining"] == len(list((folder / "imagesTr").iterdir())) > 0
    for number in range(8):
        made = dense_case(number, spec)
        part = "Ts" if made.split == "test" else "Tr"
        image, outline = (
            find("formats", "raster" if spec.flat else "nifti").read(Source(folder / path))
            for path in (f"images{part}/{made.case.id}_0000{ending}", f"labels{part}/{made.case.id}{ending}")
        )
        assert np.array_equal(image.array, made.case.images["image"].array)
        assert np.array_equal(outline.array, made.outline.array)
        if not spec.flat:
            corner = np.array([[0.0, 0, 0], [3, 2, 1]])
            assert np.allclose(image.to_patient(corner), made.case.images["image"].to_patient(corner), atol=1e-3)
            assert np.allclose(outline.to_patient(corner), made.outline.to_patient(corner), atol=1e-3)


def test_coco(tmp_path: Path) -> None:
    """Decoded by the rule of the format, and by the published decoder where it is installed."""
    folder = write_dense_phantom(tmp_path / "cohort", SMALL, 12, "coco")
    found: dict[str, Places] = {}
    seen: set[int] = set()
    for path in (folder / "annotations").iterdir():
        part = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in part["categories"]}
        files = {image["id"]: image["file_name"].removesuffix(".png") for image in part["images"]}
        found |= {name: [] for name in files.values()}
        for each in part["annotations"]:
            assert each["id"] not in seen
            seen.add(each["id"])
            x, y, width, height = each["bbox"]
            found[files[each["image_id"]]].append(flat(names[each["category_id"]], x, y, x + width, y + height))
            counts = each["segmentation"]["counts"]
            mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(40, 48).T
            rows, columns = np.nonzero(mask)
            assert mask.sum() == each["area"]
            assert (columns.min(), rows.min()) == (x, y)
            assert (columns.max() + 1, rows.max() + 1) == (x + width, y + height)
            made = dense_case(int(files[each["image_id"]][4:]), SMALL)
            assert (made.labels[0][mask > 0] == each["category_id"]).all()
    assert {name: sorted(places) for name, places in found.items()} == {
        f"case{number:05d}": truth(number, SMALL) for number in range(12)
    }


def test_voc(tmp_path: Path) -> None:
    folder = write_dense_phantom(tmp_path / "cohort", SMALL, 12, "voc")
    parts = {path.stem: path.read_text().split() for path in (folder / "ImageSets" / "Main").iterdir()}
    assert sorted(name for names in parts.values() for name in names) == [f"case{number:05d}" for number in range(12)]
    for number in range(12):
        root = ElementTree.parse(folder / "Annotations" / f"case{number:05d}.xml").getroot()
        assert (folder / "JPEGImages" / str(root.findtext("filename"))).exists()
        places = []
        for thing in root.iter("object"):
            box = [int(str(thing.findtext(f"bndbox/{edge}"))) for edge in ("xmin", "ymin", "xmax", "ymax")]
            # Pixels count from 1, and the last one belongs to the box.
            places.append(flat(str(thing.findtext("name")), box[0] - 1, box[1] - 1, box[2], box[3]))
        assert sorted(places) == truth(number, SMALL)


def test_yolo(tmp_path: Path) -> None:
    folder = write_dense_phantom(tmp_path / "cohort", SMALL, 12, "yolo")
    assert "  1: cyst\n" in (folder / "data.yaml").read_text()
    for path in (folder / "labels").rglob("*.txt"):
        assert (folder / "images" / path.parent.name / f"{path.stem}.png").exists()
        places = []
        for line in path.read_text().splitlines():
            rank, *shares = line.split()
            x, y, width, height = (float(s) * n for s, n in zip(shares, (40, 48, 40, 48), strict=True))
            edges = [round(edge, 4) for edge in (x - width / 2, y - height / 2, x + width / 2, y + height / 2)]
            places.append(flat(SMALL.classes[int(rank)], *edges))
        assert sorted(places) == truth(int(path.stem[4:]), SMALL)


@pytest.mark.parametrize(
    ("spec", "cases", "layout", "says"),
    [
        (VOLUMES, 3, "coco", "flat images only"),
        (replace(SMALL, cases_per_patient=1.5), 3, "nnunet", "of one patient"),
        (SMALL, 0, "masks", "at least one case"),
    ],
)
def test_what_cannot_be_written_is_said(
    spec: DensePhantom, cases: int, layout: LayoutName, says: str, tmp_path: Path
) -> None:
    with pytest.raises(Problem, match=says):
        write_dense_phantom(tmp_path / "cohort", spec, cases, layout)
    assert not (tmp_path / "cohort").exists()


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(Problem, match="not empty"):
        write_dense_phantom(tmp_path, SMALL, 1)
