"""What the image and each covariate of a case add to an answer: shares that sum to the change in its log-odds.

The change is that from an answer that knows nothing, neither image nor person, to the one that was given. It is
shared out by Shapley's values (Shapley, 1953; Lundberg and Lee, 2017, arXiv:1705.07874): what a source adds on
average, over all orders in which the sources may become known. A source that is not known is the vector that the
network learned for that, so nothing is drawn from other cases. With up to ``MOST_PLAYERS`` sources every set of them
is asked; with more, integrated gradients share out the same change (Sundararajan, Taly and Yan, 2017,
arXiv:1703.01365), along the straight way from what stands for nothing to what is known.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from osler import asking
from osler.calibration import Calibrated
from osler.case import Answer, Share, Shares
from osler.explanations import log_odds
from osler.model import Model, Network

MOST_PLAYERS = 10
_STEPS = 64  # of integrated gradients, Gauss-Legendre
Fitted = tuple[Calibrated, NDArray[np.floating[Any]]]
Method = Literal["auto", "shapley", "integrated_gradients"]


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of a case.

    Attributes:
        pixels: ``(t, c, d, h, w)``, prepared; ``times``: ``(t,)``, see :func:`osler.data.timeline`.
        row: the covariates ``(k,)`` of :func:`osler.covariates.encode`.
    """

    pixels: NDArray[np.float32]
    times: NDArray[np.float32]
    row: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Looked:
    """What one network makes of the image and of its moved copies.

    Attributes:
        network: itself.
        views: feature vectors.
        placed: of linked tasks, the outputs by what lies at places alone, by task.
    """

    network: Network
    views: Float[Tensor, "views v"]
    placed: Mapping[str, Float[Tensor, "views o"]]


def of_answers(
    made: Model,
    known: Known,
    answers: Mapping[str, Answer],
    fitted: Mapping[str, Fitted],
    networks: Sequence[Network] | None = None,
) -> tuple[Shares, ...]:
    """The shares of the likeliest class of each task; see :func:`of_answer`."""
    found = []
    looked = _looked(made, known, networks)
    for name, task in made.tasks.items():
        findings = answers[name].findings
        number = max(range(len(findings)), key=lambda k: findings[k].probability or 0.0)
        found.append(_shared(made, looked, known, (name, number), fitted[name]))
        assert task.question.classes[number] == findings[number].name
    return tuple(found)


def of_answer(made: Model, known: Known, target: tuple[str, int], fitted: Fitted, method: Method = "auto") -> Shares:
    """What each source adds to the evidence for one class.

    Args:
        made: a model with covariates.
        known: of one case.
        target: task, and number of the class.
        fitted: calibration of the task, and how much each answer counts (``calibration.mixing``).
        method: ``auto``: Shapley's values where they are few enough.
    """
    return _shared(made, _looked(made, known, None), known, target, fitted, method)


@torch.no_grad()
def _looked(made: Model, known: Known, networks: Sequence[Network] | None) -> list[_Looked]:
    """What each network sees in the image."""
    views = asking.moved_copies(made.recipe.inference.views)
    found = []
    for network in made.networks:
        if networks is not None and not any(network is each for each in networks):
            continue
        network.eval()
        x = network.normalise(torch.from_numpy(known.pixels[None]).to(next(network.parameters()).device))
        times = torch.from_numpy(known.times[None])
        seen = [network.say(view(x), times) for view in views]
        placed = {n: torch.cat([s.opinions[1][n] for s in seen]) for n in network.tasks if seen[0].opinions[1:]}
        found.append(_Looked(network, torch.cat([s.whole for s in seen if s.whole is not None]), placed))
    return found


def _shared(
    made: Model,
    looked: Sequence[_Looked],
    known: Known,
    target: tuple[str, int],
    fitted: Fitted,
    method: Method = "auto",
) -> Shares:
    row, plan = known.row, made.recipe.covariates
    columns = plan.columns
    players = [-1, *(i for i in range(len(columns)) if np.isfinite(row[i]))]
    exact = len(players) <= MOST_PLAYERS if method == "auto" else method == "shapley"
    told = _Told(looked, row, made.tasks[target[0]].question, target, fitted)
    if exact:
        there = (np.arange(2 ** len(players))[:, None] >> np.arange(len(players))) & 1 == 1
        values = told.of(_sources(there, players, len(columns)))
        added = shapley(values)
        nothing, everything = float(values[0]), float(values[-1])
    else:
        nothing, everything = told.of(np.array([[False] * (1 + len(columns)), [True] * (1 + len(columns))])).tolist()
        every = told.along(_STEPS)
        added = every[[1 + player for player in players]]
    share = {player: float(value) for player, value in zip(players, added, strict=True)}
    shares = [Share("image", None, share[-1])]
    for number, name in enumerate(columns):
        value: float | str | None = None
        if number in share:
            value = float(row[number]) if plan.kinds[name] == "number" else plan.categories[name][int(row[number])]
        shares.append(Share(name, value, share.get(number, 0.0)))
    question = made.tasks[target[0]].question
    how = "shapley" if exact else "integrated_gradients"
    unit = (question.unit or "the unit of the quantity") if question.kind == "regression" else "log-odds"
    return Shares(target[0], question.classes[target[1]], nothing, everything, tuple(shares), how, unit)


def _sources(
    there: Bool[NDArray[np.bool_], "n p"], players: Sequence[int], columns: int
) -> Bool[NDArray[np.bool_], "n s"]:
    """Sets of players as sets of sources: the image, and every column."""
    found = np.zeros((len(there), 1 + columns), bool)
    found[:, [1 + player for player in players]] = there
    return found


def shapley(values: Float[NDArray[np.float64], " n"]) -> Float[NDArray[np.float64], " p"]:
    """Shapley's values of a game of ``p`` players.

    Args:
        values: of every set of players, ``2 ** p``; bit ``i`` of the number of a set says whether player ``i`` is in.
    """
    count = len(values).bit_length() - 1
    sets = np.arange(len(values))
    size = np.array([int(number).bit_count() for number in sets])
    weight = np.array([1 / (count * comb(count - 1, n)) for n in range(count)])
    added = []
    for player in range(count):
        without = sets[(sets >> player) & 1 == 0]
        added.append((weight[size[without]] * (values[without | 1 << player] - values[without])).sum())
    return np.array(added)


class _Told:
    """The log-odds (or value) that follow from some of what is known, as they are answered: calibrated, of all."""

    def __init__(
        self,
        looked: Sequence[_Looked],
        row: NDArray[np.float32],
        question: Any,
        target: tuple[str, int],
        fitted: Fitted,
    ) -> None:
        self.question, self.task, self.number = question, *target
        self.fitted, self.weights = fitted
        self.parts: list[tuple[Any, tuple[Tensor, Tensor | None], Tensor, Tensor, Tensor]] = []
        for one in looked:
            network, views, placed = one.network, one.views.double(), one.placed.get(self.task)
            # In double precision, so that shares sum to what they share.
            assert network.persons is not None and network.fusion is not None
            persons: Any = copy.deepcopy(network.persons).double()
            fusion: Any = copy.deepcopy(network.fusion).double()
            head = copy.deepcopy(network.heads[list(network.tasks).index(self.task)]).double()
            scale = network.scale(self.task).double()
            given = persons.each(torch.from_numpy(row[None]).double().to(views.device))[0].detach()
            absent = fusion.absent[0].detach()
            nothing = persons.missing.detach()
            seen = views, None if placed is None else placed.double()
            self.parts.append(((fusion, head, scale), seen, absent, given, nothing))

    def of(self, there: Bool[NDArray[np.bool_], "n s"]) -> Float[NDArray[np.float64], " n"]:
        """When these sources are known: the image, and each column."""
        with torch.no_grad():
            return np.asarray(self._values(torch.from_numpy(there.astype(np.float64))).cpu().numpy())

    def along(self, steps: int) -> Float[NDArray[np.float64], " s"]:
        """What each source adds along the straight way from nothing to all that is known."""
        points, weights = np.polynomial.legendre.leggauss(steps)
        total = torch.zeros(1 + len(self.parts[0][3]), dtype=torch.float64)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            # One share a source: what is reached of it. The gradient by it is that along its own way.
            reached = torch.full((1, len(total)), float(point), dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(self._values(reached).sum(), reached)
            total += float(weight) * gradient[0]
        return total.numpy()

    def _values(self, reached: Float[Tensor, "n s"]) -> Float[Tensor, " n"]:
        outputs = []
        for (fusion, head, scale), (views, placed), absent, given, nothing in self.parts:
            every = torch.ones(len(reached), 2, dtype=torch.bool, device=views.device)
            mean = torch.zeros((), dtype=torch.float64, device=views.device)
            for weight, sees in zip(self.weights, ((True, True), (True, False), (False, True)), strict=True):
                # By both, by the image alone, by the covariates alone: what is not looked at stays nothing.
                seen = torch.tensor([sees[0], *[sees[1]] * len(given)], dtype=torch.float64)
                share = (reached * seen).to(views.device)
                person = (nothing + share[:, 1:, None] * (given - nothing)).flatten(1)
                images = [absent + share[:, :1] * (view - absent) for view in views]
                said = torch.stack([head(fusion({"image": i, "covariates": person}, every)) for i in images]).mean(0)
                if placed is not None:
                    # As far as the image is known, half of the answer is by what lies at its places.
                    said = said + share[:, :1] / 2 * (placed.mean(0) - said)
                mean = mean + float(weight) * said
            if self.question.kind == "regression":
                # The weights sum to 1.
                mean = mean * scale[1] + scale[0]
            outputs.append(mean.cpu())
        temperature, bias = (torch.from_numpy(np.asarray(v, np.float64)) for v in
                             (self.fitted.temperature, self.fitted.bias))  # fmt: skip
        scaled = torch.stack(outputs).mean(0) / temperature + bias
        found: Tensor = log_odds(scaled, self.question, self.number)
        return found


def described(found: Shares) -> str:
    """The shares in words, the largest first."""
    ordered = sorted(found.shares, key=lambda one: -abs(one.share))
    parts = [f"{_named(one)} {one.share:+z.2f}" for one in ordered if one.source == "image" or one.value is not None]
    way = f"from {found.nothing:+z.2f} (nothing known) to {found.all:+z.2f}"
    return f"{found.task}: the evidence for {found.name} goes {way} ({found.unit}): {', '.join(parts)}."


def _named(one: Share) -> str:
    if one.value is None:
        return one.source
    return f"{one.source} {one.value if isinstance(one.value, str) else format(one.value, 'g')}"
