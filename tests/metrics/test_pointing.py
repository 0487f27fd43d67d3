"""The pointing game and the energy inside, against counted truths and chance."""

import numpy as np
import pytest

from osler.metrics.pointing import chance, energy_inside, pointing_game


def mask() -> np.ndarray:
    inside = np.zeros((1, 10, 10), bool)
    inside[0, 2:4, 2:7] = True
    return inside


def test_the_hottest_place_decides() -> None:
    heat = np.zeros((1, 10, 10), np.float32)
    heat[0, 9, 9] = 0.5
    heat[0, 3, 6] = 1
    assert pointing_game(heat, mask())
    heat[0, 9, 9] = 2
    assert not pointing_game(heat, mask())


def test_a_map_that_is_the_same_everywhere_never_wins_and_has_the_energy_of_chance() -> None:
    flat = np.ones((1, 10, 10), np.float32)
    assert not pointing_game(flat, mask())
    assert energy_inside(flat, mask()) == pytest.approx(chance(mask())) == pytest.approx(0.1)


def test_energy_is_all_or_nothing_at_the_ends() -> None:
    inside = mask().astype(np.float32)
    assert energy_inside(inside, mask()) == 1
    assert energy_inside(1 - inside, mask()) == 0
    assert np.isnan(energy_inside(0 * inside, mask()))
    with pytest.raises(ValueError, match="negative"):
        energy_inside(-inside, mask())


def test_random_maps_win_as_often_as_chance() -> None:
    maps = np.random.default_rng(0).random((4000, 1, 10, 10))
    wins = np.mean([pointing_game(one, mask()) for one in maps])
    assert wins == pytest.approx(0.1, abs=4 * np.sqrt(0.1 * 0.9 / 4000))
