"""The first layer of every network: intensities on one scale, each modality by its own numbers."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from osler import store, subsets

# Not infinity: the average of the weights would turn it into NaN.
_LARGEST = torch.finfo(torch.float32).max


class Normalise(nn.Module):
    """Intensities to about mean 0, standard deviation 1: the first layer, fitted on training cases only.

    Attributes:
        low, high, mean, std: of each channel of each modality, ``(modalities * channels,)``.
    """

    low: Tensor
    high: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, intensity: Literal["cohort", "image", "window"], channels: int, modalities: int = 1) -> None:
        super().__init__()
        self.intensity = intensity
        self.modalities = modalities
        for name, value in (("low", -_LARGEST), ("high", _LARGEST), ("mean", 0.0), ("std", 1.0)):
            self.register_buffer(name, torch.full((modalities * channels,), value))

    def fit(self, pixels: store.Images, times: NDArray[np.float32] | None = None) -> None:
        """Learns percentiles, mean and standard deviation from ``(n, t, c, d, h, w)`` of the training part.

        Args:
            pixels: see above; of several modalities the moments of one after the other; NaN does not count.
            times: of :func:`osler.data.timeline`, which says what is missing: it does not count.
        """
        frames, channels = pixels.shape[1] // self.modalities, pixels.shape[2]
        for s in range(self.modalities):
            rows = np.arange(len(pixels))
            if times is not None and self.modalities > 1:
                rows = np.flatnonzero(subsets.there(times, self.modalities)[:, s])
            if not len(rows):
                continue
            sample = pixels[rows[:: max(1, len(rows) // 500)]][:, s * frames : (s + 1) * frames]
            for c in range(channels):
                values, place = sample[:, :, c].astype(np.float64), s * channels + c
                values = values[np.isfinite(values)]
                if not len(values):
                    continue
                if self.intensity == "window":
                    low, high = np.percentile(values, [0.5, 99.5])
                    self.low[place], self.high[place] = float(low), float(max(high, low + 1e-6))
                    values = values.clip(low, high)
                self.mean[place], self.std[place] = float(values.mean()), float(values.std() or 1.0)

    def forward(self, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b t c d h w"]:
        """The normalised batch."""
        each = x.reshape(len(x), self.modalities, -1, *x.shape[2:])
        if self.intensity == "image":
            mean = each.mean((2, 3, 4, 5, 6), keepdim=True)
            std = each.std((2, 3, 4, 5, 6), keepdim=True, correction=0)
            return ((each - mean) / torch.where(std > 0, std, torch.ones_like(std))).reshape(x.shape)
        shape = (1, self.modalities, 1, -1, 1, 1, 1)
        if self.intensity == "window":
            each = torch.minimum(torch.maximum(each, self.low.view(shape)), self.high.view(shape))
        return (each - self.mean.view(shape)).div_(self.std.view(shape)).reshape(x.shape)
