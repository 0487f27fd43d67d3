"""Explaining: maps come back at the right place, and a map that does not deserve trust says so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.nn import functional

from osler import explanation, recipe, targets
from osler.case import Case, Finding, Question
from osler.explanations import gradcam, occlusion
from osler.image import Affine, Image, Spacing
from osler.model import Model, Network
from osler.problem import Problem
from osler.recipe import Recipe

BRIGHT = Question("label", "multiclass", ("normal", "bright"))
Array = np.ndarray[Any, Any]


def plan(size: tuple[int, int, int] = (1, 32, 32), question: Question = BRIGHT, **image: Any) -> Recipe:
    return recipe.build({
        "image": {"size": size, **image},
        "tasks": {"label": question},
        "network": {"backbone": "resnet", "options": {"width": 4}},
    })  # fmt: skip


class Spots(nn.Module):
    """What is brighter than 2 after a little smoothing: a detector of bright spots."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.smooth = functional.avg_pool2d if dims == 2 else functional.avg_pool3d

    def forward(self, x: Tensor) -> Tensor:
        return (self.smooth(x, 3, 1, 1) - 2).clamp(min=0)


def detector(made: Recipe, weight: float = 80.0) -> Network:
    """A network that calls an image bright by the spots in it."""
    torch.manual_seed(0)
    network = Network(made)
    head = nn.Linear(1, 2)
    head.weight.data = torch.tensor([[0.0], [weight]])
    head.bias.data = torch.tensor([0.0, -2.0])
    network.backbone, network.heads[0] = Spots(made.image.dims), head
    return network.eval()


def spotted(height: int = 32, width: int = 32, *spots: tuple[int, int], depth: int = 1, slice_: int = 0) -> Image:
    """Noise with bright spots of 5 x 5 pixels."""
    array = np.random.default_rng(0).normal(0, 0.5, (1, 1, depth, height, width)).astype(np.float32)
    for y, x in spots:
        array[..., slice_, y - 2 : y + 3, x - 2 : x + 3] += 6
    return Image(array)


def case(image: Image) -> Case:
    return Case("a", "a", {"image": image})


def hottest(heat: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(heat.argmax()), heat.shape))


METHODS = ("gradcam", "occlusion", "integrated_gradients")


@pytest.mark.parametrize("method", METHODS)
def test_a_faithful_map_of_a_known_detector_passes_and_points_at_the_spot(method: str) -> None:
    made = Model(plan(), [detector(plan())])
    why = explanation.explain(made, case(spotted(32, 32, (8, 22))), method=method)
    assert why.passed, why.sentences
    assert (why.task, why.name, why.method) == ("label", "bright", method)
    assert why.heatmap.shape == (1, 32, 32) and why.heatmap.dtype == np.float32
    assert why.heatmap.min() >= 0 and why.heatmap.max() <= 1
    _, row, column = hottest(why.heatmap)
    assert abs(row - 8) <= 3 and abs(column - 22) <= 3
    assert why.tests["deletion"] < why.tests["random"] < why.tests["insertion"]
    assert not any("do not rely" in line for line in why.sentences)


def test_a_map_of_edges_that_does_not_look_at_the_network_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edge detector looks plausible; it is the same for a network that has learned nothing (Adebayo 2018)."""

    def edges(target: Any, x: Tensor, options: Any) -> Tensor:
        flat = x[0, 0, 0]
        return (flat - flat.roll(1, -1)).abs() + (flat - flat.roll(1, -2)).abs()

    monkeypatch.setattr(gradcam, "explain", edges)
    made = Model(plan(), [detector(plan())])
    why = explanation.explain(made, case(spotted(32, 32, (8, 22))))
    assert not why.passed and why.tests["randomised"] == pytest.approx(1)
    assert "do not rely on it" in why.sentences[1] and "learned nothing" in why.sentences[1]


def test_a_map_that_points_elsewhere_fails_the_removal_test(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = occlusion.explain
    monkeypatch.setattr(occlusion, "explain", lambda *given: honest(*given).flip((1, 2)))
    made = Model(plan(), [detector(plan())])
    why = explanation.explain(made, case(spotted(32, 32, (8, 22))), method="occlusion")
    assert not why.passed and why.tests["randomised"] < explanation.SIMILAR
    assert "no better than places at random" in why.sentences[1]


def test_an_empty_map_fails_without_a_number_that_is_none() -> None:
    made = Model(plan(), [detector(plan(), weight=0.0)])
    why = explanation.explain(made, case(spotted(32, 32, (8, 22))), Finding("label", "bright"))
    assert not why.passed and why.heatmap.max() == 0 and all(np.isfinite(v) for v in why.tests.values())
    assert "the map is empty" in why.sentences[1]
    blank = Image(np.zeros((1, 1, 1, 40, 40), np.uint8))
    for method in METHODS:
        why = explanation.explain(Model(plan(), [Network(plan()).eval()]), case(blank), method=method)
        assert np.isfinite(why.heatmap).all() and not why.passed


def test_the_areas_of_a_mean_are_known() -> None:
    """The value is the image's mean. Filling in keeps it in random order; taken away first, the square is gone."""
    question = Question("label", "regression", ("mean",))
    made = Model(plan(question=question), [Network(plan(question=question)).eval()])
    head = nn.Linear(1, 1, bias=False)
    head.weight.data = torch.ones(1, 1)
    made.networks[0].backbone, made.networks[0].heads[0] = nn.Identity(), head
    x = torch.zeros(1, 1, 1, 1, 32, 32)
    x[..., 4:12, 4:12] = 1
    asked = targets.Asked(
        made, "label", "mean", [targets.OfClass(made.networks[0], "label", 0)], [x], lambda heat: heat
    )
    tests = explanation.removal(asked, x[0, 0, 0])
    assert tests["random"] == pytest.approx(float(x.mean()), rel=0.1)
    assert tests["deletion"] < tests["random"] < tests["insertion"]


@pytest.mark.parametrize("method", METHODS)
def test_padding_is_cut_off_and_the_map_lies_on_the_image_as_it_was_read(method: str) -> None:
    wide = plan(fit="pad")
    image, bright = case(spotted(24, 60, (5, 48))), Finding("label", "bright")
    why = explanation.explain(Model(wide, [detector(wide)]), image, bright, method)
    assert why.heatmap.shape == (1, 24, 60)
    _, row, column = hottest(why.heatmap)
    assert abs(row - 5) <= 4 and abs(column - 48) <= 5


def test_a_placed_map_keeps_its_centre_of_mass() -> None:
    """The map of one spot, taken to the grid and back, has its centre where the spot is, to half a pixel."""
    image = replace(spotted(24, 60, (5, 48)), geometry=Spacing(1.0, 2.0))
    wide = plan(fit="pad").image
    from osler import data, grid

    where = grid.fit(image, wide)
    placed = data.prepare(Image((image.array > 4).astype(np.float32), image.geometry), wide)[0, 0]
    back = targets.to_image(placed, where)
    assert back.shape == (1, 24, 60)
    rows, columns = np.indices((24, 60))
    assert (back[0] * rows).sum() / back.sum() == pytest.approx(5, abs=0.5)
    assert (back[0] * columns).sum() / back.sum() == pytest.approx(48, abs=0.5)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_volume_has_a_map_in_the_right_slice(dims: int) -> None:
    deep = plan((6, 24, 24), dims=dims)
    image = spotted(24, 24, (6, 16), depth=6, slice_=4)
    if dims == 3:  # the spot must outlast the smoothing along the depth
        image.array[..., 3:6, 4:9, 14:19] += 6
    why = explanation.explain(Model(deep, [detector(deep, 400.0)]), case(image), Finding("label", "bright"))
    assert why.heatmap.shape == (6, 24, 24)
    plane, row, column = hottest(why.heatmap)
    assert plane == 4 and abs(row - 6) <= 2 and abs(column - 16) <= 2


def test_the_ensemble_shows_the_mean_of_its_members() -> None:
    made = plan()
    image = case(spotted(32, 32, (8, 22), (24, 6)))
    both = [detector(made), detector(made, 40.0)]
    both[1].backbone = nn.Sequential(Half(), both[1].backbone)
    asked = Finding("label", "bright")
    alone = [explanation.explain(Model(made, [network]), image, asked).heatmap for network in both]
    together = explanation.explain(Model(made, both), image, asked)
    mean = (alone[0] + alone[1]) / 2
    np.testing.assert_allclose(together.heatmap, mean / mean.max(), atol=1e-5)
    assert "mean of 2 networks" in together.sentences[0]


class Half(nn.Module):
    """Sees the left half of the image only."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.arange(x.shape[-1]) < x.shape[-1] // 2)


def test_the_finding_chooses_and_without_one_the_decision_is_explained() -> None:
    made = Model(plan(), [detector(plan())])
    image = case(spotted(32, 32, (8, 22)))
    assert explanation.explain(made, image).name == "bright"
    assert explanation.explain(made, case(spotted(32, 32))).name == "normal"
    assert explanation.explain(made, image, Finding("label", "normal")).name == "normal"
    with pytest.raises(Problem, match="knows no task 'colour'"):
        explanation.explain(made, image, Finding("colour", "red"))
    with pytest.raises(Problem, match=r"knows no 'dark'.*normal, bright"):
        explanation.explain(made, image, Finding("label", "dark"))
    with pytest.raises(Problem, match="no 'tea_leaves'"):
        explanation.explain(made, image, method="tea_leaves")
    with pytest.raises(Problem, match="attention does not fit"):
        explanation.explain(made, image, method="attention")


def test_auto_takes_the_first_that_passes_and_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    made, image = Model(plan(), [detector(plan())]), case(spotted(32, 32, (8, 22)))
    assert explanation.explain(made, image, method="auto").method == "gradcam"
    monkeypatch.setattr(gradcam, "explain", lambda target, x, *_: torch.zeros(x.shape[3:]))
    second = explanation.explain(made, image, method="auto")
    assert second.passed and second.method == "occlusion" and "Grad-CAM failed" in second.sentences[-1]
    none = explanation.explain(Model(plan(), [detector(plan(), weight=0.0)]), image, method="auto")
    assert not none.passed and none.method == "gradcam"
    assert "Occlusion and Integrated gradients failed too" in none.sentences[-1]


def test_the_same_explanation_twice() -> None:
    made, image = Model(plan(), [Network(plan()).eval()]), case(spotted(32, 32, (8, 22)))
    state = torch.random.get_rng_state()
    first, second = explanation.explain(made, image), explanation.explain(made, image)
    assert np.array_equal(first.heatmap, second.heatmap) and first.tests == second.tests
    assert torch.equal(state, torch.random.get_rng_state())


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    a, b = np.random.default_rng(0).integers(0, 5, (2, 1, 9, 9)).astype(np.float32)
    assert explanation._rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert explanation._rank_correlation(a, np.zeros_like(a)) == 0


# --- pictures ---------------------------------------------------------------------------------------------


def test_pictures_show_bytes_as_they_are_and_other_numbers_in_a_window() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, 16, 16)
    assert np.array_equal(explanation.picture(Image(grey)), grey[0, 0, 0])
    colour = np.random.default_rng(0).integers(0, 256, (1, 3, 1, 5, 7)).astype(np.uint8)
    assert np.array_equal(explanation.picture(Image(colour)), np.moveaxis(colour[0, :, 0], 0, -1))
    hounsfield = np.array([-1000, -160, 40, 240, 3000], np.int16).reshape(1, 1, 1, 1, 5)
    soft = explanation.picture(Image(np.repeat(hounsfield, 4, 3), unit="HU"))
    assert soft[0].tolist() == [0, 0, 128, 255, 255]
    lung = hounsfield.copy()
    lung[..., :2] = -600
    assert explanation.picture(Image(lung, unit="HU"))[0].tolist() == [128, 128, 236, 255, 255]
    sixteen = np.linspace(1000, 2000, 10_000).reshape(1, 1, 1, 100, 100)
    shown = explanation.picture(Image(np.where(sixteen == 2000, 65535, sixteen).astype(np.uint16)))
    assert shown.min() == 0 and shown.max() == 255 and abs(int(np.median(shown)) - 127) <= 1
    assert explanation.picture(Image(np.full((1, 1, 1, 4, 4), 7.0))).max() == 0


def test_pictures_choose_the_slice() -> None:
    planes = np.stack([np.full((4, 4), 10 * i, np.uint8) for i in range(5)])[None, None]
    assert explanation.picture(Image(planes)).max() == 20
    assert explanation.picture(Image(planes), 4).max() == 40


@pytest.mark.parametrize("size", [(28, 28), (20, 90), (90, 20), (500, 420)])
def test_a_cold_map_leaves_the_picture_as_it_is_and_a_hot_place_is_coloured(size: tuple[int, int]) -> None:
    shown = np.full(size, 100, np.uint8)
    heat = np.zeros(size, np.float32)
    cold = explanation.overlay(shown, heat, passed=True)
    assert cold.dtype == np.uint8 and min(cold.shape[:2]) == max(384, min(size)) and (cold == 100).all()
    assert cold.shape[1] / cold.shape[0] == pytest.approx(size[1] / size[0], rel=0.01)
    heat[size[0] // 2 :, : size[1] // 2] = 1
    hot = explanation.overlay(np.stack([shown] * 3, -1), heat, passed=True)
    height, width = hot.shape[:2]
    assert (hot[: height // 4] == 100).all() and (hot[:, 3 * width // 4 :] == 100).all()
    assert (hot[-height // 4 :, : width // 4] != 100).any(-1).all()


@pytest.mark.parametrize("size", [(28, 28), (20, 90), (90, 20), (900, 700)])
def test_the_warning_stands_on_the_picture_itself(size: tuple[int, int]) -> None:
    shown, heat = np.full(size, 100, np.uint8), np.zeros(size, np.float32)
    warned, plain = (explanation.overlay(shown, heat, passed=passed) for passed in (False, True))
    assert warned.shape == plain.shape
    band = np.flatnonzero((warned != plain).any((1, 2)))
    assert band[0] == 0 and len(band) == band[-1] + 1 <= 0.35 * len(plain)
    written = (warned[: len(band)] > 100).any(-1)
    assert 0.005 < written.mean() < 0.4
    edge = np.concatenate(
        [written[:, :3].ravel(), written[:, -3:].ravel(), written[:3].ravel(), written[-3:].ravel()]
    )
    assert not edge.any(), "the text is cut off"


# --- from files to files ------------------------------------------------------------------------------------


def test_all_methods_are_written_beside_what_they_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Model(plan(), [Network(plan()).eval()])
    made.save(tmp_path / "model.safetensors")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "jane_doe.png")
    lines = list(
        explanation.explain_path(
            tmp_path, tmp_path / "jane_doe.png", tmp_path / "out", method="all", finding="bright"
        )
    )
    text = (tmp_path / "out" / "explanation.json").read_text()
    content = json.loads(text)
    assert "jane" not in text and content["model"] == made.sha256
    assert [one["method"] for one in content["explanations"]] == ["gradcam", "integrated_gradients", "occlusion"]
    assert lines == [line for one in content["explanations"] for line in one["sentences"]]
    for one in content["explanations"]:
        with Pillow.open(tmp_path / "out" / f"{one['method']}.png") as picture:
            assert picture.size == (480, 384)
    with pytest.raises(Problem, match="knows no finding 'dark'"):
        list(explanation.explain_path(tmp_path, tmp_path / "jane_doe.png", tmp_path / "out", finding="dark"))


def test_an_affine_image_is_explained_on_its_own_grid() -> None:
    made = plan(fit="pad")
    image = replace(spotted(30, 20, (20, 6)), geometry=Affine(np.diag([1.0, 1.0, 5.0, 1.0])))
    why = explanation.explain(Model(made, [detector(made)]), case(image), Finding("label", "bright"))
    _, row, column = hottest(why.heatmap)
    assert why.heatmap.shape == (1, 30, 20) and abs(row - 20) <= 2 and abs(column - 6) <= 2
