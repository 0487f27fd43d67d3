"""What a covariate may be is learned from training cases, checked at diagnosis, and never silently filled in."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osler import covariates, recipe
from osler.case import Entry
from osler.covariates import Encoder, encode
from osler.problem import Problem
from osler.recipe import CovariatePlan

PEOPLE: list[dict[str, float | str | None]] = [
    {"age": 40.0 + n, "sex": "FM"[n % 2], "crp [mg/l]": None if n % 3 else float(n), "stage": float(n % 4)}
    for n in range(40)
]
COLUMNS = ("age", "sex", "crp [mg/l]")


def entries(people: list[dict[str, float | str | None]]) -> list[Entry]:
    return [Entry(f"c{n}", f"p{n}", {}, covariates=one) for n, one in enumerate(people)]


@pytest.fixture(scope="module")
def plan() -> CovariatePlan:
    return covariates.learn(CovariatePlan(COLUMNS), entries(PEOPLE))[0]


def test_what_is_learned(plan: CovariatePlan) -> None:
    assert plan.kinds == {"age": "number", "sex": "category", "crp [mg/l]": "number"}
    assert plan.units["age"] == "years" and plan.units["crp [mg/l]"] == "mg/l"
    assert plan.categories == {"sex": ("F", "M")}
    assert plan.ranges["age"] == (0, 120)
    assert plan.seen == {"age": (40, 79), "crp [mg/l]": (0, 39)}
    # From 0 to 39: as far again on both sides, but not below 0, where none was.
    assert plan.ranges["crp [mg/l]"] == (0, 78)


def test_what_is_given_stays() -> None:
    given = CovariatePlan(("age", "stage"), kinds={"stage": "category"}, ranges={"age": (18, 90)})
    plan, _ = covariates.learn(given, entries(PEOPLE))
    assert plan.ranges["age"] == (18, 90)
    assert plan.categories["stage"] == ("0", "1", "2", "3")
    assert encode(plan, {"stage": 2.0}).row[1] == 2


def test_an_impossible_age_in_training_is_said_and_does_not_widen_the_range() -> None:
    people = [{"age": 50.0 + n % 30} for n in range(200)]
    plan, notes = covariates.learn(CovariatePlan(("age",)), entries([*people, {"age": 560.0}]))
    assert plan.ranges["age"] == (0, 120) and plan.seen["age"] == (50, 79)
    assert notes == ["1 training values of age are no numbers between 0 and 120: missing"]
    rows = covariates.table(plan, entries([{"age": 560.0}, {"age": 60.0}]))
    assert np.isnan(rows[0, 0]) and rows[1, 0] == 60


def test_an_age_in_days_is_no_age_in_years() -> None:
    plan, _ = covariates.learn(CovariatePlan(("age",)), entries([{"age": 100.0 * n} for n in range(30)]))
    assert plan.ranges["age"] == (0, 5800)
    assert plan.units["age"] == ""


@pytest.mark.parametrize(
    "name",
    [
        "age_months",
        "age [days]",
        "gestational age weeks",
        "Gestational_Age",
        "age_group",
        "temperature_f",
        "weight_lbs",
    ],
)
def test_a_name_that_says_another_unit_has_no_well_known_ends(name: str) -> None:
    numbers = np.linspace(20, 40, 50)
    assert covariates.plausible(name, numbers) == (0, 60)
    assert covariates.unit_of(name, covariates.plausible(name, numbers)) in ("", "days")


@pytest.mark.parametrize(
    ("name", "ends", "unit"),
    [
        ("age_in_years", (0, 120), "years"),
        ("Age [years]", (0, 120), "years"),
        ("patient's age", (0, 120), "years"),
        ("height_cm", (0.2, 280), ""),
        ("weight [kg]", (0.2, 700), "kg"),
        ("bmi (kg/m2)", (5, 150), "kg/m2"),
        ("systolic_bp_mmHg", (0, 400), ""),
        ("heart rate [1/min]", (0, 400), "1/min"),
    ],
)
def test_a_name_may_say_the_usual_unit(name: str, ends: tuple[float, float], unit: str) -> None:
    found = covariates.plausible(name, np.linspace(20, 40, 50))
    assert found == ends and covariates.unit_of(name, found) == unit


def test_a_case_as_numbers(plan: CovariatePlan) -> None:
    found = encode(plan, {"age": 71.0, "sex": "M", "crp [mg/l]": 3.0, "other": "x"})
    assert found.row.tolist() == [71, 1, 3]
    assert found.notes == ()
    assert "age lies between 0 and 120 years" in found.checked
    assert encode(plan, {"age": "71", "sex": " M "}).row[:2].tolist() == [71, 1]


def test_what_is_missing_is_missing_and_said(plan: CovariatePlan) -> None:
    for blank in (None, "", "  "):
        found = encode(plan, {"age": blank, "sex": "F"})
        assert np.isnan(found.row).tolist() == [True, False, True]
        assert found.notes == ("not known of the person: age, crp [mg/l]",)
    assert "the image alone" in encode(plan, {}).notes[0]
    assert encode(CovariatePlan(), {"age": 3.0}).notes == ()


def test_an_unseen_category_is_missing_and_said(plan: CovariatePlan) -> None:
    found = encode(plan, {"age": 50.0, "sex": "X", "crp [mg/l]": 1.0})
    assert np.isnan(found.row[1])
    assert found.notes[0] == "sex 'X' was in no training case (known are F, M): it counts as missing"


def test_outside_of_the_training_cases_is_said(plan: CovariatePlan) -> None:
    found = encode(plan, {"age": 5.0})
    assert found.row[0] == 5
    assert found.notes[0] == "age 5 lies outside of what the training cases have (40 to 79)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"age": 560.0}, "age = 560 is not plausible: it lies between 0 and 120 years"),
        ({"age": -1.0}, "age = -1 is not plausible"),
        ({"age": float("inf")}, "not plausible"),
        ({"age": 10**400}, "not plausible"),
        ({"sex": ["F"]}, "the covariate sex is a number or a text"),
        ({"age": "old"}, r"the covariate age is a number \(years\); 'old' is none"),
        ({"sex": 3.0}, "the covariate sex is one of F, M; 3 is a number"),
        ({"sex": "3"}, "the covariate sex is one of F, M; 3 is a number"),
    ],
)
def test_what_cannot_be_is_refused(plan: CovariatePlan, given: Mapping[str, object], message: str) -> None:
    with pytest.raises(Problem, match=message) as caught:
        encode(plan, given)
    assert any(fix in str(caught.value) for fix in ("correct it", "one of them", "one value"))
    # Of many cases one such value does not cost the case: it is unknown, and that is said.
    [name] = given
    found = encode(plan, {"age": 50.0, "sex": "M", **given}, refuse=False)
    assert np.isnan(found.row[COLUMNS.index(name)]) and np.isfinite(found.row[:2]).sum() == 1
    assert found.refused == (name,) and found.notes[0].endswith("it counts as missing")


def test_numbers_of_numpy_are_numbers(plan: CovariatePlan) -> None:
    found = encode(plan, {"age": np.int64(50), "sex": float("nan"), "crp [mg/l]": np.float32("nan")})
    assert found.row[0] == 50 and np.isnan(found.row[1:]).all()
    assert found.notes == ("not known of the person: sex, crp [mg/l]",)


def test_words_become_covariates(plan: CovariatePlan) -> None:
    assert covariates.named(plan, ("age=71", "sex=F")) == {"age": "71", "sex": "F"}
    for words, message in ((("age",), "no covariate"), (("shoe=43",), "knows no covariate 'shoe'")):
        with pytest.raises(Problem, match=message):
            covariates.named(plan, words)
    with pytest.raises(Problem, match="takes no covariates"):
        covariates.named(CovariatePlan(), ("age=71",))


# --- how a network sees it --------------------------------------------------------------------------------------


def test_the_encoder_by_hand(plan: CovariatePlan) -> None:
    torch.manual_seed(1)
    made = Encoder(plan).double()
    made.fit(covariates.table(plan, entries(PEOPLE)))
    assert made.mean[0].item() == pytest.approx(59.5) and made.spread[0].item() == pytest.approx(np.std(range(40)))
    found = made(torch.tensor([[71.0, 1.0, torch.nan]], dtype=torch.float64)).detach().numpy()[0]
    z = (71 - 59.5) / np.std(range(40))
    slope, offset, levels, missing = (
        one.detach().numpy() for one in (made.slope, made.offset, made.levels, made.missing)
    )
    assert found[:8] == pytest.approx(z * slope[0] + offset[0], abs=1e-5)
    assert found[8:16] == pytest.approx(levels[1])
    assert found[16:] == pytest.approx(missing[2])


def test_missing_is_learned_and_never_zero(plan: CovariatePlan) -> None:
    torch.manual_seed(1)
    made = Encoder(plan)
    nothing = made(torch.full((1, 3), torch.nan))
    assert (nothing != 0).all()
    # Also not the mean, which would say that the person is average.
    assert not torch.allclose(nothing[0, :8], made(torch.tensor([[0.0, torch.nan, torch.nan]]))[0, :8])
    nothing.sum().backward()
    assert made.missing.grad is not None and (made.missing.grad == 1).all()
    assert made.slope.grad is None or not made.slope.grad.any()
    assert torch.isfinite(made.missing.grad).all()


def test_gradients_of_a_batch_with_missing_values_are_finite(plan: CovariatePlan) -> None:
    made = Encoder(plan)
    values = torch.tensor([[50.0, 0.0, torch.nan], [torch.nan, torch.nan, 2.0]])
    made(values).square().sum().backward()
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in made.parameters())


def test_a_category_that_no_training_case_of_the_network_had_is_not_known(plan: CovariatePlan) -> None:
    """One fold may have no man: the vector that was drawn for men says nothing, whatever it is."""
    made = Encoder(plan)
    women = entries([one for one in PEOPLE if one["sex"] == "F"])
    made.fit(covariates.table(plan, women))
    rows = torch.tensor([[50.0, 0.0, 1.0], [50.0, 1.0, 1.0], [50.0, torch.nan, 1.0]])
    found = made(rows)
    assert torch.equal(found[1], found[2]) and not torch.allclose(found[0], found[2])
    again = Encoder(plan)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(rows), found)


# --- the recipe ---------------------------------------------------------------------------------------------------


def test_the_recipe_says_it_all(plan: CovariatePlan, tmp_path: Path) -> None:
    content = {"image": {"size": [1, 8, 8]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}}}
    made = replace(recipe.build(content), covariates=plan)
    recipe.write(made, {}, tmp_path / "recipe.toml")
    assert recipe.build(recipe.read(tmp_path / "recipe.toml")) == made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"columns": ["age", "age"]}, "twice"),
        ({"columns": ["age"], "ranges": {"agee": [0, 1]}}, "names 'agee'"),
        ({"columns": ["age"], "ranges": {"age": [9, 1]}}, "from 9 to 1"),
        ({"columns": ["age"], "kinds": {"age": "word"}}, "kinds.age is wrong"),
        ({"columns": ["age"], "hidden": 1.5}, "covariates.hidden = 1.5"),
        ({"column": ["age"]}, "did you mean covariates.columns"),
    ],
)
def test_wrong_recipes_are_refused(given: dict[str, object], message: str) -> None:
    content = {"image": {"size": [1, 8, 8]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}}}
    with pytest.raises(Problem, match=message):
        recipe.build({**content, "covariates": given})


def test_tasks_that_ask_where_take_none() -> None:
    asked = {"lesion": {"kind": "segmentation", "classes": ["lesion"], "values": [[1]]}}
    with pytest.raises(Problem, match="cannot use them"):
        recipe.build({"image": {"size": [1, 32, 32]}, "tasks": asked, "covariates": {"columns": ["age"]}})
