"""Time of the figures of a detection and of a segmentation with their intervals, patients drawn 2,000 times.

    python benchmarks/dense_intervals.py --cases 1000 --draws 2000

Detection: up to 4 lesions and 50 predicted boxes a case, two classes; average precision at 11 thresholds and FROC of
each draw, from matches that are found once. Segmentation: three classes; all figures of each draw.
"""

import argparse
import platform
import time

import numpy as np

from osler.case import Question
from osler.dense_rows import Boxes, Row, detection_row
from osler.dense_scoring import summary

DETECTION = Question("boxes", "detection", ("nodule", "mass"))
SEGMENTATION = Question("mask", "segmentation", ("a", "b", "c"), values=((1,), (2,), (3,)))
NUMBERS = ("dice", "iou", "hd95", "assd", "nsd", "volume_error", "size")


def boxes(random: np.random.Generator, count: int, near: np.ndarray | None = None) -> Boxes:
    start = random.uniform(0, 400, (count, 3))
    if near is not None and len(near):
        start[: len(near)] = near + random.normal(0, 2, near.shape)
    places = np.concatenate([start, start + 20], 1)
    return Boxes(places, random.integers(0, 2, count), random.uniform(size=count))


def detected(cases: int) -> list[Row]:
    random, rows = np.random.default_rng(0), []
    for i in range(cases):
        truth = boxes(random, int(random.integers(0, 5)))
        said = boxes(random, 50, truth.places[:, :3])
        rows.append(detection_row(f"p{i}", truth, said, DETECTION))
    return rows


def segmented(cases: int) -> list[Row]:
    random = np.random.default_rng(0)
    return [
        Row(
            f"p{i}",
            {
                name: {**{key: random.uniform() for key in NUMBERS}, "present": 1.0, "drawn": 1.0}
                for name in SEGMENTATION.classes
            },
            {},
            "mm",
            "ml",
        )
        for i in range(cases)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {options.cases} cases, {options.draws} draws")
    for name, made, question in (("detection", detected, DETECTION), ("segmentation", segmented, SEGMENTATION)):
        start = time.perf_counter()
        rows = made(options.cases)
        middle = time.perf_counter()
        found = summary(rows, question, draws=options.draws)
        key = "map50" if "map50" in found["metrics"] else "dice"
        one = found["metrics"][key]
        print(
            f"{name}: rows {middle - start:.2f} s, summary {time.perf_counter() - middle:.2f} s; "
            f"{key} {one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
        )


if __name__ == "__main__":
    main()
