"""Which pixels are of which class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from osler.case import Question
from osler.tasks import Dense


@dataclass(frozen=True)
class Segmentation(Dense):
    """Label maps of one question."""

    question: Question

    @property
    def outputs(self) -> int:
        """Channels: the background and each class, or each region."""
        return len(self.question.classes) + (not self.regions)

    @property
    def regions(self) -> bool:
        """Whether classes share values, so that a pixel may be of several."""
        values = [value for group in self.question.values for value in group]
        return len(set(values)) < len(values)

    def head(self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], dims: int) -> nn.Module:
        """A 1x1 convolution."""
        return _Head(widths[0], self.outputs, dims)

    def loss(self, outputs: Any, targets: UInt8[Tensor, "b d h w"]) -> Float[Tensor, ""]:
        """Cross-entropy."""
        if outputs.ndim == 4:
            targets = targets.reshape(-1, *targets.shape[2:])
        return functional.cross_entropy(outputs, targets.long())


class _Head(nn.Module):
    def __init__(self, width: int, outputs: int, dims: int) -> None:
        super().__init__()
        self.last = (nn.Conv2d if dims == 2 else nn.Conv3d)(width, outputs, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        out: Tensor = self.last(maps[0])
        return out
