import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from osler import phantom
from osler.case import Source
from osler.catalog import find
from osler.draws import keys
from osler.phantom import Phantom, PhantomCase, detectability, phantom_case, write_phantom
from osler.problem import Problem

TWO = Phantom(size=32, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(5.0, 7.0))
SMALL = {
    "xray": Phantom("xray", size=32, lesion=(5.0, 8.0)),
    "ct": Phantom("ct", size=20, lesion=(4.0, 6.0)),
    "ultrasound": Phantom("ultrasound", size=32, lesion=(5.0, 8.0)),
}


def cases(spec: Phantom, count: int) -> list[PhantomCase]:
    return [phantom_case(number, spec) for number in range(count)]


@pytest.fixture(params=SMALL)
def spec(request: pytest.FixtureRequest) -> Phantom:
    return SMALL[request.param]


@pytest.fixture(scope="module")
def known() -> tuple[Phantom, list[PhantomCase]]:
    spec = replace(TWO, known=True, contrast=(0.03, 0.03), cases_per_patient=1.0)
    return spec, cases(spec, 400)


def test_ideal_score_is_the_normal_variable_that_theory_says(known: tuple[Phantom, list[PhantomCase]]) -> None:
    """Known exactly in Gaussian noise, the log likelihood ratio is N(-d'^2/2, d'^2) or N(+d'^2/2, d'^2)."""
    spec, made = known
    d = detectability(spec)
    assert 1 < d < 3
    for label, sign in (("normal", -1), ("nodule", 1)):
        scores = [case.score for case in made if case.label == label]
        assert stats.kstest(scores, stats.norm(sign * d**2 / 2, d).cdf).pvalue > 1e-3


def test_auroc_of_the_ideal_observer_is_the_closed_form(known: tuple[Phantom, list[PhantomCase]]) -> None:
    spec, made = known
    truth = stats.norm.cdf(detectability(spec) / np.sqrt(2))
    present = [case.label == "nodule" for case in made]
    auroc = roc_auc_score(present, [case.score for case in made])
    # Hanley and McNeil (1982).
    n, m = sum(present), len(present) - sum(present)
    q1, q2 = truth / (2 - truth), 2 * truth**2 / (1 + truth)
    variance = (truth * (1 - truth) + (n - 1) * (q1 - truth**2) + (m - 1) * (q2 - truth**2)) / (n * m)
    assert abs(auroc - truth) < 3 * np.sqrt(variance)


def test_simpler_observers_are_not_better_than_the_ideal_one(known: tuple[Phantom, list[PhantomCase]]) -> None:
    _, made = known
    present = np.array([case.label == "nodule" for case in made])
    pixels = np.stack([case.case.images["image"].array[0, 0].astype(float) for case in made])
    mask = next(case.mask for case in made if case.label == "nodule")
    disc = (pixels * mask).sum((1, 2, 3))
    blurred = ndimage.gaussian_filter(pixels, (0, 0, 2, 2))[:, mask].max(1)
    ideal = roc_auc_score(present, [case.score for case in made])
    assert 0.6 < roc_auc_score(present, disc) <= ideal + 0.005
    assert roc_auc_score(present, blurred) < ideal


@pytest.mark.parametrize("modality", SMALL)
def test_posterior_of_the_ideal_observer_is_calibrated(modality: str) -> None:
    """Faint lesions in each modality: what it calls 30 % happens in 30 % (an exact likelihood can do no other)."""
    faint = {"xray": 0.04, "ct": 0.03, "ultrasound": 0.06}[modality]
    spec = replace(SMALL[modality], contrast=(faint / 2, faint), cases_per_patient=1.0, age_effect=0.8)
    made = cases(spec, 150)
    posterior = np.array([case.posterior for case in made])
    happened = np.array([[case.label == name for name in spec.classes] for case in made])
    assert np.allclose(posterior.sum(1), 1)
    assert posterior.max(1).mean() < 0.9, "the task should be hard enough to tell"
    # Surprise: what the posterior expects of its own logarithm is what comes.
    logs = np.log(np.maximum(posterior, 1e-12))
    expected, spread = (posterior * logs).sum(1), (posterior * logs**2).sum(1)
    assert abs((logs[happened] - expected).sum()) < 3.5 * np.sqrt((spread - expected**2).sum())
    for group in (np.ones_like(posterior, bool), posterior > 0.5, (posterior > 0.1) & (posterior < 0.5)):
        for k in range(3):
            p, y = posterior[group[:, k], k], happened[group[:, k], k]
            assert abs((y - p).sum()) < 3.5 * np.sqrt((p * (1 - p)).sum())


def test_data_follow_the_distribution_whose_likelihood_is_computed(spec: Phantom) -> None:
    means = phantom._expected(keys(1), keys(2), 1, spec)[0][:2]
    data = phantom._measured(means[0], keys(3), spec)
    ratio = phantom._log_likelihood(data, means[1], spec) - phantom._log_likelihood(data, means[0], spec)
    if spec.modality == "xray":
        scores = (data - means[0]) / np.sqrt(means[0])
        truth = [stats.poisson.logpmf(data, mean).sum() for mean in means]
    elif spec.modality == "ct":
        scores = (data - means[0]) / 60
        truth = [stats.norm.logpdf(data, mean, 60).sum() for mean in means]
    else:
        scores = data / np.sqrt(means[0] / 2)
        truth = [stats.expon.logpdf((data**2).sum(1), scale=mean).sum() for mean in means]
    assert ratio == pytest.approx(truth[1] - truth[0], rel=1e-6)
    assert abs(scores.mean()) < 4 / np.sqrt(scores.size)
    assert abs(scores.var() - 1) < 5 * np.sqrt(2 / scores.size)


def test_age_and_sex_relate_to_class_as_stated() -> None:
    spec = replace(TWO, size=16, age_effect=1.0, sex_effect=2.0, cases_per_patient=1.0)
    made = cases(spec, 300)
    ill = np.array([case.label == "nodule" for case in made])
    age = np.array([case.case.covariates["age"] for case in made], dtype=float)
    male = np.array([case.case.covariates["sex"] == "M" for case in made])
    assert abs(ill.mean() - 0.5) < 4 * 0.5 / np.sqrt(300)
    assert abs(roc_auc_score(ill, age) - stats.norm.cdf(1 / np.sqrt(2))) < 0.1
    odds = (male[ill].mean() / (1 - male[ill].mean())) / (male[~ill].mean() / (1 - male[~ill].mean()))
    assert abs(np.log(odds) - 2) < 4 * np.sqrt(4 * 4 / 300)


def test_a_number_is_a_case_whichever_others_are_made(spec: Phantom) -> None:
    once = phantom_case(5, spec)
    for number in (4, 6):
        phantom_case(number, spec)
    again = phantom_case(5, spec)
    assert np.array_equal(once.case.images["image"].array, again.case.images["image"].array)
    assert (once.score, once.label, once.case.covariates) == (again.score, again.label, again.case.covariates)
    other = phantom_case(5, replace(spec, seed=1))
    assert not np.array_equal(once.case.images["image"].array, other.case.images["image"].array)


def test_mask_and_box_are_where_the_lesion_is(spec: Phantom) -> None:
    """Against the same case without contrast: brighter in the mask (ultrasound: darker), hardly changed outside."""
    sign = -1 if spec.modality == "ultrasound" else 1
    for number in range(30):
        made = phantom_case(number, replace(spec, contrast=(0.8, 0.8)))
        image = made.case.images["image"]
        assert made.mask.shape == image.size
        if made.label == "normal":
            assert not made.mask.any() and len(made.boxes) == 0
            continue
        low, high = made.boxes[0]
        inside = np.argwhere(made.mask)[:, ::-1]
        assert (inside.min(0) - 0.5 == low).all() and (inside.max(0) + 0.5 == high).all()
        assert (low >= -0.5).all() and (high <= np.array(image.size)[::-1] - 0.5).all()
        without = phantom_case(number, replace(spec, contrast=(0.0, 0.0))).case.images["image"]
        added = sign * (image.array[0, 0].astype(float) - without.array[0, 0])
        far = ~ndimage.binary_dilation(made.mask, np.ones((1, 5, 5) if spec.dims == 2 else (5, 5, 5)))
        assert added[made.mask].mean() > 5 * abs(added[far].mean())


def test_lesions_stand_out_from_the_ring_around_them() -> None:
    differences = []
    for made in cases(replace(SMALL["ct"], contrast=(0.8, 1.0)), 40):
        if made.mask.any():
            pixels = made.case.images["image"].array[0, 0].astype(float)
            near = ndimage.binary_dilation(made.mask, np.ones((3, 3, 3)))
            ring = ndimage.binary_dilation(near, np.ones((3, 3, 3)), 2) & ~near
            differences.append(pixels[made.mask].mean() - pixels[ring].mean())
    assert np.mean(np.array(differences) > 0) > 0.9


def test_malignant_lesions_are_less_round() -> None:
    spec = replace(SMALL["xray"], size=64, lesion=(12.0, 14.0))
    share = {"benign": [], "malignant": []}
    for made in cases(spec, 60):
        if made.label in share:
            low, high = made.boxes[0]
            share[made.label].append(made.mask.sum() / np.prod((high - low)[:2]))
    assert np.mean(share["benign"]) == pytest.approx(np.pi / 4, abs=0.06)
    assert np.mean(share["malignant"]) < 0.6


def test_patients_have_one_split_class_age_and_sex() -> None:
    made = cases(replace(TWO, size=16, cases_per_patient=1.5), 240)
    facts = {}
    for case in made:
        fact = (case.split, case.label, case.case.covariates["age"], case.case.covariates["sex"])
        assert facts.setdefault(case.case.patient, fact) == fact
    assert abs(240 / len(facts) - 1.5) < 0.2
    shares = [np.mean([fact[0] == role for fact in facts.values()]) for role in ("train", "validation", "test")]
    assert np.abs(np.array(shares) - [0.6, 0.1, 0.2]).max() < 0.13


def test_second_case_of_a_patient_is_another_image_of_the_same_lesion() -> None:
    first, second = cases(replace(TWO, cases_per_patient=2.0, prevalence=(0.01, 0.99)), 2)
    assert first.case.patient == second.case.patient and first.label == second.label == "nodule"
    assert not np.array_equal(first.case.images["image"].array, second.case.images["image"].array)
    assert abs(first.mask.sum() - second.mask.sum()) <= 8


def test_noise_is_what_is_stated() -> None:
    """In air every pixel of the radiograph counts 3000 quanta / noise^2, give or take the root of it."""
    corners = []
    for made in cases(replace(TWO, size=64, noise=2.0), 40):
        image = made.case.images["image"].array[0, 0, 0].astype(float)
        corners.append(image[-20:, 0] / 65535 * (0.3 + np.log(2 * 750)) - 0.3)
    corners = np.concatenate([corner for corner in corners if np.abs(corner.mean()) < 0.01])
    assert len(corners) > 100
    assert corners.std() == pytest.approx(1 / np.sqrt(750), rel=0.2)


@pytest.mark.parametrize("modality", SMALL)
def test_cohort_on_disk_is_the_cases(modality: str, tmp_path: Path) -> None:
    spec = SMALL[modality]
    folder = write_phantom(tmp_path / "cohort", spec, 5)
    reader = find("formats", "nifti" if spec.dims == 3 else "raster")
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    assert truth["phantom"]["seed"] == spec.seed and len(rows) == len(truth["cases"]) == 5
    for made, row, told in zip(cases(spec, 5), rows, truth["cases"], strict=True):
        assert (row["case"], row["patient"], row["label"]) == (made.case.id, made.case.patient, made.label)
        assert row["split"] == made.split and row["covariate.sex"] == made.case.covariates["sex"]
        assert float(row["covariate.age"]) == made.case.covariates["age"]
        assert told["score"] == made.score and told["boxes"] == made.boxes.tolist()
        image = made.case.images["image"]
        read = reader.read(Source(folder / row["image"]))
        assert read.array.dtype == image.array.dtype and np.array_equal(read.array, image.array)
        assert read.spacing == pytest.approx(image.spacing) if spec.dims == 3 else read.spacing is None
        corner = np.array([[0.0, 0, 0], [3, 2, 1]])
        if spec.dims == 3:
            assert np.allclose(read.to_patient(corner), image.to_patient(corner), atol=1e-3)
        assert np.array_equal(reader.read(Source(folder / row["mask"])).array[0, 0] > 0, made.mask)
    with pytest.raises(Problem, match="not empty"):
        write_phantom(folder, spec, 1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("prevalence", (0.5, 0.5)),
        ("prevalence", (0.5, 0.5, 0.5)),
        ("prevalence", ()),
        ("classes", ("normal", "normal", "x")),
        ("splits", (0.5, 0.0, 0.0, 0.0)),
        ("cases_per_patient", 3.0),
        ("lesion", (9.0, 5.0)),
        ("contrast", (-1.0, 1.0)),
        ("noise", 0.0),
        ("size", 8),
    ],
)
def test_what_cannot_be_made_is_said(option: str, value: object) -> None:
    with pytest.raises(Problem, match=option):
        replace(Phantom(), **{option: value})


def test_there_is_no_closed_form_for_speckle() -> None:
    with pytest.raises(Problem, match="closed form"):
        detectability(replace(SMALL["ultrasound"], known=True))


@pytest.mark.parametrize(("age", "sex", "noise"), [(1.0, 0.5, 1.6), (0.0, 0.8, 3.0), (1.5, 0.0, 3.0)])
def test_the_best_of_image_covariates_and_both(age: float, sex: float, noise: float) -> None:
    """The closed forms against the exact log-likelihoods of many cases."""
    spec = Phantom(
        size=16, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(5.0, 5.0), contrast=(0.06, 0.06),
        known=True, noise=noise, age_effect=age, sex_effect=sex, cases_per_patient=1.0,
    )  # fmt: skip
    made = cases(spec, 1500)
    truth = np.array([one.label == "nodule" for one in made])
    image = np.array([one.log_likelihoods[1] for one in made])
    both = np.array([np.log(one.posterior[1]) - np.log(one.posterior[0]) for one in made])
    expected = phantom.expected_auroc(spec)
    for name, score in (("image", image), ("covariates", both - image), ("both", both)):
        found = roc_auc_score(truth, score.round(9))
        assert found == pytest.approx(expected[name], abs=4 * 0.5 / np.sqrt(1500)), name
    assert expected["both"] > max(expected["image"], expected["covariates"])


def test_the_best_of_the_age_alone_is_that_of_two_gaussians() -> None:
    spec = replace(TWO, known=True, age_effect=1.2, sex_effect=0.0)
    assert phantom.expected_auroc(spec)["covariates"] == pytest.approx(stats.norm.cdf(1.2 / np.sqrt(2)))
    assert phantom.expected_auroc(spec)["image"] == pytest.approx(stats.norm.cdf(detectability(spec) / np.sqrt(2)))
    nothing = replace(TWO, known=True, age_effect=0.0, sex_effect=0.0)
    assert phantom.expected_auroc(nothing)["covariates"] == 0.5
    with pytest.raises(Problem, match="two classes"):
        phantom.expected_auroc(Phantom(known=True))
