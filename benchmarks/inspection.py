"""How the time and the memory of an inspection grow with the number of cases.

    python benchmarks/inspection.py [--most 1000000]

Each size is a MedMNIST file of independent 28 x 28 textures of two classes, uncompressed, inspected by a process of
its own. The last column is what memory grew by for each case that the size before did not have.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

_ONE = """
import json, resource, sys, time
began = time.perf_counter()
from osler import inspection
made = inspection.inspect(sys.argv[1], sys.argv[2], say=lambda line: None)
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps([seconds, peak, sum(problem.severity == "stop" for problem in made.problems)]))
"""


def cohort(path: Path, count: int) -> None:
    """Blocks of noise, smoothed, written in parts so that this process stays small as well."""
    random = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.uint8, (count, 28, 28))
    for start in range(0, count, 10_000):
        part = random.normal(size=(min(10_000, count - start), 30, 30)).astype(np.float32)
        smooth = sum(part[:, i : i + 28, j : j + 28] for i in range(3) for j in range(3))
        images[start : start + len(part)] = np.clip(128 + 14 * smooth, 0, 255)
    np.savez(path, train_images=images, train_labels=random.integers(0, 2, (count, 1)).astype(np.uint8))
    path.with_suffix(".npy").unlink()


def main() -> None:
    """Prints a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=100_000)
    most = parser.parse_args().most
    print(f"{'cases':>9} {'seconds':>9} {'us a case':>10} {'peak MiB':>9} {'bytes a case':>13}")
    before: tuple[int, float] | None = None
    for count in (10**power for power in range(2, 7) if 10**power <= most):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "textures.npz"
            cohort(path, count)
            words = [sys.executable, "-c", _ONE, str(path), str(Path(folder) / "out")]
            environment = os.environ | {"OSLER_HOME": folder}
            done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
            seconds, peak, stops = json.loads(done.stdout)
        assert not stops, "a clean cohort was stopped"
        grown = f"{(peak - before[1]) * 2**20 / (count - before[0]):13,.0f}" if before else " " * 13
        print(f"{count:9,} {seconds:9.2f} {seconds / count * 1e6:10.0f} {peak:9.0f} {grown}", flush=True)
        before = count, peak


if __name__ == "__main__":
    main()
