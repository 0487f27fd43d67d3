"""Shares sum to what they share, are Shapley's, and say nothing of what is not known."""

import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from osler import diagnosis, recipe, shares, targets
from osler.calibration import Calibrated
from osler.case import Case
from osler.image import Image
from osler.model import Model, Network
from osler.recipe import CovariatePlan

PLAN = CovariatePlan(
    ("age", "sex", "crp"),
    kinds={"age": "number", "sex": "category", "crp": "number"},
    ranges={"age": (0, 120), "crp": (0, 500)},
    seen={"age": (20, 90), "crp": (0, 200)},
    categories={"sex": ("F", "M")},
)


def made(
    fusion: str = "concat",
    columns: CovariatePlan = PLAN,
    networks: int = 2,
    frames: int = 1,
    views: int = 2,
    **question: object,
) -> Model:
    asked = {"kind": "multiclass", "classes": ["normal", "sick"], **question}
    content = {
        "image": {"size": [1, 16, 16], "frames": frames},
        "tasks": {"label": asked},
        "network": {
            "backbone": "resnet",
            "options": {"depth": 18, "width": 4},
            "fusion": fusion,
            "sequence": "attention" if frames > 1 else "mean",
        },
        "inference": {"views": views},
    }
    plan = recipe.build({**content, "covariates": vars(columns)})
    found = []
    for seed in range(networks):
        torch.manual_seed(seed)
        network = Network(plan)
        assert network.persons is not None and network.fusion is not None
        for weight in network.fusion.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.3)
        network.persons.mean[:] = torch.tensor([55.0, 0.0, 20.0][: len(columns.columns)])
        network.persons.spread[:] = torch.tensor([11.0, 1.0, 30.0][: len(columns.columns)])
        found.append(network.eval())
    model = Model(plan, found)
    size = model.tasks["label"].outputs
    fitted = Calibrated(
        temperature=np.array([1.7]), bias=np.linspace(-0.3, 0.2, size),
        bootstrap=np.concatenate([[1.7], np.linspace(-0.3, 0.2, size)])[None],
        quantile=np.array([0.9]), coverage=np.array([0.9]),
        threshold=np.full(len(model.tasks["label"].question.classes), 0.5),
    )  # fmt: skip
    model.calibration = {f"task.0.{key}": value for key, value in vars(fitted).items()}
    model.calibration["mixing.0"] = np.array([0.7, 0.5, 0.4])
    return model


def case(**covariates: float | str | None) -> Case:
    pixels = np.random.default_rng(0).normal(size=(1, 1, 1, 16, 16)).astype(np.float32)
    return Case("c", "p", {"image": Image(pixels)}, covariates=covariates)


def by_orders(values: NDArray[np.float64], players: int) -> list[float]:
    """Shapley's values as the mean over all orders."""
    added = np.zeros(players)
    for order in itertools.permutations(range(players)):
        known = 0
        for player in order:
            added[player] += values[known | 1 << player] - values[known]
            known |= 1 << player
    return list(added / math.factorial(players))


@pytest.mark.parametrize("players", [1, 2, 3, 5])
def test_shapley_is_the_mean_over_all_orders(players: int) -> None:
    values = np.random.default_rng(players).normal(size=2**players)
    found = shares.shapley(values)
    assert found == pytest.approx(by_orders(values, players), abs=1e-12)
    assert found.sum() == pytest.approx(values[-1] - values[0], abs=1e-12)


def test_shapley_of_a_sum_is_its_parts_and_of_a_gate_is_shared() -> None:
    parts = np.array([0.5, -2.0, 3.0])
    sets = (np.arange(8)[:, None] >> np.arange(3)) & 1
    assert shares.shapley(sets @ parts) == pytest.approx(parts)
    gate = (sets[:, 0] & sets[:, 1]).astype(float)
    assert shares.shapley(gate) == pytest.approx([0.5, 0.5, 0.0])


@pytest.mark.parametrize("fusion", ["concat", "film"])
@pytest.mark.parametrize("method", ["shapley", "integrated_gradients"])
@pytest.mark.parametrize(
    "question", [{}, {"classes": ["a", "b", "c"]}, {"kind": "ordinal", "classes": ["a", "b", "c"]}]
)
def test_shares_sum_to_the_change_in_the_log_odds(fusion: str, method: str, question: dict[str, object]) -> None:
    model = made(fusion, **question)
    if "kind" in question:
        model.calibration["task.0.bias"] = np.array([0.3, -0.4])
        model.calibration["task.0.bootstrap"] = np.array([[1.7, 0.3, -0.4]])
    known = case(age=71.0, sex="F")
    found = diagnosis.diagnose(model, known).answers["label"].findings
    number = max(range(len(found)), key=lambda k: found[k].probability or 0)
    p = found[number].probability
    assert p is not None
    row = diagnosis.covariates.encode(PLAN, known.covariates).row
    pixels = diagnosis.data.prepare(known.images["image"], model.recipe.image)
    asked = shares.Known(pixels, np.zeros(1, np.float32), row)
    fitted = diagnosis.calibrated(model, "label"), diagnosis.mixing(model, "label")
    told = shares.of_answer(model, asked, ("label", number), fitted, method)  # type: ignore[arg-type]
    assert sum(one.share for one in told.shares) == pytest.approx(told.all - told.nothing, abs=1e-5)
    assert told.all == pytest.approx(math.log(p / (1 - p)), abs=1e-4)
    assert {one.source: one.value for one in told.shares} == {"image": None, "age": 71, "sex": "F", "crp": None}
    assert told.shares[3].share == 0
    assert all(abs(one.share) > 1e-4 for one in told.shares[:3])


@pytest.mark.parametrize("question", [{}, {"kind": "regression", "classes": ["size"]}])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("known", [{"age": 71.0, "sex": "F"}, {}])
def test_a_map_explains_the_answer_that_was_given(
    frames: int, known: dict[str, float | str], question: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of the image is left, what is explained is the answer: both, image and covariates as they count."""
    model = made(networks=1, frames=frames, views=1, **question)
    if question:
        model.calibration["mixing.0"] = np.array([0.2, 0.5, 0.3])
        model.calibration["task.0.temperature"], model.calibration["task.0.bias"] = np.ones(1), np.zeros(1)
        model.networks[0].scale("label").copy_(torch.tensor([30.0, 7.0]))
    monkeypatch.setattr(targets, "MOST", 0.0)
    pixels = np.random.default_rng(0).normal(size=(frames, 1, 1, 16, 16)).astype(np.float32)
    asked_of = Case("c", "p", {"image": Image(pixels)}, covariates=known)
    fitted = diagnosis.calibrated(model, "label", "" if known else "image")
    for finding in diagnosis.diagnose(model, asked_of).answers["label"].findings:
        asked = targets.ask(model, asked_of, finding)
        target = asked.targets[0]
        assert isinstance(target, targets.OfPart if frames > 1 else targets.OfClass)
        [said] = asked.answers([torch.ones(1, 16, 16)])
        score = float(target.score(target.levels(asked.inputs[0]), 1).detach())
        if question:
            # Of a number, in standard deviations.
            assert said == pytest.approx(((finding.value or 0) - 30) / 7, abs=1e-5)
            assert score == pytest.approx(said, abs=1e-5)
        else:
            p, more = finding.probability or 0, np.diff(fitted.bias)[0] * (1 if target.number else -1)
            assert said == pytest.approx(p, abs=1e-5)
            assert score == pytest.approx(fitted.temperature[0] * (math.log(p / (1 - p)) - more), abs=1e-4)


def test_where_evidence_is_only_added_both_methods_give_the_differences() -> None:
    model = made("concat", networks=1)
    plan = recipe.to_dict(model.recipe)
    plan["network"]["fusion_options"] = {"width": 0}
    model.recipe = recipe.build(plan)
    torch.manual_seed(0)
    model.networks = [Network(model.recipe).eval()]
    model.calibration["mixing.0"] = np.array([1.0, 0.0, 0.0])
    known = case(age=50.0, sex="M", crp=4.0)
    row = diagnosis.covariates.encode(PLAN, known.covariates).row
    pixels = diagnosis.data.prepare(known.images["image"], model.recipe.image)
    asked = shares.Known(pixels, np.zeros(1, np.float32), row)
    fitted = diagnosis.calibrated(model, "label"), diagnosis.mixing(model, "label")
    one, other = (
        shares.of_answer(model, asked, ("label", 1), fitted, way) for way in ("shapley", "integrated_gradients")
    )  # type: ignore[arg-type]
    assert [s.share for s in one.shares] == pytest.approx([s.share for s in other.shares], abs=1e-9)
    assert one.method == "shapley" and other.method == "integrated_gradients"
    # By hand: the head's weights times how far the vector of the age lies from that of no age.
    network = model.networks[0]
    assert network.persons is not None
    weights = next(network.heads[0].parameters()).detach().double().numpy()
    far = (
        (network.persons.each(torch.from_numpy(row[None]))[0, 0] - network.persons.missing[0])
        .detach()
        .double()
        .numpy()
    )
    start = network.sequence.features
    said = (weights[1] - weights[0])[start : start + len(far)] @ far / 1.7
    assert one.shares[1].share == pytest.approx(said, rel=1e-4)


def test_many_covariates_are_shared_by_integrated_gradients() -> None:
    names = tuple(f"x{n}" for n in range(12))
    plan = CovariatePlan(names, kinds=dict.fromkeys(names, "number"), ranges=dict.fromkeys(names, (-9.0, 9.0)),
                         seen=dict.fromkeys(names, (-9.0, 9.0)))  # fmt: skip
    content = {"image": {"size": [1, 16, 16]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}},
               "network": {"options": {"width": 4}}, "covariates": vars(plan)}  # fmt: skip
    built = recipe.build(content)
    torch.manual_seed(0)
    whole = Model(built, [Network(built).eval()])
    found = diagnosis.diagnose(whole, case(**dict.fromkeys(names, 1.0))).shares[0]
    assert found.method == "integrated_gradients"
    assert sum(one.share for one in found.shares) == pytest.approx(found.all - found.nothing, abs=1e-5)


def test_nothing_known_of_the_person_is_not_shared_out() -> None:
    assert diagnosis.diagnose(made(), case()).shares == ()


def test_a_number_is_shared_out_in_its_own_unit() -> None:
    model = made(kind="regression", classes=["volume"], unit="ml")
    model.calibration["mixing.0"] = np.array([0.5, 0.3, 0.2])
    model.calibration["task.0.temperature"], model.calibration["task.0.bias"] = np.ones(1), np.zeros(1)
    for network in model.networks:
        network.scale("label").copy_(torch.tensor([30.0, 7.0]))
    known = case(age=60.0)
    found = diagnosis.diagnose(model, known)
    told = found.shares[0]
    assert told.unit == "ml"
    assert told.all == pytest.approx(found.answers["label"].findings[0].value, abs=1e-3)
    assert sum(one.share for one in told.shares) == pytest.approx(told.all - told.nothing, abs=1e-5)
