"""A box around each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from osler.case import Question
from osler.tasks import Dense


@dataclass(frozen=True)
class Detection(Dense):
    """Boxes of one question."""

    question: Question

    def head(self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], dims: int) -> nn.Module:
        """Not yet."""
        raise NotImplementedError

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """Not yet."""
        raise NotImplementedError
