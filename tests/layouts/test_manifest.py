import numpy as np
import pandas as pd
import pytest
from PIL import Image as Pillow

from osler import layouts
from osler.problem import Problem


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "abcdef":
        Pillow.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def table(folder, header, *rows, name="cohort.csv"):
    (folder / name).write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return folder / name


def stated(listing, task="label"):
    return {
        entry.id: {(f.name, f.probability, f.value) for f in entry.findings if f.task == task}
        for entry in listing.entries
    }


def test_every_role_is_found_by_its_name(folder):
    table(
        folder,
        "case,patient,image,label,split,covariate.age,covariate.sex,scanner,time",
        "2,p1,images/b.png,sick,val,,F,A,2020",
        "1,p1,images/a.png,well,val,61.5,M,B,2021",
    )
    listing = layouts.read(folder)
    first, second = listing.entries
    assert (first.id, first.patient, first.split) == ("1", "p1", "validation")
    assert first.images["image"].path == folder / "images" / "a.png"
    assert first.covariates == {"age": 61.5, "sex": "M"} and second.covariates == {"age": None, "sex": "F"}
    assert first.metadata == {"scanner": "B", "time": 2021.0}
    (question,) = listing.questions
    assert (question.task, question.kind, question.classes) == ("label", "multiclass", ("sick", "well"))
    assert stated(listing) == {"1": {("well", 1.0, None)}, "2": {("sick", 1.0, None)}}
    assert listing.grouping == "column patient"


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["x", "y", "x", "y", "x", "y"], "multiclass", ("x", "y")),
        (["10", "2", "10", "2", "1", "1"], "multiclass", ("1", "2", "10")),
        (["0.0", "1.0", "0", "1", "1", "1"], "multiclass", ("0", "1")),
        (["x|y", "y", "x", "", "x", "x"], "multilabel", ("x", "y")),
        (["x;y", "y", "z", "", "x", "x"], "multilabel", ("x", "y", "z")),
        (["0.5", "1", "2", "3", "", "4"], "regression", ("label",)),
        (["10", "20", "30", "40", "50", "60"], "regression", ("label",)),
    ],
)
def test_the_kind_follows_from_the_values(folder, cells, kind, classes):
    table(folder, "image,label", *(f"images/{name}.png,{cell}" for name, cell in zip("abcdef", cells, strict=True)))
    (question,) = layouts.read(folder).questions
    assert (question.kind, question.classes) == (kind, classes)


def test_blank_is_unknown_never_negative(folder):
    table(folder, "case,image,label", "1,images/a.png,x|y", "2,images/b.png,", "3,images/c.png,NaN")
    assert stated(layouts.read(folder)) == {"1": {("x", 1.0, None), ("y", 1.0, None)}, "2": set(), "3": set()}
    table(
        folder,
        "case,image,label.chest.effusion,label.chest.mass,label.age",
        "1,images/a.png,1,,40.5",
        "2,images/b.png,0,1.0,",
    )
    listing = layouts.read(folder)
    assert [(q.task, q.kind) for q in listing.questions] == [("chest", "multilabel"), ("age", "regression")]
    assert listing.questions[0].classes == ("effusion", "mass")
    assert stated(listing, "chest") == {
        "1": {("effusion", 1.0, None)},
        "2": {("effusion", 0.0, None), ("mass", 1.0, None)},
    }
    assert stated(listing, "age") == {"1": {("age", None, 40.5)}, "2": set()}


def test_several_modalities_may_be_missing_one_by_one(folder):
    table(folder, "case,image.t1,image.flair,label", "1,images/a.png,images/b.png,x", "2,,images/c.png,y")
    first, second = layouts.read(folder).entries
    assert set(first.images) == {"t1", "flair"} and set(second.images) == {"flair"}


def test_a_named_but_missing_file_is_a_problem_and_the_rest_goes_on(folder):
    path = table(folder, "case,image,label", "1,images/a.png,x", "2,images/gone.png,y", "3,images/b.png,y")
    listing = layouts.read(path)
    assert [entry.id for entry in listing.entries] == ["1", "3"]
    assert len(listing.problems) == 1 and "gone.png" in str(listing.problems[0])
    table(folder, "case,image,label", "1,a.png,x")
    with pytest.raises(Problem, match="none of the 1 cases"):
        layouts.read(path)


def test_tables_of_other_kinds_read_the_same(folder):
    rows = [("001", "images/a.png", "x"), ("002", "images/b.png", "y")]
    table(folder, "case;image;label", *(";".join(row) for row in rows), name="a.csv")
    table(folder, "case\timage\tlabel", *("\t".join(row) for row in rows), name="b.tsv")
    pd.DataFrame(rows, columns=["case", "image", "label"]).to_parquet(folder / "c.parquet")
    (folder / "d.csv").write_bytes(b"\xef\xbb\xbf" + (folder / "a.csv").read_bytes())
    listings = [layouts.read(folder / name) for name in ("a.csv", "b.tsv", "c.parquet", "d.csv")]
    assert all(listing == listings[0] for listing in listings)
    assert [entry.id for entry in listings[0].entries] == ["001", "002"]
    with pytest.raises(Problem, match="several tables"):
        layouts.read(folder)


def test_numbers_of_a_parquet_table_keep_their_meaning(folder):
    frame = pd.DataFrame({"image": [f"images/{name}.png" for name in "abc"], "label": [0, 1, None]})
    frame.to_parquet(folder / "c.parquet")
    listing = layouts.read(folder / "c.parquet")
    assert listing.questions[0].classes == ("0", "1")
    assert stated(listing)["images/c.png"] == set()


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("case,picture,label", ["1,images/a.png,x"], "no column image.*case, picture, label"),
        ("case,image,labels", ["1,images/a.png,x"], "no column label.*rename 'labels'.*case, image, labels"),
        ("case,image,label", ["1,images/a.png,x", "1,images/b.png,y"], "'1' is there 2 times"),
        ("case,image,label", [",images/a.png,x"], "no case id"),
        ("case,image,label", ["1,images/a.png,"], "blank in every row"),
        ("case,image,label.a.x,label.a", ["1,images/a.png,1,1"], "both a column of its own"),
        ("case,image,label.a.x", ["1,images/a.png,maybe"], "neither 0, 1 nor blank"),
        ("case,image,label,split", ["1,images/a.png,x,holdout"], "'holdout' is no split"),
        ("case,image,image", ["1,images/a.png,x"], "'image' is there twice"),
        ("case,image,label", ["1,images/a.png,x,y"], "row 2 has more cells"),
        ("case,image,label", [], "no rows"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(folder, header, rows, words):
    with pytest.raises(Problem, match=words):
        layouts.read(table(folder, header, *rows))


def test_text_that_is_not_utf8_is_named(folder):
    (folder / "a.csv").write_bytes("case,image,label\n1,images/a.png,größe\n".encode("latin-1"))
    with pytest.raises(Problem, match="UTF-8"):
        layouts.read(folder / "a.csv")


def test_a_table_without_labels_asks_nothing_and_says_so(folder):
    listing = layouts.read(table(folder, "case,image,age", "1,images/a.png,40"))
    assert listing.questions == () and any("image, age" in note for note in listing.notes)
