"""What a frozen backbone saves: seconds of an epoch over loops, with a backbone that learns and one that stays.

    python benchmarks/frozen.py [--cases 32] [--frames 32] [--size 64] [--width 32] [--epochs 3]

Both train the same network (ResNet-18, GRU) on the same random loops, through the one training loop, checkpoints and
running average included; the best epoch of each counts. The frozen one computes the features of all loops once
before; how long that takes, and how long it takes to find them again, is printed beside.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from osler import fitting, frozen, model, recipe, weights
from osler.cohort import Training, Validation
from osler.fitting import Course, Examples
from osler.recipe import Recipe


def plan_of(given: argparse.Namespace, path: Path, *, freeze: bool) -> Recipe:
    return recipe.build({
        "image": {"size": [1, given.size, given.size], "frames": given.frames},
        "tasks": {"label": {"kind": "multiclass", "classes": ["no", "yes"]}},
        "network": {"options": {"width": given.width}, "sequence": "gru", "weights": str(path)},
        "training": {"epochs": given.epochs, "batch": 8, "freeze": freeze, "threads": 1},
    })  # fmt: skip


def loops(given: argparse.Namespace) -> Examples:
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(given.cases, given.frames, 1, 1, given.size, given.size)).astype(np.float32)
    target = (np.arange(given.cases) % 2).astype(np.float32)[:, None]
    times = np.tile(np.arange(given.frames, dtype=np.float32), (given.cases, 1))
    return Examples(Training(()), pixels, {"label": target}, times)


def epochs(train: Callable[[Course], object], folder: Path) -> list[float]:
    """Seconds of each epoch, by the lines that are said after each; the first holds what is done once."""
    said: list[float] = []

    def say(line: str) -> None:
        if line.startswith("epoch"):
            said.append(time.perf_counter())

    folder.mkdir()
    began = time.perf_counter()
    train(Course(folder, 0, 1, say, time.monotonic()))
    return np.diff([began, *said]).tolist()


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - began:.2f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("cases", 32), ("frames", 32), ("size", 64), ("width", 32), ("epochs", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        out = Path(name)
        stack.enter_context(_home(out / "home"))
        first = recipe.build({**recipe.to_dict(plan_of(given, out / "w", freeze=False)), "training": {}})
        torch.manual_seed(0)
        backbone = model.Network(first).backbone
        header = {"format": weights.FORMAT, "format_version": "1", "backbone": "resnet", "channels": "1", "dims": "2"}
        model.write_tensors(out / "w", backbone.state_dict(), header)
        cases = loops(given)
        nothing = Examples(Validation(()), cases.pixels[:0], {"label": cases.targets["label"][:0]})
        learning, still = plan_of(given, out / "w", freeze=False), plan_of(given, out / "w", freeze=True)
        fixed = epochs(lambda course: frozen.fit(cases, nothing, still, course), out / "frozen")
        network = fitting.start(cases, still, 0).network
        with timed("features found again"):
            frozen.features(network, cases.pixels, still)
        whole = epochs(lambda course: fitting.fit(cases, nothing, learning, course), out / "learning")
        print(f"{given.cases} loops of {given.frames} frames of {given.size} x {given.size}, width {given.width}")
        print(f"first epoch, frozen, with its features: {fixed[0]:.2f} s")
        print(f"epoch, frozen: {min(fixed[1:]):.2f} s    epoch, learning: {min(whole[1:]):.2f} s")
        print(f"frozen / learning: {min(fixed[1:]) / min(whole[1:]):.3f} (goal: at most 0.1)")


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    """A cache of its own, so that nothing is found that was computed before."""
    import os

    before = os.environ.get("OSLER_HOME")
    os.environ["OSLER_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("OSLER_HOME") if before is None else os.environ.__setitem__("OSLER_HOME", before)


if __name__ == "__main__":
    main()
