"""Where it is: dense networks are fitted on windows of images, and asked about whole ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from osler import draws, patches
from osler.cohort import Training, Validation
from osler.fitting import Course, Examples, Say, State, descend, loop, seed_of, start, statistics_of_taken_steps
from osler.model import Network
from osler.recipe import Recipe
from osler.volumes import Volume

# Windows that are watched after each epoch, and those that the normalisation is fitted on.
WATCHED = 24
NORMALISED = 400


def fit(
    training: tuple[Training, Sequence[Volume]],
    validation: tuple[Validation, Sequence[Volume]],
    plan: Recipe,
    course: Course,
) -> Network:
    """Trains one network on windows; goes on from its checkpoint where there is one.

    Args:
        training: weights and normalisation are fitted on these.
        validation: watched after each epoch; may be empty.
        plan: the recipe.
        course: number of the network, where it is kept, and who hears of it.
    """
    if not isinstance(training[0], Training) or not isinstance(validation[0], Validation):
        raise TypeError("a network is fitted on Training and watched on Validation, nothing else")
    volumes = training[1]
    many = [i % len(volumes) for i in range(min(NORMALISED, 4 * len(volumes)))]
    windows, _ = patches.batch(
        [volumes[i] for i in many], draws.keys(plan.training.seed, 8, np.arange(len(many))), plan
    )
    state = start(Examples(training[0], windows.numpy(), {}), plan, course.member)
    loop(
        state,
        plan,
        len(volumes) * plan.patches.per_case,
        lambda rows, steps: _step(state, volumes, rows, plan, course.member, steps),
        lambda: _watch(state, validation[1], plan),
        course,
    )
    state.network.load_state_dict(state.average)
    return state.network.eval().cpu()


def _step(
    state: State, volumes: Sequence[Volume], rows: NDArray[np.intp], plan: Recipe, member: int, steps: int
) -> float:
    """One batch of windows forward and back."""
    network, chosen = state.network, plan.training
    device = next(network.parameters()).device
    torch.manual_seed(seed_of(chosen.seed, member, 2, state.epoch * steps + state.step))
    network.train()
    keys = draws.keys(chosen.seed, member, 3, state.epoch, rows)
    x, targets = patches.batch([volumes[row // plan.patches.per_case] for row in rows], keys, plan)
    x, targets = patches.augmented(network.normalise_patches(x.to(device)), targets, keys, plan)
    with statistics_of_taken_steps(state):
        with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bfloat16"):
            outputs, _ = network.locate(x)
        loss = torch.zeros((), device=device)
        for name, task in network.dense.items():
            loss = loss + task.loss(outputs[name], targets[name])
        return descend(state, loss, plan, steps)


@torch.no_grad()
def _watch(state: State, volumes: Sequence[Volume], plan: Recipe) -> dict[str, float]:
    """Loss of the averaged weights on the same few windows of the validation part each time."""
    if not volumes:
        return {}
    network = Network(plan)
    network.load_state_dict(state.average)
    network.channels_last = plan.training.channels_last
    device = next(state.network.parameters()).device
    network.to(device).eval()
    many = np.linspace(0, len(volumes) - 1, min(WATCHED, len(volumes))).astype(int)
    row: dict[str, float] = {}
    for part in np.array_split(many, max(1, len(many) // max(1, plan.training.batch))):
        keys = draws.keys(plan.training.seed, 9, part)
        x, targets = patches.batch([volumes[i] for i in part], keys, plan)
        outputs, _ = network.locate(network.normalise_patches(x.to(device)))
        for name, task in network.dense.items():
            value = float(task.loss(outputs[name], targets[name])) * len(part) / len(many)
            row[f"{name}.loss"] = row.get(f"{name}.loss", 0.0) + value
    return row


def fit_all(
    pairs: Sequence[tuple[Training, Validation, object]],
    volumes_of: dict[str, list[Volume]],
    plan: Recipe,
    out: Path,
    say: Say,
    began: float,
) -> list[Network]:
    """A network for each pair of parts; ``volumes_of`` holds the moments of each case by its id."""
    networks = []
    for number, (training, validation, _) in enumerate(pairs):
        seen = [v for entry in training.entries for v in volumes_of.get(entry.id, [])]
        watched = [v for entry in validation.entries for v in volumes_of.get(entry.id, [])]
        course = Course(out, number, len(pairs), say, began)
        networks.append(fit((training, seen), (validation, watched), plan, course))
    return networks
