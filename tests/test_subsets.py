"""Parts of the sources of a case: which there are, what they are called, and which a case has."""

import shlex

import numpy as np
import pytest

from osler import draws, recipe, subsets
from osler.problem import Problem

FOUR = ("t1", "t1c", "t2", "flair")


def test_four_modalities_make_fifteen_parts_each_with_a_name_of_its_own() -> None:
    found = subsets.of(FOUR)
    assert len(found) == 15 and next(iter(found)) == "" and found[""].all()
    assert found["t1c+flair"].tolist() == [False, True, False, True]
    assert len({mask.tobytes() for mask in found.values()}) == 15
    assert [mask.sum() for mask in found.values()] == sorted((mask.sum() for mask in found.values()), reverse=True)
    assert all(subsets.name(FOUR, mask) == name for name, mask in found.items())


def test_of_a_modality_of_which_any_moment_counts_a_case_has_the_image() -> None:
    nan, inf = np.nan, np.inf
    times = np.array([[0, 1, nan, nan], [nan, nan, inf, nan], [0, 1, 0, nan]], np.float32)
    assert subsets.there(times, 2).tolist() == [[True, False], [False, True], [True, True]]
    known = np.array([[nan], [3], [nan]], np.float32)
    assert subsets.present(3, 2, times, known)[:, 2].tolist() == [False, True, False]
    assert subsets.present(3, 2, None, None).all()


def test_what_is_drawn_is_a_part_of_what_is_there_and_every_part_comes() -> None:
    present = np.tile([[True, True, False, True], [False, True, False, False]], (500, 1))
    found = subsets.some(present, draws.keys(3, np.arange(1000)))
    assert not (found & ~present).any() and found.any(1).all()
    assert len({row.tobytes() for row in found[::2]}) == 7
    assert np.array_equal(found, subsets.some(present, draws.keys(3, np.arange(1000))))


@pytest.mark.parametrize(
    ("names", "covariates", "linked", "said"),
    [
        (("a", "a"), False, False, "names 'a' twice"),
        (("a+b", "c"), False, False, r"cannot be called 'a\+b'"),
        (("covariates", "c"), False, False, "cannot be called 'covariates'"),
        (tuple("abcdefg"), False, False, "7 modalities.*at most 6"),
        (tuple("abcdef"), True, False, "6 modalities beside covariates.*at most 5"),
        (("a", "b"), False, True, "take one image, and the recipe names"),
    ],
)
def test_what_cannot_be_a_set_of_modalities_is_refused(
    names: tuple[str, ...], covariates: bool, linked: bool, said: str
) -> None:
    with pytest.raises(Problem, match=said):
        subsets.check(names, covariates=covariates, linked=linked)


@pytest.mark.parametrize("names", [["flair"], ["flair", "t1c"], ["4ch"], ["T2 FLAIR", "it's"], ["1"], ["true"]])
def test_what_is_advised_means_the_same_when_it_is_typed(names: list[str]) -> None:
    (word,) = shlex.split(subsets.chosen(names))
    assert recipe.settings((word,)) == {"image": {"modalities": names}}
