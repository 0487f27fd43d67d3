"""Why: maps of what an answer rests on, one method a file, each tested like the others.

Every file holds

- ``Options``: a frozen dataclass of plain types, all with defaults;
- ``available(target) -> bool``: whether the method makes sense for what is to be explained;
- ``explain(target, x, options) -> map``: for *one* normalised input ``(1, t, c, d, h, w)`` a map ``(d, h, w)`` on the
  network's own grid. Large is important *for* the target; moments are averaged. Maps are not negative, except where
  the file says so.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from osler.case import Question


@runtime_checkable
class Target(Protocol):
    """One number that one network answers: a class of an image, or a finding at its place (``osler.targets``).

    Attributes:
        dims: 2: slices are folded into the batch; 3: the network looks at the volume.
        pooling: what makes one vector of the maps; ``None`` where the number does not come from such a vector.
    """

    @property
    def dims(self) -> int: ...

    @property
    def pooling(self) -> nn.Module | None: ...

    def levels(self, x: Tensor) -> list[Tensor]:
        """Feature maps of ``(b, t, c, d, h, w)``: ``(b * t * d, k, h', w')`` or ``(b * t, k, d', h', w')`` each."""
        ...

    def score(self, levels: Sequence[Tensor], cases: int) -> Tensor:
        """The log-odds (of a regression the value) ``(b,)`` that follow from feature maps of ``cases`` inputs."""
        ...


def log_odds(outputs: Float[Tensor, "b o"], question: Question, target: int) -> Float[Tensor, " b"]:
    """The score that is explained: log p / (1 - p) of the class ``target``; of a regression the value itself.

    Of two exclusive classes it is the difference of their outputs. Unlike the probability it does not saturate,
    and unlike the output alone it does not change when something is added to all outputs of a softmax.
    """
    match question.kind:
        case "multiclass":
            others = torch.cat([outputs[:, :target], outputs[:, target + 1 :]], 1)
            return outputs[:, target] - others.logsumexp(1)
        case "ordinal":
            return _log_odds_between(outputs, target)
        case _:
            return outputs[:, target]


def _log_odds_between(above: Float[Tensor, "b o"], rank: int) -> Float[Tensor, " b"]:
    """Log-odds of ``class == rank`` from the logits of ``class > j``, which fall with j."""
    if rank == 0:
        return -above[:, 0]
    if rank == above.shape[1]:
        return above[:, -1]
    low, high = above[:, rank - 1], above[:, rank]
    # With s the sigmoid, s(low) - s(high) = s(low) s(-high) (1 - exp(high - low)), which keeps small numbers.
    gap = (low - high).clamp(min=1e-6)
    inside = functional.logsigmoid(low) + functional.logsigmoid(-high) + torch.log(-torch.expm1(-gap))
    outside = torch.logaddexp(functional.logsigmoid(-low), functional.logsigmoid(high))
    return inside - outside


def score(target: Target, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, " b"]:
    """The number that is explained, of normalised inputs."""
    return target.score(target.levels(x), len(x))


def removed(x: Float[Tensor, "1 t c d h w"], kept: Iterable[Tensor]) -> Iterator[Float[Tensor, "b t c d h w"]]:
    """``x`` where ``kept``, each ``(d, h, w)``, is 1, and filled in where it is 0; a few of them at a time.

    A place is filled in from what is kept around it: with the mean weighted by a narrow Gaussian (normalised
    convolution; Knutsson and Westin, 1993), further inside by a wide one. So no edge appears that a network could
    take for a finding, and what was there leaves no shadow, as it would in a blurred image. Where nothing is kept
    at all, ``blurred(x, 0.25)`` is left.
    """
    size, rest, plain = max(1, min(32, 2**21 // x.numel())), iter(kept), blurred(x, 0.25)
    while part := list(islice(rest, size)):
        share = torch.stack(part)[:, None, None]
        known = x * share
        # Each wider Gaussian counts so little that it shows only where the narrower ones reach nothing.
        total, weight = 1e-9 * plain, torch.full_like(share, 1e-9)
        for importance, width in ((1.0, 0.03), (1e-3, 0.09), (1e-6, 0.27)):
            total = total + importance * blurred(known, width)
            weight = weight + importance * blurred(share, width)
        yield known + (1 - share) * total / weight


def on_the_grid(
    folded: Float[Tensor, " bf *smaller"], x: Float[Tensor, "1 t c d h w"], dims: int
) -> Float[Tensor, "d h w"]:
    """A value at each place of the feature maps of one input, brought to the input's grid.

    Slices are unfolded, moments averaged, and the map enlarged linearly (edges stay edges).
    """
    small = folded.reshape(-1, x.shape[3], *folded.shape[1:]) if dims == 2 else folded
    mean = small.mean(0)[None, None]
    return functional.interpolate(mean, size=x.shape[3:], mode="trilinear", align_corners=False)[0, 0]


def blurred(x: Float[Tensor, "*batch d h w"], share: float = 0.125) -> Float[Tensor, "*batch d h w"]:
    """Smoothed along each spatial axis with a Gaussian of ``sigma = share`` times its length.

    What lies outside is left out of the mean, so that a constant image stays as it is.
    """
    return _along_axes(x, lambda gauss: gauss / gauss.sum(1, keepdim=True), share)


def spread_out(x: Float[Tensor, "*batch d h w"], share: float) -> Float[Tensor, "*batch d h w"]:
    """Each value given to its neighbours by a Gaussian of ``sigma = share`` times the axis: the sum stays."""
    return _along_axes(x, lambda gauss: gauss / gauss.sum(0, keepdim=True), share)


def _along_axes(x: Tensor, normalise: Callable[[Tensor], Tensor], share: float) -> Tensor:
    for axis in (-3, -2, -1):
        length = x.shape[axis]
        if length > 1 and share > 0:
            place = torch.arange(length, device=x.device, dtype=x.dtype)
            away = (place[:, None] - place).abs() / (share * length)
            gauss = torch.exp(-0.5 * away**2) * (away <= 5)
            x = (x.movedim(axis, -1) @ normalise(gauss).T).movedim(-1, axis)
    return x
