"""From the levels of a backbone back to fine maps: each is enlarged and joined with the next finer one."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from osler.backbones import convolution


class Decoder(nn.Module):
    """The rising half of a U-Net (Ronneberger 2015), over the levels of any backbone.

    Args:
        widths: channels of the backbone's levels, finest first.
        dims: 2 or 3.

    Attributes:
        widths: channels of the maps that it returns: one a level, finest first.
    """

    def __init__(self, widths: Sequence[int], dims: int) -> None:
        super().__init__()
        conv = convolution(dims)
        norm = nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d
        self.widths = tuple(widths)
        self.mode = "bilinear" if dims == 2 else "trilinear"
        self.joints = nn.ModuleList(
            nn.Sequential(
                conv(fine + coarse, fine, 3, padding=1, bias=False),
                norm(fine, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
                conv(fine, fine, 3, padding=1, bias=False),
                norm(fine, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
            )
            for fine, coarse in pairwise(widths)
        )

    def forward(self, levels: list[Float[Tensor, "b k *size"]]) -> list[Float[Tensor, "b k *size"]]:
        """One map a level, finest first; the coarsest is the backbone's own."""
        maps = [levels[-1]]
        for level, joint in zip(reversed(levels[:-1]), reversed(list(self.joints)), strict=True):
            above = functional.interpolate(maps[0], level.shape[2:], mode=self.mode, align_corners=False)
            maps.insert(0, joint(torch.cat([level, above], 1)))
        return maps
