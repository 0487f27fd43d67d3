import numpy as np
import pytest
from PIL import Image as Pillow

from osler import layouts
from osler.problem import Problem


def annotation(*objects, size=(30, 20)):
    made = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    for name, x0, y0, x1, y1, *difficult in objects:
        made += (
            f"<object><name>{name}</name><difficult>{int(bool(difficult))}</difficult><bndbox><xmin>{x0}</xmin>"
            f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    return f"{made}</annotation>"


def write(root, files, parts=None):
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        Pillow.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
    for part, names in (parts or {}).items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(names) + "\n")
    return root


def test_corners_count_pixels_from_one_and_both_ends_belong(tmp_path):
    listing = layouts.read(write(tmp_path, {"a": annotation(("cell", 1, 1, 10, 5), ("dot", 7, 7, 7, 7))}))
    [entry] = listing.entries
    assert [(f.name, f.box.start, f.box.stop) for f in entry.findings] == [
        ("cell", (0, 0, 0), (1, 5, 10)),
        ("dot", (0, 6, 6), (1, 7, 7)),
    ]
    assert listing.grouping == "" and "no patients" in listing.notes[0]


def test_parts_are_taken_and_val_is_held_out_where_there_is_no_test(tmp_path):
    files = {name: annotation(("cell", 1, 1, 10, 5)) for name in "abcd"}
    parts = {"train": ["a", "b"], "val": ["c"], "cell_train": ["a  1"]}
    listing = layouts.read(write(tmp_path, files, parts))
    assert {entry.id: entry.split for entry in listing.entries} == {"a": "train", "b": "train", "c": "test"}
    assert any("val is held out" in note for note in listing.notes)
    assert any(note.startswith("1 annotated images stand in no part") for note in listing.notes)
    write(tmp_path, {}, parts | {"test": ["d"]})
    splits = {entry.id: entry.split for entry in layouts.read(tmp_path).entries}
    assert splits == {"a": "train", "b": "train", "c": "validation", "d": "test"}
    write(tmp_path, {}, {"test": ["a"]})
    with pytest.raises(Problem, match="'a' stands in two parts"):
        layouts.read(tmp_path)


def test_difficult_objects_are_neither_there_nor_absent(tmp_path):
    files = {
        "a": annotation(("cell", 1, 1, 10, 5, True)),
        "b": annotation(("cell", 1, 1, 10, 5), ("dot", 2, 2, 3, 3)),
    }
    listing = layouts.read(write(tmp_path, files))
    first, second = listing.entries
    assert [(f.name, f.probability) for f in first.findings] == [("dot", 0.0)]
    assert first.metadata == {"difficult": 1.0} and len(second.findings) == 2
    assert "1 objects marked as difficult were left out." in listing.notes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (annotation(("cell", 10, 1, 3, 5)), "the box from (9, 0) to (3, 5) (x, y) is inverted"),
        (annotation(("cell", 1, 1, 34, 5)), "reaches 4 pixels over the edge of an image of 30 x 20"),
        (annotation(("cell", 4, 1, 3, 5)), "has no size"),
        (annotation(("cell", 200, 200, 210, 210)), "reaches 190 pixels over"),
        ("<annotation><object>", "broken, or an object lacks"),
        ("<annotation><object><name>cell</name></object></annotation>", "broken, or an object lacks"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "declares a document type"),
    ],
)
def test_a_bad_file_is_a_sentence_and_the_others_go_on(tmp_path, text, said):
    listing = layouts.read(write(tmp_path, {"a": text, "good": annotation(("cell", 0, 1, 31, 5))}))
    assert [entry.id for entry in listing.entries] == ["good"]
    [problem] = listing.problems
    assert "a.xml" in str(problem) and said in str(problem)
    # Up to a pixel over the edge is a slip, and cut there.
    box = listing.entries[0].findings[0].box
    assert (box.start[2], box.stop[2]) == (0, 30)


def test_what_a_list_names_must_be_there(tmp_path):
    write(tmp_path, {"a": annotation(("cell", 1, 1, 3, 5))}, {"train": ["a", "gone"]})
    (tmp_path / "Annotations" / "alone.xml").write_text(annotation(("cell", 1, 1, 3, 5)))
    assert "lists gone" in str(layouts.read(tmp_path).problems[0])
    (tmp_path / "ImageSets" / "Main" / "train.txt").unlink()
    assert "no image of this name" in str(layouts.read(tmp_path).problems[0])


@pytest.mark.real_data
def test_bccd_as_it_is(real_data):
    listing = layouts.read(real_data / "bccd")
    # Counted in the files themselves, as text.
    texts = [file.read_text() for file in sorted((real_data / "bccd" / "Annotations").glob("*.xml"))]
    named = {name: sum(text.count(f"<name>{name}</name>") for text in texts) for name in ("RBC", "WBC", "Platelets")}
    there = [f.name for entry in listing.entries for f in entry.findings if f.box]
    assert {name: there.count(name) for name in named} == named == {"RBC": 3350, "WBC": 301, "Platelets": 292}
    splits = [entry.split for entry in listing.entries]
    assert (splits.count("train"), splits.count("test")) == (205, 87) and not listing.problems
    assert listing.questions[0].classes == ("Platelets", "RBC", "WBC")
