"""Start-up of ``osler train`` from a hundred to a million cases: time and memory until the first step.

    python benchmarks/startup.py                                # 10^2 .. 10^5 cases in one .npz, and in a table
    python benchmarks/startup.py --most 1000000 --layouts npz   # 10^6 cases of 28 x 28 (784 MB, made and removed)
    python benchmarks/startup.py --layouts folders --most 100000

Cohorts are made up: 28 x 28, 8 bits, two classes, as one uncompressed MedMNIST file, as a table with many columns
over shared files, or as a PNG for each case. Each size is run in a process of its own: ``training.train`` up to its
first step, where it is stopped. What a program holds without any case (torch and the code) is taken off its memory;
*private* memory cannot be dropped by the system, *resident* memory holds pages of files as well, which can. Bytes a
case are what private memory grew by since the smallest size.

Times are of the processor, all threads together, which other programs hardly change; *wall* is what the clock said.
Planning times the network on this machine, which takes as long for any cohort: it is shown, but counts neither to
the wall time nor to the microseconds a case. The line fitted through the logarithms has slope 1 where time is linear.

At the end, ``osler --help`` is started again and again.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "image": {"size": [1, 28, 28]},
    "network": {"options": {"depth": 18, "width": 4}},
    "training": {
        "epochs": 1, "batch": 16, "members": 1, "folds": 0,
        "precision": "float32", "channels_last": True, "threads": 1,
    },
}  # fmt: skip
PHASES = ("listing", "planning", "pixels", "dividing", "other")


# --- made-up cohorts --------------------------------------------------------------------------------------


def write_npz(folder: Path, cases: int) -> None:
    """A MedMNIST file, not compressed, written piece by piece."""
    random = np.random.default_rng(0)
    parts = {"train": cases - 2 * (cases // 10), "val": cases // 10, "test": cases // 10}
    with zipfile.ZipFile(folder / "many.npz", "w") as archive:
        for part, count in parts.items():
            with archive.open(f"{part}_images.npy", "w", force_zip64=True) as file:
                head = {"descr": "|u1", "fortran_order": False, "shape": (count, 28, 28)}
                np.lib.format.write_array_header_1_0(file, head)
                for start in range(0, count, 10_000):
                    file.write(random.bytes(min(10_000, count - start) * 784))
            with archive.open(f"{part}_labels.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, (np.arange(count) % 2).astype(np.uint8)[:, None])


def write_table(folder: Path, cases: int) -> None:
    """A row a case and four of a patient; ids are unique, 97 files are shared, eight columns are metadata."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(97):
        Image.fromarray(random.integers(0, 256, (28, 28), np.uint8)).save(folder / f"{number}.png")
    words = ("north", "south", "east", "west")
    with (folder / "manifest.csv").open("w") as file:
        file.write("case,patient,image,label,covariate.age,site,scanner,view,dose,reader,year,ward,remark\n")
        for row in range(cases):
            file.write(
                f"case-{row:07d},patient-{row // 4:07d},{row % 97}.png,{('no', 'yes')[row // 4 % 2]},{30 + row % 50},"
                f"{words[row % 4]},{row % 7},{'AP' if row % 2 else 'PA'},{row % 100 / 10},r{row % 9},"
                f"{2000 + row % 20},{row % 11},\n"
            )


def write_folders(folder: Path, cases: int) -> None:
    """A PNG a case in two class folders."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("no", "yes"):
        (folder / name).mkdir()
    for row in range(cases):
        picture = Image.fromarray(random.integers(0, 256, (28, 28), np.uint8))
        picture.save(folder / ("no", "yes")[row % 2] / f"{row:07d}.png", compress_level=0)


LAYOUTS: dict[str, Callable[[Path, int], None]] = {"npz": write_npz, "table": write_table, "folders": write_folders}


# --- one start-up, in its own process ---------------------------------------------------------------------


class Reached(Exception):
    """The first step of training."""


def private() -> int:
    """Bytes of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def start(cohort: Path) -> dict[str, Any]:
    """Trains up to the first step; times by phase, and the largest memory beyond that of an empty start."""
    from osler import cohort as cohorts
    from osler import data, fitting, training

    def warm() -> None:
        """What the first use of torch, numpy and scipy loads is no cost of a case."""
        import scipy.ndimage
        import torch

        torch.nn.functional.conv2d(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 3, 3))
        scipy.ndimage.gaussian_filter(np.zeros((8, 8)), 1)

    warm()
    taken = dict.fromkeys(PHASES, 0.0)
    planned = [0.0]

    def timed(module: Any, name: str, phase: str) -> None:
        work = getattr(module, name)

        def wrapped(*args: Any, **options: Any) -> Any:
            began, began_wall = time.process_time(), time.perf_counter()
            result = work(*args, **options)
            taken[phase] += time.process_time() - began
            planned[0] += time.perf_counter() - began_wall if phase == "planning" else 0
            return result

        setattr(module, name, wrapped)

    def stop(*args: Any, **options: Any) -> None:
        raise Reached

    timed(cohorts, "read", "listing")
    timed(training, "settle", "planning")
    timed(data, "load", "pixels")
    timed(training, "divide", "dividing")
    fitting.step_once = stop  # type: ignore[assignment]
    base, base_resident = private(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    most = [base]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], private())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, began_wall = time.process_time(), time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(dir=cohort.parent) as out:
            training.train(cohort, out, SETTINGS, say=lambda line: None)
    except Reached:
        # The first step: all that is measured lies before it.
        whole, wall = time.process_time() - began, time.perf_counter() - began_wall
    finally:
        done.set()
        watcher.join()
    taken["other"] = whole - sum(taken.values())
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base_resident
    return {"seconds": taken, "wall": wall - planned[0], "private": most[0] - base, "resident": resident}


# --- the table --------------------------------------------------------------------------------------------


def measure(layout: str, sizes: list[int], repeats: int) -> None:
    print(f"\n{layout}: CPU seconds by phase (the fastest of {repeats}), and memory beyond that of an empty program")
    print(f"{'cases':>9} " + " ".join(f"{p:>9}" for p in PHASES) + f" {'wall':>8} {'us/case':>9} {'ratio':>6}"
          f" {'private':>9} {'resident':>9}  bytes/case")  # fmt: skip
    rates: list[float] = []
    first = 0
    for cases in sizes:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "cohort"
            folder.mkdir()
            LAYOUTS[layout](folder, cases)
            runs = []
            for _ in range(repeats):
                command = [sys.executable, __file__, "--start", str(folder)]
                runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        best = min(runs, key=lambda run: sum(run["seconds"].values()) - run["seconds"]["planning"])
        taken = best["seconds"]
        rates.append((sum(taken.values()) - taken["planning"]) / cases * 1e6)
        ratio = f"{rates[-1] / rates[-2]:.2f}" if len(rates) > 1 else "-"
        memory = min(run["private"] for run in runs)
        first = memory if cases == sizes[0] else first
        print(
            f"{cases:>9} "
            + " ".join(f"{taken[p]:>9.3f}" for p in PHASES)
            + f" {best['wall']:>8.2f} {rates[-1]:>9.1f} {ratio:>6}"
            f" {memory / 2**20:>5.0f} MiB {min(run['resident'] for run in runs) / 2**20:>5.0f} MiB"
            f"  {f'{(memory - first) / (cases - sizes[0]):.0f}' if cases > sizes[0] else '-'}",
            flush=True,
        )
    large = [(cases, rate) for cases, rate in zip(sizes, rates, strict=True) if cases >= 1000]
    if len(large) > 1:
        slope = np.polyfit(*(np.log([c for c, _ in large]), np.log([c * r for c, r in large])), 1)[0]
        print(f"time grows as cases^{slope:.2f} from {large[0][0]} cases on")


def help_time(repeats: int) -> None:
    """Starts of ``osler --help``, each a process of its own, and whether torch was loaded."""
    times, busy = [], []
    command = [sys.executable, "-c", "import sys; from osler.cli import main; main(sys.argv[1:])", "--help"]
    for _ in range(repeats + 1):
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    probe = "import sys\nfrom osler.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    probe += "print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True).stderr.split()
    spread = f"from {min(times[1:]):.3f} to {max(times[1:]):.3f}, {repeats} starts"
    print(f"\nosler --help: median {statistics.median(times[1:]):.3f} s ({spread}), ", end="")
    print(f"of the processor {statistics.median(busy[1:]):.3f} s; ", end="")
    print(f"torch loaded: {loaded[0]}, numpy loaded: {loaded[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--layouts", nargs="+", choices=[*LAYOUTS], default=["npz", "table"])
    parser.add_argument("--repeats", type=int, default=1, help="runs of each size; the fastest counts")
    parser.add_argument("--helps", type=int, default=15, help="starts of osler --help; 0 for none")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start)))
        return
    print(f"Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} cores")
    sizes = [10**power for power in range(2, 10) if 10**power <= options.most]
    for layout in options.layouts:
        measure(layout, sizes, options.repeats)
    if options.helps:
        help_time(options.helps)


if __name__ == "__main__":
    main()
