"""A compressed NIfTI volume: the first reading, and a patch of it later, against nibabel.

    python benchmarks/nifti.py --repeats 7

512x512x100 int16, CT-like with noise, so that gzip makes about a third of it. Timed in turns in one process with the
allocator as it is; every first reading of Osler starts from an empty cache, and the copy that it writes beside is
waited for outside of the time of the others (its time is printed, too). A patch is 128^3 at another place each time
(100 slices are fewer: 128x128x100). nibabel's patch is that of its documentation, `dataobj[...]`, which decodes up to
the patch, and that of `get_fdata`.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from osler import cache, formats
from osler.case import Source


def made(path: Path, size: tuple[int, int, int]) -> Path:
    depth, height, width = size
    random = np.random.default_rng(0)
    z, y, x = np.ogrid[:depth, :height, :width]
    inside = np.hypot((y - height / 2) / height, (x - width / 2) / width) < 0.45
    tissue = 60 * np.sin(x / 30) * np.cos(y / 40) + 40 + z / 4
    volume = np.where(inside, tissue + random.normal(0, 12, size), -1000).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag([0.7, 0.7, 2, 1])), path)
    return path


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size", type=int, nargs=3, default=(100, 512, 512), help="depth, height, width")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["OSLER_HOME"] = place
        path = made(Path(place) / "volume.nii.gz", tuple(options.size))
        random = np.random.default_rng(1)
        starts = [0, 0, 0]

        def window() -> tuple[slice, ...]:
            return tuple(slice(start, start + 128) for start in starts)

        def first() -> None:
            formats.read(Source(path))

        def patch() -> None:
            np.ascontiguousarray(formats.read(Source(path)).array[(..., *window())])

        def nibabel_whole() -> None:
            nibabel.load(path).get_fdata()

        def nibabel_patch() -> None:
            np.ascontiguousarray(nibabel.load(path).dataobj[window()[::-1]])

        works = {
            "osler, first reading": first,
            "nibabel, get_fdata": nibabel_whole,
            "osler, patch later": patch,
            "nibabel, patch by dataobj": nibabel_patch,
        }
        times: dict[str, list[float]] = {name: [] for name in [*works, "osler, copy written beside"]}
        for repeat in range(options.repeats + 1):
            starts[:] = [int(random.integers(0, max(1, n - 127))) for n in options.size]
            cache.purge()
            for name, work in works.items():
                taken = seconds(work)
                waited = seconds(cache.settle)
                if repeat:  # the first round warms up
                    times[name].append(taken)
                    if work is first:
                        times["osler, copy written beside"].append(waited)
        packed, whole = path.stat().st_size, 2 * np.prod(options.size)
        print(f"Python {platform.python_version()}, nibabel {nibabel.__version__}; {whole / 2**20:.0f} MiB", end=", ")
        print(f"compressed {packed / 2**20:.0f} MiB; {options.repeats} interleaved repeats")
        for name, taken in times.items():
            print(
                f"  {name:28s} median {statistics.median(taken):8.4f} s (from {min(taken):.4f} to {max(taken):.4f})"
            )
        for ours, theirs in (
            ("osler, first reading", "nibabel, get_fdata"),
            ("osler, patch later", "nibabel, get_fdata"),
            ("osler, patch later", "nibabel, patch by dataobj"),
        ):
            ratios = [their / our for our, their in zip(times[ours], times[theirs], strict=True)]
            spread = f"({min(ratios):.1f} to {max(ratios):.1f})"
            print(f"  {theirs} / {ours}: {statistics.median(ratios):.1f} x {spread}")


if __name__ == "__main__":
    main()
