"""A residual encoder for a U-Net, as nnU-Net's ResEnc presets have it (Isensee et al., 2024, arXiv:2404.09556)."""

import itertools
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from osler.backbones import Backbone, Stage, convolution, initialise, instance_norm, stages_of


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        width: channels of the first stage; each further one doubles them.
        limit: most channels of a stage; 0: 512, in 3D 320.
        depth: stages; 0: as many as leave 4 places along an axis.
        blocks: residual blocks of each stage but the first, which has one, being the finest and slowest.
        aspect_y, aspect_z: distance between rows, and between slices, over that between columns; an axis with long
            pixels is halved, and looked along, only once the others are as coarse.
    """

    width: int = 32
    limit: int = 0
    depth: int = 0
    blocks: int = 2
    aspect_y: float = 1.0
    aspect_z: float = 1.0


class ResidualUNet(Backbone):
    """A stem of one convolution and stages of residual blocks with instance normalisation."""

    def __init__(self, channels: int, widths: list[int], stages: list[Stage], blocks: int) -> None:
        super().__init__()
        dims = len(stages[0].kernel)
        padding = tuple(k // 2 for k in stages[0].kernel)
        self.stem = nn.Sequential(
            convolution(dims)(channels, widths[0], stages[0].kernel, padding=padding, bias=False),  # type: ignore[arg-type]
            instance_norm(dims)(widths[0], affine=True),
            nn.LeakyReLU(0.01, inplace=True),
        )
        self.stages = nn.ModuleList()
        for number, (stage, (entering, leaving)) in enumerate(
            zip(stages, itertools.pairwise([widths[0], *widths]), strict=True)
        ):
            further = Stage(stage.kernel, (1,) * dims)
            self.stages.append(
                nn.Sequential(
                    _Block(entering, leaving, stage),
                    *(_Block(leaving, leaving, further) for _ in range(blocks - 1 if number else 0)),
                )
            )
        self.features = widths[-1]

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        return self.levels(x)[-1]

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        """One map a stage; the first is as large as the input."""
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Block(nn.Module):
    """lrelu(main(x) + short(x)); the short way is averaged where it shrinks (ResNet-D; He et al., 2019)."""

    def __init__(self, entering: int, leaving: int, stage: Stage) -> None:
        super().__init__()
        dims = len(stage.kernel)
        conv, norm = convolution(dims), instance_norm(dims)
        padding = tuple(k // 2 for k in stage.kernel)
        self.main = nn.Sequential(
            conv(entering, leaving, stage.kernel, stride=stage.stride, padding=padding, bias=False),  # type: ignore[arg-type]
            norm(leaving, affine=True),
            nn.LeakyReLU(0.01, inplace=True),
            conv(leaving, leaving, stage.kernel, padding=padding, bias=False),  # type: ignore[arg-type]
            norm(leaving, affine=True),
        )
        short: list[nn.Module] = []
        if max(stage.stride) > 1:
            pool = nn.AvgPool2d if dims == 2 else nn.AvgPool3d
            short.append(pool(stage.stride, stage.stride, ceil_mode=True))  # type: ignore[arg-type]
        if entering != leaving:
            short += [conv(entering, leaving, 1, bias=False), norm(leaving, affine=True)]
        self.short = nn.Sequential(*short)

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        return functional.leaky_relu(self.main(x) + self.short(x), 0.01, inplace=True)


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> ResidualUNet:
    """A residual encoder; any size works."""
    aspects = (options.aspect_z, options.aspect_y, 1.0)[3 - dims :]
    stages = stages_of(size, aspects, options.depth)
    limit = options.limit or (512 if dims == 2 else 320)
    widths = [min(limit, options.width * 2**n) for n in range(len(stages))]
    network = ResidualUNet(channels, widths, stages, options.blocks)
    initialise(network)
    return network
