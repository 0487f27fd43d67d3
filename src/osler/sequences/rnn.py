"""The recurrent network of the source text: h_t = tanh(W h_{t-1} + U x_t + b), y_t = W_y h_t + b_y."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from osler.sequences import State, Temporal, require_positive


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        hidden: length of h and of y.
    """

    hidden: int = 128


class RNN(Temporal):
    """y_t after the last moment."""

    timed: ClassVar[bool] = True

    def __init__(self, options: Options, features: int) -> None:
        super().__init__()
        self.features = options.hidden
        self.state = State(features, options.hidden)
        self.y = nn.Linear(options.hidden, options.hidden)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b v"]:
        # Where there is no moment the state stays, so the last one is that of the last moment.
        y: Tensor = self.y(self.state(x, mask, gaps)[:, -1])
        return y


def build(options: Options, *, features: int) -> RNN:
    """The recurrent network over ``features``.

    Raises:
        Problem: an option is below 1.
    """
    require_positive("rnn", hidden=options.hidden)
    return RNN(options, features)
