"""What preparations cost an image, what they do to public sets, and how registration judges.

    pip install "osler[registration,video]"
    python benchmarks/preparation.py --data ../shared/data --only cost

Times are of one core (process time), each the least of several, beside a bare call of the library that does the
same, or, where none does, beside the reading of the file. The peer of ``n4`` is the usual call of SimpleITK: a copy
shrunk to the same size, its default four resolutions of 50 steps, and the field at full size. ``sets`` prepares every
image of the sets and says how many were cropped and how much of them was kept. ``judged`` registers pairs of volumes
and prints the mutual information of the two over that of the best mirrored copy, on which a registration is believed
or not; and, where the motion is known, how far points of the body are off, in voxels.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np

from osler import formats, registration, resampling
from osler.case import Source
from osler.image import Affine, Image
from osler.preparations import collimation, foreground, n4, sector


def least(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds."""
    taken = []
    for _ in range(repeats):
        began = process_time()
        work()
        taken.append(process_time() - began)
    return min(taken)


def bare_n4(volume: np.ndarray) -> object:
    import SimpleITK as sitk  # noqa: N813

    whole = sitk.GetImageFromArray(volume.astype(np.float32))
    factors = [max(1, round(n / n4._SIDE)) for n in volume.shape[::-1]]
    small = sitk.Shrink(whole, factors)
    filter_ = sitk.N4BiasFieldCorrectionImageFilter()
    filter_.SetNumberOfThreads(1)
    filter_.Execute(small, sitk.OtsuThreshold(small, 0, 1, 256))
    return whole / sitk.Exp(filter_.GetLogBiasFieldAsImage(whole))


def cost(data: Path) -> None:
    print("seconds of one core              ours     bare library call")
    for name, path in (
        ("acdc", next((data / "acdc" / "images").rglob("*.nii.gz"))),
        ("hippocampus", min((data / "hippocampus" / "imagesTr").glob("h*.nii.gz"))),
    ):
        image = formats.read(Source(path)).frame(0)
        volume = np.asarray(image.array[0, 0], np.float32)
        size = " x ".join(str(n) for n in image.size)
        ours, theirs = least(lambda i=image: n4.apply(i), 2), least(lambda v=volume: bare_n4(v), 1)
        print(f"n4           {name} {size:15} {ours:7.3f}  {theirs:7.3f}  SimpleITK, its defaults")
        ours = least(lambda i=image: foreground.apply(i))
        theirs = least(lambda v=volume: (v - v.mean()) / v.std())
        print(f"foreground   {name} {size:15} {ours:7.4f}  {theirs:7.4f}  numpy, of all pixels")
    for module, path in (
        (sector, min((data / "busi" / "images").iterdir())),
        (collimation, min((data / "covid_cxr" / "images").iterdir())),
    ):
        image = formats.read(Source(path))
        name, size = module.__name__.rpartition(".")[2], " x ".join(str(n) for n in image.size[1:])
        ours, theirs = least(lambda m=module, i=image: m.apply(i)), least(lambda p=path: formats.read(Source(p)))
        print(f"{name:12} {size:21} {ours:7.4f}  {theirs:7.4f}  reading the file")
    reference, other = pair(data)
    small, moved = registration._small(reference), registration._small(other)
    ours = least(lambda: registration.register({"a": reference, "b": other}, "a"), 1)
    theirs = least(lambda: registration._moved(moved, small, "rigid"), 1)
    size = " x ".join(str(n) for n in reference.size)
    print(f"registration {size:21} {ours:7.2f}  {theirs:7.2f}  SimpleITK on the same copies, not judged")


def sets(data: Path) -> None:
    loops = sorted((data / "covid_blues" / "lus_videos").glob("*.mp4"))
    for name, files, module, moments in (
        ("busi", sorted((data / "busi" / "images").iterdir()), sector, None),
        ("covid_blues (8 frames)", loops, sector, 8),
        ("covid_cxr", sorted((data / "covid_cxr" / "images").iterdir()), collimation, None),
    ):
        kept, taken = [], 0.0
        for path in files:
            image = formats.read(Source(path), moments)
            began = process_time()
            found = module.apply(image).image
            taken += process_time() - began
            if found is not image:
                kept.append(found.array.size / image.array.size)
        share = f"{statistics.median(kept):.0%} ({min(kept):.0%})" if kept else ""
        print(f"| `{name}` | {len(files)} | {len(kept)} | {share} | {1000 * taken / len(files):.1f} |", flush=True)


def pair(data: Path, patient: int = 0, other: int = 0) -> tuple[Image, Image]:
    """FLAIR of one patient and T1 with contrast of the same or another, turned by 10 degrees and moved by 5 mm."""
    folders = sorted(path for path in (data / "brats2015_sample").iterdir() if path.is_dir())
    reference = formats.read(Source(folders[patient] / "Flair_subtrMeanDivStd.nii.gz"))
    image = formats.read(Source(folders[other] / "T1c_subtrMeanDivStd.nii.gz"))
    away = replace(image, geometry=Affine(motion(reference) @ registration._place(image)))
    # A grid of its own: what lies on one grid counts as registered.
    own = registration._place(image) @ np.diag([1.02, 1.02, 1.02, 1.0])
    return reference, resampling.onto(away, Affine(own), image.size, outside=float(image.array.min()))


def motion(image: Image) -> np.ndarray:
    angle, made = np.radians(10.0), np.eye(4)
    made[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    middle = image.to_patient((np.array(image.size[::-1]) - 1) / 2)
    made[:3, 3] = middle - made[:3, :3] @ middle + [5, -3, 4]
    return made


def ratio(reference: Image, image: Image, name: str, true: np.ndarray | None = None) -> None:
    small, other = registration._small(reference), registration._small(image)
    found = registration._moved(image, reference, "rigid")
    known, off = registration._information(small, other, found), ""
    chance = []
    for axis in ("depth", "height", "width"):
        copy = replace(other.flip(axis), geometry=other.geometry)
        chance.append(registration._information(small, copy, registration._moved(copy, small, "rigid")))
    if true is not None:
        volume = reference.array[0, 0]
        places = np.argwhere(volume > volume.min() + 0.1 * np.ptp(volume))[::997, ::-1].astype(float)
        points = np.c_[reference.to_patient(places), np.ones(len(places))]
        off = f"off by {np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean():.2f} voxels"
    print(f"{name:40} {known / max(chance):6.2f}  {off}", flush=True)


def judged(data: Path) -> None:
    for patient in range(2):
        reference, image = pair(data, patient, patient)
        ratio(reference, image, f"FLAIR and T1c of patient {patient}", motion(reference))
    ratio(*pair(data, 0, 1), "FLAIR of patient 0, T1c of patient 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", choices=("cost", "sets", "judged"))
    options = parser.parse_args()
    os.environ["OSLER_CACHE"] = "0"
    for name, part in (("cost", cost), ("sets", sets), ("judged", judged)):
        if options.only in (None, name):
            part(options.data)


if __name__ == "__main__":
    main()
