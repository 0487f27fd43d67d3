"""What all compiled loops share: the hash, the threads, and doing without."""

import sys
import threading

import numpy as np
import pytest

from osler import draws, kernels
from osler.kernels import hashing


def test_the_hash_is_that_of_draws() -> None:
    key = draws.keys(7, np.arange(3))
    starts = draws.start(key, "anything")
    ours = [[hashing.word(start, n) for n in range(5)] for start in starts]
    assert np.array_equal(np.array(ours, np.uint64), draws._bits(key, "anything", (5,)))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 17])
@pytest.mark.parametrize("threads", [0, 1, 2, 4])
def test_everything_is_done_once(count: int, threads: int) -> None:
    times, lock = np.zeros(count, int), threading.Lock()

    def work(first: int, last: int) -> None:
        with lock:
            times[first:last] += 1

    kernels.spread(work, count, threads)
    assert (times == 1).all()


def test_what_a_thread_raises_is_raised() -> None:
    def work(first: int, last: int) -> None:
        if first > 0:
            raise ValueError("in the second half")

    with pytest.raises(ValueError, match="second half"):
        kernels.spread(work, 4, 2)


def test_without_numba_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.find("areas") is not None
    monkeypatch.delitem(sys.modules, "osler.kernels.areas")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert kernels.find("areas") is None


def test_threads_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert kernels.cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert kernels.cores() >= 1
