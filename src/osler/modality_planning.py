"""What a plan says of several modalities: which of them are used, how they are brought onto each other, and
whether they share a backbone."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

from osler.cohort import Cohort
from osler.recipe import Registration

# Cases from which modalities that are alike have a backbone each.
_OWN = 2000
# Cases, and share of all, that must have a modality so that it can be learned from.
_LEAST, _SHARE = 10, 0.05


def images(cohort: Cohort) -> tuple[list[str], str]:
    """The images that cases have, without those that hardly any has, and why; none where all have one name."""
    learned = [entry for entry in cohort.entries if entry.split != "test"] or list(cohort.entries)
    counts = Counter(name for entry in learned for name in entry.images)
    if len(counts) < 2:
        return [], ""
    # As the columns of the table stand: some case has most of them.
    fullest = max(learned, key=lambda entry: len(entry.images))
    order = list(dict.fromkeys([*fullest.images, *counts]))
    least = max(_LEAST, _SHARE * len(learned)) if len(learned) > 2 * _LEAST else 1
    left = [name for name in order if counts[name] < least]
    told = [f"{counts[name]} of {len(learned)} cases have {name}" for name in order]
    told += [f"too few to learn from: {', '.join(left)}"] if left else []
    return [name for name in order if name not in left], "; ".join(told)


def register(dims: int, beside: int, apart: int) -> tuple[Registration, str]:
    """How the images of a case are brought onto the first of them, and why.

    Args:
        dims: of the network's convolutions.
        beside: sampled cases that have several images.
        apart: those of them whose images lie on grids of their own.
    """
    if dims < 3:
        return "", "flat images are taken as they lie"
    if not apart:
        return "", f"nothing says that they lie apart in any of {beside} sampled cases"
    why = f"in {apart} of {beside} sampled cases they lie on grids of their own"
    if importlib.util.find_spec("SimpleITK") is None:
        return "", why + '; registering them needs pip install "osler[registration]"'
    return "rigid", why


def network(cases: int, kinds: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Keys of the section ``network``, and their reasons.

    Args:
        cases: how many there are.
        kinds: DICOM's codes and the units that were seen.
    """
    found = {"fusion": "concat", "shared": False}
    why = {"network.fusion": "evidence of modalities is added, and seen together by a small layer"}
    several = len({kind for kind in kinds if kind and kind != "HU"}) > 1
    if several:
        why["network.shared"] = f"images of several kinds: {', '.join(kind for kind in kinds if kind)}"
    elif cases < _OWN:
        found["shared"], why["network.shared"] = True, f"{cases} cases: under {_OWN}, images alike teach one backbone"
    else:
        why["network.shared"] = f"{cases} cases are enough for each to learn what is its own"
    return found, why
