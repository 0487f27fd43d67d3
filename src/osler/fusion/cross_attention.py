"""Sources that look at each other (Vaswani 2017, arXiv:1706.03762; of modalities: Tsai 2019, arXiv:1906.00295).

The vector of each source becomes a token, and every token takes from all of them what answers to it. A source that is
absent is a token of its own that is learned, so that others know that nothing stands there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from osler.fusion import Fusion
from osler.problem import Problem


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        width: numbers of a token.
        heads: how many looks each token takes; they divide the width.
    """

    width: int = 32
    heads: int = 4


class CrossAttention(Fusion):
    """``z_i = W_i v_i + b_i``, then ``y_i = z_i + O a_i`` and ``y_i + M(norm(y_i))``, side by side.

    ``a_i`` is, head by head, the sum over ``j`` of ``softmax_j(q_i . k_j / sqrt(d)) u_j``, where q, k and u are
    linear in ``norm(z)``; ``M`` is a layer of twice the width, SiLU, and a layer back.
    """

    def __init__(self, options: Options, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.absent = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in widths.values())
        self.heads, width = options.heads, options.width
        self.token = nn.ModuleList(nn.Linear(n, width) for n in widths.values())
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.looks, self.takes = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layer = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.features = len(widths) * width

    def forward(
        self, vectors: Mapping[str, Float[Tensor, "b _"]], present: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b f"]:
        tokens = torch.stack([
            self.token[number](torch.where(present[:, number, None], vector, absent.to(vector.dtype)))
            for number, (vector, absent) in enumerate(zip(vectors.values(), self.absent, strict=True))
        ], 1)  # fmt: skip
        q, k, u = (part.unflatten(2, (self.heads, -1)) for part in self.looks(self.first(tokens)).chunk(3, 2))
        shares = (torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])).softmax(3)
        tokens = tokens + self.takes(torch.einsum("bhij,bjhd->bihd", shares, u).flatten(2))
        fused: Tensor = tokens + self.layer(self.second(tokens))
        return fused.flatten(1)


def build(options: Options, *, widths: Mapping[str, int]) -> CrossAttention:
    """Cross-attention.

    Raises:
        Problem: the width is not a multiple of the number of heads, or one of them is not positive.
    """
    if options.width < 1 or options.heads < 1 or options.width % options.heads:
        raise Problem(
            f"the fusion cross_attention cannot have {options.heads} heads in a width of {options.width}",
            fix="the width is a multiple of the heads: 32 and 4 are usual",
        )
    return CrossAttention(options, widths)
