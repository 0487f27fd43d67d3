"""Networks that turn an image into a map of features: one a file."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from osler.problem import Problem


class Backbone(nn.Module, ABC):
    """Looks along ``dims`` spatial axes and returns a feature map.

    Every file of this folder holds

    - ``Options``: a frozen dataclass of plain types (int, float, str, bool, ``Literal``), all with defaults;
    - ``build(options, *, channels, dims, size) -> Backbone`` with ``channels`` of the input, ``dims`` 2 or 3
      and ``size`` the spatial size of the input, ``(height, width)`` or ``(depth, height, width)``; it raises
      :class:`osler.problem.Problem` where the network cannot work on so small an image;
    - optionally ``from_foreign(state) -> state``: maps the names of a foreign state dict to its own,
      and ``FOREIGN``: what that file is, its licence and its source.

    Attributes:
        features: channels of the feature map.
        neck: the network's own way from its feature map to a vector (flatten and dense layers, as in
            AlexNet), ending *before* the last linear layer, or ``None``: then a pooling does it.
        neck_features: length of that vector, 0 without a neck.
    """

    features: int
    neck: nn.Module | None
    neck_features: int

    def __init__(self) -> None:
        super().__init__()
        # Not class attributes: a ``None`` on the class would hide the module that is set on the instance.
        self.neck = None
        self.neck_features = 0

    @abstractmethod
    def forward(self, x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b k *smaller"]:
        """The feature map."""

    def levels(self, x: Float[Tensor, "b c *size"]) -> list[Float[Tensor, "b k *smaller"]]:
        """Feature maps from fine to coarse, the last of them what :meth:`forward` returns; for tasks that ask where.

        Raises:
            Problem: this network has none.
        """
        raise Problem(
            f"{type(self).__name__} cannot say where something is", fix="set backbone=unet or another with levels"
        )


def convolution(dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """The convolution layer along 2 or 3 spatial axes."""
    return nn.Conv2d if dims == 2 else nn.Conv3d


def max_pool(dims: int) -> type[nn.MaxPool2d] | type[nn.MaxPool3d]:
    """The max-pooling layer along 2 or 3 spatial axes."""
    return nn.MaxPool2d if dims == 2 else nn.MaxPool3d


def average_pool_to(dims: int) -> type[nn.AdaptiveAvgPool2d] | type[nn.AdaptiveAvgPool3d]:
    """The layer that averages a map of any size down to a grid of fixed size."""
    return nn.AdaptiveAvgPool2d if dims == 2 else nn.AdaptiveAvgPool3d


def batch_norm(dims: int) -> type[nn.BatchNorm2d] | type[nn.BatchNorm3d]:
    """The batch normalisation layer along 2 or 3 spatial axes."""
    return nn.BatchNorm2d if dims == 2 else nn.BatchNorm3d


def instance_norm(dims: int) -> type[nn.InstanceNorm2d] | type[nn.InstanceNorm3d]:
    """The layer that normalises each channel of each image by itself, along 2 or 3 spatial axes."""
    return nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d


@dataclass(frozen=True)
class Stage:
    """How one stage of an encoder looks around and how much it shrinks its map, along each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]


def stages_of(size: tuple[int, ...], aspects: tuple[float, ...], depth: int = 0) -> list[Stage]:
    """Kernels and strides of the stages of a U-Net, by the rules of nnU-Net (Isensee et al., 2021, supplement 3).

    A stage halves an axis that keeps 4 places, unless its pixels are twice as long as those of another such axis. It
    looks along an axis (3 places) once its pixels are less than twice as long as the shortest, and there are 3 places
    to look at.

    Args:
        size: of the input.
        aspects: length of a pixel along each axis, in any unit.
        depth: how many stages; 0: as many as halve something.
    """
    places, lengths = list(size), list(aspects)
    stages: list[Stage] = []
    while True:
        free = [n >= 8 for n in places]
        if not any(free) and depth and stages:
            # More stages were asked for than 4 places allow: then down to 2.
            free = [n >= 4 for n in places]
        if not any(free) and not depth and stages:
            break
        shortest = min((length for length, can in zip(lengths, free, strict=True) if can), default=0.0)
        halved = [bool(stages) and can and length < 2 * shortest for length, can in zip(lengths, free, strict=True)]
        places = [(n + 1) // 2 if half else n for n, half in zip(places, halved, strict=True)]
        lengths = [length * 2 if half else length for length, half in zip(lengths, halved, strict=True)]
        alike = [length < 2 * min(lengths) for length in lengths]
        kernel = tuple(3 if near and n >= 3 else 1 for n, near in zip(places, alike, strict=True))
        if stages:
            # What looked along an axis once goes on to.
            kernel = tuple(
                3 if n >= 3 and before == 3 else k
                for k, n, before in zip(kernel, places, stages[-1].kernel, strict=True)
            )
        stages.append(Stage(kernel, tuple(2 if half else 1 for half in halved)))
        if len(stages) == depth:
            break
    return stages


def initialise(module: nn.Module) -> None:
    """Draws the weights of every convolution and dense layer for ReLU networks, sets every bias to 0.

    Normal with variance 2 / fan-in (He et al., 2015, eq. 10), so that the signal keeps its scale on the way
    forward, also without normalisation and in depthwise layers.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def require_size(name: str, size: tuple[int, ...], least: int) -> None:
    """Checks that an image is large enough for a network.

    Raises:
        Problem: an axis has fewer than ``least`` pixels.
    """
    if min(size) < least:
        raise Problem(
            f"the backbone {name} needs at least {least} pixels along each axis; the images have "
            + " x ".join(map(str, size)),
            fix=f"set a size of at least {least} or choose another backbone",
        )
