"""The one path from an image to an answer: the command line, Python and the server all go through here."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import asking, calibration, covariates, data, linking, modalities, novelty, places, shares, subsets
from osler.calibration import Calibrated
from osler.case import Answer, Case, Concordance, Diagnosis, Finding, Novelty, Shares
from osler.image import Image
from osler.metrics.estimate import wilson
from osler.model import Model, Network
from osler.problem import Problem
from osler.tasks.classification import Classification

Array = NDArray[np.floating[Any]]
# Of answers: what comes of the images alone.
_OF_IMAGES = ("score", "p_value", "torn", "shares")


@dataclass(frozen=True, eq=False)
class Answered:
    """Answers for ``n`` cases as arrays, by task.

    Attributes:
        probability, low, high: ``(n, k)`` calibrated, with the interval of each number.
        sets: ``(n, k)`` conformal sets.
        decision: ``(n, k)`` the classes stated if nothing is withheld.
        score, p_value: ``(n,)`` novelty; NaN without a gate.
        torn: ``(n,)`` of linked tasks, the share of networks whose two opinions lead to different classes.
        shares: ``(n, t)`` of each moment in the answers, the mean over networks; ``(n, 0)`` if they do not attend.
    """

    probability: dict[str, Array]
    low: dict[str, Array]
    high: dict[str, Array]
    sets: dict[str, NDArray[np.bool_]]
    decision: dict[str, NDArray[np.bool_]]
    score: Array
    p_value: Array
    torn: dict[str, Array] = field(default_factory=dict)
    shares: Array = field(default_factory=lambda: np.empty((0, 0)))


def answer(
    made: Model,
    pixels: NDArray[np.float32],
    networks: Sequence[Network] | None = None,
    times: NDArray[np.float32] | None = None,
    known: NDArray[np.float32] | None = None,
) -> Answered:
    """Answers of a model for prepared pixels ``(n, t, c, d, h, w)``; what is withheld is decided later.

    Args:
        made: the model.
        pixels: see above.
        networks: those of it that answer; all by default.
        times: ``(n, t)``, see :func:`osler.data.timeline`; without them every moment counts.
        known: of the persons ``(n, k)``, as :func:`osler.covariates.encode` gives it.
    """
    return answer_each(made, pixels, networks, times, known)[""]


def answer_each(
    made: Model,
    pixels: NDArray[np.float32],
    networks: Sequence[Network] | None = None,
    times: NDArray[np.float32] | None = None,
    known: NDArray[np.float32] | None = None,
) -> dict[str, Answered]:
    """:func:`answer` under ``""``; where there are several sources, also by every part of them (``Network.subsets``).

    What is said by a part of which a case lacks some is said by the rest of it.
    """
    sources, parts, images = made.networks[0].sources, made.networks[0].subsets, modalities.images(made)
    there = subsets.present(len(pixels), len(images), times, known)
    if len(sources) > there.shape[1]:
        there = np.column_stack([there, np.zeros(len(there), bool)])
    views = asking.moved_copies(made.recipe.inference.views)
    raw: dict[str, dict[str, list[Array]]] = {}
    torn: dict[str, list[Array]] = {}
    scores, attended = [], []
    for number, network in enumerate(made.networks):
        if networks is not None and not any(network is each for each in networks):
            continue
        seen = asking.outputs(network, pixels, views, times=times, covariates=known)
        attended.append(seen.shares)
        for source, answers in {"": seen.answers, **seen.alone}.items():
            for name, values in answers.items():
                raw.setdefault(source, {}).setdefault(name, []).append(values)
        for name, values in seen.torn.items():
            torn.setdefault(name, []).append(values)
        away = novelty.scores(made.calibration, number, images, seen)
        if away is not None:
            scores.append(away)
    score = p_value = np.full(len(pixels), np.nan)
    if scores:
        score, p_value = novelty.judge(made.calibration, np.mean(scores, 0), there[:, : len(images)], images)
    stacked = {source: {name: np.stack(values) for name, values in each.items()} for source, each in raw.items()}
    found = {}
    for source in stacked:
        beside = subsets.beside(sources, parts[source])
        mixed = {
            name: np.tensordot(mixing(made, name, source), np.stack([stacked[one][name] for one in beside]), 1)
            for name in made.tasks
        }
        found[source] = assemble(made, mixed if beside[1:] else stacked[source], score, p_value, source=source)
    if not found:
        found[""] = assemble(made, {}, score, p_value)
    found[""] = by_what_is_there(found, there, parts)
    apart = {name: np.mean(values, 0) for name, values in torn.items()}
    found[""] = replace(found[""], torn=apart, shares=np.mean(attended, 0))
    return found


def by_what_is_there(
    found: Mapping[str, Answered], there: NDArray[np.bool_], parts: Mapping[str, NDArray[np.bool_]]
) -> Answered:
    """Of each case the answer by exactly the sources that it has, ``(n, s)``."""
    whole = found[""]
    for source, mask in parts.items():
        others = ~(there == mask).all(1)
        if source and not others.all():
            whole = merged(whole, found[source], others)
    return whole


def merged(first: Answered, second: Answered, rows: NDArray[np.bool_]) -> Answered:
    """The first in these rows, the second in the others; what comes of the images alone is that of the first."""

    def of(a: Any, b: Any) -> Any:
        if isinstance(a, dict):
            return {name: of(a[name], b[name]) for name in a}
        return np.where(rows if a.ndim == 1 else rows[:, None], a, b)

    both = {name: of(value, getattr(second, name)) for name, value in vars(first).items() if name not in _OF_IMAGES}
    return replace(first, **both)


def assemble(made: Model, raw: dict[str, Array], score: Array, p_value: Array, source: str = "") -> Answered:
    """Calibrated answers from raw outputs ``(members, n, o)`` by task; ``source`` says by what alone they are."""
    result = Answered({}, {}, {}, {}, {}, score, p_value)
    for name, task in made.tasks.items():
        fitted = calibrated(made, name, source)
        p = calibration.apply(task, fitted, raw[name])
        result.probability[name] = p
        result.low[name], result.high[name] = calibration.intervals(task, fitted, raw[name])
        result.sets[name] = calibration.sets(task, p, float(fitted.quantile[0]))
        result.decision[name] = calibration.decide(task, p, fitted.threshold)
    return result


def mixing(made: Model, task: str, source: str = "") -> Array:
    """How much the answers by a part of the sources and by each of them alone count (``calibration.mixing``)."""
    network = made.networks[0]
    stored = made.calibration.get(calibration.key(source, f"mixing.{list(made.tasks).index(task)}"))
    return np.eye(len(subsets.beside(network.sources, network.subsets[source])))[0] if stored is None else stored


def calibrated(made: Model, task: str, source: str = "") -> Calibrated:
    """What the model stores of a task's calibration; neutral where it was trained without one.

    ``source``: of the answers by the ``image`` or the ``covariates`` alone.
    """
    prefix = calibration.key(source, f"task.{list(made.tasks).index(task)}.")
    stored = {k[len(prefix) :]: v for k, v in made.calibration.items() if k.startswith(prefix)}
    if stored:
        return Calibrated(**stored)
    size, classes = made.tasks[task].outputs, len(made.tasks[task].question.classes)
    return Calibrated(
        temperature=np.ones(1),
        bias=np.zeros(size),
        bootstrap=np.concatenate([[1.0], np.zeros(size)])[None],
        quantile=np.array([np.inf]),
        coverage=np.array([made.recipe.inference.coverage]),
        threshold=np.full(classes, 0.5),
    )


def diagnose(made: Model, case: Case, networks: Sequence[Network] | None = None) -> Diagnosis:
    """One case to one diagnosis: calibrated answers, how sure they are, and whether they are withheld.

    Args:
        made: the model.
        case: with its pixels.
        networks: those of the model that answer; all by default.

    Raises:
        Problem: the case's image cannot be given to this model (several images, colour for grey), or a covariate is
            implausible or of another type.
    """
    began = time.perf_counter()
    image = data.the_image(case, made.recipe.image)
    person = covariates.encode(made.recipe.covariates, case.covariates)
    pixels = data.prepare(image, made.recipe.image)
    known = person.row[None] if made.recipe.covariates.columns else None
    when = data.timeline(image, made.recipe.image)[None]
    answered = answer(made, pixels[None], networks, when, known)
    found = conclude(made, case.id, image, answered, 0, 0.0, person)
    if found.novelty is not None and found.novelty.score > found.novelty.threshold and image.together:
        found = replace(found, reasons=(*found.reasons, *modalities.swapped(made, image)))
    if known is not None and np.isfinite(known).any() and not image.together:
        told = shares.Known(pixels, when[0], person.row)
        fitted = {name: (calibrated(made, name), mixing(made, name)) for name in made.tasks}
        found = replace(found, shares=shares.of_answers(made, told, found.answers, fitted, networks))
    if made.recipe.dense:
        found = replace(
            found,
            answers={
                **found.answers,
                **places.answer(made, image, networks, person=person.row, withheld=found.abstained),
            },
        )
    if made.recipe.linked:
        torn = {name: float(values[0]) for name, values in answered.torn.items()}
        # As in calibration: places of the moments that the classes are answered from, not of any of a long loop.
        looked = set(data.moments_of(image, made.recipe.image).tolist())
        seen = {name: linking.within(given, looked) for name, given in found.answers.items()}
        found = replace(found, concordance=concordance(made, seen, torn))
    return replace(found, seconds=time.perf_counter() - began, peak_mib=_peak_mib())


def shared(made: Model, case: Case, task: str, name: str) -> Shares:
    """What the image and each covariate of a case add to the evidence for one class.

    Raises:
        Problem: the model takes no covariates, or the case cannot be given to it.
    """
    if not made.recipe.covariates.columns:
        raise Problem("this model takes no covariates, so there is nothing to share out", fix="ask for a map")
    plan = made.recipe.image
    if len(plan.modalities) > 1:
        raise Problem("what each modality adds is not told apart from covariates yet", fix="ask for a map")
    image = data.the_image(case, plan)
    person = covariates.encode(made.recipe.covariates, case.covariates)
    known = shares.Known(data.prepare(image, plan), data.timeline(image, plan), person.row)
    number = made.tasks[task].question.classes.index(name)
    return shares.of_answer(made, known, (task, number), (calibrated(made, task), mixing(made, task)))


def conclude(
    made: Model,
    case_id: str,
    image: Image,
    answered: Answered,
    row: int,
    seconds: float,
    person: covariates.Encoded | None = None,
) -> Diagnosis:
    """The diagnosis of one row of :func:`answer`."""
    limit = float(made.calibration["novelty.threshold"][0]) if "novelty.threshold" in made.calibration else None
    reasons, checked = _checks(made, image, float(answered.score[row]), limit)
    columns = made.recipe.covariates.columns
    if made.recipe.image.prepare:
        checked += data.made_ready(image, made.recipe.image).said
    if person is not None and columns:
        checked += person.checked
    source, rests_on, doubts = modalities.rests_on(made, image, None if person is None else person.row)
    reasons += doubts
    answers: dict[str, Answer] = {}
    for name, task in made.tasks.items():
        answers[name] = _answer(made, name, task, answered, row, source)
        if not limit:
            continue
        if task.question.kind in ("multiclass", "ordinal") and len(answers[name].prediction_set) > 1:
            among = " or ".join(answers[name].prediction_set)
            reasons.append(f"{name}: {among} are possible at {answers[name].coverage:.0%} coverage")
        elif (
            not set(answers[name].decision) <= set(answers[name].prediction_set)
            and task.question.kind != "multilabel"
        ):
            only = " or ".join(answers[name].prediction_set)
            reasons.append(
                f"{name}: the threshold says {answers[name].decision[0]}, the set of possible answers {only}"
            )
    if reasons:
        answers = {name: replace(given, decision=()) for name, given in answers.items()}
    strange = None
    if limit is not None:
        strange = Novelty(float(answered.score[row]), limit, float(answered.p_value[row]))
    return Diagnosis(
        case=case_id,
        answers=answers,
        novelty=strange,
        abstained=bool(reasons),
        reasons=tuple(reasons),
        checked=tuple(checked),
        notes=(
            *image.notes,
            *_unseen(made, image),
            *rests_on,
            *(person.notes if person is not None and columns else ()),
        ),
        model=made.sha256,
        engine="torch",
        precision="float32",
        seconds=seconds,
        peak_mib=_peak_mib(),
        moments=data.attended(
            image, made.recipe.image, answered.shares[row] if len(answered.shares) else np.empty(0)
        ),
    )


def _unseen(made: Model, image: Image) -> tuple[str, ...]:
    """Of a long sequence the model looks at some moments: who reads its answer must know."""
    most = made.recipe.moments
    if most is None or image.length <= most:
        return ()
    return (f"The model looks at {most} of the {image.length} moments, evenly spaced.",)


def concordance(made: Model, answers: Mapping[str, Answer], torn: Mapping[str, float]) -> Concordance:
    """Whether the answers of linked tasks agree, and how often the class was wrong in held-out cases like this."""
    statements = tuple(linking.disagreements(answers, torn, made.recipe))
    counts = made.calibration.get("concordance", np.zeros((2, 2)))[int(bool(statements))]
    share = wilson(counts[0], counts[1])
    wrong = (share.value, share.low, share.high) if counts[1] else None
    return Concordance(not statements, statements, wrong, int(counts[1]))


def _peak_mib() -> float:
    """Peak memory of this process, MiB; NaN where the system does not say."""
    try:
        import resource
    except ImportError:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _answer(made: Model, name: str, task: Classification, answered: Answered, row: int, source: str) -> Answer:
    question = task.question
    findings = []
    for k, label in enumerate(question.classes):
        value = float(answered.probability[name][row, k])
        interval = (float(answered.low[name][row, k]), float(answered.high[name][row, k]))
        by = f"model:{made.sha256[:12]}"
        if question.kind == "regression":
            bounds = interval if np.isfinite(interval).all() else None
            findings.append(Finding(name, label, by, value=value, interval=bounds, unit=question.unit))
        else:
            rank = float(k) if question.kind == "ordinal" else None
            findings.append(Finding(name, label, by, probability=value, interval=interval, value=rank))
    chosen = [c for c, yes in zip(question.classes, answered.decision[name][row], strict=True) if yes]
    held = [c for c, yes in zip(question.classes, answered.sets[name][row], strict=True) if yes]
    exclusive = question.kind != "regression"
    return Answer(
        task=name,
        kind=question.kind,
        findings=tuple(findings),
        decision=tuple(chosen) if exclusive else (),
        prediction_set=tuple(held) if exclusive else (),
        coverage=float(calibrated(made, name, source).coverage[0]),
    )


def _checks(made: Model, image: Image, score: float, limit: float | None) -> tuple[list[str], list[str]]:
    """Reasons to withhold the answer, and what was looked at."""
    reasons, checked = [], []
    for name, each in modalities.named(made, image):
        if float(np.ptp(each.array.astype(np.float32))) == 0:
            reasons.append(f"the image{name} is blank: every pixel has the same value")
    checked.append("the image is not blank")
    known = made.card.get("modalities", [])
    if known and image.modality and not image.together:
        if image.modality not in known:
            reasons.append(f"the image is {image.modality}, the model was trained on {', '.join(known)}")
        checked.append(f"the modality is {', '.join(known)}")
    if limit is not None:
        if score > limit:
            reasons.append(
                f"the image is unlike those the model was trained on (novelty {score:.1f}, limit {limit:.1f})"
            )
        share = made.recipe.inference.refusals
        checked.append(f"novelty: about {share:.0%} of images like the training images are refused")
    else:
        checked.append("no novelty gate: the model was trained without calibration cases")
    return reasons, [
        line for line in checked if not (reasons and line == "the image is not blank" and "blank" in reasons[0])
    ]
