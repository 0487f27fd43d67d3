"""Which sources of a case there are, and every part of them that may be there: each has an answer of its own.

A source is an image (``image``, or the name of a modality), or what is known of the person (``covariates``). The set
of all is named by the empty text, any other by its members: ``flair+t1``.
"""

import json
import re
import shlex
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from osler import draws
from osler.problem import Problem

PERSON = "covariates"
# Of so many sources there are 63 subsets, each of which is calibrated.
MOST = 6
ONE_IMAGE = "linked tasks take one image"
Mask = Bool[NDArray[np.bool_], " s"]


def check(modalities: Sequence[str], *, covariates: bool, linked: bool) -> None:
    """Whether a network can be given these modalities.

    Raises:
        Problem: too many, one twice, a name that cannot be one, or tasks that are linked.
    """
    for number, name in enumerate(modalities):
        if name in modalities[:number]:
            raise Problem(f"in the recipe, image.modalities names {name!r} twice", fix="name it once")
        if not name or "+" in name or name == PERSON:
            raise Problem(f"a modality cannot be called {name!r}", fix="rename the column of the table")
    if len(modalities) + covariates > MOST:
        beside = " beside covariates" if covariates else ""
        raise Problem(
            f"the recipe has {len(modalities)} modalities{beside}, and every subset of them is calibrated by itself",
            fix=f"name at most {MOST - covariates} of them: {chosen(modalities[: MOST - covariates])}",
        )
    if linked and len(modalities) > 1:
        raise Problem(
            f"{ONE_IMAGE}, and the recipe names {', '.join(modalities)}",
            fix=f"choose it: {chosen(modalities[:1])}",
        )


def chosen(names: Sequence[str]) -> str:
    """The setting that chooses these images, as it is typed in a shell."""
    # What is no word has to keep its quotes, or it becomes a number or several words.
    if all(re.fullmatch(r"(?!(true|false|inf|nan)$)[A-Za-z][\w.-]*", name) for name in names):
        return f"image.modalities=[{','.join(names)}]"
    return shlex.quote(f"image.modalities={json.dumps(list(names), ensure_ascii=False)}")


def of(sources: Sequence[str]) -> dict[str, Mask]:
    """Every non-empty subset by its name, the set of all first, then from large to small."""
    found = {}
    for size in range(len(sources), 0, -1):
        for members in combinations(range(len(sources)), size):
            mask = np.isin(np.arange(len(sources)), members)
            found[name(sources, mask)] = mask
    return found


def beside(sources: Sequence[str], mask: Mask) -> list[str]:
    """What an answer from a part is made of: what is said from it, and from each of its members alone."""
    members = [source for source, yes in zip(sources, mask, strict=True) if yes]
    return [name(sources, mask), *(members if len(members) > 1 else [])]


def name(sources: Sequence[str], mask: Mask) -> str:
    """What a subset is called."""
    return "" if mask.all() else "+".join(source for source, yes in zip(sources, mask, strict=True) if yes)


def there(times: NDArray[np.float32], images: int) -> Bool[NDArray[np.bool_], "n m"]:
    """Which of so many images each case has.

    Args:
        times: of :func:`osler.data.timeline`, those of one image after the other; all NaN where one is missing.
        images: how many there may be.
    """
    return np.asarray(~np.isnan(times.reshape(len(times), images, -1)).all(2))


def present(
    cases: int, images: int, times: NDArray[np.float32] | None, known: NDArray[np.float32] | None
) -> Bool[NDArray[np.bool_], "n s"]:
    """Which sources each case has: of each image, and, where ``known`` is given, whether anything of the person is.

    Without ``times`` every image is there.
    """
    found = np.ones((cases, images), bool) if times is None else there(times, images)
    return found if known is None else np.column_stack([found, np.isfinite(known).any(1)])


def some(present: Bool[NDArray[np.bool_], "n s"], key: NDArray[np.uint64]) -> Bool[NDArray[np.bool_], "n s"]:
    """Of each case a part of the sources that it has, drawn at random: at least one, where it has any."""
    chance = draws.uniform(key, "some", (present.shape[1],))
    kept = present & (chance < 0.5)
    first = np.where(present, chance, 2.0).argmin(1)
    kept[np.arange(len(kept)), first] = present.any(1)
    return np.asarray(kept)
