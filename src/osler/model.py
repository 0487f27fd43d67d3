"""A model: networks, what calibrates them, the recipe that made them, in one safetensors file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from osler import catalog, recipe, subsets
from osler.backbones import Backbone
from osler.case import Question
from osler.covariates import Encoder
from osler.decoder import Decoder
from osler.fusion import Fusion
from osler.linking import Links, Said
from osler.normalisation import Normalise as Normalise
from osler.problem import Problem
from osler.recipe import Recipe
from osler.sequences import Rhythm, Temporal, kept
from osler.tasks.classification import Classification
from osler.tasks.detection import Detection
from osler.tasks.segmentation import Segmentation
from osler.tensors import content_hash
from osler.tensors import read_tensors as read_tensors
from osler.tensors import write_tensors as write_tensors

FORMAT_VERSION = 1
# What a model of one image and covariates can answer from alone.
ALONE = ("image", subsets.PERSON)


class Network(nn.Module):
    """Image to outputs: normalise, backbone, pooling or the backbone's own neck, one head a task.

    Attributes:
        sources: what there may be of a case: ``image``, or the modalities; and ``covariates``.
        subsets: every part of them that has an answer of its own, see :func:`osler.subsets.of`.
        others: of modalities that share nothing, backbone, pooling and network along time of each but the first.
    """

    def __init__(self, plan: Recipe) -> None:
        super().__init__()
        image, parts = plan.image, plan.network
        several = image.modalities if len(image.modalities) > 1 else ("image",)
        # What says where things are sees them as channels of one image.
        modalities = ("image",) if plan.dense else several
        self.modalities = len(modalities)
        self.sources = (*modalities, *((subsets.PERSON,) if plan.covariates.columns else ()))
        self.subsets = subsets.of(self.sources)
        self.dims = image.dims
        self.tasks = {name: Classification(q) for name, q in plan.tasks.items() if not q.dense}
        self.dense = {name: _dense(q, plan) for name, q in plan.tasks.items() if q.dense}
        self.normalise = Normalise(image.intensity, image.channels, len(several))
        backbone, pooling, sequence, features = _look(plan)
        self.backbone: Backbone = backbone
        self.pooling: nn.Module = pooling
        self.sequence: Temporal = sequence
        own = self.modalities - 1 if not parts.shared else 0
        self.others = nn.ModuleList(nn.ModuleList(_look(plan)[:3]) for _ in range(own))
        self.slices = image.size[0] if image.dims == 2 else 1
        self.rhythm = Rhythm(timed=self.sequence.timed)
        self.features = features
        self.persons: Encoder | None = None
        self.fusion: Fusion | None = None
        widths = dict.fromkeys(modalities, self.sequence.features)
        if plan.covariates.columns:
            self.persons = Encoder(plan.covariates)
            widths[subsets.PERSON] = self.persons.features
        if len(widths) > 1:
            chosen = recipe.options("fusion", parts.fusion, parts.fusion_options)
            self.fusion = catalog.find("fusion", parts.fusion).build(chosen, widths=widths)
        self.links: Links | None = None
        if self.dense:
            self.decoder, self.finest, strides = self._decoder(plan)
            self.places = nn.ModuleList(t.head(self.decoder.widths, strides, self.dims) for t in self.dense.values())
            if self.tasks:
                self.links = Links(self.tasks, self.dense, self.decoder.widths, self.backbone.features, plan)
        self.dropout = nn.Dropout(parts.dropout)
        # By number: a task may have any name, also one that a module cannot have.
        answered = self.sequence.features if self.fusion is None else self.fusion.features
        self.heads = nn.ModuleList(task.head(answered) for task in self.tasks.values())
        for number, task in enumerate(self.tasks.values()):
            self.register_buffer(
                f"scale_{number}", torch.from_numpy(task.fit(np.zeros((1, _width(task)), np.float32), 0))
            )

    def normalise_patches(self, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "b _ _ d h w"]:
        """The normalised batch of windows, one modality after the other; 0 where one is missing (NaN).

        Where each image has its own scale, windows come on it already.
        """
        each = x.reshape(len(x), -1, x.shape[1] * x.shape[2] // self.normalise.modalities, *x.shape[3:])
        each = x if self.normalise.modalities == 1 else each
        # A window does not know the mean of its image; linked tasks see it whole.
        alone = self.normalise.intensity == "image" and self.links is None
        return (each if alone else self.normalise(each)).nan_to_num(0.0)

    def _decoder(self, plan: Recipe) -> tuple[Decoder, int, list[tuple[int, ...]]]:
        """A decoder over the levels that tasks look at, the first of them, and pixels of a patch to one of each."""
        size = plan.image.size[3 - self.dims :]
        was, self.backbone = self.backbone.training, self.backbone.eval()
        with torch.no_grad():
            levels = self.backbone.levels(torch.zeros(1, plan.inputs, *size))
        self.backbone.train(was)
        strides = [tuple(round(a / b) for a, b in zip(size, level.shape[2:], strict=True)) for level in levels]
        first = min(task.finest(strides) for task in self.dense.values())
        return Decoder([level.shape[1] for level in levels[first:]], self.dims), first, strides[first:]

    def say(
        self,
        x: Float[Tensor, "b t c d h w"],
        times: Float[Tensor, "_ t"] | None = None,
        covariates: Float[Tensor, "_ k"] | None = None,
    ) -> Said:
        """All that is said of a *normalised* batch; moments (and slices, in 2D) are folded into it for the backbone.

        Where the whole is asked about, features of slices are averaged; ``sequence`` makes one vector of the moments.

        Args:
            x: the batch.
            times: see :func:`osler.data.timeline`; moments that count, evenly spaced, where they are not given.
            covariates: see :meth:`answer`.
        """
        if self.modalities > 1:
            return self.along(self.seen(x, times), times, covariates)
        return self.conclude(self.levels(x), len(x), times, covariates)

    def looks(self) -> list[tuple[Backbone, nn.Module, Temporal]]:
        """Backbone, pooling and network along time of each modality; the same ones again where they are shared."""
        first = (self.backbone, self.pooling, self.sequence)
        others: Any = self.others
        return [first, *map(tuple, others)] if len(others) else [first] * self.modalities

    def seen(
        self, x: Float[Tensor, "b t c d h w"], times: Float[Tensor, "_ t"] | None = None
    ) -> Float[Tensor, "b t v"]:
        """The features of each moment of each modality of a normalised batch; 0 where one is missing."""
        if self.modalities == 1:
            return self.moments(self.maps(x), len(x))
        each = x.reshape(len(x), self.modalities, -1, *x.shape[2:])
        there = self.there(len(x), times, x.device)
        groups = [slice(s, s + 1) for s in range(self.modalities)] if len(self.others) else [slice(None)]
        found = []
        for group, (backbone, pooling, _) in zip(groups, self.looks(), strict=False):
            flat, rows = each[:, group].flatten(0, 1), there[:, group].flatten()
            # What is missing is not looked at: it would change what a backbone takes for the mean of its input.
            part, filled = flat[rows], x.new_zeros(len(flat), each.shape[2], self.features)
            if len(part):
                # One alone has no spread, by which a backbone that trains would divide.
                given = part.repeat(2, 1, 1, 1, 1, 1) if self.training and len(part) == 1 else part
                features = self.moments(self.maps(given, backbone), len(given), pooling)[: len(part)]
                filled = filled.to(features.dtype).index_put((rows.nonzero()[:, 0],), features)
            found.append(filled.reshape(len(x), -1, self.features))
        return torch.cat(found, 1)

    def there(self, cases: int, times: Float[Tensor, "_ t"] | None, device: torch.device) -> Bool[Tensor, "b s"]:
        """Which modalities each case has, as its ``times`` say."""
        if times is None:
            return torch.ones(cases, self.modalities, dtype=torch.bool, device=device)
        each = times.to(device).reshape(len(times), self.modalities, -1)
        return (~each.isnan()).any(2).expand(cases, -1)

    def levels(self, x: Float[Tensor, "b t c d h w"]) -> list[Float[Tensor, "bf _ ..."]]:
        """Feature maps of every level of the backbone, finest first; where nothing is to be placed only the last."""
        if not self.dense:
            return [self.maps(x)]
        found: list[Tensor] = self.backbone.levels(self._folded(x))
        return found

    def conclude(
        self,
        levels: Sequence[Float[Tensor, "bf _ ..."]],
        cases: int,
        times: Float[Tensor, "_ t"] | None = None,
        covariates: Float[Tensor, "_ k"] | None = None,
    ) -> Said:
        """What is said of the feature maps of :meth:`levels`; what is beside them of all cases, or of each."""
        # Linked tasks are trained on all moments that they are given, evenly spaced; other places on one.
        counted = None if self.dense else times
        whole = self.along(self.moments(levels[-1], cases), counted, covariates)
        vector, answers = whole.vector, whole.answers
        if not self.dense:
            return whole
        maps = self.decoder(list(levels)[self.finest :])
        heads = dict(zip(self.dense, self.places, strict=True))
        if self.links is not None:
            said: Said = self.links(maps, levels[-1], (vector, answers), heads)
            return replace(said, shares=whole.shares, whole=whole.whole)
        return Said({name: head(maps) for name, head in heads.items()}, answers, vector)

    def scale(self, task: str) -> Tensor:
        """What :meth:`Classification.fit` learned from the training targets."""
        return self.get_buffer(f"scale_{list(self.tasks).index(task)}")

    def forward(
        self,
        x: Float[Tensor, "b t c d h w"],
        times: Float[Tensor, "_ t"] | None = None,
        covariates: Float[Tensor, "_ k"] | None = None,
    ) -> dict[str, Tensor]:
        """The answers of :meth:`say` to tasks that ask of the whole image, by name."""
        return dict(self.say(x, times, covariates).answers)

    def maps(self, x: Float[Tensor, "b t c d h w"], backbone: nn.Module | None = None) -> Float[Tensor, "bf k *size"]:
        """Feature maps; moments (and slices, in 2D) are folded into the batch, in the order of their axes."""
        maps: Tensor = (backbone or self.backbone)(self._folded(x))
        return maps

    def _folded(self, x: Float[Tensor, "b t c d h w"]) -> Float[Tensor, "bf _ *size"]:
        if self.dense and self.normalise.modalities > 1:
            x = x.reshape(len(x), 1, -1, *x.shape[3:])
        b, t, c, d, h, w = x.shape
        if self.dims == 2:
            flat = x.permute(0, 1, 3, 2, 4, 5).reshape(b * t * d, c, h, w)
            return flat.contiguous(memory_format=torch.channels_last) if self.channels_last else flat
        flat = x.reshape(b * t, c, d, h, w)
        return flat.contiguous(memory_format=torch.channels_last_3d) if self.channels_last else flat

    channels_last = False

    def moments(
        self, maps: Float[Tensor, "bf k *size"], cases: int, pooling: nn.Module | None = None
    ) -> Float[Tensor, "b t v"]:
        """One feature vector a moment: the mean of those of its slices."""
        pooled: Tensor = (pooling or self.pooling)(maps)
        return pooled.reshape(cases, -1, self.slices, pooled.shape[-1]).mean(2)

    def vector(
        self, moments: Float[Tensor, "b t v"], times: Float[Tensor, "_ t"] | None = None
    ) -> Float[Tensor, "b w"]:
        """One feature vector a case, for :meth:`answer`."""
        found: Tensor = self.sequence(moments, *self.rhythm(moments.shape[:2], times, moments.device))
        return found

    def along(
        self,
        moments: Float[Tensor, "b t v"],
        times: Float[Tensor, "_ t"] | None = None,
        covariates: Float[Tensor, "_ k"] | None = None,
    ) -> Said:
        """What follows from the features of each moment, for the whole; ``Said.vector`` is their mean.

        Not what ``sequence`` makes of them: a state forgets what the novelty gate must see, however long ago it was.
        """
        if self.modalities > 1:
            return self._beside(moments, times, covariates)
        mask, gaps = self.rhythm(moments.shape[:2], times, moments.device)
        mean = kept(moments, mask).sum(1) / mask.sum(1, keepdim=True)
        if not self.sequence.timed:
            made = self.sequence(moments, mask, gaps)
            return Said({}, self.answer(made, covariates), mean, whole=made)
        # Rounding would add up from step to step.
        with torch.autocast(moments.device.type, enabled=False):
            exact = moments.float()
            made = self.sequence(exact, mask, gaps)
            attends = not self.training and hasattr(self.sequence, "weights")
            weights: Any = getattr(self.sequence, "weights", None)
            shares = weights(exact, mask, gaps) if attends else None
        return Said({}, self.answer(made, covariates), mean, shares=shares, whole=made)

    def _beside(
        self,
        moments: Float[Tensor, "b t v"],
        times: Float[Tensor, "_ t"] | None,
        covariates: Float[Tensor, "_ k"] | None,
    ) -> Said:
        """:meth:`along` of several modalities: each has a vector of its own, and a mean."""
        cases, device = len(moments), moments.device
        each = moments.reshape(cases, self.modalities, -1, moments.shape[2])
        there = self.there(cases, times, device)
        when = None if times is None else times.to(device).expand(cases, -1).reshape(each.shape[:3])
        vectors, means = [], []
        for s, (_, _, sequence) in enumerate(self.looks()):
            mask, gaps = self.rhythm(each.shape[::2], None if when is None else when[:, s], device)
            # A sequence of nothing has no answer; that of zeros does not count.
            mask = mask | ~there[:, s, None]
            means.append(kept(each[:, s], mask).sum(1) / mask.sum(1, keepdim=True))
            # Rounding would add up from step to step.
            with torch.autocast(device.type, enabled=torch.is_autocast_enabled(device.type) and not sequence.timed):
                vectors.append(sequence(each[:, s].float() if sequence.timed else each[:, s], mask, gaps))
        every = torch.cat([there, there.new_ones(cases, len(self.sources) - self.modalities)], 1)
        whole = torch.cat(vectors, 1)
        return Said({}, self.answer(whole, covariates, every), torch.cat(means, 1), whole=whole, there=every)

    def answer(
        self,
        vector: Float[Tensor, "b v"],
        covariates: Float[Tensor, "_ k"] | None = None,
        there: Bool[Tensor, "b s"] | None = None,
    ) -> dict[str, Tensor]:
        """Outputs by task of feature vectors of whole images, and of what is known of the persons.

        Args:
            vector: of :meth:`vector`; of several modalities those of one beside the other.
            covariates: of all cases, or of each, as :func:`osler.covariates.encode` gives them; ``None``: nothing is
                known.
            there: which of ``sources`` count; all by default.
        """
        if self.fusion is not None:
            cases = len(vector)
            if there is None:
                there = torch.ones(cases, len(self.sources), dtype=torch.bool, device=vector.device)
            vectors = dict(zip(self.sources, vector.chunk(self.modalities, 1), strict=False))
            if self.persons is not None:
                nothing = vector.new_full((cases, len(self.persons.missing)), torch.nan)
                known = nothing if covariates is None else covariates.to(vector.device).expand(cases, -1)
                # What is not known of a person is a vector of its own, not the absence of all that may be known.
                vectors[subsets.PERSON] = self.persons(torch.where(there[:, -1:], known, nothing))
                there = torch.cat([there[:, :-1], torch.ones_like(there[:, -1:])], 1)
            vector = self.fusion(vectors, there)
        kept = self.dropout(vector)
        return {name: head(kept).float() for name, head in zip(self.tasks, self.heads, strict=True)}

    def from_some(
        self, said: Said, covariates: Float[Tensor, "_ k"] | None, wanted: Bool[Tensor, "b s"]
    ) -> dict[str, Tensor]:
        """What is said from some of the sources, as far as a case has them.

        What lies at the places of an image is said of the image: without it, only what is known of the person counts.
        """
        assert said.whole is not None
        wanted = wanted.to(said.whole.device).expand(len(said.whole), -1)
        answers = self.answer(said.whole, covariates, wanted if said.there is None else wanted & said.there)
        for placed in said.opinions[1:]:
            answers = {n: torch.where(wanted[:, :1], (a + placed[n]) / 2, a) for n, a in answers.items()}
        return answers

    def from_parts(self, said: Said, covariates: Float[Tensor, "_ k"] | None) -> dict[str, Mapping[str, Tensor]]:
        """What is said from every one of ``subsets``, by its name; what is said from all is ``said.answers``."""
        parts = {name: torch.from_numpy(mask)[None] for name, mask in self.subsets.items() if name}
        return {"": said.answers} | {name: self.from_some(said, covariates, mask) for name, mask in parts.items()}


def _look(plan: Recipe) -> tuple[Backbone, nn.Module, Temporal, int]:
    """Backbone, pooling and network along time of one modality, and the features of a moment."""
    image, parts = plan.image, plan.network
    backbone: Backbone = catalog.find("backbones", parts.backbone).build(
        recipe.options("backbones", parts.backbone, parts.options),
        channels=plan.inputs,
        dims=image.dims,
        size=image.size[3 - image.dims :],
    )
    if parts.pooling == "neck":
        if backbone.neck is None:
            raise Problem(f"{parts.backbone} has no neck of its own", fix="set network.pooling=average")
        pooling: nn.Module = backbone.neck
        features = backbone.neck_features
    else:
        # The neck would hold weights that nothing trains.
        backbone.neck = None
        options = recipe.options("poolings", parts.pooling, parts.pooling_options)
        pooling = catalog.find("poolings", parts.pooling).build(options, features=backbone.features)
        features = backbone.features
    options = recipe.options("sequences", parts.sequence, parts.sequence_options)
    return backbone, pooling, catalog.find("sequences", parts.sequence).build(options, features=features), features


def _dense(question: Question, plan: Recipe) -> Segmentation | Detection:
    return Segmentation(question, plan.patches.deep) if question.kind == "segmentation" else Detection(question)


def _width(task: Classification) -> int:
    return len(task.question.classes) if task.question.kind == "multilabel" else 1


@dataclass(eq=False)
class Model:
    """What ``train`` makes and every other verb takes.

    Attributes:
        recipe: what made it.
        networks: the members of the ensemble.
        calibration: arrays by name, fitted on calibration cases (see ``osler.calibration``, ``osler.novelty``).
        card: plain facts: cohort, counts, results out of fold or on validation, versions.
        sha256: of its content, once saved or loaded.
    """

    recipe: Recipe
    networks: list[Network]
    calibration: dict[str, NDArray[Any]] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    @property
    def tasks(self) -> Mapping[str, Classification]:
        return self.networks[0].tasks

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all; sets :attr:`sha256`."""
        tensors = {f"members.{m}.{k}": v for m, net in enumerate(self.networks) for k, v in net.state_dict().items()}
        tensors |= {
            f"calibration.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in self.calibration.items()
        }
        header = {
            "format": "osler-model",
            "format_version": str(FORMAT_VERSION),
            "members": str(len(self.networks)),
            # In its own order: heads belong to tasks by their number.
            "recipe": json.dumps(recipe.to_dict(self.recipe)),
            "card": json.dumps(self.card, sort_keys=True),
        }
        self.sha256 = content_hash(header, tensors)
        write_tensors(path, tensors, header | {"sha256": self.sha256})


def load(path: Path | str) -> Model:
    """Reads a model file, or the model of a run folder, and checks it against its hash.

    Raises:
        Problem: it is missing, cut short, changed, or of another format.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "model.safetensors").exists():
            raise Problem("holds no finished model", path=path, fix="let `osler train` finish there first")
        path = path / "model.safetensors"
    header, tensors = read_tensors(path)
    if header.get("format") != "osler-model":
        raise Problem("this is not an Osler model", path=path, fix="give a run folder or its model.safetensors")
    if header.get("format_version") != str(FORMAT_VERSION):
        raise Problem(
            f"the model has format {header.get('format_version')}, this Osler reads {FORMAT_VERSION}",
            path=path,
            fix="use the version of Osler that wrote it, or train again",
        )
    expected = header.pop("sha256", "")
    if content_hash(header, tensors) != expected:
        raise Problem(
            "the model file was changed or damaged: its SHA-256 does not fit", path=path, fix="copy it again"
        )
    plan = recipe.build(json.loads(header["recipe"]))
    networks = []
    for member in range(int(header["members"])):
        network = Network(plan)
        prefix = f"members.{member}."
        network.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        networks.append(network.eval())
    calibration = {k[12:]: v.numpy() for k, v in tensors.items() if k.startswith("calibration.")}
    return Model(plan, networks, calibration, json.loads(header["card"]), expected)
