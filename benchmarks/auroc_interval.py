"""Time of an AUROC's 95 % interval: Osler's bootstrap and DeLong against a loop over scikit-learn.

    python benchmarks/auroc_interval.py --rows 10000 --draws 2000 --repeats 7

The three are timed in turns (ours, DeLong, scikit-learn, ours, ...) in one process on one thread, so that a busy
machine is busy for all. The loop over scikit-learn does fewer draws and its time is scaled up to the same number.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from osler.metrics.auroc import delong
from osler.metrics.bootstrap import bootstrap_auroc

# rows a patient, and steps that the score is rounded to (0: none)
STUDIES = {"a row a patient": (1, 0), "a row a patient, many ties": (1, 10), "four rows a patient": (4, 0)}


def study(rows: int, rows_per_patient: int, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target (30 % positive), score (rounded to ``levels`` steps if not 0) and patient of each row."""
    random = np.random.default_rng(0)
    target = (random.uniform(size=rows) < 0.3).astype(int)
    score = random.normal(size=rows) + 1.2 * target
    clusters = np.arange(rows) // rows_per_patient
    return target, np.round(score * levels) / levels if levels else score, clusters


def sklearn_loop(target: np.ndarray, score: np.ndarray, clusters: np.ndarray, draws: int) -> tuple[float, float]:
    """The usual way: draw patients, gather their rows, call roc_auc_score."""
    random, patients = np.random.default_rng(0), int(clusters.max()) + 1
    rows = (
        None
        if patients == len(clusters)
        else np.split(np.arange(len(clusters)), np.flatnonzero(np.diff(clusters)) + 1)
    )
    areas = []
    for _ in range(draws):
        drawn = random.integers(0, patients, patients)
        if rows is not None:
            drawn = np.concatenate([rows[patient] for patient in drawn])
        areas.append(roc_auc_score(target[drawn], score[drawn]))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, rows: int, draws: int, sklearn_draws: int, repeats: int) -> None:
    rows_per_patient, levels = STUDIES[name]
    data = study(rows, rows_per_patient, levels)
    scale = draws / sklearn_draws
    works: dict[str, tuple[Callable[[], object], float]] = {
        "osler bootstrap_auroc": (lambda: bootstrap_auroc(*data, draws), 1),
        "osler delong": (lambda: delong(*data), 1),
        "scikit-learn loop": (lambda: sklearn_loop(*data, sklearn_draws), scale),
    }
    times: dict[str, list[float]] = {label: [] for label in works}
    for repeat in range(repeats + 1):
        for label, (work, factor) in works.items():
            taken = seconds(work) * factor
            if repeat:  # the first round warms up
                times[label].append(taken)
    print(f"\n{rows} rows, {name}; {draws} draws, {repeats} interleaved repeats")
    reference = statistics.median(times["scikit-learn loop"])
    for label, taken in times.items():
        middle = statistics.median(taken)
        spread = f"(from {min(taken):.4f} to {max(taken):.4f})"
        print(f"  {label:22s} median {middle:9.4f} s  {spread:28s} {reference / middle:8.1f} x the loop's speed")
    print(f"  the loop: {sklearn_draws} draws timed, its time multiplied by {scale:g}")
    ours, analytic, (low, high) = bootstrap_auroc(*data, draws), delong(*data), sklearn_loop(*data, sklearn_draws)
    print(f"  95 %: bootstrap_auroc {ours.low:.4f} to {ours.high:.4f}, delong {analytic.low:.4f} to", end=" ")
    print(f"{analytic.high:.4f}, scikit-learn's {sklearn_draws} draws {low:.4f} to {high:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--sklearn-draws", type=int, default=100, help="timed, then scaled up to --draws")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}, 1 thread")
    for name in STUDIES:
        compare(name, options.rows, options.draws, options.sklearn_draws, options.repeats)


if __name__ == "__main__":
    main()
