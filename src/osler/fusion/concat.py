"""The vectors of all sources side by side, and beside them what a small layer makes of them together.

A linear head on vectors side by side adds the evidence of the sources, which is all that there is to do where they
are independent within a class; what depends on both at once goes through the layer.
"""

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
        width: units of the layer that sees all sources at once; 0 leaves it out, and evidence is only added.
    """

    width: int = 32


class Concat(Fusion):
    """``[v_1, v_2, ..., SiLU(W [v_1, v_2, ...] + b)]``; a source that is absent is a learned vector."""

    def __init__(self, options: Options, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.absent = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in widths.values())
        together = sum(widths.values())
        self.layer = nn.Linear(together, options.width) if options.width else None
        self.features = together + options.width

    def forward(
        self, vectors: Mapping[str, Float[Tensor, "b _"]], present: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b f"]:
        joined = torch.cat([
            torch.where(present[:, number, None], vector, absent.to(vector.dtype))
            for number, (vector, absent) in enumerate(zip(vectors.values(), self.absent, strict=True))
        ], 1)  # fmt: skip
        return joined if self.layer is None else torch.cat([joined, nn.functional.silu(self.layer(joined))], 1)


def build(options: Options, *, widths: Mapping[str, int]) -> Concat:
    """Concatenation.

    Raises:
        Problem: the width is negative.
    """
    if options.width < 0:
        raise Problem(f"the width of the fusion concat cannot be {options.width}", fix="32 is usual, 0 leaves it out")
    return Concat(options, widths)
