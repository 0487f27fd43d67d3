"""The mean of each feature over the moments: their order and their times do not count."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from osler.sequences import Temporal, kept


@dataclass(frozen=True)
class Options:
    """Nothing to choose."""


class Mean(Temporal):
    """See the module."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b f"]:
        return kept(x, mask).sum(1) / mask.sum(1, keepdim=True).to(x.dtype)


def build(options: Options, *, features: int) -> Mean:
    """The mean."""
    return Mean(features)
