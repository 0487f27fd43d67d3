"""Suppression and fusion of boxes, against ensemble_boxes (numpy and numba) and a plain loop in numpy.

    pip install --no-deps ensemble-boxes
    python benchmarks/boxes.py --repeats 7

Clusters of boxes as a detector gives them before suppression: 20 to a thing, jittered. Fusion: four answers of 300
boxes. Timed in turns in one process with one thread; the results are compared first. ensemble_boxes knows flat boxes
only; in three axes the peer is the loop, the usual one (Girshick's `py_cpu_nms`) with an axis more. Prints a Markdown
table; ratios are peer / Osler, above 1 is in favour of Osler.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import ensemble_boxes
import numpy as np
import torch
from numpy.typing import NDArray

from osler import boxes
from osler.boxes import Boxes


def drawn(n: int, seed: int, *, flat: bool) -> Boxes:
    """Boxes around n / 20 things within 1000 pixels."""
    rng = np.random.default_rng(seed)
    things = max(1, n // 20)
    middle, half = rng.uniform(100, 900, (things, 3)), rng.uniform(8, 50, (things, 3))
    which = rng.integers(0, things, n)
    middle, half = middle[which] + rng.normal(0, 4, (n, 3)), half[which] * rng.uniform(0.8, 1.25, (n, 3))
    places = np.concatenate([middle - half, middle + half], 1)
    if flat:
        places[:, 0], places[:, 3] = 0, 1
    as_torch = torch.from_numpy(places).float(), torch.from_numpy(rng.random(n)).float(), torch.zeros(n).long()
    return Boxes(*as_torch)


def loop(places: NDArray[np.float32], scores: NDArray[np.float32], overlap: float) -> list[int]:
    """Greedy suppression, one box after the other, each against all that are left."""
    order, kept = np.argsort(-scores, kind="stable"), []
    size = (places[:, 3:] - places[:, :3]).prod(1)
    while len(order):
        first, rest = order[0], order[1:]
        kept.append(int(first))
        low, high = np.maximum(places[first, :3], places[rest, :3]), np.minimum(places[first, 3:], places[rest, 3:])
        both = (high - low).clip(0).prod(1)
        order = rest[both / (size[first] + size[rest] - both) <= overlap]
    return kept


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(name: str, ours: Callable[[], object], theirs: Callable[[], object], peer: str, repeats: int) -> None:
    """Both in turns."""
    ours(), theirs()
    times = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    ratios = sorted(other / own for own, other in times)
    print(
        f"| {name} | {a * 1e3:.1f} | {peer} {b * 1e3:.1f} | {b / a:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, numpy {np.__version__}, medians of {repeats}\n")
    print("| | Osler, ms | peer, ms | peer / Osler |\n|---|---|---|---|")
    for n in (300, 3000, 10000):
        found = drawn(n, 0, flat=True)
        place = [(found.places[:, [2, 1, 5, 4]] / 1000).tolist()]
        scores, labels = [found.scores.tolist()], [found.classes.tolist()]
        kept = boxes.suppress(found, 0.5)
        _, theirs, _ = ensemble_boxes.nms(place, scores, labels, iou_thr=0.5)
        assert np.allclose(np.sort(theirs), np.sort(kept.scores.numpy())), "not the same boxes"
        row(
            f"suppression of {n:,}, 2D",
            lambda found=found: boxes.suppress(found, 0.5),
            lambda p=place, s=scores, c=labels: ensemble_boxes.nms(p, s, c, iou_thr=0.5),
            "ensemble_boxes",
            repeats,
        )
    for n in (300, 3000, 10000):
        found = drawn(n, 1, flat=False)
        places, sure = found.places.numpy(), found.scores.numpy()
        assert len(loop(places, sure, 0.2)) == len(boxes.suppress(found, 0.2)), "not the same boxes"
        row(
            f"suppression of {n:,}, 3D",
            lambda found=found: boxes.suppress(found, 0.2),
            lambda p=places, s=sure: loop(p, s, 0.2),
            "numpy loop",
            repeats,
        )
    one = drawn(300, 7, flat=True)
    shift = torch.tensor([0.0, 0.7, 0.7, 0, 0.7, 0.7])
    answers = [Boxes(one.places + i * shift, one.scores * (1 - 0.013 * i), one.classes) for i in range(4)]
    place = [(a.places[:, [2, 1, 5, 4]] / 1000).tolist() for a in answers]
    scores, labels = [a.scores.tolist() for a in answers], [a.classes.tolist() for a in answers]
    theirs = ensemble_boxes.weighted_boxes_fusion(place, scores, labels, iou_thr=0.55)[1]
    assert np.allclose(np.sort(theirs), np.sort(boxes.fuse(answers, 0.55).scores.numpy()), atol=1e-4)
    row(
        "fusion of 4 x 300",
        lambda: boxes.fuse(answers, 0.55),
        lambda: ensemble_boxes.weighted_boxes_fusion(place, scores, labels, iou_thr=0.55),
        "ensemble_boxes",
        repeats,
    )


if __name__ == "__main__":
    main()
