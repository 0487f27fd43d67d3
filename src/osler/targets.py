"""What can be explained: a class of an image, or a finding at its place; and the image as each network sees it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from osler import calibration, covariates, data, diagnosis, grid, modalities, places, sliding, subsets, volumes
from osler.case import Box, Case, Finding, Mask
from osler.explanations import log_odds, removed
from osler.grid import Grid
from osler.image import Image
from osler.linking import Said
from osler.model import Model, Network
from osler.problem import Problem

# Share in the answer from which one moment of a sequence is explained by itself.
MOST = 0.25
Size = tuple[int, int, int]
Heat = Float[np.ndarray, "_ _ _"]


@dataclass(frozen=True, eq=False)
class OfClass:
    """The log-odds of one class of an image (of a regression the value); see :class:`osler.explanations.Target`.

    Attributes:
        part: the sources that are answered from, see :func:`osler.subsets.of`.
        mixing: how much the answers by all of them and by each alone count (``calibration.mixing``); empty for one.
    """

    network: Network
    task: str
    number: int
    times: Tensor | None = None
    covariates: Tensor | None = None
    part: str = ""
    mixing: tuple[float, ...] = ()

    @property
    def dims(self) -> int:
        return self.network.dims

    @property
    def pooling(self) -> nn.Module | None:
        return self.network.pooling

    def levels(self, x: Float[Tensor, "b t c d h w"]) -> list[Tensor]:
        """The feature maps that the answer rests on: the last ones, of linked tasks those of every level."""
        return self.network.levels(x)

    def score(self, levels: Sequence[Tensor], cases: int) -> Float[Tensor, " b"]:
        """:func:`osler.explanations.log_odds`."""
        outputs = _mixed(self, self.network.conclude(levels, cases, self.times, self.covariates))
        return log_odds(outputs, self.network.tasks[self.task].question, self.number)

    def raw(self, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b o"]:
        """All outputs of the task."""
        return _mixed(self, self.network.say(x, self.times, self.covariates))


def _mixed(target: "OfClass | OfPart", said: Said) -> Float[Tensor, "b o"]:
    """The outputs of the task as they are answered from: the evidence of each source as much as it counts."""
    if not target.mixing or said.whole is None:
        return said.answers[target.task]
    network = target.network
    members = subsets.beside(network.sources, network.subsets[target.part])[1:]
    masks = [torch.from_numpy(network.subsets[one])[None] for one in members]
    every = [said.answers, *(network.from_some(said, target.covariates, mask) for mask in masks)]
    each = [weight * answers[target.task] for weight, answers in zip(target.mixing, every, strict=True)]
    return torch.stack(each).sum(0)


@dataclass(frozen=True, eq=False)
class OfPart:
    """As :class:`OfClass`, of one moment of a sequence or of one modality, beside which the others stay as they are.

    Attributes:
        whole: all normalised moments ``(1, t, c, d, h, w)``, of one modality after the other; ``times`` ``(1, t)``.
        first: number of the first of the moments that are looked at.
        which: number of the modality.
    """

    network: Network
    task: str
    number: int
    whole: Tensor
    times: Tensor
    first: int
    which: int = 0
    covariates: Tensor | None = None
    part: str = ""
    mixing: tuple[float, ...] = ()

    @property
    def dims(self) -> int:
        return self.network.dims

    @property
    def pooling(self) -> nn.Module | None:
        return self.network.looks()[self.which][1]

    @cached_property
    def others(self) -> Float[Tensor, "1 t v"]:
        """The features of all moments."""
        with torch.no_grad():
            return self.network.seen(self.whole, self.times)

    def levels(self, x: Float[Tensor, "b t c d h w"]) -> list[Tensor]:
        """The feature maps of what is looked at."""
        return [self.network.maps(x, self.network.looks()[self.which][0])]

    def _outputs(self, levels: Sequence[Tensor], cases: int) -> Float[Tensor, "b o"]:
        this = self.network.moments(levels[-1], cases, self.pooling)
        others = self.others.expand(cases, -1, -1)
        moments = torch.cat([others[:, : self.first], this, others[:, self.first + this.shape[1] :]], 1)
        return _mixed(self, self.network.along(moments, self.times, self.covariates))

    def score(self, levels: Sequence[Tensor], cases: int) -> Float[Tensor, " b"]:
        """:func:`osler.explanations.log_odds`."""
        return log_odds(self._outputs(levels, cases), self.network.tasks[self.task].question, self.number)

    def raw(self, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b o"]:
        """All outputs of the task."""
        return self._outputs(self.levels(x), len(x))


@dataclass(frozen=True, eq=False)
class OfPlace:
    """The log-odds of a finding at its place; ``finding`` lies in pixels of the window ``patch`` of the network."""

    network: Network
    finding: Finding
    patch: Size
    covariates: Tensor | None = None

    @property
    def dims(self) -> int:
        return self.network.dims

    @property
    def pooling(self) -> nn.Module | None:
        return None

    def levels(self, x: Float[Tensor, "b t c d h w"]) -> list[Tensor]:
        """The feature maps of every level: the decoder joins them all."""
        return self.network.levels(x)

    def score(self, levels: Sequence[Tensor], cases: int) -> Float[Tensor, " b"]:
        """``log_odds`` of the task."""
        outputs = self.network.conclude(levels, cases, covariates=self.covariates).places[self.finding.task]
        return self.network.dense[self.finding.task].log_odds(outputs, self.finding, self.patch)

    def raw(self, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b o"]:
        """The score."""
        return self.score(self.levels(x), len(x))[:, None]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is explained, and of which image.

    Attributes:
        made: the model.
        task, name: what is asked, and the class (or quantity) of the answer.
        targets: one for each network.
        inputs: the normalised image, or the part of it that is looked at, ``(1, t, c, d, h, w)`` for each network.
        to_image: from a map ``(d, h, w)`` on the networks' grid to one on the image as it was read.
        place: where the finding lies, in words; empty for a class of the whole image.
        frame: the moment that is looked at, by its number in its sequence; ``None`` where it is the mean of all.
        source: the part of the sources that is answered from, see :func:`osler.subsets.of`.
        modality: of several images the one that is looked at; else empty.
    """

    made: Model
    task: str
    name: str
    targets: Sequence[OfClass | OfPart | OfPlace]
    inputs: Sequence[Tensor]
    to_image: Callable[[Heat], Heat]
    place: str = ""
    frame: int | None = None
    source: str = ""
    modality: str = ""

    def answers(self, kept: Iterable[Tensor]) -> NDArray[np.float64]:
        """What the networks answer together when only that share ``(d, h, w)`` of the image is left, ``(n,)``.

        The calibrated probability of a class, the value of a regression in standard deviations; of a finding at its
        place the mean of the networks' scores, as a probability.
        """
        shares, raw = list(kept), []
        for target, x in zip(self.targets, self.inputs, strict=True):
            with torch.no_grad():
                parts = [target.raw(part) for part in removed(x, (share.to(x) for share in shares))]
            raw.append(torch.cat(parts).double().cpu().numpy())
        first = self.targets[0]
        if isinstance(first, OfPlace):
            return np.asarray((1 / (1 + np.exp(-np.clip(raw, -700, 700)))).mean(0)[:, 0])
        task = self.made.tasks[self.task]
        if task.question.kind == "regression":
            return np.asarray(np.mean(raw, 0)[:, 0])
        fitted = diagnosis.calibrated(self.made, self.task, self.source)
        return np.asarray(calibration.apply(task, fitted, np.stack(raw))[:, first.number], np.float64)


def ask(made: Model, case: Case, finding: Finding | None = None) -> Asked:
    """What is to be explained of a case.

    Args:
        made: the model.
        case: with the images that the model looks at; of several the one that counts most is explained.
        finding: see :func:`osler.explanation.explain`.

    Raises:
        Problem: there is no such task or class, the image cannot be given to the model, or nothing was found.
    """
    questions = made.recipe.tasks
    if finding is not None:
        if finding.task not in questions:
            raise Problem(f"the model knows no task {finding.task!r}", fix=f"it has {', '.join(questions)}")
        classes = questions[finding.task].classes
        if finding.name not in classes:
            raise Problem(f"the task {finding.task} knows no {finding.name!r}", fix=f"it has {', '.join(classes)}")
    if not made.tasks or (finding is not None and questions[finding.task].dense):
        person = covariates.encode(made.recipe.covariates, case.covariates).row
        image = data.the_image(case, made.recipe.image)
        if finding is None or (finding.box is None and finding.mask is None):
            finding = _surest(made, image, person, finding)
        return _of_place(made, image, person, finding)
    return _of_class(made, case, finding)


def _of_class(made: Model, case: Case, finding: Finding | None) -> Asked:
    image = data.the_image(case, made.recipe.image)
    pixels = data.prepare(image, made.recipe.image)[None]
    columns = made.recipe.covariates
    known = torch.from_numpy(covariates.encode(columns, case.covariates).row)[None] if columns.columns else None
    times = torch.from_numpy(data.timeline(image, made.recipe.image))[None]
    if finding is not None:
        task, number = finding.task, made.tasks[finding.task].question.classes.index(finding.name)
    else:
        task = next(iter(made.tasks))
        answered = diagnosis.answer(made, pixels, times=times.numpy(), known=None if known is None else known.numpy())
        exclusive = made.tasks[task].question.kind in ("multiclass", "ordinal")
        number = int((answered.decision if exclusive else answered.probability)[task][0].argmax())
    with torch.no_grad():
        inputs = [network.normalise(torch.from_numpy(pixels).to(_device(network))) for network in made.networks]
    part, *_ = modalities.rests_on(made, image, None if known is None else known[0].numpy())
    weights = diagnosis.mixing(made, task, part)
    mixed = part, tuple(weights.tolist()) if len(weights) > 1 else ()
    if image.together:
        return _of_modality(made, image, (task, number), inputs, (times, known), mixed)
    name = made.tasks[task].question.classes[number]
    moment = _decisive(made, inputs, times)
    if moment is None:
        targets = [OfClass(network.eval(), task, number, times, known, *mixed) for network in made.networks]
        return Asked(made, task, name, targets, inputs, _back(made, image, -1), source=part)
    alone = [x[:, moment : moment + 1] for x in inputs]
    of_it = [
        OfPart(n.eval(), task, number, x, times, moment, 0, known, *mixed)
        for n, x in zip(made.networks, inputs, strict=True)
    ]
    place = int(data.moments_of(image, made.recipe.image)[moment])
    frame = image.numbers[place] if image.numbers else place
    back = _back(made, image, place)
    return Asked(made, task, name, of_it, alone, back, f"at moment {frame + 1}", frame, part)


def _of_modality(
    made: Model,
    image: Image,
    asked: tuple[str, int],
    inputs: Sequence[Tensor],
    beside: tuple[Tensor, Tensor | None],
    mixed: tuple[str, tuple[float, ...]],
) -> Asked:
    """The image without which the evidence is least, beside the others as they are."""
    (task, number), (times, known), plan = asked, beside, made.recipe.image
    there = [s for s, each in enumerate(image.together) if each is not None]
    left = dict.fromkeys(there, 0.0)
    for network, x in zip(made.networks, inputs, strict=True):
        with torch.no_grad():
            said = network.eval().say(x, times, known)
            for s in there if len(there) > 1 else ():
                others = torch.arange(len(network.sources))[None] != s
                answer = network.from_some(said, known, others)[task]
                left[s] += float(log_odds(answer, made.tasks[task].question, number))
    which = min(left, key=lambda s: left[s])
    each = image.together[which]
    assert each is not None
    targets = [
        OfPart(n, task, number, x, times, which * plan.frames, which, known, *mixed)
        for n, x in zip(made.networks, inputs, strict=True)
    ]
    shown = [x[:, which * plan.frames : (which + 1) * plan.frames] for x in inputs]
    back, called = _back(made, each, -1), plan.modalities[which]
    name = made.tasks[task].question.classes[number]
    return Asked(made, task, name, targets, shown, back, f"in {called}", source=mixed[0], modality=called)


def _decisive(made: Model, inputs: Sequence[Tensor], times: Tensor) -> int | None:
    """The moment of a sequence that has a large share in the answer, if there is one.

    Where many moments decide together, to take away a place in one of them changes nothing; then the map is of all.
    """
    if made.recipe.image.frames == 1 or made.recipe.linked:
        return None
    with torch.no_grad():
        shares = [n.eval().say(x, times).shares for n, x in zip(made.networks, inputs, strict=True)]
    if any(share is None for share in shares):
        return None
    mean = torch.stack([share[0].cpu() for share in shares if share is not None]).mean(0)
    return int(mean.argmax()) if float(mean.max()) >= MOST else None


def _back(made: Model, image: Image, frame: int) -> Callable[[Heat], Heat]:
    """The way of a map from the network's grid to the image as it was read; nothing lies where it was cropped."""
    shown = image.visits[frame] if image.visits else image
    ready = data.made_ready(shown, made.recipe.image)
    where = grid.fit(ready.image, made.recipe.image)

    def back(heat: Heat) -> Heat:
        found = ready.back(to_image(heat, where), shown.size)
        return np.asarray(Image(found[None, None]).resample(image.size).array[0, 0], np.float32)

    return back


def to_image(heat: Heat, where: Grid) -> Heat:
    """A map on the network's grid back on the image as it was read; the padding is cut off."""
    return np.asarray(where.back(heat[None].astype(np.float32))[0].clip(0, 1), np.float32)


def _surest(made: Model, image: Image, person: NDArray[np.float32], wanted: Finding | None) -> Finding:
    """The surest place that the model itself finds, of this class if one is wanted."""
    found = [
        finding
        for answer in places.answer(made, image, person=person).values()
        for finding in answer.findings
        if (finding.box or finding.mask)
        and (wanted is None or (finding.task, finding.name) == (wanted.task, wanted.name))
    ]
    if not found:
        what = "nothing" if wanted is None else f"no {wanted.name}"
        raise Problem(f"{what} was found in this image, so there is nothing to explain", fix="ask of another image")
    return max(found, key=lambda finding: finding.probability or 0)


def _of_place(made: Model, image: Image, person: NDArray[np.float32], finding: Finding) -> Asked:
    """The window of the networks around the finding, and the finding in it."""
    where, moved = volumes.on_grid(image, made.recipe)
    patch = made.recipe.image.size
    whole, shift = sliding.padded(moved[finding.frame], patch)
    start, local = _in_window(finding, where, shift, patch, whole.shape[1:])
    window = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
    pixels = torch.from_numpy(np.ascontiguousarray(whole[(slice(None), *window)]))[None, None]
    with torch.no_grad():
        inputs = [network.normalise_patches(pixels.to(_device(network))) for network in made.networks]

    def to_image(heat: Heat) -> Heat:
        full = np.zeros(whole.shape[1:], np.float32)
        full[window] = heat
        inside = full[tuple(slice(a, a + n) for a, n in zip(shift, where.whole or where.size, strict=True))]
        return np.asarray(where.back(inside[None])[0].clip(0, 1), np.float32)

    known = torch.from_numpy(person[None]) if made.recipe.covariates.columns else None
    targets = [OfPlace(network.eval(), local, patch, known) for network in made.networks]
    return Asked(made, finding.task, finding.name, targets, inputs, to_image, _in_words(finding))


def _in_window(
    finding: Finding, where: Grid, shift: Size, patch: Size, whole: tuple[int, ...]
) -> tuple[Size, Finding]:
    """Where a window around the middle of a finding begins in the padded working grid, and the finding inside."""
    box = finding.box or (finding.mask.box if finding.mask else None)
    assert box is not None
    edges = where.boxes_to(np.array([[*box.start, *box.stop]], np.float64))[0].reshape(2, 3) + shift
    start = [
        int(np.clip(round(float(middle) - n / 2), 0, total - n))
        for middle, n, total in zip(edges.mean(0), patch, whole, strict=True)
    ]
    low, high = (edges - start).clip(0, patch)
    if finding.mask is None:
        inside = np.zeros(patch, bool)
        inside[tuple(slice(int(a), max(int(a) + 1, round(float(b)))) for a, b in zip(low, high, strict=True))] = True
    else:
        full = np.zeros(whole, np.uint8)
        there = where.labels_to(finding.mask.within(where.original).astype(np.uint8))
        full[tuple(slice(a, a + n) for a, n in zip(shift, where.whole or where.size, strict=True))] = there
        inside = full[tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))] > 0
        if not inside.any():
            # It is thinner than a pixel of the working grid.
            inside[tuple(int(min((a + b) / 2, n - 1)) for a, b, n in zip(low, high, patch, strict=True))] = True
    corners = [tuple(float(v) for v in corner) for corner in (low, np.maximum(high, low + 1e-3))]
    local = replace(finding, box=Box(*corners), mask=Mask.cropped(inside))  # type: ignore[arg-type]
    return (start[0], start[1], start[2]), local


def _in_words(finding: Finding) -> str:
    box = finding.box or (finding.mask.box if finding.mask else None)
    assert box is not None
    z, y, x = (round((a + b) / 2 - 0.5) for a, b in zip(box.start, box.stop, strict=True))
    flat = box.start[0] == 0 and box.stop[0] == 1
    return f"at column {x}, row {y}" + ("" if flat else f", slice {z}")


def _device(network: Network) -> torch.device:
    return next(network.parameters()).device
