"""The weights of attention pooling: where the network itself looks, whatever it then answers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from osler.explanations import Target, on_the_grid


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


def available(target: Target) -> bool:
    """Where the pooling gives each place a weight."""
    return callable(getattr(target.pooling, "weights", None))


def explain(target: Target, x: Float[Tensor, "1 t c d h w"], options: Options) -> Float[Tensor, "d h w"]:
    """``pooling.weights`` of the feature maps, enlarged. It is the same for every task and class."""
    with torch.no_grad():
        weights: Tensor = target.pooling.weights(target.levels(x)[-1])  # type: ignore[operator, union-attr]
    return on_the_grid(weights.float(), x, target.dims)
