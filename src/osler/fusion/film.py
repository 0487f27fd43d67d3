"""Feature-wise linear modulation (Perez, Strub, de Vries, Dumoulin and Courville, 2018, arXiv:1709.07871).

What stands beside the first source says, for each of its features, by how much it is multiplied and what is added.
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
        width: units of the hidden layer between what stands beside and what it says.
    """

    width: int = 64


class Film(Fusion):
    """``(1 + g(c)) * v + b(c)``: ``v`` the first source, ``c`` the others; ``g`` and ``b`` begin as 0."""

    def __init__(self, options: Options, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.absent = nn.ParameterList(nn.Parameter(torch.zeros(n)) for n in widths.values())
        first, *others = widths.values()
        said = nn.Linear(options.width, 2 * first)
        nn.init.zeros_(said.weight)
        nn.init.zeros_(said.bias)
        self.says = nn.Sequential(nn.Linear(sum(others), options.width), nn.SiLU(), said)
        self.features = first

    def forward(
        self, vectors: Mapping[str, Float[Tensor, "b _"]], present: Bool[Tensor, "b s"]
    ) -> Float[Tensor, "b f"]:
        first, *others = [
            torch.where(present[:, number, None], vector, absent.to(vector.dtype))
            for number, (vector, absent) in enumerate(zip(vectors.values(), self.absent, strict=True))
        ]
        factor, added = self.says(torch.cat(others, 1)).chunk(2, 1)
        fused: Tensor = (1 + factor) * first + added
        return fused


def build(options: Options, *, widths: Mapping[str, int]) -> Film:
    """Feature-wise linear modulation.

    Raises:
        Problem: the width is not positive, or nothing stands beside the first source.
    """
    if options.width < 1:
        raise Problem(f"the width of the fusion film cannot be {options.width}", fix="64 is usual")
    if len(widths) < 2:
        raise Problem("the fusion film needs something beside the image", fix="set network.fusion=concat")
    return Film(options, widths)
