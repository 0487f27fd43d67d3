"""What a patient's case is made of, and what is said about it: by readers and by models, in one type."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

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
class Box:
    """A box along the axes of the image as it was read, by its edges: pixel ``i`` reaches from ``i`` to ``i + 1``.

    Attributes:
        start, stop: ``(depth, height, width)`` in pixels, fractions allowed, ``start < stop``; in a flat image the
            depth goes from 0 to 1.
    """

    start: tuple[float, float, float]
    stop: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not all(np.isfinite(a) and np.isfinite(b) and a < b for a, b in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"a box must start before it stops; got {self.start} to {self.stop}")


@dataclass(frozen=True, eq=False, slots=True)
class Mask:
    """Pixels of the image as it was read; only the part of it that holds them is kept.

    Attributes:
        array: ``(depth, height, width)``, true where the finding is; its first pixel lies at ``start`` in the image.
        start: ``(depth, height, width)``.
    """

    array: NDArray[np.bool_]
    start: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def cropped(cls, full: NDArray[np.bool_]) -> "Mask":
        """The mask of a whole image ``(depth, height, width)``, without what is empty around it.

        Raises:
            ValueError: nothing in it is true.
        """
        if not full.any():
            raise ValueError("a mask holds at least one pixel")
        ends = []
        for axis in range(3):
            there = np.flatnonzero(full.any(tuple(other for other in range(3) if other != axis)))
            ends.append((int(there[0]), int(there[-1]) + 1))
        window = tuple(slice(a, b) for a, b in ends)
        return cls(np.ascontiguousarray(full[window]), (ends[0][0], ends[1][0], ends[2][0]))

    def within(self, size: tuple[int, int, int]) -> NDArray[np.bool_]:
        """The mask of the whole image of ``size``."""
        full = np.zeros(size, bool)
        full[tuple(slice(a, a + n) for a, n in zip(self.start, self.array.shape, strict=True))] = self.array
        return full

    @property
    def box(self) -> Box:
        """The smallest box around the whole array."""
        a, (d, h, w) = self.start, self.array.shape
        return Box((a[0], a[1], a[2]), (a[0] + d, a[1] + h, a[2] + w))


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number that was measured on a finding.

    Attributes:
        name: ``volume``, ``area``, ``long axis``, ``short axis``, ``surface``, ...
        value, unit: ``ml``, ``mm``, ``mm2``; pixels (``px``, ``px2``, ``voxels``) where no distance is known.
        interval: 95 %, from how far such measurements of this model lay from those of readers; ``None`` if unknown.
        code: SNOMED CT or another scheme, where one exists.
    """

    name: str
    value: float
    unit: str
    interval: tuple[float, float] | None = None
    code: Code | None = None


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
        box, mask: where it is; both ``None`` for a statement about the whole image. With probability 0 and no place
            it says that there is none of it anywhere.
        frame: the moment of a sequence in which ``box`` and ``mask`` lie.
        measurements: of the mask.
    """

    task: str
    name: str
    by: str = "reader"
    probability: float | None = None
    interval: tuple[float, float] | None = None
    value: float | None = None
    unit: str = ""
    code: Code | None = None
    box: Box | None = None
    mask: Mask | None = None
    frame: int = 0
    measurements: tuple[Measurement, ...] = ()


Kind = Literal["multiclass", "multilabel", "ordinal", "regression", "segmentation", "detection"]
# Those that ask where something is.
DENSE = ("segmentation", "detection")
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
            ``ordinal`` (one of ordered classes), ``regression`` (a number), ``segmentation`` (which pixels are of
            which class) or ``detection`` (a box around each).
        classes: in a fixed order, for ordinal from low to high; for a regression the name of the quantity; without
            the background.
        unit: of a regression.
        values: of a segmentation: which values of a label map make up each class. Classes that share a value are
            regions, each answered by yes or no; otherwise a pixel is of one class or of the background.
        ignore: the value of pixels of which nothing is known.
        separate: each connected part of a class is a finding of its own (lesions), else the class is one (organs).
    """

    task: str
    kind: Kind
    classes: tuple[str, ...]
    unit: str = ""
    values: tuple[tuple[int, ...], ...] = ()
    ignore: int | None = None
    separate: bool = False

    @property
    def dense(self) -> bool:
        """Whether it asks where something is."""
        return self.kind in DENSE

    @property
    def background(self) -> int:
        """The value of pixels of no class."""
        taken = {value for group in self.values for value in group} | {self.unknown}
        return next(value for value in range(256) if value not in taken)

    @property
    def unknown(self) -> int:
        """The value of pixels of which nothing is known: :attr:`ignore`, or one that no class has."""
        taken = {value for group in self.values for value in group}
        return self.ignore if self.ignore is not None else next(v for v in range(255, -1, -1) if v not in taken)


@dataclass(frozen=True, slots=True, init=False)
class Source:
    """Where the pixels of one image are.

    Attributes:
        path: a file, or a folder that holds one DICOM series or the pictures of one loop.
        key: name of the array inside a container (``train_images`` in a MedMNIST file), else empty.
        index: row of that array, else ``None``.
        frame: take only this moment of a sequence, else ``None``.
        visits: of a series of visits, the seconds of each from the first and where its image is, in order of time;
            ``path`` is then that of the last one. ``()`` for one image.
    """

    # A Path takes 400 bytes more than its text, and there may be a million.
    _path: str
    key: str
    index: int | None
    frame: int | None
    visits: "tuple[tuple[float, Source], ...]"

    def __init__(
        self,
        path: str | Path,
        key: str = "",
        index: int | None = None,
        frame: int | None = None,
        visits: "tuple[tuple[float, Source], ...]" = (),
    ) -> None:
        for name, value in (("_path", os.fspath(path)), ("key", key), ("index", index), ("frame", frame)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "visits", visits)

    @property
    def path(self) -> Path:
        return _path(self._path)


# A million cases may lie in one file.
_path = lru_cache(maxsize=64)(Path)


@dataclass(frozen=True, slots=True)
class Outline:
    """A file whose pixels say where something is: a label map, or a mask of one class.

    Attributes:
        task: whose answer it is.
        source: the file, on the grid of the image or, where both have an affine, on any other.
        values: value to class; or one class, to which every value but 0 belongs.
        by: as :attr:`Finding.by`.
    """

    task: str
    source: Source
    values: Mapping[int, str] | str
    by: str = "reader"


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
        outlines: files that say where findings are; they are read with the pixels. A case with an outline of a task
            is wholly annotated for it: what is not outlined is not there.
    """

    id: CaseId
    patient: str
    images: Mapping[str, Source]
    findings: tuple[Finding, ...] = ()
    split: Role | None = None
    covariates: Mapping[str, float | str | None] = field(default_factory=lambda: NOTHING)
    metadata: Mapping[str, str | float | None] = field(default_factory=lambda: NOTHING)
    outlines: tuple[Outline, ...] = ()


@dataclass(frozen=True, eq=False)
class Case:
    """An entry with its pixels.

    Attributes:
        maps: of each segmentation that is known, the label map ``(time, depth, height, width)`` on the image's grid.
        sources: where each image was read from, by its name; what is written refers to it.
    """

    id: CaseId
    patient: str
    images: Mapping[str, Image]
    findings: tuple[Finding, ...] = ()
    covariates: Mapping[str, float | str | None] = field(default_factory=dict)
    metadata: Mapping[str, str | float | None] = field(default_factory=dict)
    maps: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a model answers to one task.

    Attributes:
        task: its name.
        kind: see :class:`Question`.
        findings: one for each class (or the one quantity), probability calibrated, in the model's class order; of a
            segmentation or detection one for each place, the surest first.
        decision: the classes stated; empty where the answer is withheld, which never means negative.
        prediction_set: conformal set: holds the truth for ``coverage`` of cases like those calibrated on.
        coverage: the nominal coverage of that set, e.g. 0.9.
        threshold: of a segmentation or detection: the probability from which a finding is stated; what lies below is
            listed for those who want to look.
        uncertainty: of a segmentation ``(time, depth, height, width)``: 0 where a pixel is sure, 1 where it could be
            of any class.
    """

    task: str
    kind: str
    findings: tuple[Finding, ...]
    decision: tuple[str, ...]
    prediction_set: tuple[str, ...] = ()
    coverage: float | None = None
    threshold: float | None = None
    uncertainty: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def stated(self) -> tuple[Finding, ...]:
        """Findings with a place that are sure enough to be stated; none where the answer is withheld."""
        if self.threshold is None or not self.decision:
            return ()
        placed = (f for f in self.findings if f.box is not None)
        return tuple(f for f in placed if (f.probability or 0.0) >= self.threshold)


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
class Concordance:
    """Whether the answers of one diagnosis agree.

    Attributes:
        agree: they do.
        statements: what they contradict each other in, a sentence each; empty where they agree.
        wrong: of the held-out cases whose answers agreed (or disagreed, as in this one), the share with a wrong
            class: value, low and high end of its 95 % interval (Wilson); ``None`` where there was no such case.
        cases: how many those were.
    """

    agree: bool
    statements: tuple[str, ...] = ()
    wrong: tuple[float, float, float] | None = None
    cases: int = 0


@dataclass(frozen=True)
class Share:
    """What one source of an answer adds to the evidence for it.

    Attributes:
        source: ``image``, or the name of a covariate.
        value: of the covariate as it was given; ``None`` for the image and for what is not known.
        share: of the change in the log-odds (of a regression, in the value).
    """

    source: str
    value: float | str | None
    share: float


@dataclass(frozen=True)
class Moment:
    """One moment of a sequence that a network attended to.

    Attributes:
        frame: its number in the whole sequence, also where only some moments were read (``Image.place``).
        seconds: after the first frame; ``None`` where that is unknown.
        share: of it in the answers; those of a sequence sum to 1.
    """

    frame: int
    seconds: float | None
    share: float


@dataclass(frozen=True)
class Shares:
    """What each source adds, from an answer that knows nothing to the one that was given; see ``osler.shares``.

    Attributes:
        task, name: of the answer, and the class (or quantity) whose log-odds (or value) are shared out.
        nothing: those of a case of which nothing is known; ``all``: of this one.
        shares: of the image and of each covariate; they sum to ``all - nothing``.
        method: ``shapley`` (exact) or ``integrated_gradients``.
        unit: ``log-odds``, or that of the value.
    """

    task: str
    name: str
    nothing: float
    all: float
    shares: tuple[Share, ...]
    method: str
    unit: str = "log-odds"


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
        concordance: whether the answers of linked tasks agree; ``None`` where no tasks are linked.
        moments: of a sequence, in their order, what share each had; empty where the network does not attend.
        shares: of each task, what image and covariates add to the answer; empty where nothing is known of the person.
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
    concordance: Concordance | None = None
    moments: tuple[Moment, ...] = ()
    shares: tuple[Shares, ...] = ()
