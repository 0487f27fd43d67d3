"""The largest value of each feature over the moments, for what shows in a few of them only."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from osler.sequences import Temporal


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


class Max(Temporal):
    """See the module."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b f"]:
        return torch.where(mask.unsqueeze(2), x, torch.full_like(x, -torch.inf)).amax(1)


def build(options: Options, *, features: int) -> Max:
    """The maximum."""
    return Max(features)
