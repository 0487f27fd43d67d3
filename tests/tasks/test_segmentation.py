"""Which pixels are of which class: targets, losses against their definitions, answers."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from osler.case import Question
from osler.tasks.segmentation import Segmentation, surest

ORGANS = Question("mask", "segmentation", ("ventricle", "muscle"), values=((1,), (2, 5)), ignore=9)
REGIONS = Question("mask", "segmentation", ("whole", "core", "rim"), values=((1, 2, 4), (2, 4), (4,)))
LESIONS = Question("mask", "segmentation", ("lesion",), values=((255,),), separate=True)


def soft_dice(p: torch.Tensor, g: torch.Tensor) -> float:
    return float((2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))


def test_classes_are_exclusive_unless_they_share_a_value() -> None:
    assert not Segmentation(ORGANS).regions
    assert Segmentation(ORGANS).outputs == 3
    assert Segmentation(REGIONS).regions
    assert Segmentation(REGIONS).outputs == 3
    assert Segmentation(LESIONS).background == 0


@pytest.mark.parametrize("shape", [(3, 1, 8, 6), (2, 4, 8, 6)])
def test_the_loss_of_classes_is_cross_entropy_and_batch_dice_of_the_known_pixels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    targets = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 5, 9, 77], shape).astype(np.uint8))
    raw = torch.randn(shape[0], 3, *shape[1:])
    # 77 is of no class, so it is background; 9 is unknown.
    index = torch.tensor([{1: 1, 2: 2, 5: 2, 9: -100}.get(int(v), 0) for v in targets.flatten()]).reshape(shape)
    known = targets != 9
    p = raw.softmax(1)
    dice = [soft_dice(p[:, k][known], (index == k).float()[known]) for k in (1, 2)]
    expected = float(functional.cross_entropy(raw, index)) + 1 - sum(dice) / 2
    flat = raw[:, :, 0] if shape[1] == 1 else raw
    assert math.isclose(float(Segmentation(ORGANS).loss([flat], targets)), expected, rel_tol=1e-5)


def test_the_loss_of_regions_is_binary_cross_entropy_and_dice_of_each() -> None:
    torch.manual_seed(0)
    targets = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 4, 255], (2, 3, 5, 7)).astype(np.uint8))
    raw = torch.randn(2, 3, 3, 5, 7)
    known = targets != 255
    member = torch.stack([torch.isin(targets, torch.tensor(v)) for v in REGIONS.values], 1).float()
    losses = [functional.binary_cross_entropy_with_logits(raw[:, k][known], member[:, k][known]) for k in range(3)]
    dice = [soft_dice(raw.sigmoid()[:, k][known], member[:, k][known]) for k in range(3)]
    expected = float(sum(losses)) / 3 + 1 - sum(dice) / 3
    assert math.isclose(float(Segmentation(REGIONS).loss([raw], targets)), expected, rel_tol=1e-5)


def test_a_deep_level_counts_half_of_the_finer_one_on_the_nearest_labels() -> None:
    torch.manual_seed(0)
    task = Segmentation(ORGANS, deep=2)
    targets = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2], (2, 1, 8, 8)).astype(np.uint8))
    fine, coarse = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    alone, below = task.loss([fine], targets), task.loss([coarse], targets[:, :, 1::2, 1::2])
    torch.testing.assert_close(task.loss([fine, coarse], targets), 2 / 3 * alone + 1 / 3 * below)


@pytest.mark.parametrize("question", [ORGANS, REGIONS, LESIONS])
def test_where_nothing_is_known_there_is_no_gradient(question: Question) -> None:
    task = Segmentation(question)
    raw = torch.randn(2, task.outputs, 4, 6, 6, requires_grad=True)
    loss = task.loss([raw], torch.full((2, 4, 6, 6), question.unknown, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert raw.grad is not None
    assert not raw.grad.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_a_coarse_answer_is_judged_as_it_will_be_given(dims: int) -> None:
    torch.manual_seed(0)
    size = (1, 8, 12) if dims == 2 else (4, 8, 12)
    targets = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2], (2, *size)).astype(np.uint8))
    raw = torch.randn(2, 3, *(n // 2 for n in size[3 - dims :]), requires_grad=True)
    task = Segmentation(ORGANS)
    p = task.probabilities([raw.detach()], size)
    fine = p.log() if dims == 3 else p[:, :, 0].log()
    loss = task.loss([raw], targets)
    # Softmax after enlarging, for both: the logarithm of a probability is an output like the one that it came from.
    assert math.isclose(float(loss.detach()), float(task.loss([fine], targets)), rel_tol=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert raw.grad is not None and bool((raw.grad != 0).all())


def test_an_unknown_pixel_changes_nothing_whatever_is_said_of_it() -> None:
    task = Segmentation(ORGANS)
    targets = torch.from_numpy(np.random.default_rng(0).choice([0, 1, 2, 9], (2, 4, 6, 6)).astype(np.uint8))
    raw = torch.randn(2, 3, 4, 6, 6)
    other = torch.where((targets == 9)[:, None], torch.randn_like(raw), raw)
    torch.testing.assert_close(task.loss([raw], targets), task.loss([other], targets))


@pytest.mark.parametrize("question", [ORGANS, REGIONS, LESIONS])
def test_the_loss_is_float32_under_autocast_and_small_where_the_answer_is_right(question: Question) -> None:
    task = Segmentation(question)
    values = [0, *(v for group in question.values for v in group)]
    targets = torch.from_numpy(np.random.default_rng(0).choice(values, (2, 4, 6, 6)).astype(np.uint8))
    raw = (task._table[targets.long()].movedim(-1, 1) * 40 - 20).bfloat16()
    loss = task.loss([raw], targets)
    assert loss.dtype == torch.float32
    assert float(loss) < 1e-4
    assert float(task.loss([-raw], targets)) > 5


@pytest.mark.parametrize("question", [ORGANS, REGIONS, LESIONS])
def test_a_label_map_comes_back_from_sure_probabilities(question: Question) -> None:
    task = Segmentation(question)
    values = [0, *(group[0] for group in question.values)]
    labels = np.random.default_rng(0).choice(values, (3, 5, 7)).astype(np.uint8)
    raw = task._table[torch.from_numpy(labels).long()].movedim(-1, 0)[None] * 20 - 10
    p = task.probabilities([raw], raw.shape[2:])[0].numpy()
    np.testing.assert_array_equal(task.decode(p), labels)
    assert float(task.uncertainty(p).max()) < 0.01
    assert float(task.uncertainty(np.full_like(p, 0.5 if task.regions else 1 / len(p))).min()) > 0.999


def test_a_region_is_never_outside_of_the_one_that_holds_it() -> None:
    p = np.random.default_rng(0).random((3, 4, 9, 9)).astype(np.float32)
    task = Segmentation(REGIONS)
    labels = task.decode(p)
    whole, core, rim = (task.of_class(labels, name) for name in REGIONS.classes)
    assert (core <= whole).all()
    assert (rim <= core).all()


def test_flat_and_deep_outputs_become_probabilities_of_one_shape() -> None:
    task = Segmentation(ORGANS)
    assert task.probabilities([torch.randn(2, 3, 8, 6)], (1, 8, 6)).shape == (2, 3, 1, 8, 6)
    assert task.probabilities([torch.randn(2, 3, 4, 3)], (1, 8, 6)).shape == (2, 3, 1, 8, 6)
    p = task.probabilities([torch.randn(2, 3, 4, 8, 6)], (4, 8, 6))
    assert p.shape == (2, 3, 4, 8, 6)
    torch.testing.assert_close(p.sum(1), torch.ones(2, 4, 8, 6))


def test_each_lesion_is_a_finding_and_an_organ_is_one() -> None:
    labels = np.zeros((2, 8, 8), np.uint8)
    labels[0, 1:3, 1:3] = labels[1, 5:8, 4:8] = 255
    p = np.where(labels > 0, 0.75, 0.1).astype(np.float32)
    p[0, 1, 1] = 0.95
    lesions = Segmentation(LESIONS).findings(labels, np.stack([1 - p, p]), frame=3, by="model:x")
    assert [round(f.probability or 0, 3) for f in lesions] == [0.8, 0.75]
    assert [f.box.start for f in lesions if f.box] == [(0, 1, 1), (1, 5, 4)]
    assert [f.box.stop for f in lesions if f.box] == [(1, 3, 3), (2, 8, 8)]
    assert {(f.task, f.name, f.frame, f.by) for f in lesions} == {("mask", "lesion", 3, "model:x")}
    together = Question("mask", "segmentation", ("organ",), values=((255,),))
    (organ,) = Segmentation(together).findings(labels, np.stack([1 - p, p]))
    assert organ.mask is not None
    np.testing.assert_array_equal(organ.mask.within((2, 8, 8)), labels > 0)


def test_pixels_that_touch_by_a_corner_are_one_lesion() -> None:
    labels = np.zeros((2, 4, 4), np.uint8)
    labels[0, 1, 1] = labels[1, 2, 2] = 255
    assert len(Segmentation(LESIONS).findings(labels, np.full((2, 2, 4, 4), 0.5, np.float32))) == 1


def test_a_class_that_is_nowhere_is_stated_to_be_absent() -> None:
    (finding,) = Segmentation(LESIONS).findings(np.zeros((1, 4, 4), np.uint8), np.zeros((2, 1, 4, 4), np.float32))
    assert (finding.probability, finding.mask, finding.box) == (0.0, None, None)


def test_only_the_largest_part_of_the_named_classes_is_left() -> None:
    labels = np.zeros((1, 6, 10), np.uint8)
    labels[0, 0:3, 0:3], labels[0, 5, 9], labels[0, 0, 9], labels[0, 3:6, 4:6] = 1, 1, 2, 5
    kept = Segmentation(ORGANS).largest(labels, ["ventricle"])
    expected = labels.copy()
    expected[0, 5, 9] = 0
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(Segmentation(ORGANS).largest(labels, []), labels)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_limit_promises_a_higher_dice(seed: int) -> None:
    """Against the mean Dice with maps that are drawn, pixel by pixel, from the probabilities."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.3, 0.5 + seed, (2, 12, 15)).astype(np.float32)
    truths = rng.random((4000, *p.shape)) < p

    def expected(limit: float) -> float:
        taken = p >= limit
        return float(np.mean(2 * (truths & taken).sum((1, 2, 3)) / (truths.sum((1, 2, 3)) + taken.sum())))

    ours, others = expected(surest(p)), [expected(limit) for limit in np.linspace(0.02, 0.9, 45)]
    assert ours > max(others) - 2e-3 > expected(0.5)
    # Of the highest expected Dice it is half (Lipton et al., 2014).
    assert surest(p) == pytest.approx(max(others) / 2, abs=0.03)


def test_what_is_outlined_further_was_found_before_and_classes_stay_apart() -> None:
    p = np.full((3, 1, 20, 30), 0.01, np.float32)
    p[1, 0, 2:8, 2:8], p[1, 0, 4:6, 4:6] = 0.44, 0.9
    p[1, 0, 14:18, 2:6] = 0.44  # as sure, but nowhere likelier than not
    p[2, 0, 2:8, 7:14], p[2, 0, 4:6, 9:11] = 0.45, 0.9
    p[0] = 1 - p[1] - p[2]
    task = Segmentation(ORGANS)
    likeliest = task.decode(p)
    expected = np.zeros((1, 20, 30), np.uint8)
    expected[0, 2:8, 2:7], expected[0, 2:8, 7:14] = 1, 2
    expected[0, 4:6, 4:6] = 1
    assert (likeliest == 1).sum() == 4 and 40 < (expected == 2).sum() < 43
    np.testing.assert_array_equal(task.ranked(p, likeliest), expected)
    assert not task.ranked(p, np.zeros_like(likeliest)).any()


def test_all_levels_answer_while_training_and_the_finest_afterwards() -> None:
    head = Segmentation(ORGANS, deep=2).head([8, 16, 32], [(1, 1), (2, 2), (4, 4)], 2)
    maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
    assert [tuple(o.shape) for o in head.train()(maps)] == [(2, 3, 16, 16), (2, 3, 8, 8)]
    assert [tuple(o.shape) for o in head.eval()(maps)] == [(2, 3, 16, 16)]
