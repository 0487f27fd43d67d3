"""AlexNet (Krizhevsky, Sutskever and Hinton, 2012) in its one-tower form (Krizhevsky, 2014, arXiv:1404.5997)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from osler.backbones import Backbone, average_pool_to, convolution, initialise, max_pool, require_size


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        grid: places along each axis that the dense layers see; 0: 6, in 3D 2 (the first dense layer would
            otherwise have 226 million weights).
        dense: units of each of the two dense layers.
        dropout: share of units left out before each dense layer while training.
    """

    grid: int = 0
    dense: int = 4096
    dropout: float = 0.5


FOREIGN = (
    "AlexNet with the parameter names of torchvision (features.N, classifier.N); licence as its publisher states"
)


class AlexNet(Backbone):
    """Five convolutions, three poolings, two dense layers; 61,100,840 parameters with 1,000 classes in 2D."""

    def __init__(self, options: Options, channels: int, dims: int) -> None:
        super().__init__()
        conv, pool = convolution(dims), max_pool(dims)
        # ReLU after the pooling, not before: the values are the same, and there are four times fewer.
        self.layers = nn.Sequential(
            *(conv(channels, 64, 11, stride=4, padding=2), pool(3, stride=2), nn.ReLU(inplace=True)),
            *(conv(64, 192, 5, padding=2), pool(3, stride=2), nn.ReLU(inplace=True)),
            *(conv(192, 384, 3, padding=1), nn.ReLU(inplace=True)),
            *(conv(384, 256, 3, padding=1), nn.ReLU(inplace=True)),
            *(conv(256, 256, 3, padding=1), pool(3, stride=2), nn.ReLU(inplace=True)),
        )
        self.features = 256
        self.neck_features = options.dense
        grid = options.grid or (6 if dims == 2 else 2)
        self.neck = nn.Sequential(
            average_pool_to(dims)(grid),
            nn.Flatten(),
            *(nn.Dropout(options.dropout), nn.Linear(256 * grid**dims, options.dense), nn.ReLU(inplace=True)),
            *(nn.Dropout(options.dropout), nn.Linear(options.dense, options.dense), nn.ReLU(inplace=True)),
        )

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        maps: Tensor = self.layers(x)
        return maps


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> AlexNet:
    """AlexNet.

    Raises:
        Problem: an axis has fewer than 63 pixels: nothing would be left after the third pooling.
    """
    require_size("alexnet", size, 63)
    network = AlexNet(options, channels, dims)
    initialise(network)
    return network


def from_foreign(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """From the names in :data:`FOREIGN`; the last linear layer belongs to a task and is left out."""
    names = {"classifier.1": "neck.3", "classifier.4": "neck.6"}
    mapped = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer != "classifier.6":
            mapped[f"{names.get(layer, layer.replace('features.', 'layers.'))}.{kind}"] = value
    return mapped
