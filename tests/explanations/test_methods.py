"""Explanations: what holds for each method, and each against a closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osler import catalog, recipe
from osler.case import Kind, Question
from osler.explanations import (
    attention,
    blurred,
    gradcam,
    integrated_gradients,
    log_odds,
    occlusion,
    removed,
    score,
    spread_out,
)
from osler.model import Network
from osler.targets import OfClass
from osler.tasks.classification import Classification

METHODS = catalog.names("explanations")
QUESTIONS = {
    "multiclass": Question("label", "multiclass", ("a", "b", "c")),
    "multilabel": Question("label", "multilabel", ("a", "b", "c")),
    "ordinal": Question("label", "ordinal", ("a", "b", "c", "d")),
    "regression": Question("label", "regression", ("age",), "years"),
}


def network(
    size: tuple[int, int, int],
    kind: Kind = "multiclass",
    *,
    dims: int = 2,
    channels: int = 1,
    pooling: str = "average",
) -> Network:
    """A small real network with random weights, in evaluation mode."""
    torch.manual_seed(0)
    plan = recipe.build({
        "image": {"size": size, "dims": dims, "channels": channels},
        "tasks": {"label": QUESTIONS[kind]},
        "network": {"backbone": "resnet", "options": {"width": 4}, "pooling": pooling},
    })  # fmt: skip
    return Network(plan).eval()


def by_hand(backbone: nn.Module, weight: list[float], size: tuple[int, int, int], **options: Any) -> Network:
    """A regression whose backbone and head are given: value = weight . mean of the backbone's maps."""
    net = network(size, "regression", channels=len(weight), **options)
    head = nn.Linear(len(weight), 1, bias=False)
    head.weight.data = torch.tensor([weight])
    net.backbone, net.heads[0] = backbone, head
    return net.eval()


class Weighted(nn.Module):
    """Each pixel times its own weight: with average pooling a linear model."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def explained(method: str, net: Network, x: Tensor, target: int = 0, **options: Any) -> Tensor:
    module = catalog.find("explanations", method)
    found: Tensor = module.explain(OfClass(net, "label", target), x, module.Options(**options))
    return found


def image(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


# --- what holds for each ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("moments", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_map_lies_on_the_input_grid_and_changes_nothing_else(method: str, moments: int, dims: int) -> None:
    net, x = network((3, 16, 20), dims=dims, pooling="attention"), image(moments, 1, 3, 16, 20)
    weights, pixels = {k: v.clone() for k, v in net.state_dict().items()}, x.clone()
    first, again = (explained(method, net, x, target=1) for _ in range(2))
    assert first.shape == (3, 16, 20) and first.isfinite().all() and not first.requires_grad
    assert first.abs().max() > 0
    if method != "integrated_gradients":
        assert first.min() >= 0
    assert torch.equal(first, again) and torch.equal(x, pixels)
    assert all(torch.equal(weights[k], v) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", list(QUESTIONS))
@pytest.mark.parametrize("method", METHODS)
def test_every_class_of_every_kind_can_be_explained(method: str, kind: Kind) -> None:
    net, x = network((1, 16, 16), kind, pooling="attention"), image(1, 1, 1, 16, 16)
    for target in range(len(QUESTIONS[kind].classes)):
        assert explained(method, net, x, target).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_moments_are_averaged_so_that_a_still_sequence_has_the_map_of_its_frame(method: str) -> None:
    net, x = network((1, 16, 16), pooling="attention"), image(1, 1, 1, 16, 16)
    once = explained(method, net, x)
    torch.testing.assert_close(explained(method, net, x.repeat(1, 3, 1, 1, 1, 1)), once, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, -2, -3])
@pytest.mark.parametrize("method", METHODS)
def test_a_mirrored_image_has_the_mirrored_map(method: str, axis: int) -> None:
    net = network((4, 16, 16), dims=3, pooling="attention")
    symmetric = nn.Conv3d(1, 8, 3, padding=1, bias=False)
    symmetric.weight.data = sum(  # type: ignore[assignment]
        symmetric.weight.data.flip(axes) for axes in [(), (2,), (3,), (4,), (2, 3), (2, 4), (3, 4), (2, 3, 4)]
    )
    net.backbone, net.pooling = nn.Sequential(symmetric, nn.ReLU()), type(net.pooling)(attention_options(), 8)
    net.heads[0] = nn.Linear(8, 3)
    x = image(1, 1, 4, 16, 16)
    found = explained(method, net.eval(), x)
    torch.testing.assert_close(explained(method, net, x.flip(axis)), found.flip(axis), rtol=1e-3, atol=1e-5)


def attention_options() -> Any:
    return catalog.find("poolings", "attention").Options()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "attention"])
def test_slices_of_a_2d_network_keep_their_place(method: str) -> None:
    """Only the middle slice holds anything, so that only there is something to see."""
    net = by_hand(nn.ReLU(), [1.0], (5, 16, 16))
    x = torch.zeros(1, 1, 1, 5, 16, 16)
    x[..., 3, 4:8, 4:8] = 4
    found = explained(method, net, x).clamp(min=0)
    assert np.unravel_index(int(found.argmax()), found.shape)[0] == 3


# --- the score --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "ordinal"])
def test_the_score_is_the_log_odds_of_the_probability(kind: Kind) -> None:
    task = Classification(QUESTIONS[kind])
    outputs = 2 * torch.randn(50, task.outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    if kind == "ordinal":
        outputs = outputs.sort(1, descending=True).values
    p = task.probabilities(outputs.numpy())
    for target in range(p.shape[1]):
        expected = np.log(p[:, target] / (1 - p[:, target]))
        np.testing.assert_allclose(log_odds(outputs, task.question, target).numpy(), expected, rtol=1e-6)


def test_of_two_exclusive_classes_the_score_is_the_difference_of_the_outputs() -> None:
    question = Question("label", "multiclass", ("no", "yes"))
    outputs = torch.tensor([[1.0, 4.0], [-200.0, 300.0]])
    torch.testing.assert_close(log_odds(outputs, question, 1), torch.tensor([3.0, 500.0]))
    torch.testing.assert_close(log_odds(outputs, question, 0), -torch.tensor([3.0, 500.0]))


# --- plain images and mixtures ------------------------------------------------------------------------------


def test_blurring_keeps_a_constant_and_a_straight_line_in_the_middle() -> None:
    torch.testing.assert_close(blurred(torch.full((1, 2, 3, 4, 5, 6), 7.0)), torch.full((1, 2, 3, 4, 5, 6), 7.0))
    line = torch.arange(41.0).expand(1, 1, 41)
    assert blurred(line, 0.05)[0, 0, 20] == pytest.approx(20, abs=1e-4)


def test_spreading_out_keeps_the_sum_and_widens_by_sigma() -> None:
    point = torch.zeros(1, 61, 61)
    point[0, 30, 30] = 5
    wide = spread_out(point, 4 / 61)
    assert float(wide.sum()) == pytest.approx(5, rel=1e-5)
    offset = torch.arange(61.0) - 30
    assert float((wide[0].sum(0) * offset**2).sum() / 5) == pytest.approx(16, rel=0.01)
    corner = torch.zeros(3, 9, 9)
    corner[0, 0, 0] = 5
    assert float(spread_out(corner, 0.2).sum()) == pytest.approx(5, rel=1e-5)


def test_what_is_kept_stays_and_what_is_removed_is_filled_in_from_around_it() -> None:
    x = torch.full((1, 2, 1, 3, 20, 20), 5.0)
    x[..., 1, 8:12, 8:12] = 50
    hole, nothing = torch.ones(3, 20, 20), torch.zeros(3, 20, 20)
    hole[1, 6:14, 6:14] = 0
    whole, filled, plain = torch.cat(list(removed(x, [torch.ones(3, 20, 20), hole, nothing])))
    assert torch.equal(whole, x[0])
    torch.testing.assert_close(filled, torch.full_like(filled, 5.0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain, blurred(x, 0.25)[0])


def test_a_slope_goes_on_through_a_hole() -> None:
    """On a straight slope the middle of a hole has the value that it had, and nothing leaves the slope's range."""
    x = torch.arange(32.0).expand(1, 1, 1, 1, 32, 32)
    hole = torch.ones(1, 32, 32)
    hole[:, 10:21, 12:21] = 0
    (filled,) = next(removed(x, [hole]))
    assert float(filled[0, 0, 0, 15, 16]) == pytest.approx(16, abs=0.05)
    assert filled[..., 12].min() > 10 and filled[..., 20].max() < 22
    row = filled[0, 0, 0, 15]
    assert abs(float(row[12] - x[..., 15, 11])) < 2.5 and abs(float(row[20] - x[..., 15, 21])) < 2.5, "no edge"


# --- each method against its definition ---------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["mean", "place"])
def test_gradcam_of_two_channels_by_hand(gradient: str) -> None:
    net = by_hand(nn.Identity(), [2.0, -1.0], (1, 4, 6))
    x = image(1, 2, 1, 4, 6)
    expected = (2 * x[0, 0, 0] - x[0, 0, 1]).clamp(min=0) / (4 * 6)
    torch.testing.assert_close(explained("gradcam", net, x, gradient=gradient), expected)


def test_gradcam_at_each_place_sees_a_dense_neck_that_the_mean_gradient_cannot() -> None:
    """A neck that reads one pixel only: at each place the gradient says which one."""
    net = by_hand(nn.Identity(), [1.0], (1, 4, 4))
    reader = torch.zeros(16, 1)
    reader[5] = 3.0
    net.pooling = nn.Sequential(nn.Flatten(), Times(reader))
    x = image(1, 1, 1, 4, 4).abs()
    at_place = explained("gradcam", net, x, gradient="place").flatten()
    expected = torch.zeros(16)
    expected[5] = 3 * x.flatten()[5]
    torch.testing.assert_close(at_place, expected)
    torch.testing.assert_close(explained("gradcam", net, x).flatten(), 3 / 16 * x.flatten())


class Times(nn.Module):
    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def test_shifted_copies_place_a_spot_between_the_places_of_the_map() -> None:
    """A map with a step of 8: alone it can only tell the middle of a block, with shifts the place of the spot."""
    net = by_hand(nn.AvgPool2d(8), [1.0], (1, 48, 48))
    off = {1: [], 3: []}  # type: dict[int, list[float]]
    for at in range(16, 33):
        x = torch.zeros(1, 1, 1, 1, 48, 48)
        x[..., at, at] = 1
        for shifts in off:
            row = explained("gradcam", net, x, shifts=shifts)[0].sum(1)
            off[shifts].append(abs(float((row * torch.arange(48)).sum() / row.sum()) - at))
    assert max(off[1]) >= 3.5 and max(off[3]) <= 1.5


def test_gradcam_is_enlarged_with_its_edges_in_place() -> None:
    """Each half of a map of 1 x 2 covers its half of the image."""
    net = by_hand(nn.AvgPool2d((8, 8)), [1.0], (1, 8, 16))
    x = torch.zeros(1, 1, 1, 1, 8, 16)
    x[..., 8:] = 1
    found = explained("gradcam", net, x, shifts=1)[0, 0]
    assert found[:4].max() == 0 and found[12:].min() == found.max() > 0
    torch.testing.assert_close(found + found.flip(0), torch.full((16,), float(found.max())))


@pytest.mark.parametrize("baseline", ["blur", "mean"])
def test_integrated_gradients_of_a_linear_model_are_weight_times_difference(baseline: str) -> None:
    weight = image(8, 8)[0]
    net = by_hand(Weighted(weight), [1.0], (1, 8, 8))
    x = image(1, 1, 1, 8, 8, seed=2)
    plain = blurred(x, 0.06) if baseline == "blur" else x.mean().expand_as(x)
    found = explained("integrated_gradients", net, x, baseline=baseline, smooth=0.0, steps=3)
    torch.testing.assert_close(found[0], weight * (x - plain)[0, 0, 0, 0] / 64, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dims", [2, 3])
def test_integrated_gradients_are_complete(dims: int) -> None:
    """They sum to score(x) - score(baseline): of a real network, smoothed or not, over moments and slices."""
    net, x = network((3, 16, 16), dims=dims), image(2, 1, 3, 16, 16)
    options = integrated_gradients.Options(steps=128)
    with torch.no_grad():
        plain = integrated_gradients.start(x, options)
        whole = float(score(OfClass(net, "label", 2), x) - score(OfClass(net, "label", 2), plain))
    alone = explained("integrated_gradients", net, x, target=2, steps=128, smooth=0.0)
    assert float(alone.sum()) == pytest.approx(whole, abs=0.01 * float(alone.abs().sum()))
    spread = explained("integrated_gradients", net, x, target=2, steps=128, smooth=0.1)
    assert float(spread.sum()) == pytest.approx(float(alone.sum()), abs=1e-4)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_integrated_gradients_integrate_polynomials_exactly(steps: int) -> None:
    """n points of Gauss and Legendre are exact for a gradient of degree 2n - 1: f = mean of x^(2n)."""
    net = by_hand(Power(2 * steps), [1.0], (1, 6, 6)).double()
    x = image(1, 1, 1, 6, 6).double()
    plain = integrated_gradients.start(x, integrated_gradients.Options())
    found = explained("integrated_gradients", net, x, steps=steps, smooth=0.0)
    torch.testing.assert_close(
        found[0], ((x ** (2 * steps) - plain ** (2 * steps)) / 36)[0, 0, 0, 0], rtol=1e-6, atol=0
    )


class Power(nn.Module):
    def __init__(self, degree: int) -> None:
        super().__init__()
        self.degree = degree

    def forward(self, x: Tensor) -> Tensor:
        return x**self.degree


def test_occlusion_of_a_network_that_looks_at_one_quadrant_is_highest_there() -> None:
    weight = torch.zeros(16, 16)
    weight[:8, 8:] = 1
    net = by_hand(Weighted(weight), [1.0], (1, 16, 16))
    x = torch.zeros(1, 1, 1, 1, 16, 16)
    for row in (2, 10):
        for column in (2, 10):
            x[..., row : row + 4, column : column + 4] = 1
    found = explained("occlusion", net, x)[0]
    row, column = np.unravel_index(int(found.argmax()), (16, 16))
    assert row < 8 <= column
    assert found[2:6, 10:14].min() > found[10:14, 2:6].max()
    assert found[12:, :4].max() == 0


def test_occlusion_without_overlap_is_the_fall_of_each_box() -> None:
    net = by_hand(nn.Identity(), [1.0], (1, 8, 8))
    x = image(1, 1, 1, 8, 8)
    found = explained("occlusion", net, x, box=0.5, places=2)[0]
    for window in occlusion.boxes(torch.Size((1, 8, 8)), occlusion.Options(box=0.5, places=2)):
        kept = torch.ones(1, 8, 8)
        kept[window] = 0
        fall = x.mean() - next(removed(x, [kept])).mean()
        torch.testing.assert_close(found[window[1:]], fall.clamp(min=0).expand(4, 4), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 28, 28), (1, 7, 100), (5, 9, 3), (1, 1, 1), (64, 64, 64)])
@pytest.mark.parametrize("box", [0.05, 0.25, 1.0])
def test_boxes_cover_everything(size: tuple[int, int, int], box: float) -> None:
    if box == 0.05 and math.prod(size) > 10_000:
        pytest.skip("thousands of boxes")
    covered = torch.zeros(size)
    for window in occlusion.boxes(torch.Size(size), occlusion.Options(box=box)):
        covered[window] += 1
    assert covered.min() >= 1


@pytest.mark.parametrize("dims", [2, 3])
def test_attention_is_the_weights_of_the_pooling(dims: int) -> None:
    net = network((2, 8, 8), dims=dims, pooling="attention")
    net.backbone, net.pooling = nn.ReLU(), type(net.pooling)(attention_options(), 1)
    x = image(2, 1, 2, 8, 8)
    with torch.no_grad():
        slices = x[0, :, 0].reshape(-1, 1, 8, 8) if dims == 2 else x[0]
        weights = net.pooling.weights(slices.relu())  # type: ignore[operator]
    torch.testing.assert_close(explained("attention", net, x), weights.reshape(2, 2, 8, 8).mean(0))


def test_only_attention_pooling_has_attention() -> None:
    assert attention.available(OfClass(network((1, 16, 16), pooling="attention"), "label", 0))
    assert not attention.available(OfClass(network((1, 16, 16)), "label", 0))
    assert gradcam.available(OfClass(network((1, 16, 16)), "label", 0))
