"""Additive attention over the moments, scored with a recurrent state: which moments decide.

The source text has

    a_t = exp s(h_{t-1}, x_t) / sum_t' exp s(h_{t-1}, x_t')        s(h, x) = V^T [h; x] + b

with h_t = tanh(W h_{t-1} + U x_t + b), and leaves open which state scores which moment; see ``Options.reading``.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from osler.sequences import State, Temporal, kept, last, require_positive, shares


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        reading: ``literal``: the equation as it stands: at each step one state scores all moments, A[t, t'] = softmax
            over t' of s(h_{t-1}, x_t'), and the answer is the context of the last step, c_T = sum_t' A[T, t'] x_t'.
            Since s is linear, the part of h and b is the same for every t' and cancels: the weights depend on x
            alone. ``tanh``: the same with s = v^T tanh(W [h; x] + b) (Bahdanau, Cho and Bengio, 2015,
            arXiv:1409.0473), where they depend on both. ``frames``: each moment is scored with the state before it,
            a_t = softmax over t of s(h_{t-1}, x_t), and the answer is sum_t a_t x_t.
        hidden: length of the state, and of v.
    """

    reading: Literal["literal", "tanh", "frames"] = "literal"
    hidden: int = 16


class Attention(Temporal):
    """See the module."""

    timed: ClassVar[bool] = True

    def __init__(self, options: Options, features: int) -> None:
        super().__init__()
        self.features, self.reading = features, options.reading
        self.state = State(features, options.hidden)
        rows = options.hidden if options.reading == "tanh" else 1
        # One matrix for [h; x], kept as its two halves: W [h; x] + b = (W_h h + b) + W_x x.
        self.by_state = nn.Linear(options.hidden, rows)
        self.by_moment = nn.Linear(features, rows, bias=False)
        self.v = nn.Linear(options.hidden, 1, bias=False) if options.reading == "tanh" else None
        # It begins as the mean: scores drawn at random could pass over the one moment that counts, for good.
        for part in (self.by_state, self.by_moment) if self.v is None else (self.v,):
            nn.init.zeros_(part.weight)

    def score(self, h: Float[Tensor, "*batch h"], x: Float[Tensor, "*batch f"]) -> Float[Tensor, " *batch"]:
        """s(h, x)."""
        found = self.by_state(h) + self.by_moment(x)
        score: Tensor = found if self.v is None else self.v(torch.tanh(found))
        return score.squeeze(-1)

    def matrix(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t t"]:
        """A[t, t']: the weight that the state before t gives to t'; of ``frames`` every row is the same."""
        seen, count = kept(x, mask), x.shape[1]
        before = self.state(x, mask, gaps)[:, :-1]
        if self.reading == "frames":
            return shares(self.score(before, seen), mask).unsqueeze(1).expand(-1, count, -1)
        each = self.score(before.unsqueeze(2).expand(-1, -1, count, -1), seen.unsqueeze(1).expand(-1, count, -1, -1))
        return shares(each.flatten(0, 1), mask.repeat_interleave(count, 0)).reshape(each.shape)

    def weights(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t"]:
        """The row of :meth:`matrix` that the answer is made with: that of the last moment."""
        seen, before = kept(x, mask), self.state(x, mask, gaps)[:, :-1]
        if self.reading != "frames":
            before = before[torch.arange(len(x), device=x.device), last(mask)].unsqueeze(1).expand(-1, x.shape[1], -1)
        return shares(self.score(before, seen), mask)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b f"]:
        given = self.weights(x, mask, gaps)
        return (kept(x, mask) * given.unsqueeze(2)).sum(1)


def build(options: Options, *, features: int) -> Attention:
    """Attention over ``features``.

    Raises:
        Problem: an option is below 1.
    """
    require_positive("attention", hidden=options.hidden)
    return Attention(options, features)
