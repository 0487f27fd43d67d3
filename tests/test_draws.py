import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from osler.draws import keys, normal, permutation, uniform, whole


def test_uniform_is_uniform() -> None:
    numbers = uniform(keys(3, np.arange(200)), "test", (500,)).ravel()
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    pairs = np.histogram2d(numbers[:-1], numbers[1:], bins=20)[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_normal_is_normal() -> None:
    numbers = normal(keys(4, np.arange(200)), "test", (501,))
    assert stats.kstest(numbers.ravel(), "norm").pvalue > 1e-3
    # The two of a Box-Muller pair, and neighbours of different pairs, know nothing of each other: not their
    # sizes either.
    for lag in (1, 2):
        for power in (1, 2):
            first, second = numbers[:, :-lag].ravel() ** power, numbers[:, lag:].ravel() ** power
            assert abs(np.corrcoef(first, second)[0, 1]) < 4 / math.sqrt(first.size)


@pytest.mark.parametrize("axis", ["seed", "epoch", "case", "stream"])
def test_neighbouring_keys_and_streams_are_unrelated(axis: str) -> None:
    def draw(step: int) -> np.ndarray:
        key = keys(
            7 + step * (axis == "seed"), 2 + step * (axis == "epoch"), np.arange(300) + step * (axis == "case")
        )
        return uniform(key, f"s{step if axis == 'stream' else 0}", (100,)).ravel()

    assert abs(np.corrcoef(draw(0), draw(1))[0, 1]) < 4 / math.sqrt(30000)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_the_numbers_of_different_keys_are_unrelated(draw: Callable[..., np.ndarray]) -> None:
    """Between independent sequences correlations are normal with variance 1 / length."""
    numbers = draw(keys(1, np.arange(100)), "test", (1001,))
    related = np.corrcoef(numbers)[np.triu_indices(100, 1)]
    assert stats.kstest(related * math.sqrt(1001), "norm").pvalue > 1e-3


def test_first_numbers_over_many_keys_are_uniform() -> None:
    numbers = uniform(keys(0, 0, np.arange(20000)), "apply")
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / math.sqrt(20000)


def test_each_bit_is_a_fair_coin() -> None:
    bits = keys(11, np.arange(40000))[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / math.sqrt(40000)


@given(order=st.permutations(list(range(8))), seed=st.integers(-5, 2**63 - 1))
def test_order_of_the_cases_does_not_matter(order: list[int], seed: int) -> None:
    together = uniform(keys(seed, 1, np.arange(8)), "x", (3,))
    assert np.array_equal(uniform(keys(seed, 1, np.array(order)), "x", (3,)), together[order])
    alone = normal(keys(seed, 1, order[0]), "x", (3,))[0]
    assert np.array_equal(alone, normal(keys(seed, 1, np.arange(8)), "x", (3,))[order[0]])


def test_a_longer_draw_starts_with_the_shorter_one() -> None:
    key = keys(1, np.arange(3))
    assert np.array_equal(uniform(key, "x", (9,))[:, :4], uniform(key, "x", (4,)))
    assert np.array_equal(normal(key, "x", (9,))[:, :5], normal(key, "x", (5,)))


def test_keys_tell_all_their_parts_apart() -> None:
    grid = np.arange(-20, 20)
    every = np.concatenate([keys(a, b, grid) for a in range(20) for b in range(20)])
    assert len(np.unique(every)) == every.size
    assert keys(1, 2) != keys(2, 1)
    assert keys(0) != keys(0, 0)


def test_uniform_stays_below_its_upper_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osler.draws._bits", lambda key, stream, shape: np.full((1, *shape), 2**64 - 1, np.uint64))
    assert 1 <= uniform(keys(0), "x", (2,), 1.0, 2.0).max() < 2
    assert uniform(keys(0), "x", (), 3.0, 3.0) == 3


@given(count=st.integers(1, 60), seed=st.integers(0, 1000))
def test_permutation_holds_everything_once(count: int, seed: int) -> None:
    assert sorted(permutation(keys(seed), count)) == list(range(count))


def test_every_order_is_as_likely() -> None:
    orders = [tuple(permutation(keys(5, n), 3)) for n in range(3000)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("below", [2, 7, 10_000])
def test_whole_numbers_are_all_as_likely(below: int) -> None:
    numbers = whole(keys(6, np.arange(300)), "test", 1001, below)
    assert numbers.shape == (300, 1001) and numbers.min() >= 0 and numbers.max() < below
    assert stats.chisquare(np.bincount(numbers.ravel() * min(below, 100) // below)).pvalue > 1e-3
    # the two halves of a word, and neighbouring words, know nothing of each other
    for lag in (1, 2):
        related = np.corrcoef(numbers[:, :-lag].ravel(), numbers[:, lag:].ravel())[0, 1]
        assert abs(related) < 4 / math.sqrt(numbers.size)


def test_whole_numbers_reach_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osler.draws._bits", lambda key, stream, shape: np.array([[0, 2**64 - 1]], np.uint64))
    assert whole(keys(0), "x", 3, 2**32).tolist() == [[0, 0, 2**32 - 1]]
    assert whole(keys(0), "x", 4, 5).tolist() == [[0, 0, 4, 4]]
