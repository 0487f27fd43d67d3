"""Self-attention: every moment looks at every other, softmax(Q K^T / sqrt(d)) V (Vaswani et al., 2017), before they
are weighed.

A moment knows its place by sines of its number and of its time; where all gaps are the usual one, the two are equal.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from osler.problem import Problem
from osler.sequences import Temporal, kept, require_positive, shares


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        width: of the features inside; a multiple of twice ``heads``.
        heads: that look at once, each at its part of the features.
        layers: of looking round.
    """

    width: int = 128
    heads: int = 4
    layers: int = 1


class Layer(nn.Module):
    """x + attention(norm x), then x + dense(norm x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Float[Tensor, "b t w"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t w"]:
        """Each moment after it has looked at all those that there are."""
        b, t, width = x.shape
        q, k, v = self.qkv(self.before(x)).reshape(b, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, mask[:, None, None, :])
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, width))
        after: Tensor = x + self.dense(self.between(x))
        return after


class SelfAttention(Temporal):
    """The mean of all moments after they have looked round, each weighed by softmax over t of v^T x_t."""

    timed: ClassVar[bool] = True

    def __init__(self, options: Options, features: int) -> None:
        super().__init__()
        self.features = options.width
        self.enter = nn.Linear(features, options.width)
        self.place = nn.Linear(2 * options.width, options.width, bias=False)
        self.layers = nn.ModuleList(Layer(options.width, options.heads) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)
        self.v = nn.Linear(options.width, 1, bias=False)
        # It begins as the mean: scores drawn at random could pass over the one moment that counts, for good.
        nn.init.zeros_(self.v.weight)

    def looked(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t w"]:
        """Each moment after it has looked at the others."""
        numbers = (mask.cumsum(1) - 1).clamp(min=0).to(gaps.dtype)
        # From the first moment on: what is in front of it is no time.
        since = torch.where(mask & (numbers > 0), gaps, torch.zeros_like(gaps)).cumsum(1)
        width = self.features
        places = torch.cat([sines(numbers, width), sines(since, width)], 2)
        seen = self.enter(kept(x, mask)) + self.place(places)
        for layer in self.layers:
            seen = layer(seen, mask)
        found: Tensor = self.norm(seen)
        return found

    def weights(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b t"]:
        """The share of each moment in the mean; it has heard of the others by then."""
        return shares(self.v(self.looked(x, mask, gaps)).squeeze(2), mask)

    def forward(
        self, x: Float[Tensor, "b t f"], mask: Bool[Tensor, "b t"], gaps: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b w"]:
        seen = self.looked(x, mask, gaps)
        given = shares(self.v(seen).squeeze(2), mask)
        return (seen * given.unsqueeze(2)).sum(1)


def sines(at: Float[Tensor, "b t"], width: int) -> Float[Tensor, "b t w"]:
    """sin and cos of ``at`` with ``width / 2`` wave lengths from 2 pi to 20000 pi (Vaswani et al., 2017)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(0, width, 2, device=at.device, dtype=at.dtype) / width)
    angles = at.unsqueeze(2) * rates
    return torch.cat([angles.sin(), angles.cos()], 2)


def build(options: Options, *, features: int) -> SelfAttention:
    """Self-attention over ``features``.

    Raises:
        Problem: an option is below 1, or ``width`` cannot be shared among the heads.
    """
    require_positive("self_attention", width=options.width, heads=options.heads, layers=options.layers)
    if options.width % (2 * options.heads):
        raise Problem(
            f"self_attention cannot share a width of {options.width} among {options.heads} heads",
            fix="set network.sequence_options.width to a multiple of twice the heads",
        )
    return SelfAttention(options, features)
