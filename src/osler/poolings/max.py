"""Max pooling: the largest value of each feature over the map, for what is small and rare."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


class Max(nn.Module):
    """See the module."""

    def forward(self, maps: Float[Tensor, "b k *size"]) -> Float[Tensor, "b k"]:
        return maps.flatten(2).amax(2)


def build(options: Options, *, features: int) -> Max:
    """Max pooling."""
    return Max()
