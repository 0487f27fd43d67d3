"""What is explained: a finding at its place answers for that place, and its map comes back there."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from osler import explanation, recipe, targets
from osler.case import Box, Case, Finding, Mask, Question
from osler.image import Image, Spacing
from osler.model import Model, Network
from osler.problem import Problem
from osler.recipe import Recipe
from osler.tasks.detection import Detection, Offers
from osler.tasks.segmentation import Segmentation

SPOTS = Question("mask", "segmentation", ("spot",), values=((1,),), separate=True)
BOXES = Question("boxes", "detection", ("spot", "line"))


def plan(size: tuple[int, int, int] = (1, 32, 32), question: Question = SPOTS, **sections: Any) -> Recipe:
    return recipe.build({
        "image": {"size": size, "dims": 2 if size[0] == 1 else 3},
        "tasks": {question.task: question},
        "network": {"backbone": "unet", "options": {"width": 4}},
        **sections,
    })  # fmt: skip


class Bright(nn.Module):
    """One level: what is brighter than 2 after a little smoothing."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def levels(self, x: Tensor) -> list[Tensor]:
        return [(functional.avg_pool2d(x, 3, 1, 1) - 2).clamp(min=0)]


class Same(nn.Module):
    def forward(self, maps: Any) -> Any:
        return maps


class SpotHead(nn.Module):
    """Log-odds of a spot: a plane of its own, against a background of 0."""

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        odds = 4 * functional.avg_pool2d(maps[0], 5, 1, 2) - 3
        return [torch.cat([torch.zeros_like(odds), odds], 1)]


def outliner(made: Recipe) -> Model:
    """Outlines bright spots, by a rule that was written down."""
    network = Network(made)
    network.backbone, network.decoder, network.finest = Bright(), Same(), 0  # type: ignore[assignment]
    network.places = nn.ModuleList([SpotHead()])
    return Model(made, [network.eval()])


def spotted(height: int = 32, width: int = 32, *spots: tuple[int, int]) -> Image:
    array = np.random.default_rng(0).normal(0, 0.5, (1, 1, 1, height, width)).astype(np.float32)
    for y, x in spots:
        array[..., y - 2 : y + 3, x - 2 : x + 3] += 6
    return Image(array)


def finding(y: int, x: int, size: tuple[int, int, int] = (1, 32, 32)) -> Finding:
    full = np.zeros(size, bool)
    full[0, y - 2 : y + 3, x - 2 : x + 3] = True
    mask = Mask.cropped(full)
    return Finding("mask", "spot", probability=0.9, mask=mask, box=mask.box)


@pytest.mark.parametrize("method", ["gradcam", "occlusion", "integrated_gradients"])
def test_each_of_two_spots_has_its_own_map(method: str) -> None:
    made, image = outliner(plan()), spotted(32, 32, (8, 8), (22, 24))
    for y, x in ((8, 8), (22, 24)):
        why = explanation.explain(made, Case("a", "a", {"image": image}), finding(y, x), method)
        assert why.passed, why.sentences
        assert (why.task, why.name) == ("mask", "spot") and f"at column {x}, row {y}" in why.sentences[0]
        _, row, column = np.unravel_index(int(why.heatmap.argmax()), why.heatmap.shape)
        assert abs(row - y) <= 3 and abs(column - x) <= 3
        assert why.heatmap[0, 15 - 10 : 15 + 10].max() <= 1


def test_the_answer_goes_with_the_spot_and_not_with_the_other_one() -> None:
    made, image = outliner(plan()), spotted(32, 32, (8, 8), (22, 24))
    asked = targets.ask(made, Case("a", "a", {"image": image}), finding(8, 8))
    without, other = torch.ones(1, 32, 32), torch.ones(1, 32, 32)
    without[:, 3:13, 3:13] = 0
    other[:, 17:27, 19:29] = 0
    whole, gone, kept = asked.answers([torch.ones(1, 32, 32), without, other])
    assert whole > 0.9 and gone < 0.1 and kept == pytest.approx(whole, abs=1e-3)


def test_without_a_place_the_surest_finding_is_explained() -> None:
    made = outliner(plan())
    image = spotted(32, 32, (8, 8))
    image.array[..., 20:25, 20:25] += 12
    case = Case("a", "a", {"image": image})
    for asked in (None, Finding("mask", "spot")):
        assert "at column 22, row 22" in explanation.explain(made, case, asked, "gradcam").sentences[0]
    blank = Case("a", "a", {"image": spotted()})
    with pytest.raises(Problem, match="nothing was found"):
        explanation.explain(made, blank)
    with pytest.raises(Problem, match="no spot was found"):
        explanation.explain(made, blank, Finding("mask", "spot"))
    with pytest.raises(Problem, match="does not fit"):
        explanation.explain(made, case, method="attention")


@pytest.mark.parametrize("size", [(32, 32), (20, 27), (50, 90)])
@pytest.mark.parametrize("spacing", [1.0, 2.0, 0.5])
def test_a_window_around_a_finding_goes_back_to_where_it_was(size: tuple[int, int], spacing: float) -> None:
    """The finding, seen on the networks' grid and brought back as a map, covers itself."""
    made = outliner(plan(patches={"unit": "mm", "spacing": (0.0, 1.0, 1.0)}))
    image = Image(spotted(*size, (12, 14)).array, Spacing(spacing, spacing))
    full = np.zeros(image.size, bool)
    full[0, 6:18, 8:20] = True
    mask = Mask.cropped(full)
    asked = targets.ask(made, Case("a", "a", {"image": image}), Finding("mask", "spot", mask=mask))
    target = asked.targets[0]
    assert isinstance(target, targets.OfPlace) and target.finding.mask is not None
    assert target.finding.mask.array.sum() == pytest.approx(144 * spacing**2, rel=0.3)
    back = asked.to_image(target.finding.mask.within((1, 32, 32)).astype(np.float32))
    assert back.shape == image.size
    shared = ((back > 0.5) & full).sum()
    assert 2 * shared / ((back > 0.5).sum() + full.sum()) > 0.9


def test_a_finding_larger_than_the_window_is_seen_in_part() -> None:
    made, image = outliner(plan((1, 16, 16))), spotted(48, 48)
    full = np.zeros(image.size, bool)
    full[0, 4:44, 4:44] = True
    asked = targets.ask(made, Case("a", "a", {"image": image}), Finding("mask", "spot", mask=Mask.cropped(full)))
    target = asked.targets[0]
    assert isinstance(target, targets.OfPlace) and target.finding.mask is not None
    assert target.finding.mask.array.all() and target.finding.mask.array.shape == (1, 16, 16)


def test_log_odds_of_a_segment_are_the_mean_over_its_pixels() -> None:
    torch.manual_seed(0)
    question = Question("mask", "segmentation", ("a", "b"), values=((1,), (2,)))
    raw = torch.randn(3, 3, 4, 5)
    there = np.zeros((1, 4, 5), bool)
    there[0, 1:3, 2] = True
    asked = Finding("mask", "b", mask=Mask.cropped(there))
    p = raw.double().softmax(1)[:, 2]
    wanted = torch.logit(p)[:, 1:3, 2].mean(1)
    torch.testing.assert_close(
        Segmentation(question).log_odds([raw], asked, (1, 4, 5)).double(), wanted, rtol=1e-5, atol=1e-5
    )
    regions = Question("mask", "segmentation", ("all", "core"), values=((1, 2), (2,)))
    asked = Finding("mask", "core", mask=Mask.cropped(there))
    found = Segmentation(regions).log_odds([raw[:, :2]], asked, (1, 4, 5))
    torch.testing.assert_close(found, raw[:, 1, 1:3, 2].mean(1))


def test_a_coarse_map_is_asked_as_large_as_the_image_that_it_is_about() -> None:
    """Of a map of every second row and column the right half says b: so do the pixels of the image there."""
    question = Question("mask", "segmentation", ("a", "b"), values=((1,), (2,)))
    raw = torch.zeros(1, 3, 8, 8)
    raw[:, 2, :, 4:] = 6.0
    for columns, wanted in ((slice(10, 16), 6.0 - np.log(2)), (slice(0, 6), -np.log(2))):
        there = np.zeros((1, 16, 16), bool)
        there[0, 4:14, columns] = True
        asked = Finding("mask", "b", mask=Mask.cropped(there))
        found = Segmentation(question).log_odds([raw], asked, (1, 16, 16))
        assert float(found) == pytest.approx(wanted, abs=1e-5)


def test_log_odds_of_a_box_are_those_of_the_best_offer_for_it() -> None:
    """Three offers of 8 x 8 pixels: on the box, half beside it, and far away but surer."""
    points = torch.tensor([[8.0, 8.0], [8.0, 12.0], [40.0, 40.0]])
    shifts = torch.tensor([[[0.0, 0, np.log(2), np.log(2)]] * 3]).float()
    logits = torch.tensor([[[1.0, -4.0], [2.0, -4.0], [6.0, -4.0]]])
    offers = Offers(logits, shifts, points, torch.ones(3, 2))
    box = Box((0.0, 4.0, 4.0), (1.0, 12.0, 12.0))
    found = Detection(BOXES).log_odds(offers, Finding("boxes", "spot", box=box), (1, 48, 48))
    best = max(1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-2)) / 3)
    assert float(found) == pytest.approx(np.log(best / (1 - best)), abs=1e-4)
    other = Detection(BOXES).log_odds(offers, Finding("boxes", "line", box=box), (1, 48, 48))
    assert float(other) == pytest.approx(-4, abs=1e-3)


def test_a_box_of_a_real_network_has_a_gradient_and_a_map() -> None:
    torch.manual_seed(0)
    made = Model(plan((1, 64, 64), BOXES), [Network(plan((1, 64, 64), BOXES)).eval()])
    box = Finding("boxes", "line", box=Box((0, 20, 10), (1, 40, 30)))
    why = explanation.explain(made, Case("a", "a", {"image": spotted(64, 64, (30, 20))}), box, "gradcam")
    assert why.heatmap.shape == (1, 64, 64) and np.isfinite(why.heatmap).all() and why.heatmap.max() > 0
    assert not why.passed
