import json

import numpy as np
import pytest
from PIL import Image as Pillow

from osler import layouts
from osler.problem import Problem

KINDS = [{"id": 7, "name": "cell"}, {"id": 3, "name": "dot"}, {"id": 9, "name": "never"}]
SIZE = (20, 30)


def image(number, name=None, **more):
    return {"id": number, "file_name": name or f"{number}.png", "height": SIZE[0], "width": SIZE[1], **more}


def box(number, bbox, kind=7, **more):
    return {"id": 100 + number, "image_id": number, "category_id": kind, "bbox": bbox, **more}


def write(root, file, images, said, kinds=KINDS, folder=""):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": said, "categories": kinds}))
    for each in images:
        picture = (root / folder if folder else path.parent) / each["file_name"]
        picture.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(np.zeros(SIZE, np.uint8)).save(picture)
    return root


def test_boxes_absence_and_order_of_classes(tmp_path):
    said = [box(1, [2, 3, 10.5, 4]), box(1, [0, 0, 30, 20], 3)]
    listing = layouts.read(write(tmp_path, "all.json", [image(1), image(2)], said))
    assert [(q.task, q.kind, q.classes) for q in listing.questions] == [("boxes", "detection", ("dot", "cell"))]
    first, second = listing.entries
    assert [(f.name, f.box.start, f.box.stop) for f in first.findings] == [
        ("cell", (0, 3, 2), (1, 7, 12.5)),
        ("dot", (0, 0, 0), (1, 20, 30)),
    ]
    assert [(f.name, f.probability) for f in second.findings] == [("dot", 0), ("cell", 0)]
    assert layouts.read(tmp_path / "all.json").entries == listing.entries


@pytest.mark.parametrize(("folder", "year"), [("train2017", "2017"), ("images/train2017", "2017"), ("images", "")])
def test_parts_by_the_names_of_the_files(tmp_path, folder, year):
    val = folder.replace("train", "val")
    write(tmp_path, f"annotations/instances_train{year}.json", [image(1)], [box(1, [2, 3, 4, 4])], folder=folder)
    write(tmp_path, f"annotations/instances_val{year}.json", [image(2)], [], folder=val)
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    listing = layouts.read(tmp_path)
    assert [(e.id, e.split) for e in listing.entries] == [
        (f"train{year}/1.png", "train"),
        (f"val{year}/2.png", "test"),
    ]
    assert any("val is held out" in note for note in listing.notes)


def test_a_folder_for_each_part_with_its_own_file(tmp_path):
    for number, part in enumerate(("train", "valid", "test")):
        write(tmp_path, f"{part}/_annotations.coco.json", [image(number)], [box(number, [2, 3, 4, 4])])
    assert [entry.split for entry in layouts.read(tmp_path).entries] == ["test", "train", "validation"]


def test_groups_are_left_out_and_their_class_is_unknown(tmp_path):
    said = [box(1, [2, 3, 4, 4], iscrowd=1), box(2, [2, 3, 4, 4]), box(2, [2, 3, 4, 4], 3)]
    listing = layouts.read(write(tmp_path, "all.json", [image(1), image(2)], said))
    assert [(f.name, f.probability) for f in listing.entries[0].findings] == [("dot", 0.0)]
    assert any(note.startswith("1 groups of objects") for note in listing.notes)


def test_masks_are_asked_for_where_every_object_has_one(tmp_path):
    outline = [[2, 3, 6, 3, 6, 7, 2, 7], [10, 3, 12, 3, 12, 5, 10, 5]]
    said = [box(1, [2, 3, 10, 4], segmentation=outline)]
    listing = layouts.read(write(tmp_path, "all.json", [image(1)], said))
    assert [question.task for question in listing.questions] == ["boxes", "mask"]
    mask = listing.entries[0].findings[1].mask
    assert mask.array.sum() == 16 + 4 and mask.start == (0, 3, 2)
    write(tmp_path, "all.json", [image(1)], [*said, box(1, [2, 3, 4, 4], segmentation=[])])
    listing = layouts.read(tmp_path)
    assert [question.task for question in listing.questions] == ["boxes"]
    assert "Only some objects have an outline: masks are not asked for." in listing.notes


@pytest.mark.parametrize("seed", range(8))
def test_packed_run_lengths_agree_with_pycocotools(tmp_path, seed):
    codec = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(seed)
    # From sparse to full, with runs long enough for several letters.
    drawn = np.asfortranarray(rng.random(SIZE) < (0.02, 0.5, 0.98)[seed % 3]).astype(np.uint8)
    drawn[5:8] = seed % 2
    drawn[0, 0] = 1
    packed = codec.encode(np.asfortranarray(drawn))
    text = {"size": list(packed["size"]), "counts": packed["counts"].decode()}
    said = [box(1, [0, 0, 30, 20], segmentation=text)]
    listing = layouts.read(write(tmp_path, "all.json", [image(1)], said))
    np.testing.assert_array_equal(listing.entries[0].findings[1].mask.within((1, *SIZE))[0], drawn > 0)


def test_patients_are_taken_where_the_file_has_them(tmp_path):
    images = [image(1, patient_id="p"), image(2, patient_id="p"), image(3)]
    listing = layouts.read(write(tmp_path, "all.json", images, [box(1, [2, 3, 4, 4])]))
    assert [entry.patient for entry in listing.entries] == ["p", "p", "3.png"]
    assert listing.grouping == "patient of the images"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bbox": [10, 3, -4, 4]}, "is inverted"),
        ({"bbox": [10, 3, 0, 4]}, "has no size"),
        ({"bbox": [28, 3, 9, 4]}, "reaches 7 pixels over the edge of an image of 30 x 20"),
        ({"bbox": [28, 3, 9]}, "cannot be read as COCO has them"),
        (
            {"bbox": [2, 3, 4, 4], "segmentation": {"size": [20, 31], "counts": [620]}},
            "cannot be read as COCO has them",
        ),
        ({"bbox": [2, 3, 4, 4], "segmentation": {"size": [20, 30], "counts": [1, 2]}}, "cannot be read"),
        ({"bbox": [2, 3, 4, 4], "segmentation": [[1, 1, 2, 2]]}, "cannot be read"),
    ],
)
def test_a_bad_object_costs_its_image_and_the_others_go_on(tmp_path, wrong, said):
    fine = {"segmentation": [[2, 3, 6, 3, 6, 7]]}
    objects = [box(1, **({"bbox": [2, 3, 4, 4]} | fine | wrong)), box(2, [2, 3, 4, 4], **fine)]
    listing = layouts.read(write(tmp_path, "all.json", [image(1), image(2)], objects))
    assert [entry.id for entry in listing.entries] == ["2.png"]
    [problem] = listing.problems
    assert "1.png" in str(problem) and said in str(problem)


def test_broken_files_and_missing_images(tmp_path):
    write(tmp_path, "all.json", [image(1), image(2)], [box(1, [2, 3, 4, 4])])
    (tmp_path / "2.png").unlink()
    assert "all.json names this image, but it is not there" in str(layouts.read(tmp_path).problems[0])
    write(tmp_path, "all.json", [image(1)], [box(5, [2, 3, 4, 4])])
    with pytest.raises(Problem, match="the annotation 105 is of image 5, which is not listed"):
        layouts.read(tmp_path)
    write(tmp_path, "all.json", [image(1)], [box(1, [2, 3, 4, 4], 44)])
    with pytest.raises(Problem, match="this is not COCO: it is broken, or 44 is missing"):
        layouts.read(tmp_path)
