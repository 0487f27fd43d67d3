"""What makes a network's outputs a diagnosis: all that is fitted on cases which it has not seen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from osler import asking, calibration, draws, frozen, linking, modalities, novelty, subsets
from osler.calibration import key
from osler.case import Answer, Entry, Finding
from osler.cohort import Calibration
from osler.fitting import Examples
from osler.model import Network
from osler.recipe import Recipe
from osler.tasks.classification import Classification

_Fitted = dict[str, NDArray[Any]]
# Of the training cases so many tell what an image usually looks like.
_LEARNED = 3000


@dataclass(frozen=True, eq=False)
class _Said:
    """What networks said of ``n`` held-out cases.

    Attributes:
        entries: the cases.
        targets: what is true of them, by task.
        there: which sources each has, ``(n, s)``.
        away: how unusual each of its images is, ``(n, m)``.
        fold: number of the network, ``(n,)``.
        outputs: ``(n, k)`` by source and task, see ``calibration.key``.
        torn: by task, see ``asking.outputs``.
    """

    entries: tuple[Entry, ...]
    targets: Mapping[str, NDArray[np.float32]]
    there: NDArray[np.bool_]
    away: NDArray[np.floating[Any]]
    fold: NDArray[np.int64]
    outputs: Mapping[str, NDArray[np.float64]]
    torn: Mapping[str, NDArray[np.float64]]


def calibrate(
    networks: Sequence[Network], parts: Iterable[tuple[Examples, Examples]], plan: Recipe
) -> tuple[_Fitted, dict[str, Any], dict[str, Tensor]]:
    """Fits everything of ``osler.calibration`` and ``osler.novelty`` on cases that each network has not seen.

    Args:
        networks: of the folds, or members of one ensemble.
        parts: what each was trained on, and what was held out from it.
        plan: the recipe.

    Returns:
        Arrays by name for the model, facts for its card, and the held-out outputs (for out-of-fold evaluation).
    """
    arrays: _Fitted = {}
    pieces = []
    for number, (network, (training, held)) in enumerate(zip(networks, parts, strict=True)):
        if not isinstance(held.part, Calibration):
            raise TypeError("calibration is fitted on Calibration, nothing else")
        if len(held):
            gates, said = _asked((number, network), training, held, plan)
            arrays |= gates
            pieces.append(said)
    if not pieces:
        return arrays, {"calibrated": False}, {}
    said = _joined(pieces, folded=bool(plan.training.folds))
    images = _images(plan)
    shown = said.there[:, : len(images)]
    arrays |= novelty.limits(said.away, shown, images, plan.inference.refusals)
    scores, _ = novelty.judge(arrays, said.away, shown, images)
    stored = {"fold": said.fold, "novelty": scores, "there": said.there}
    stored |= {f"torn.{name}": values for name, values in said.torn.items()}
    stored |= {f"target.{name}": values for name, values in said.targets.items()}
    stored |= dict(said.outputs)
    card: dict[str, Any] = {"calibrated": True, "calibration_cases": len(scores), "isotonic": {}}
    network = networks[0]
    for number, (name, task) in enumerate(network.tasks.items()):
        for source in network.subsets:
            fitted, measured = _fit((number, name, task), source, said, network, plan)
            arrays |= fitted
            if len(images) > 1:
                card.setdefault("subsets", {}).setdefault(source or "all", {})[name] = measured
            if not source:
                outputs, target = _weighed((number, name), source, said.outputs, network, arrays), said.targets[name]
                people = [entry.patient for entry in said.entries]
                card["isotonic"][name] = calibration.against_isotonic(task, outputs, target, people)
    return arrays, card, {name: torch.from_numpy(values) for name, values in stored.items()}


def _images(plan: Recipe) -> tuple[str, ...]:
    return plan.image.modalities if len(plan.image.modalities) > 1 else ("",)


def _asked(numbered: tuple[int, Network], training: Examples, held: Examples, plan: Recipe) -> tuple[_Fitted, _Said]:
    """The novelty gates of one network, and what it says of the cases held out from it."""
    number, network = numbered
    images, views = _images(plan), asking.moved_copies(plan.inference.views)
    chosen = np.sort(draws.permutation(draws.keys(plan.training.seed, number, 5), len(training))[:_LEARNED])
    when = None if training.times is None else training.times[chosen]
    # What a backbone that stayed as it was has looked at before is in the cache.
    of_all = [frozen.features(network, e.pixels, plan) if plan.training.freeze else None for e in (training, held)]
    known = None if of_all[0] is None else of_all[0][chosen]
    learned = asking.outputs(network, training.pixels[chosen], views[:1], times=when, features=known)
    seen = asking.outputs(
        network, held.pixels, views, times=held.times, covariates=held.covariates, features=of_all[1]
    )
    there = subsets.present(len(held), len(images), held.times, held.covariates)
    had = subsets.present(len(chosen), len(images), when, None)
    gates = novelty.fit_each(number, images, (learned, had), (seen, there))
    away = novelty.scores(gates, number, images, seen)
    assert away is not None
    outputs = {
        key(source, f"outputs.{name}"): value
        for source, answers in {"": seen.answers, **seen.alone}.items()
        for name, value in answers.items()
    }
    fold = np.full(len(held), number, np.int64)
    return gates, _Said(tuple(held.part.entries), held.targets, there, away, fold, outputs, seen.torn)


def _joined(pieces: Sequence[_Said], *, folded: bool) -> _Said:
    """Folds answer for different cases; members of one ensemble answer the same cases together."""

    def together(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate(values) if folded else np.asarray(np.mean(values, axis=0))

    def by_name(tables: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        return {name: together([table[name] for table in tables]) for name in tables[0]}

    away, fold = together([p.away for p in pieces]), together([p.fold for p in pieces]).astype(np.int64)
    outputs, torn = by_name([p.outputs for p in pieces]), by_name([p.torn for p in pieces])
    if not folded:
        first = pieces[0]
        return _Said(first.entries, first.targets, first.there, away, fold, outputs, torn)
    entries = tuple(entry for piece in pieces for entry in piece.entries)
    there = np.concatenate([p.there for p in pieces])
    return _Said(entries, by_name([p.targets for p in pieces]), there, away, fold, outputs, torn)


def _fit(
    asked: tuple[int, str, Classification], source: str, said: _Said, network: Network, plan: Recipe
) -> tuple[_Fitted, Any]:
    """The calibration of one task asked by one part of the sources, and how good that was.

    A case of which something is missing is answered from what is there, and calibrated as such.
    """
    number, name, task = asked
    target = said.targets[name]
    complete = np.asarray(said.there[:, network.subsets[source]].all(1), bool)
    rows = calibration.rows_for(task, target, complete)
    people = np.array([entry.patient for entry in said.entries])
    fitted: _Fitted = {}
    beside = subsets.beside(network.sources, network.subsets[source])
    if len(beside) > 1:
        every = [said.outputs[key(one, f"outputs.{name}")][rows] for one in beside]
        fitted[key(source, f"mixing.{number}")] = calibration.mixing(task, every, target[rows])
    outputs = _weighed((number, name), source, said.outputs, network, fitted)
    found = calibration.fit(
        task, outputs[rows], target[rows], people[rows].tolist(),
        coverage=plan.inference.coverage, rule=plan.inference.threshold,
    )  # fmt: skip
    fitted |= {key(source, f"task.{number}.{k}"): v for k, v in vars(found).items()}
    if len(_images(plan)) < 2:
        return fitted, None
    # Before they were weighed against others on these very cases.
    p = calibration.apply(task, found, said.outputs[key(source, f"outputs.{name}")][None, complete])
    return fitted, modalities.held_out(task.question, p, target[complete], people[complete].tolist())


def _weighed(
    asked: tuple[int, str],
    source: str,
    outputs: Mapping[str, NDArray[np.float64]],
    network: Network,
    fitted: Mapping[str, NDArray[Any]],
) -> NDArray[np.float64]:
    """Outputs by a part of the sources, mixed with those by parts of it as was fitted (``calibration.mixing``)."""
    number, name = asked
    beside = subsets.beside(network.sources, network.subsets[source])
    every = [outputs[key(one, f"outputs.{name}")] for one in beside]
    if len(beside) < 2:
        return every[0]
    return np.asarray(np.tensordot(fitted[key(source, f"mixing.{number}")], np.stack(every), 1))


def concordance(
    network: Network,
    fitted: Mapping[str, NDArray[Any]],
    held: Mapping[str, Tensor],
    said: tuple[Sequence[str], Mapping[str, Mapping[str, Answer]]],
    plan: Recipe,
) -> NDArray[np.int64]:
    """How many held-out cases had a wrong class, and how many there were: where answers agreed, and where not.

    Args:
        network: any of the model.
        fitted: the calibration of its tasks that ask of the whole image.
        held: their outputs, as :func:`calibrate` gives them.
        said: ids of the held-out cases in the order of ``held``, and the other answers to each.
        plan: the recipe.
    """
    counts = np.zeros((2, 2), np.int64)
    order, others = said
    tasks = network.tasks
    found = {
        name: _answered((number, name), held, network, fitted)
        for number, (name, task) in enumerate(tasks.items())
        if held and task.question.kind in ("multiclass", "ordinal")
    }
    for row, case in enumerate(order if held else ()):
        if case not in others:
            continue
        answers = dict(others[case])
        wrong = []
        for name, p in found.items():
            question = tasks[name].question
            findings = [Finding(name, c, "model", float(p[row, k])) for k, c in enumerate(question.classes)]
            answers[name] = Answer(name, question.kind, tuple(findings), ())
            target = float(held[f"target.{name}"][row, 0])
            if np.isfinite(target):
                wrong.append(int(p[row].argmax()) != int(target))
        torn = {name: float(held[f"torn.{name}"][row]) for name in found if f"torn.{name}" in held}
        if wrong:
            counts[int(bool(linking.disagreements(answers, torn, plan)))] += (any(wrong), 1)
    return counts


def _answered(
    asked: tuple[int, str], held: Mapping[str, Tensor], network: Network, fitted: Mapping[str, NDArray[Any]]
) -> NDArray[np.floating[Any]]:
    """Probabilities of held-out cases for one task, of each from exactly the sources that it has, as diagnosed."""
    number, name = asked
    there = held["there"].numpy()
    outputs = {title: values.numpy() for title, values in held.items() if "outputs." in title}
    found: NDArray[np.floating[Any]] | None = None
    for source, mask in network.subsets.items():
        prefix = key(source, f"task.{number}.")
        own = calibration.Calibrated(**{k[len(prefix) :]: v for k, v in fitted.items() if k.startswith(prefix)})
        raw = _weighed(asked, source, outputs, network, fitted)
        p = calibration.apply(network.tasks[name], own, raw[None])
        found = p if found is None else np.where((there == mask).all(1)[:, None], p, found)
    assert found is not None
    return found
