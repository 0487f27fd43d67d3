"""Networks that turn an image into a map of features: one a file."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Looks along ``dims`` spatial axes and returns a feature map.

    Every file of this folder holds

    - ``Options``: a frozen dataclass of plain types (int, float, str, bool, ``Literal``), all with defaults;
    - ``build(options, *, channels, dims, size) -> Backbone`` with ``channels`` of the input, ``dims`` 2 or 3
      and ``size`` the spatial size of the input, ``(height, width)`` or ``(depth, height, width)``;
    - optionally ``from_foreign(state) -> state``: maps the names of a foreign state dict to its own,
      and ``FOREIGN``: what that file is, its licence and its source.

    Attributes:
        features: channels of the feature map.
        neck: the network's own way from its feature map to a vector (flatten and dense layers, as in
            AlexNet), ending *before* the last linear layer, or ``None``: then a pooling does it.
        neck_features: length of that vector, 0 without a neck.
    """

    features: int
    neck: nn.Module | None = None
    neck_features: int = 0

    @abstractmethod
    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        """The feature map."""
