"""A training whose backbone stays as it is: the features of each moment are computed once and kept on the disk.

They are those of the images as they are: nothing is turned or brightened, which would need the backbone again. What
is changed at random is time alone: some moments of a sequence are left out.
"""

import contextlib
import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from osler import cache, draws, recipe, store
from osler.checkpoints import State
from osler.cohort import Training, Validation
from osler.fitting import Course, Examples, descend, judge, loop, loss_of, persons, seed_of, start
from osler.model import Network
from osler.problem import Problem
from osler.recipe import Recipe

# Share of the moments that a sequence is trained without, others each time.
_LEFT_OUT = 0.1
# Pixels at once: of loops as many as of still images.
_TOGETHER = 2**22


def require(plan: Recipe) -> None:
    """What is asked can be learned from features that stay, if they are to stay.

    Raises:
        Problem: the backbone has learned nothing, or a task asks where something is.
    """
    if not plan.training.freeze:
        return
    if not plan.network.weights:
        raise Problem("training.freeze keeps a backbone that has learned nothing", fix="set network.weights")
    if plan.dense:
        raise Problem(
            "training.freeze keeps features of whole images, and a task asks where something is",
            fix="set training.backbone_rate=0 instead",
        )


def fit(training: Examples, validation: Examples, plan: Recipe, course: Course) -> Network:
    """Trains what comes after the backbone; goes on from its checkpoint where there is one.

    Args:
        training: weights, normalisation and class weights are fitted on these.
        validation: watched after each epoch; may be empty.
        plan: the recipe.
        course: number of the network, where it is kept, and who hears of it.

    Raises:
        Problem: the pooling learns, and nothing would teach it.
    """
    if not isinstance(training.part, Training) or not isinstance(validation.part, Validation):
        raise TypeError("a network is fitted on Training and watched on Validation, nothing else")
    state = start(training, plan, course.member)
    network = state.network
    if plan.network.pooling != "neck" and any(True for _ in network.pooling.parameters()):
        raise Problem(
            f"training.freeze keeps features as they are, and the pooling {plan.network.pooling} has to learn",
            fix="set network.pooling=average or max",
        )
    course.say("computing features once: the backbone is frozen")
    moments, watched = features(network, training.pixels, plan), features(network, validation.pixels, plan)
    spare = Network(plan).to(next(network.parameters()).device)
    loop(
        state,
        plan,
        len(training),
        lambda rows, steps: _step(state, (moments, training), rows, plan, course.member, steps),
        lambda: _watch(state, spare, (watched, validation), plan),
        course,
    )
    network.load_state_dict(state.best if state.best else state.average)
    return network.eval().cpu()


@torch.inference_mode()
def features(network: Network, pixels: store.Images, plan: Recipe) -> NDArray[np.float32]:
    """The features of each moment ``(n, t, v)`` of unmoved images, from the cache if they were computed before.

    There they lie under a name made of the pixels and of everything that makes features of them.
    """
    network.eval()
    width, shape = network.features, (len(pixels), plan.image.stacked)
    name = _name(network, pixels, plan)
    there = cache.find(name)
    # Another process may take it away at any moment: then it is computed again.
    with contextlib.suppress(OSError):
        if there is not None and there.stat().st_size == 4 * shape[0] * shape[1] * width:
            return np.asarray(np.memmap(there, np.float32, "r", shape=(*shape, width)))
    device = next(network.parameters()).device
    found = np.empty((*shape, width), np.float32)
    some = max(1, min(256, _TOGETHER // max(1, int(np.prod(pixels.shape[1:])))))
    for first in range(0, len(pixels), some):
        x = network.normalise(torch.from_numpy(pixels[first : first + some]).to(device))
        found[first : first + some] = network.seen(x).cpu().numpy()
    if found.size:
        cache.store(name, memoryview(found.data).cast("B"))
        cache.settle()
    return found


def _name(network: Network, pixels: store.Images, plan: Recipe) -> str:
    digest = hashlib.sha256(b"features|1|")
    image, chosen = recipe.to_dict(plan)["image"], plan.network
    told = (image, chosen.backbone, sorted(chosen.options.items()), chosen.pooling)
    digest.update(repr(told).encode())
    for part in (network.normalise, *(part for look in network.looks() for part in look[:2])):
        for key, value in part.state_dict().items():
            digest.update(f"{key}{tuple(value.shape)}".encode() + value.cpu().contiguous().numpy().tobytes())
    for first in range(0, len(pixels), 64):
        digest.update(np.ascontiguousarray(pixels[first : first + 64]).data)
    return digest.hexdigest()[:40]


def left_out(times: NDArray[np.float32], keys: NDArray[np.uint64]) -> Float[Tensor, "b t"]:
    """The times of sequences ``(b, t)`` without about a tenth of their moments; at least one is left in each."""
    chance = draws.uniform(keys, "moments", times.shape[1:])
    there = ~np.isnan(times)
    # The one with the highest number stays, whatever it is.
    first = np.where(there, chance, -1).argmax(1)
    stays = there & ((chance >= _LEFT_OUT) | (np.arange(times.shape[1]) == first[:, None]))
    return torch.from_numpy(np.where(stays, times, np.float32(np.nan)))


def _step(
    state: State,
    given: tuple[NDArray[np.float32], Examples],
    rows: NDArray[np.intp],
    plan: Recipe,
    member: int,
    steps: int,
) -> float:
    """One batch of features forward and back."""
    (moments, training), network, seed = given, state.network, plan.training.seed
    device = next(network.parameters()).device
    torch.manual_seed(seed_of(seed, member, 2, state.epoch * steps + state.step))
    network.train()
    times = np.zeros(moments.shape[:2], np.float32) + np.inf if training.times is None else training.times
    when = left_out(times[rows], draws.keys(seed, member, 3, state.epoch, rows))
    person = persons(training, rows, draws.keys(seed, member, 8, state.epoch, rows), plan, device)
    said = network.along(torch.from_numpy(moments[rows]).to(device), when, person)
    targets = {name: torch.from_numpy(values[rows]).to(device) for name, values in training.targets.items()}
    loss = loss_of(network, said, person, targets, plan, draws.keys(seed, member, 9, state.epoch, rows))
    return descend(state, loss, plan, steps)


@torch.no_grad()
def _watch(
    state: State, spare: Network, given: tuple[NDArray[np.float32], Examples], plan: Recipe
) -> dict[str, float]:
    """Loss and AUROC of the averaged weights on the validation part."""
    moments, validation = given
    if not len(validation):
        return {}
    spare.load_state_dict(state.average)
    times = None if validation.times is None else torch.from_numpy(validation.times)
    device = next(spare.parameters()).device
    known = None if validation.covariates is None else torch.from_numpy(validation.covariates).to(device)
    answers = spare.eval().along(torch.from_numpy(np.array(moments)).to(device), times, known).answers
    return judge(state, spare, _in_own_unit(spare, answers), validation.targets, plan)


def _in_own_unit(network: Network, answers: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """As :func:`osler.asking.outputs` gives them."""
    found = {}
    for name, values in answers.items():
        found[name] = values.double().cpu().numpy()
        if network.tasks[name].question.kind == "regression":
            centre, spread = network.scale(name).double().cpu().numpy()
            found[name] = found[name] * spread + centre
    return found
