"""Milliseconds that the whole chain of augmentations takes, every one of them applied to every image.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py

Where torchio, monai or batchgeneratorsv2 are installed, an affine map with elastic deformation, noise, blur,
gamma and bias field of theirs is timed on the same images, one by one as they are made to be used. In a
training each transform applies to a share of the images only: that is the line "with usual options".
"""

import importlib.util
from collections.abc import Callable
from dataclasses import fields, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from osler.catalog import find, names
from osler.draws import keys

SHAPES = {"128 images of 28 x 28": (128, 1, 1, 28, 28), "1 volume of 128^3": (1, 1, 128, 128, 128)}


def certain(name: str) -> Any:
    options = find("transforms", name).Options()
    return replace(options, **{f.name: 1.0 for f in fields(options) if f.name.endswith("probability")})


def usual(name: str) -> Any:
    return find("transforms", name).Options()


def osler_chain(images: torch.Tensor, options: Callable[[str], Any], only: tuple[str, ...]) -> torch.Tensor:
    key = keys(0, np.arange(len(images)))
    for name in only:
        images = find("transforms", name).apply(images, options(name), key)
    return images


def torchio_chain(images: torch.Tensor) -> None:
    import torchio

    chain = torchio.Compose(
        [
            torchio.RandomAffine(),
            torchio.RandomElasticDeformation(num_control_points=6),
            torchio.RandomNoise(),
            torchio.RandomBlur(),
            torchio.RandomGamma(),
            torchio.RandomBiasField(),
        ]
    )
    for image in images:
        chain(image)


def monai_chain(images: torch.Tensor) -> None:
    from monai import transforms

    three = images.shape[2] > 1
    elastic = (
        transforms.Rand3DElastic(sigma_range=(5, 7), magnitude_range=(50, 150), rotate_range=(0.2, 0, 0), prob=1)
        if three
        else transforms.Rand2DElastic(spacing=(7, 7), magnitude_range=(0, 1), rotate_range=0.2, prob=1)
    )
    chain = transforms.Compose(
        [
            elastic,
            transforms.RandGaussianNoise(prob=1),
            transforms.RandGaussianSmooth(prob=1),
            transforms.RandAdjustContrast(prob=1),
            transforms.RandBiasField(prob=1),
        ]
    )
    for image in images:
        chain(image if three else image[:, 0])


def batchgenerators_chain(images: torch.Tensor) -> None:
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

    size = tuple(images.shape[2:]) if images.shape[2] > 1 else tuple(images.shape[3:])
    chain = [
        SpatialTransform(size, 0, False, p_elastic_deform=1, p_rotation=1, p_scaling=1),
        GaussianNoiseTransform((0, 0.1)),
        GaussianBlurTransform((0.5, 1.0)),
        GammaTransform((0.7, 1.5), 0, False, True),
    ]
    for image in images:
        data = {"image": image if len(size) == 3 else image[:, 0]}
        for transform in chain:
            data = transform(**data)


def milliseconds(work: Callable[[], object], times: int) -> float:
    """The fastest of some runs."""
    work()
    taken = []
    for _ in range(times):
        start = perf_counter()
        work()
        taken.append(perf_counter() - start)
    return min(taken) * 1e3


def main() -> None:
    others = {"torchio": torchio_chain, "monai": monai_chain, "batchgeneratorsv2": batchgenerators_chain}
    every = names("transforms")
    for label, shape in SHAPES.items():
        images = torch.randn(shape)
        times = 20 if shape[2] == 1 else 3
        print(f"{label}, {torch.get_num_threads()} thread(s)")
        for name in every:
            alone = milliseconds(lambda n=name, x=images: osler_chain(x, certain, (n,)), times)
            print(f"  osler {name:<24}{alone:10.2f} ms")
        everything = milliseconds(lambda x=images: osler_chain(x, certain, every), times)
        print(f"  osler, all on every image     {everything:10.2f} ms")
        if len(images) > 1:
            share = milliseconds(lambda x=images: osler_chain(x, usual, every), times)
            print(f"  osler, with usual options     {share:10.2f} ms")
        for name, chain in others.items():
            if importlib.util.find_spec(name):
                print(f"  {name:<30}{milliseconds(lambda c=chain, x=images: c(x), 3):10.2f} ms")
            else:
                print(f"  {name} is not installed")


if __name__ == "__main__":
    main()
