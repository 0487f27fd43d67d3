import csv
import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from osler import cohort, data
from osler.loop_phantom import CLASSES, FORMS, NEEDLE, ORDER, LoopPhantom, loop_case, write_loop_phantom
from osler.metrics import auroc
from osler.problem import Problem

MANY = 600


@pytest.fixture(scope="module")
def order():
    return [loop_case(number, ORDER) for number in range(MANY)]


@pytest.fixture(scope="module")
def needle():
    return [loop_case(number, NEEDLE) for number in range(300)]


def area(scores, truth) -> float:
    return auroc.auroc(np.asarray(truth, float), np.asarray(scores, float))


def test_a_loop_depends_on_its_number_only(order):
    assert (loop_case(7, ORDER).case.images["image"].array == order[7].case.images["image"].array).all()
    image = order[0].case.images["image"]
    assert image.array.shape == (16, 1, 1, 32, 32) and image.array.dtype == np.uint8
    assert image.times == pytest.approx([0.04 * k for k in range(16)])


def test_a_shrinking_loop_is_a_growing_one_backwards(order):
    """Steps of the cycle: all but one go the way of the class; backwards, all but one go the other way."""
    for made in order:
        steps = np.diff(made.diameters)
        way = 1 if made.label == "grows" else -1
        assert (np.sign(steps) == way).sum() >= len(steps) - 1
        assert (np.sign(np.diff(made.diameters[::-1])) == -way).sum() >= len(steps) - 1


def test_neither_a_frame_nor_all_frames_without_their_order_tell_the_class(order):
    """The size in any frame, and its mean, smallest and largest over the loop, have one distribution in both."""
    shrinks = np.array([made.label == "shrinks" for made in order])
    sizes = np.array([made.diameters for made in order])
    for frame in (0, 1, 7, 15):
        assert stats.ks_2samp(sizes[shrinks, frame], sizes[~shrinks, frame]).pvalue > 0.001
    ordered = np.sort(sizes, 1)
    for number in (0, 5, 15):
        assert stats.ks_2samp(ordered[shrinks, number], ordered[~shrinks, number]).pvalue > 0.001
    pixels = np.array([made.case.images["image"].array[:, 0, 0] for made in order], float)
    for of in (pixels.mean((1, 2, 3)), pixels[:, 0].max((1, 2)), pixels[:, -1].mean((1, 2)), pixels.max((1, 2, 3))):
        assert abs(area(of, shrinks) - 0.5) < 0.08


def test_the_order_tells_it(order):
    """The sign of the middle step of the brightness, by a plain reader of neighbours."""
    shrinks = np.array([made.label == "shrinks" for made in order])
    light = np.array([made.case.images["image"].array.mean((1, 2, 3, 4)) for made in order])
    assert area(-np.sign(np.diff(light, axis=1)).sum(1), shrinks) > 0.95


def test_the_ideal_observer_of_order_has_its_closed_form():
    """Its score is normal with mean +-d'^2 / 2 and variance d'^2, and its AUROC Phi(d' / sqrt(2))."""
    spec = replace(ORDER, contrast=(0.03, 0.03), size=24, lesion=(4.0, 10.0))
    made = [loop_case(number, spec) for number in range(MANY)]
    shrinks = np.array([one.label == "shrinks" for one in made])
    d, score = np.array([one.detectability for one in made]), np.array([one.score for one in made])
    left = (score - np.where(shrinks, 1, -1) * d**2 / 2) / d
    assert stats.kstest(left, "norm").pvalue > 0.001 and left.std() == pytest.approx(1, abs=0.1)
    expected = stats.norm.cdf(d / np.sqrt(2)).mean()
    assert 0.6 < expected < 0.97 and area(score / d, shrinks) == pytest.approx(expected, abs=0.04)


def test_a_needle_is_in_one_frame_only(needle):
    for made in needle:
        there = np.flatnonzero(made.diameters)
        assert made.planted == (there[0] if made.label == "lesion" else None) and len(there) == (
            made.label == "lesion"
        )
    planted = [made.planted for made in needle if made.planted is not None]
    assert 0.4 < len(planted) / len(needle) < 0.6
    assert stats.kstest(np.array(planted) / 60, "uniform").pvalue > 0.001


def test_the_ideal_observer_finds_the_planted_frame(needle):
    found = [int(np.argmax(made.frame_posterior)) == made.planted for made in needle if made.planted is not None]
    assert np.mean(found) > 0.99
    assert all(sum(made.frame_posterior) == pytest.approx(1) for made in needle)
    assert area([made.score for made in needle], [made.label == "lesion" for made in needle]) > 0.99
    hard = replace(NEEDLE, contrast=(0.05, 0.06), frames=20)
    made = [loop_case(number, hard) for number in range(300)]
    # A likelihood ratio: its mean over the first class is 1, however hard the case is.
    ratios = np.exp([one.score for one in made if one.label == "normal"])
    assert ratios.mean() == pytest.approx(1, abs=4 * ratios.std() / np.sqrt(len(ratios)))


def test_patients_have_one_class_and_one_part():
    spec = replace(ORDER, cases_per_patient=1.5)
    made = [loop_case(number, spec) for number in range(200)]
    patients = {}
    for one in made:
        patients.setdefault(one.case.patient, set()).add((one.label, one.split))
    assert all(len(said) == 1 for said in patients.values())
    assert len(made) / len(patients) == pytest.approx(1.5, abs=0.12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("spec", [replace(ORDER, frames=5), replace(NEEDLE, frames=12)], ids=["order", "needle"])
def test_each_form_is_read_as_it_was_made(tmp_path, form, spec):
    if form in ("avi", "mp4") and importlib.util.find_spec("av") is None:
        pytest.skip("PyAV is an optional extra")
    write_loop_phantom(tmp_path / "c", spec, 30, form)
    found = cohort.read(tmp_path / "c")
    assert found.questions[0].classes == tuple(sorted(CLASSES[spec.kind]))[:: -1 if spec.kind == "needle" else 1]
    truth = json.loads((tmp_path / "c" / "truth.json").read_text())["cases"]
    for number, entry in enumerate(found.entries[:8]):
        made = loop_case(number, spec)
        image = data.the_image(data.read_case(entry))
        off = np.abs(image.array.astype(int) - made.case.images["image"].array)
        assert off.max() == 0 if form != "mp4" else off.mean() < 4
        assert entry.split == made.split and truth[number]["planted"] == made.planted
        if form in ("avi", "mp4"):
            assert image.times == pytest.approx(made.case.images["image"].times, abs=0.001)
    with (tmp_path / "c" / "manifest.csv").open(newline="") as file:
        assert [row["label"] for row in csv.DictReader(file)] == [one["label"] for one in truth]
    with pytest.raises(Problem, match="not empty"):
        write_loop_phantom(tmp_path / "c", spec, 3, form)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 2}, {"size": 4}, {"lesion": (0.5, 3)}, {"lesion": (5, 30)}, {"noise": 0},
        {"prevalence": 1}, {"splits": (1, 1, 0, 0)}, {"gap": 0}, {"contrast": (1, 3)}, {"cases_per_patient": 3},
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(wrong):
    with pytest.raises(Problem, match="cannot be made"):
        LoopPhantom(**wrong)
