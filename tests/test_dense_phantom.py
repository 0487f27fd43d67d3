from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, stats

from osler import anatomy
from osler.case import Mask
from osler.dense_phantom import (
    LESIONS,
    NODULES,
    ORGAN,
    DenseCase,
    DensePhantom,
    dense_case,
    detectability,
    searched_sensitivity,
)
from osler.draws import keys, white
from osler.image import Affine, NoGeometry
from osler.problem import Problem

SPECS = {
    "lesions": LESIONS,
    "nodules": NODULES,
    "thick slices": replace(NODULES, size=(16, 48, 48), spacing=(2.5, 1.0, 1.0), classes=("nodule", "cyst")),
    "organ": ORGAN,
}


def cases(spec: DensePhantom, count: int) -> list[DenseCase]:
    return [dense_case(number, spec) for number in range(count)]


@pytest.fixture(params=SPECS)
def spec(request: pytest.FixtureRequest) -> DensePhantom:
    return SPECS[request.param]


def test_a_number_is_a_case_whichever_others_are_made(spec: DensePhantom) -> None:
    once = dense_case(5, spec)
    dense_case(4, spec)
    again, other = dense_case(5, spec), dense_case(5, replace(spec, seed=1))
    first, second = once.case.images["image"].array, again.case.images["image"].array
    assert np.array_equal(first, second) and np.array_equal(once.labels, again.labels)
    assert not np.array_equal(first, other.case.images["image"].array)
    assert not np.array_equal(once.labels, other.labels)


def test_masks_boxes_and_label_map_agree(spec: DensePhantom) -> None:
    for made in cases(spec, 12):
        drawn = np.zeros_like(made.labels)
        for finding in made.case.findings:
            if finding.probability == 0:
                assert finding.box is None and finding.mask is None
                continue
            assert finding.mask is not None and finding.box == finding.mask.box
            drawn[finding.mask.within(spec.size)] = spec.classes.index(finding.name) + 1
            assert finding.mask.array.any((1, 2)).all() and finding.mask.array.any((0, 1)).all()
        assert np.array_equal(drawn, made.labels)
        there = {finding.name for finding in made.case.findings if finding.probability == 1}
        none = {finding.name for finding in made.case.findings if finding.probability == 0}
        assert there | none == set(spec.classes) and not there & none


@pytest.mark.parametrize("name", ["lesions", "nodules", "thick slices"])
def test_each_lesion_is_one_component_and_lies_apart(name: str) -> None:
    spec = SPECS[name]
    found = 0
    for made in cases(spec, 40):
        placed = [finding for finding in made.case.findings if finding.mask is not None]
        assert ndimage.label(made.labels > 0, np.ones((3, 3, 3)))[1] == len(placed) <= spec.count[1]
        edges = made.labels.copy()
        inner = tuple(slice(1, -1) if n > 1 else slice(None) for n in spec.size)
        edges[inner] = 0
        assert not edges.any() or "spiculated" in spec.classes, "a lesion is cut by the border"
        found += len(placed)
    assert found > 40


def test_some_nodules_are_three_voxels_wide() -> None:
    widths = [
        finding.mask.array.shape for made in cases(NODULES, 60) for finding in made.case.findings if finding.mask
    ]
    smallest = np.mean([width == (3, 3, 3) for width in widths])
    assert NODULES.smallest - 0.1 < smallest < NODULES.smallest + 0.2
    assert max(max(width) for width in widths) > 7


def test_the_width_of_a_lesion_is_its_diameter() -> None:
    """A ball of 9 pixels has the volume of one; between thick slices it is 9 / 2.5 slices high."""
    fixed = replace(SPECS["thick slices"], diameter=(9.0, 9.0), normal=0.0, count=(1, 1), vessels=0)
    for made in cases(fixed, 10):
        mask = next(finding.mask for finding in made.case.findings if finding.mask is not None)
        depth, height, width = mask.array.shape
        assert depth in (3, 4) and {height, width} <= {8, 9}
        assert mask.array.sum() * 2.5 == pytest.approx(np.pi / 6 * 9**3, rel=0.12)


def test_classes_look_as_they_are_named() -> None:
    """Bright nodules, dark cysts, bright spicules that fill less of their box."""
    spec = replace(LESIONS, vessels=0, count=(1, 1), normal=0.0, diameter=(15.0, 15.0))
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in spec.classes}
    for made in cases(spec, 60):
        image = made.case.images["image"].array[0, 0].astype(float)
        finding = next(f for f in made.case.findings if f.mask is not None)
        mask = finding.mask.within(spec.size)
        ring = ndimage.binary_dilation(mask, np.ones((1, 9, 9))) & ~ndimage.binary_dilation(mask, np.ones((1, 3, 3)))
        seen[finding.name].append((image[mask].mean() - image[ring].mean(), finding.mask.array.mean()))
    assert min(len(found) for found in seen.values()) > 8
    assert all(step > 0 for step, _ in seen["nodule"] + seen["spiculated"])
    assert all(step < 0 for step, _ in seen["cyst"])
    assert np.mean([fill for _, fill in seen["nodule"]]) == pytest.approx(np.pi / 4, abs=0.05)
    assert np.mean([fill for _, fill in seen["spiculated"]]) < 0.65


def test_contrast_is_in_deviations_of_the_noise() -> None:
    """The same patient twice: what differs is the noise alone, sqrt(2) deviations of it; the contrast is stated."""
    spec = replace(NODULES, contrast=(6.0, 6.0), texture=0.0, vessels=0, normal=0.0, count=(1, 1))
    spec = replace(spec, diameter=(9.0, 9.0), cases_per_patient=2.0)
    first, second = cases(spec, 2)
    assert first.case.patient == second.case.patient and np.array_equal(first.labels, second.labels)
    one, two = (made.case.images["image"].array[0, 0].astype(float) for made in (first, second))
    noise = (one - two).std() / np.sqrt(2)
    inner = ndimage.binary_erosion(first.labels > 0, np.ones((3, 3, 3)))
    contrast = (one + two)[inner].mean() / 2 - (one + two)[first.labels == 0].mean() / 2
    assert contrast / noise == pytest.approx(6, rel=0.05)


def test_shares_are_those_stated() -> None:
    made = cases(replace(LESIONS, size=(1, 32, 32), diameter=(3.0, 5.0), cases_per_patient=1.5), 300)
    patients = {case.case.patient: case for case in made}
    assert abs(300 / len(patients) - 1.5) < 0.2
    assert len({(case.case.patient, case.split) for case in made}) == len(patients)
    normal = [not case.labels.any() for case in patients.values()]
    assert abs(np.mean(normal) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(patients))
    names = [finding.name for case in made for finding in case.case.findings if finding.probability == 1]
    assert min(names.count(name) for name in LESIONS.classes) > len(names) / 5


def test_geometry_is_the_one_asked_for() -> None:
    made = dense_case(0, SPECS["thick slices"])
    image = made.case.images["image"]
    assert image.spacing == pytest.approx((2.5, 1.0, 1.0))
    middle = (np.array(image.size)[::-1] - 1) / 2
    assert np.allclose(image.to_patient(middle[None]), 0)
    # From head to foot, from the right to the left, from front to back (LPS).
    assert np.allclose(image.to_patient(middle[None] + [0, 0, 1]), [[0, 0, -2.5]])
    assert np.allclose(image.to_patient(middle[None] + [1, 1, 0]), [[1, 1, 0]])
    assert isinstance(dense_case(0, LESIONS).case.images["image"].geometry, NoGeometry)


def test_labels_on_another_grid_are_the_same_organ() -> None:
    """Each voxel of the image, looked up through both affines, is of the class that the image's own map says."""
    spec = replace(ORGAN, label_spacing=(1.0, 0.75, 0.75))
    for made in cases(spec, 4):
        image, outline = made.case.images["image"], made.outline
        assert isinstance(image.geometry, Affine) and isinstance(outline.geometry, Affine)
        assert outline.size != image.size and np.linalg.det(outline.geometry.matrix) > 0 > np.linalg.det(
            image.geometry.matrix
        )
        z, y, x = np.indices(spec.size).reshape(3, -1)
        there = image.to_patient(np.stack([x, y, z], -1).astype(float))
        back = np.linalg.inv(outline.geometry.matrix)
        at = np.rint(there @ back[:3, :3].T + back[:3, 3]).astype(int)
        found = outline.array[0, 0][tuple(np.clip(at[:, ::-1], 0, np.array(outline.size) - 1).T)].reshape(spec.size)
        for value in (1, 2):
            same = ((found == value) & (made.labels == value)).sum()
            assert 2 * same / ((found == value).sum() + (made.labels == value).sum()) > 0.9
        volume = [(labels == 1).sum() * step for labels, step in ((made.labels, 2.0), (outline.array, 0.5625))]
        assert volume[0] == pytest.approx(volume[1], rel=0.03)


def test_organ_is_two_parts_that_touch() -> None:
    for made in cases(ORGAN, 10):
        assert set(np.unique(made.labels)) == {0, 1, 2}
        head = ndimage.binary_dilation(made.labels == 1)
        assert (head & (made.labels == 2)).any()
        assert ndimage.label(made.labels)[1] == 1


def test_detectability_is_that_of_the_matched_filter() -> None:
    """In many images the outputs of the prewhitened filter with and without the smallest nodule lie d' apart."""
    spec = replace(NODULES, size=(16, 32, 32), diameter=(3.0, 6.0))
    size = spec.size
    centre = np.floor(np.array(size) / 2)
    signal = anatomy.lesion(keys(0), size, centre, (3.0, 3.0), 0.0).filled()
    signal = ndimage.gaussian_filter(spec.contrast[0] * signal, 0.6, mode="wrap")
    impulse = np.zeros(size)
    impulse[0, 0, 0] = 1
    blur = np.abs(np.fft.fftn(ndimage.gaussian_filter(impulse, 0.6, mode="wrap"))) ** 2
    frequency = np.sqrt(sum(f**2 for f in np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij")))
    tissue = np.where(frequency > 0, np.maximum(frequency, 1e-9) ** -3, 0)
    spectrum = 1 + spec.texture**2 * blur * tissue / tissue.mean()
    template = np.fft.ifftn(np.fft.fftn(signal) / spectrum).real
    outputs = []
    for number in range(200):
        background = spec.texture * anatomy.texture(keys(number), size)
        background = ndimage.gaussian_filter(background, 0.6, mode="wrap")
        outputs.append((template * (background + white(keys(number), "noise", signal.size)[0].reshape(size))).sum())
    found = (template * signal).sum() / np.std(outputs)
    # The deviation of a deviation of 200 is 5 %.
    assert found == pytest.approx(detectability(spec), rel=0.15)


def test_the_smallest_nodules_can_be_found_by_construction() -> None:
    """The goal of detection in volumes, sensitivity 0.95 at one false positive, is possible even for the faintest."""
    assert searched_sensitivity(NODULES) > 0.98
    d = detectability(NODULES)
    places = 32 * 64 * 64
    assert searched_sensitivity(NODULES) == pytest.approx(stats.norm.cdf(d + stats.norm.ppf(1 / places)))
    assert searched_sensitivity(replace(NODULES, contrast=(1.0, 1.0))) < 0.1
    with pytest.raises(Problem, match="detectability"):
        detectability(ORGAN)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("classes", ("nodule", "elephant")),
        ("classes", ()),
        ("classes", ("cyst", "cyst")),
        ("size", (1, 8, 64)),
        ("spacing", (0.0, 1.0, 1.0)),
        ("normal", 1.0),
        ("count", (3, 1)),
        ("diameter", (9.0, 5.0)),
        ("diameter", (9.0, 60.0)),
        ("smallest", 2.0),
        ("contrast", (0.0, 1.0)),
        ("vessels", -1),
        ("label_spacing", (1.0, 1.0, 1.0)),
        ("cases_per_patient", 3.0),
        ("splits", (0.5, 0.0, 0.0, 0.0)),
    ],
)
def test_what_cannot_be_made_is_said(option: str, value: object) -> None:
    with pytest.raises(Problem, match=option):
        replace(LESIONS, **{option: value})
    with pytest.raises(Problem, match="two parts"):
        replace(ORGAN, classes=("head",))
    assert Mask.cropped(dense_case(1, ORGAN).labels > 0).array.any()
