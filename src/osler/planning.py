"""From a cohort and a machine to a recipe, with a reason beside each choice."""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from osler import covariate_planning, data, modality, modality_planning, model, pace, recipe, registration
from osler.case import DENSE, Question
from osler.cohort import Cohort, is_known, label_of
from osler.image import Image
from osler.problem import Problem
from osler.recipe import Recipe

SAMPLE = 48
# Of a sequence so many moments are looked at; its length is known from all of them.
_LOOKED = 8
# Of all moments of a case together.
_MOST_PIXELS = 2**21


@dataclass(frozen=True)
class Fingerprint:
    """What a sample of a cohort's images and all of its labels look like.

    Attributes:
        cases, patients: how many.
        size: median ``(depth, height, width)``; ``aspects``: smallest and largest width / height.
        frames: largest number of moments; ``channels``: 1 unless real colour was seen.
        modalities, units, dtypes: those seen.
        labels: how often each label of the first question stands, unknown under ``""``.
        split: the cohort names a validation part itself.
        beside, apart: sampled cases of several images; those of them whose images lie on grids of their own.
    """

    cases: int
    patients: int
    size: tuple[int, int, int]
    aspects: tuple[float, float]
    frames: int
    channels: int
    modalities: tuple[str, ...]
    units: tuple[str, ...]
    dtypes: tuple[str, ...]
    labels: Mapping[str, int]
    split: bool
    beside: int
    apart: int


# Changes a proposal (nested settings) and its reasons, for images as the fingerprint says.
Adapt = Callable[[dict[str, Any], dict[str, str], Fingerprint], None]


@dataclass(frozen=True)
class _Facts:
    """What is kept of one sampled image: the pixels of 48 volumes would not fit."""

    size: tuple[int, int, int]
    frames: int
    channels: int
    coloured: bool
    modality: str
    unit: str
    dtype: str


def _facts(image: Image) -> _Facts:
    coloured = image.channels == 3 and _coloured(image)
    dtype = str(image.array.dtype)
    return _Facts(image.size, image.length, image.channels, coloured, image.modality, image.unit, dtype)


def fingerprint(cohort: Cohort, names: Sequence[str] = ()) -> Fingerprint:
    """Reads the images of up to 48 cases, evenly spread over the cohort, and all labels.

    Args:
        cohort: the cohort.
        names: of several images of a case those that the network will be given; all by default.

    Raises:
        Problem: none of the sample can be read.
    """
    # A case without any of them is no example of what the network will see.
    entries = [entry for entry in cohort.entries if not entry.images.keys().isdisjoint(names)] or cohort.entries
    images: list[_Facts] = []
    first: Problem | None = None
    beside = apart = 0
    for entry in entries[:: max(1, len(entries) // SAMPLE)]:
        try:
            read = data.read_case(entry, (), _LOOKED, names).images
            images += [_facts(image) for image in read.values()]
            beside += len(read) > 1
            apart += registration.apart(read)
        except Problem as problem:
            first = first or problem
    if not images:
        assert first is not None
        raise Problem(f"no image can be read (the first: {first.clause})", path=cohort.root, fix="check the files")
    sizes = np.array([image.size for image in images])
    depth, height, width = np.median(sizes, axis=0).astype(int).tolist()
    aspects = sizes[:, 2] / sizes[:, 1]
    colour = any(i.coloured for i in images)
    return Fingerprint(
        cases=len(cohort.entries),
        patients=len({entry.patient for entry in cohort.entries}),
        size=(depth, height, width),
        aspects=(float(aspects.min()), float(aspects.max())),
        frames=max(image.frames for image in images),
        channels=3 if colour else max((i.channels for i in images if i.channels != 3), default=1),
        modalities=tuple(sorted({i.modality for i in images if i.modality})),
        units=tuple(sorted({i.unit for i in images})),
        dtypes=tuple(sorted({i.dtype for i in images})),
        labels=Counter(label_of(entry, cohort.questions[0]) for entry in cohort.entries),
        split=any(entry.split == "validation" for entry in cohort.entries),
        beside=beside,
        apart=apart,
    )


def _coloured(image: Image) -> bool:
    """More than a trace of colour (burned-in coloured text in a grey image is a trace)."""
    array = image.array.astype(np.float32)
    spread = array.max(1) - array.min(1)
    return bool((spread > 0.1 * max(1.0, float(array.max()))).mean() > 0.01)


def check(cohort: Cohort) -> None:
    """Refuses cohorts that nothing honest can be learned from.

    Raises:
        Problem: no labels, one class, or too few cases of each.
    """
    if not cohort.questions:
        raise Problem("the cohort has no labels", path=cohort.root, fix="add a column label, or class folders")
    for question in cohort.questions:
        counts = Counter(label_of(entry, question) for entry in cohort.entries)
        known = sum(is_known(entry, question) for entry in cohort.entries)
        if question.kind in ("multiclass", "ordinal"):
            present = [label for label, count in counts.items() if label and count]
            if known == 0:
                raise Problem(f"all labels of {question.task} are missing", path=cohort.root, fix="fill the column")
            if len(present) < 2:
                raise Problem(
                    f"all {known} labels of {question.task} are {present[0]!r}: there is nothing to tell apart",
                    path=cohort.root, fix="add cases of another class",
                )  # fmt: skip
        if known < 10:
            raise Problem(
                f"only {known} cases have a known {question.task}: too few to train and check a model",
                path=cohort.root, fix="collect at least 10, better some hundred",
            )  # fmt: skip


def derive(
    cohort: Cohort, given: Mapping[str, Any], minutes: float, *, adapt: Adapt | None = None
) -> tuple[Recipe, dict[str, str]]:
    """The recipe of this cohort on this machine; what is ``given`` is kept, and the rest fits to it.

    Args:
        cohort: with labels, or without where it is adapted.
        given: nested settings, e.g. ``{"training": {"folds": 5}}``.
        minutes: time that training may take; it becomes a number of epochs.
        adapt: changes what is proposed, and the reasons, for a training that is not about labels.

    Returns:
        The recipe, and a reason for each key (``section.key``).
    """
    recipe.check_shape(given)
    if adapt is None:
        # What is outlined beside a label is another question, for another model.
        whole = tuple(question for question in cohort.questions if not question.dense)
        cohort = replace(cohort, questions=whole or cohort.questions)
        check(cohort)
    given = with_weights(given)
    names, told = modality_planning.images(cohort)
    found = fingerprint(cohort, given.get("image", {}).get("modalities", names))
    base: dict[str, Any] = {
        "tasks": {q.task: q for q in cohort.questions},
        "image": {}, "network": {}, "training": {}, "split": {}, "inference": {}, "augmentation": {},
    }  # fmt: skip
    reasons: dict[str, str] = {}
    weights = given.get("network", {}).get("weights", "")
    _plan_image(base["image"], reasons, found, bool(weights))
    if weights:
        _plan_learned_size(base["image"], reasons, Path(weights))
    base["image"]["modality"], reasons["image.modality"] = modality.decide(found.modalities, cohort.modality)
    if names:
        base["image"]["modalities"], reasons["image.modalities"] = names, told
        there = {**base["image"], **given.get("image", {})}
        base["image"]["register"], reasons["image.register"] = modality_planning.register(
            there["dims"], found.beside, found.apart
        )
    image = {**base["image"], **given.get("image", {})}
    _plan_preparation(base["image"], reasons, image)
    _plan_network(base["network"], reasons, found, image, given.get("network", {}))
    _plan_training(base["training"], reasons, found, cohort.questions[0], bool(weights), image["frames"])
    _plan_rest(base, reasons, image["modality"])
    if adapt is None and not any(question.dense for question in cohort.questions):
        covariate_planning.plan(base, reasons, cohort)
    if adapt is not None:
        adapt(base, reasons, found)
    given_tasks = {name: {"task": name, **value} for name, value in given.get("tasks", {}).items()}
    if given_tasks:
        base["tasks"] = {}
        given = {**given, "tasks": given_tasks}
    plan = recipe.build(recipe.merge(base, given))
    check_tasks(cohort, plan)
    covariate_planning.check(cohort, plan)
    for key in leaves(given):
        reasons[key] = "given"
    chosen = given.get("training", {})
    if plan.training.freeze:
        # Features are computed once, in float32 whatever is chosen; comparing layouts takes longer than it saves.
        chosen = {"precision": "float32", "channels_last": True, **chosen}
    plan, rate, why = pace.measure(plan, chosen)
    reasons |= {key: text for key, text in why.items() if key not in reasons or reasons[key] != "given"}
    if not chosen.keys() & {"members", "folds", "epochs"} and not plan.training.folds:
        plan, reasons["training.members"] = _ensemble(plan, found, rate, minutes)
    if "epochs" not in chosen:
        plan, reasons["training.epochs"] = _epochs(plan, found, rate, minutes)
    return plan, reasons


def check_tasks(cohort: Cohort, plan: Recipe) -> None:
    """A recipe from another cohort may ask what this one cannot answer.

    Raises:
        Problem: a task without labels here, of another kind, or without a class that stands here.
    """
    known = {question.task: question for question in cohort.questions}
    for name, asked in plan.tasks.items():
        if name not in known:
            raise Problem(
                f"the recipe asks {name!r}, the cohort has labels for {', '.join(known)}", path=cohort.root,
                fix="rename the task in the recipe or the label in the cohort",
            )  # fmt: skip
        kinds = {asked.kind, known[name].kind}
        outlined = asked.kind == "detection" and known[name].kind == "segmentation"
        if len(kinds) == 2 and kinds & {"regression", "multilabel", *DENSE} and not outlined:
            raise Problem(
                f"the recipe takes {name} as {asked.kind}, the cohort as {known[name].kind}", path=cohort.root,
                fix="say the same kind in both: in the recipe, or in a cohort.toml",
            )  # fmt: skip
        missing = [label for label in known[name].classes if label not in asked.classes]
        if missing and asked.kind != "regression":
            raise Problem(
                f"the recipe does not know the classes {', '.join(missing)} of {name}", path=cohort.root,
                fix="add them to the recipe's classes",
            )  # fmt: skip


def with_weights(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Weights name their own backbone and its options, so that the file alone is enough."""
    network = dict(given.get("network", {}))
    if not network.get("weights"):
        return given
    network["weights"] = str(Path(network["weights"]).resolve())
    header, _ = model.read_tensors(Path(network["weights"]))
    if "backbone" not in network and header.get("backbone"):
        network["backbone"] = header["backbone"]
        network["options"] = {**json.loads(header.get("options") or "{}"), **network.get("options", {})}
    return {**given, "network": network}


def leaves(content: Mapping[str, Any], where: str = "") -> list[str]:
    """The keys of nested settings, as ``section.key``."""
    found = []
    for key, value in content.items():
        found += leaves(value, f"{where}{key}.") if isinstance(value, Mapping) else [f"{where}{key}"]
    return found


def _plan_image(image: dict[str, Any], why: dict[str, str], found: Fingerprint, transfer: bool) -> None:
    depth, height, width = found.size
    image["dims"] = 3 if depth >= 8 else 2
    why["image.dims"] = f"the median image has {depth} slice{'s' if depth > 1 else ''}"
    if image["dims"] == 3:
        plane = multiple(min(96, max(height, width)), 8)
        image["size"] = [min(32, multiple(depth, 4)), plane, plane]
    else:
        longest = max(height, width)
        limit = 224 if transfer or torch.cuda.is_available() else 128
        plane = longest if longest <= 64 else min(limit, multiple(longest, 32))
        square = found.aspects[1] - found.aspects[0] > 0.02 or longest > 64
        image["size"] = [depth if depth < 8 else 8, plane, plane] if square else [depth, height, width]
    why["image.size"] = f"median {depth} x {height} x {width}, as much of it as this machine trains in time"
    image["channels"] = found.channels
    why["image.channels"] = "real colour" if found.channels == 3 else "no colour seen"
    image["frames"], why["image.frames"] = moments(found, image)
    distorted = max(abs(math.log(a)) for a in found.aspects) > 0.1
    image["fit"] = "pad" if distorted else "stretch"
    why["image.fit"] = f"width / height from {found.aspects[0]:.2f} to {found.aspects[1]:.2f}"
    if "HU" in found.units:
        image["intensity"], why["image.intensity"] = "window", "Hounsfield units"
    elif found.modalities or found.dtypes != ("uint8",):
        image["intensity"], why["image.intensity"] = "image", "no scale in common between images"
    else:
        image["intensity"], why["image.intensity"] = "cohort", "8-bit images on one scale"


def _plan_preparation(image: dict[str, Any], why: dict[str, str], chosen: Mapping[str, Any]) -> None:
    names, why["image.prepare"] = modality.preparations(chosen["modality"], chosen["channels"])
    image["prepare"] = list(names)
    if "foreground" in chosen.get("prepare", names):
        image["intensity"], why["image.intensity"] = "cohort", "the foreground of each brought them to one scale"


def moments(found: Fingerprint, image: Mapping[str, Any]) -> tuple[int, str]:
    """How many moments of a sequence a network is given, and why: up to 32, and as many as a step can take."""
    most = max(2, min(32, _MOST_PIXELS // (math.prod(image["size"]) * image["channels"])))
    longest = f"sequences of up to {found.frames}"
    return min(found.frames, most), longest if found.frames <= most else f"{longest}; so many fit into a step"


def _plan_learned_size(image: dict[str, Any], why: dict[str, str], weights: Path) -> None:
    """Weights of ``osler pretrain`` say at which size they learned: what they know holds there."""
    header, _ = model.read_tensors(weights)
    size = json.loads(header.get("size", "[]"))
    if len(size) == image["dims"]:
        image["size"][3 - len(size) :] = size
        why["image.size"] = "as the weights learned"


def multiple(value: int, of: int) -> int:
    """The nearest multiple of a number, at least one of it."""
    return max(of, round(value / of) * of)


def _plan_network(
    network: dict[str, Any],
    why: dict[str, str],
    found: Fingerprint,
    image: Mapping[str, Any],
    given: Mapping[str, Any],
) -> None:
    backbone = given.get("backbone", "resnet")
    network["backbone"] = backbone
    why["network.backbone"] = "ResNet-18: strong from scratch and quick on this machine"
    if backbone == "resnet":
        network["options"] = {"depth": 18, "width": 64 if torch.cuda.is_available() else 32}
        why["network.options.width"] = "64 as published; 32 trains three times as many epochs where there is no GPU"
    own_neck = backbone in ("reference_cnn", "alexnet", "vgg")
    network["pooling"] = "neck" if own_neck else "average"
    why["network.pooling"] = "the network's own dense layers" if own_neck else "every place counts alike"
    network["dropout"] = 0.0 if own_neck else 0.2
    why["network.dropout"] = "the network has its own" if own_neck else "against overfitting"
    network["sequence"] = "gru" if image["frames"] > 1 else "mean"
    if len(image.get("modalities", ())) > 1:
        chosen, reasons = modality_planning.network(found.cases, (*found.modalities, *found.units))
        network |= chosen
        why |= reasons
    along = "sees the order of moments, and learns from as few cases as the mean (benchmarks/sequences.py)"
    why["network.sequence"] = along if image["frames"] > 1 else "there is one moment"


def _plan_training(
    training: dict[str, Any], why: dict[str, str], found: Fingerprint, question: Question, transfer: bool, frames: int
) -> None:
    training["batch"] = (
        128 if found.cases >= 4000 and math.prod(found.size) <= 64 * 64 else 32 if found.cases >= 200 else 16
    )
    why["training.batch"] = f"{found.cases} cases"
    if frames > 1 and training["batch"] > max(8, 256 // frames):
        training["batch"], why["training.batch"] = max(8, 256 // frames), f"{frames} moments each"
    training["learning_rate"] = 1e-3
    why["training.learning_rate"] = "AdamW's usual for these networks"
    training["clip"] = 5.0
    why["training.clip"] = "one odd case must not undo an epoch"
    if transfer:
        training["backbone_rate"] = 0.3
        why["training.backbone_rate"] = "features that were learned elsewhere move slowly"
    plan_classes(training, why, found, question)
    training["folds"] = min(5, found.patients) if found.patients < 500 and not found.split else 0
    few = f"{found.patients} patients: under 500 every one is needed for training and for checking"
    why["training.folds"] = few if training["folds"] else f"{found.patients} patients, some of them held out"
    training["threads"] = torch.get_num_threads()
    why["training.threads"] = "cores of this machine"


def plan_classes(training: dict[str, Any], why: dict[str, str], found: Fingerprint, question: Question) -> None:
    """What the loss makes of labels of whole images."""
    counts = [count for label, count in found.labels.items() if label]
    if question.kind in ("multiclass", "multilabel", "ordinal") and counts:
        ratio = max(counts) / max(1, min(counts))
        training["balance"] = 1.0 if ratio > 1.5 else 0.0
        why["training.balance"] = f"the largest class is {ratio:.1f} times the smallest"
    training["smoothing"] = 0.05 if question.kind == "multiclass" else 0.0
    why["training.smoothing"] = "labels are never all right"


def _plan_rest(base: dict[str, Any], why: dict[str, str], code: object) -> None:
    three = base["image"]["dims"] == 3
    base["inference"]["views"] = 5
    why["inference.views"] = "answers of slightly moved copies are averaged"
    base["augmentation"] = {
        "spatial": {
            "probability": 0.9, "rotation": 15.0, "scale": 0.2, "stretch": 0.1, "shear": 0.1,
            "translation": 0.1, "elastic": 0.04, "elastic_probability": 0.3,
            **({"tilt": 10.0} if three else {}),
        },
        "intensity": {"probability": 0.8, "brightness": 0.4, "contrast": 0.35, "gamma": 0.45},
        "blur": {"probability": 0.2, "low": 0.3, "high": 1.0},
        "noise": {"probability": 0.2, "high": 0.25},
        "bias": {"probability": 0.2, "strength": 0.4},
    }  # fmt: skip
    specific, reasons = modality.augmentations(str(code))
    base["augmentation"] |= specific
    why |= reasons
    why["augmentation"] = (
        "what differs between scanners, positions and days; no mirror images: the heart is on the left"
    )


def _ensemble(plan: Recipe, found: Fingerprint, rate: float, minutes: float) -> tuple[Recipe, str]:
    """Up to three networks, where each still gets 12 epochs (Lakshminarayanan 2017; Ovadia 2019 under shift)."""
    passes = minutes * 60 * rate * 0.85 / (found.cases * 0.8)
    members = int(np.clip(passes / 12, 1, 3))
    reason = "networks from different starts err differently, above all on images that differ from these"
    return replace(
        plan, training=replace(plan.training, members=members)
    ), reason if members > 1 else "no time for more"


def _epochs(plan: Recipe, found: Fingerprint, rate: float, minutes: float) -> tuple[Recipe, str]:
    """As many epochs as the time allows, but no more than a cohort of this size profits from."""
    members = plan.training.folds or plan.training.members
    share = (plan.training.folds - 1) / plan.training.folds if plan.training.folds else 0.8
    possible = minutes * 60 * rate * 0.85 / max(1, found.cases * share * members)
    useful = max(20, min(150, round(60_000 / found.cases)))
    if plan.training.freeze:
        return replace(plan, training=replace(plan.training, epochs=useful)), "features are computed once"
    epochs = int(np.clip(possible, 3, useful))
    cores = os.cpu_count() or 1
    reason = (
        f"{rate:.3g} cases/s on {cores} cores, {minutes:g} minutes for {members} "
        f"network{'s' if members > 1 else ''}, at most {useful}"
    )
    return replace(plan, training=replace(plan.training, epochs=epochs)), reason
