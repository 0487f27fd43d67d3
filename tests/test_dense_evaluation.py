"""What an evaluation of places keeps of many cases."""

import numpy as np
from markupsafe import Markup

from osler import dense_evaluation
from osler.pages.overlays import Example, chosen


def test_of_many_pictures_the_best_and_the_worst_stay() -> None:
    kept: list[Example] = []
    rng = np.random.default_rng(0)
    quality = rng.permutation(3000) / 3000
    for n, q in enumerate(quality):
        kept = dense_evaluation._thinned([*kept, Example(str(n), Markup(""), "", float(q))])
        assert len(kept) <= dense_evaluation.MOST_EXAMPLES
    parts = chosen(kept)
    assert [e.quality for e in parts["Best"]] == sorted(quality)[:-4:-1]
    assert [e.quality for e in parts["Worst"]] == sorted(quality)[:3]
    # The middle is near the middle, not just anywhere.
    assert all(0.3 < e.quality < 0.7 for e in parts["Median"])
