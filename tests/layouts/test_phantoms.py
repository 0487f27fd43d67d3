"""Phantoms that another module wrote to disk are read back as what they are, in every layout."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osler import data, layouts
from osler.dense_phantom import LESIONS, NODULES, DensePhantom, dense_case
from osler.phantom_files import LayoutName, write_dense_phantom

FLAT = replace(LESIONS, size=(1, 48, 40), diameter=(4.0, 8.0), vessels=2)
VOLUMES = replace(NODULES, size=(12, 24, 20), diameter=(3.0, 5.0))
CASES = 8


def boxes(findings, spec: DensePhantom):
    there = (f for f in findings if f.box is not None)
    return sorted((f.name, *map(float, (*f.box.start, *f.box.stop))) for f in there if f.name in spec.classes)


@pytest.mark.parametrize(
    ("layout", "spec"),
    [(layout, FLAT) for layout in ("masks", "boxes", "nnunet", "coco", "voc", "yolo")]
    + [(layout, VOLUMES) for layout in ("masks", "boxes", "nnunet")],
)
def test_what_was_written_is_found(layout: LayoutName, spec: DensePhantom, tmp_path: Path) -> None:
    folder = write_dense_phantom(tmp_path / "cohort", spec, CASES, layout)
    listing = layouts.read(folder)
    assert len(listing.entries) == CASES and not listing.problems
    number_of = {dense_case(number, spec).case.id: number for number in range(CASES)}
    for entry in listing.entries:
        made = dense_case(number_of[Path(entry.id).name.removesuffix(".png")], spec)
        case = data.read_case(entry, listing.questions)
        np.testing.assert_array_equal(case.images["image"].array, made.case.images["image"].array)
        if layout != "nnunet":
            task = "mask" if layout == "masks" else "boxes"
            found = boxes([f for f in case.findings if f.task == task], spec)
            expected = boxes(made.case.findings, spec)
            assert [row[0] for row in found] == [row[0] for row in expected]
            np.testing.assert_allclose([r[1:] for r in found], [r[1:] for r in expected], atol=1e-5)
        if layout in ("masks", "nnunet", "coco"):
            names = next(q.classes for q in listing.questions if q.task == "mask")
            painted = np.zeros_like(case.maps["mask"][0])
            for value, name in enumerate(names, 1):
                painted[made.labels == spec.classes.index(name) + 1] = value
            np.testing.assert_array_equal(case.maps["mask"][0], painted)
