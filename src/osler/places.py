"""From what dense networks say to findings with a place: measured, and as sure as held-out cases allow."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import doubt, localisation, volumes
from osler.case import Answer, Box, Finding, Mask, Question
from osler.doubt import Doubt
from osler.grid import Grid
from osler.image import Image
from osler.localisation import Located
from osler.measurement import measure
from osler.metrics import boxes as box_metrics
from osler.metrics.overlap import dice, iou
from osler.model import Model, Network
from osler.recipe import Recipe
from osler.tasks import Dense
from osler.tasks.detection import Detection
from osler.tasks.segmentation import Segmentation
from osler.volumes import Volume

Arrays = dict[str, NDArray[Any]]
# Id of a case, its patient, and its moments (of dense tasks alone each moment is one of its own).
Held = tuple[str, str, Sequence[Volume]]
# From this intersection over union on, a part that was outlined, and a box, is one of the reader's.
_SAME_PART = 0.1
# In flat images and in volumes: of things a few voxels wide, a box that is half a voxel off shares less than half.
_SAME_BOX = {2: 0.5, 3: 0.1}
# Of each class and moment of a detection no more than the surest so many are listed: as many as figures look at.
_LISTED = box_metrics.MOST


def answer(
    made: Model, image: Image, networks: Sequence[Network] | None = None, *, withheld: bool = False
) -> dict[str, Answer]:
    """Where things are in an image, on its own grid, by task.

    Args:
        made: the model.
        image: as it was read.
        networks: those of its networks that answer; all by default.
        withheld: nothing is stated, whatever is found.

    Raises:
        Problem: the image does not suit the model.
    """
    plan = made.recipe
    where, moved = volumes.on_grid(image, plan)
    findings: dict[str, list[Finding]] = {name: [] for name in made.networks[0].dense}
    maps: dict[str, list[NDArray[np.float32]]] = {}
    by = f"model:{made.sha256[:12]}"
    for frame, said in enumerate(localisation.ask(networks or made.networks, moved, plan)):
        for number, (name, task) in enumerate(made.networks[0].dense.items()):
            learned = of(made, number)
            if isinstance(task, Segmentation):
                p = where.back(said.probabilities[name])
                maps.setdefault(name, []).append(task.uncertainty(p))
                largest = [c for c, yes in zip(task.question.classes, learned.largest, strict=True) if yes]
                found = _outlined(task, replace(said, probabilities={name: p}), image, (frame, by), largest)
            else:
                found = _boxed(task, said, where, frame, by)
            findings[name] += [doubt.applied(learned.doubt, f) for f in found]
    return {
        name: replace(
            _answer(task.question, findings[name], of(made, number), withheld),
            uncertainty=np.stack(maps[name]) if name in maps else None,
        )
        for number, (name, task) in enumerate(made.networks[0].dense.items())
    }


def _outlined(
    task: Segmentation, said: Located, image: Image, of: tuple[int, str], largest: Sequence[str]
) -> list[Finding]:
    found = _stated(task, task.largest(task.decode(said.probabilities[task.question.task]), largest), said, *of)
    return [f if f.mask is None else replace(f, measurements=measure(f.mask, image)) for f in found]


def _stated(
    task: Segmentation, labels: NDArray[np.uint8], said: Located, frame: int = 0, by: str = "model"
) -> list[Finding]:
    found = task.findings(labels, said.probabilities[task.question.task], frame, by)
    return [replace(f, probability=(f.probability or 0.0) * said.chance) for f in found]


def _boxed(task: Detection, said: Located, where: Grid, frame: int, by: str) -> list[Finding]:
    found = said.boxes[task.question.task]
    places = where.boxes_back(found.places.numpy())
    rows = zip(places.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True)
    return [
        Finding(
            task.question.task, task.question.classes[k], by, min(1.0, score) * said.chance, frame=frame,
            box=Box((place[0], place[1], place[2]), (place[3], place[4], place[5])),
        )
        for place, score, k in rows if all(a < b for a, b in zip(place[:3], place[3:], strict=True))
    ]  # fmt: skip


def _answer(question: Question, found: list[Finding], learned: "Learned", withheld: bool) -> Answer:
    order = sorted(found, key=lambda f: (f.frame, f.box is None, -(f.probability or 0)))
    listed, count = [], Counter[tuple[int, str]]()
    for f in order:
        count[f.frame, f.name] += 1
        if question.kind == "segmentation" or count[f.frame, f.name] <= _LISTED:
            listed.append(f)
    limit = doubt.chance(learned.doubt, float(learned.doubt.threshold[0]))[0]
    certain = {f.name for f in listed if f.box is not None and (f.probability or 0) >= limit}
    decision = () if withheld else tuple(name for name in question.classes if name in certain)
    return Answer(question.task, question.kind, tuple(listed), decision, threshold=limit)


# --- what held-out cases teach -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Learned:
    """What held-out cases taught about the answers to one task.

    Attributes:
        doubt: how sure findings are.
        largest: ``(k,)`` of which classes only the largest connected part is kept.
    """

    doubt: Doubt
    largest: NDArray[np.bool_]


def of(made: Model, number: int) -> Learned:
    """What the model stores for its dense task of this number; neutral where nothing was held out."""
    classes, prefix = list(made.networks[0].dense.values())[number].question.classes, f"dense.{number}."
    stored = {k[len(prefix) :]: v for k, v in made.calibration.items() if k.startswith(prefix)}
    largest = stored.pop("largest", np.array([name in made.recipe.patches.largest for name in classes]))
    return Learned(doubt.of_arrays(stored), largest.astype(bool))


@dataclass(eq=False)
class _Seen:
    """Findings of held-out moments beside the reader's: scores, hits, and how far measurements were off."""

    scores: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)
    missed: int = 0
    logs: dict[str, list[float]] = field(default_factory=dict)
    dice: dict[str, list[float]] = field(default_factory=dict)
    cases: set[str] = field(default_factory=set)

    def add(self, score: float, hit: bool, patient: str) -> None:
        self.scores.append(score)
        self.hits.append(hit)
        self.patients.append(patient)


def calibrate(
    networks: Sequence[Network], held: Sequence[Sequence[Held]], plan: Recipe
) -> tuple[Arrays, dict[str, Any], dict[str, dict[str, Answer]]]:
    """Fits everything that :class:`Learned` holds on cases that each network has not seen.

    Args:
        networks: all of one model.
        held: for each network, or for all of an ensemble alike, cases held out from it, with what readers said of
            them and nothing else: what a reader said nothing of does not count. Networks with the same cases answer
            together, as in ``diagnose``.
        plan: the recipe.

    Returns:
        Arrays by name for the model, facts for its card, and, where tasks are linked, the answers to each held-out
        case by its id.
    """
    alone = bool(plan.training.folds)
    groups = [([n], part) for n, part in zip(networks, held, strict=True)] if alone else [(list(networks), held[0])]
    dense = networks[0].dense
    # Each way, until it is known which classes are better with their largest part alone.
    ways = {name: _ways(task.question, plan) for name, task in dense.items()}
    seen = {name: [_Seen() for _ in ways[name]] for name in dense}
    kept: dict[str, dict[str, list[list[Finding]]]] = {}
    for asked, part in groups:
        for case, patient, volume, said in _asked(asked, part, plan):
            for name, task in dense.items():
                for way, into in zip(ways[name], seen[name], strict=True):
                    if isinstance(task, Segmentation) and name in volume.labels:
                        _compare_outlines(task, said, volume, (case, patient), into, way)
                    elif isinstance(task, Detection) and name in volume.boxes:
                        _compare_boxes(task, said, volume, (case, patient), into)
                if plan.linked:
                    findings = kept.setdefault(case, {}).setdefault(name, [[] for _ in ways[name]])
                    for way, some in zip(ways[name], findings, strict=True):
                        some += _found(task, said, volume, way)
    arrays: Arrays = {}
    card: dict[str, Any] = {}
    answers: dict[str, dict[str, Answer]] = {case: {} for case in kept}
    cases = len({case for _, part in groups for case, *_ in part})
    for number, (name, task) in enumerate(dense.items()):
        best = _best(seen[name])
        chosen, largest = seen[name][best], np.array([c in ways[name][best] for c in task.question.classes])
        limit = _threshold(chosen) if task.question.separate or isinstance(task, Detection) else 0.0
        learned = doubt.fit(chosen.scores, chosen.hits, chosen.patients, chosen.logs, limit)
        arrays |= {f"dense.{number}.{k}": v for k, v in learned.arrays().items()}
        arrays[f"dense.{number}.largest"] = largest.astype(np.uint8)
        card[name] = {"held_out_cases": cases, "read": len(chosen.cases)}
        card[name] |= {"held_out_findings": len(chosen.scores), "true": int(sum(chosen.hits)), "threshold": limit}
        if chosen.dice:
            means = {k: float(np.nanmean(values)) for k, values in chosen.dice.items()}
            card[name] |= {"dice": means, "largest": bool(largest.all())}
        for case, of_task in kept.items():
            sure = [doubt.applied(learned, f) for f in of_task[name][best]]
            answers[case][name] = _answer(task.question, sure, Learned(learned, largest), withheld=False)
    return arrays, card, answers


def notes(card: Mapping[str, Any]) -> list[str]:
    """Of which tasks readers said nothing in some of the held-out cases, in words."""
    return [
        f"{name}: readers said where in {facts['read']} of {facts['held_out_cases']} held-out cases; "
        "how sure its findings are was learned from these"
        for name, facts in card.items() if facts["read"] < facts["held_out_cases"]
    ]  # fmt: skip


def _ways(question: Question, plan: Recipe) -> list[tuple[str, ...]]:
    """Of which classes the largest part alone might be kept: of all or of none (the doubt is fitted on one way)."""
    if question.kind != "segmentation":
        return [()]
    if plan.patches.largest:
        return [tuple(name for name in question.classes if name in plan.patches.largest)]
    return [()] if question.separate else [(), question.classes]


def _asked(
    networks: Sequence[Network], held: Sequence[Held], plan: Recipe
) -> Iterator[tuple[str, str, Volume, Located]]:
    """Case, patient, and each moment with what is said of it; one that stands for several counts once."""
    for case, patient, moments in held:
        image = np.stack([np.asarray(volume.image, np.float32) for volume in moments])
        last = None
        for volume, said in zip(moments, localisation.ask(networks, image, plan), strict=True):
            if volume is not last:
                yield case, patient, volume, said
            last = volume


def _found(task: Dense, said: Located, volume: Volume, largest: Sequence[str]) -> list[Finding]:
    """What is said of a moment, on the working grid, without masks or measurements: enough to compare, and small."""
    if isinstance(task, Detection):
        return _boxed(task, said, Grid(volume.size, volume.size), volume.frame, "model")
    assert isinstance(task, Segmentation)
    p = said.probabilities[task.question.task]
    each = _stated(task, task.largest(task.decode(p), largest), said, volume.frame)
    return [replace(f, mask=None) for f in each]


def _compare_outlines(
    task: Segmentation,
    said: Located,
    volume: Volume,
    of: tuple[str, str],
    into: _Seen,
    largest: Sequence[str],
) -> None:
    """The parts of one moment of a case and patient against the reader's, on the working grid."""
    case, patient = of
    into.cases.add(case)
    image = Image(np.asarray(volume.image)[None], volume.geometry)
    truth = volume.labels[task.question.task]
    known, p = truth != task.question.unknown, said.probabilities[task.question.task]
    labels = np.where(known, task.largest(task.decode(p), largest), task.background).astype(np.uint8)
    found = [f for f in _stated(task, labels, said) if f.mask is not None]
    readers = [f for f in task.findings(np.where(known, truth, task.background).astype(np.uint8), p) if f.mask]
    for name in task.question.classes:
        ours, theirs = task.of_class(labels, name), task.of_class(truth, name) & known
        if theirs.any():
            into.dice.setdefault(name, []).append(dice(theirs, ours))
        left = [f.mask for f in readers if f.name == name and f.mask is not None]
        for one in (f for f in found if f.name == name and f.mask is not None):
            match = _partner(one.mask, left, labels.shape)
            into.add(one.probability or 0.0, match is not None, patient)
            if match is not None and one.mask is not None:
                _note(into, name, measure(match, image), measure(one.mask, image))
                left = [m for m in left if m is not match]
        into.missed += len(left)


def _partner(mask: Mask | None, others: Sequence[Mask], size: tuple[int, ...]) -> Mask | None:
    if mask is None or not others:
        return None
    full = mask.within((size[0], size[1], size[2]))
    shared = [iou(other.within((size[0], size[1], size[2])), full) for other in others]
    best = int(np.argmax(shared))
    return others[best] if shared[best] > _SAME_PART else None


def _note(into: _Seen, name: str, true: Sequence[Any], ours: Sequence[Any]) -> None:
    values = {m.name: m.value for m in true}
    for m in ours:
        if m.value > 0 and values.get(m.name, 0) > 0:
            into.logs.setdefault(f"{name}/{m.name}", []).append(float(np.log(values[m.name] / m.value)))


def _compare_boxes(task: Detection, said: Located, volume: Volume, of: tuple[str, str], into: _Seen) -> None:
    case, patient = of
    into.cases.add(case)
    found, truth = said.boxes[task.question.task], volume.boxes[task.question.task]
    same = _SAME_BOX[2 if volume.size[0] == 1 else 3]
    for k in range(len(task.question.classes)):
        ours = (found.classes == k).numpy()
        theirs = truth[truth[:, 6] == k, :6].astype(float)
        matched = box_metrics.match(
            theirs, found.places.numpy()[ours].astype(float), found.scores.numpy()[ours].astype(float), [same]
        )
        for score, hit in zip(matched.score, matched.hit[:, 0], strict=True):
            into.add(float(score) * said.chance, bool(hit), patient)
        into.missed += int((~matched.found[:, 0]).sum())


def _best(ways: Sequence[_Seen]) -> int:
    """Which way was better: the largest part alone only where it helped some class and harmed none."""
    if len(ways) < 2 or not ways[0].dice:
        return 0
    gain = [np.nanmean(ways[1].dice[k]) - np.nanmean(ways[0].dice[k]) for k in ways[0].dice]
    return int(min(gain) >= 0 and max(gain) > 0)


def _threshold(seen: _Seen) -> float:
    """The score from which the harmonic mean of precision and sensitivity (F1) is highest.

    It lies in the middle between the last finding above it and the first below: at the last one itself, every new
    finding that is a little less sure would be left out, though nothing speaks against it.
    """
    if not seen.scores or not any(seen.hits):
        return 0.5
    order = np.argsort(-np.asarray(seen.scores), kind="stable")
    hits = np.cumsum(np.asarray(seen.hits)[order])
    total = hits[-1] + seen.missed
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + total)
    scores = np.append(np.asarray(seen.scores)[order], 0.0)
    last = int(f1.argmax())
    return float((scores[last] + scores[last + 1]) / 2)
