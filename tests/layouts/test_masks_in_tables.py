"""Masks and boxes that a manifest or a cohort file names."""

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Pillow
from scipy import ndimage

from osler import cohort, data, layouts
from osler.problem import Problem

RECIPES = Path(__file__).parents[2] / "recipes" / "cohorts"


def png(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.zeros((20, 30), np.uint8) if array is None else array).save(path)


def square(y, x, size=4):
    drawn = np.zeros((20, 30), np.uint8)
    drawn[y : y + size, x : x + size] = 255
    return drawn


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        png(tmp_path / f"{name}.png")
    png(tmp_path / "m1.png", square(2, 2))
    png(tmp_path / "m2.png", square(2, 6))
    png(tmp_path / "empty.png")
    return tmp_path


def manifest(folder, text):
    (folder / "cases.csv").write_text(text)
    return layouts.read(folder)


def findings(listing, number, task):
    found = data.read_case(listing.entries[number], listing.questions).findings
    return [f for f in found if f.task == task]


# --- manifests -----------------------------------------------------------------------------------------------


def test_a_column_of_masks(folder):
    text = "image,label,mask\na.png,ill,m1.png; m2.png\nb.png,well,empty.png\nc.png,well,\n"
    listing = manifest(folder, text)
    assert [(q.task, q.kind, q.classes) for q in listing.questions] == [
        ("label", "multiclass", ("ill", "well")),
        ("mask", "segmentation", ("lesion",)),
    ]
    assert [f.box.start[2] for f in findings(listing, 0, "mask")] == [2, 6]
    assert [f.probability for f in findings(listing, 1, "mask")] == [0.0]
    # A blank cell is unknown: no map, no finding.
    assert findings(listing, 2, "mask") == []
    assert [cohort.label_of(entry, listing.questions[1]) for entry in listing.entries] == ["outlined", "outlined", ""]
    assert all(not entry.metadata for entry in listing.entries)
    assert not any("some classes of mask" in note for note in listing.notes)


def test_a_column_for_each_class_and_a_blank_one(folder):
    text = "image,mask.cyst,mask.tumour\na.png,m1.png,none\nb.png,none,none\nc.png,m1.png,\n"
    listing = manifest(folder, text)
    assert [(f.name, f.probability) for f in findings(listing, 0, "mask")] == [("cyst", 1.0), ("tumour", 0.0)]
    assert [(f.name, f.probability) for f in findings(listing, 1, "mask")] == [("cyst", 0.0), ("tumour", 0.0)]
    assert not data.read_case(listing.entries[1], listing.questions).maps["mask"].any()
    assert findings(listing, 2, "mask") == []
    assert listing.notes[-1].startswith("1 cases name masks of some classes of mask and not of others")


def test_a_row_for_each_box(folder):
    text = (
        "case,image,label,site,xmin,ymin,xmax,ymax,class\na,a.png,ill,x,2,3,10,9,cyst\na,a.png,ill,y,12,3,14.5,9,cyst\n"
        "b,b.png,well,x,none,none,none,none,\nc,c.png,well,x,,,,,\n"
    )
    listing = manifest(folder, text)
    assert [entry.id for entry in listing.entries] == ["a", "b", "c"]
    assert [(f.box.start, f.box.stop) for f in findings(listing, 0, "boxes")] == [
        ((0, 3, 2), (1, 9, 10)),
        ((0, 3, 12), (1, 9, 14.5)),
    ]
    assert [f.probability for f in findings(listing, 1, "boxes")] == [0.0] and findings(listing, 2, "boxes") == []
    assert listing.entries[0].metadata == {"site": "x"}
    question = listing.questions[1]
    assert [cohort.label_of(entry, question) for entry in listing.entries] == ["cyst", "nothing", ""]


@pytest.mark.parametrize("cell", ['"2 3 8 6; 12 3 2 6"', '"[[2, 3, 8, 6], [12, 3, 2, 6]]"', '"2,3,8,6;12,3,2,6"'])
def test_all_boxes_of_a_case_in_a_cell(folder, cell):
    listing = manifest(folder, f"image,boxes\na.png,{cell}\nb.png,[]\nc.png,\n")
    assert [f.box.stop[1:] for f in findings(listing, 0, "boxes")] == [(9, 10), (9, 14)]
    assert [f.probability for f in findings(listing, 1, "boxes")] == [0.0] and findings(listing, 2, "boxes") == []


def test_boxes_of_volumes(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((30, 20, 10), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    listing = manifest(tmp_path, 'image,boxes\na.nii.gz,"1 2 3 10 10 5 nodule; 1 2 8 8"\n')
    first, second = findings(listing, 0, "boxes")
    assert (first.name, first.box.start, first.box.stop) == ("nodule", (3, 2, 1), (8, 12, 11))
    # Without z a box goes through all slices.
    assert (second.name, second.box.start, second.box.stop) == ("lesion", (0, 2, 1), (10, 10, 9))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.png,,2 3 40 6", "a.png: the box from (2, 3) to (42, 9) (x, y) reaches 12 pixels over the edge"),
        ("a.png,,9 3 -4 6", "a.png: the box from (9, 3) to (5, 9) (x, y) is inverted"),
        ("a.png,,9 3 0 6", "has no size"),
        ("a.png,gone.png,", "gone.png: the table names this mask, but it is not there"),
        ("gone.png,,", "gone.png: the table names this file, but it is not there"),
    ],
)
def test_a_bad_row_is_a_sentence_and_the_others_go_on(folder, row, said):
    listing = manifest(folder, f"image,mask,boxes\n{row}\nb.png,m1.png,2 3 4 6\n")
    assert [entry.id for entry in listing.entries] == ["b.png"]
    assert said in str(listing.problems[0])


def test_up_to_a_pixel_over_the_edge_is_cut(folder):
    listing = manifest(folder, "image,boxes\na.png,-0.5 3 31.5 6\n")
    box = listing.entries[0].findings[0].box
    assert (box.start, box.stop) == ((0, 3, 0), (1, 9, 30))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,boxes\na.png,2 3 4\n", "row 2: '2 3 4 lesion' is not a box"),
        ("image,boxes\na.png,[2\n", "row 2: '[2' is not JSON"),
        ("image,x,y,width,height\na.png,1,2,,4\n", "row 2: only some of x, y, width, height are given"),
        ("image,x,y,width,height\na.png,1,2,b,4\n", "row 2: '1 2 b 4 lesion' is not a box"),
        ("image,mask,mask.cyst\na.png,m1.png,m1.png\n", "has a column mask and columns mask.<class>"),
        (
            "case,image,label,x,y,width,height\na,a.png,u,1,2,3,4\na,a.png,v,1,2,3,4\n",
            "the rows of case 'a' have 'u' and 'v' in 'label'",
        ),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused(folder, text, said):
    with pytest.raises(Problem) as caught:
        manifest(folder, text)
    assert "cases.csv" in str(caught.value) and said in str(caught.value).replace("'v' and 'u'", "'u' and 'v'")


# --- cohort files --------------------------------------------------------------------------------------------

PLAN = """
table = "t.csv"
case = "id"
image = "{id}.png"
"""


def mapped(folder, plan, rows="id,k\na,1\nb,2\n"):
    (folder / "t.csv").write_text(rows)
    (folder / "cohort.toml").write_text(plan)
    return layouts.read(folder)


def test_several_files_of_a_case_by_a_star(folder):
    for name in ("a_mask", "a_mask_1", "b_mask"):
        png(folder / "masks" / f"{name}.png", square(2, 2))
    listing = mapped(folder, PLAN + '[mask.tumour]\nfile = "masks/{id}_mask*.png"\n')
    assert [len(findings(listing, number, "tumour")) for number in (0, 1)] == [2, 1]
    [question] = listing.questions
    assert (question.task, question.classes, question.values, question.separate) == (
        "tumour",
        ("tumour",),
        ((1,),),
        True,
    )


def test_label_maps_with_values_regions_of_a_name_and_ignored_pixels(folder):
    for name in "ab":
        drawn = np.zeros((20, 30), np.uint8)
        drawn[2:4], drawn[4:8], drawn[10:12], drawn[19] = 1, 2, 5, 9
        png(folder / "maps" / f"{name}.png", drawn)
    plan = PLAN + (
        '[mask.organs]\nfile = "maps/{id}.png"\nvalues = {1 = "liver", 5 = "liver", 2 = "spleen"}\nignore = 9\n'
        "separate = false\n"
    )
    listing = mapped(folder, plan)
    [question] = listing.questions
    assert (question.classes, question.values, question.ignore) == (("liver", "spleen"), ((1, 5), (2,)), 9)
    assert [(f.name, int(f.mask.array.sum())) for f in findings(listing, 0, "organs")] == [
        ("liver", 120),
        ("spleen", 120),
    ]
    strange = mapped(folder, plan.replace(', 2 = "spleen"', ""))
    with pytest.raises(Problem, match=r"a.png: the mask holds the value 2"):
        data.read_case(strange.entries[0], strange.questions)


def test_boxes_around_the_parts_of_masks(folder):
    png(folder / "masks" / "a.png", square(2, 2))
    png(folder / "masks" / "b.png")
    listing = mapped(folder, PLAN + '[mask.find]\nfile = {tumour = "masks/{id}.png"}\ndetect = true\n')
    assert [(q.task, q.kind, q.classes) for q in listing.questions] == [("find", "detection", ("tumour",))]
    [found] = findings(listing, 0, "find")
    assert (found.box.start, found.box.stop, found.mask) == ((0, 2, 2), (1, 6, 6), None)
    assert [f.probability for f in findings(listing, 1, "find")] == [0.0]


@pytest.mark.parametrize("keys", ['size = ["x", "y", "w", "h"]', 'corners = ["x", "y", "u", "v"]'])
def test_columns_of_boxes_and_blank_ones(folder, keys):
    rows = "id,x,y,w,h,u,v,kind\na,1,2,3,4,4,6,cyst\na,5,6,2,2,7,8,dot\nb,,,,,,,\n"
    listing = mapped(folder, PLAN + f'[boxes.found]\n{keys}\nclass = "kind"\nblank = "none"\n', rows)
    there = findings(listing, 0, "found")
    assert [(f.name, f.box.start[1:], f.box.stop[1:]) for f in there] == [
        ("cyst", (2, 1), (6, 4)),
        ("dot", (6, 5), (8, 7)),
    ]
    assert [(f.name, f.probability) for f in findings(listing, 1, "found")] == [("cyst", 0.0), ("dot", 0.0)]
    unknown = mapped(folder, PLAN + f'[boxes.found]\n{keys}\nclass = "kind"\n', rows)
    assert findings(unknown, 1, "found") == []


def test_without_a_table_the_files_are_the_cases(tmp_path):
    for part in ("training", "testing"):
        for number in ("01", "02"):
            png(tmp_path / part / f"{part[1]}{number}_image.png")
            png(tmp_path / part / f"{part[1]}{number}_gt.png", square(1, 1))
    png(tmp_path / "training" / "other.png")
    plan = 'case = "n"\nsplit = "part"\nimage = "{part}/{n}_image.png"\n[mask.vessel]\nfile = "{part}/{n}_gt.png"\n'
    (tmp_path / "cohort.toml").write_text(plan)
    listing = layouts.read(tmp_path)
    assert [(entry.id, entry.split) for entry in listing.entries] == [
        ("e01", "test"),
        ("e02", "test"),
        ("r01", "train"),
        ("r02", "train"),
    ]
    assert [len(findings(listing, number, "vessel")) for number in range(4)] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('[mask.a]\nfile = "{gone}.png"', "there is no column 'gone'"),
        ('[mask.a]\nfile = "{id}.png"\nvalues = {x = "liver"}', "the values of the mask 'a' are not numbers"),
        ('[mask.a]\nfile = "{id}.png"\nvalues = {0 = "liver"}', "the values of the mask 'a' are not numbers"),
        (
            '[mask.a]\nfile = "{id}.png"\nfiles = "b"',
            "there is no key 'mask.a.files' in a cohort file; known keys are file",
        ),
        ('[boxes.a]\nsize = ["id", "k"]', "need one of corners and size, with 4 columns"),
        ('[boxes.a]\ncell = "k"\nsize = ["k", "k", "k", "k"]', "need one of corners and size"),
        ("[boxes.a]\nblank = \"maybe\"\ncell = 'k'", "boxes.a.blank"),
    ],
)
def test_a_wrong_cohort_file_is_a_sentence(folder, keys, said):
    with pytest.raises(Problem) as caught:
        mapped(folder, PLAN + keys)
    assert said in str(caught.value)


def test_patterns_that_match_nothing_are_a_sentence(folder):
    (folder / "cohort.toml").write_text('case = "n"\nimage = "{n}.tif"\n')
    with pytest.raises(Problem, match=r"no file matches '\{n\}.tif'"):
        layouts.read(folder)
    (folder / "cohort.toml").write_text('case = "n"\nimage = "a.png"\n')
    with pytest.raises(Problem, match=r"has no \{name\} in it"):
        layouts.read(folder)


# --- real sets -----------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_busi_as_it_is(real_data):
    root = real_data / "busi"
    listing = layouts.read(root, RECIPES / "busi.toml")
    assert [(q.task, q.kind) for q in listing.questions] == [
        ("diagnosis", "multiclass"),
        ("lesion", "segmentation"),
        ("boxes", "detection"),
        ("hull", "detection"),
    ]
    assert len(listing.entries) == 627 and not listing.problems and listing.grouping == "column dup_group"
    with (root / "labels.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    several = 0
    for entry in listing.entries[::25]:
        case = data.read_case(entry, listing.questions)
        truth = np.asarray(Pillow.open(root / "masks" / f"{entry.id}.png")) > 0
        count = ndimage.label(truth, np.ones((3, 3)))[1]
        several += count > 1
        for task in ("lesion", "boxes"):
            assert sum(f.task == task and f.probability == 1 for f in case.findings) == count
        np.testing.assert_array_equal(case.maps["lesion"][0, 0], truth)
        # The hull as the set gives it holds exactly the lesions of the mask.
        row = rows[entry.id]
        hulls = [(f.box.start[1:], f.box.stop[1:]) for f in case.findings if f.task == "hull" and f.box]
        assert hulls == (
            [((float(row["y0"]), float(row["x0"])), (float(row["y1"]), float(row["x1"])))] if row["x0"] else []
        )
        if hulls:
            ys, xs = np.nonzero(truth)
            assert hulls == [((ys.min(), xs.min()), (ys.max() + 1, xs.max() + 1))]
        else:
            assert row["label"] == "normal" and count == 0


@pytest.mark.real_data
def test_drive_as_it_is(real_data):
    listing = layouts.read(real_data / "drive", RECIPES / "drive.toml")
    assert [sum(e.split == part for e in listing.entries) for part in ("train", "test")] == [20, 20]
    for entry in listing.entries[::13]:
        case = data.read_case(entry, listing.questions)
        folder = "training" if entry.split == "train" else "testing"
        truth = np.asarray(Pillow.open(real_data / "drive" / folder / f"{entry.id}_gt1.png"))
        np.testing.assert_array_equal(case.maps["vessel"][0, 0], truth)
        assert [f.mask.array.sum() for f in case.findings] == [truth.sum()]


@pytest.mark.real_data
def test_acdc_has_two_moments_and_no_millimetres(real_data):
    root = real_data / "acdc"
    listing = layouts.read(root, RECIPES / "acdc.toml")
    assert len(listing.entries) == 60 == len({entry.patient for entry in listing.entries})
    for entry in listing.entries[::20]:
        case = data.read_case(entry, listing.questions)
        truth = np.asarray(nibabel.load(root / "labels" / f"{entry.id}.nii.gz").dataobj)
        assert case.images["image"].frames == 2 and case.images["image"].spacing is None
        np.testing.assert_array_equal(case.maps["heart"], truth.T)
        for number, name in enumerate(("right ventricle", "myocardium", "left ventricle"), 1):
            found = {f.frame: int(f.mask.array.sum()) for f in case.findings if f.name == name}
            assert found == {
                t: int((truth[..., t] == number).sum()) for t in (0, 1) if (truth[..., t] == number).any()
            }
