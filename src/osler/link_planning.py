"""What linked tasks see, and what their classes mean: the part of a recipe that only they have."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osler import data, linking, planning
from osler.case import Case, Question
from osler.cohort import Cohort, is_known, label_of
from osler.problem import Problem

# Voxels of an image that a step of a second or two can take.
VOXELS = {"cpu": 56**3, "cuda": 128**3}
# Slices that a network which looks at each alone is given at once.
_SLICES = 16
# Cases that are looked at for what a class implies, and how many of a class are enough to say so: after ten alike no
# more than a quarter of all may be otherwise (95 %).
_BOTH, _ENOUGH = 200, 10


def plan_whole(
    base: dict[str, Any],
    why: dict[str, str],
    seen: tuple[NDArray[np.float64], NDArray[np.float64]],
    found: planning.Fingerprint,
) -> None:
    """Linked tasks see images whole, so that a class is about all of what is outlined: as fine as a step can take.

    ``seen``: sizes and spacings (mm) of a sample of images, ``(n, 3)`` each.
    """
    image, patches = base["image"], base["patches"]
    sizes, spacings = seen
    depth, height, width = np.median(sizes, 0)
    if image["dims"] == 3:
        size = np.array([depth, height, width])
        if np.isfinite(spacings).all():
            # As far apart along all axes, as far as images are: the network looks along each alike.
            size = size * np.median(spacings, 0) / np.median(spacings, 0).min()
        size = size * min(1.0, (VOXELS["cuda" if torch.cuda.is_available() else "cpu"] / size.prod()) ** (1 / 3))
        image["size"] = [8 * math.ceil(min(n, m) / 8) for n, m in zip(size, (depth, height, width), strict=True)]
    else:
        longest = patches.get("longest") or min(256, planning.multiple(int(max(height, width)), 32))
        sides = [planning.multiple(int(n * longest / max(height, width)), 32) for n in (height, width)]
        slices = min(_SLICES, math.ceil(np.quantile(sizes[:, 0], 0.9)))
        image["size"] = [slices, *sides]
    why["image.size"] = "linked tasks see images whole: the median image, as fine as a step can take"
    image["frames"], why["image.frames"] = min(found.frames, 8), f"sequences of up to {found.frames}"
    patches |= {"unit": "px", "spacing": [0.0, 0.0, 0.0], "longest": 0}
    for key in ("patches.unit", "patches.spacing", "patches.longest"):
        why[key] = "linked tasks see images whole"


def plan_links(base: dict[str, Any], why: dict[str, str], cohort: Cohort, asked: Mapping[str, Question]) -> None:
    """Which classes mean that nothing is there, and which that something is: as in all cases that show both.

    Where several things are looked for, each has to be known in enough cases of the class: nothing means none of
    them, something means every one.
    """
    places = [question for question in asked.values() if question.dense]
    # Who boxed it knows as much of it as who outlined it.
    thing = {question.task: question.task for question in places} | {
        boxed.task: outlined.task
        for outlined, boxed in linking.pairs(asked) if set(outlined.classes) == set(boxed.classes)
    }  # fmt: skip
    shown: dict[tuple[str, str], dict[str, list[bool]]] = {}
    entries = [entry for entry in cohort.entries if entry.split != "test" and any(is_known(entry, q) for q in places)]
    for entry in entries[:: max(1, len(entries) // _BOTH)]:
        try:
            case = data.read_case(entry, places)
        except Problem:
            continue
        there: dict[str, bool] = {}
        for question in places:
            if is_known(entry, question):
                there[thing[question.task]] = there.get(thing[question.task], False) or _there(case, question)
        for name, question in asked.items():
            label = label_of(entry, question)
            if question.kind in ("multiclass", "ordinal") and label:
                seen = shown.setdefault((name, label), {})
                for what, yes in there.items():
                    seen.setdefault(what, []).append(yes)
    base["links"] = {"nothing": {}, "something": {}}
    for name, question in asked.items():
        enough = {label: shown.get((name, label), {}) for label in question.classes}
        enough = {
            label: seen for label, seen in enough.items()
            if seen.keys() == set(thing.values()) and min(map(len, seen.values())) >= _ENOUGH
        }  # fmt: skip
        never = [label for label, seen in enough.items() if not any(map(any, seen.values()))]
        always = [label for label, seen in enough.items() if all(map(all, seen.values()))]
        # Where something is always there, nothing follows from it.
        if never:
            base["links"]["nothing"][name], base["links"]["something"][name] = never, always
            counts = [f"{sum(seen)} of {len(seen)} {c}" for c in (*never, *always) for seen in enough[c].values()]
            why[f"links.nothing.{name}"] = f"something is outlined or boxed in {', '.join(counts)}"


def _there(case: Case, question: Question) -> bool:
    if question.kind == "segmentation":
        values = [value for group in question.values for value in group]
        return question.task in case.maps and bool(np.isin(case.maps[question.task], values).any())
    return any(f.task == question.task and f.box is not None for f in case.findings)
