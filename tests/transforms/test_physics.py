"""Transforms that imitate what one kind of machine does, against the physics and statistics of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage, special, stats
from torch import Tensor

from osler.draws import keys
from osler.transforms import collimation, dose, exposure, gain, ghost, metal, motion, shadow, speckle, spike

KEY = keys(0, np.arange(6))


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def point(count: int, side: int) -> Tensor:
    at = torch.zeros(count, 1, 1, side, side)
    at[..., side // 2, side // 2] = 1
    return at


# --- MRI --------------------------------------------------------------------------------------------------


def test_ghosts_lie_a_whole_share_of_the_image_apart_and_are_bessel_functions() -> None:
    swing, count, side = 0.5, 8, 64
    options = ghost.Options(1.0, count, count, swing, swing)
    after = ghost.apply(point(6, side), options, KEY)[:, 0, 0]
    directions = set()
    for image in after:
        down, across = image[:, side // 2], image[side // 2]
        line = down if down.count_nonzero() > across.count_nonzero() else across
        directions.add(line is down)
        assert torch.allclose(image.square().sum(), torch.tensor(1.0), atol=1e-5)  # no energy is lost
        assert torch.allclose(line.square().sum(), torch.tensor(1.0), atol=1e-5)  # all of it in one line
        for number in range(-2, 3):
            place = (side // 2 + number * side // count) % side
            assert abs(line[place] - abs(special.jv(number, swing))) < 1e-4
        between = torch.ones(side, dtype=torch.bool)
        between[side // 2 % (side // count) :: side // count] = False
        assert line[between].abs().max() < 1e-5
    assert directions == {True, False}


def test_ghosts_need_not_divide_the_image() -> None:
    """37 lines in 5 parts: the lines' factors are what they are, and each has modulus 1."""
    options = ghost.Options(1.0, 5, 5, 0.4, 0.4)
    factor = ghost.phases(options, KEY, 37)
    np.testing.assert_allclose(np.abs(factor), 1)
    line = np.rint(np.fft.fftfreq(37) * 37).astype(int)
    order = np.argsort(line)
    np.testing.assert_allclose(factor[:, order[5:]], factor[:, order[:-5]], atol=1e-12)


@pytest.mark.parametrize("axis", [3, 4])
def test_a_moving_patient_keeps_the_projection_across_the_phase_axis(axis: int) -> None:
    """The line of frequency 0 is from the unmoved patient, so sums along the phase axis are those before."""
    before = images(6, 2, 1, 24, 30).abs()
    after = motion.scanned(before, motion.Options(1.0, 3, 8.0, 0.1), KEY, axis)
    assert (after.abs() - before).abs().amax((1, 2, 3, 4)).min() > 0.05
    total = torch.complex(before.sum(axis), torch.zeros(()))
    torch.testing.assert_close(after.sum(axis), total, rtol=0, atol=1e-3)


def test_a_patient_who_moves_once_gives_lines_from_two_places() -> None:
    before = images(6, 1, 1, 40, 40).abs()
    after = motion.scanned(before, motion.Options(1.0, 1, 5.0, 0.05), KEY, 3)
    lines, still = torch.fft.fft(after, dim=3), torch.fft.fft(before, dim=3)
    same = ((lines - still).abs().amax((1, 2, 4)) < 1e-3).numpy()
    for row in same:
        kept = np.fft.fftshift(row)  # from the most negative frequency to the most positive
        assert kept[20] and 0 < kept.sum() < 40 and np.abs(np.diff(kept.astype(int))).sum() == 1


def test_a_patient_who_keeps_still_is_seen_as_before() -> None:
    before = images(6, 1, 5, 12, 14)
    after = motion.apply(before, motion.Options(1.0, 2, 0.0, 0.0), KEY)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_a_move_is_rigid_also_where_the_image_is_not_square() -> None:
    y, x = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
    disc = torch.exp(-((x - 55) ** 2 + (y - 20) ** 2) / 40)[None, None, None]
    turned = motion._moved(disc, np.array([np.deg2rad(30)]), np.array([[0.05, -0.1]]))[0, 0, 0]
    weight = turned / turned.sum()
    cx, cy = (weight * x).sum(), (weight * y).sum()
    spread = (weight * (x - cx) ** 2).sum() / (weight * (y - cy) ** 2).sum()
    assert abs(spread - 1) < 0.02
    # An output point p shows the input at R (p - m) + m + t, m the middle: solved for where the disc went.
    c, s = np.cos(np.deg2rad(30)), np.sin(np.deg2rad(30))
    off = np.array([55 - 39.5 - 0.05 * 80, 20 - 19.5 + 0.1 * 40])
    assert abs(cx - (39.5 + c * off[0] + s * off[1])) < 0.1 and abs(cy - (19.5 - s * off[0] + c * off[1])) < 0.1


@pytest.mark.parametrize("size", [(1, 32, 40), (8, 16, 20)])
def test_a_spike_is_one_wave(size: tuple[int, ...]) -> None:
    """Where there is much signal, a cosine: two points of k-space, of the amplitude asked for."""
    before = torch.full((6, 1, *size), 1000.0)
    before[:, :, 0, 0, 0] = 0  # no signal
    after = spike.apply(before, spike.Options(1.0, 0.3, 0.3), KEY)
    added = (after - before)[:, 0].double()
    assert torch.allclose(added[:, 0, 0, 0], torch.tensor(0.3, dtype=torch.float64), atol=1e-4)  # an even veil there
    spectrum = torch.fft.fftn(added, dim=(1, 2, 3)).flatten(1).abs() * 2 / np.prod(size)
    largest = spectrum.sort(1, descending=True).values
    assert torch.allclose(largest[:, :2], torch.tensor(0.3, dtype=torch.float64), atol=0.01)
    assert largest[:, 2].max() < 0.01


def test_a_spike_lies_where_it_may() -> None:
    options = spike.Options(coarsest=0.1, finest=0.3)
    cycles = spike.frequency(options, keys(1, np.arange(500)), (1, 100, 100))
    radius = np.hypot(cycles[:, 1], cycles[:, 2]) / 100
    assert (cycles[:, 0] == 0).all() and (cycles == np.rint(cycles)).all()
    assert radius.min() > 0.09 and radius.max() < 0.31


# --- CT ---------------------------------------------------------------------------------------------------


def test_the_variance_of_dose_noise_follows_the_rays() -> None:
    image = images(1, 1, 1, 7, 9)[0, 0, 0].numpy().astype(float)
    signal = image - image.min()
    truth = np.zeros_like(signal)
    for y, x in np.ndindex(signal.shape):
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            on = [(y + k * dy, x + k * dx) for k in range(-20, 21)]
            ray = sum(signal[v, u] for v, u in on if 0 <= v < 7 and 0 <= u < 9) * np.hypot(dy, dx)
            truth[y, x] += np.exp(1.3 * ray / (signal.mean() * np.sqrt(63)))
    found = dose.variance(torch.from_numpy(image).float()[None, None, None], 1.3)[0, 0, 0].numpy()
    np.testing.assert_allclose(found, truth / truth.mean(), rtol=1e-4)


def test_dose_noise_has_that_variance_and_the_strength_asked_for() -> None:
    y, x = np.mgrid[-1:1:20j, -1:1:20j]
    body = torch.from_numpy((x**2 / 0.8 + y**2 / 0.4 < 1).astype(np.float32)).expand(3000, 1, 1, 20, 20)
    added = dose.apply(body, dose.Options(1.0, 0.2, 0.2), keys(2, np.arange(3000))) - body
    law = dose.variance(body[:1], dose.Options().attenuation)[0, 0, 0]
    assert law[10, 10] > 2 * law[0, 0]  # noisiest inside
    seen = added.var(0)[0, 0]
    assert ((seen / law / 0.04 - 1).abs() < 5 * (2 / 3000) ** 0.5).all()
    assert added.mean(0).abs().max() < 5 * 0.2 * float(law.max()) ** 0.5 / 3000**0.5


def test_dose_noise_has_the_spectrum_of_filtered_back_projection() -> None:
    """On an even image: a ramp times the square of Hann's window, nothing at frequency 0."""
    flat = torch.zeros(2000, 1, 1, 16, 16)
    added = dose.apply(flat, dose.Options(1.0, 1.0, 1.0), keys(3, np.arange(2000)))[:, 0, 0].double()
    power = torch.fft.fft2(added).abs().square().mean(0).numpy()
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(16), np.fft.fftfreq(16)))
    law = radius * np.where(radius < 0.5, np.cos(np.pi * radius) ** 2, 0) ** 2
    assert power[0, 0] < 1e-9
    np.testing.assert_allclose(
        power / power.sum(), law / law.sum(), atol=5 * (1 / 2000) ** 0.5 * law.max() / law.sum()
    )


def test_streaks_start_from_the_metal_and_fall_with_the_root_of_the_distance() -> None:
    before = torch.zeros(6, 1, 1, 200, 200)
    before[..., 0, 0] = 50.0
    after = metal.apply(before, metal.Options(1.0, 0.02, 0.02, 1.0, 1.0), KEY)[:, 0, 0].numpy()
    y, x = np.mgrid[:200, :200]
    ratios = []
    for image in after:
        spot = image > 40
        spot[0, 0] = False
        assert abs(spot.sum() - np.pi * 4**2) < 20
        middle = ndimage.center_of_mass(spot)
        assert all(0.25 * 200 < m < 0.75 * 200 for m in middle)
        distance = np.hypot(y - middle[0], x - middle[1])
        error = np.where(spot, 0, image)
        near, far = (np.sqrt((error[(distance > r) & (distance < 1.25 * r)] ** 2).mean()) for r in (9, 36))
        ratios.append(near / far)
    assert abs(np.mean(ratios) - 2) < 0.2


def test_errors_of_views_are_even_and_of_mean_0() -> None:
    error = metal.streaks(keys(4, np.arange(50)))
    np.testing.assert_allclose(error.mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(error.std(1), 1)


def test_metal_stays_within_its_slices() -> None:
    before = torch.zeros(3, 1, 40, 16, 16)
    after = metal.apply(before, metal.Options(1.0, low=1.0, high=1.0), KEY[:3])
    strength = after.abs().amax((1, 3, 4))
    assert ((strength > 0.3).sum(1) < 20).all() and (strength.amin(1) < 1e-3).all()


# --- ultrasound -------------------------------------------------------------------------------------------


def test_speckle_follows_rayleighs_law() -> None:
    grains = speckle.grains(speckle.Options(), keys(5, np.arange(40)), (1, 64, 64))
    apart = grains[:, 0, ::8, ::8].ravel()  # pixels that are not correlated
    assert stats.kstest(apart, stats.rayleigh(scale=np.sqrt(2 / np.pi)).cdf).pvalue > 0.01
    assert abs(grains.mean() - 1) < 0.01
    assert abs(grains.mean() / grains.std() - np.sqrt(np.pi / (4 - np.pi))) < 0.05  # the well-known 1.91


def test_speckle_is_longer_across_the_beam() -> None:
    grains = speckle.grains(speckle.Options(along=0.7, across=2.0), keys(6, np.arange(40)), (1, 64, 64))[:, 0] - 1
    along, across = (np.mean(grains * np.roll(grains, 1, axis)) for axis in (1, 2))
    assert across > along + 0.1


def test_speckle_keeps_the_mean_and_black() -> None:
    before = torch.rand(200, 1, 1, 32, 32, generator=torch.Generator().manual_seed(1)) + 1
    before[..., :4] = 0
    after = speckle.apply(before, speckle.Options(1.0, 0.4, 0.4), keys(7, np.arange(200)))
    assert torch.equal(after[..., :4], before[..., :4])
    ratio = (after[..., 4:].mean((1, 2, 3, 4)) / before[..., 4:].mean((1, 2, 3, 4))).numpy()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(200)


@pytest.mark.parametrize("brighter", [0.0, 1.0])
def test_a_shadow_lies_below_its_point_only(brighter: float) -> None:
    options = shadow.Options(1.0, 0.5, 0.7, enhancement_probability=brighter)
    before = torch.ones(6, 1, 1, 80, 60)
    before[..., 0, 0] = 0  # black
    after = shadow.apply(before, options, KEY)
    assert torch.equal(after[..., 0, 0], before[..., 0, 0])
    after[..., 0, 0] = 1
    for image in after[:, 0, 0].numpy():
        changed = np.abs(image - 1) > 1e-3
        start = int(np.argmax(changed.any(1)))
        assert 0.1 * 80 - 1 <= start <= 0.6 * 80 + 1
        assert changed[start:].any(1).all()  # down to the bottom
        assert not changed[-1].all()  # and beside it nothing
        middle = image[:, int(np.argmax(changed[-1])) : 60 - int(np.argmax(changed[-1][::-1]))]
        assert (middle.max() <= 1 + 1e-3) if not brighter else (middle.min() >= 1 - 1e-3)
        assert image.min() >= 0.3 - 1e-3 and image.max() <= 1.35 + 1e-3


def test_beams_of_a_linear_probe_are_columns() -> None:
    factor = shadow.transmission(shadow.Options(fan=0.0), KEY, 100, 60)
    np.testing.assert_allclose(factor[:, -1], factor[:, -20])
    fan = shadow.transmission(shadow.Options(fan=1.0), keys(8, np.arange(50)), 100, 600)
    whole = (np.abs(fan[:, -1] - 1) < 1e-3)[:, [0, -1]].all(1)  # those that do not leave the image
    lost = (1 - fan[whole]).sum(2)
    ratio = lost[:, -1] / lost[:, -25]
    assert len(ratio) > 20 and (ratio > 1 - 1e-6).all() and (ratio < 2 / 1.75 + 0.01).all() and ratio.max() > 1.08


def test_gain_is_the_same_along_a_row_and_linear_between_sliders() -> None:
    options = gain.Options(1.0, 0.2, 0.3, 5)
    before = images(6, 2, 1, 101, 12)
    after = gain.apply(before, options, KEY)
    low = before.amin((1, 2, 3, 4), keepdim=True)
    factor = (after - low) / (before - low).clamp_min(1e-3)
    seen = torch.where(before - low > 0.1, factor, torch.nan)
    rows = seen.nanmean(4)[:, 0, 0].numpy()
    np.testing.assert_allclose(rows, gain.gains(options, KEY, 101), rtol=1e-3)
    logs = np.log(gain.gains(options, KEY, 101))
    bends = (np.abs(np.diff(logs, 2)) > 1e-9).sum(1)
    assert (bends <= 2 * 3).all() and np.abs(logs).max() <= 0.5 and np.abs(logs).max() > 0.1


# --- X-ray ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("white", [0.0, 1.0])
def test_collimation_leaves_the_field_as_it_was(white: float) -> None:
    options = collimation.Options(1.0, 0.05, 0.15, rotation=0.0, white_probability=white)
    before = images(6, 2, 1, 60, 80)
    after = collimation.apply(before, options, KEY)
    border = before.amax((1, 2, 3, 4)) if white else before.amin((1, 2, 3, 4))
    for old, new, fill in zip(before[:, :, 0], after[:, :, 0], border, strict=True):
        same = (old == new).all(0).numpy()
        field = ndimage.find_objects(same.astype(int))[0]
        assert same[field].all() and same.sum() == same[field].size  # one rectangle, to the bit
        for part, n in zip(field, (60, 80), strict=True):
            for edge in (part.start, n - part.stop):
                assert 0.05 * n - 1 <= edge <= 0.15 * n + 1
        outside = np.pad(np.zeros(tuple(np.array(same[field].shape) + 2), bool), 0, constant_values=True)
        gone = np.ones_like(same)
        gone[tuple(slice(p.start - 1, p.stop + 1) for p in field)] = outside
        assert (new[:, torch.from_numpy(gone)] == fill).all()


def test_collimation_is_turned_by_the_angle_drawn() -> None:
    field = collimation.inside(
        collimation.Options(low=0.2, high=0.2, rotation=10.0), keys(9, np.arange(40)), 200, 200
    )
    angles = []
    for share in field:
        rows = np.arange(80, 120)
        left = [np.interp(0.5, share[y, :100], np.arange(100)) for y in rows]
        angles.append(np.rad2deg(np.arctan(np.polyfit(rows, left, 1)[0])))
    assert np.abs(angles).max() <= 10.1 and np.abs(angles).max() > 7 and abs(np.mean(angles)) < 4
    np.testing.assert_allclose(field.sum((1, 2)), (0.6 * 200) ** 2, rtol=0.01)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_quantum_noise_is_that_of_counted_quanta(level: float) -> None:
    quanta, latitude = 3000.0, 2.5
    counts = np.random.default_rng(0).poisson(quanta * np.exp(-latitude * level), 200_000)
    truth = (-np.log(counts / quanta) / latitude).std()
    found = exposure.deviation(torch.full((1, 1, 1, 1, 1), level), torch.full((1, 1, 1, 1, 1), quanta), latitude)
    assert abs(found.item() / truth - 1) < 0.01


def test_exposure_adds_that_noise() -> None:
    options = exposure.Options(1.0, 1000.0, 1000.0, latitude=2.0, centre=0.0, narrowest=1000.0, widest=1000.0)
    before = torch.full((1, 1, 1, 200, 200), 0.5)
    before[..., 0, 0], before[..., 0, 1] = 0.0, 1.0
    added = exposure.apply(before, options, KEY[:1]) - before  # so wide a curve is a straight line
    assert abs(added.std().item() / (np.exp(0.5) / (np.sqrt(1000) * 2)) - 1) < 0.03


def test_the_tone_curve_keeps_order_and_ends_and_bends_both_ways() -> None:
    unit = torch.linspace(0, 1, 101).view(1, 1, 1, 1, 101)
    shape = (1, 1, 1, 1, 1)
    shown = exposure.tone(unit, torch.full(shape, 0.5), torch.full(shape, 0.8)).flatten()
    assert (shown.diff() > 0).all() and abs(shown[0]) < 1e-6 and abs(shown[-1] - 1) < 1e-6
    assert abs(shown[50] - 0.5) < 1e-6
    # Steep in the middle and flat at both ends, which no power law is.
    assert shown[:11].diff().max() < 0.01 < shown[45:56].diff().min()


# --- all --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [ghost, motion, spike, dose, metal, speckle, shadow, gain, collimation, exposure])
def test_grey_images_shown_in_colour_stay_grey(module: object) -> None:
    grey = images(3, 1, 1, 24, 24).expand(3, 3, 1, 24, 24).clone()
    options = replace(module.Options(), probability=1.0)  # type: ignore[attr-defined]
    after = module.apply(grey, options, KEY[:3])  # type: ignore[attr-defined]
    assert torch.allclose(after[:, 0], after[:, 1], atol=1e-6) and torch.allclose(after[:, 0], after[:, 2], atol=1e-6)


@pytest.mark.parametrize(
    ("module", "wrong"),
    [
        (ghost, {"fewest": 1}), (ghost, {"low": 1.0}), (motion, {"moves": 0}), (spike, {"finest": 0.6}),
        (dose, {"attenuation": -1.0}), (metal, {"smallest": 0.0}), (speckle, {"high": 1.5}), (shadow, {"fan": -1.0}),
        (gain, {"sliders": 1}), (collimation, {"high": 0.5}), (exposure, {"fewest": 0.0}),
    ],
)  # fmt: skip
def test_impossible_options_are_refused(module: object, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs"):
        module.Options(**wrong)  # type: ignore[attr-defined]
