"""From the levels of a backbone back to fine maps: each is enlarged and joined with the next finer one."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from osler.backbones import convolution, initialise, instance_norm


class Decoder(nn.Module):
    """The rising half of a U-Net (Ronneberger 2015), over the levels of any backbone.

    A coarse map is first reduced to the channels of the finer one (1x1), then enlarged by repeating its pixels and
    joined with it by one 3x3 convolution, as in nnU-Net's residual presets (Isensee et al., 2024): after it, what was
    repeated is smooth. On a processor that takes half of the time of a transposed convolution.

    Args:
        widths: channels of the backbone's levels, finest first.
        dims: 2 or 3.

    Attributes:
        widths: channels of the maps that it returns: one a level, finest first.
    """

    def __init__(self, widths: Sequence[int], dims: int) -> None:
        super().__init__()
        conv = convolution(dims)
        self.widths = tuple(widths)
        pairs = list(itertools.pairwise(widths))
        self.reduced = nn.ModuleList(conv(coarse, fine, 1) for fine, coarse in pairs)
        self.joined = nn.ModuleList(
            nn.Sequential(
                conv(2 * fine, fine, 3, padding=1, bias=False),
                instance_norm(dims)(fine, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            )
            for fine, _ in pairs
        )
        initialise(self)

    def forward(self, levels: list[Float[Tensor, "b _ ..."]]) -> list[Float[Tensor, "b _ ..."]]:
        """One map a level, finest first; the coarsest is the backbone's own."""
        maps = [levels[-1]]
        steps = list(zip(levels[:-1], self.reduced, self.joined, strict=True))
        for level, reduce, join in reversed(steps):
            above = functional.interpolate(reduce(maps[0]), level.shape[2:], mode="nearest")
            maps.insert(0, join(torch.cat([level, above], 1)))
        return maps
