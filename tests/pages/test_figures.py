"""Figures of pages: what can be read in them."""

import itertools
import re

import numpy as np
import pytest

from osler.pages import figures


@pytest.mark.parametrize(("low", "high"), [(500, 20_000), (30, 30_000), (800, 1200), (0.02, 60), (700, 80_000)])
def test_sizes_stand_apart_below_their_figure(low: float, high: float) -> None:
    size = np.geomspace(low, high, 40)
    drawn = str(figures.sizes({"lesion": {"size": size, "dice": np.full(40, 0.8), "unit": "ml"}}))
    said = [(float(x), text) for x, text in re.findall(r'middle;[^>]* x="([\d.]+)"[^>]*>([\d.,]+)</text>', drawn)]
    assert said
    # Six pixels a figure, at the size of the letters.
    for (x, text), (after, other) in itertools.pairwise(said):
        assert after - x > 6 * (len(text) + len(other)) / 2 + 3
        assert float(text.replace(",", "")) < float(other.replace(",", ""))
