"""A problem that is found in pixels names the file that they came from."""

from pathlib import Path

import numpy as np
import pytest

from osler import data, origins, volumes
from osler.case import Entry, Question, Source
from osler.problem import Problem
from osler.recipe import ImagePlan, Recipe

MASK = Question("mask", "segmentation", ("a",), values=((1,),))
GOOD = np.ones((8, 8), np.float32)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.ones((1, 2, 1, 8, 8), np.float32), "the image has 2 channels"),
        (np.full((8, 8), np.nan, np.float32), "values that are not numbers"),
    ],
)
def test_whoever_reads_a_cohort_says_which_file(tmp_path: Path, pixels: np.ndarray, said: str) -> None:
    entries = []
    for number, array in enumerate((GOOD, pixels)):
        np.save(tmp_path / f"{number}.npy", array)
        # The name of a case may be any word of the sentence.
        entries.append(Entry(("1", "2")[number], str(number), {"image": Source(tmp_path / f"{number}.npy")}))
    (problem,) = data.load(entries, ImagePlan((1, 8, 8))).problems
    assert problem.path == tmp_path / "1.npy" and said in problem.what and problem.fix
    told: list[Problem] = []
    volumes.load(entries, Recipe(ImagePlan((1, 8, 8)), {"mask": MASK}), None, told.append)
    assert [one.path for one in told] == [tmp_path / "1.npy"]


def test_of_several_images_the_case_is_named_or_the_one_that_is_looked_at() -> None:
    entry = Entry("c7", "p", {"flair": Source(Path("f.png")), "t1": Source(Path("t.png"))})

    def fail(*names: str, what: str = "it is bad", path: Path | None = None) -> str:
        with pytest.raises(Problem) as told, origins.named(entry, names):
            raise Problem(what, path=path, fix="mend it")
        return str(told.value)

    assert fail() == fail("flair", "t1") == "case c7: it is bad; mend it."
    assert fail("t1") == "t.png: it is bad; mend it."
    assert fail("t1", path=Path("mask.png")) == "mask.png: it is bad; mend it."
    assert fail(what="case c7 has none of the images") == "case c7 has none of the images; mend it."
    assert fail("t1", what="case c7: a box is empty") == "case c7: a box is empty; mend it."
