"""Several images of a case beside each other: which of them an answer rests on, and how good that is.

Every non-empty set of modalities is answered from, calibrated by itself, and measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler import asking, data, novelty, scoring, subsets
from osler.case import Entry, Question
from osler.image import Image
from osler.model import Model
from osler.predictions import Predictions
from osler.recipe import ImagePlan

Array = NDArray[np.floating[Any]]
# By which figure sets are told of, and what it is called.
_FIRST = {"auroc": "AUROC", "mae": "mean error", "dice": "Dice", "map50": "mAP50"}
# What is said of every set, and the figure that is compared.
FIGURES = ("auroc", "brier", "calibration_slope", "mae", "r2")
_COMPARED = ("auroc", "brier", "mae", "r2")


def images(made: Model) -> tuple[str, ...]:
    """Names of the modalities of a model; one empty name where it looks at one image."""
    names = made.recipe.image.modalities
    return names if len(names) > 1 else ("",)


def named(made: Model, image: Image) -> list[tuple[str, Image]]:
    """The images that are there, and what is said of which one it is: nothing where there is but one."""
    if not image.together:
        return [("", image)]
    pairs = zip(made.recipe.image.modalities, image.together, strict=True)
    return [(f" of {name}", each) for name, each in pairs if each is not None]


def called(made: Model, image: Image, name: str) -> Image:
    """That one of the images side by side, on the grid on which it was looked at; the image itself without a name."""
    found = image.together[made.recipe.image.modalities.index(name)] if name and image.together else image
    if found is None:
        raise ValueError(f"there is no image {name}")
    return found


def rests_on(made: Model, image: Image, person: NDArray[np.float32] | None) -> tuple[str, tuple[str, ...], list[str]]:
    """From which sources a case is answered, what there is to say of it, and why that may not be enough.

    Args:
        made: the model.
        image: of :func:`osler.data.the_image`.
        person: the covariates ``(k,)``; ``None``: nothing is known.

    Returns:
        The name of the part (see :func:`osler.subsets.of`), notes, and reasons to withhold the answer.
    """
    sources, names = made.networks[0].sources, made.recipe.image.modalities
    there = [each is not None for each in image.together] if image.together else [True]
    if len(sources) > len(there):
        there.append(person is not None and bool(np.isfinite(person).any()))
    part = "" if made.recipe.dense else subsets.name(sources, np.array(there))
    if not image.together:
        return part, (), []
    notes, reasons = [], []
    missing = [name for name, yes in zip(names, there, strict=False) if not yes]
    seen = [name for name, yes in zip(names, there, strict=False) if yes]
    for name, each in zip(names, image.together, strict=True):
        known = made.card.get("codes", {}).get(name, [])
        if each is not None and each.modality and known and each.modality not in known:
            reasons.append(f"the image given as {name} is {each.modality}, and of {' or '.join(known)} in training")
    if missing:
        notes.append(f"The answer rests on {_listed(seen)}; missing: {_listed(missing)}.")
    measured = made.card.get("subsets", {})
    for task, found in measured.get(part or "all", {}).items() if missing else ():
        if found["cases"] < 20:
            notes.append(f"So few held-out cases had {_listed(seen)} that the calibration is that of other cases.")
        whole, own = measured["all"].get(task, {}).get("auroc"), found.get("auroc")
        if own is None:
            continue
        held = f"{scoring.said(own)} in {found['cases']} held-out cases"
        said = f"{task}: the AUROC from {_listed(seen)} alone was {held}"
        notes.append(said + ("." if whole is None else f", from all {scoring.said(whole)}."))
        if _at_best_a_coin(own) and whole is not None and not _at_best_a_coin(whole):
            reasons.append(f"{said}, no better than chance: the model cannot do without {_listed(missing)}")
    return part, tuple(notes), reasons


def _at_best_a_coin(auroc: Mapping[str, Any]) -> bool:
    return auroc["low"] is None or auroc["low"] <= 0.5


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def unregistered(plan: ImagePlan, entries: Sequence[Entry], there: NDArray[np.bool_] | None) -> list[str]:
    """How many cases have an image that could not be brought onto their first, a sentence for each modality.

    Args:
        plan: the modalities, in their order.
        entries: the cases.
        there: which images the network was given of each, ``(n, m)``, see :func:`osler.subsets.there`.
    """
    said = []
    if not plan.register or there is None:
        return []
    for number, name in enumerate(plan.modalities):
        failed = sum(name in entry.images and not there[row, number] for row, entry in enumerate(entries))
        if failed:
            said.append(f"{name} could not be registered in {failed} of {len(entries)} cases: it was not used there")
    return said


def codes(names: Sequence[str], found: Sequence[str]) -> dict[str, list[str]]:
    """DICOM's codes that each modality had in the training cases, from those of :class:`osler.data.Loaded`."""
    rows = [one.split("/") for one in found]
    return {name: sorted({row[s] for row in rows if row[s]}) for s, name in enumerate(names)}


def swapped(made: Model, image: Image) -> list[str]:
    """Of images that are unlike their modality, which ones look like another one of the model: a sentence each.

    Every image is looked at as if it were each of the others: it is said to be swapped where it would be refused
    under its own name, and would not under the other.
    """
    names, plan = images(made), made.recipe.image
    pixels, times = data.prepare(image, plan)[None], data.timeline(image, plan)[None]
    there = subsets.there(times, len(names))[0]
    limit = np.array([made.calibration[f"{name}.novelty.threshold"][0] for name in names])
    as_other = np.full((len(names), len(names)), np.inf)
    for turn in range(len(names)):
        moved = [np.roll(each, turn * plan.frames, 1) for each in (pixels, times)]
        found = []
        for number, network in enumerate(made.networks):
            seen = asking.outputs(network, moved[0], [lambda x: x], times=moved[1])
            one = novelty.scores(made.calibration, number, names, seen)
            if one is not None:
                found.append(one[0])
        if found:
            for s in np.flatnonzero(there):
                as_other[s, (s + turn) % len(names)] = np.mean(found, 0)[(s + turn) % len(names)]
    said = []
    for s in np.flatnonzero(there & (np.diag(as_other) > limit)):
        share = as_other[s] / limit
        best = int(share.argmin())
        if best != s and share[best] <= 1:
            said.append(f"the image given as {names[s]} looks like {names[best]}: they may be swapped")
    return said


# --- how good every set is ----------------------------------------------------------------------------------


def held_out(question: Question, p: Array, target: Array, patients: Sequence[str]) -> dict[str, Any]:
    """What the card of a model says of one set: ``cases``, and AUROC (of a number, the mean error) with interval."""
    if not len(p):
        return {"cases": 0}
    rows = Predictions(
        cases=tuple(str(number) for number in range(len(p))),
        patients=tuple(patients),
        question=question,
        target=target if question.kind == "multilabel" else target[:, 0],
        probability=p,
        abstained=np.zeros(len(p), bool),
    )
    return {"cases": len(p), **scoring.figures(rows, ("auroc", "mae"), 200)}


def measure(
    by: Mapping[str, Predictions], there: NDArray[np.bool_], parts: Mapping[str, NDArray[np.bool_]], draws: int = 2000
) -> dict[str, Any]:
    """Figures by set of sources, and what each is short of all of them: ``modalities.<task>`` in ``evaluation.json``.

    Each set is measured on the cases that have all of it, and compared on those that have everything.

    Args:
        by: name of a set to what was said by it, of the same cases.
        there: which sources each case has.
        parts: the sets, see :func:`osler.subsets.of`.
        draws: of the bootstrap.
    """
    found: dict[str, Any] = {"subsets": {}}
    every = np.asarray(there.all(1))
    for name, mask in parts.items():
        rows = np.asarray(there[:, mask].all(1))
        one: dict[str, Any] = {"n": int(rows.sum()), "metrics": {}, "less_all": {}}
        if rows.any():
            one["metrics"] = scoring.figures(by[name].take(rows), FIGURES, draws)
        if name and every.any() and one["metrics"]:
            compared = scoring.compare(by[name].take(every), by[""].take(every), draws, only=_COMPARED)
            one["less_all"] = compared["differences"]
        found["subsets"][name or "all"] = one
    return found


def describe(task: str, found: Mapping[str, Any]) -> list[str]:
    """A line for each set: how many cases have it, its first figure, and what it is short of all."""
    whole = found["subsets"]["all"]["metrics"]
    first = next((name for name in _FIRST if name in whole), None)
    if first is None:
        return []
    title = _FIRST[first]
    lines = []
    for name, one in found["subsets"].items():
        if first not in one["metrics"]:
            lines.append(f"{task}, {name}: no case has it.")
            continue
        slope = one["metrics"].get("calibration_slope")
        parts = [f"{title} {scoring.said(one['metrics'][first])}"]
        parts += [f"calibration slope {scoring.said(slope)}"] if slope and slope["value"] is not None else []
        less = one["less_all"].get(first)
        parts += [f"less all {scoring.said(less)}"] if less and less["value"] is not None else []
        lines.append(f"{task}, {name} ({one['n']} cases): {', '.join(parts)}.")
    return lines
