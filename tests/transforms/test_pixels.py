"""Transforms that change values and move nothing, against what they promise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from osler.draws import keys
from osler.transforms import bias, blur, erase, intensity, lowres, noise

KEY = keys(0, np.arange(4))


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_noise_has_the_deviation_asked_for() -> None:
    added = noise.apply(torch.zeros(4, 1, 1, 200, 200), noise.Options(1.0, 0.3, 0.3), KEY)
    assert torch.allclose(added.std((1, 2, 3, 4)), torch.tensor(0.3), rtol=0.02)
    assert added.mean((1, 2, 3, 4)).abs().max() < 4 * 0.3 / 200
    fourth = (added / added.std((1, 2, 3, 4), keepdim=True)).pow(4).mean().item()
    assert abs(fourth - 3) < 0.1


@pytest.mark.parametrize("shape", [(2, 2, 1, 21, 30), (1, 1, 11, 12, 13)])
@pytest.mark.parametrize("sigma", [0.6, 1.5])
def test_blur_is_scipys(shape: tuple[int, ...], sigma: float) -> None:
    before = images(*shape)
    after = blur.apply(before, blur.Options(1.0, sigma, sigma), KEY[: shape[0]])
    truth = ndimage.gaussian_filter(before.numpy(), (0, 0, sigma, sigma, sigma), mode="nearest", truncate=4.0)
    np.testing.assert_allclose(after.numpy(), truth, atol=1e-5)


def test_each_image_has_its_own_blur() -> None:
    point = torch.zeros(4, 1, 1, 41, 41)
    point[..., 20, 20] = 1
    after = blur.apply(point, blur.Options(1.0, 0.8, 3.0), KEY)
    offset = torch.arange(41.0) - 20
    sigma = (after.sum((1, 2, 3)) * offset**2).sum(-1).sqrt()
    assert ((sigma > 0.75) & (sigma < 3.0)).all() and len(set(sigma.tolist())) == 4
    assert torch.allclose(after.sum((1, 2, 3, 4)), torch.ones(4), atol=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.2])
def test_gamma_keeps_order_and_ends(gamma: float) -> None:
    before = images(3, 1, 1, 20, 20)
    after = intensity.bend(before, torch.full((3, 1, 1, 1, 1), gamma))
    for one, two in zip(before.view(3, -1), after.view(3, -1), strict=True):
        order = one.argsort()
        assert (two[order].diff() >= -1e-6).all()
        assert torch.allclose(two[order[[0, -1]]], one[order[[0, -1]]], atol=1e-5)
        unit = (one - one.min()) / (one.max() - one.min())
        assert torch.allclose((two - one.min()) / (one.max() - one.min()), unit**gamma, atol=1e-5)


def test_contrast_turns_about_the_mean() -> None:
    before = images(4, 1, 1, 20, 20) + 3
    after = intensity.apply(before, intensity.Options(1.0, 0.0, 0.5, 0.0), KEY)
    assert torch.allclose(after.mean((1, 2, 3, 4)), before.mean((1, 2, 3, 4)), atol=1e-4)
    ratio = after.std((1, 2, 3, 4)).log() - before.std((1, 2, 3, 4)).log()
    assert (ratio.abs() <= 0.5 + 1e-4).all() and (ratio.abs() > 1e-3).all()


def test_brightness_adds_one_number() -> None:
    before = images(4, 1, 1, 20, 20)
    added = intensity.apply(before, intensity.Options(1.0, 0.5, 0.0, 0.0), KEY) - before
    assert torch.allclose(added, added[..., :1, :1].expand_as(added), atol=1e-6)
    assert (added.abs() <= 0.5 + 1e-6).all()


def test_inversion_twice_is_nothing() -> None:
    before = images(4, 1, 1, 20, 20)
    options = intensity.Options(1.0, 0.0, 0.0, 0.0, 1.0)
    once = intensity.apply(before, options, KEY)
    assert torch.equal(once.view(4, -1).argmax(1), before.view(4, -1).argmin(1))
    assert torch.allclose(intensity.apply(once, options, KEY), before, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 20, 30), (8, 9, 10)])
def test_bias_field_is_bounded_smooth_and_multiplies(size: tuple[int, ...]) -> None:
    options = bias.Options(1.0, 0.4)
    fields = np.log(bias.field(options, KEY, size))
    assert np.abs(fields).max() <= 0.4 + 1e-9 and np.abs(fields).max() > 0.02
    # A cubic: its fourth differences vanish.
    assert np.abs(np.diff(fields, 4, axis=-1)).max() < 1e-9
    before = images(4, 2, *size)
    low = before.amin((1, 2, 3, 4), keepdim=True)
    after = bias.apply(before, options, KEY)
    truth = (before - low) * torch.from_numpy(np.exp(fields)).float()[:, None] + low
    assert torch.allclose(after, truth, atol=1e-5)


@pytest.mark.parametrize("small", [3, 7, 11, 16, 24])
def test_low_resolution_is_antialiased_interpolation(small: int) -> None:
    before = images(1, 1, 24, 24)
    matrix = lowres.down_up(torch.tensor([24 / small]), 24)[0]
    resize = torch.nn.functional.interpolate
    truth = resize(resize(before, (small, small), mode="bilinear", antialias=True), (24, 24), mode="bilinear")
    assert torch.allclose(matrix @ before[0, 0] @ matrix.T, truth[0, 0], atol=1e-5)


def test_low_resolution_keeps_a_constant() -> None:
    after = lowres.apply(torch.full((4, 1, 5, 13, 17), 2.0), lowres.Options(1.0, 5.0, 5.0), KEY)
    assert torch.allclose(after, torch.tensor(2.0), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 40, 50), (12, 16, 20)])
def test_erasing_blanks_one_box_inside(size: tuple[int, ...]) -> None:
    before = images(4, 2, *size)
    after = erase.apply(before, erase.Options(1.0, 0.25, 0.5), KEY)
    for old, new in zip(before, after, strict=True):
        gone = (old != new).all(0).numpy()
        box = ndimage.find_objects(gone.astype(int))[0]
        assert gone[box].all() and gone.sum() == gone[box].size
        for n, side in zip(size, gone[box].shape, strict=True):
            assert side == 1 if n == 1 else 0.25 * n - 1 <= side <= 0.5 * n + 1
        assert torch.allclose(new[:, torch.from_numpy(gone)].mean(1), old.mean((1, 2, 3)), atol=1e-5)


def test_erasing_is_off_unless_asked_for() -> None:
    assert erase.Options().probability == 0


def test_transforms_of_one_key_are_unrelated() -> None:
    """The images that one transform picks are not those that another picks."""
    key = keys(9, np.arange(1000))
    before = images(1000, 1, 1, 6, 6)
    picked = []
    for module in (noise, blur, intensity, bias, lowres, erase):
        after = module.apply(before, replace(module.Options(), probability=0.5), key)
        picked.append((after != before).flatten(1).any(1).numpy())
    related = np.corrcoef(np.array(picked)) - np.eye(len(picked))
    assert np.abs(related).max() < 4 / np.sqrt(1000)
