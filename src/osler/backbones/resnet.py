"""Residual networks (He, Zhang, Ren and Sun, 2015, arXiv:1512.03385)."""

import re
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from osler.backbones import Backbone, batch_norm, convolution, initialise, max_pool


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        depth: layers with weights; 50 has bottleneck blocks.
        width: channels of the first stage; each of the three others doubles them.
        stem: ``large``: 7x7 with stride 2 and a max-pool, made for 224 pixels; ``small``: 3x3 with stride 1
            (section 4.2 of the paper, CIFAR); ``auto``: small where the longest axis is under 96 pixels.
    """

    depth: Literal[18, 34, 50] = 18
    width: int = 64
    stem: Literal["auto", "small", "large"] = "auto"


FOREIGN = "ResNet with the parameter names of torchvision (conv1, layer1.0.conv1); licence as its publisher states"

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class ResNet(Backbone):
    """A stem and four stages of residual blocks.

    With the large stem and 1,000 classes, ResNet-18 has 11,689,512 parameters and ResNet-50 25,557,032.
    """

    def __init__(self, options: Options, channels: int, dims: int, *, small: bool) -> None:
        super().__init__()
        conv, norm = convolution(dims), batch_norm(dims)
        width, bottleneck = options.width, options.depth == 50
        if small:
            self.stem = nn.Sequential(
                conv(channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU(inplace=True)
            )
        else:
            self.stem = nn.Sequential(
                conv(channels, width, 7, stride=2, padding=3, bias=False),
                norm(width),
                nn.ReLU(inplace=True),
                max_pool(dims)(3, stride=2, padding=1),
            )
        stages, entering = [], width
        for stage, repeats in enumerate(_BLOCKS[options.depth]):
            inner = width * 2**stage
            leaving = inner * 4 if bottleneck else inner
            blocks = []
            for number in range(repeats):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(_Block(dims, (entering, inner, leaving), stride))
                entering = leaving
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.features = entering

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        maps: Tensor = self.stages(self.stem(x))
        return maps

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        # The first stage keeps the size of the stem.
        return maps[1:]


class _Block(nn.Module):
    """relu(main(x) + short(x)), with two 3x3 convolutions, or 1x1, 3x3, 1x1 where the inner width is smaller."""

    def __init__(self, dims: int, widths: tuple[int, int, int], stride: int) -> None:
        super().__init__()
        conv, norm = convolution(dims), batch_norm(dims)
        entering, inner, leaving = widths
        if inner == leaving:
            layers: list[nn.Module] = [conv(entering, inner, 3, stride=stride, padding=1, bias=False)]
        else:
            layers = [conv(entering, inner, 1, bias=False), norm(inner), nn.ReLU(inplace=True)]
            layers.append(conv(inner, inner, 3, stride=stride, padding=1, bias=False))
        last = (
            conv(inner, leaving, 3, padding=1, bias=False)
            if inner == leaving
            else conv(inner, leaving, 1, bias=False)
        )
        self.main = nn.Sequential(*layers, norm(inner), nn.ReLU(inplace=True), last, norm(leaving))
        self.short: nn.Module = nn.Identity()
        if stride > 1 or entering != leaving:
            self.short = nn.Sequential(conv(entering, leaving, 1, stride=stride, bias=False), norm(leaving))

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        return F.relu(self.main(x) + self.short(x), inplace=True)


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> ResNet:
    """A residual network; any size works, 32 pixels or more with the large stem make sense."""
    small = max(size) < 96 if options.stem == "auto" else options.stem == "small"
    network = ResNet(options, channels, dims, small=small)
    initialise(network)
    return network


def from_foreign(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names in :data:`FOREIGN`; the last linear layer belongs to a task and is left out."""
    inside = {
        "conv1": "main.0",
        "bn1": "main.1",
        "conv2": "main.3",
        "bn2": "main.4",
        "conv3": "main.6",
        "bn3": "main.7",
    }
    mapped = {}
    for name, value in state.items():
        if name.startswith("fc."):
            continue
        if found := re.fullmatch(r"layer(\d)\.(\d+)\.(conv\d|bn\d)\.(.+)", name):
            stage, block, layer, kind = found.groups()
            name = f"stages.{int(stage) - 1}.{block}.{inside.get(layer, layer)}.{kind}"
        elif found := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.(.+)", name):
            name = f"stages.{int(found[1]) - 1}.{found[2]}.short.{found[3]}"
        else:
            name = re.sub(r"^bn1\.", "stem.1.", re.sub(r"^conv1\.", "stem.0.", name))
        mapped[name] = value
    return mapped
