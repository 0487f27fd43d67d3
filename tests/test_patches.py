"""Windows of images and their targets, against what must lie in them."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Picture

from osler import draws, patches, volumes
from osler.case import Box, Case, Entry, Finding, Question, Source
from osler.image import Image
from osler.patches import Sample
from osler.problem import Problem
from osler.recipe import ImagePlan, PatchPlan, Recipe
from osler.volumes import Volume

MASK = Question("mask", "segmentation", ("a", "b"), values=((1,), (2,)))
BOXES = Question("boxes", "detection", ("a", "b"))
PLAN = Recipe(ImagePlan((1, 16, 24)), {"mask": MASK, "boxes": BOXES}, patches=PatchPlan(foreground=1.0))


def volume(plan: Recipe = PLAN, size: tuple[int, int, int] = (5, 40, 50)) -> Volume:
    rng = np.random.default_rng(0)
    labels = np.zeros((1, *size), np.uint8)
    labels[0, 3, 20:23, 30:34], labels[0, 1, 5, 5] = 1, 2
    findings = (
        Finding("boxes", "a", probability=1, box=Box((3, 20, 30), (4, 23, 34))),
        Finding("boxes", "b", probability=1, box=Box((1, 5, 5), (2, 6, 6))),
    )
    image = Image(rng.integers(0, 256, (1, 1, *size)).astype(np.uint8))
    return volumes.read(Case("c", "p", {"image": image}, findings, maps={"mask": labels}), plan)[0]


def test_a_volume_knows_where_its_classes_are() -> None:
    made = volume()
    places = [set(map(tuple, each.tolist())) for each in made.places]
    assert {(1, 5, 5)} in places
    assert {(3, y, x) for y in range(20, 23) for x in range(30, 34)} in places
    assert made.boxes["boxes"].tolist() == [[3, 20, 30, 4, 23, 34, 0], [1, 5, 5, 2, 6, 6, 1]]


def test_windows_around_something_hold_it() -> None:
    made = volume()
    keys = draws.keys(1, np.arange(40))
    x, truth = patches.batch([Sample([made])] * 40, keys, PLAN)
    targets = truth.places
    assert x.shape == (40, 1, 1, 1, 16, 24)
    held = torch.isin(targets["mask"], torch.tensor([1, 2], dtype=torch.uint8)).flatten(1).any(1)
    assert held.all()
    assert {1, 2} <= set(targets["mask"].unique().tolist())


def test_images_labels_and_boxes_are_cut_alike() -> None:
    made = volume()
    x, truth = patches.batch([Sample([made])] * 60, draws.keys(2, np.arange(60)), PLAN)
    targets = truth.places
    for number in range(60):
        for z0, y0, x0, z1, y1, x1, k in targets["boxes"][number].astype(int).tolist():
            inside = targets["mask"][number, z0:z1, y0:y1, x0:x1]
            assert (inside == k + 1).all()
        start = patches.starts(made, PLAN, draws.keys(2, np.array([number])))
        window = patches.cut(made.image, start, PLAN.image.size, 0)
        assert np.array_equal(x[number, 0].numpy(), window.astype(np.float32))


def test_without_foreground_windows_are_anywhere() -> None:
    plan = replace(PLAN, patches=PatchPlan(foreground=0.0))
    made = volume()
    first = np.array([patches.starts(made, plan, draws.keys(3, np.array([n]))) for n in range(3000)])
    room = np.array([5 - 1, 40 - 16, 50 - 24])
    assert (first >= 0).all() and (first <= room).all()
    for axis in range(3):
        counts = np.bincount(first[:, axis], minlength=room[axis] + 1)
        assert counts.min() > 0
        assert abs(first[:, axis].mean() - room[axis] / 2) < 0.06 * room[axis]


def test_an_image_smaller_than_the_window_lies_in_its_middle() -> None:
    image = Image(np.random.default_rng(1).integers(0, 256, (1, 1, 1, 10, 12)).astype(np.uint8))
    made = volumes.read(Case("c", "p", {"image": image}), PLAN)[0]
    start = patches.starts(made, PLAN, draws.keys(4))
    assert start == (0, -3, -6)
    window = patches.cut(made.image, start, PLAN.image.size, 9)
    assert np.array_equal(window[:, :, 3:13, 6:18], made.image)
    assert (window[:, :, :3] == 9).all() and (window[:, :, :, 18:] == 9).all()


def test_boxes_of_which_little_is_inside_are_left_out() -> None:
    boxes = np.array([[0, 0, 0, 1, 10, 10, 0], [0, 0, 0, 1, 10, 10, 1]], np.float32)
    boxes[1, :6] += [0, 0, 8, 0, 0, 8]
    kept = patches.cut_boxes(boxes, (0, 0, 0), (1, 16, 9))
    assert kept.tolist() == [[0, 0, 0, 1, 10, 9, 0]]


def test_what_nobody_said_is_unknown_not_absent() -> None:
    image = Image(np.zeros((1, 1, 1, 20, 30), np.uint8))
    bare = volumes.read(Case("c", "p", {"image": image}), PLAN)[0]
    targets = patches.batch([Sample([bare])], draws.keys(0), PLAN)[1].places
    assert targets["boxes"] == [None]
    assert (targets["mask"] == MASK.unknown).all()
    empty = (Finding("boxes", "a", probability=0), Finding("boxes", "b", probability=0))
    stated = volumes.read(Case("c", "p", {"image": image}, empty), PLAN)[0]
    targets = patches.batch([Sample([stated])], draws.keys(0), PLAN)[1].places
    assert targets["boxes"][0].shape == (0, 7)


def test_the_same_keys_give_the_same_windows() -> None:
    made = volume()
    keys = draws.keys(5, np.arange(8))
    one, _ = patches.batch([Sample([made])] * 8, keys, PLAN)
    two, _ = patches.batch([Sample([made])] * 3, keys[5:], PLAN)
    assert torch.equal(one[5:], two)


def test_many_pixels_go_to_files_and_stay_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, entries = tmp_path, []
    for n in range(3):
        array = np.random.default_rng(n).integers(0, 256, (20, 30)).astype(np.uint8)
        Picture.fromarray(array).save(folder / f"{n}.png")
        entries.append(Entry(str(n), str(n), {"image": Source(folder / f"{n}.png")}))
    inside = volumes.load(entries, PLAN, folder / "volumes")
    assert not (folder / "volumes").exists()
    monkeypatch.setattr(volumes, "MOST_IN_MEMORY", 700)
    outside = volumes.load(entries, PLAN, folder / "volumes")
    assert len(list((folder / "volumes").iterdir())) == 2
    for a, b in zip(inside, outside, strict=True):
        assert np.array_equal(a.image, b.image) and a.image.dtype == b.image.dtype == np.uint8


def test_a_case_that_does_not_suit_the_recipe_is_said_and_the_others_are_read(tmp_path: Path) -> None:
    entries = []
    for n in range(3):
        Picture.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / f"{n}.png")
        entries.append(Entry(str(n), str(n), {"image": Source(tmp_path / f"{n}.png")}))
    known = nib.Nifti1Image(np.zeros((30, 20, 1), np.float32), np.eye(4) * [2, 2, 2, 1])
    nib.save(known, tmp_path / "known.nii.gz")
    entries[1] = replace(entries[1], images={"image": Source(tmp_path / "known.nii.gz")})
    plan = replace(PLAN, patches=replace(PLAN.patches, unit="mm", spacing=(0.0, 1.0, 1.0), longest=0))
    left: list[Problem] = []
    assert [one.case for one in volumes.load(entries, plan, None, left.append)] == [1]
    assert [problem.path for problem in left] == [tmp_path / "0.png", tmp_path / "2.png"]
    with pytest.raises(Problem, match="counts in millimetres"):
        volumes.load(entries, plan)


def test_channels_that_do_not_fit_are_said() -> None:
    image = Image(np.zeros((1, 2, 1, 20, 30), np.uint8))
    with pytest.raises(Problem, match="2 channels"):
        volumes.read(Case("c", "p", {"image": image}), PLAN)


def test_few_cases_that_say_where_come_as_often_as_windows_around_something_do() -> None:
    """Of linked tasks; the others take the rest in turn, none twice in an epoch. Of enough, all come alike."""
    label = Question("label", "multiclass", ("a", "b"))
    linked = replace(PLAN, tasks={"label": label, **PLAN.tasks}, patches=PatchPlan(foreground=0.25, per_case=2))
    assert linked.linked
    shown, silent = Sample([volume()]), Sample([replace(volume(), labels={}, boxes={}, places=())])
    few, met = [shown] + [silent] * 39, set[int]()
    for epoch in range(12):
        order = patches.turns(few, linked, draws.keys(epoch))
        assert len(order) == 80
        assert (order == 0).sum() == 20
        assert np.bincount(order[order > 0]).max() <= 2
        met |= set(order.tolist())
    assert met == set(range(40))
    assert (patches.turns(few, linked, draws.keys(1)) == patches.turns(few, linked, draws.keys(1))).all()
    many = [shown] * 10 + [silent] * 30
    for plan in (linked, PLAN):
        every = patches.turns(many if plan is linked else few, plan, draws.keys(0))
        assert every.tolist() == [i for i in range(40) for _ in range(plan.patches.per_case)]


def test_a_case_of_which_nothing_is_known_tells_nothing() -> None:
    silent = replace(volume(), labels={}, boxes={}, places=())
    unknown = {"label": np.array([np.nan], np.float32)}
    assert not patches.tells(Sample([silent])) and not patches.tells(Sample([silent, silent], unknown))
    assert patches.tells(Sample([silent, volume()], unknown))
    assert patches.tells(Sample([silent], {"label": np.array([1], np.float32)}))
