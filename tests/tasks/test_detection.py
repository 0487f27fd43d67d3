"""Boxes from maps: what the head offers, what the loss asks for, and that tiny things are found."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from osler import boxes
from osler.case import Question
from osler.tasks.detection import OVERLAP, Detection, Offers

TASK = Detection(Question("boxes", "detection", ("cell", "lesion")))
WIDTHS = (8, 12, 16, 24)
SIZES = {2: (48, 64), 3: (16, 32, 32)}
STRIDES = {2: [(4, 4), (8, 8), (16, 16)], 3: [(1, 2, 2), (2, 4, 4), (4, 8, 8)]}


def maps(dims: int, batch: int = 2, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [tuple(n // s for n, s in zip(SIZES[dims], stride, strict=True)) for stride in STRIDES[dims]]
    return [torch.randn(batch, w, *size, generator=g) for w, size in zip(WIDTHS, sizes, strict=False)]


def patch(dims: int) -> tuple[int, ...]:
    return (1, *SIZES[2]) if dims == 2 else SIZES[3]


def head(dims: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return TASK.head(WIDTHS[:3], STRIDES[dims], dims)


def target(dims: int) -> NDArray[np.float32]:
    if dims == 2:
        return np.array([[0, 6, 6, 1, 30, 26, 0], [0, 20, 40, 1, 26, 46, 1]], np.float32)
    return np.array([[2, 6, 6, 12, 26, 26, 0], [9, 20, 27, 12, 23, 30, 1]], np.float32)


def perfect(dims: int, wanted: NDArray[np.float32]) -> Offers:
    """Offers of which those nearest to each object give exactly its box and class, and all others nothing."""
    said: Any = head(dims)(maps(dims, 1))
    logits, shifts = torch.full_like(said.logits, -12.0), torch.zeros_like(said.shifts)
    for row in torch.from_numpy(wanted):
        low, high = row[3 - dims : 3], row[6 - dims : 6]
        near = ((said.points - (low + high) / 2).abs() / said.strides).sum(1)
        chosen = near.argsort()[:1]
        shifts[0, chosen, :dims] = ((low + high) / 2 - said.points[chosen]) / said.strides[chosen]
        shifts[0, chosen, dims:] = ((high - low) / (4 * said.strides[chosen])).log()
        logits[0, chosen, int(row[6])] = 12.0
    return Offers(logits, shifts, said.points, said.strides)


@pytest.mark.parametrize("dims", [2, 3])
def test_points_are_the_centres_of_pixels(dims: int) -> None:
    said: Any = head(dims)(maps(dims))
    first = TASK.finest(STRIDES[dims])
    sizes = [m.shape[2:] for m in maps(dims)[first:]]
    assert said.logits.shape == (2, sum(int(np.prod(s)) for s in sizes), 2)
    assert said.shifts.shape[-1] == 2 * dims
    at = 0
    for stride, size in zip(STRIDES[dims][first:], sizes, strict=True):
        count = int(np.prod(size))
        truth = (np.stack(np.unravel_index(np.arange(count), size), 1) + 0.5) * stride
        np.testing.assert_allclose(said.points[at : at + count].numpy(), truth)
        at += count


@pytest.mark.parametrize("dims", [2, 3])
def test_maps_may_be_of_any_width(dims: int) -> None:
    """A backbone of width 33 has maps of 66 channels, which no eight groups share."""
    sizes = [tuple(n // s for n, s in zip(SIZES[dims], stride, strict=True)) for stride in STRIDES[dims]]
    offers = TASK.head((33, 66, 132), STRIDES[dims], dims)([
        torch.randn(1, width, *size) for width, size in zip((33, 66, 132), sizes, strict=True)
    ])  # fmt: skip
    assert torch.isfinite(offers.logits).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_offered_is_decoded(dims: int) -> None:
    wanted = target(dims)
    (found,) = TASK.decode(perfect(dims, wanted), patch(dims))
    order = found.places[:, 2].argsort()
    np.testing.assert_allclose(found.places[order].numpy(), wanted[:, :6], atol=1e-3)
    assert found.classes[order].tolist() == [0, 1]
    assert (found.scores > 0.99).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_boxes_end_at_the_patch_and_are_few(dims: int) -> None:
    said: Any = head(dims)(maps(dims))
    loud = said._replace(logits=said.logits + 4, shifts=said.shifts + torch.randn_like(said.shifts) * 2)
    for found in TASK.decode(loud, patch(dims), most=7):
        assert len(found) <= 7
        assert (found.places >= 0).all() and (found.places[:, 3:] <= torch.tensor(patch(dims))).all()
        assert (found.scores.diff() <= 0).all()
        same = boxes.suppress(found, OVERLAP[dims])
        assert len(same) == len(found)
    if dims == 2:
        assert (found.places[:, 0] == 0).all() and (found.places[:, 3] == 1).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_least_where_all_is_right(dims: int) -> None:
    wanted = target(dims)
    right = perfect(dims, wanted)
    least = TASK.loss(right, [wanted])
    assert 0 <= least < 0.05
    g = torch.Generator().manual_seed(0)
    for _ in range(5):
        moved = right._replace(shifts=right.shifts + 0.3 * torch.randn(right.shifts.shape, generator=g))
        assert TASK.loss(moved, [wanted]) > least
    assert TASK.loss(right._replace(logits=right.logits.flip(-1)), [wanted]) > least + 1
    assert TASK.loss(right, [wanted[:0]]) > least + 1  # all that is said is wrong where there is nothing


@pytest.mark.parametrize("dims", [2, 3])
def test_every_object_has_an_offer_that_answers_for_it(dims: int) -> None:
    """Also one of 3 pixels, whose middle lies between the pixels of every map: gradients reach its score."""
    size = SIZES[dims]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        low = np.array([rng.uniform(0, n - 3) for n in size])
        flat = ([0.0], [1.0]) if dims == 2 else ([], [])
        wanted = np.array([[*flat[0], *low, *flat[1], *(low + 3), 1]], np.float32)
        said: Any = head(dims)(maps(dims, 1, seed))
        logits = said.logits.detach().requires_grad_()
        TASK.loss(said._replace(logits=logits), [wanted]).backward()
        pushed_up = (logits.grad[0] < 0).nonzero()
        assert len(pushed_up) and (pushed_up[:, 1] == 1).all()
        away = (said.points[pushed_up[:, 0]] - torch.tensor(low + 1.5)).abs()
        assert (away <= said.strides.amin(0).clamp(min=1.5)).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_unknown_adds_nothing(dims: int) -> None:
    said: Any = head(dims)(maps(dims))
    one = Offers(said.logits[:1], said.shifts[:1], said.points, said.strides)
    wanted = target(dims)
    torch.testing.assert_close(TASK.loss(said, [wanted, None]), TASK.loss(one, [wanted]))
    nothing = TASK.loss(said, [None, None])
    nothing.backward()
    assert nothing == 0


def test_the_order_of_objects_and_patches_does_not_matter() -> None:
    said: Any = head(2)(maps(2))
    wanted = target(2)
    there = TASK.loss(said, [wanted, wanted[:1]])
    turned = Offers(said.logits.flip(0), said.shifts.flip(0), said.points, said.strides)
    torch.testing.assert_close(TASK.loss(turned, [wanted[:1], wanted[::-1].copy()]), there)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_float32_under_bfloat16(dims: int) -> None:
    network = head(dims)
    with torch.autocast("cpu", torch.bfloat16):
        said: Any = network(maps(dims))
        assert said.logits.dtype == said.shifts.dtype == torch.float32
        loss = TASK.loss(said, [target(dims)] * 2)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_decoder_stops_where_the_head_begins(dims: int) -> None:
    strides = [(1,) * dims, (2,) * dims, (4,) * dims, (8,) * dims, (16,) * dims]
    assert TASK.finest(strides) == {2: 3, 3: 1}[dims]
    assert TASK.finest([(1,) * dims]) == 0  # one map only: better than none


def test_a_network_learns_where_small_things_are() -> None:
    """Spots of 3 to 6 pixels in noise: in a minute of training, a head on plain convolutions finds them."""
    torch.manual_seed(0)
    task = Detection(Question("boxes", "detection", ("spot",)))
    levels = torch.nn.ModuleList(
        torch.nn.Sequential(torch.nn.Conv3d(k, 16, 3, 2, 1), torch.nn.InstanceNorm3d(16), torch.nn.ReLU())
        for k in (1, 16)
    )
    place = task.head([16, 16], [(2, 2, 2), (4, 4, 4)], 3)
    parameters = [*levels.parameters(), *place.parameters()]
    optimizer = torch.optim.AdamW(parameters, 3e-3)

    def drawn(rng: np.random.Generator) -> tuple[Tensor, NDArray[np.float32]]:
        image = rng.normal(0, 0.3, (24, 24, 24)).astype(np.float32)
        side = rng.integers(3, 7)
        low = rng.integers(2, 22 - side, 3)
        image[tuple(slice(a, a + side) for a in low)] += 2
        return torch.from_numpy(image)[None], np.array([[*low, *(low + side), 0]], np.float32)

    def said(x: Tensor) -> Any:
        first = levels[0](x)
        return place([first, levels[1](first)])

    rng = np.random.default_rng(0)
    for _ in range(80):
        x, wanted = zip(*(drawn(rng) for _ in range(4)), strict=True)
        optimizer.zero_grad()
        task.loss(said(torch.stack(x)), wanted).backward()
        optimizer.step()
    hits = 0
    for _ in range(20):
        one, truth = drawn(rng)
        with torch.no_grad():
            (found,) = task.decode(said(one[None]), (24, 24, 24))
        hits += bool(len(found)) and float(boxes.overlaps(found.places[:1], torch.from_numpy(truth[:, :6]))) > 0.1
    assert hits >= 17
