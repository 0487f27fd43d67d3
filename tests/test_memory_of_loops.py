"""A loop of 1,000 frames is read and diagnosed within the memory of one of 100, and a tenth more."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dicom_files import dataset, write

SIDE = 192
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc"),
]
VIDEO = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is an optional extra")

# The peak of the child (getrusage would begin with that of its parent); a short loop first, so that what is loaded
# for any is there before.
READ = """
import sys
from pathlib import Path
from osler import data, layouts, recipe, identity
plan = recipe.ImagePlan(size=(1, 96, 96), frames=8)
for path in sys.argv[1:]:
    image = data.the_image(data.read_case(layouts.single(Path(path)), moments=plan.frames))
    assert data.prepare(image, plan).shape == (8, 1, 1, 96, 96)
    identity.pixels(image, plan.frames)
    print(image.length, [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""

DIAGNOSE = """
import sys
from pathlib import Path
from osler import diagnoses
run, out, *paths = map(Path, sys.argv[1:])
for number, path in enumerate(paths):
    done = diagnoses.diagnose_paths(run, [path], out / str(number), say=lambda line: None)
    assert done == (1, 0)
    print(number, [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


def frames(count: int) -> np.ndarray:
    """A wave that moves: each frame another one."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    return np.stack([(127 + 90 * np.sin(x / 9 + k / 7) * np.cos(y / 13)).astype(np.uint8) for k in range(count)])


def video(path: Path, array: np.ndarray) -> Path:
    from osler.formats import video
    from osler.image import Image

    video.write(Image(array[:, None, None]), path)
    return path


def avi(folder: Path, array: np.ndarray) -> Path:
    return video(folder / f"{len(array)}.avi", array)


def mp4(folder: Path, array: np.ndarray) -> Path:
    return video(folder / f"{len(array)}.mp4", array)


def cine(folder: Path, array: np.ndarray) -> Path:
    return write(folder / f"{len(array)}.dcm", dataset(array, Modality="US", FrameTime=40))


def nifti(folder: Path, array: np.ndarray, name: str = "{}.nii") -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(array.T[:, :, None], np.eye(4)), folder / name.format(len(array)))
    return folder / name.format(len(array))


def scaled(folder: Path, array: np.ndarray) -> Path:
    import nibabel

    made = nibabel.Nifti1Image(array.T[:, :, None], np.eye(4))
    made.header.set_slope_inter(0.5, 1)
    nibabel.save(made, folder / f"{len(array)}.nii")
    return folder / f"{len(array)}.nii"


def packed(folder: Path, array: np.ndarray) -> Path:
    return nifti(folder, array, "{}.nii.gz")


def pictures(folder: Path, array: np.ndarray) -> Path:
    (folder / str(len(array))).mkdir()
    for number, frame in enumerate(array):
        Pillow.fromarray(frame).save(folder / str(len(array)) / f"{number}.png", compress_level=1)
    return folder / str(len(array))


def peaks(program: str, *arguments: Path) -> list[int]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return [int(line.split()[1]) for line in result.stdout.splitlines()]


@pytest.mark.parametrize(
    "form", [pytest.param(avi, marks=VIDEO), pytest.param(mp4, marks=VIDEO), cine, nifti, scaled, packed, pictures]
)
def test_memory_does_not_grow_with_the_length_of_a_loop(tmp_path, monkeypatch, form):
    monkeypatch.setenv("OSLER_CACHE", "0")
    array = frames(1000)
    short, long = form(tmp_path, array[:100]), form(tmp_path, array)
    before, after = peaks(READ, short, long)
    print(f"{before} KiB, {after} KiB")
    # All frames would be 37 MB.
    assert after <= 1.1 * before


@VIDEO
def test_a_long_loop_is_diagnosed_in_the_memory_of_a_short_one(tmp_path):
    from osler.case import Question
    from osler.model import Model, Network
    from osler.recipe import ImagePlan, NetworkPlan, Recipe

    asked = {"label": Question("label", "multiclass", ("no", "yes"))}
    network = NetworkPlan(backbone="resnet", options={"depth": 18, "width": 8})
    plan = Recipe(ImagePlan((1, 96, 96), frames=8), asked, network)
    Model(plan, [Network(plan).eval()]).save(tmp_path / "model.safetensors")
    array = frames(1000)
    paths = mp4(tmp_path, array[:100]), mp4(tmp_path, array)
    before, after = peaks(DIAGNOSE, tmp_path / "model.safetensors", tmp_path / "out", *paths)
    assert after <= 1.1 * before
