"""The weights of attention pooling: where the network itself looks, whatever it then answers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osler.explanations import Explained, on_the_grid


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def available(network: Explained) -> bool:
    """Where the pooling gives each place a weight."""
    return callable(getattr(network.pooling, "weights", None))


def explain(
    network: Explained, x: Float[Tensor, "1 t c d h w"], task: str, target: int, options: Options
) -> Float[Tensor, "d h w"]:
    """``pooling.weights`` of the feature maps, enlarged. It is the same for every task and class."""
    with torch.no_grad():
        weights: Tensor = network.pooling.weights(network.maps(x))  # type: ignore[operator]
    return on_the_grid(weights.float(), x, network.dims)
