"""Checks of a cohort: one kind of leak or defect a file.

Every file holds ``find(evidence) -> list[Trouble]``. A check that needs the pixels also holds
``measure(look) -> NDArray``: a small array of the same shape and type for every image, taken while the image is in
memory; ``find`` gets them back, stacked, as ``evidence.measured[NAME]``, ``NAME`` being its file's name. Each image
is read once for all checks, and nothing else of it is kept: memory is a fixed number of bytes a case. Where several
things are measured, the array may be a structured one without a shape. Of cases with several images every modality is
checked by itself; a check that says ``PIXELS = False`` looks at the table alone, once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from osler.case import CaseId, Entry, Question
from osler.image import Image


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong with a cohort, or likely is.

    Attributes:
        kind: what it is, in one or two words joined by ``_``, e.g. ``"resized_copy"``; the same for the same thing.
        cases: whom it concerns, the most telling first.
        message: what was found and how sure that is, one sentence with its numbers, without the final stop; it names
            no case, because it is written where cases have pseudonyms.
        fix: what to do about it, one sentence, the same.
        severity: ``stop``: no honest figure can come of it; ``repair``: ``train`` repairs it by itself;
            ``look``: a person must judge.
        groups: the cases that belong together, where it is about several (copies): each a tuple of case ids.
    """

    kind: str
    cases: tuple[CaseId, ...]
    message: str
    fix: str
    severity: Literal["stop", "repair", "look"] = "look"
    groups: tuple[tuple[CaseId, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Look:
    """What a check may look at of one case, while its pixels are in memory.

    Attributes:
        entry: the case.
        image: as it was read.
        plane: its middle slice of its middle moment, float32 ``(height, width)``, colour as luma, in stored values.
    """

    entry: Entry
    image: Image
    plane: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evidence:
    """A cohort as the checks see it, after every image was looked at once.

    Attributes:
        entries: cases whose images could be read, in order; ``n`` of them.
        questions: what the labels ask.
        grouping: how patients were told apart; empty where each case counts as its own.
        fields: facts of every case by name, ``n`` values each, ``None`` where missing: header fields
            (``"header.StationName"``), and facts of the image: ``image.`` and one of ``height, width, depth, frames,
            channels, dtype, modality, unit, geometry, spacing_x, spacing_y, spacing_z``, and of its plane ``min, max,
            mean, std``.
            The table's own columns are in ``entry.metadata`` and ``entry.covariates``.
        measured: for each check that measures, its rows stacked, ``(n, ...)``.
    """

    entries: tuple[Entry, ...]
    questions: tuple[Question, ...]
    grouping: str = ""
    fields: Mapping[str, list[str | float | None]] = field(default_factory=dict)
    measured: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def plane(image: Image) -> NDArray[np.float32]:
    """The middle slice of the middle moment, ``(height, width)``, colour as luma; what is not finite becomes 0."""
    shown = image.array[image.frames // 2, :, image.size[0] // 2].astype(np.float32)
    grey = shown[0] if len(shown) != 3 else np.tensordot(np.array([0.299, 0.587, 0.114], np.float32), shown, 1)
    return np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
