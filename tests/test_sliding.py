"""Patches cover an image, and their answers blend into what the whole image would have got."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from osler import sliding
from osler.problem import Problem

RNG = np.random.default_rng(0)


def slide(
    predict: Callable[[torch.Tensor], torch.Tensor], image: np.ndarray, patch: tuple[int, int, int], overlap: float
) -> np.ndarray:
    """The whole way: padded, patch by patch, blended, without the padding."""
    whole, shift = sliding.padded(image, patch)
    blend = sliding.Blend(len(image), whole.shape[1:], patch)
    for places, said in sliding.answers(predict, whole, patch, overlap):
        blend.add(places, said)
    return blend.result(shift, image.shape[1:])


axis = st.tuples(st.integers(1, 40), st.integers(1, 24))


@settings(max_examples=60, deadline=None)
@given(axes=st.tuples(axis, axis, axis), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]))
def test_patches_cover_every_pixel_lie_inside_and_overlap_enough(
    axes: tuple[tuple[int, int], ...], overlap: float
) -> None:
    size, patch = [max(a) for a in axes], [b for _, b in axes]
    places = sliding.starts(size, patch, overlap)
    for a in range(3):
        along = sorted({place[a] for place in places})
        assert along[0] == 0
        assert along[-1] == size[a] - patch[a]
        # Rounding of the starts may take one pixel of the overlap.
        least = patch[a] - max(1, round(patch[a] * (1 - overlap)))
        assert all(first + patch[a] - second >= least - 1 for first, second in itertools.pairwise(along))
        assert all(second <= first + patch[a] for first, second in itertools.pairwise(along))


@settings(max_examples=25, deadline=None)
@given(size=st.tuples(*[st.integers(1, 20)] * 3), patch=st.tuples(*[st.integers(1, 12)] * 3))
def test_what_looks_at_single_pixels_says_the_same_whatever_the_patches(
    size: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    image = RNG.normal(size=(2, *size)).astype(np.float32)
    said = slide(lambda x: torch.sin(x[:, 0]), image, patch, 0.5)
    np.testing.assert_allclose(said, np.sin(image), atol=2e-6)


def test_an_image_smaller_than_a_patch_is_padded_with_its_least_value_and_comes_back_whole() -> None:
    image = RNG.normal(size=(1, 2, 5, 9)).astype(np.float32)
    whole, shift = sliding.padded(image, (4, 8, 8))
    assert whole.shape == (1, 4, 8, 9)
    assert shift == (1, 1, 0)
    inside = whole[:, 1:3, 1:6]
    np.testing.assert_array_equal(inside, image)
    outside = np.ones(whole.shape, bool)
    outside[:, 1:3, 1:6] = False
    assert (whole[outside] == image.min()).all()


def test_the_bell_is_the_one_that_is_stated() -> None:
    bell = sliding.bell((1, 8, 16)).numpy()
    for y, x in [(0, 0), (3, 7), (4, 2), (7, 15)]:
        exact = math.exp(-0.5 * (((y - 3.5) / 1) ** 2 + ((x - 7.5) / 2) ** 2))
        assert math.isclose(bell[0, y, x], max(exact, 1e-3), rel_tol=1e-5)


@pytest.mark.parametrize(("size", "patch"), [((12, 24, 32), (4, 8, 16)), ((1, 40, 24), (1, 16, 8))])
def test_the_blend_is_that_of_monai(size: tuple[int, int, int], patch: tuple[int, int, int]) -> None:
    inferers = pytest.importorskip("monai.inferers", reason="needs MONAI (test oracle, not a dependency)")

    # Sizes at which both place their patches alike: MONAI pushes the last one back, we spread all of them evenly.
    def predict(x: torch.Tensor) -> torch.Tensor:
        ramp = torch.linspace(0, 1, x.shape[-1]) + torch.linspace(0, 2, x.shape[-2])[:, None]
        return torch.tanh(x) + x.mean((2, 3, 4), keepdim=True) * ramp

    image = RNG.normal(size=(2, *size)).astype(np.float32)
    theirs = inferers.sliding_window_inference(
        torch.from_numpy(image)[None], patch, 3, predict, overlap=0.5, mode="gaussian", sigma_scale=0.125
    )[0].numpy()
    np.testing.assert_allclose(slide(lambda x: predict(x[:, 0]), image, patch, 0.5), theirs, atol=2e-6)


class Small:
    """A device with memory for so many patches at once."""

    def __init__(self, most: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        self.most, self.error, self.seen = most, error, []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        if len(x) > self.most:
            raise self.error("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return torch.tanh(x[:, 0]) * torch.linspace(0, 1, x.shape[-1])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize("most", [1, 3])
def test_without_memory_fewer_patches_are_asked_about_and_the_answer_is_the_same(
    most: int, error: type[Exception]
) -> None:
    image = RNG.normal(size=(1, 6, 20, 20)).astype(np.float32)
    enough, small = Small(10**6), Small(most, error)
    expected = slide(enough, image, (4, 8, 8), 0.5)
    np.testing.assert_array_equal(slide(small, image, (4, 8, 8), 0.5), expected)
    # It learns: after the last refusal there is none.
    refused = [number for number, count in enumerate(small.seen) if count > most]
    assert refused == list(range(len(refused)))
    assert sum(count for count in small.seen if count <= most) == sum(enough.seen)


def test_without_memory_for_one_patch_it_is_said() -> None:
    with pytest.raises(Problem, match="not enough memory for one patch"):
        slide(Small(0), np.zeros((1, 4, 8, 8), np.float32), (4, 8, 8), 0.5)


def test_another_error_is_no_lack_of_memory() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        slide(broken, np.zeros((1, 4, 8, 8), np.float32), (4, 8, 8), 0.5)


def test_an_answer_too_large_for_the_memory_lies_in_a_file_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image = RNG.normal(size=(2, 6, 20, 20)).astype(np.float32)
    expected = slide(Small(10**6), image, (4, 8, 8), 0.5)
    monkeypatch.setattr(sliding, "MOST_IN_MEMORY", 100)
    np.testing.assert_array_equal(slide(Small(10**6), image, (4, 8, 8), 0.5), expected)
