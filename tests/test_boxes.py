"""Overlap, suppression, fusion and tiles, held to plain loops and to properties that any right answer has."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from osler import boxes
from osler.boxes import Boxes


def drawn(seed: int, n: int, classes: int = 3, *, flat: bool = False, ties: bool = False) -> Boxes:
    g = torch.Generator().manual_seed(seed)
    middle, half = torch.rand(n, 3, generator=g) * 60, torch.rand(n, 3, generator=g) * 12 + 1
    places = torch.cat([middle - half, middle + half], 1)
    if flat:
        places[:, 0], places[:, 3] = 0, 1
    scores = torch.rand(n, generator=g)
    scores = (scores * 8).round() / 8 if ties else scores
    return Boxes(places, scores, torch.randint(0, classes, (n,), generator=g))


def iou(a: list[float], b: list[float]) -> float:
    """By hand, one axis after the other."""
    both = math.prod(max(0.0, min(a[i + 3], b[i + 3]) - max(a[i], b[i])) for i in range(3))
    one, other = (math.prod(c[i + 3] - c[i] for i in range(3)) for c in (a, b))
    return both / (one + other - both)


def plain_suppression(found: Boxes, overlap: float) -> list[int]:
    """The greedy loop as it is published: rows that stay, the surest first; of equals the first."""
    places, classes = found.places.double().tolist(), found.classes.tolist()
    kept: list[int] = []
    for row in sorted(range(len(found)), key=lambda r: (-float(found.scores[r]), r)):
        if all(classes[k] != classes[row] or iou(places[k], places[row]) <= overlap for k in kept):
            kept.append(row)
    return kept


def rows(found: Boxes) -> set[tuple[float, ...]]:
    whole = torch.cat([found.places, found.scores[:, None], found.classes[:, None].float()], 1)
    return {tuple(row) for row in whole.tolist()}


def same(a: Boxes, b: Boxes) -> None:
    for name in ("places", "scores", "classes"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name))


def test_overlap_is_that_of_pixels() -> None:
    whole = torch.randint(0, 12, (40, 6), generator=torch.Generator().manual_seed(0)).float()
    places = torch.cat([torch.minimum(whole[:, :3], whole[:, 3:]), torch.maximum(whole[:, :3], whole[:, 3:]) + 1], 1)
    grids = torch.zeros(40, 13, 13, 13, dtype=torch.bool)
    for grid, (z0, y0, x0, z1, y1, x1) in zip(grids, places.int().tolist(), strict=True):
        grid[z0:z1, y0:y1, x0:x1] = True
    flat = grids.flatten(1).float()
    both = flat @ flat.T
    truth = both / (flat.sum(1)[:, None] + flat.sum(1)[None] - both)
    torch.testing.assert_close(boxes.overlaps(places, places), truth)


def test_generalised_overlap() -> None:
    a = torch.tensor([[0.0, 0, 0, 1, 2, 2]])
    torch.testing.assert_close(boxes.generalised_overlap(a, a), torch.ones(1))
    # Two unit squares in the corners of a square of side 3: nothing shared, 2 of 9 filled.
    corners = torch.tensor([[0.0, 0, 0, 1, 1, 1]]), torch.tensor([[0.0, 2, 2, 1, 3, 3]])
    torch.testing.assert_close(boxes.generalised_overlap(*corners), torch.tensor([-7 / 9]))
    found = drawn(0, 200)
    value = boxes.generalised_overlap(found.places, found.places.roll(1, 0))
    pairs = zip(found.places.tolist(), found.places.roll(1, 0).tolist(), strict=True)
    plain = torch.tensor([iou(p, q) for p, q in pairs])
    assert (value > -1).all() and (value <= plain + 1e-5).all()


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("overlap", [0.1, 0.5])
def test_suppression_is_the_greedy_loop(flat: bool, ties: bool, overlap: float) -> None:
    for seed in range(6):
        found = drawn(seed, 150, flat=flat, ties=ties)
        same(boxes.suppress(found, overlap), found[torch.tensor(plain_suppression(found, overlap))])


def test_suppression_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    found = drawn(1, 200)
    whole = boxes.suppress(found, 0.2)
    monkeypatch.setattr(boxes, "_BLOCK", 7)
    same(boxes.suppress(found, 0.2), whole)


def test_a_chain_of_boxes_is_dropped_one_by_one() -> None:
    """Each overlaps the next only: the second falls, so the third stays, and so on, the longest way to go."""
    along = torch.arange(50.0)
    places = torch.zeros(50, 6)
    places[:, 2], places[:, 3], places[:, 4], places[:, 5] = along * 6, 1, 1, along * 6 + 10
    found = Boxes(places, torch.linspace(1, 0.1, 50), torch.zeros(50, dtype=torch.long))
    assert boxes.suppress(found, 0.2).places[:, 2].tolist() == (along[::2] * 6).tolist()


def test_suppression_has_the_properties_of_a_maximum() -> None:
    found = drawn(2, 300)
    once = boxes.suppress(found, 0.3)
    same(boxes.suppress(once, 0.3), once)
    shuffled = found[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    assert rows(boxes.suppress(shuffled, 0.3)) == rows(once)
    apart = [boxes.suppress(found[found.classes == c], 0.3) for c in range(3)]
    assert set.union(*(rows(a) for a in apart)) == rows(once)
    assert rows(boxes.suppress(found, 1.0)) == rows(found)


def test_nothing_found_stays_nothing() -> None:
    none = drawn(0, 5)[:0]
    assert len(boxes.suppress(none, 0.5)) == len(boxes.fuse([none, none], 0.5)) == 0
    assert len(boxes.from_tiles([((0, 0, 0), none)], (1, 9, 9), 0.5)) == 0
    one = drawn(0, 1)
    assert len(boxes.fuse([none, one], 0.5)) == 1


def plain_fusion(answers: list[Boxes], overlap: float) -> list[tuple[float, ...]]:
    """Section 3 of Solovyev 2021, in lists."""
    found = sorted(
        (float(s), int(c), p) for each in answers
        for p, s, c in zip(each.places.double().tolist(), each.scores, each.classes, strict=True)
    )[::-1]  # fmt: skip
    clusters: list[tuple[int, list[float], list[tuple[float, list[float]]]]] = []
    for score, name, place in found:
        near = [(iou(place, fused), i) for i, (c, fused, _) in enumerate(clusters) if c == name]
        best, number = max(near, default=(0.0, -1))
        members = [(score, place)]
        if best > overlap:
            members = clusters[number][2] + members
        total = sum(s for s, _ in members)
        fused = [sum(s * p[i] for s, p in members) / total for i in range(6)]
        if best > overlap:
            clusters[number] = (name, fused, members)
        else:
            clusters.append((name, fused, members))
    n = len(answers)
    return [(*fused, sum(s for s, _ in m) / len(m) * min(len(m), n) / n, name) for name, fused, m in clusters]


def test_fusion_is_the_published_loop() -> None:
    for seed in range(5):
        answers = [drawn(10 * seed + i, 40, classes=2) for i in range(3)]
        found = boxes.fuse(answers, 0.3)
        whole = torch.cat([found.places, found.scores[:, None], found.classes[:, None].float()], 1).double()
        truth = torch.tensor(sorted(plain_fusion(answers, 0.3)), dtype=torch.float64)
        order = sorted(range(len(whole)), key=lambda r: whole[r].tolist())
        torch.testing.assert_close(whole[order], truth, rtol=1e-4, atol=1e-3)


def test_fusion_agrees_with_ensemble_boxes() -> None:
    oracle = pytest.importorskip("ensemble_boxes")
    answers = [drawn(i, 60, classes=2, flat=True) for i in range(4)]
    found = boxes.fuse(answers, 0.4)
    place = [(a.places[:, [2, 1, 5, 4]].clamp(0, 100) / 100).tolist() for a in answers]
    cut = [Boxes(a.places.clamp(0, 100), a.scores, a.classes) for a in answers]
    found = boxes.fuse(cut, 0.4)
    truth, scores, names = oracle.weighted_boxes_fusion(
        place, [a.scores.tolist() for a in answers], [a.classes.tolist() for a in answers], iou_thr=0.4
    )
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(found.scores.numpy(), scores[order], atol=1e-5)
    np.testing.assert_allclose(found.places[:, [2, 1, 5, 4]].numpy() / 100, truth[order], atol=1e-4)
    assert (found.classes.numpy() == names[order]).all()


def test_fusion_of_equal_answers_is_the_answer() -> None:
    found = boxes.suppress(drawn(3, 60), 0.05)
    same(boxes.fuse([found, found, found], 0.5), found)
    same(boxes.fuse([found], 0.5), found)


def test_what_one_of_two_saw_counts_half() -> None:
    one = Boxes(torch.tensor([[0.0, 0, 0, 1, 4, 4]]), torch.tensor([0.8]), torch.tensor([1]))
    fused = boxes.fuse([one, one[:0]], 0.5)
    torch.testing.assert_close(fused.scores, torch.tensor([0.4]))
    torch.testing.assert_close(fused.places, one.places)


@pytest.mark.parametrize("axes", [(), (1,), (2,), (0, 1, 2)])
def test_a_mirror_twice_is_none(axes: tuple[int, ...]) -> None:
    places, size = drawn(0, 30).places, (70, 80, 90)
    there = boxes.mirror(places, size, axes)
    torch.testing.assert_close(boxes.mirror(there, size, axes), places)
    assert (there[:, 3:] > there[:, :3]).all()
    mask = torch.zeros(70, 80, 90)
    mask[3:9, 4:20, 5:11] = 1
    seen = mask.flip(axes).nonzero() if axes else mask.nonzero()
    truth = torch.cat([seen.amin(0), seen.amax(0) + 1]).float()
    torch.testing.assert_close(boxes.mirror(torch.tensor([[3.0, 4, 5, 9, 20, 11]]), size, axes)[0], truth)


def lattice(image: tuple[int, int, int], size: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Tiles that overlap by half."""
    along = [
        sorted({min(s, n - w) for s in range(0, max(1, n - w // 2), max(1, w // 2))})
        for n, w in zip(image, size, strict=True)
    ]
    return [(z, y, x) for z in along[0] for y in along[1] for x in along[2]]


def seen(truth: Boxes, start: tuple[int, int, int], size: tuple[int, int, int], noise: Tensor) -> Boxes:
    """What a perfect observer of a tile says: all that is at least a fifth in it, as far as it sees it."""
    shift = torch.tensor([*start, *start], dtype=torch.float32)
    whole = truth.places - shift
    cut = whole.clamp(min=0).minimum(torch.tensor([*size, *size], dtype=torch.float32))
    rows = (boxes.volume(cut) > 0.2 * boxes.volume(whole)).nonzero()[:, 0]
    # The less it sees, the less sure; and each tile is a little off in its own way.
    scores = truth.scores[rows] * boxes.volume(cut[rows]) / boxes.volume(whole[rows])
    return Boxes(cut[rows] + noise[rows], scores, truth.classes[rows])


@pytest.mark.parametrize(("image", "size"), [((1, 300, 260), (1, 128, 96)), ((80, 96, 70), (32, 48, 70))])
def test_tiles_give_each_object_once(image: tuple[int, int, int], size: tuple[int, int, int]) -> None:
    flat = image[0] == 1
    for seed in range(8):
        g = torch.Generator().manual_seed(seed)
        # No object is longer than three eighths of a tile.
        longest = torch.tensor([0.36 * s for s in size])
        half = (0.3 + 0.7 * torch.rand(40, 3, generator=g)) * longest / 2
        middle = half + torch.rand(40, 3, generator=g) * (torch.tensor(image) - 2 * half)
        places = torch.cat([middle - half, middle + half], 1)
        if flat:
            places[:, 0], places[:, 3] = 0, 1
        truth = boxes.suppress(Boxes(places, torch.full((40,), 0.9), torch.zeros(40, dtype=torch.long)), 0.0)
        tiles = []
        for start in lattice(image, size):
            noise = torch.randn(len(truth), 6, generator=g) * 0.2
            tiles.append((start, seen(truth, start, size, noise * torch.tensor([not flat, 1, 1, not flat, 1, 1]))))
        found = boxes.from_tiles(tiles, size, 0.3)
        assert len(found) == len(truth)
        assert (boxes.overlaps(truth.places, found.places).amax(1) > 0.7).all()


def test_one_tile_is_left_as_it_is() -> None:
    found = boxes.suppress(drawn(5, 30), 0.2)
    same(boxes.from_tiles([((0, 0, 0), found)], (60, 60, 60), 0.2), found)
