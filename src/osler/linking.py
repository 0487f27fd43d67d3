"""What the tasks of one network tell each other: which answers see which, and whether they agree.

A network that classes, outlines and boxes in one goes round once: first drafts of the outlines; boxes, which see the
drafts; classes, which see the features of what was outlined or boxed beside those of the whole image; and the
outlines in the end, which boxes and classes may raise or lower. Every link starts at nothing and is learned. What a
link hands on is evidence, not blame: no loss of one task reaches the answer of another through it, as between the
stages of a detector (Girshick 2015, arXiv:1504.08083); they meet in the features.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from osler.case import Answer, Finding, Question
from osler.recipe import Recipe
from osler.tasks import Dense
from osler.tasks.classification import Classification

# Numbers that sum up what lies at the places of one class.
_SUMMARY = 64
# Pixels of a map that a place must cover for its features to count half.
_LEAST = 0.05
# Share of the cases of a step whose outlines are not told of classes and boxes, so that drafts stay good alone.
_UNTOLD = 0.3
# Of the diameter of an ellipse in a box, how much is surely inside of what was boxed.
_CORE = 0.6
# Share of the pixels of an image that belong to the smallest thing which is surely there.
_SURELY = 0.005


@dataclass(frozen=True, eq=False)
class Said:
    """What a network says of a batch of ``b`` cases with ``f`` moments (and slices, in 2D) each.

    Attributes:
        places: outputs of each task that asks where something is, ``b f`` each.
        answers: outputs ``(b, o)`` of each task that asks of the whole image.
        vector: features ``(b, v)`` of the whole images, the mean of those of their moments.
        opinions: of linked tasks, the answers by the whole image (and what is known of the person) and those by what
            lies at its places alone, of which ``answers`` is the mean.
        presence: of linked tasks, where each class is: ``(b f, k, ...)``, 0 to 1.
        shares: of a sequence that the network attends to, what share each moment has in ``answers``; 0 where there is
            none. Not while training.
        whole: ``(b, w)``: what was made of the moments, and answered from; of several modalities side by side. None
            where only places are asked for.
        there: of several modalities, which each case has, and ``True`` for covariates: ``Network.sources``.
    """

    places: Mapping[str, Any]
    answers: Mapping[str, Float[Tensor, "b o"]]
    vector: Float[Tensor, "b v"]
    opinions: Sequence[Mapping[str, Float[Tensor, "b o"]]] = ()
    presence: Mapping[str, Float[Tensor, "bf k *size"]] = field(default_factory=dict)
    shares: Float[Tensor, "b t"] | None = None
    whole: Float[Tensor, "b w"] | None = None
    there: Bool[Tensor, "b s"] | None = None


class Links(nn.Module):
    """The way round of one network.

    Args:
        whole, dense: the tasks.
        widths: channels of the decoder's maps, finest first.
        features: channels of the backbone's last map.
        plan: the recipe.
    """

    def __init__(
        self,
        whole: Mapping[str, Classification],
        dense: Mapping[str, Dense],
        widths: Sequence[int],
        features: int,
        plan: Recipe,
    ) -> None:
        super().__init__()
        chosen, dims = plan.links, plan.image.dims
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.whole, self.dense, self.frames = whole, dense, plan.image.frames
        # What can be corrected comes first, as a draft; what cannot sees the drafts.
        self.drafted = [name for name, task in dense.items() if task.gates]
        self.boxed = [name for name in dense if name not in self.drafted]
        drafted, boxed = (sum(len(dense[n].question.classes) for n in names if dense[n].shows)
                          for names in (self.drafted, self.boxed))  # fmt: skip
        self.middle = min(2, len(widths) - 1)
        self.to_boxes = nn.ModuleList(
            conv(drafted, width, 1) for width in widths if chosen.boxes_see_masks and drafted and self.boxed
        )
        self.summary: nn.Module | None = None
        if chosen.classes_see_places and drafted + boxed:
            self.summary = nn.Sequential(
                nn.LayerNorm(features + widths[self.middle]),
                nn.Linear(features + widths[self.middle], _SUMMARY),
                nn.SiLU(),
            )
            seen = (drafted + boxed) * (_SUMMARY + self.frames + 1)
            self.heads = nn.ModuleList(task.head(seen) for task in whole.values())
            self.dropout = nn.Dropout(plan.network.dropout)
        told = sum(task.outputs for task in whole.values())
        self.by_classes = nn.ModuleList(
            nn.Linear(told, dense[name].gates, bias=False) for name in self.drafted if chosen.masks_see_classes
        )
        self.by_boxes = nn.ModuleList(
            conv(boxed, dense[name].gates, 1, bias=False) for name in self.drafted if chosen.masks_see_boxes and boxed
        )
        for part in (self.to_boxes, self.by_classes, self.by_boxes):
            for weight in part.parameters():
                nn.init.zeros_(weight)

    def forward(
        self,
        maps: Sequence[Float[Tensor, "bf _ ..."]],
        deepest: Float[Tensor, "bf v ..."],
        alone: tuple[Float[Tensor, "b v"], Mapping[str, Float[Tensor, "b o"]]],
        heads: Mapping[str, nn.Module],
    ) -> Said:
        """What is said when everything that was said has been heard.

        Args:
            maps: of the decoder, finest first.
            deepest: the backbone's last map.
            alone: features of the whole images, and the answers by them and what is known of the persons.
            heads: of the tasks that ask where something is.
        """
        vector, first = alone
        outputs: dict[str, Any] = {}
        presence: dict[str, Tensor] = {}
        evidence: dict[str, Tensor] = {}

        def look(names: Iterable[str], seen: Sequence[Tensor]) -> None:
            for name in names:
                outputs[name] = heads[name](seen)
                if self.dense[name].shows:
                    presence[name] = self.dense[name].presence(outputs[name])
                    evidence[name] = presence[name].detach()

        look(self.drafted, maps)
        if self.to_boxes:
            drafts = torch.cat([evidence[name] for name in self.drafted if name in evidence], 1)
            maps = [m + told(resized(drafts, m.shape[2:])) for m, told in zip(maps, self.to_boxes, strict=True)]
        look(self.boxed, maps)
        opinions: list[Mapping[str, Tensor]] = [first]
        if self.summary is not None:
            # As the dense tasks are in the recipe, so that weights belong to what they were learned for.
            where = [evidence[name] for name in (*self.drafted, *self.boxed) if name in evidence]
            seen = self.dropout(self._summary(where, deepest, maps[self.middle], len(vector)))
            opinions.append({n: head(seen).float() for n, head in zip(self.whole, self.heads, strict=True)})
        answers = {name: torch.stack([each[name] for each in opinions]).mean(0) for name in first}
        told_classes = self._told({name: each.detach() for name, each in answers.items()})
        for number, name in enumerate(self.drafted):
            gate = self._gate(number, told_classes, evidence, maps[0])
            if gate is not None:
                outputs[name] = self.dense[name].gated(outputs[name], gate, draft=self.training)
        return Said({name: outputs[name] for name in self.dense}, answers, vector, opinions, presence)

    def _summary(self, where: Sequence[Tensor], deepest: Tensor, middle: Tensor, cases: int) -> Float[Tensor, "b s"]:
        """Of each class: the features of its places, how much of each moment they cover, and how sure the surest is.

        Where nothing is found there are no features, only numbers that say so.
        """
        pooled = []
        for features in (deepest, middle):
            shares = torch.cat([resized(p, features.shape[2:]) for p in where], 1).float()
            flat, weight = features.float().flatten(2), shares.flatten(2)
            total = torch.einsum("bks,bcs->bkc", weight, flat)
            total = total.reshape(cases, -1, *total.shape[1:]).sum(1)
            weight = weight.reshape(cases, -1, *weight.shape[1:]).sum((1, 3))
            pooled.append(total / (weight[..., None] + _LEAST))
        assert self.summary is not None
        summed: Tensor = self.summary(torch.cat(pooled, -1)).flatten(1)
        numbers = []
        for p in where:
            by_moment = p.float().reshape(cases, -1, *p.shape[1:2], p[0, 0].numel())
            moments = by_moment.shape[1]
            area = by_moment.mean(3)
            if moments != self.frames:
                # Slices of a moment belong together; of fewer moments each stands for several.
                parts = area.tensor_split(min(self.frames, moments), 1)
                area = torch.stack([parts[i * len(parts) // self.frames].mean(1) for i in range(self.frames)], 1)
            surest = by_moment.amax((1, 3))[:, None]
            # Logarithms: of two moments or classes what counts is the ratio, such as an ejection fraction.
            numbers.append(((torch.cat([area, surest], 1) + 1e-4).log().flatten(1) + 4) / 2)
        return torch.cat([summed, *numbers], 1)

    def _told(self, answers: Mapping[str, Tensor]) -> Float[Tensor, "b o"]:
        """What outlines are told of the classes: each between -1 and 1, so that no certainty is beyond appeal."""
        centred = []
        for name, task in self.whole.items():
            values = answers[name]
            exclusive = task.question.kind == "multiclass"
            centred.append(torch.tanh((values - values.mean(1, keepdim=True) if exclusive else values) / 2))
        return torch.cat(centred, 1)

    def _gate(
        self, number: int, classes: Tensor, evidence: Mapping[str, Tensor], finest: Tensor
    ) -> Float[Tensor, "bf o ..."] | None:
        """What is added to the draft of one task, everywhere and around boxes."""
        gate = None
        each = len(finest) // len(classes)
        if self.by_classes:
            told = self.by_classes[number](classes).repeat_interleave(each, 0)
            gate = told.reshape(*told.shape, *[1] * (finest.ndim - 2))
        if self.by_boxes:
            boxes = torch.cat([evidence[name] for name in self.boxed if name in evidence], 1)
            around = resized(self.by_boxes[number](boxes.to(finest.dtype)), finest.shape[2:])
            gate = around if gate is None else gate + around
        if gate is not None and self.training:
            heard = (torch.rand(len(classes), device=gate.device) >= _UNTOLD).to(gate.dtype).repeat_interleave(each)
            gate = gate * heard.reshape(-1, *[1] * (gate.ndim - 1))
        return gate


def resized(maps: Float[Tensor, "b k *size"], size: Sequence[int]) -> Float[Tensor, "b k ..."]:
    """Coarser by the mean, finer linearly."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    flat = maps.ndim == 4
    if all(a >= b for a, b in zip(maps.shape[2:], size, strict=True)):
        if flat:
            return functional.adaptive_avg_pool2d(maps, (size[0], size[1]))
        return functional.adaptive_avg_pool3d(maps, (size[0], size[1], size[2]))
    mode = "bilinear" if flat else "trilinear"
    return functional.interpolate(maps, tuple(size), mode=mode, align_corners=False)


# --- what follows from what is known ------------------------------------------------------------------------


def pairs(tasks: Mapping[str, Question]) -> list[tuple[Question, Question]]:
    """Segmentations and detections of the same things: each class of the boxes is one that is outlined."""
    return [
        (outlined, boxed)
        for outlined in tasks.values() if outlined.kind == "segmentation" and outlined.separate
        for boxed in tasks.values() if boxed.kind == "detection" and set(boxed.classes) <= set(outlined.classes)
    ]  # fmt: skip


def boxes_of(
    labels: UInt8[NDArray[np.uint8], "d h w"], outlined: Question, boxed: Question
) -> Float[NDArray[np.float32], "n 7"] | None:
    """A box around each connected part of a label map; ``None`` where some of it is unknown."""
    if (labels == outlined.unknown).any():
        return None
    rows = []
    for k, name in enumerate(boxed.classes):
        there = np.isin(labels, outlined.values[outlined.classes.index(name)])
        numbers, _ = ndimage.label(there, ndimage.generate_binary_structure(3, 3))
        for window in ndimage.find_objects(numbers):
            rows.append([*(part.start for part in window), *(part.stop for part in window), k])
    return np.array(rows, np.float32).reshape(-1, 7)


def cores(
    boxes: Float[NDArray[np.float32], "n 7"], size: tuple[int, int, int], outlined: Question, boxed: Question
) -> UInt8[NDArray[np.uint8], "d h w"]:
    """What boxes say of a label map: nothing outside, the inner :data:`_CORE` of an ellipse within, else unknown."""
    labels = np.full(size, outlined.background, np.uint8)
    axes = [np.arange(n) + 0.5 for n in size]
    inner = labels.copy()
    for row in boxes:
        low, high = np.floor(row[:3]).astype(int).clip(0), np.ceil(row[3:6]).astype(int)
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = outlined.unknown
        middle, half = (row[:3] + row[3:6]) / 2, (row[3:6] - row[:3]) / 2 * _CORE
        # A flat image has no depth to be inside of.
        half[0] = np.inf if size[0] == 1 else half[0]
        z, y, x = ((at - m) / h for at, m, h in zip(axes, middle, half, strict=True))
        ball = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2 <= 1
        inner[ball] = outlined.values[outlined.classes.index(boxed.classes[int(row[6])])][0]
    return np.where(inner != outlined.background, inner, labels)


def chance(whole: Mapping[str, Classification], answers: Mapping[str, Float[Tensor, "1 o"]], plan: Recipe) -> float:
    """That a case is of no class which means that nothing is there (``links.nothing``), as raw as outputs are.

    What is found in it is as sure as it looks times this: where a network draws something, its class has a say.
    """
    found = 1.0
    for name, classes in plan.links.nothing.items():
        p = whole[name].probabilities(answers[name].float().cpu().numpy())[0]
        found = min(found, 1 - float(sum(p[whole[name].question.classes.index(c)] for c in classes)))
    return max(0.0, found)


def contradiction(
    said: Said, targets: Mapping[str, Float[Tensor, "b t"]], known: Mapping[str, Sequence[bool]], plan: Recipe
) -> Float[Tensor, ""]:
    """How much the answers contradict what must be so: where a class says that something is, each task shows it.

    Only where nobody said what is where: at least a few pixels must be sure to be of some class.

    Args:
        said: of a batch.
        targets: of the tasks that ask of the whole image.
        known: of each task that asks where something is, of which cases anything is known.
        plan: the recipe, whose ``links.something`` names such classes.
    """
    total = said.vector.new_zeros(())
    for name, classes in plan.links.something.items():
        numbers = [plan.tasks[name].classes.index(c) for c in classes]
        wanted = torch.isin(targets[name][:, 0], targets[name].new_tensor(numbers))
        for task, where in said.presence.items():
            rows = [row for row, yes in enumerate(wanted.tolist()) if yes and not known[task][row]]
            if rows:
                p = where.float().reshape(len(wanted), -1, *where.shape[1:])[rows]
                nowhere = (1 - p).prod(2).flatten(1)
                least = max(1, round(_SURELY * nowhere.shape[1]))
                total = (
                    total - (1 - nowhere.topk(least, 1, largest=False).values.mean(1)).clamp(min=1e-4).log().mean()
                )
    return total


# --- do the answers agree ----------------------------------------------------------------------------------


def leading(answer: Answer) -> str | None:
    """The likeliest class; ``None`` where classes do not exclude each other."""
    if answer.kind not in ("multiclass", "ordinal"):
        return None
    return max(answer.findings, key=lambda f: f.probability or 0.0).name


def placed(answer: Answer) -> list[Finding]:
    """Findings with a place that are sure enough to be stated, whether or not the answer is withheld."""
    limit = answer.threshold or 0.0
    return [f for f in answer.findings if f.box is not None and (f.probability or 0.0) >= limit]


def within(answer: Answer, moments: Collection[int]) -> Answer:
    """What is said of some moments; an answer about the whole image stays as it is."""
    return replace(answer, findings=tuple(f for f in answer.findings if f.frame in moments or f.box is None))


def disagreements(answers: Mapping[str, Answer], torn: Mapping[str, float], plan: Recipe) -> list[str]:
    """What the answers to one case contradict each other in, a sentence each.

    Args:
        answers: by task, before anything is withheld.
        torn: of tasks that ask of the whole image, the share of networks whose two opinions (see :class:`Said`) lead
            to different classes.
        plan: the recipe.
    """
    found = []
    for name, answer in answers.items():
        lead = leading(answer)
        for task, other in answers.items():
            if not plan.tasks[task].dense or lead is None:
                continue
            there = sorted({f.name for f in placed(other)})
            verb = "outlined" if other.kind == "segmentation" else "boxed"
            if lead in plan.links.nothing.get(name, ()) and there:
                found.append(f"{name} says {lead}, yet {' and '.join(there)} is {verb} ({task})")
            if lead in plan.links.something.get(name, ()) and not there:
                found.append(f"{name} says {lead}, yet nothing is {verb} ({task})")
        if torn.get(name, 0.0) > 0.5:
            also = " with what is known of the person" if plan.covariates.columns else ""
            found.append(f"{name}: the whole image{also} and what was found in it point to different classes")
    for outlined, boxed in pairs({name: plan.tasks[name] for name in answers}):
        masks, boxes = placed(answers[outlined.task]), placed(answers[boxed.task])
        for some, others, what in ((boxes, masks, "boxed, not outlined"), (masks, boxes, "outlined, not boxed")):
            alone = [f for f in some if f.name in boxed.classes and not any(_meet(f, other) for other in others)]
            # Where one of the two is empty as a whole, the class has said so, or there is none to say it.
            if alone and (others or not plan.links.something):
                found.append(f"{len(alone)} {alone[0].name} {'is' if len(alone) == 1 else 'are'} {what}")
    return found


def _meet(one: Finding, other: Finding) -> bool:
    """Same class and moment, and boxes that share something."""
    a, b = one.box, other.box
    assert a is not None and b is not None
    apart = any(
        a.start[axis] >= b.stop[axis] or b.start[axis] >= a.stop[axis] for axis in range(3)
    )  # fmt: skip
    return one.name == other.name and one.frame == other.frame and not apart
