"""Along time: from the features of each moment to one vector, one network a file.

Every file holds ``Options`` (a frozen dataclass of plain types) and ``build(options, *, features) -> Temporal``. What
looks at times computes in the precision of its input, single at least: rounding adds up from step to step.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from osler.problem import Problem


class Temporal(nn.Module, ABC):
    """What is done along time.

    Where a network attends, it also has a method ``weights`` with the arguments of :meth:`forward`, which gives
    ``(b, t)``: what share each moment has in the answer. They sum to 1; of what is no moment the share is 0.

    Attributes:
        features: length of the vector that comes out.
        timed: whether it looks at ``gaps``.
    """

    features: int
    timed: ClassVar[bool] = False

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b v"]:
        """One vector of each sequence.

        Args:
            x: features of each moment.
            mask: true where there is a moment, at least one in each sequence. What stands elsewhere never counts.
            gaps: how long before was the last moment, >= 0, in the usual gap of the training cases; 1 where that is
                unknown, and for the first.
        """


def require_positive(network: str, **options: int) -> None:
    """Lengths and counts of a network.

    Raises:
        Problem: one is below 1.
    """
    for name, value in options.items():
        if value < 1:
            raise Problem(
                f"the option {name} of {network} is {value}", fix=f"set network.sequence_options.{name} to 1 or more"
            )


def rhythm(gaps: Float[Tensor, "b t"]) -> Float[Tensor, "b t 1"]:
    """Gaps as a feature: ``log2(1 + gap) - 1``: 0 for the usual gap, -1 for none, 1 for three times the usual.

    A sequence of even gaps thus leaves each equation as it is written without them, while gaps between a day and
    years stay numbers of about the same size.
    """
    return (torch.log2(1 + gaps) - 1).unsqueeze(2)


def kept(x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t f"]:
    """``x`` where there is a moment, else 0, whatever stood there: 0 times NaN would be NaN."""
    return torch.where(mask.unsqueeze(2), x, torch.zeros_like(x))


def shares(score: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Softmax over the moments that there are."""
    return score.masked_fill(~mask, -torch.inf).softmax(1)


def last(mask: Bool[Tensor, "b t"]) -> Int[Tensor, " b"]:
    """Number of the last moment of each sequence."""
    return (mask * torch.arange(mask.shape[1], device=mask.device)).amax(1)


def in_front(mask: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """The order of the moments that brings those that there are to the front, otherwise as they were."""
    return (~mask).to(torch.uint8).argsort(dim=1, stable=True)


def steps(cells: nn.RNNBase, x: Float[Tensor, "b t f"]) -> Float[Tensor, "b t h"]:
    """The states of torch's own recurrent networks."""
    if x.is_cuda and not cells.training and torch.is_grad_enabled():
        # cuDNN goes back through them only while they train; explanations ask a network that answers.
        with torch.backends.cudnn.flags(enabled=False):
            return cells(x)[0]  # type: ignore[no-any-return]
    return cells(x)[0]  # type: ignore[no-any-return]


class Rhythm(nn.Module):
    """Which moments count, and how long before each was the last, from when they were.

    Attributes:
        beat: seconds of the usual gap of the training cases; there only where somebody looks at gaps.

    Args:
        timed: whether somebody does.
    """

    beat: Tensor

    def __init__(self, *, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        if timed:
            self.register_buffer("beat", torch.ones(()))

    def fit(self, times: Float[Tensor, "n t"]) -> None:
        """Learns the usual gap, the median of those of the training cases."""
        if self.timed:
            between = gaps(times)
            between = between[between > 0]
            self.beat.copy_(between.median() if len(between) else between.new_ones(()))

    def forward(
        self, shape: Sequence[int], times: Float[Tensor, "_ t"] | None, device: torch.device
    ) -> tuple[Bool[Tensor, "b t"], Float[Tensor, "b t"]]:
        """``mask`` and ``gaps`` as :class:`Temporal` takes them.

        Args:
            shape: sequences, and moments of each.
            times: of each sequence, or of all of them: seconds, infinite where unknown, NaN where there is no moment.
                ``None``: all moments count, evenly spaced.
            device: for the result.
        """
        even = torch.ones(*shape, device=device)
        if times is None:
            return even > 0, even
        times = times.to(device).expand(*shape)
        if not self.timed:
            return ~times.isnan(), even
        between = gaps(times) / self.beat
        return ~times.isnan(), torch.where(between.isnan(), even, between)


def gaps(times: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """Seconds between each moment and the last before it, >= 0; NaN where that is unknown, and for the first."""
    numbers = torch.arange(times.shape[1], device=times.device).expand_as(times)
    before = torch.where(times.isnan(), -1, numbers).cummax(1).values.roll(1, 1)
    before[:, 0] = -1
    between = times - times.gather(1, before.clamp(min=0))
    return torch.where((before >= 0) & between.isfinite(), between.clamp(min=0), torch.nan)


class State(nn.Module):
    """h_t = tanh(W h_{t-1} + U x_t + b) with h_0 = 0 (Elman, 1990); a gap other than the usual adds ``G rhythm``.

    Args:
        features: length of x.
        hidden: length of h.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.W = nn.Linear(hidden, hidden, bias=False)
        self.U = nn.Linear(features, hidden)
        self.G = nn.Linear(1, hidden, bias=False)
        # Turned, not shrunk: what was seen long ago is still there after many steps (Le, Jaitly and Hinton, 2015).
        nn.init.orthogonal_(self.W.weight)
        nn.init.xavier_uniform_(self.U.weight)
        nn.init.zeros_(self.U.bias)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t1 h"]:
        """h_0, h_1, ..., h_t; where there is no moment the state stays what it was."""
        heard = self.U(kept(x, mask)) + self.G(kept(rhythm(gaps), mask))
        states = [torch.zeros_like(heard[:, 0])]
        for t in range(x.shape[1]):
            state = torch.tanh(self.W(states[-1]) + heard[:, t])
            states.append(torch.where(mask[:, t, None], state, states[-1]))
        return torch.stack(states, 1)
