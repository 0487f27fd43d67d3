"""ConvNeXt (Liu et al., 2022, arXiv:2201.03545): a convolutional network with the manners of a transformer."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from osler.backbones import Backbone, convolution, require_size


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        scale: ``atto`` (3.4 million weights; Woo et al., 2023), ``tiny`` (27.8 million).
        patch: pixels along each side that the stem joins to one place; 0: 4, under 96 pixels 2.
        kernel: places along each side of the depthwise convolution; odd.
    """

    scale: Literal["atto", "tiny"] = "atto"
    patch: int = 0
    kernel: int = 7


_SCALES = {"atto": (40, (2, 2, 6, 2)), "tiny": (96, (3, 3, 9, 3))}  # width, blocks in each stage


class ConvNeXt(Backbone):
    """Patches, then four stages, each with half the places and twice the channels of the one before."""

    def __init__(self, options: Options, channels: int, dims: int, patch: int) -> None:
        super().__init__()
        width, depths = _SCALES[options.scale]
        conv = convolution(dims)
        layers: list[nn.Module] = [conv(channels, width, patch, stride=patch), _Norm(width)]
        for stage, depth in enumerate(depths):
            if stage:
                layers += [_Norm(width), conv(width, 2 * width, 2, stride=2)]
                width *= 2
            layers += [_Block(width, options.kernel, dims) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, _Norm(width))
        self.features = width

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        maps: Tensor = self.layers(x)
        return maps

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        """The map of each of the four stages."""
        maps = []
        for number, layer in enumerate(self.layers):
            # A stage begins with a normalisation; so does the stem end, and the last stage.
            if isinstance(layer, _Norm) and 1 < number < len(self.layers) - 1:
                maps.append(x)
            x = layer(x)
        return [*maps, x]


class _Norm(nn.LayerNorm):
    """Layer normalisation over the channels of each place."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "b k *size"]) -> Float[Tensor, "b k *size"]:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Block(nn.Module):
    """Depthwise convolution, normalisation, two dense layers at each place, scaled and added to the input."""

    def __init__(self, width: int, kernel: int, dims: int) -> None:
        super().__init__()
        self.depthwise = convolution(dims)(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Float[Tensor, "b k *size"]) -> Float[Tensor, "b k *size"]:
        y = self.norm(self.depthwise(x).movedim(1, -1))
        y = self.scale * self.narrow(F.gelu(self.wide(y)))
        added: Tensor = x + y.movedim(-1, 1)
        return added


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> ConvNeXt:
    """A ConvNeXt.

    Raises:
        Problem: an axis has fewer pixels than 8 patches.
    """
    patch = options.patch or (4 if max(size) >= 96 else 2)
    require_size("convnext", size, 8 * patch)
    network = ConvNeXt(options, channels, dims, patch)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
