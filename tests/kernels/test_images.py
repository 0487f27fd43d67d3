"""The compiled loops of the augmentations against torch's way of each, for all options, sizes and threads."""

import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from osler import draws, kernels, transforms
from osler.transforms import blur, intensity, noise, spatial

sizes = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.just(1), st.integers(2, 40), st.integers(2, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 2), *[st.integers(2, 14)] * 3),
)
share = st.sampled_from([0.5, 1.0])
amount = st.floats(0, 0.3)
spatials = st.builds(
    spatial.Options,
    probability=share, rotation=st.floats(0, 180), tilt=st.floats(0, 90), scale=amount, stretch=amount,
    shear=amount, translation=st.floats(0, 0.8), elastic=st.floats(0, 0.12), elastic_probability=share,
    flip_x=st.booleans(), flip_y=st.booleans(), flip_z=st.booleans(), padding=st.sampled_from(["border", "zero"]),
    aspect_y=st.floats(0.5, 2), aspect_z=st.floats(0.5, 4),
)  # fmt: skip
intensities = st.builds(
    intensity.Options, probability=share, brightness=amount, contrast=amount,
    gamma=st.floats(0, 1.5), invert_probability=st.sampled_from([0.0, 0.5]),
)  # fmt: skip
blurs = st.builds(blur.Options, probability=share, low=st.floats(0.2, 0.5), high=st.floats(0.6, 3))
noises = st.builds(noise.Options, probability=share, low=st.just(0.0), high=st.floats(0.01, 2))
CHAIN = (spatial, noise, blur, intensity)


def batch(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def both(module: ModuleType, name: str, x: torch.Tensor, options: Any, key: np.ndarray) -> list[torch.Tensor]:
    """With the loops, and with torch alone."""
    found = []
    for pays in (0, math.inf):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transforms, "_PAYS", pays)
            assert (transforms.loops("grey", x) is None) == (pays > 0)
            before = x.clone()
            found.append(getattr(module, name)(x, options, key))
            assert torch.equal(x, before)
    return found


@settings(max_examples=60, deadline=None)
@given(shape=sizes, options=spatials, seed=st.integers(0, 10**6))
def test_images_move_as_with_torch(shape: tuple[int, ...], options: spatial.Options, seed: int) -> None:
    ours, theirs = both(spatial, "apply", batch(shape), options, draws.keys(seed, np.arange(shape[0])))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


@settings(max_examples=60, deadline=None)
@given(shape=sizes, options=spatials, seed=st.integers(0, 10**6))
def test_masks_move_as_with_torch(shape: tuple[int, ...], options: spatial.Options, seed: int) -> None:
    masks = torch.randint(0, 200, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    ours, theirs = both(spatial, "move_masks", masks, options, draws.keys(seed, np.arange(shape[0])))
    assert ours.dtype == theirs.dtype == torch.uint8
    # a pixel half-way between two may be rounded to either
    assert (ours != theirs).sum() <= 1 + 0.005 * masks.numel()


@settings(max_examples=40, deadline=None)
@given(shape=sizes, options=intensities, seed=st.integers(0, 10**6))
def test_grey_values_change_as_with_torch(shape: tuple[int, ...], options: intensity.Options, seed: int) -> None:
    x = 100 * batch(shape) + 30
    ours, theirs = both(intensity, "apply", x, options, draws.keys(seed, np.arange(shape[0])))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


@settings(max_examples=40, deadline=None)
@given(shape=sizes, options=blurs, seed=st.integers(0, 10**6))
def test_blur_is_that_of_torch(shape: tuple[int, ...], options: blur.Options, seed: int) -> None:
    ours, theirs = both(blur, "apply", batch(shape), options, draws.keys(seed, np.arange(shape[0])))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(shape=sizes, options=noises, seed=st.integers(0, 10**6))
def test_noise_is_that_of_draws(shape: tuple[int, ...], options: noise.Options, seed: int) -> None:
    ours, theirs = both(noise, "apply", batch(shape), options, draws.keys(seed, np.arange(shape[0])))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def run(x: torch.Tensor, key: np.ndarray) -> torch.Tensor:
    for module in CHAIN:
        options: Any = replace(module.Options(), probability=0.7)
        x = module.apply(x, options, key)
    return x


@pytest.mark.parametrize("shape", [(3, 1, 33, 34, 35), (5, 2, 1, 71, 80)])
def test_threads_change_no_bit_and_the_chain_is_that_of_torch(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    x, key = batch(shape), draws.keys(3, np.arange(shape[0]))
    plain = run(x, key)
    monkeypatch.setattr(transforms, "_PAYS", 0)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        found.append(run(x, key))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], plain, rtol=0, atol=3e-4)


@pytest.mark.parametrize("shape", [(2, 1, 1, 90, 95), (1, 1, 20, 21, 23)])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int64, torch.bool, torch.float32])
def test_a_mask_goes_where_its_image_goes(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], kind: torch.dtype
) -> None:
    """Where the moved image of a mask is clearly inside, so is the moved mask."""
    blob = torch.zeros(shape)
    blob[..., 30 * (shape[2] == 1) + 5 : 60 * (shape[2] == 1) + 12, 6:16] = 1
    options = spatial.Options(1.0, elastic=0.05, elastic_probability=1.0, tilt=10.0, flip_x=True)
    for pays in (0, math.inf):
        monkeypatch.setattr(transforms, "_PAYS", pays)
        key = draws.keys(8, np.arange(shape[0]))
        image, mask = spatial.apply(blob, options, key), spatial.move_masks(blob.to(kind), options, key)
        assert mask.dtype == kind and set(mask.float().unique().tolist()) == {0.0, 1.0}
        assert (mask.float()[image > 0.88] == 1).all() and (mask.float()[image < 0.12] == 0).all()


def test_a_still_map_gives_the_same_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_PAYS", 0)
    x = batch((2, 1, 7, 8, 9))
    still = spatial.Options(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    key = draws.keys(0, np.arange(2))
    torch.testing.assert_close(spatial.apply(x, still, key), x, rtol=0, atol=1e-5)
    assert torch.equal(spatial.move_masks(x > 0, still, key), x > 0)
    silent = intensity.Options(1.0, 0.0, 0.0, 0.0)
    torch.testing.assert_close(intensity.apply(x, silent, key), x, rtol=0, atol=1e-5)
    assert torch.equal(noise.apply(x, noise.Options(1.0, 0.0, 0.0), key), x)


def test_a_constant_image_stays_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_PAYS", 0)
    x = torch.full((2, 1, 5, 6, 7), 3.0)
    for module in (spatial, blur, intensity):
        after = module.apply(x, replace(module.Options(), probability=1.0), draws.keys(0, np.arange(2)))
        assert torch.isfinite(after).all() and after.std((1, 2, 3, 4)).max() < 1e-5


def test_torch_alone_where_numba_or_pixels_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "_PAYS", 100)
    assert transforms.loops("grey", torch.zeros(1, 1, 1, 9, 9)) is None
    assert transforms.loops("grey", torch.zeros(1, 1, 1, 10, 10)) is not None
    assert transforms.loops("grey", torch.zeros(1, 1, 1, 10, 10, requires_grad=True)) is None
    monkeypatch.setattr(kernels, "find", lambda name: None)
    assert transforms.loops("grey", torch.zeros(1, 1, 1, 10, 10)) is None


def test_white_noise_is_white_and_normal() -> None:
    numbers = draws.white(draws.keys(4, np.arange(200)), "test", 1001)
    assert numbers.dtype == np.float32 and numbers.shape == (200, 1001)
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 1e-3
    # neighbours, the two halves of a hash, and different keys know nothing of each other: not their sizes either
    for lag in (1, 2, 500, 501):
        for power in (1, 2):
            first, second = numbers[:, :-lag].ravel() ** power, numbers[:, lag:].ravel() ** power
            assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(first.size)
    related = np.corrcoef(numbers)[np.triu_indices(200, 1)]
    assert stats.kstest(related * math.sqrt(1001), "norm").pvalue > 1e-3
    spectrum = np.abs(np.fft.rfft(numbers.ravel()[:200000]))[1:-1] ** 2
    assert stats.kstest(spectrum / spectrum.mean(), "expon").pvalue > 1e-3
