"""Masks and label maps that the test drew itself: what is found in them is known."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow

from osler import cohort, data, inspection, outlines
from osler.case import Box, Entry, Finding, Mask, Outline, Question, Source
from osler.problem import Problem
from osler.recipe import ImagePlan

LESION = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
ORGANS = Question("mask", "segmentation", ("liver", "spleen"), values=((1, 3), (2,)), ignore=255)


def png(path, array, **options):
    Pillow.fromarray(np.asarray(array)).save(path, **options)
    return path


def nifti(path, array, affine=None, unit="mm"):
    """``(d, h, w)`` or ``(t, d, h, w)``; without an affine the header says that nothing is known."""
    volume = nibabel.Nifti1Image(np.asarray(array).T, np.eye(4) if affine is None else affine)
    volume.header.set_xyzt_units(unit if affine is not None else "unknown")
    nibabel.save(volume, path)
    return path


def case(image, *outlined, findings=()):
    return Entry("a", "a", {"image": Source(image)}, findings, outlines=outlined)


def mask_of(path, name="lesion", **rest):
    return Outline("mask", Source(path, **rest), name)


@pytest.fixture
def flat(tmp_path):
    return png(tmp_path / "image.png", np.zeros((20, 30), np.uint8))


def two_squares():
    drawn = np.zeros((20, 30), np.uint8)
    drawn[2:6, 3:8] = 255
    drawn[6:9, 8:10] = 255  # touches it at a corner
    drawn[12:14, 20:25] = 255
    return drawn


def boxes(found):
    return [(f.box.start[1:], f.box.stop[1:]) for f in found.findings if f.box]


def read(entry, *questions):
    images = data.read_case(entry).images
    return outlines.read(entry, next(iter(images.values())), questions or (LESION,))


# --- what is drawn is found ----------------------------------------------------------------------------------


def test_each_connected_part_is_a_lesion_with_its_mask_and_box(tmp_path, flat):
    found = read(case(flat, mask_of(png(tmp_path / "m.png", two_squares()))))
    assert boxes(found) == [((2, 3), (9, 10)), ((12, 20), (14, 25))]
    assert all(f.probability == 1 and f.name == "lesion" and f.frame == 0 for f in found.findings)
    together = np.logical_or.reduce([f.mask.within((1, 20, 30)) for f in found.findings])
    np.testing.assert_array_equal(together[0], two_squares() > 0)
    np.testing.assert_array_equal(found.maps["mask"][0, 0], two_squares() // 255)
    assert found.maps["mask"].dtype == np.uint8


def test_not_separate_it_is_one_finding(tmp_path, flat):
    entry = case(flat, mask_of(png(tmp_path / "m.png", two_squares())))
    whole = Question("mask", "segmentation", ("lesion",), values=((1,),))
    assert boxes(read(entry, whole)) == [((2, 3), (14, 25))]


def test_of_a_detection_each_part_is_a_box(tmp_path, flat):
    entry = case(flat, mask_of(png(tmp_path / "m.png", two_squares())))
    found = read(entry, Question("mask", "detection", ("lesion",), values=((1,),)))
    assert boxes(found) == [((2, 3), (9, 10)), ((12, 20), (14, 25))] and found.maps == {}
    assert all(f.mask is None for f in found.findings)


def test_an_empty_mask_says_that_there_is_none(tmp_path, flat):
    found = read(case(flat, mask_of(png(tmp_path / "m.png", np.zeros((20, 30), np.uint8)))))
    assert found.findings == (Finding("mask", "lesion", probability=0.0),)
    assert not found.maps["mask"].any()


def test_lesions_in_several_files_stay_apart_where_they_touch(tmp_path, flat):
    left, right = np.zeros((2, 20, 30), np.uint8)
    left[5:10, 5:10], right[5:10, 10:15] = 255, 255
    entry = case(flat, mask_of(png(tmp_path / "1.png", left)), mask_of(png(tmp_path / "2.png", right)))
    found = read(entry)
    assert boxes(found) == [((5, 5), (10, 10)), ((5, 10), (10, 15))]
    assert np.count_nonzero(found.maps["mask"]) == 50


def test_numbered_lesions_in_one_file_stay_apart_where_they_touch(tmp_path, flat):
    drawn = np.zeros((20, 30), np.uint8)
    drawn[5:10, 5:10], drawn[5:10, 10:15] = 1, 2
    found = read(case(flat, mask_of(png(tmp_path / "m.png", drawn))))
    assert boxes(found) == [((5, 5), (10, 10)), ((5, 10), (10, 15))]
    assert set(np.unique(found.maps["mask"])) == {0, 1}


def test_smoothed_and_compressed_masks_are_cut_at_half(tmp_path, flat):
    drawn = np.full((20, 30), 0, np.uint8)
    drawn[4:16, 5:20] = 255
    smooth = drawn.copy()
    smooth[3, 5:20], smooth[4, 5:20] = 90, 200
    for path in (png(tmp_path / "m.png", smooth), png(tmp_path / "m.jpg", drawn, quality=60)):
        found = read(case(flat, mask_of(path)))
        assert boxes(found) == [((4, 5), (16, 20))]
        assert "pixels from 128 on" in found.notes[0]


def test_label_maps_regions_and_unknown_pixels(tmp_path, flat):
    drawn = np.zeros((20, 30), np.uint8)
    drawn[2:6, 2:6], drawn[6:8, 2:6], drawn[15:, 20:] = 1, 3, 255
    outline = Outline("mask", Source(png(tmp_path / "m.png", drawn)), {1: "liver", 3: "liver", 2: "spleen"})
    found = read(case(flat, outline), ORGANS)
    np.testing.assert_array_equal(found.maps["mask"][0, 0], drawn)
    # Of the spleen nothing can be said: there are pixels that nobody looked at.
    assert [(f.name, f.probability) for f in found.findings] == [("liver", 1.0)]
    assert boxes(found) == [((2, 2), (8, 6))]


def test_regions_that_share_a_value_are_found_each(tmp_path, flat):
    regions = Question("mask", "segmentation", ("whole", "core"), values=((1, 2), (2,)))
    drawn = np.zeros((20, 30), np.uint8)
    drawn[2:10, 2:10], drawn[4:6, 4:6] = 1, 2
    found = read(
        case(flat, Outline("mask", Source(png(tmp_path / "m.png", drawn)), {1: "whole", 2: "core"})), regions
    )
    assert [(f.name, f.mask.array.sum()) for f in found.findings] == [("whole", 64), ("core", 4)]


def test_the_numbers_of_a_palette_are_the_labels(tmp_path, flat):
    drawn = np.zeros((20, 30), np.uint8)
    drawn[2:6, 2:6] = 2
    picture = Pillow.fromarray(drawn, mode=None).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    picture.putdata(drawn.ravel().tolist())
    picture.save(tmp_path / "m.png")
    found = read(case(flat, Outline("mask", Source(tmp_path / "m.png"), {1: "liver", 2: "spleen"})), ORGANS)
    np.testing.assert_array_equal(found.maps["mask"][0, 0], drawn)


def test_each_moment_of_a_sequence_has_its_own(tmp_path):
    image = nifti(tmp_path / "i.nii.gz", np.zeros((2, 4, 6, 8), np.uint8))
    drawn = np.zeros((2, 4, 6, 8), np.uint8)
    drawn[0, 1:3, 2:4, 2:4], drawn[1, 1:3, 3:5, 5:8] = 1, 1
    found = read(case(image, mask_of(nifti(tmp_path / "m.nii.gz", drawn))))
    assert [f.frame for f in found.findings] == [0, 1]
    np.testing.assert_array_equal(found.maps["mask"], drawn)
    one = Entry("a", "a", {"image": Source(image, frame=1)}, outlines=(mask_of(tmp_path / "m.nii.gz", frame=1),))
    np.testing.assert_array_equal(read(one).maps["mask"], drawn[1:])


def test_parts_that_touch_at_a_corner_in_space_are_one(tmp_path):
    image = nifti(tmp_path / "i.nii", np.zeros((4, 6, 8), np.uint8))
    drawn = np.zeros((4, 6, 8), np.uint8)
    drawn[0, 0, 0] = drawn[1, 1, 1] = drawn[3, 5, 7] = 1
    found = read(case(image, mask_of(nifti(tmp_path / "m.nii", drawn))))
    assert [int(f.mask.array.sum()) for f in found.findings] == [2, 1]


def test_a_case_carries_its_maps_and_findings(tmp_path, flat):
    stated = (Finding("label", "ill", probability=1.0),)
    entry = case(flat, mask_of(png(tmp_path / "m.png", two_squares())), findings=stated)
    whole = data.read_case(entry, (LESION,))
    assert [f.task for f in whole.findings] == ["label", "mask", "mask"] and set(whole.maps) == {"mask"}
    assert data.read_case(entry).maps == {} and data.read_case(entry).findings == stated


def test_masks_among_the_findings_become_a_map(flat):
    mask = Mask(np.ones((1, 3, 4), bool), (0, 5, 6))
    stated = (Finding("mask", "lesion", probability=1.0, box=mask.box, mask=mask),)
    found = read(case(flat, findings=stated))
    assert found.maps["mask"].sum() == 12 and found.maps["mask"][0, 0, 5:8, 6:10].all() and found.findings == ()
    none = read(case(flat, findings=(Finding("mask", "lesion", probability=0.0),)))
    assert not none.maps["mask"].any()
    assert read(case(flat)).maps == {}, "what nobody stated is unknown, not empty"


# --- other grids ---------------------------------------------------------------------------------------------


def placed(tmp_path, name, array, spacing=(1, 1, 1), origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return nifti(tmp_path / name, array, affine)


def test_a_mask_on_a_coarser_grid_is_brought_onto_the_image(tmp_path):
    image = placed(tmp_path, "i.nii.gz", np.zeros((4, 8, 12), np.int16))
    drawn = np.zeros((4, 4, 6), np.uint8)
    drawn[1:3, 1:3, 2:4] = 1
    mask = placed(tmp_path, "m.nii.gz", drawn, (2, 2, 1), (0.5, 0.5, 0))
    found = read(case(image, mask_of(mask)))
    expected = drawn.repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(found.maps["mask"][0], expected)
    assert "from its own grid" in found.notes[0]
    assert any(
        "own grid" in note for note in data.read_case(case(image, mask_of(mask)), (LESION,)).images["image"].notes
    )


def test_a_flipped_copy_lies_where_it_was(tmp_path):
    image = placed(tmp_path, "i.nii.gz", np.zeros((4, 8, 12), np.int16))
    drawn = np.zeros((4, 8, 12), np.uint8)
    drawn[1, 2:4, 1:9] = 1
    affine = np.diag([-1.0, 1, 1, 1])
    affine[0, 3] = 11
    mask = nifti(tmp_path / "m.nii.gz", drawn[..., ::-1], affine)
    np.testing.assert_array_equal(read(case(image, mask_of(mask))).maps["mask"][0], drawn)


def test_up_to_half_a_pixel_is_the_same_grid_and_more_is_moved(tmp_path):
    image = placed(tmp_path, "i.nii.gz", np.zeros((4, 8, 12), np.int16))
    drawn = np.zeros((4, 8, 12), np.uint8)
    drawn[1, 2:4, 3:9] = 1
    near = read(case(image, mask_of(placed(tmp_path, "n.nii.gz", drawn, origin=(0.4, 0, 0)))))
    np.testing.assert_array_equal(near.maps["mask"][0], drawn)
    far = read(case(image, mask_of(placed(tmp_path, "f.nii.gz", drawn, origin=(2, 0, 0)))))
    np.testing.assert_array_equal(far.maps["mask"][0], np.roll(drawn, 2, axis=2))
    assert near.notes == () and "up to 2.0 pixels apart" in far.notes[0]


@pytest.mark.parametrize("shape", [(4, 8, 12), (5, 9, 9)])
def test_another_patients_mask_is_refused(tmp_path, shape):
    image = placed(tmp_path, "i.nii.gz", np.zeros((4, 8, 12), np.int16))
    mask = placed(tmp_path, "m.nii.gz", np.ones(shape, np.uint8), origin=(300, 0, 0))
    with pytest.raises(Problem, match=r"m.nii.gz: the mask lies outside of its image.*same patient\.$"):
        read(case(image, mask_of(mask)))


def test_without_an_affine_shapes_must_agree(tmp_path, flat):
    mask = mask_of(png(tmp_path / "m.png", np.zeros((20, 31), np.uint8)))
    with pytest.raises(
        Problem, match=r"m.png: the mask is of 31 x 20 pixels, its image of 30 x 20, and not both say"
    ):
        read(case(flat, mask))
    image = placed(tmp_path, "i.nii.gz", np.zeros((4, 8, 12), np.int16))
    same = nifti(tmp_path / "same.nii.gz", np.ones((4, 8, 12), np.uint8))
    assert read(case(image, mask_of(same))).maps["mask"].all()
    other = nifti(tmp_path / "other.nii.gz", np.ones((4, 8, 13), np.uint8))
    with pytest.raises(Problem, match="13 x 8 x 4 pixels, its image of 12 x 8 x 4"):
        read(case(image, mask_of(other)))


# --- what cannot be read honestly ----------------------------------------------------------------------------


def refused(entry, *questions):
    with pytest.raises(Problem) as caught:
        read(entry, *(questions or (LESION,)))
    text = str(caught.value)
    assert text.count("\n") == 0 and text.endswith(".")
    return text


def test_bad_masks_are_refused_in_a_sentence(tmp_path, flat):
    colour = np.zeros((20, 30, 3), np.uint8)
    colour[2:5, 2:5, 0] = 200
    assert "the mask is in colour" in refused(case(flat, mask_of(png(tmp_path / "c.png", colour))))
    see_through = np.zeros((20, 30, 4), np.uint8)
    see_through[2:5, 2:5] = 255
    assert "partly transparent" in refused(case(flat, mask_of(png(tmp_path / "t.png", see_through))))
    assert "there is no such file" in refused(case(flat, mask_of(tmp_path / "gone.png")))
    (tmp_path / "e.png").write_bytes(b"")
    assert "e.png" in refused(case(flat, mask_of(tmp_path / "e.png")))
    labels = {1: "liver", 2: "spleen", 3: "liver"}
    strange = png(tmp_path / "s.png", np.arange(600, dtype=np.uint8).reshape(20, 30) % 6)
    text = refused(case(flat, Outline("mask", Source(strange), labels)), ORGANS)
    assert "s.png" in text and "the values 4, 5, which are no label here (known: 0, 1, 2, 3, 255)" in text
    lost = png(tmp_path / "l.jpg", np.zeros((20, 30), np.uint8))
    assert "a label map in a JPEG" in refused(case(flat, Outline("mask", Source(lost), labels)), ORGANS)
    np.save(tmp_path / "f.npy", np.full((20, 30), 0.3))
    assert "fractions" in refused(case(flat, mask_of(tmp_path / "f.npy")))


def test_an_opaque_mask_in_grey_rgba_is_read(tmp_path, flat):
    drawn = np.repeat(two_squares()[..., None], 4, 2)
    drawn[..., 3] = 255
    assert len(read(case(flat, mask_of(png(tmp_path / "m.png", drawn)))).findings) == 2


def test_classes_that_claim_the_same_pixels_are_refused(tmp_path, flat):
    both = Question("mask", "segmentation", ("disc", "cup"), values=((1,), (2,)))
    disc, cup = np.zeros((2, 20, 30), np.uint8)
    disc[2:12, 2:12], cup[5:8, 5:8] = 1, 1
    one, other = png(tmp_path / "d.png", disc), png(tmp_path / "c.png", cup)
    text = refused(case(flat, mask_of(one, "disc"), mask_of(other, "cup")), both)
    assert "the masks of disc and cup overlap in 9 pixels" in text


def test_moments_and_places_must_be_those_of_the_image(tmp_path, flat):
    image = nifti(tmp_path / "i.nii", np.zeros((2, 4, 6, 8), np.uint8))
    still = nifti(tmp_path / "m.nii", np.zeros((4, 6, 8), np.uint8))
    assert "the mask has 1 moments, its image 2" in refused(case(image, mask_of(still)))
    boxes_of = Question("boxes", "detection", ("cell",))
    outside = Finding("boxes", "cell", probability=1.0, box=Box((0, 2, 2), (1, 8, 31)))
    assert "ends at 31, 8 in an image of 30 x 20 pixels" in refused(case(flat, findings=(outside,)), boxes_of)


# --- a whole cohort ------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path):
    """Three cases that fit, and one whose mask is of another size."""
    for name, width in (("a", 30), ("b", 31), ("c", 30), ("d", 30)):
        png(tmp_path / f"{name}.png", np.random.default_rng(ord(name)).integers(0, 99, (20, 30)).astype(np.uint8))
        drawn = np.zeros((20, width), np.uint8)
        drawn[2:5, 3:6] = 255
        png(tmp_path / f"{name}_mask.png", drawn)
    rows = "".join(f"{name}.png,{name}_mask.png\n" for name in "abcd")
    (tmp_path / "cases.csv").write_text(f"image,mask\n{rows}")
    return tmp_path


def test_a_mask_that_does_not_fit_costs_its_case_and_the_others_go_on(mixed):
    found = cohort.read(mixed)
    plan = ImagePlan(size=(1, 20, 30), dims=2, channels=1)
    loaded = data.load(found.entries, plan, questions=found.questions)
    assert [entry.id for entry in loaded.entries] == ["a.png", "c.png", "d.png"]
    assert "b_mask.png: the mask is of 31 x 20 pixels" in str(loaded.problems[0])
    # Where nobody asks, nobody looks.
    assert len(data.load(found.entries, plan).entries) == 4


def test_an_inspection_says_which_masks_do_not_fit(mixed):
    evidence, problems = inspection.gather(cohort.read(mixed), lambda _: None)
    assert len(evidence.entries) == 3 and list(problems) == ["b.png"]
    assert "b_mask.png" in str(problems["b.png"])


def test_the_digest_of_a_cohort_changes_with_what_is_drawn(mixed):
    def digest() -> str:
        return cohort.digest(cohort.read(mixed).entries, list("abcd"))

    before = digest()
    assert digest() == before
    png(mixed / "a_mask.png", np.eye(20, 30).astype(np.uint8) * 255)
    assert digest() != before
    box = Finding("boxes", "cell", probability=1.0, box=Box((0, 1, 1), (1, 3, 3)))
    moved = replace(box, box=Box((0, 1, 1), (1, 3, 4)))
    entries = [Entry("a", "a", {}, (finding,)) for finding in (box, moved, replace(box, box=None))]
    assert len({cohort.digest([entry], ["pixels"]) for entry in entries}) == 3


def test_a_label_for_counting_of_what_lies_somewhere(mixed):
    found = cohort.read(mixed)
    assert {cohort.label_of(entry, found.questions[0]) for entry in found.entries} == {"outlined"}
    boxes_of = Question("boxes", "detection", ("a", "b"))
    there = [Finding("boxes", name, probability=1.0, box=Box((0, 0, 0), (1, 1, 1))) for name in "bab"]
    none = [Finding("boxes", name, probability=0.0) for name in "ab"]
    words = [cohort.label_of(Entry("", "", {}, tuple(said)), boxes_of) for said in (there, none, there[:1], [])]
    assert words == ["a+b", "nothing", "b", ""]
    known = [cohort.is_known(Entry("", "", {}, tuple(said)), boxes_of) for said in (there, none, [])]
    assert known == [True, True, False]
