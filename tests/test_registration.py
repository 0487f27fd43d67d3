"""A known motion is found and undone; what cannot be registered is said and left out."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

import osler
from osler import cache, cohort, data, modalities, modality_planning, registration, resampling
from osler.formats import nifti
from osler.image import Affine, Image, NoGeometry
from osler.problem import Problem

Matrix = NDArray[np.float64]
# An oblique patient: the axes of the grid are none of the room's.
TURNED = np.eye(4)
TURNED[:3, :3] = Rotation.from_euler("xyz", [8, -5, 20], degrees=True).as_matrix() @ np.diag([1.1, 1.1, 1.6])
TURNED[:3, 3] = [-40, 25, 110]


def body(seed: int, size: tuple[int, int, int] = (36, 52, 48)) -> Image:
    """An ellipsoid in air that is textured inside, no two alike."""
    rng = np.random.default_rng(seed)
    centre = [(n - 1) / 2 for n in size]
    z, y, x = np.meshgrid(*(np.arange(n) - c for n, c in zip(size, centre, strict=True)), indexing="ij")
    radius = np.sqrt((z / centre[0]) ** 2 + (y / centre[1]) ** 2 + (x / centre[2]) ** 2)
    texture = ndimage.gaussian_filter(rng.normal(size=size), 3)
    inside = 300 + 100 * np.tanh(2 * texture / texture.std())
    volume = np.where(radius < 0.75, inside, 0) + rng.normal(0, 5, size)
    return Image(volume[None, None].astype(np.float32), Affine(TURNED))


def motion(seed: int, image: Image, stretch: float = 0.0) -> Matrix:
    """Up to 12 degrees about each axis and 6 mm along each, about the middle."""
    rng = np.random.default_rng(seed + 1000)
    made = np.eye(4)
    made[:3, :3] = Rotation.from_rotvec(np.radians(rng.uniform(-12, 12, 3))).as_matrix()
    made[:3, :3] = made[:3, :3] @ np.diag(1 + rng.uniform(-stretch, stretch, 3))
    middle = image.to_patient((np.array(image.size[::-1]) - 1) / 2)
    made[:3, 3] = middle - made[:3, :3] @ middle + rng.uniform(-6, 6, 3)
    return made


def moved(image: Image, by: Matrix, *, inverted: bool = False) -> Image:
    """The same body after the motion, on a grid of its own, and as another contrast shows it."""
    shown = image.array
    if inverted:
        shown = np.where(shown > 150, 700 - 1.2 * shown + 0.0006 * shown**2, shown).astype(np.float32)
    finer = TURNED @ np.diag([0.9, 0.9, 0.9, 1.0])
    finer[:3, 3] += [3, -4, 2]
    away = Image(shown, Affine(by @ TURNED))
    return resampling.onto(away, Affine(finer), (42, 60, 56))


def error(found: Matrix, true: Matrix, image: Image) -> float:
    """How far points of the body come to lie from where they belong, in voxels of 1.1 mm, on average."""
    points = np.argwhere(image.array[0, 0] > 150)[::11, ::-1].astype(float)
    places = np.c_[image.to_patient(points), np.ones(len(points))]
    return float(np.linalg.norm((places @ (found - true).T)[:, :3], axis=1).mean() / 1.1)


@pytest.fixture(autouse=True)
def _sitk() -> None:
    pytest.importorskip("SimpleITK")


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_known_motion_is_found(seed: int, inverted: bool) -> None:
    image = body(seed)
    true = motion(seed, image)
    found = registration.register({"a": image, "b": moved(image, true, inverted=inverted)}, "a")
    assert not found.failed
    assert error(found.motions["b"], true, image) < 0.5
    assert found.images["b"].size == image.size
    assert (found.images["b"].geometry.matrix == TURNED).all()  # type: ignore[union-attr]
    assert "was registered onto a (turned by" in found.notes[0]
    if not inverted:
        inside = ndimage.binary_erosion(image.array[0, 0] > 150, iterations=3)
        both = image.array[0, 0][inside], found.images["b"].array[0, 0][inside]
        assert np.corrcoef(*both)[0, 1] > 0.95


@pytest.mark.slow
def test_a_stretched_body_needs_an_affine_motion() -> None:
    image = body(9)
    true = motion(9, image, stretch=0.08)
    other = moved(image, true, inverted=True)
    rigid = registration.register({"a": image, "b": other}, "a")
    affine = registration.register({"a": image, "b": other}, "a", "affine")
    assert error(affine.motions["b"], true, image) < 0.7
    assert error(affine.motions["b"], true, image) < 0.5 * error(rigid.motions["b"], true, image)


@pytest.mark.slow
def test_unrelated_volumes_are_refused() -> None:
    """Bodies of one shape, whose insides have nothing to do with each other."""
    refused = 0
    for seed in range(5):
        found = registration.register({"a": body(seed), "b": moved(body(seed + 50), np.eye(4))}, "a")
        refused += found.failed == ("b",)
        assert ("b" in found.images) == (not found.failed)
    assert refused >= 4
    assert "b could not be registered onto a and was left out: " in found.notes[0]


def test_the_same_bits_come_twice() -> None:
    image = body(3)
    other = moved(image, motion(3, image))
    found = []
    with cache.bypassed():
        for _ in range(2):
            registration._recent.clear()
            found.append(registration.register({"a": image, "b": other}, "a"))
    first, second = found
    assert (first.motions["b"] == second.motions["b"]).all()
    assert (first.images["b"].array == second.images["b"].array).all()


def test_without_a_place_in_the_patient_middles_are_put_on_each_other() -> None:
    image = Image(body(4).array, NoGeometry())
    shifted = Image(np.roll(image.array, (2, -3, 4), (2, 3, 4)), NoGeometry())
    found = registration.register({"a": image, "b": shifted}, "a")
    assert np.abs(found.motions["b"][:3, 3] - [4, -3, 2]).max() < 0.3
    assert isinstance(found.images["b"].geometry, NoGeometry)


def test_what_lies_on_the_grid_or_shares_the_space_is_not_registered() -> None:
    image = body(5)
    image = Image(image.array, Affine(TURNED, "1.2.3"))
    finer = TURNED @ np.diag([0.8, 0.8, 0.8, 1.0])
    other = Image(body(6).array, Affine(finer, "1.2.3"))
    same = Image(image.array * 2, Affine(TURNED.copy()))
    found = registration.register({"a": image, "b": other, "c": same}, "a")
    assert found.images["c"] is same
    assert found.notes == ("b was interpolated on the grid of a, with which it shares a space.",)
    expected = resampling.onto(other, Affine(TURNED, "1.2.3"), image.size, outside=float(other.array.min()))
    assert np.allclose(found.images["b"].array, expected.array)
    assert not found.motions


def test_a_motion_that_no_patient_makes_is_refused() -> None:
    """One that shares nothing with the reference, far away from it."""
    image = body(7)
    far = np.eye(4)
    far[:3, :3] = Rotation.from_euler("z", 70, degrees=True).as_matrix()
    assert "not plausible (turned by 70 degrees" in registration.judged(far, image, image, "rigid")
    away = np.eye(4)
    away[0, 3] = 0.45 * 52 * 1.6
    assert "of the body lies in the other image" in registration.judged(away, image, image, "rigid")


def test_bad_input_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    image = body(8)
    with pytest.raises(Problem, match="no image 'c'"):
        registration.register({"a": image}, "c")
    with pytest.raises(Problem, match="b is no still grey volume"):
        registration.register({"a": image, "b": Image(np.zeros((1, 1, 1, 30, 30)))}, "a")
    with pytest.raises(Problem, match="not numbers"):
        registration.register({"a": image, "b": Image(np.full((1, 1, 8, 30, 30), np.inf))}, "a")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(Problem, match="needs SimpleITK"):
        registration.register({"a": image, "b": body(9, (20, 30, 30))}, "a")


def test_what_was_found_is_kept_and_another_image_is_looked_at_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OSLER_HOME", str(tmp_path))
    image = body(11, (20, 28, 26))
    other = moved(image, motion(11, image))
    first = registration.register({"a": image, "b": other}, "a")
    cache.settle()
    registration._recent.clear()
    looked = []
    monkeypatch.setattr(registration, "judged", lambda *_: looked.append(1) or "")
    again = registration.register({"a": image, "b": other}, "a")
    assert not looked and (again.motions["b"] == first.motions["b"]).all()
    registration.register({"a": image, "b": other}, "a", "affine")
    registration.register({"a": image, "b": replace(other, array=other.array * 2)}, "a")
    elsewhere = replace(other, geometry=Affine(np.diag([1, 1, 2.0, 1.0])))
    registration.register({"a": image, "b": elsewhere}, "a")
    assert len(looked) == 3


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two series a case, the second after a motion and on a grid of its own; of two cases it is someone else's."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = ["case,label,image.t1,image.t2"]
    for seed in range(14):
        image = body(seed, (20, 28, 26))
        of = body(seed + 100, (20, 28, 26)) if seed < 2 else image
        nifti.write(image, folder / f"{seed}-t1.nii.gz")
        nifti.write(moved(of, motion(seed, image), inverted=True), folder / f"{seed}-t2.nii.gz")
        lines.append(f"c{seed},{'ab'[seed % 2]},{seed}-t1.nii.gz,{seed}-t2.nii.gz")
    (folder / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_it_stands_in_the_straight_line(pairs: Path, tmp_path: Path) -> None:
    """Planned where grids differ, done in training, evaluation and diagnosis; what failed is said and not used."""
    told: list[str] = []
    small = {
        "image": {"size": [12, 16, 16], "prepare": []},
        "network": {"options": {"width": 4}},
        "training": {"epochs": 1, "folds": 2, "batch": 4},
    }
    made = osler.train(pairs, tmp_path / "run", small, say=told.append)
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert made.recipe.image.register == "rigid"
    assert "in 14 of 14 sampled cases they lie on grids of their own" in text
    line = next(line for line in told if "could not be registered" in line)
    assert line == "t2 could not be registered in 2 of 14 cases: it was not used there"
    result = osler.evaluate(
        tmp_path / "run", pairs, tmp_path / "evaluation", out_of_fold=True, draws=20, say=told.append
    )
    assert line in result["notes"] and line in made.card["notes"]
    # As it lies, the second image is far from the first; in the line it is where it belongs.
    images = {name: pairs / f"5-{name}.nii.gz" for name in ("t1", "t2")}
    image = data.the_image(osler.read_case(images), made.recipe.image)
    first, second = (one.array[0, 0] for one in image.together if one is not None)
    inside = ndimage.binary_erosion(first > 150, iterations=3)
    assert abs(np.corrcoef(first[inside], second[inside])[0, 1]) > 0.9
    moved_one = osler.diagnose(made, osler.read_case(images))
    assert any("t2 was registered onto t1 (turned by" in note for note in moved_one.notes)
    strange = osler.diagnose(made, osler.read_case({name: pairs / f"0-{name}.nii.gz" for name in ("t1", "t2")}))
    assert any("t2 could not be registered onto t1 and was left out" in note for note in strange.notes)
    assert any("The answer rests on t1; missing: t2" in note for note in strange.notes)
    # What is drawn under a map is the image on the grid that was looked at: the files have other slices.
    osler.write_diagnosis(moved_one, osler.read_case(images), made, tmp_path / "page")
    drawn = modalities.called(made, image, "t2")
    assert drawn.size == (20, 28, 26) != osler.read_case(images).images["t2"].size
    # A case that was seen is known by any of its files, however these were brought onto each other.
    found = cohort.read(pairs)
    alone_of = [replace(e, images={"t2": e.images["t2"]}) for e in found.entries]
    plain = data.load(alone_of, replace(made.recipe.image, register=""))
    both = data.load(found.entries, made.recipe.image)
    assert all(one[-1] in two for one, two in zip(plain.images, both.images, strict=True))
    # Where the first is missing there is nothing to come onto.
    alone = data.the_image(osler.read_case({"t2": images["t2"]}), made.recipe.image)
    assert alone.together[0] is None and not any("registered" in note for note in alone.notes)


def test_what_is_no_still_volume_stays_as_it_lies() -> None:
    image = body(12, (20, 28, 26))
    other = moved(image, motion(12, image))
    flat, loop = Image(image.array[:, :, :2], image.geometry), Image(np.repeat(other.array, 3, 0), other.geometry)
    found, notes = registration.onto_first({"a": image, "flat": flat, "loop": loop, "b": other}, "rigid")
    assert list(found) == ["a", "flat", "loop", "b"] and found["flat"] is flat and found["loop"] is loop
    assert len(notes) == 1 and found["b"].size == image.size
    assert registration.onto_first({"flat": flat, "b": other}, "rigid") == ({"flat": flat, "b": other}, ())
    assert not registration.apart({"a": image, "flat": flat, "loop": loop})


def test_it_is_planned_for_volumes_that_lie_apart_only(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"a": body(1), "b": body(2)}
    apart = same | {"b": moved(body(2), np.eye(4))}
    assert not registration.apart(same) and registration.apart(apart)
    assert not registration.apart(apart | {"a": Image(np.zeros((1, 1, 5, 8, 8)))})
    assert not registration.apart({"a": body(1)})
    assert modality_planning.register(3, 9, 0)[0] == modality_planning.register(2, 9, 9)[0] == ""
    assert modality_planning.register(3, 9, 2)[0] == "rigid"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    kind, why = modality_planning.register(3, 9, 2)
    assert not kind and "osler[registration]" in why
