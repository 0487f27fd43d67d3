"""What a model said about many cases of one question, beside what is true."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from osler.case import Question

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about ``n`` cases of one question with ``k`` classes, and what is true.

    Attributes:
        cases, patients: pseudonyms, a row each; rows of one patient are counted together.
        question: what was asked.
        target: multiclass and ordinal ``(n,)`` class index; multilabel ``(n, k)`` 0 or 1; regression ``(n,)``.
            ``nan`` is unknown.
        probability: ``(n, k)``, calibrated: rows sum to 1 for multiclass and ordinal, each class for itself for
            multilabel. For a regression the predicted value, ``(n, 1)``.
        abstained: ``(n,)``, the model withheld its decision.
        threshold: ``(k,)``, fixed before these cases were seen. With two classes the one of class 1 decides,
            with more the most probable class does; multilabel uses each. ``None`` is 0.5.
        decision: ``(n, k)``, the classes stated, where they do not follow from one threshold for all rows (out of
            fold, each fold has its own); ``None`` derives them.
        low, high: prediction interval of a regression, ``(n, 1)``.
        sets: conformal sets ``(n, k)``, with nominal ``coverage`` (which is also that of ``low`` and ``high``).
        novelty: ``(n,)``, distance from the training data.
        metadata: columns for subgroups, a value a row; ``None`` is missing.
        images: row to ``(h, w)`` or ``(h, w, 3)`` uint8, for thumbnails.

    Raises:
        ValueError: the shapes do not fit together or a probability is missing.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    question: Question
    target: Floats
    probability: Floats
    abstained: NDArray[np.bool_]
    threshold: Floats | None = None
    decision: NDArray[np.bool_] | None = None
    low: Floats | None = None
    high: Floats | None = None
    sets: NDArray[np.bool_] | None = None
    coverage: float | None = None
    novelty: Floats | None = None
    metadata: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    images: Callable[[int], NDArray[np.uint8]] | None = None

    def __post_init__(self) -> None:
        n, k = len(self.cases), len(self.question.classes)
        wide, many = (n, k), self.question.kind == "multilabel"
        expected = {"target": wide if many else (n,), "probability": wide, "abstained": (n,), "sets": wide}
        expected |= {"threshold": (k,), "decision": wide, "low": wide, "high": wide, "novelty": (n,)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != shape:
                raise ValueError(f"{name} of {n} cases and {k} classes has shape {shape}; got {array.shape}")
        for name, column in {"patients": self.patients, **self.metadata}.items():
            if len(column) != n:
                raise ValueError(f"{name} has {len(column)} values for {n} cases")
        if not np.isfinite(self.probability).all():
            raise ValueError("a probability is not a finite number")

    @cached_property
    def known(self) -> NDArray[np.bool_]:
        """``(n,)``: at least one target of the row is known."""
        known = np.isfinite(self.target)
        return np.asarray(known.any(1) if known.ndim == 2 else known)

    @cached_property
    def clusters(self) -> NDArray[np.intp]:
        """``(n,)``: number of the patient of each row."""
        return np.asarray(np.unique(np.array(self.patients, dtype=object).astype(str), return_inverse=True)[1])

    @property
    def one_each(self) -> bool:
        """No patient has two rows."""
        return len(set(self.patients)) == len(self.patients)

    @property
    def binary(self) -> bool:
        """One of two classes: figures are about class 1."""
        return self.question.kind in ("multiclass", "ordinal") and len(self.question.classes) == 2

    @property
    def stated(self) -> NDArray[np.bool_]:
        """``(n, k)``: the decision, also where it was withheld: at the threshold, or the most probable class."""
        if self.decision is not None:
            return self.decision
        if self.question.kind == "multilabel":
            return np.asarray(self.probability >= self.thresholds)
        if self.binary:
            return np.asarray((self.probability[:, 1] >= self.thresholds[1])[:, None] == np.array([False, True]))
        return np.asarray(self.probability.argmax(1)[:, None] == np.arange(len(self.question.classes)))

    @property
    def thresholds(self) -> Floats:
        """``(k,)``: :attr:`threshold`, or one half."""
        return np.full(len(self.question.classes), 0.5) if self.threshold is None else self.threshold

    @property
    def truth(self) -> Floats:
        """``(n, k)`` of 0, 1 and ``nan`` (unknown), one class against the rest."""
        if self.question.kind == "multilabel":
            return self.target
        hot = (self.target[:, None] == np.arange(len(self.question.classes))).astype(float)
        return np.asarray(np.where(np.isfinite(self.target)[:, None], hot, np.nan))

    def take(self, rows: NDArray[np.bool_]) -> "Predictions":
        """Some of the rows."""
        number, images = np.flatnonzero(rows), self.images
        arrays = ("target", "probability", "abstained", "decision", "low", "high", "sets", "novelty")
        taken: dict[str, Any] = {name: getattr(self, name) for name in arrays}
        taken = {name: None if array is None else array[rows] for name, array in taken.items()}
        taken["cases"] = tuple(self.cases[i] for i in number)
        taken["patients"] = tuple(self.patients[i] for i in number)
        taken["metadata"] = {name: tuple(column[i] for i in number) for name, column in self.metadata.items()}
        taken["images"] = None if images is None else lambda i: images(int(number[i]))
        return replace(self, **taken)
