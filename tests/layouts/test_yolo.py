import numpy as np
import pytest
from PIL import Image as Pillow

from osler import layouts
from osler.problem import Problem

NAMES = "names: [cell, 'red dot']"


def write(root, labels, yaml=f"train: images/train\nval: images/val\n{NAMES}\n", size=(20, 40)):
    for name, text in labels.items():
        picture = root / "images" / f"{name}.png"
        label = root / "labels" / f"{name}.txt"
        for path in (picture, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.zeros(size, np.uint8)).save(picture)
        if text is not None:
            label.write_text(text)
    if yaml:
        (root / "data.yaml").write_text(yaml)
    return root


def test_fractions_become_pixels_and_an_empty_file_says_none(tmp_path):
    labels = {"train/a": "0 0.5 0.5 0.25 0.5\n1 .25 .25 .1 .1\n", "train/b": "", "train/c": None, "val/d": ""}
    listing = layouts.read(write(tmp_path, labels))
    assert [(e.id, e.split) for e in listing.entries] == [
        ("images/train/a.png", "train"),
        ("images/train/b.png", "train"),
        ("images/val/d.png", "test"),
    ]
    first, second, _ = (entry.findings for entry in listing.entries)
    assert [f.name for f in first] == ["cell", "red dot"]
    assert (first[0].box.start, first[0].box.stop) == ((0, 5, 15), (1, 15, 25))
    assert [(f.name, f.probability) for f in second] == [("cell", 0), ("red dot", 0)]
    assert listing.notes[0].startswith("No test part") and listing.notes[1].startswith(
        "1 images have no file of labels"
    )


def test_an_upright_size_is_taken(tmp_path):
    write(tmp_path, {"train/a": ""}, yaml=f"train: images/train\n{NAMES}")
    (tmp_path / "images/train/a.png").unlink()
    turned = Pillow.fromarray(np.zeros((20, 40), np.uint8))
    exif = turned.getexif()
    exif[274] = 6
    turned.save(tmp_path / "images/train/a.jpg", exif=exif)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 1 1")
    box = layouts.read(tmp_path).entries[0].findings[0].box
    assert box.stop == (1, 40, 20)


@pytest.mark.parametrize(
    "yaml",
    [
        "path: ../somewhere # another machine\ntrain: images/train\nnc: 2\nnames:\n  0: cell\n  1: red dot\n",
        "train: ../images/train\nnames: ['cell', 'red dot']\n",
        'train:\n  - images/train\nnames:\n- cell\n- "red dot"\n',
        "names: {0: cell, 1: red dot}\ntrain: list.txt\n",
    ],
)
def test_the_simple_forms_of_yaml(tmp_path, yaml):
    write(tmp_path, {"train/a": "1 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5"}, yaml)
    (tmp_path / "list.txt").write_text("./images/train/a.png\n")
    listing = layouts.read(tmp_path)
    assert listing.questions[0].classes == ("cell", "red dot") and len(listing.entries) == 1


def test_without_yaml_a_list_of_classes_and_folders(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .5 .5 .5", "test/b": ""}, yaml="")
    (tmp_path / "classes.txt").write_text("cell\nred dot\n")
    assert [entry.split for entry in layouts.read(tmp_path).entries] == ["test", "train"]
    beside = tmp_path / "beside"
    beside.mkdir()
    Pillow.fromarray(np.zeros((20, 40), np.uint8)).save(beside / "a.png")
    (beside / "a.txt").write_text("0 .5 .5 .5 .5")
    (beside / "classes.txt").write_text("cell\n")
    [entry] = layouts.read(beside).entries
    assert entry.split is None and entry.findings[0].box


def test_outlines_of_some_objects_are_boxes_only(tmp_path):
    labels = {"train/a": "0 .1 .1 .2 .1 .2 .3", "train/b": "0 .5 .5 .1 .1"}
    listing = layouts.read(write(tmp_path, labels))
    assert [question.task for question in listing.questions] == ["boxes"]
    assert "Only some objects have an outline: masks are not asked for." in listing.notes
    box = listing.entries[0].findings[0].box
    np.testing.assert_allclose([*box.start, *box.stop], [0, 2, 4, 1, 6, 8])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.5", "line 1 is neither a box"),
        ("0 0.5 0.5 0.5 0.5 0.9", "line 1 is neither a box"),
        ("cell 0.5 0.5 0.5 0.5", "line 1 is neither a box"),
        ("0 0.5 0.5 0.5 nan", "line 1 is neither a box"),
        ("4 0.5 0.5 0.5 0.5", "line 1 is of class 4, but there are names for 0 to 1 only"),
        ("0 1.2 0.5 0.1 0.1", "reaches 10 pixels over the edge"),
        ("0 0.5 0.5 -0.1 0.1", "is inverted"),
        ("0 0.5 0.5 0 0.1", "has no size"),
    ],
)
def test_a_bad_line_costs_its_image_and_the_others_go_on(tmp_path, line, said):
    listing = layouts.read(write(tmp_path, {"train/a": line, "train/good": "0 .5 .5 .5 .5"}))
    assert [entry.id for entry in listing.entries] == ["images/train/good.png"]
    [problem] = listing.problems
    assert "a." in str(problem) and said in str(problem)


def test_other_text_files_beside_a_list_of_classes_are_no_labels(tmp_path):
    for name in ("ill", "well"):
        (tmp_path / name).mkdir()
        Pillow.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / name / "a.png")
    (tmp_path / "classes.txt").write_text("ill\nwell\n")
    (tmp_path / "notes.txt").write_text("2 classes\n")
    assert layouts.read(tmp_path).questions[0].kind == "multiclass"


def test_folders_that_are_not_there_are_a_sentence(tmp_path):
    write(tmp_path, {"train/a": "0 .5 .5 .5 .5"}, f"train: elsewhere\n{NAMES}")
    with pytest.raises(Problem, match="none of the folders that the YAML file names"):
        layouts.read(tmp_path)
