"""Classification: one class of several, any number of labels, ordered classes, or a number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from osler.case import Finding, Question


@dataclass(frozen=True)
class Classification:
    """What one question needs: labels to targets, a head, a loss, and outputs to probabilities.

    Targets are float32 with NaN for unknown: ``(n, 1)`` class number (multiclass, ordinal) or value
    (regression), ``(n, k)`` 0 or 1 (multilabel). Outputs are ``(n, outputs)``.
    """

    question: Question

    @property
    def outputs(self) -> int:
        """Numbers that the head puts out: ordinal has one threshold between neighbouring classes."""
        classes = len(self.question.classes)
        return {"ordinal": classes - 1, "regression": 1}.get(self.question.kind, classes)

    def encode(self, findings: Sequence[Finding]) -> NDArray[np.float32]:
        """The target of one case; what no reader stated is NaN. Readers who disagree leave it NaN."""
        stated = [f for f in findings if f.task == self.question.task]
        if self.question.kind == "regression":
            values = [f.value for f in stated if f.value is not None]
            return np.array([np.mean(values) if values else np.nan], np.float32)
        if self.question.kind == "multilabel":
            known = [[f.probability for f in stated if f.name == name and f.probability is not None]
                     for name in self.question.classes]  # fmt: skip
            return np.array([v[0] if len(set(v)) == 1 else np.nan for v in known], np.float32)
        present = {f.name for f in stated if f.probability == 1}
        number = self.question.classes.index(present.pop()) if len(present) == 1 else np.nan
        return np.array([number], np.float32)

    def encode_all(self, cases: Sequence[Sequence[Finding]]) -> NDArray[np.float32]:
        """The targets of many cases ``(n, t)``; findings that several share are looked at once."""
        different = {id(findings): findings for findings in cases}
        place = {key: number for number, key in enumerate(different)}
        rows = np.fromiter((place[id(findings)] for findings in cases), np.intp, len(cases))
        return np.stack([self.encode(findings) for findings in different.values()])[rows]

    def fit(self, targets: NDArray[np.float32], balance: float) -> NDArray[np.float32]:
        """What the loss needs to know of the training targets.

        Multiclass: a weight for each class. Multilabel, ordinal: one for the yes of each output.
        Regression: mean and standard deviation. ``balance`` 0 gives weights of 1, 1 gives each class as much.
        """
        kind, classes = self.question.kind, len(self.question.classes)
        if kind == "regression":
            known = targets[np.isfinite(targets)]
            spread = float(known.std()) if len(known) else 0.0
            return np.array([known.mean() if len(known) else 0.0, spread or 1.0], np.float32)
        if kind == "multiclass":
            counts = np.array([(targets == c).sum() for c in range(classes)], float)
            weight = np.where(counts > 0, counts.sum() / np.maximum(counts, 1) / max(1, (counts > 0).sum()), 0.0)
        else:
            yes = targets if kind == "multilabel" else _above(torch.from_numpy(targets), classes).numpy()
            positive, negative = np.nansum(yes == 1, 0), np.nansum(yes == 0, 0)
            weight = np.maximum(negative, 1) / np.maximum(positive, 1)
        return np.asarray(weight**balance, np.float32)

    def head(self, features: int) -> nn.Module:
        """From a feature vector ``(b, features)`` to the outputs."""
        if self.question.kind == "ordinal":
            return OrderedHead(features, self.outputs)
        return nn.Linear(features, self.outputs)

    def loss(
        self,
        outputs: Float[Tensor, "b o"],
        target: Float[Tensor, "b t"],
        scale: Float[Tensor, " s"],
        smoothing: float = 0.0,
    ) -> Float[Tensor, ""]:
        """Mean over what is known: cross-entropy, binary cross-entropy, or Huber on the standardised value."""
        kind = self.question.kind
        known = torch.isfinite(target)
        if kind in ("multiclass", "regression") and not known.any():
            return outputs.sum() * 0
        if kind == "multiclass":
            rows = known[:, 0]
            number = target[rows, 0].long()
            return functional.cross_entropy(outputs[rows], number, weight=scale, label_smoothing=smoothing)
        if kind == "regression":
            wanted = (target[known] - scale[0]) / scale[1]
            return functional.smooth_l1_loss(outputs[known], wanted)
        wanted = target if kind == "multilabel" else _above(target, len(self.question.classes))
        known = torch.isfinite(wanted)
        clean = torch.where(known, wanted, torch.zeros_like(wanted))
        soft = clean * (1 - smoothing) + smoothing / 2
        each = functional.binary_cross_entropy_with_logits(outputs, soft, pos_weight=scale, reduction="none")
        return (each * known).sum() / known.sum().clamp(min=1)

    def probabilities(self, outputs: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        """Outputs ``(..., o)``, scaled by the calibration, to probabilities ``(..., k)``; a regression passes."""
        match self.question.kind:
            case "multiclass":
                shifted = np.exp(outputs - outputs.max(-1, keepdims=True))
                return np.asarray(shifted / shifted.sum(-1, keepdims=True))
            case "multilabel":
                return _sigmoid(outputs)
            case "ordinal":
                above = np.minimum.accumulate(_sigmoid(outputs), -1)
                edge = np.ones((*above.shape[:-1], 1))
                return np.asarray(-np.diff(np.concatenate([edge, above, 0 * edge], -1), axis=-1))
            case _:
                return outputs


class OrderedHead(nn.Module):
    """One score and ordered thresholds: P(class > j) falls with j (CORAL; Cao, Mirjalili and Raschka, 2020)."""

    def __init__(self, features: int, thresholds: int) -> None:
        super().__init__()
        self.score = nn.Linear(features, 1)
        self.first = nn.Parameter(torch.full((1,), 0.5 * (thresholds - 1)))
        self.steps = nn.Parameter(torch.full((thresholds - 1,), 0.5413))

    def forward(self, x: Float[Tensor, "b k"]) -> Float[Tensor, "b o"]:
        """Logits of ``class > j``."""
        falls = functional.softplus(self.steps).cumsum(0)
        score: Tensor = self.score(x)
        return score + torch.cat([self.first, self.first - falls])


def _above(target: Tensor, classes: int) -> Tensor:
    """``(n, 1)`` class numbers to ``(n, classes - 1)`` answers to "is it above class j"; NaN stays."""
    yes = (target > torch.arange(classes - 1, device=target.device)).to(target.dtype)
    return torch.where(torch.isfinite(target), yes, target)


def _sigmoid(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))
