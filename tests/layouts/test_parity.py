"""The same lesions in every form that people have them in give the same findings."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from osler import data, layouts
from osler.case import Finding

HEIGHT, WIDTH = 60, 80
# Class and x0, y0, x1, y1 by edges; two of them touch.
LESIONS = {
    "a": [("cyst", 4, 6, 14, 20), ("cyst", 14, 6, 30, 11), ("tumour", 40, 30, 80, 60)],
    "b": [("tumour", 0, 0, 1, 1)],
    "c": [],
}
CLASSES = ("cyst", "tumour")


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(path)


def drawn(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


def corners(x0: int, y0: int, x1: int, y1: int) -> list[float]:
    return [float(n) for n in (x0, y0, x1, y0, x1, y1, x0, y1)]


def coco(root: Path, *, runs: bool = False) -> None:
    images, objects = [], []
    for number, (name, lesions) in enumerate(LESIONS.items()):
        picture(root / "images" / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH})
        for kind, x0, y0, x1, y1 in lesions:
            outline = [corners(x0, y0, x1, y1)]
            if runs:
                flat = drawn(x0, y0, x1, y1).T.ravel() > 0
                changes = np.flatnonzero(np.diff(np.concatenate([[False], flat, [not flat[-1]]])))
                outline = {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *changes]).tolist()}
            box = [x0, y0, x1 - x0, y1 - y0]
            kind_id = CLASSES.index(kind) + 1
            one = {
                "id": len(objects),
                "image_id": number,
                "category_id": kind_id,
                "bbox": box,
                "segmentation": outline,
            }
            objects.append(one)
    kinds = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": objects, "categories": kinds}
    (root / "annotations" / "instances_all.json").write_text(json.dumps(content))


def coco_runs(root: Path) -> None:
    coco(root, runs=True)


def voc(root: Path) -> None:
    (root / "Annotations").mkdir(parents=True)
    for name, lesions in LESIONS.items():
        picture(root / "JPEGImages" / f"{name}.png")
        objects = "".join(
            f"<object><name>{kind}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            for kind, x0, y0, x1, y1 in lesions
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>1</depth></size>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def yolo(root: Path, *, outlines: bool = False) -> None:
    for name, lesions in LESIONS.items():
        picture(root / "images" / "all" / f"{name}.png")
        lines = []
        for kind, x0, y0, x1, y1 in lesions:
            numbers = [(x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT]
            if outlines:
                numbers = [n / (HEIGHT if i % 2 else WIDTH) for i, n in enumerate(corners(x0, y0, x1, y1))]
            lines.append(" ".join([str(CLASSES.index(kind)), *(f"{n:.8f}" for n in numbers)]))
        label = root / "labels" / "all" / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("\n".join(lines))
    (root / "data.yaml").write_text("path: .\ntrain: images/all\nnames:\n  0: cyst\n  1: tumour\n")


def yolo_outlines(root: Path) -> None:
    yolo(root, outlines=True)


def masks(root: Path) -> None:
    rows = ["case,image,mask.cyst,mask.tumour"]
    for name, lesions in LESIONS.items():
        picture(root / f"{name}.png")
        files: dict[str, list[str]] = {kind: [] for kind in CLASSES}
        for number, (kind, *edges) in enumerate(lesions):
            files[kind].append(f"{name}_{number}.png")
            Pillow.fromarray(drawn(*edges)).save(root / files[kind][-1])
        rows.append(",".join([name, f"{name}.png", *(";".join(files[kind]) or "none" for kind in CLASSES)]))
    (root / "cases.csv").write_text("\n".join(rows))


def rows_of_boxes(root: Path) -> None:
    rows = ["case,image,x,y,width,height,class"]
    for name, lesions in LESIONS.items():
        picture(root / f"{name}.png")
        rows += [f"{name},{name}.png,{x0},{y0},{x1 - x0},{y1 - y0},{kind}" for kind, x0, y0, x1, y1 in lesions]
        rows += [] if lesions else [f"{name},{name}.png,none,none,none,none,"]
    (root / "cases.csv").write_text("\n".join(rows))


def cells_of_boxes(root: Path) -> None:
    rows = ["case,image,boxes"]
    for name, lesions in LESIONS.items():
        picture(root / f"{name}.png")
        stated = "; ".join(f"{x0} {y0} {x1 - x0} {y1 - y0} {kind}" for kind, x0, y0, x1, y1 in lesions)
        rows.append(f"{name},{name}.png,{stated or 'none'}")
    (root / "cases.csv").write_text("\n".join(rows))


WITH_MASKS = (coco, coco_runs, yolo_outlines, masks)


def found_in(root: Path, task: str) -> dict[str, list[Finding]]:
    listing = layouts.read(root)
    assert not listing.problems
    found = {}
    for entry in listing.entries:
        case = data.read_case(entry, listing.questions)
        found[Path(entry.id).stem] = [finding for finding in case.findings if finding.task == task]
    return found


@pytest.mark.parametrize("write", [coco, coco_runs, voc, yolo, yolo_outlines, rows_of_boxes, cells_of_boxes, masks])
def test_the_same_boxes(write, tmp_path):
    write(tmp_path)
    found = found_in(tmp_path, "mask" if write is masks else "boxes")
    assert set(found) == set(LESIONS)
    for name, lesions in LESIONS.items():
        there = [finding for finding in found[name] if finding.probability == 1]
        rows = sorted((f.name, f.box.start[2], f.box.start[1], f.box.stop[2], f.box.stop[1]) for f in there)
        assert [row[0] for row in rows] == sorted(kind for kind, *_ in lesions)
        np.testing.assert_allclose([row[1:] for row in rows], [each[1:] for each in sorted(lesions)], atol=1e-5)
        assert all((f.box.start[0], f.box.stop[0], f.by, f.frame) == (0, 1, "reader", 0) for f in there)
        # And of what is not there, that it is not.
        absent = {finding.name for finding in found[name] if finding.probability == 0}
        assert absent == set(CLASSES) - {kind for kind, *_ in lesions}
        assert all(f.box is None and f.mask is None for f in found[name] if f.probability == 0)


@pytest.mark.parametrize("write", WITH_MASKS)
def test_the_same_masks_and_maps(write, tmp_path):
    write(tmp_path)
    for name, found in found_in(tmp_path, "mask").items():
        there = [finding for finding in found if finding.probability == 1]
        # Exactly, pixel by pixel; those that touch stay two.
        painted = {(f.name, f.mask.within((1, HEIGHT, WIDTH)).tobytes()) for f in there}
        assert painted == {(kind, (drawn(*edges) > 0).tobytes()) for kind, *edges in LESIONS[name]}
        assert all(f.box == f.mask.box for f in there)
    listing = layouts.read(tmp_path)
    question = next(question for question in listing.questions if question.task == "mask")
    assert question.separate and question.classes == CLASSES and question.values == ((1,), (2,))
    for entry in listing.entries:
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        for kind, x0, y0, x1, y1 in LESIONS[Path(entry.id).stem]:
            expected[y0:y1, x0:x1] = CLASSES.index(kind) + 1
        np.testing.assert_array_equal(data.read_case(entry, listing.questions).maps["mask"][0, 0], expected)
