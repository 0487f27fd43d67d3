"""The small convolutional network of the textbooks: two convolutions, two poolings, one dense layer.

Convolution 32 (3x3, valid), ReLU, max-pool 2, convolution 64 (3x3, valid), ReLU, max-pool 2, flatten, dense 128,
ReLU. With ten classes on 224x224x3 it has 23,908,682 parameters. It is what everything else is measured against.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from osler.backbones import Backbone, convolution, require_size
from osler.max_relu import MaxPoolReLU


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        dense: units of the dense layer.
    """

    dense: int = 128


class ReferenceCNN(Backbone):
    """See the module."""

    def __init__(self, options: Options, channels: int, dims: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.first = convolution(dims)(channels, 32, 3)
        self.second = convolution(dims)(32, 64, 3)
        self.pool = MaxPoolReLU(dims)
        self.features = 64
        self.neck_features = options.dense
        places = 1
        for pixels in size:
            places *= _after(pixels)
        self.neck = nn.Sequential(_Flatten(), nn.Linear(64 * places, options.dense), nn.ReLU())

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        maps: Tensor = self.pool(self.second(self.pool(self.first(x))))
        return maps


class _Flatten(nn.Module):
    """Place by place, all channels of a place together, as in TensorFlow: in channels-last memory a mere view."""

    def forward(self, x: Float[Tensor, "b k *size"]) -> Float[Tensor, "b n"]:
        return x.movedim(1, -1).flatten(1)


def _after(pixels: int) -> int:
    """Places along an axis that are left after both convolutions and poolings."""
    return ((pixels - 2) // 2 - 2) // 2


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> ReferenceCNN:
    """The reference CNN for images of exactly ``size``.

    Raises:
        Problem: an axis has fewer than 10 pixels.
    """
    require_size("reference_cnn", size, 10)
    network = ReferenceCNN(options, channels, dims, size)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            # As in Keras (Glorot and Bengio, 2010). He's weights are up to three times larger here, and with them
            # Adam's first steps on the dense layer's 186,624 inputs overshoot further still.
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return network
