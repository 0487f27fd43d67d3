"""A small vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929) without a class token."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from osler.backbones import Backbone, convolution
from osler.problem import Problem


@dataclass(frozen=True)
class Options:
    """What can be chosen.

    Attributes:
        patch: pixels along each side of a patch; 0: so that the longest axis has about 14 patches, 8 in 3D,
            but at least 2 and at most 16 pixels.
        width: length of a token; a multiple of ``heads``.
        depth: number of blocks.
        heads: attention heads in each.
        position: ``sincos``: fixed sines and cosines along each axis (Vaswani et al., 2017); ``learned``.
        dropout: share of values left out while training, after attention and inside the dense layers.
    """

    patch: int = 0
    width: int = 192
    depth: int = 6
    heads: int = 3
    position: Literal["sincos", "learned"] = "sincos"
    dropout: float = 0.0


class ViT(Backbone):
    """Patches become tokens, tokens attend to each other, and go back to their places as a feature map."""

    position: Tensor

    def __init__(self, options: Options, channels: int, patch: tuple[int, ...], size: tuple[int, ...]) -> None:
        super().__init__()
        self.patch = patch
        grid = tuple(math.ceil(n / p) for n, p in zip(size, patch, strict=True))
        self.embed = convolution(len(size))(channels, options.width, patch, stride=patch)  # type: ignore[arg-type]
        if options.position == "learned":
            self.position = nn.Parameter(torch.empty(options.width, *grid))
            nn.init.trunc_normal_(self.position, std=0.02)
        else:
            self.register_buffer("position", sincos(options.width, grid), persistent=False)
        self.blocks = nn.Sequential(*(_Block(options) for _ in range(options.depth)))
        self.norm = nn.LayerNorm(options.width)
        self.features = options.width

    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        # Zeros at the end rather than pixels lost: a patch that hangs over the border still sees its pixels.
        missing = [(0, -n % p) for n, p in zip(x.shape[2:], self.patch, strict=True)]
        maps = self.embed(F.pad(x, [width for pair in reversed(missing) for width in pair])) + self.position
        tokens: Tensor = self.norm(self.blocks(maps.flatten(2).transpose(1, 2)))
        return tokens.transpose(1, 2).reshape(maps.shape)


class _Block(nn.Module):
    """Self-attention, then two dense layers for each token; both normalised before and added to their input."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, dropout = options.width, options.dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, options.heads)
        self.drop = nn.Dropout(dropout)
        self.dense = nn.Sequential(
            *(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout)),
            *(nn.Linear(4 * width, width), nn.Dropout(dropout)),
        )

    def forward(self, x: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        x = x + self.drop(self.attention(self.norm1(x)))
        out: Tensor = x + self.dense(self.norm2(x))
        return out


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt d) V in each head of width d (Vaswani et al., 2017, eq. 1), then one dense layer.

    Args:
        width: length of a token.
        heads: number of heads; ``width`` is a multiple of it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return mixed


def sincos(width: int, grid: tuple[int, ...]) -> Float[Tensor, " width *grid"]:
    """Where a token is: for each axis sines and cosines of its place at frequencies from 1 down to 1/10,000.

    Channels that do not divide evenly among the axes stay 0.
    """
    position = torch.zeros(width, *grid)
    count = width // (2 * len(grid))
    frequencies = 10_000.0 ** -(torch.arange(count) / max(count, 1))
    for axis, places in enumerate(grid):
        angle = frequencies[:, None] * torch.arange(places)
        waves = torch.cat([angle.sin(), angle.cos()])
        shape = [1] * len(grid)
        shape[axis] = places
        start = axis * 2 * count
        position[start : start + 2 * count] = waves.reshape(-1, *shape)
    return position


def build(options: Options, *, channels: int, dims: int, size: tuple[int, ...]) -> ViT:
    """A vision transformer for images of exactly ``size``.

    Raises:
        Problem: the width is not a multiple of the heads.
    """
    if options.width % options.heads:
        raise Problem(
            f"a vision transformer's width must be a multiple of its heads; got {options.width} and {options.heads}",
            fix="change one of them",
        )
    side = options.patch or min(16, max(2, max(size) // (14 if dims == 2 else 8)))
    network = ViT(options, channels, tuple(min(side, n) for n in size), size)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return network
