"""What a normalised image looks like at a glance, for the novelty gate: a coarse copy, brightness and sharpness."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def thumbnail(x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b p"]:
    """A coarse copy of the normalised image: at most 4 x 16 x 16, moments averaged."""
    mean = x.mean(1)
    depth, height, width = mean.shape[2:]
    size = (min(depth, 4), min(height, 16), min(width, 16))
    return nn.functional.adaptive_avg_pool3d(mean, size).flatten(1)


def appearance(x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b 14"]:
    """Exposure, contrast and sharpness of the normalised image.

    Seven quantiles, the logarithm of the standard deviation, and, at full and at half resolution, that of the mean
    absolute difference between neighbours down and across, and of the mean absolute Laplacian, each over the
    deviation.
    """
    planes = x.mean((1, 2))
    values = planes.flatten(1)
    # torch.quantile refuses long inputs; every n-th pixel is enough for an image's exposure.
    sample = values[:, :: max(1, values.shape[1] // 16_384)]
    levels = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98], device=x.device)
    deviation = values.std(1, correction=0).clamp(min=1e-3)
    columns = [*torch.quantile(sample, levels, dim=1), deviation.log()]
    for step in (1, 2):
        smooth = nn.functional.avg_pool3d(planes.unsqueeze(1), (1, step, step), ceil_mode=True)[:, 0]
        across, down = smooth.diff(dim=3), smooth.diff(dim=2)
        sharp = planes[..., ::step, ::step]
        inner = (4 * sharp)[..., 1:-1, 1:-1] - sharp[..., 2:, 1:-1] - sharp[..., :-2, 1:-1]
        laplacian = inner - sharp[..., 1:-1, 2:] - sharp[..., 1:-1, :-2]
        for change in (down, across, laplacian):
            mean = change.abs().flatten(1).mean(1) if change.numel() else torch.zeros_like(deviation)
            columns.append((mean / deviation + 1e-3).log())
    return torch.stack(columns, 1)
