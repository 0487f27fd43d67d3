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
from osler.patches import Sample
from osler.recipe import Recipe
from osler.tasks import Dense
from osler.tasks.detection import Detection
from osler.tasks.segmentation import Segmentation
from osler.volumes import Volume

Arrays = dict[str, NDArray[Any]]
# Id of a case, its patient, and what it is (of dense tasks alone each moment is a sample of its own).
Held = tuple[str, str, Sample]
# From this intersection over union on, a part that was outlined, and a box, is one of the reader's.
_SAME_PART = 0.1
# In flat images and in volumes: of things a few voxels wide, a box that is half a voxel off shares less than half.
_SAME_BOX = {2: 0.5, 3: 0.1}
# Of each class and moment of a detection no more than the surest so many are listed: as many as figures look at.
_LISTED = box_metrics.MOST


def answer(
    made: Model,
    image: Image,
    networks: Sequence[Network] | None = None,
    *,
    person: NDArray[np.float32] | None = None,
    withheld: bool = False,
) -> dict[str, Answer]:
    """Where things are in an image, on its own grid, by task.

    Args:
        made: the model.
        image: as it was read.
        networks: those of its networks that answer; all by default.
        person: of linked tasks, what is known of it, ``(k,)`` (``osler.covariates.encode``).
        withheld: nothing is stated, whatever is found.

    Raises:
        Problem: the image does not suit the model.
    """
    plan = made.recipe
    where, moved = volumes.on_grid(image, plan)
    findings: dict[str, list[Finding]] = {name: [] for name in made.networks[0].dense}
    maps: dict[str, list[NDArray[np.float32]]] = {}
    by = f"model:{made.sha256[:12]}"
    for frame, said in enumerate(localisation.ask(networks or made.networks, moved, plan, person)):
        for number, (name, task) in enumerate(made.networks[0].dense.items()):
            learned = of(made, number)
            if isinstance(task, Segmentation):
                p = where.back(said.probabilities[name])
                maps.setdefault(name, []).append(task.uncertainty(p))
                (labels,) = _label_maps(task, p, [learned.way(task)])
                found = _stated(task, labels, p, said.chance, frame, by)
                found = [f if f.mask is None else replace(f, measurements=measure(f.mask, image)) for f in found]
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


@dataclass(frozen=True)
class _Way:
    """How probabilities become a label map.

    Attributes:
        largest: of these classes only the largest connected part is kept.
        ranked: everything that raises the Dice to be expected, instead of what is likelier than not.
    """

    largest: tuple[str, ...] = ()
    ranked: bool = False


def _label_maps(task: Segmentation, p: NDArray[np.float32], ways: Sequence[_Way]) -> list[NDArray[np.uint8]]:
    """The label map in each way."""
    likeliest = task.decode(p)
    ranked = task.ranked(p, likeliest) if any(way.ranked for way in ways) else likeliest
    return [task.largest(ranked if way.ranked else likeliest, way.largest) for way in ways]


def _stated(
    task: Segmentation,
    labels: NDArray[np.uint8],
    p: NDArray[np.float32],
    chance: float,
    frame: int = 0,
    by: str = "model",
) -> list[Finding]:
    return [replace(f, probability=(f.probability or 0.0) * chance) for f in task.findings(labels, p, frame, by)]


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
        ranked: whether outlines take in all that raises the Dice to be expected.
    """

    doubt: Doubt
    largest: NDArray[np.bool_]
    ranked: bool = False

    def way(self, task: Segmentation) -> _Way:
        """How the task's probabilities become a label map."""
        chosen = tuple(c for c, yes in zip(task.question.classes, self.largest, strict=True) if yes)
        return _Way(chosen, self.ranked)


def of(made: Model, number: int) -> Learned:
    """What the model stores for its dense task of this number; neutral where nothing was held out."""
    classes, prefix = list(made.networks[0].dense.values())[number].question.classes, f"dense.{number}."
    stored = {k[len(prefix) :]: v for k, v in made.calibration.items() if k.startswith(prefix)}
    largest = stored.pop("largest", np.array([name in made.recipe.patches.largest for name in classes]))
    ranked = bool(stored.pop("ranked", np.zeros(1, np.uint8))[0])
    return Learned(doubt.of_arrays(stored), largest.astype(bool), ranked)


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

    def include(self, other: "_Seen") -> None:
        """What was seen elsewhere, too."""
        self.scores += other.scores
        self.hits += other.hits
        self.patients += other.patients
        self.missed += other.missed
        self.cases |= other.cases
        for mine, theirs in ((self.logs, other.logs), (self.dice, other.dice)):
            for key, values in theirs.items():
                mine.setdefault(key, []).extend(values)


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
    # Each way, until it is known which is better.
    ways = {name: _ways(task, plan) for name, task in dense.items()}
    seen = {name: [_Seen() for _ in ways[name]] for name in dense}
    kept: dict[str, dict[str, list[list[Finding]]]] = {}
    for asked, part in groups:
        for case, patient, volume, said in _asked(asked, part, plan):
            for name, task in dense.items():
                labels: list[NDArray[np.uint8]] = []
                if isinstance(task, Segmentation) and (plan.linked or name in volume.labels):
                    labels = _label_maps(task, said.probabilities[name], ways[name])
                if isinstance(task, Segmentation) and name in volume.labels:
                    _compare_outlines(task, said, volume, (case, patient), labels, seen[name])
                elif isinstance(task, Detection) and name in volume.boxes:
                    _compare_boxes(task, said, volume, (case, patient), seen[name][0])
                if plan.linked:
                    findings = kept.setdefault(case, {}).setdefault(name, [[] for _ in ways[name]])
                    for some, one in zip(findings, _found(task, said, volume, labels), strict=True):
                        some += one
    arrays: Arrays = {}
    card: dict[str, Any] = {}
    answers: dict[str, dict[str, Answer]] = {case: {} for case in kept}
    cases = len({case for _, part in groups for case, *_ in part})
    for number, (name, task) in enumerate(dense.items()):
        best = _best(seen[name])
        chosen, way = seen[name][best], ways[name][best]
        largest = np.array([c in way.largest for c in task.question.classes])
        learned = doubt.fit(chosen.scores, chosen.hits, chosen.patients, chosen.logs, 0.0)
        limit = _limit(task, chosen, learned)
        learned = replace(learned, threshold=np.array([limit]))
        arrays |= {f"dense.{number}.{k}": v for k, v in learned.arrays().items()}
        arrays[f"dense.{number}.largest"] = largest.astype(np.uint8)
        arrays[f"dense.{number}.ranked"] = np.array([way.ranked], np.uint8)
        card[name] = {"held_out_cases": cases, "read": len(chosen.cases)}
        card[name] |= {"held_out_findings": len(chosen.scores), "true": int(sum(chosen.hits)), "threshold": limit}
        if chosen.dice:
            means = {k: float(np.nanmean(values)) for k, values in chosen.dice.items()}
            card[name] |= {"dice": means, "largest": bool(largest.all()), "ranked": way.ranked}
        for case, of_task in kept.items():
            sure = [doubt.applied(learned, f) for f in of_task[name][best]]
            answers[case][name] = _answer(task.question, sure, Learned(learned, largest, way.ranked), withheld=False)
    return arrays, card, answers


def notes(card: Mapping[str, Any]) -> list[str]:
    """Of which tasks readers said nothing in some of the held-out cases, in words."""
    return [
        f"{name}: readers said where in {facts['read']} of {facts['held_out_cases']} held-out cases; "
        "how sure its findings are was learned from these"
        for name, facts in card.items() if facts["read"] < facts["held_out_cases"]
    ]  # fmt: skip


def _ways(task: Dense, plan: Recipe) -> list[_Way]:
    """Those that held-out cases choose from, the plainest first."""
    if not isinstance(task, Segmentation):
        return [_Way()]
    # Of all classes or of none: the doubt is fitted on one way.
    classes = task.question.classes
    largest = [()] if task.question.separate else [(), classes]
    if plan.patches.largest:
        largest = [tuple(name for name in classes if name in plan.patches.largest)]
    # Of regions that lie in each other a pixel's value is decided for all at once.
    return [_Way(some, yes) for yes in ((False,) if task.regions else (False, True)) for some in largest]


def _asked(
    networks: Sequence[Network], held: Sequence[Held], plan: Recipe
) -> Iterator[tuple[str, str, Volume, Located]]:
    """Case, patient, and each moment with what is said of it; one that stands for several counts once."""
    for case, patient, sample in held:
        image = np.stack([np.asarray(volume.image, np.float32) for volume in sample.moments])
        last = None
        said_of = localisation.ask(networks, image, plan, sample.person)
        for volume, said in zip(sample.moments, said_of, strict=True):
            if volume is not last:
                yield case, patient, volume, said
            last = volume


def _found(task: Dense, said: Located, volume: Volume, labels: Sequence[NDArray[np.uint8]]) -> list[list[Finding]]:
    """What is said of a moment, on the working grid, without masks or measurements: enough to compare, and small.

    Of outlines in each way.
    """
    if isinstance(task, Detection):
        return [_boxed(task, said, Grid(volume.size, volume.size), volume.frame, "model")]
    assert isinstance(task, Segmentation)
    p = said.probabilities[task.question.task]
    each = [_stated(task, one, p, said.chance, volume.frame) for one in labels]
    return [[replace(f, mask=None) for f in found] for found in each]


def _compare_outlines(
    task: Segmentation,
    said: Located,
    volume: Volume,
    of: tuple[str, str],
    labels: Sequence[NDArray[np.uint8]],
    ways: Sequence[_Seen],
) -> None:
    """The parts of one moment of a case and patient against the reader's, on the working grid, in each way."""
    known = volume.labels[task.question.task] != task.question.unknown
    compared: list[tuple[NDArray[np.uint8], _Seen]] = []
    for one, into in zip(labels, ways, strict=True):
        ours = np.where(known, one, task.background).astype(np.uint8)
        # Most ways lead to the same.
        seen = next((seen for other, seen in compared if np.array_equal(other, ours)), None)
        if seen is None:
            seen = _against_reader(task, ours, said, volume, of)
            compared.append((ours, seen))
        into.include(seen)


def _against_reader(
    task: Segmentation, labels: NDArray[np.uint8], said: Located, volume: Volume, of: tuple[str, str]
) -> _Seen:
    case, patient = of
    into = _Seen(cases={case})
    image = Image(np.asarray(volume.image)[None], volume.geometry)
    truth, p = volume.labels[task.question.task], said.probabilities[task.question.task]
    known = truth != task.question.unknown
    found = [f for f in _stated(task, labels, p, said.chance) if f.mask is not None]
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
    return into


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
    """Which way has the highest mean Dice, of those in which no class is worse than in the first; ties go to it."""
    if len(ways) < 2 or not ways[0].dice:
        return 0
    means = [[float(np.nanmean(way.dice[k])) for k in ways[0].dice] for way in ways]
    able = [n for n, of_class in enumerate(means) if all(a >= b for a, b in zip(of_class, means[0], strict=True))]
    return max(able, key=lambda n: sum(means[n]))


def _limit(task: Dense, seen: _Seen, learned: Doubt) -> float:
    """The score from which a finding is stated; an organ always is."""
    if not isinstance(task, Segmentation):
        return _threshold(seen)
    if not task.question.separate:
        return 0.0
    return doubt.limit(learned, seen.scores, seen.missed) if any(seen.hits) else 0.5


def _threshold(seen: _Seen) -> float:
    """The score from which the harmonic mean of precision and sensitivity (F1) of boxes is highest.

    (Of boxes there are thousands, nearly all unsure, and a fitted chance is theirs, not that of the few sure ones.)
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
