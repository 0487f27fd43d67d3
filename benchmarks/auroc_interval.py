"""Time of an AUROC's 95 % interval: Osler's bootstrap and DeLong against a loop over scikit-learn.

    python benchmarks/auroc_interval.py --rows 10000 --draws 2000 --repeats 7

All are timed in turns (ours, DeLong, scikit-learn, ours, ...) in one process, so that a busy machine is busy for all.
Osler's bootstrap is timed with the compiled loop (numba) and without; what compiling takes, once in a process, is
printed apart. The loop over scikit-learn does fewer draws and its time is scaled up to the same number; it uses one
thread, as it does by itself.
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score

from osler import kernels
from osler.metrics import bootstrap
from osler.metrics.auroc import delong
from osler.metrics.bootstrap import bootstrap_auroc
from osler.metrics.estimate import Estimate

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


def ours(data: tuple[np.ndarray, np.ndarray, np.ndarray], draws: int, *, compiled: bool) -> Estimate:
    """``bootstrap_auroc``, told beforehand which way to take."""
    bootstrap._PAYS = 0 if compiled else math.inf
    return bootstrap_auroc(*data, draws)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(name: str, rows: int, draws: int, sklearn_draws: int, repeats: int) -> None:
    rows_per_patient, levels = STUDIES[name]
    data = study(rows, rows_per_patient, levels)
    scale = draws / sklearn_draws
    works: dict[str, tuple[Callable[[], object], float]] = {
        "osler, compiled": (lambda: ours(data, draws, compiled=True), 1),
        "osler, numpy": (lambda: ours(data, draws, compiled=False), 1),
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
    ratios = sorted(a / b for a, b in zip(times["scikit-learn loop"], times["osler, compiled"], strict=True))
    print(f"  ratio of each repeat: median {statistics.median(ratios):.0f}, from {ratios[0]:.0f} to {ratios[-1]:.0f}")
    found, same = (ours(data, draws, compiled=compiled) for compiled in (True, False))
    analytic, (low, high) = delong(*data), sklearn_loop(*data, sklearn_draws)
    print(f"  compiled and numpy give the same: {found == same}")
    print(f"  95 %: bootstrap {found.low:.4f} to {found.high:.4f}, delong {analytic.low:.4f} to", end=" ")
    print(f"{analytic.high:.4f}, scikit-learn's {sklearn_draws} draws {low:.4f} to {high:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--sklearn-draws", type=int, default=100, help="timed, then scaled up to --draws")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"Python {platform.python_version()}, numpy {np.__version__}, scikit-learn {sklearn.__version__}")
    data = study(options.rows, 1, 0)
    first, again = (seconds(lambda: ours(data, options.draws, compiled=True)) for _ in range(2))
    print(f"{kernels.cores()} threads; compiling takes {first - again:.2f} s, once in a process")
    for name in STUDIES:
        compare(name, options.rows, options.draws, options.sklearn_draws, options.repeats)


if __name__ == "__main__":
    main()
