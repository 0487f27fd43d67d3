"""Sequences as input: which moments a network is given, and when they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osler import data
from osler.image import Image
from osler.recipe import ImagePlan


def loop(frames: int, times: tuple[float, ...] = ()) -> Image:
    """Every pixel of a frame is the number of that frame."""
    array = np.zeros((frames, 1, 1, 4, 4), np.float32) + np.arange(frames, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    return Image(array, times=times)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40))
def test_moments_are_those_that_the_network_is_given(frames: int, asked: int) -> None:
    plan = ImagePlan(size=(1, 4, 4), frames=asked)
    image = loop(frames)
    moments = data.moments_of(image, plan)
    assert (data.prepare(image, plan)[:, 0, 0, 0, 0] == moments).all()
    # From first to last, never backwards, no two gaps differ by more than a frame of rounding at each end.
    gaps = np.diff(moments)
    assert moments[0] == 0
    assert asked == 1 or moments[-1] == frames - 1
    assert len(gaps) == 0 or (gaps.min() >= 0 and np.ptp(gaps) <= 1)


def test_times_of_moments_are_seconds_from_the_first_frame() -> None:
    plan = ImagePlan(size=(1, 4, 4), frames=3)
    assert data.times_of(loop(5, (10.0, 10.5, 11.5, 12.0, 14.0)), plan).tolist() == [0.0, 1.5, 4.0]
    assert np.isnan(data.times_of(loop(5), plan)).all()
    assert data.times_of(loop(1), plan).tolist() == [0.0, 0.0, 0.0]
    assert data.times_of(loop(1), plan).dtype == np.float32
    # Shorter than what the network takes: a moment that comes twice has one time.
    assert data.times_of(loop(2, (0.0, 7.0)), plan).tolist() == pytest.approx([0.0, 0.0, 7.0])
    # Counted from 1970 in seconds, single precision would merge visits of one minute.
    start = 1.7e9
    assert data.times_of(loop(2, (start, start + 20.0)), ImagePlan(size=(1, 4, 4), frames=2)).tolist() == [0.0, 20.0]
