"""A preparation from the plan to the diagnosis and back: planned with a reason, done, said, and undone for maps."""

from pathlib import Path

import numpy as np
import pytest

from osler import data, diagnosis, explanation, modality, phantom, recipe, volumes
from osler.case import Finding, Question
from osler.image import Image
from osler.model import Model, Network
from osler.problem import Problem
from osler.recipe import Recipe
from test_explanation import case, detector, hottest, spotted
from test_modality import derived

EMPTY = '""'
BRIGHT = Question("label", "multiclass", ("normal", "bright"))


def plan(prepare: tuple[str, ...], question: Question = BRIGHT, size: tuple[int, int, int] = (1, 64, 64)) -> Recipe:
    return recipe.build({
        "image": {"size": size, "prepare": list(prepare)},
        "tasks": {"label": question},
        "network": {"backbone": "resnet", "options": {"width": 4}},
    })  # fmt: skip


def framed(*spots: tuple[int, int]) -> Image:
    """Noise in a rectangle, with bright spots, on a screen of 128 x 192 that is dead beside it."""
    inside = spotted(80, 96, *spots).array * 5 + 60
    array = np.zeros((1, 1, 1, 128, 192), np.uint8)
    array[..., 30:110, 70:166] = inside.clip(20, 255)
    return Image(array, modality="US")


def test_the_network_is_given_the_sector_only() -> None:
    given = data.prepare(framed((10, 20)), plan(("sector",)).image)
    assert given.shape == (1, 1, 1, 64, 64)
    assert given.min() >= 20, "no pixel of the dead screen is in it"


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_a_map_points_at_the_place_in_the_image_as_it_was_read(fit: str) -> None:
    chosen = plan(("sector",))
    chosen = recipe.build(recipe.merge(recipe.to_dict(chosen), {"image": {"fit": fit}}))
    network = detector(chosen)
    network.normalise.mean[:], network.normalise.std[:] = 60.0, 5.0
    asked = Finding("label", "bright", "reader", probability=1.0)
    found = explanation.explain(Model(chosen, [network]), case(framed((15, 70))), asked, "gradcam")
    assert found.heatmap.shape == (1, 128, 192)
    _, y, x = hottest(found.heatmap)
    assert abs(y - (30 + 15)) <= 6 and abs(x - (70 + 70)) <= 6
    assert found.heatmap[0, :30].max() == 0 and found.heatmap[0, :, :70].max() == 0, (
        "what was cropped decides nothing"
    )


def test_every_diagnosis_says_what_was_done_and_what_was_not() -> None:
    made = Model(plan(("sector", "foreground")), [Network(plan(("sector", "foreground"))).eval()])
    said = diagnosis.diagnose(made, case(framed())).checked
    share = 80 * 96 / (128 * 192)
    assert f"cropped to the scan sector, {share:.0%} of the image" in said
    assert any("standardised by the foreground" in line for line in said)
    left = diagnosis.diagnose(made, case(Image(framed().array[..., 32:108, 72:164]))).checked
    assert "the scan sector was not cropped: it fills the image" in left


def test_visits_of_several_sizes_are_made_ready_one_by_one() -> None:
    first, second = framed((10, 20)), Image(np.pad(framed((10, 20)).array, ((0, 0),) * 3 + ((0, 60), (0, 0))))
    shown = np.concatenate([first.resample(second.size).array, second.array])
    both = Image(shown.astype(np.float32), times=(0.0, 9.0), visits=(first, second))
    chosen = recipe.ImagePlan((1, 64, 64), frames=2, prepare=("sector",))
    given = data.prepare(both, chosen)
    assert (given[0] == given[1]).all()
    assert data.made_ready(both, chosen).said == (
        f"cropped to the scan sector, {80 * 96 / (128 * 192):.0%} of the image",
        f"cropped to the scan sector, {80 * 96 / (188 * 192):.0%} of the image",
    )


@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_what_asks_where_something_is_refuses_crops_and_takes_the_rest(kind: str) -> None:
    values = {"values": ((1,),)} if kind == "segmentation" else {}
    question = Question("label", kind, ("lesion",), **values)  # type: ignore[arg-type]
    with pytest.raises(Problem, match=r"crops .sector. beside a task that asks where"):
        plan(("foreground", "sector"), question)
    chosen = plan(("foreground",), question)
    _, array = volumes.on_grid(framed(), chosen)
    bright = framed().array[0, 0] > 30
    assert abs(array[0, 0][bright].mean()) < 1e-3 and abs(array[0, 0][bright].std() - 1) < 1e-3


@pytest.mark.parametrize(("names", "said"), [(("sectr",), "no 'sectr'"), (("n4", "n4"), "twice")])
def test_a_wrong_name_is_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(Problem, match=said):
        plan(names)


def test_pixels_that_were_kept_belong_to_their_preparation(tmp_path: Path) -> None:
    made = phantom.write_phantom(tmp_path / "c", phantom.Phantom(size=32), 4)
    from osler import layouts

    entries = layouts.read(made).entries
    stamps = {data._stamp(entries, plan(names).image) for names in ((), ("foreground",), ("foreground", "sector"))}
    assert len(stamps) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write_phantom(tmp_path_factory.mktemp("phantom") / "cohort", phantom.Phantom(size=32), 60)


@pytest.mark.parametrize("code", ["MR", "CT", "US", "CR", "DX", "MG", ""])
def test_it_is_planned_by_modality_with_its_reason(folder: Path, code: str, tmp_path: Path) -> None:
    chosen, reasons = derived(folder, f"modality={code or EMPTY}")
    names, why = modality.preparations(code, 1)
    assert chosen.image.prepare == names
    assert reasons["image.prepare"] == why
    recipe.write(chosen, reasons, tmp_path / "recipe.toml")
    assert f"prepare = {list(names)}".replace("'", '"') in (tmp_path / "recipe.toml").read_text()
    assert recipe.build(recipe.read(tmp_path / "recipe.toml")) == chosen
    if code == "MR":
        assert chosen.image.intensity == "cohort" and "foreground" in reasons["image.intensity"]


def test_what_is_given_stays(folder: Path) -> None:
    chosen, reasons = derived(folder, "modality=MR", "prepare=[]")
    assert chosen.image.prepare == () and reasons["image.prepare"] == "given"
    assert reasons["image.intensity"] != "the foreground of each brought them to one scale"
    chosen, _ = derived(folder, "modality=US", 'prepare=["n4", "foreground"]')
    assert chosen.image.prepare == ("n4", "foreground") and chosen.image.intensity == "cohort"
