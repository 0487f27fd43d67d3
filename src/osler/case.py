"""What a patient's case is made of, and what is said about it: by readers and by models, in one type."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from osler.image import Image

CaseId = str
Role = Literal["train", "validation", "calibration", "test"]
Value = TypeVar("Value", covariant=True)


class Cells(Mapping[str, Value]):
    """One row of columns that many cases share, read like a dictionary: 48 bytes a case instead of hundreds.

    Args:
        columns: by name, all of the same length.
        row: which one.
    """

    __slots__ = ("_columns", "_row")

    def __init__(self, columns: Mapping[str, Sequence[Value]], row: int) -> None:
        self._columns, self._row = columns, row

    def __getitem__(self, name: str) -> Value:
        return self._columns[name][self._row]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return repr(dict(self))


# Shared by all cases of which nothing is known: a million empty dictionaries are 64 MB.
NOTHING: Mapping[str, Any] = Cells({}, 0)


@dataclass(frozen=True)
class Code:
    """A coded concept, e.g. ``Code("SCT", "86049000", "Malignant neoplasm, primary")``."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement about a case. A label is a finding by a reader, a prediction one by a model.

    Attributes:
        task: name of the task that it answers, e.g. ``"label"`` or ``"diagnosis"``.
        name: class name, e.g. ``"malignant"``; for a regression the name of the quantity.
        by: ``"reader"``, ``"reader:<name>"`` or ``"model:<hash>"``.
        probability: 1 present, 0 absent (readers), in between (models); ``None`` where it does not apply.
            What is unknown is *not stated*: an absent finding is unknown, never negative.
        interval: of the probability or of the value, 95 %.
        value: the number of a regression, or the rank (0, 1, ...) of an ordinal class.
        unit: of the value.
        code: SNOMED CT or another scheme, where one exists.
    """

    task: str
    name: str
    by: str = "reader"
    probability: float | None = None
    interval: tuple[float, float] | None = None
    value: float | None = None
    unit: str = ""
    code: Code | None = None


Kind = Literal["multiclass", "multilabel", "ordinal", "regression"]
# DICOM's codes of the machines whose images have augmentations of their own; empty is unknown or another.
Modality = Literal["", "MR", "CT", "US", "CR", "DX", "MG"]


_WITHOUT_FINDING = ("normal", "negative", "no", "none", "healthy", "control", "absent", "false", "no finding")


def without_finding_first(names: Iterable[str]) -> tuple[str, ...]:
    """The same names, those that mean "nothing was found" first: the second of two classes is the positive one."""
    known = list(names)
    return tuple(sorted(known, key=lambda name: name.lower().replace("_", " ").strip() not in _WITHOUT_FINDING))


@dataclass(frozen=True)
class Question:
    """What is asked of each case of a cohort, as its labels show it.

    Attributes:
        task: name, e.g. ``"label"``; it is :attr:`Finding.task` of the answers.
        kind: ``multiclass`` (exactly one class), ``multilabel`` (any number, each known or unknown),
            ``ordinal`` (one of ordered classes) or ``regression`` (a number).
        classes: in a fixed order, for ordinal from low to high; for a regression the name of the quantity.
        unit: of a regression.
    """

    task: str
    kind: Kind
    classes: tuple[str, ...]
    unit: str = ""


@dataclass(frozen=True, slots=True, init=False)
class Source:
    """Where the pixels of one image are.

    Attributes:
        path: a file, or a folder that holds one DICOM series.
        key: name of the array inside a container (``train_images`` in a MedMNIST file), else empty.
        index: row of that array, else ``None``.
        frame: take only this moment of a sequence, else ``None``.
    """

    # A Path takes 400 bytes more than its text, and there may be a million.
    _path: str
    key: str
    index: int | None
    frame: int | None

    def __init__(self, path: str | Path, key: str = "", index: int | None = None, frame: int | None = None) -> None:
        for name, value in (("_path", os.fspath(path)), ("key", key), ("index", index), ("frame", frame)):
            object.__setattr__(self, name, value)

    @property
    def path(self) -> Path:
        return _path(self._path)


# A million cases may lie in one file.
_path = lru_cache(maxsize=64)(Path)


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of a cohort: a case whose pixels have not been read yet.

    Attributes:
        id: unique in its cohort.
        patient: the patient (or other group) that the case belongs to; splits never cut through one.
        images: role or modality to source; a single image stands under ``"image"``.
        findings: what readers said.
        split: the part of the cohort that the table assigns it to, or ``None``.
        covariates: known at the time of diagnosis, by name; ``None`` means missing.
        metadata: every other column; for subgroups only, never given to a model.
    """

    id: CaseId
    patient: str
    images: Mapping[str, Source]
    findings: tuple[Finding, ...] = ()
    split: Role | None = None
    covariates: Mapping[str, float | str | None] = field(default_factory=lambda: NOTHING)
    metadata: Mapping[str, str | float | None] = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, eq=False)
class Case:
    """An entry with its pixels."""

    id: CaseId
    patient: str
    images: Mapping[str, Image]
    findings: tuple[Finding, ...] = ()
    covariates: Mapping[str, float | str | None] = field(default_factory=dict)
    metadata: Mapping[str, str | float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model answers to one task.

    Attributes:
        task: its name.
        kind: ``multiclass``, ``multilabel``, ``ordinal`` or ``regression``.
        findings: one for each class (or the one quantity), probability calibrated, in the model's class order.
        decision: the classes stated; empty where the answer is withheld, which never means negative.
        prediction_set: conformal set: holds the truth for ``coverage`` of cases like those calibrated on.
        coverage: the nominal coverage of that set, e.g. 0.9.
    """

    task: str
    kind: str
    findings: tuple[Finding, ...]
    decision: tuple[str, ...]
    prediction_set: tuple[str, ...] = ()
    coverage: float | None = None


@dataclass(frozen=True)
class Novelty:
    """How far a case lies from what the model was trained on.

    Attributes:
        score: distance; larger is stranger.
        threshold: above it the model abstains.
        p_value: share of calibration cases that were at least as strange.
    """

    score: float
    threshold: float
    p_value: float


@dataclass(frozen=True)
class Diagnosis:
    """The answers of a model for one case, how sure they are, and what was checked.

    Attributes:
        case: id of the case; a pseudonym in every output that leaves the terminal.
        answers: by task.
        novelty: distance from the training data, ``None`` for a model without a gate.
        abstained: the model withholds its decision.
        reasons: why, a sentence each; empty where it does not abstain.
        checked: what was checked, a sentence each.
        notes: what the reader of the image had to assume.
        model: SHA-256 of the model.
        engine: ``torch``; and ``precision``: ``float32`` or ``bfloat16``.
        seconds: wall time from pixels to answer; ``peak_mib``: peak memory of the process, MiB.
    """

    case: CaseId
    answers: Mapping[str, Answer]
    novelty: Novelty | None
    abstained: bool
    reasons: tuple[str, ...]
    checked: tuple[str, ...]
    notes: tuple[str, ...]
    model: str
    engine: str
    precision: str
    seconds: float
    peak_mib: float
    schema_version: int = 1
