"""The falling half of a U-Net (Ronneberger 2015) as nnU-Net builds it (Isensee et al., 2021, Nature Methods 18:203).

The rising half is ``osler.decoder``, which works over the levels of any backbone.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from osler.backbones import Backbone, Stage, convolution, initialise, instance_norm, stages_of

# Channels of a group, as in the paper on group normalisation where it has 256 of them.
_TOGETHER = 8


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        width: channels of the first stage; each further one doubles them.
        limit: most channels of a stage; 0: 512, in 3D 320.
        depth: stages; 0: as many as leave 4 places along an axis.
        aspect_y, aspect_z: distance between rows, and between slices, over that between columns; an axis with long
            pixels is halved, and looked along, only once the others are as coarse.
        stride: of the first stage, in pixels of the shortest axes: with 2 the finest map has half of the rows and
            columns, and a step takes a quarter of the time.
        norm: what a convolution's output is normalised over: each channel of an image by itself (``instance``), or
            about eight of them together (``group``; Wu and He, 2018, arXiv:1803.08494). Averages over a map of the
            former hardly differ between images, so that classes are better told from the latter.
    """

    width: int = 32
    limit: int = 0
    depth: int = 0
    aspect_y: float = 1.0
    aspect_z: float = 1.0
    stride: Literal[1, 2] = 1
    norm: Literal["instance", "group"] = "instance"


class UNet(Backbone):
    """Stages of two convolutions, each with a normalisation and a leaky ReLU; the first may have a stride."""

    def __init__(self, channels: int, widths: list[int], stages: list[Stage], norm: str) -> None:
        super().__init__()
        dims = len(stages[0].kernel)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *_convolution(norm, entering, leaving, stage.kernel, stage.stride),
                *_convolution(norm, leaving, leaving, stage.kernel, (1,) * dims),
            )
            for stage, (entering, leaving) in zip(stages, itertools.pairwise([channels, *widths]), strict=True)
        )
        self.features = widths[-1]

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        return self.levels(x)[-1]

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        """One map a stage; the first is as large as the input, or as its ``stride`` makes it."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _convolution(
    norm: str, entering: int, leaving: int, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> list[nn.Module]:
    dims = len(kernel)
    padding = tuple(k // 2 for k in kernel)
    # No bias: the normalisation would take it away again.
    layer = convolution(dims)(entering, leaving, kernel, stride=stride, padding=padding, bias=False)  # type: ignore[arg-type]
    single: nn.Module = instance_norm(dims)(leaving, affine=True)
    normal = nn.GroupNorm(math.gcd(leaving, max(1, leaving // _TOGETHER)), leaving) if norm == "group" else single
    return [layer, normal, nn.LeakyReLU(0.01, inplace=True)]


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> UNet:
    """The falling half of a U-Net; any size works."""
    aspects = (options.aspect_z, options.aspect_y, 1.0)[3 - dims :]
    wide = tuple(options.stride if aspect < 2 * min(aspects) else 1 for aspect in aspects)
    places = tuple(math.ceil(n / s) for n, s in zip(size, wide, strict=True))
    lengths = tuple(aspect * s for aspect, s in zip(aspects, wide, strict=True))
    first, *others = stages_of(places, lengths, options.depth)
    stages = [replace(first, stride=wide), *others]
    limit = options.limit or (512 if dims == 2 else 320)
    network = UNet(channels, [min(limit, options.width * 2**n) for n in range(len(stages))], stages, options.norm)
    initialise(network)
    return network
