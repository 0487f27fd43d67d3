"""What is true of every transform, each on its own and whatever its options."""

from dataclasses import fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from osler.catalog import find, names
from osler.draws import keys

SHAPES = [(6, 1, 1, 28, 28), (5, 3, 1, 17, 24), (4, 2, 9, 12, 15)]


@pytest.fixture(params=names("transforms"))
def transform(request: pytest.FixtureRequest) -> ModuleType:
    return find("transforms", request.param)


@pytest.fixture(params=SHAPES, ids=str)
def images(request: pytest.FixtureRequest) -> torch.Tensor:
    return torch.randn(request.param, generator=torch.Generator().manual_seed(1))


def certain(transform: ModuleType) -> Any:
    """Options under which everything that may happen does."""
    options = transform.Options()
    return replace(options, **{f.name: 1.0 for f in fields(options) if f.name.endswith("probability")})


def test_options_are_frozen_and_plain(transform: ModuleType) -> None:
    options = transform.Options()
    assert is_dataclass(options) and options.__dataclass_params__.frozen
    assert all(isinstance(getattr(options, f.name), int | float | str | bool) for f in fields(options))
    with pytest.raises(ValueError, match="probability"):
        replace(options, probability=1.5)


def test_changes_the_image_and_keeps_shape_and_kind(transform: ModuleType, images: torch.Tensor) -> None:
    before = images.clone()
    after = transform.apply(images, certain(transform), keys(0, np.arange(len(images))))
    assert after.shape == images.shape and after.dtype == torch.float32 and after.device == images.device
    assert torch.isfinite(after).all()
    assert ((after - images).abs().amax((1, 2, 3, 4)) > 1e-3).all()
    assert torch.equal(images, before)


def test_probability_zero_changes_nothing(transform: ModuleType, images: torch.Tensor) -> None:
    options = replace(certain(transform), probability=0.0)
    assert torch.equal(transform.apply(images, options, keys(0, np.arange(len(images)))), images)


@pytest.mark.parametrize("probability", [1.0, 0.5])
def test_place_in_the_batch_does_not_matter(transform: ModuleType, images: torch.Tensor, probability: float) -> None:
    options = replace(certain(transform), probability=probability)
    key = keys(1, np.arange(len(images)))
    after = transform.apply(images, options, key)
    order = np.random.default_rng(0).permutation(len(images))
    torch.testing.assert_close(transform.apply(images[order], options, key[order]), after[order], rtol=0, atol=1e-5)
    for row in range(len(images)):
        alone = transform.apply(images[row : row + 1], options, key[row : row + 1])
        torch.testing.assert_close(alone, after[row : row + 1], rtol=0, atol=1e-5)


def test_same_key_same_result_other_key_other_result(transform: ModuleType, images: torch.Tensor) -> None:
    options = certain(transform)
    key = keys(2, np.arange(len(images)))
    after = transform.apply(images, options, key)
    assert torch.equal(transform.apply(images, options, key), after)
    assert not torch.equal(transform.apply(images, options, keys(3, np.arange(len(images)))), after)


def test_probability_is_the_share_of_changed_images(transform: ModuleType) -> None:
    images = torch.randn(400, 1, 1, 12, 12)
    after = transform.apply(images, replace(certain(transform), probability=0.3), keys(4, np.arange(400)))
    share = (after != images).any(-1).any(-1).float().mean().item()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5


def test_a_constant_image_stays_finite(transform: ModuleType) -> None:
    after = transform.apply(torch.ones(3, 1, 1, 12, 12), certain(transform), keys(5, np.arange(3)))
    assert torch.isfinite(after).all()


def test_a_single_pixel_along_an_axis_is_enough(transform: ModuleType) -> None:
    for shape in [(2, 1, 1, 1, 9), (2, 1, 1, 9, 1), (2, 1, 5, 1, 1)]:
        after = transform.apply(torch.randn(shape), certain(transform), keys(6, np.arange(2)))
        assert after.shape == shape and torch.isfinite(after).all()
