"""Spatial attention: a weighted mean over the map, with weights that the network gives each place."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        score: ``linear``: s(h, x) = V^T [h; x] + b. The part of h and b is the same at each place and cancels in
            the softmax, so the weights depend on x alone. ``tanh``: s(h, x) = v^T tanh(W [h; x] + b) (Bahdanau,
            Cho and Bengio, 2015, arXiv:1409.0473), where they depend on both.
        hidden: length of v.
    """

    score: Literal["linear", "tanh"] = "tanh"
    hidden: int = 128


class Attention(nn.Module):
    """sum_i a_i x_i with a = softmax_i s(h, x_i), where h, the query, is the mean of the map."""

    def __init__(self, options: Options, features: int) -> None:
        super().__init__()
        rows = 1 if options.score == "linear" else options.hidden
        # One matrix for [h; x], kept as its two halves: W [h; x] + b = (W_h h + b) + W_x x.
        self.query = nn.Linear(features, rows)
        self.place = nn.Linear(features, rows, bias=False)
        self.v = None if options.score == "linear" else nn.Linear(rows, 1, bias=False)

    def weights(self, maps: Float[Tensor, "b k *size"]) -> Float[Tensor, " b *size"]:
        """The share of each place, >= 0; they sum to 1 over the map."""
        places = maps.flatten(2).transpose(1, 2)
        score = self.query(places.mean(1, keepdim=True)) + self.place(places)
        if self.v is not None:
            score = self.v(torch.tanh(score))
        # In bfloat16 the sum of thousands of shares would be off by percents.
        score = score.float() if score.dtype in (torch.bfloat16, torch.float16) else score
        shares: Tensor = score.squeeze(2).softmax(1)
        return shares.reshape(len(maps), *maps.shape[2:])

    def forward(self, maps: Float[Tensor, "b k *size"]) -> Float[Tensor, "b k"]:
        shares = self.weights(maps).flatten(1)
        return (maps.flatten(2).to(shares.dtype) * shares[:, None]).sum(2).to(maps.dtype)


def build(options: Options, *, features: int) -> Attention:
    """Spatial attention over maps of ``features`` channels."""
    return Attention(options, features)
