"""Where it is: dense networks are fitted on windows of images, and asked about whole ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osler import boxes, draws, patches, sliding
from osler.boxes import Boxes
from osler.cohort import Training, Validation
from osler.fitting import Course, Examples, Say, State, descend, loop, seed_of, start, statistics_of_taken_steps
from osler.model import Network
from osler.problem import Problem
from osler.recipe import Recipe
from osler.tasks.detection import FUSED, OVERLAP, Detection
from osler.tasks.segmentation import Segmentation
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
    if not volumes:
        raise Problem("no case that can be used is left to train on", fix="see what was left out, and why")
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
    state.network.load_state_dict(state.best if state.best else state.average)
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
    total = sum(row.values())
    if plan.training.patience and not plan.training.folds and total < state.best_loss:
        state.best_loss, state.best_epoch = total, state.epoch
        state.best = {k: v.clone() for k, v in state.average.items()}
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


@dataclass(frozen=True, eq=False)
class Located:
    """What is said of one moment of a case, on its working grid.

    Attributes:
        probabilities: of each segmentation ``(k, depth, height, width)``.
        boxes: of each detection.
    """

    probabilities: Mapping[str, NDArray[np.float32]]
    boxes: Mapping[str, Boxes]


def ask(networks: Sequence[Network], image: NDArray[np.float32], plan: Recipe) -> Located:
    """What networks say together of an image ``(c, d, h, w)`` on its working grid.

    Probabilities are averaged over networks and mirrored views; boxes are fused.
    """
    views = [(network, axes) for network in networks for axes in _views(plan)]
    probabilities: dict[str, NDArray[np.float32]] = {}
    found: dict[str, list[Boxes]] = {}
    for network, axes in views:
        said = _view(network, image, plan, axes)
        # Added up one by one: the answers of all networks about a large volume do not fit into memory together.
        for name, values in said.probabilities.items():
            values /= len(views)
            probabilities[name] = np.add(probabilities[name], values, values) if name in probabilities else values
        for name, some in said.boxes.items():
            found.setdefault(name, []).append(some)
    dims = networks[0].dims
    return Located(
        probabilities,
        {name: boxes.suppress(boxes.fuse(some, FUSED[dims]), OVERLAP[dims]) for name, some in found.items()},
    )


def _views(plan: Recipe) -> list[tuple[int, ...]]:
    """Along which axes (0 depth, 1 height, 2 width) each view is mirrored: those of the training, one by one."""
    if not plan.patches.mirror:
        return [()]
    spatial = plan.augmentation.get("spatial", {})
    return [(), *((axis,) for axis, name in enumerate(("flip_z", "flip_y", "flip_x")) if spatial.get(name))]


@torch.inference_mode()
def _view(network: Network, image: NDArray[np.float32], plan: Recipe, axes: tuple[int, ...]) -> Located:
    """What one network says of one mirrored view, mirrored back."""
    network.eval()
    device = next(network.parameters()).device
    seen = np.flip(image, tuple(axis + 1 for axis in axes)) if axes else image
    patch, size = plan.image.size, image.shape[1:]
    whole, shift = sliding.padded(seen, patch)
    blends = {
        name: sliding.Blend(task.outputs, whole.shape[1:], patch)
        for name, task in network.dense.items() if isinstance(task, Segmentation)
    }  # fmt: skip
    found: dict[str, list[tuple[sliding.Size, Boxes]]] = {
        name: [] for name, t in network.dense.items() if isinstance(t, Detection)
    }

    def predict(x: torch.Tensor) -> dict[str, Any]:
        outputs, _ = network.locate(network.normalise_patches(x.to(device)))
        return {
            name: task.probabilities(outputs[name], patch)
            if isinstance(task, Segmentation)
            else task.decode(outputs[name], patch)
            for name, task in network.dense.items()
        }

    for places, said in sliding.answers(predict, whole, patch, plan.patches.overlap):
        for name, answer in said.items():
            if name in blends:
                blends[name].add(places, answer)
            else:
                found[name] += zip(places, answer, strict=True)
    probabilities = {name: blend.result(shift, size) for name, blend in blends.items()}
    if axes:
        back = tuple(axis + 1 for axis in axes)
        probabilities = {name: np.ascontiguousarray(np.flip(values, back)) for name, values in probabilities.items()}
    return Located(
        probabilities,
        {
            n: _unpadded(boxes.from_tiles(t, patch, OVERLAP[network.dims]), shift, size, axes)
            for n, t in found.items()
        },
    )


def _unpadded(found: Boxes, shift: sliding.Size, size: Sequence[int], axes: Sequence[int]) -> Boxes:
    """Boxes of the padded, mirrored image in the image itself; what lies in the padding only is dropped."""
    found = found.to("cpu")
    ends = torch.tensor([*size, *size], dtype=torch.float32)
    places = torch.minimum((found.places - torch.tensor([*shift, *shift])).clamp(min=0), ends)
    kept = (places[:, 3:] > places[:, :3]).all(1)
    return Boxes(boxes.mirror(places[kept], size, axes), found.scores[kept], found.classes[kept])
