"""VGG (Simonyan and Zisserman, 2014, arXiv:1409.1556): only 3x3 convolutions, doubled in width at each pooling."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from osler.backbones import (
    Backbone,
    average_pool_to,
    batch_norm,
    convolution,
    initialise,
    require_size,
)
from osler.max_relu import MaxPoolReLU


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        depth: layers with weights; configurations A, B, D and E of the paper.
        batch_norm: normalise after each convolution (it was not known then).
        grid: places along each axis that the dense layers see; 0: 7, in 3D 2.
        dense: units of each of the two dense layers.
        dropout: share of units left out after each dense layer while training.
    """

    depth: Literal[11, 13, 16, 19] = 16
    batch_norm: bool = False
    grid: int = 0
    dense: int = 4096
    dropout: float = 0.5


FOREIGN = "VGG with the parameter names of torchvision (features.N, classifier.N); licence as its publisher states"

# Convolutions in each of the five stages (Table 1 of the paper).
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Backbone):
    """Five stages and two dense layers; VGG-16 has 138,357,544 parameters with 1,000 classes in 2D."""

    def __init__(self, options: Options, channels: int, dims: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for repeats, width in zip(_STAGES[options.depth], (64, 128, 256, 512, 512), strict=True):
            for _ in range(repeats):
                layers.append(convolution(dims)(channels, width, 3, padding=1))
                if options.batch_norm:
                    layers.append(batch_norm(dims)(width))
                layers.append(nn.ReLU(inplace=True))
                channels = width
            # In place of the last ReLU; the name of no layer changes.
            layers[-1:] = [nn.Identity(), MaxPoolReLU(dims)]
        self.layers = nn.Sequential(*layers)
        self.features = 512
        self.neck_features = options.dense
        grid = options.grid or (7 if dims == 2 else 2)
        self.neck = nn.Sequential(
            average_pool_to(dims)(grid),
            nn.Flatten(),
            *(nn.Linear(512 * grid**dims, options.dense), nn.ReLU(inplace=True), nn.Dropout(options.dropout)),
            *(nn.Linear(options.dense, options.dense), nn.ReLU(inplace=True), nn.Dropout(options.dropout)),
        )

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        maps: Tensor = self.layers(x)
        return maps

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        """The map after each of the five poolings."""
        maps = []
        for layer in self.layers:
            x = layer(x)
            if isinstance(layer, MaxPoolReLU):
                maps.append(x)
        return maps


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> VGG:
    """A VGG network.

    Raises:
        Problem: an axis has fewer than 32 pixels: each of the five poolings halves it.
    """
    require_size("vgg", size, 32)
    network = VGG(options, channels, dims)
    initialise(network)
    return network


def from_foreign(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names in :data:`FOREIGN`; the last linear layer belongs to a task and is left out."""
    names = {"classifier.0": "neck.2", "classifier.3": "neck.5"}
    mapped = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer != "classifier.6":
            mapped[f"{names.get(layer, layer.replace('features.', 'layers.'))}.{kind}"] = value
    return mapped
