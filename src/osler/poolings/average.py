"""Average pooling: the mean of each feature over the map."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


class Average(nn.Module):
    """See the module."""

    def forward(self, maps: Float[Tensor, "b k *size"]) -> Float[Tensor, "b k"]:
        return maps.flatten(2).mean(2)


def build(options: Options, *, features: int) -> Average:
    """Average pooling."""
    return Average()
