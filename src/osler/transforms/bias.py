"""A smooth multiplicative field, as from the receive coil in MRI or from uneven exposure."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray
from torch import Tensor

from osler.draws import normal, uniform


@dataclass(frozen=True)
class Options:
    """How uneven the field is.

    Attributes:
        probability: share of the images that get a field.
        strength: the largest absolute logarithm of an image's field is drawn uniformly from 0 to this.
        order: of the polynomial that the logarithm of the field is.
    """

    probability: float = 0.1
    strength: float = 0.3
    order: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError("bias: probability must lie between 0 and 1")
        if self.strength < 0 or self.order < 1:
            raise ValueError("bias: needs strength >= 0 and order >= 1")


def apply(
    images: Float32[Tensor, "b c d h w"], options: Options, key: NDArray[np.uint64]
) -> Float32[Tensor, "b c d h w"]:
    """Multiplies each chosen image by its own field; the image's minimum counts as no signal.

    The logarithm of the field is a polynomial of low order (Van Leemput et al., IEEE TMI 18(10), 1999).
    """
    rows = np.flatnonzero(uniform(key, "bias/apply") < options.probability)
    if not len(rows):
        return images
    key, chosen = key[rows], torch.from_numpy(rows).to(images.device)
    factor = torch.from_numpy(field(options, key, tuple(images.shape[2:]))).to(images)[:, None]
    low = images.amin((1, 2, 3, 4), keepdim=True)[chosen]
    result = images.clone()
    result[chosen] = (images[chosen] - low) * factor + low
    return result


def field(options: Options, key: NDArray[np.uint64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """The fields of some keys, ``(b, depth, height, width)``, between ``exp(-strength)`` and ``exp(strength)``."""
    bases = [legvander((np.arange(n) + 0.5) * 2 / n - 1, options.order if n > 1 else 0) for n in size]
    orders = np.indices([basis.shape[1] for basis in bases]).sum(0)
    weights = normal(key, "bias/weights", orders.shape) * ((orders > 0) & (orders <= options.order))
    exponent = np.einsum("bijk,di,hj,wk->bdhw", weights, *bases, optimize=True)
    peak = np.maximum(np.abs(exponent).max((1, 2, 3), keepdims=True), 1e-12)
    return np.asarray(np.exp(exponent / peak * uniform(key, "bias/strength", (1, 1, 1), 0.0, options.strength)))
