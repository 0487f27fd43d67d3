"""How far something is, said now and then."""

import time
from collections.abc import Callable


class Progress:
    """Says every few seconds how many cases of how many are done, and how long the rest will take.

    Args:
        total: how many there are.
        say: takes one line at a time.
        seconds: between two lines, at least.
    """

    def __init__(self, total: int, say: Callable[[str], None], seconds: float = 10.0) -> None:
        self._total, self._say, self._seconds = total, say, seconds
        self._began = self._last = time.monotonic()

    def __call__(self, done: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if now - self._last >= self._seconds and 0 < done < self._total:
            self._last = now
            left = (now - self._began) / done * (self._total - done)
            self._say(f"{done:,} of {self._total:,} cases, about {left:.0f} s left")
