"""What a network says of many prepared cases, and what the novelty gate sees of them on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osler import draws, store, subsets
from osler.appearance import appearance, thumbnail
from osler.model import Network
from osler.transforms import spatial


def moved_copies(count: int) -> list[Callable[[Tensor], Tensor]]:
    """The identity and ``count - 1`` small fixed rotations, scalings and shifts of a normalised batch."""

    def moved(number: int) -> Callable[[Tensor], Tensor]:
        options = spatial.Options(
            probability=1, rotation=8, scale=0.1, stretch=0.03, shear=0.03, translation=0.04, elastic_probability=0
        )

        def view(x: Tensor) -> Tensor:
            flat = x.reshape(-1, *x.shape[2:])
            return spatial.apply(flat, options, np.repeat(draws.keys(number), len(flat))).reshape(x.shape)

        return view

    return [lambda x: x, *(moved(number) for number in range(1, count))]


@dataclass(frozen=True, eq=False)
class Outputs:
    """What one network says about ``n`` cases.

    Attributes:
        answers: raw outputs by task ``(n, o)``; a regression in its own unit.
        vectors: feature vectors ``(n, v)``; ``thumbnails`` ``(n, p)`` and ``appearances`` ``(n, 14)`` of the
            normalised images. All three are of the unmoved images, for the novelty gate; of several modalities those
            of one beside the other.
        torn: of linked tasks ``(n,)``: 1 where the two opinions (see ``linking.Said``) lead to different classes.
        shares: ``(n, t)`` of each moment in the answers (see ``linking.Said``), of the unmoved images; ``(n, 0)``
            where the network does not attend.
        alone: ``answers`` by every part of the sources (``Network.subsets``), where there is more than one.
    """

    answers: dict[str, NDArray[np.float64]]
    vectors: NDArray[np.float32]
    thumbnails: NDArray[np.float32]
    appearances: NDArray[np.float32]
    torn: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    shares: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    alone: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)


@torch.inference_mode()
def outputs(
    network: Network,
    pixels: store.Images,
    views: Sequence[Callable[[Tensor], Tensor]],
    batch: int = 32,
    times: NDArray[np.float32] | None = None,
    covariates: NDArray[np.float32] | None = None,
    features: NDArray[np.float32] | None = None,
) -> Outputs:
    """What one network says, averaged over ``views``, in float32.

    Args:
        network: is put into eval mode.
        pixels: ``(n, t, c, d, h, w)`` from :func:`osler.data.prepare`.
        views: functions from a normalised batch to a moved copy of it; the first is the identity.
        batch: cases at once, at most 256 moments; it does not change the answer beyond rounding.
        times: ``(n, t)``, see :func:`osler.data.timeline`; without them every moment counts.
        covariates: ``(n, k)`` as :func:`osler.covariates.encode` gives them; ``None``: nothing is known.
        features: ``(n, t, v)`` of the unmoved images, where they are known already (``osler.frozen``).
    """
    network.eval()
    device = next(network.parameters()).device
    # The name of a part of the sources and that of a task; the first is all that is known.
    answers: dict[tuple[str, str], list[NDArray[np.float64]]] = {
        (source, name): [] for source in network.subsets for name in network.tasks
    }
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    torn: dict[str, list[NDArray[np.float64]]] = {}
    shares: list[NDArray[np.float32]] = []
    batch = max(1, min(batch, 256 // pixels.shape[1]))
    for start in range(0, len(pixels), batch):
        x = network.normalise(torch.from_numpy(pixels[start : start + batch]).to(device))
        when = None if times is None else torch.from_numpy(times[start : start + batch])
        if when is not None and network.dense and network.normalise.modalities > 1:
            there = subsets.there(when.numpy(), network.normalise.modalities)
            x = x * torch.from_numpy(there).to(x)[(..., *[None] * 4)]
        person = None if covariates is None else torch.from_numpy(covariates[start : start + batch]).to(device)
        total: dict[tuple[str, str], Tensor] = {}
        for number, view in enumerate(views):
            if number or features is None:
                said = network.say(view(x), when, person)
            else:
                # A copy: what lies in the cache cannot be written to.
                moments = torch.from_numpy(np.array(features[start : start + batch])).to(device)
                said = network.along(moments, when, person)
            told = {"": said.answers} if said.whole is None else network.from_parts(said, person)
            for source, given in told.items():
                for name, value in given.items():
                    total[source, name] = value.double() + total.get((source, name), 0)
            if number == 0:
                parts = x.chunk(network.normalise.modalities, 1)
                looks = [torch.cat([of(part) for part in parts], 1).cpu() for of in (thumbnail, appearance)]
                # What looks at all modalities at once has one vector, and each of them is judged beside it.
                vector = said.vector.float().cpu().repeat(1, len(parts) // network.modalities)
                seen.append((vector, looks[0], looks[1]))
                attended = x.flatten(1)[:, :0] if said.shares is None else said.shares
                shares.append(attended.cpu().numpy())
                for name in _exclusive(network) if said.opinions[1:] else ():
                    first, second = (each[name].argmax(1) for each in said.opinions)
                    torn.setdefault(name, []).append((first != second).double().cpu().numpy())
        for (source, name), value in total.items():
            mean = (value / len(views)).cpu().numpy()
            if network.tasks[name].question.kind == "regression":
                centre, spread = network.scale(name).double().cpu().numpy()
                mean = mean * spread + centre
            answers[source, name].append(mean)
    joined = {
        source: {name: np.concatenate(answers[source, name]) for name in network.tasks} for source in network.subsets
    }
    vectors, thumbnails, appearances = (torch.cat(parts).numpy() for parts in zip(*seen, strict=True))
    differ = {name: np.concatenate(values) for name, values in torn.items()}
    return Outputs(joined.pop(""), vectors, thumbnails, appearances, differ, np.concatenate(shares), joined)


def _exclusive(network: Network) -> list[str]:
    return [name for name, task in network.tasks.items() if task.question.kind == "multiclass"]
