"""Gated recurrent units (Cho et al., 2014, arXiv:1406.1078): a state that learns what to keep and what to forget.

    r_t = sigmoid(W_r x_t + U_r h_{t-1} + b_r)
    z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
    n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + c_n))
    h_t = (1 - z_t) * n_t + z_t * h_{t-1}

x_t is the features of a moment and how long before was the last (``osler.sequences.rhythm``).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from osler.sequences import Temporal, in_front, kept, require_positive, rhythm, steps


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        hidden: length of the state.
        layers: of such networks, each over the states of the one below.
    """

    hidden: int = 128
    layers: int = 1


class GRU(Temporal):
    """h_t after the last moment."""

    timed: ClassVar[bool] = True

    def __init__(self, options: Options, features: int) -> None:
        super().__init__()
        self.features = options.hidden
        self.cells = nn.GRU(features + 1, options.hidden, options.layers, batch_first=True)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b v"]:
        seen = kept(torch.cat([x, rhythm(gaps)], 2), mask)
        # A state depends on what came before it only: with every moment in front, padding comes after the last one.
        seen = seen.gather(1, in_front(mask).unsqueeze(2).expand_as(seen))
        states = steps(self.cells, seen)
        found: Tensor = states[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
        return found


def build(options: Options, *, features: int) -> GRU:
    """The network over ``features``.

    Raises:
        Problem: an option is below 1.
    """
    require_positive("gru", hidden=options.hidden, layers=options.layers)
    return GRU(options, features)
