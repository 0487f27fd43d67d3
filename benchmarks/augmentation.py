"""How long augmentation takes: Osler's compiled loops and its torch way, batchgeneratorsv2, MONAI and TorchIO.

    pip install --no-deps -c constraints.txt -r benchmarks/requirements.txt
    python benchmarks/augmentation.py --threads 2 --repeats 7

Every library does the same kinds of things to every image and its mask, each with the amounts and the way of its own
documentation: an affine map with elastic deformation and mirroring (linear for the image, nearest for the mask),
Gaussian noise, blur, gamma. All are timed in turns in one process, so that a busy machine is busy for all; what
compiling takes, once in a process, is printed apart. A library that is not installed is left out.
"""

import argparse
import importlib.util
import math
import statistics
import warnings
from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch

from osler import transforms
from osler.draws import keys
from osler.transforms import blur, intensity, noise, spatial

SHAPES = {
    "1 volume of 128 x 128 x 128": (1, 1, 128, 128, 128),
    "32 images of 224 x 224": (32, 1, 1, 224, 224),
    "128 images of 28 x 28": (128, 1, 1, 28, 28),
}
Work = Callable[[], object]


def osler_chain(images: torch.Tensor, masks: torch.Tensor, *, compiled: bool) -> Work:
    three = images.shape[2] > 1
    key = keys(0, np.arange(len(images)))
    moved = spatial.Options(
        1.0, 15.0, 10.0 if three else 0.0, 0.2, 0.1, 0.1, 0.1, 0.04, 1.0, flip_x=True, flip_y=True, flip_z=three
    )

    def work() -> None:
        transforms._PAYS = 0 if compiled else math.inf
        x = spatial.apply(images, moved, key)
        spatial.move_masks(masks, moved, key)
        x = noise.apply(x, noise.Options(1.0, 0.0, 0.25), key)
        x = blur.apply(x, blur.Options(1.0, 0.3, 1.0), key)
        intensity.apply(x, intensity.Options(1.0, 0.0, 0.0, 0.45), key)

    return work


def batchgenerators_chain(images: torch.Tensor, masks: torch.Tensor) -> Work:
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    three = images.shape[2] > 1
    size = tuple(images.shape[2:] if three else images.shape[3:])
    chain = [
        SpatialTransform(size, 0, False, p_elastic_deform=1, p_rotation=1, p_scaling=1, mode_seg="nearest"),
        GaussianNoiseTransform((0, 0.1)),
        GaussianBlurTransform((0.5, 1.0)),
        GammaTransform((0.7, 1.5), 0, False, 1, 1),
        MirrorTransform(tuple(range(len(size)))),
    ]

    def work() -> None:
        for image, mask in zip(images, masks, strict=True):
            data = {"image": image if three else image[:, 0], "segmentation": mask if three else mask[:, 0]}
            for transform in chain:
                data = transform(**data)

    return work


def monai_chain(images: torch.Tensor, masks: torch.Tensor) -> Work:
    from monai import transforms as m

    three, both, mode = images.shape[2] > 1, ["image", "mask"], ("bilinear", "nearest")
    affine = {"prob": 1, "scale_range": 0.2, "translate_range": 5, "padding_mode": "border", "mode": mode}
    chain = m.Compose(
        [
            m.Rand3DElasticd(both, (5, 8), (100, 200), rotate_range=(0.2, 0.2, 0.2), **affine)
            if three
            else m.Rand2DElasticd(both, (7, 7), (0, 1), rotate_range=0.2, **affine),
            m.RandFlipd(both, prob=0.5, spatial_axis=0),
            m.RandGaussianNoised(["image"], prob=1),
            m.RandGaussianSmoothd(["image"], prob=1),
            m.RandAdjustContrastd(["image"], prob=1, gamma=(0.7, 1.5)),
        ]
    )

    def work() -> None:
        for image, mask in zip(images, masks, strict=True):
            chain({"image": image if three else image[:, 0], "mask": mask if three else mask[:, 0]})

    return work


def torchio_chain(images: torch.Tensor, masks: torch.Tensor) -> Work:
    import torchio

    three = images.shape[2] > 1
    chain = torchio.Compose(
        [
            torchio.RandomAffine(),
            torchio.RandomElasticDeformation()
            if three
            else torchio.RandomElasticDeformation(max_displacement=(1, 1, 0)),
            torchio.RandomFlip(axes=(0, 1, 2) if three else (0, 1)),
            torchio.RandomNoise(),
            torchio.RandomBlur(),
            torchio.RandomGamma(),
        ]
    )

    def work() -> None:
        for image, mask in zip(images, masks, strict=True):
            # its third axis is that of the slices
            pair = [x if three else x.movedim(1, 3) for x in (image, mask)]
            chain(torchio.Subject(image=torchio.ScalarImage(tensor=pair[0]), mask=torchio.LabelMap(tensor=pair[1])))

    return work


OTHERS = {"batchgeneratorsv2": batchgenerators_chain, "monai": monai_chain, "torchio": torchio_chain}


def seconds(work: Work) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


def compare(label: str, repeats: int) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(SHAPES[label], generator=random)
    masks = (images > 1).to(torch.uint8)
    ours = osler_chain(images, masks, compiled=True)
    first, again = seconds(ours), seconds(ours)
    print(f"\n{label}, each with a mask; {repeats} interleaved repeats; compiling took {first - again:.1f} s")
    works = {"osler": ours, "osler, torch alone": osler_chain(images, masks, compiled=False)}
    works |= {name: chain(images, masks) for name, chain in OTHERS.items() if importlib.util.find_spec(name)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            taken = seconds(work)
            if repeat:  # the first round warms up
                times[name].append(taken)
    for name, taken in times.items():
        ratios = sorted(a / b for a, b in zip(taken, times["osler"], strict=True))
        print(
            f"  {name:20s} median {statistics.median(taken) * 1e3:9.1f} ms  "
            f"(from {min(taken) * 1e3:.1f} to {max(taken) * 1e3:.1f})  "
            f"{statistics.median(ratios):7.1f} x osler's time (from {ratios[0]:.1f} to {ratios[-1]:.1f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=[*SHAPES], help="one of the batches")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} thread(s)")
    for label in [options.only] if options.only else SHAPES:
        compare(label, options.repeats)


if __name__ == "__main__":
    main()
