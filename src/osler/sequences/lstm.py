"""Long short-term memory (Hochreiter and Schmidhuber, 1997; with a forget gate: Gers et al., 2000).

    i_t, f_t, o_t = sigmoid(W x_t + U h_{t-1} + b), one of each
    g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)
    c_t = f_t * c_{t-1} + i_t * g_t
    h_t = o_t * tanh(c_t)

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


class LSTM(Temporal):
    """h_t after the last moment."""

    timed: ClassVar[bool] = True

    def __init__(self, options: Options, features: int) -> None:
        super().__init__()
        self.features = options.hidden
        self.cells = nn.LSTM(features + 1, options.hidden, options.layers, batch_first=True)
        with torch.no_grad():
            for layer in range(options.layers):
                # A gate that forgets little to begin with (Jozefowicz, Zaremba and Sutskever, 2015).
                getattr(self.cells, f"bias_ih_l{layer}")[options.hidden : 2 * options.hidden] = 1

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b v"]:
        seen = kept(torch.cat([x, rhythm(gaps)], 2), mask)
        # A state depends on what came before it only: with every moment in front, padding comes after the last one.
        seen = seen.gather(1, in_front(mask).unsqueeze(2).expand_as(seen))
        states = steps(self.cells, seen)
        found: Tensor = states[torch.arange(len(x), device=x.device), mask.sum(1) - 1]
        return found


def build(options: Options, *, features: int) -> LSTM:
    """The network over ``features``.

    Raises:
        Problem: an option is below 1.
    """
    require_positive("lstm", hidden=options.hidden, layers=options.layers)
    return LSTM(options, features)
