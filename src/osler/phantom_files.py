"""Writes synthetic cohorts with known places to disk, in the layouts that people have."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from osler.case import Finding, Role
from osler.dense_phantom import DenseCase, DensePhantom, apart, dense_case, label_of
from osler.image import Image
from osler.phantom import write_array
from osler.problem import Problem

LayoutName = Literal["masks", "boxes", "linked", "modalities", "nnunet", "coco", "voc", "yolo"]
# The layouts of others know no calibration part: Osler takes its own out of their training part.
_PARTS: dict[Role, str] = {"train": "train", "validation": "val", "calibration": "train", "test": "test"}


_OWN = ("masks", "boxes", "linked", "modalities")


def write_dense_phantom(folder: Path, spec: DensePhantom, cases: int, layout: LayoutName = "masks") -> Path:
    """Writes cases 0 to ``cases - 1`` as a cohort and returns its folder.

    Every layout holds the same images (PNG of 8 bits, or NIfTI) and, as far as it can, the same findings;
    ``truth.json`` beside them has the specification and the class and box of each finding.

    - ``masks``: ``manifest.csv`` with a column ``mask.<class>`` for each class, that names a file or is ``none``;
    - ``boxes``: ``manifest.csv`` with a column ``boxes``: x, y, z, width, height, depth (flat: without z and depth)
      in pixels and the class of each, separated by semicolons, or ``none``;
    - ``linked``: ``manifest.csv`` with a column ``label`` (``normal``, ``malignant`` where a lesion is spiculated,
      else ``benign``), a column ``mask.lesion`` and a column ``boxes``, which tell no classes apart, and, of phantoms
      with an ``age_effect``, a column ``covariate.age``;
    - ``modalities``: as ``masks``, with an image ``image.<class>`` for each class, which shows lesions of this class
      and no others: see :func:`osler.dense_phantom.apart`;
    - ``nnunet``: nnU-Net raw, the test part in ``imagesTs`` and ``labelsTs``;
    - ``coco``: ``annotations/instances_<part>.json`` with boxes and run-length masks;
    - ``voc``: ``Annotations``, ``ImageSets/Main`` and ``JPEGImages`` of Pascal VOC, boxes only;
    - ``yolo``: ``images/<part>``, ``labels/<part>`` and ``data.yaml``, boxes only.

    Raises:
        Problem: the folder holds files already, no case is asked for, or the layout cannot hold the cohort.
    """
    writer = _WRITERS[layout]
    if cases < 1:
        raise Problem(f"a cohort needs at least one case, and {cases} were asked for", fix="ask for more")
    if folder.exists() and any(folder.iterdir()):
        raise Problem("the folder is not empty", path=folder, fix="name a new one")
    if layout in ("coco", "voc", "yolo") and not spec.flat:
        raise Problem(f"the layout {layout} holds flat images only", fix="write nnunet, masks, boxes or linked")
    if layout not in _OWN and spec.cases_per_patient > 1:
        what = f"the layout {layout} does not say which cases are of one patient"
        raise Problem(what, fix=f"write {' or '.join(_OWN)}")
    folder.mkdir(parents=True, exist_ok=True)
    truths: list[dict[str, Any]] = []

    def made() -> Iterator[DenseCase]:
        for number in range(cases):
            case = dense_case(number, spec)
            places = [{"name": f.name, "start": f.box.start, "stop": f.box.stop} for f in _there(case) if f.box]
            about = {"case": case.case.id, "patient": case.case.patient, "split": case.split}
            truths.append(about | {"findings": places})
            yield case

    writer(folder, spec, made())
    truth = {"schema_version": 1, "phantom": asdict(spec), "cases": truths}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1), encoding="utf-8")
    return folder


def _there(made: DenseCase) -> list[Finding]:
    return [finding for finding in made.case.findings if finding.box is not None]


def _save(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_array(path, image.array[0, 0], image.geometry)


def _ending(spec: DensePhantom) -> str:
    return ".png" if spec.flat else ".nii.gz"


def _manifest(folder: Path, made: Iterator[tuple[DenseCase, dict[str, str]]], ending: str) -> None:
    rows = []
    for case, columns in made:
        images = {}
        for name, image in case.case.images.items():
            column, called = ("image", "") if name == "image" else (f"image.{name}", f"_{name}")
            images[column] = f"images/{case.case.id}{called}{ending}"
            _save(folder / images[column], image)
        about = {f"covariate.{name}": str(value) for name, value in case.case.covariates.items()}
        rows.append(
            {"case": case.case.id, "patient": case.case.patient, **images, "split": case.split, **columns, **about}
        )
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def _nnunet(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    """Isensee et al., nnU-Net, documentation/dataset_format.md."""
    training = 0
    for case in made:
        part = "Ts" if case.split == "test" else "Tr"
        training += part == "Tr"
        _save(folder / f"images{part}" / f"{case.case.id}_0000{_ending(spec)}", case.case.images["image"])
        _save(folder / f"labels{part}" / f"{case.case.id}{_ending(spec)}", case.outline)
    values = {"background": 0} | {name: value for value, name in enumerate(spec.classes, 1)}
    channel = "grey" if spec.flat else "CT"
    about = {"channel_names": {"0": channel}, "labels": values, "numTraining": training, "file_ending": _ending(spec)}
    (folder / "dataset.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def _coco(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    """Lin et al., 2014; cocodataset.org, data format: boxes are x, y, width, height; runs go down the columns."""
    categories = [{"id": number, "name": name} for number, name in enumerate(spec.classes, 1)]
    parts: dict[str, dict[str, list[Any]]] = {}
    for number, case in enumerate(made, 1):
        part = parts.setdefault(_PARTS[case.split], {"images": [], "annotations": [], "categories": categories})
        name = f"{case.case.id}.png"
        _save(folder / "images" / name, case.case.images["image"])
        height, width = spec.size[1:]
        part["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for finding in _there(case):
            assert finding.box is not None and finding.mask is not None
            (_, top, left), (_, bottom, right) = finding.box.start, finding.box.stop
            part["annotations"].append(
                {
                    "id": sum(len(other["annotations"]) for other in parts.values()) + 1,
                    "image_id": number,
                    "category_id": spec.classes.index(finding.name) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": int(finding.mask.array.sum()),
                    "segmentation": {"size": [height, width], "counts": _runs(finding.mask.within(spec.size)[0])},
                    "iscrowd": 0,
                }
            )
    (folder / "annotations").mkdir()
    for name, part in parts.items():
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(part), encoding="utf-8")


def _runs(mask: NDArray[np.bool_]) -> list[int]:
    """How many pixels are false, then true, then false, ..., down the columns."""
    flat = np.concatenate([[False], mask.T.ravel(), [not mask[-1, -1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(n) for n in np.diff(np.concatenate([[0], changes]))]


def _voc(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    """Everingham et al., 2010, development kit: boxes by their first and last pixel, counted from 1."""
    parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for case in made:
        name = f"{case.case.id}.png"
        parts[_PARTS[case.split]].append(case.case.id)
        _save(folder / "JPEGImages" / name, case.case.images["image"])
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        size = ElementTree.SubElement(root, "size")
        for key, value in (("width", spec.size[2]), ("height", spec.size[1]), ("depth", 1)):
            ElementTree.SubElement(size, key).text = str(value)
        for finding in _there(case):
            assert finding.box is not None
            thing = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(thing, "name").text = finding.name
            place = ElementTree.SubElement(thing, "bndbox")
            (_, top, left), (_, bottom, right) = finding.box.start, finding.box.stop
            for key, edge in (("xmin", left + 1), ("ymin", top + 1), ("xmax", right), ("ymax", bottom)):
                ElementTree.SubElement(place, key).text = str(int(edge))
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{case.case.id}.xml")
    for part, names in parts.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{n}\n" for n in names), encoding="utf-8")


def _yolo(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    """A line a box: class, centre and size, as shares of the width and height of the image."""
    height, width = spec.size[1:]
    for case in made:
        part = _PARTS[case.split]
        _save(folder / "images" / part / f"{case.case.id}.png", case.case.images["image"])
        lines = []
        for finding in _there(case):
            assert finding.box is not None
            (_, top, left), (_, bottom, right) = finding.box.start, finding.box.stop
            shares = [(left + right) / 2 / width, (top + bottom) / 2 / height]
            shares += [(right - left) / width, (bottom - top) / height]
            lines.append(" ".join([str(spec.classes.index(finding.name)), *(f"{share:.8f}" for share in shares)]))
        (folder / "labels" / part).mkdir(parents=True, exist_ok=True)
        (folder / "labels" / part / f"{case.case.id}.txt").write_text("".join(f"{x}\n" for x in lines), "utf-8")
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(spec.classes))
    text = "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n" + names
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _masks(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    def rows() -> Iterator[tuple[DenseCase, dict[str, str]]]:
        for case in made:
            named = {}
            for value, name in enumerate(spec.classes, 1):
                there = case.outline.array == value
                named[f"mask.{name}"] = f"masks/{case.case.id}_{name}{_ending(spec)}" if there.any() else "none"
                if there.any():
                    mask = replace(case.outline, array=there.astype(np.uint8) * (255 if spec.flat else 1))
                    _save(folder / named[f"mask.{name}"], mask)
            yield case, named

    _manifest(folder, rows(), _ending(spec))


def _cell(case: DenseCase, spec: DensePhantom, name: str = "") -> str:
    """The boxes of a case in one cell; ``name`` stands for every class."""
    axes = (2, 1) if spec.flat else (2, 1, 0)
    cells = []
    for finding in _there(case):
        assert finding.box is not None
        start, stop = finding.box.start, finding.box.stop
        numbers = [start[axis] for axis in axes] + [stop[axis] - start[axis] for axis in axes]
        cells.append(" ".join([*(f"{number:g}" for number in numbers), name or finding.name]))
    return "; ".join(cells) or "none"


def _boxes(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    _manifest(folder, ((case, {"boxes": _cell(case, spec)}) for case in made), _ending(spec))


def _linked(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    def rows() -> Iterator[tuple[DenseCase, dict[str, str]]]:
        for case in made:
            label = label_of(case.case.findings)
            mask = f"masks/{case.case.id}{_ending(spec)}" if _there(case) else "none"
            if _there(case):
                there = (case.outline.array != 0).astype(np.uint8) * (255 if spec.flat else 1)
                _save(folder / mask, replace(case.outline, array=there))
            yield case, {"label": label, "mask.lesion": mask, "boxes": _cell(case, spec, "lesion")}

    _manifest(folder, rows(), _ending(spec))


def _modalities(folder: Path, spec: DensePhantom, made: Iterator[DenseCase]) -> None:
    _masks(folder, spec, (replace(each, case=replace(each.case, images=apart(each, spec))) for each in made))


_WRITERS: dict[LayoutName, Callable[[Path, DensePhantom, Iterator[DenseCase]], None]] = {
    "masks": _masks,
    "boxes": _boxes,
    "linked": _linked,
    "modalities": _modalities,
    "nnunet": _nnunet,
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
}
