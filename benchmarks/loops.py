"""How fast loops are decoded and prepared, against PyAV's own rate in the same run; and in how much memory.

    python benchmarks/loops.py [--data ../shared/data] [--loops 40] [--rounds 3]

Every figure is the best of some rounds that take turns. ``PyAV`` decodes every frame and keeps none; ``PyAV, arrays``
also makes an array of each; ``read`` is `formats.read`, all frames; ``prepared`` is also `data.prepare` on 96 x 96 of
every frame; ``8 moments`` reads and prepares 8 of them, as a network of 8 frames is given.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from osler import data, formats
from osler.case import Source
from osler.image import Image
from osler.recipe import ImagePlan

SIDE = 96
PEAK = """
import sys
from pathlib import Path
from osler import data, layouts, recipe
plan = recipe.ImagePlan(size=(1, {side}, {side}), frames=8)
moments = plan.frames if sys.argv[2] == "some" else None
image = data.the_image(data.read_case(layouts.single(Path(sys.argv[1])), moments=moments))
data.prepare(image, plan)
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0] / 1024)
"""


def generated(folder: Path, frames: int, side: int) -> Path:
    """Speckle that moves: as hard for a codec as ultrasound is."""
    from osler.formats import video

    random = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    grain = random.rayleigh(1.0, (side, side)).astype(np.float32)
    made = np.empty((frames, 1, 1, side, side), np.uint8)
    for k in range(frames):
        tissue = 60 + 40 * np.sin(x / 23 + k / 9) * np.cos(y / 31)
        made[k] = np.clip(tissue * np.roll(grain, (k // 3, k // 5), (0, 1)), 0, 255)
    path = folder / f"{frames}-{side}.mp4"
    video.write(Image(made), path)
    return path


def bare(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return sum(1 for _ in container.decode(video=0))


def arrays(path: Path) -> int:
    import av

    count = 0
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            frame.to_ndarray(format="gray")
            count += 1
    return count


def read(path: Path) -> int:
    return formats.read(Source(path)).frames


def prepared(path: Path) -> int:
    image = formats.read(Source(path))
    data.prepare(image, ImagePlan(size=(1, SIDE, SIDE), frames=image.frames))
    return image.frames


def some(path: Path) -> int:
    image = formats.read(Source(path), 8)
    data.prepare(image, ImagePlan(size=(1, SIDE, SIDE), frames=8))
    return image.length


WAYS: dict[str, Callable[[Path], int]] = {
    "PyAV": bare, "PyAV, arrays": arrays, "read": read, "prepared": prepared, "8 moments": some,
}  # fmt: skip


def rates(paths: list[Path], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    best = dict.fromkeys(WAYS, np.inf)
    frames = 0
    for _ in range(rounds):
        for name, way in WAYS.items():
            start = clock()
            frames = sum(map(way, paths))
            best[name] = min(best[name], clock() - start)
    return {name: frames / seconds for name, seconds in best.items()}


def table(what: str, paths: list[Path], rounds: int, cpu: bool) -> None:
    found = rates(paths, rounds, time.process_time if cpu else time.perf_counter)
    print(f"\n{what}")
    for name, rate in found.items():
        print(f"  {name:14} {rate:8.0f} frames/s   {rate / found['PyAV']:5.2f} of PyAV")


def peak(path: Path, way: str) -> float:
    command = [sys.executable, "-c", PEAK.format(side=SIDE), str(path), way]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--loops", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="by processor time, where the machine has other work")
    given = parser.parse_args()
    real = sorted((given.data / "covid_blues" / "lus_videos").glob("*.mp4"))
    if real:
        real = real[:: max(1, len(real) // given.loops)][: given.loops]
        table(f"covid_blues: {len(real)} loops of 350 x 350", real, given.rounds, given.cpu)
    with tempfile.TemporaryDirectory() as folder:
        table(
            "generated: 100 frames of 512 x 512, H.264", [generated(Path(folder), 100, 512)], given.rounds, given.cpu
        )
        short, long = (generated(Path(folder), frames, 256) for frames in (100, 1000))
        print("\npeak memory of a process that reads and prepares 8 moments, MiB")
        for way in ("some", "all"):
            few, many = peak(short, way), peak(long, way)
            print(f"  {way + ' kept':14} 100 frames {few:6.0f}, 1,000 frames {many:6.0f}: {many / few:.2f} times")


if __name__ == "__main__":
    main()
