"""What is asked of a case: one kind of task a file, with its labels, head, loss, answer and score."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from osler.case import Finding, Question


class Dense(ABC):
    """A task that asks where something is. It has no weights; it says what is learned and what outputs mean.

    Attributes:
        question: what is asked.
    """

    question: Question
    # Channels of what may be added to the outputs by :meth:`gated`; 0 where nothing can.
    gates: int = 0
    # Whether :meth:`presence` tells other tasks where things are. A task that does not know of others is left alone.
    shows: bool = False

    def finest(self, strides: Sequence[tuple[int, ...]]) -> int:
        """The first of the maps that it looks at; the decoder does not make those that no task looks at.

        Args:
            strides: pixels of the patch to a pixel of each map, finest first, along 2 or 3 axes.
        """
        return 0

    @abstractmethod
    def head(self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], dims: int) -> nn.Module:
        """From the maps of a decoder, finest first, to the outputs of this task for a batch of patches.

        Args:
            widths: channels of each map, from the finest on that any task looks at.
            strides: pixels of the patch to a pixel of each map, along ``dims`` axes.
            dims: 2 or 3; maps are ``(b, k, *size)`` with ``dims`` axes.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """A number to make small; patches of which nothing is known add nothing."""

    def presence(self, outputs: Any) -> Float[Tensor, "b k *size"]:
        """Where each class is, 0 to 1, on a map of any resolution; gradients flow through it."""
        raise NotImplementedError

    def gated(self, outputs: Any, gate: Float[Tensor, "b o ..."], *, draft: bool) -> Any:
        """The outputs after what others say: ``gate`` holds :attr:`gates` channels of log-odds to be added.

        ``draft``: the outputs as they were are kept beside them, for a loss of their own.
        """
        raise NotImplementedError

    @abstractmethod
    def log_odds(self, outputs: Any, finding: Finding, patch: Sequence[int]) -> Float[Tensor, " b"]:
        """How much is said for a finding in each patch of a batch; its place is in pixels of the patch.

        ``patch``: ``(depth, height, width)`` that the outputs are about.
        """
