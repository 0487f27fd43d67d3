"""Training loops in turn, each in a process of its own that lives through the whole comparison.

Allocator settings belong to a process, and starting one costs seconds: so each contender trains a few steps when it
is its turn, and sleeps in between. A busy machine slows all alike, and the ratios of a round can be believed.

Where it is busy all the time, `OMP_NUM_THREADS=1 TURNS_CLOCK=processor` in the environment measures processor
time (that of the system for a process included) on one thread: waiting for others is not counted.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

CLOCK = time.process_time if os.environ.get("TURNS_CLOCK") == "processor" else time.perf_counter

Tick = Callable[[], None]
Contender = Callable[[Tick], None]


def work_or(main: Callable[[], None], contenders: Mapping[str, Contender], batch: int) -> None:
    """Runs ``main``, or, in a process that :func:`rounds` started, one contender."""
    if sys.argv[1:2] != ["--worker"]:
        return main()
    from osler.allocator import keep_memory

    keep_memory()
    return _work(contenders[sys.argv[2]], int(sys.argv[3]), batch)


def _work(contender: Contender, steps: int, batch: int) -> None:
    """Trains; after two steps to warm up, and then after every ``steps``, waits for its next turn."""
    # What others print must not mix with the figures.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    done, goal, start = 0, 2, CLOCK()

    def tick() -> None:
        nonlocal done, goal, start
        done += 1
        if done < goal:
            return
        print(json.dumps(goal * batch / (CLOCK() - start)), file=answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        done, goal, start = 0, steps, CLOCK()

    contender(tick)


def rounds(
    script: str, names: Sequence[str], kept: Sequence[str], steps: int, repeats: int
) -> Iterator[dict[str, float]]:
    """Images a second of each contender, round by round; those ``kept`` have our allocator settings."""
    workers = {}
    for name in names:
        workers[name] = _begin(script, name, steps, "1" if name in kept else "0")
        if math.isnan(_answer(workers[name])):
            last = workers.pop(name).communicate()[1].strip().splitlines()[-1:]
            print(f"{name} is left out: {' '.join(last)}")
    try:
        for _ in range(repeats):
            speeds = {}
            for name, process in workers.items():
                assert process.stdin is not None
                try:
                    process.stdin.write("go\n")
                    process.stdin.flush()
                except BrokenPipeError:
                    raise SystemExit(f"{name} ended early, with {process.wait()} (-9: too little memory)") from None
                speeds[name] = _answer(process)
            yield speeds
    finally:
        for process in workers.values():
            process.communicate()


def _begin(script: str, name: str, steps: int, keep: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OSLER_MALLOPT": keep, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, script, "--worker", name, str(steps)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def _answer(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    line = process.stdout.readline()
    return float(json.loads(line)) if line else math.nan


def show(found: Sequence[Mapping[str, float]]) -> None:
    """A line a contender: its speed, and how much faster the first one (``ours``) is, round by round."""
    print(f"{'':12}{'img/s':>8}{'least':>8}{'most':>8}   ours / it: median (least to most)")
    for name in found[0]:
        speeds = [speed[name] for speed in found]
        ratios = [speed["ours"] / speed[name] for speed in found if "ours" in speed]
        text = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""
        print(f"{name:12}{statistics.median(speeds):8.1f}{min(speeds):8.1f}{max(speeds):8.1f}   {text}", flush=True)
