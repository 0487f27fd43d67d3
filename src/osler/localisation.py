"""Where it is: dense networks are fitted on windows of images, and asked about whole ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osler import boxes, draws, linking, patches, sliding, subsets
from osler.boxes import Boxes
from osler.checkpoints import State
from osler.cohort import Training, Validation
from osler.fitting import (
    Course,
    Examples,
    Say,
    descend,
    each_source,
    hidden,
    loop,
    seed_of,
    start,
    statistics_of_taken_steps,
)
from osler.image import evenly
from osler.linking import Said
from osler.model import Network
from osler.patches import Sample, Truth
from osler.problem import Problem
from osler.recipe import Recipe
from osler.tasks.detection import FUSED, OVERLAP, Detection
from osler.tasks.segmentation import Segmentation
from osler.volumes import Volume

# Windows that are watched after each epoch, and those that the normalisation is fitted on.
WATCHED, NORMALISED = 24, 400
# Share of windows that are shown without some of their modalities.
PARTS = 0.5
# Epochs whose cases the weights of classes are fitted on: a rare class may be left out of one of them.
WEIGHED = 10
# Of an epoch, which sample each window is cut from.
Turns = Callable[[int], Sequence[Sample]]


def fit(
    training: tuple[Training, Sequence[Sample]],
    validation: tuple[Validation, Sequence[Sample]],
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
    samples = training[1]
    if not samples:
        raise Problem("no case that can be used is left to train on", fix="see what was left out, and why")
    many = [i % len(samples) for i in range(min(NORMALISED, 4 * len(samples)))]
    windows, _ = patches.batch(
        [samples[i] for i in many], draws.keys(plan.training.seed, 8, np.arange(len(many))), plan
    )

    @lru_cache(1)
    def turns(epoch: int) -> list[Sample]:
        order = patches.turns(samples, plan, draws.keys(plan.training.seed, course.member, 4, epoch))
        return [samples[i] for i in order]

    # A class weighs by how often it comes, which is not how many cases have it: see ``patches.turns``.
    met = [sample.answers for epoch in range(WEIGHED) for sample in turns(epoch)] if samples[0].answers else []
    targets = {name: np.stack([answers[name] for answers in met]) for name in samples[0].answers}
    about = [sample.person for sample in samples if sample.person is not None]
    persons = np.stack(about) if about else None
    state = start(Examples(training[0], windows.numpy(), targets, covariates=persons), plan, course.member)
    loop(
        state,
        plan,
        len(samples) * plan.patches.per_case,
        lambda rows, steps: _step(state, turns, rows, plan, course.member, steps),
        lambda: _watch(state, validation[1], plan),
        course,
    )
    state.network.load_state_dict(state.best if state.best else state.average)
    return state.network.eval().cpu()


def _step(state: State, turns: Turns, rows: NDArray[np.intp], plan: Recipe, member: int, steps: int) -> float:
    """One batch of windows forward and back."""
    network, chosen = state.network, plan.training
    device = next(network.parameters()).device
    torch.manual_seed(seed_of(chosen.seed, member, 2, state.epoch * steps + state.step))
    network.train()
    keys = draws.keys(chosen.seed, member, 3, state.epoch, rows)
    x, truth = patches.batch([turns(state.epoch)[row] for row in rows], keys, plan)
    seen = parts(x, keys).to(device) if network.normalise.modalities > 1 else 1.0
    x, truth = patches.augmented(network.normalise_patches(x.to(device)), truth, keys, plan)
    x = x * seen
    if truth.persons is not None:
        told = draws.keys(chosen.seed, member, 8, state.epoch, rows)
        truth = replace(truth, persons=hidden(truth.persons, told, plan).to(device))
    with statistics_of_taken_steps(state):
        with torch.autocast(device.type, torch.bfloat16, enabled=chosen.precision == "bfloat16"):
            said = network.say(x, covariates=truth.persons)
        return descend(
            state, sum(_losses(network, said, truth, plan).values(), said.vector.new_zeros(())), plan, steps
        )


def parts(x: torch.Tensor, keys: NDArray[np.uint64]) -> torch.Tensor:
    """Which modalities of windows ``(b, m, c, d, h, w)`` are shown to the network, 1 or 0, ``(b, m, 1, 1, 1, 1)``.

    Those that are there (not NaN); of :data:`PARTS` of the windows a random part of them, so that places are found
    from any part (modality dropout; Neverova 2016, arXiv:1501.00102).
    """
    there = ~x.flatten(2).isnan().any(2).numpy()
    some = draws.uniform(keys, "parts") < PARTS
    there = np.where(some[:, None], subsets.some(there, keys), there)
    return torch.from_numpy(there.astype(np.float32))[(..., *[None] * 4)]


def _losses(network: Network, said: Said, truth: Truth, plan: Recipe) -> dict[str, torch.Tensor]:
    """The loss of each task, and what their answers contradict."""
    found = {name: task.loss(said.places[name], truth.places[name]) for name, task in network.dense.items()}
    targets = {name: target.to(said.vector.device) for name, target in truth.answers.items()}
    by_sources = [answers for answers, _ in each_source(network, said, truth.persons)]
    for name, task in network.tasks.items() if targets else ():
        scale, smoothing = network.scale(name), plan.training.smoothing
        # Each opinion has to be able to answer alone; together they weigh as much as the answer. So has each source.
        alone, by_source = (
            torch.stack([task.loss(one[name], targets[name], scale, smoothing) for one in answers]).mean()
            for answers in (said.opinions, by_sources)
        )
        found[name] = (by_source + alone) / 2
    if network.links is not None and plan.links.consistency:
        known = {
            name: _known(truth.places[name], plan.tasks[name].unknown, len(said.vector)) for name in said.presence
        }
        found["links"] = plan.links.consistency * linking.contradiction(said, targets, known, plan)
    return found


def _known(target: torch.Tensor | Sequence[NDArray[np.float32] | None], unknown: int, cases: int) -> list[bool]:
    """Of which cases anything is known of where things are."""
    if isinstance(target, torch.Tensor):
        return (target != unknown).reshape(cases, -1).any(1).tolist()
    each = len(target) // cases
    return [any(t is not None for t in target[i * each : (i + 1) * each]) for i in range(cases)]


@torch.no_grad()
def _watch(state: State, samples: Sequence[Sample], plan: Recipe) -> dict[str, float]:
    """Loss of the averaged weights on the same few windows of the validation part each time."""
    if not samples:
        return {}
    network = Network(plan)
    network.load_state_dict(state.average)
    network.channels_last = plan.training.channels_last
    device = next(state.network.parameters()).device
    network.to(device).eval()
    many = np.linspace(0, len(samples) - 1, min(WATCHED, len(samples))).astype(int)
    row: dict[str, float] = {}
    for part in np.array_split(many, max(1, len(many) // max(1, plan.training.batch))):
        keys = draws.keys(plan.training.seed, 9, part)
        x, truth = patches.batch([samples[i] for i in part], keys, plan)
        truth = truth if truth.persons is None else replace(truth, persons=truth.persons.to(device))
        said = network.say(network.normalise_patches(x.to(device)), covariates=truth.persons)
        for name, loss in _losses(network, said, truth, plan).items():
            value = float(loss) * len(part) / len(many)
            row[f"{name}.loss"] = row.get(f"{name}.loss", 0.0) + value
    total = sum(row.values())
    if plan.training.patience and not plan.training.folds and total < state.best_loss:
        state.best_loss, state.best_epoch = total, state.epoch
        state.best = {k: v.clone() for k, v in state.average.items()}
    return row


def fit_all(
    pairs: Sequence[tuple[Training, Validation, object]],
    samples_of: Mapping[str, Sequence[Sample]],
    plan: Recipe,
    out: Path,
    say: Say,
    began: float,
) -> list[Network]:
    """A network for each pair of parts; ``samples_of`` holds what windows of each case are cut from, by its id.

    Networks learn also from what follows from what is known of a case; everything else counts what readers said. What
    nobody said anything of, nothing is learned from.
    """
    learned = {case: [patches.completed(sample, plan) for sample in some] for case, some in samples_of.items()}
    learned = {case: [sample for sample in some if patches.tells(sample)] for case, some in learned.items()}
    networks = []
    for number, (training, validation, _) in enumerate(pairs):
        seen = [s for entry in training.entries for s in learned.get(entry.id, [])]
        watched = [s for entry in validation.entries for s in learned.get(entry.id, [])]
        course = Course(out, number, len(pairs), say, began)
        networks.append(fit((training, seen), (validation, watched), plan, course))
    return networks


def samples(
    moments: Sequence[Volume],
    answers: Mapping[str, NDArray[np.float32]],
    plan: Recipe,
    person: NDArray[np.float32] | None = None,
) -> list[Sample]:
    """What windows of one case are cut from.

    Args:
        moments: of the case.
        answers: targets of the tasks that ask of the whole image.
        plan: the recipe.
        person: its covariates ``(k,)``.
    """
    if not plan.linked:
        return [Sample([moment]) for moment in moments]
    return [Sample([moments[i] for i in evenly(len(moments), plan.image.frames)], answers, person)]


@dataclass(frozen=True, eq=False)
class Located:
    """What is said of one moment of a case, on its working grid.

    Attributes:
        probabilities: of each segmentation ``(k, depth, height, width)``.
        boxes: of each detection.
        chance: of linked tasks, that the class is none which means that there is nothing; as raw as the others.
    """

    probabilities: Mapping[str, NDArray[np.float32]]
    boxes: Mapping[str, Boxes]
    chance: float = 1.0


def ask(
    networks: Sequence[Network],
    moments: NDArray[np.float32],
    plan: Recipe,
    person: NDArray[np.float32] | None = None,
) -> Iterator[Located]:
    """What networks say together of each moment of an image ``(t, c, d, h, w)`` on its working grid.

    Probabilities are averaged over networks and mirrored views; boxes are fused. Linked networks hear as many moments
    as they were trained on before they say anything of one (see :func:`companies`), and know the covariates ``(k,)``
    of the person.
    """
    if not plan.linked:
        for moment in moments[:, None]:
            yield from _together(networks, moment, plan)
        return
    found: dict[int, Located] = {}
    for company in companies(len(moments), plan.image.frames):
        for moment, said in zip(company.tolist(), _together(networks, moments[company], plan, person), strict=True):
            found.setdefault(moment, said)
    yield from (found[moment] for moment in range(len(moments)))


def companies(length: int, frames: int) -> list[NDArray[np.int64]]:
    """Which moments of a sequence linked networks hear together, ``(frames,)`` each, spread over all of it.

    First those that classes are answered from, as in training; then the others. Of few, some come more than once.
    """
    first = evenly(length, frames)
    others = np.setdiff1d(np.arange(length), first)
    count = -(-len(others) // frames)
    return [first, *(some[evenly(len(some), frames)] for some in (others[start::count] for start in range(count)))]


def _together(
    networks: Sequence[Network],
    moments: NDArray[np.float32],
    plan: Recipe,
    person: NDArray[np.float32] | None = None,
) -> list[Located]:
    """What is said of moments that are heard together; of tasks that are not linked of one."""
    views = [(network, axes) for network in networks for axes in _views(plan)]
    dims = networks[0].dims
    probabilities: list[dict[str, NDArray[np.float32]]] = [{} for _ in moments]
    chances = [0.0 for _ in moments]
    found: list[dict[str, list[Boxes]]] = [{} for _ in moments]
    for network, axes in views:
        if plan.linked:
            seen = _whole(network, moments, person, plan, axes)
        else:
            seen = [_view(network, moments[0], plan, axes)]
        for number, said in enumerate(seen):
            total = probabilities[number]
            chances[number] += said.chance
            # One by one: the answers of all networks about a large volume do not fit into memory together.
            for name, values in said.probabilities.items():
                values /= len(views)
                total[name] = np.add(total[name], values, values) if name in total else values
            for name, places in said.boxes.items():
                found[number].setdefault(name, []).append(places)
    fused = [{n: boxes.fuse(places, FUSED[dims]) for n, places in each.items()} for each in found]
    return [
        Located(p, {n: boxes.suppress(b, OVERLAP[dims]) for n, b in each.items()}, chance / len(views))
        for p, each, chance in zip(probabilities, fused, chances, strict=True)
    ]


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
        outputs = network.say(network.normalise_patches(x.to(device))).places
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


@torch.inference_mode()
def _whole(
    network: Network,
    moments: NDArray[np.float32],
    person: NDArray[np.float32] | None,
    plan: Recipe,
    axes: tuple[int, ...],
) -> list[Located]:
    """What one linked network says of each moment of one mirrored view, mirrored back."""
    network.eval()
    seen = np.ascontiguousarray(np.flip(moments, tuple(axis + 2 for axis in axes)) if axes else moments)
    x = torch.from_numpy(seen)[None].to(next(network.parameters()).device)
    known = None if person is None else torch.from_numpy(person[None]).to(x.device)
    everything = network.say(network.normalise_patches(x), covariates=known)
    said, size, count = everything.places, plan.image.size, len(moments)
    chance = linking.chance(network.tasks, everything.answers, plan)
    probabilities: dict[str, NDArray[np.float32]] = {}
    found: dict[str, list[Boxes]] = {}
    for name, task in network.dense.items():
        if isinstance(task, Segmentation):
            p = task.probabilities(said[name], size if network.dims == 3 else (1, *size[1:]))
            # In 2D each slice was an image of its own.
            p = p.reshape(count, -1, *p.shape[1:]).transpose(1, 2).reshape(count, p.shape[1], *size)
            probabilities[name] = np.ascontiguousarray(np.flip(p.cpu().numpy(), tuple(axis + 2 for axis in axes)))
        elif isinstance(task, Detection):
            found[name] = [_unpadded(each, (0, 0, 0), size, axes) for each in task.decode(said[name], size)]
    return [
        Located({n: p[i] for n, p in probabilities.items()}, {n: some[i] for n, some in found.items()}, chance)
        for i in range(count)
    ]


def _unpadded(found: Boxes, shift: sliding.Size, size: Sequence[int], axes: Sequence[int]) -> Boxes:
    """Boxes of the padded, mirrored image in the image itself; what lies in the padding only is dropped."""
    found = found.to("cpu")
    ends = torch.tensor([*size, *size], dtype=torch.float32)
    places = torch.minimum((found.places - torch.tensor([*shift, *shift])).clamp(min=0), ends)
    kept = (places[:, 3:] > places[:, :3]).all(1)
    return Boxes(boxes.mirror(places[kept], size, axes), found.scores[kept], found.classes[kept])
