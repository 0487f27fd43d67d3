"""From a cohort whose cases say where things are to a recipe, with a reason beside each choice.

The rules follow nnU-Net (Isensee et al., 2021): what the images and structures of a cohort have in common decides the
grid, the patch and the network; what never changed between data sets is fixed.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from osler import (
    covariate_planning,
    link_planning,
    modality,
    modality_planning,
    pace,
    planning,
    recipe,
    structures,
    subsets,
)
from osler.case import Question
from osler.cohort import Cohort
from osler.problem import Problem
from osler.recipe import Recipe

# A batch's worth of voxels that a step of a second or two can take.
_BATCH = {"cpu": 2**18, "cuda": 2**22}
# Steps that a network needs before a second one is worth more.
_STEPS = 1000
# Pixels that the thinnest structures keep on the working grid; from how many on half of the rows and columns do.
_THIN, _SMALL, _HALF = 6.0, 20.0, 7.0
_LEFT_OR_RIGHT = ("left", "right", "links", "rechts")


def derive(cohort: Cohort, given: Mapping[str, Any], minutes: float) -> tuple[Recipe, dict[str, str]]:
    """The recipe of a cohort that asks where things are; see :func:`osler.planning.derive`."""
    recipe.check_shape(given)
    planning.check(cohort)
    given = planning.with_weights(given)
    tables = {name: {"task": name, **value} for name, value in given.get("tasks", {}).items()}
    asked = {q.task: q for q in cohort.questions if not tables or q.task in tables}
    asked |= {name: replace(asked[name], **_tuples(table)) for name, table in tables.items() if name in asked}
    whole = {name: question for name, question in asked.items() if not question.dense}
    linked = bool(whole) and len(whole) < len(asked)
    proposed, told = modality_planning.images(cohort)
    names = tuple(given.get("image", {}).get("modalities", () if linked else proposed))
    cohort = _with_images(cohort, names, linked=linked)
    # Folds and shares of classes go by the first: by the class of a case, where it has one.
    asked = whole | asked
    found = planning.fingerprint(replace(cohort, questions=tuple(asked.values())), names)
    questions = tuple(question for question in asked.values() if question.dense)
    seen = structures.look(cohort, questions, names)
    base: dict[str, Any] = {
        "tasks": asked,
        "image": {}, "network": {}, "training": {}, "split": {}, "inference": {}, "augmentation": {}, "patches": {},
    }  # fmt: skip
    why: dict[str, str] = {}
    _plan_grid(base, why, seen, questions, given.get("image", {}))
    _plan_pixels(base, why, found, cohort)
    if len(names) > 1:
        base["image"]["modalities"], why["image.modalities"] = list(names), told
        base["image"]["register"], why["image.register"] = modality_planning.register(
            given.get("image", {}).get("dims", base["image"]["dims"]), found.beside, found.apart
        )
    boxes = all(q.kind == "detection" for q in questions)
    if linked:
        link_planning.plan_whole(base, why, (seen.sizes, seen.spacings), found)
    else:
        _plan_patch(base, why, seen, {**base["patches"], **given.get("patches", {})}, whole=boxes)
    image, patches = ({**base[key], **given.get(key, {})} for key in ("image", "patches"))
    if linked:
        scale = (np.array(image["size"])[1:] / seen.sizes[:, 1:]).min(1)
    else:
        scale = _on_grid(seen, patches)[:, 1:].max(1) / seen.sizes[:, 1:].max(1)
    # Of what nobody outlined nothing is known to be thick.
    thick = seen.thickness * float(np.median(scale)) if math.isfinite(seen.thickness) else 0.0
    _plan_network(base, why, thick, questions, given.get("network", {}))
    _plan_training(base, why, found, questions)
    _plan_augmentation(base, why, tuple(asked.values()), slices=bool(np.median(seen.sizes[:, 0]) > 1))
    if linked:
        link_planning.plan_links(base, why, cohort, asked)
        planning.plan_classes(base["training"], why, found, next(iter(whole.values())))
        covariate_planning.plan(base, why, cohort)
        base["inference"]["views"], why["inference.views"] = 3, "classes of slightly moved copies are averaged"
        base["network"]["dropout"], why["network.dropout"] = 0.2, "of classes, against overfitting"
    # A table may say of a question only what is to be changed.
    questioned = tables | {name: asdict(question) for name, question in asked.items()}
    plan = recipe.build(recipe.merge({**base, "tasks": {}}, {**given, "tasks": questioned}))
    planning.check_tasks(cohort, plan)
    covariate_planning.check(cohort, plan)
    for key in planning.leaves(given):
        why[key] = "given"
    chosen = given.get("training", {})
    plan, rate, measured = pace.measure(plan, chosen)
    why |= {key: text for key, text in measured.items() if why.get(key) != "given"}
    moments = (1 if linked else found.frames) * sum(entry.split != "test" for entry in cohort.entries)
    tested = any(entry.split == "test" for entry in cohort.entries)
    return _plan_time(plan, why, (moments, tested), rate, minutes, given)


def _with_images(cohort: Cohort, names: Sequence[str], *, linked: bool) -> Cohort:
    """The cases with the images that are looked at and no other; those that lack all of them are not planned by.

    Raises:
        Problem: linked tasks have several images and none is chosen, several are, or no case has the chosen one.
    """
    subsets.check(names, covariates=False, linked=linked)
    there = list(dict.fromkeys(name for entry in cohort.entries for name in entry.images))
    has = f"cases have {', '.join(there)}"
    if linked and not names and len(there) > 1:
        # Also where each case has one of them: the network would take them for the same.
        fix = f"choose it: {subsets.chosen(there[:1])}"
        raise Problem(f"{subsets.ONE_IMAGE}, and {has}", path=cohort.root, fix=fix)
    wanted = names or there
    entries = [replace(e, images={n: e.images[n] for n in wanted if n in e.images}) for e in cohort.entries]
    entries = [entry for entry in entries if entry.images]
    if not entries:
        raise Problem(f"no case has an image {names[0]!r}", path=cohort.root, fix=f"choose another: {has}")
    return replace(cohort, entries=tuple(entries))


def _tuples(table: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    if "values" in plain:
        plain["values"] = tuple(tuple(group) for group in plain["values"])
    return plain


def _plan_grid(
    base: dict[str, Any],
    why: dict[str, str],
    seen: structures.Structures,
    questions: Sequence[Question],
    given: Mapping[str, Any],
) -> None:
    """2D or 3D, and the grid."""
    image, patches = base["image"], base["patches"]
    depth, height, width = np.median(seen.sizes, 0)
    # A box reaches across slices, and a network that sees one of them cannot say how far.
    boxes = any(question.kind == "detection" for question in questions) and depth > 1
    volumes = bool(depth >= 8 or boxes)
    known = np.isfinite(seen.spacings[:, 0 if volumes else 1 :]).all()
    spacing = np.median(seen.spacings, 0) if known else np.full(3, math.nan)
    flat = spacing[0] / spacing[1:].min() if known and volumes else max(height, width) / depth / 8
    if boxes and given.get("dims") == 2:
        raise Problem("boxes in volumes reach across slices: image.dims = 2 cannot find them", fix="leave it out")
    image["dims"] = given.get("dims", 3 if volumes and (flat < 3 or boxes) else 2)
    why["image.dims"] = (
        f"the median image has {depth:.0f} slices"
        + (f", {flat:.1f} times as far apart as pixels" if known and volumes else "")
        + ("" if not volumes or image["dims"] == 3 else ": too few or too thick to look across them")
    )
    if known:
        patches["unit"] = "mm"
        why["patches.unit"] = "every image says how far apart its pixels are"
        along = spacing if image["dims"] == 3 else np.array([0.0, spacing[1], spacing[2]])
        if image["dims"] == 3 and flat > 2:
            along[0] = np.quantile(seen.spacings[:, 0], 0.1)
        patches["spacing"] = [round(float(s), 4) for s in np.nan_to_num(along)]
        why["patches.spacing"] = "the median of the images" + (", slices as they are" if image["dims"] == 2 else "")
        return
    patches["unit"], patches["spacing"] = "px", [0.0, 0.0, 0.0]
    why["patches.unit"] = "not every image says how far apart its pixels are: nothing is in millimetres"
    longest = seen.sizes[:, 1:].max(1)
    typical = float(np.median(longest))
    # As coarse as what is sought allows: a quarter of the pixels is four times as many steps.
    need = max(_THIN / seen.thickness, _SMALL / seen.side)
    scale = float(np.clip(need, min(1.0, 256 / typical), 1.0))
    same = longest.max() < 1.05 * longest.min()
    if image["dims"] == 3 or (scale > 0.75 and same):
        patches["longest"] = 0
        why["patches.longest"] = "as they were read: " + (
            "all are alike" if image["dims"] == 2 else "distances are unknown"
        )
        return
    patches["longest"] = planning.multiple(int(typical * scale), 32)
    what = f"{seen.thickness:.0f} pixels thick" if need == _THIN / seen.thickness else f"{seen.side:.0f} pixels wide"
    why["patches.longest"] = (
        f"images are {longest.min():.0f} to {longest.max():.0f} long, what is sought {what}: enough to see it"
    )


def _plan_pixels(base: dict[str, Any], why: dict[str, str], found: planning.Fingerprint, cohort: Cohort) -> None:
    image = base["image"]
    image["channels"], image["frames"], image["fit"] = found.channels, 1, "pad"
    why["image.channels"] = "real colour" if found.channels == 3 else "no colour seen"
    why["image.frames"] = "each moment is looked at alone"
    why["image.fit"] = "of the whole image, for the novelty gate"
    image["modality"], why["image.modality"] = modality.decide(found.modalities, cohort.modality)
    image["prepare"], why["image.prepare"] = [], "places are asked in images as they were read, so nothing is cropped"
    if "HU" in found.units:
        image["intensity"], why["image.intensity"] = "window", "Hounsfield units"
    elif found.modalities or found.dtypes != ("uint8",) or found.size[0] > 1:
        image["intensity"], why["image.intensity"] = "image", "no scale in common between images"
    else:
        image["intensity"], why["image.intensity"] = "cohort", "8-bit images on one scale"


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _plan_patch(
    base: dict[str, Any], why: dict[str, str], seen: structures.Structures, patches: Mapping[str, Any], *, whole: bool
) -> None:
    """The patch: the median image on the working grid, or as much of it as fits a step.

    Where only boxes are asked for, maps are coarse and steps cheap, so that flat images are seen whole: no object is
    cut.
    """
    three = base["image"]["dims"] == 3
    size = np.median(_on_grid(seen, patches), 0)
    patch = size.copy()
    if three:
        while np.prod(np.ceil(patch / 8) * 8) > link_planning.VOXELS[_device()]:
            patch[patch.argmax()] *= 0.95
        base["image"]["size"] = [8 * math.ceil(n / 8) for n in patch]
    else:
        limit = 640 if whole else 320 if _device() == "cpu" else 512
        sides = [planning.multiple(math.ceil(n / 32) * 32, 32) if n <= limit else 256 for n in patch[1:]]
        base["image"]["size"] = [1, *sides]
    shape = " x ".join(f"{n:.0f}" for n in size)
    why["image.size"] = f"the median image is {shape} on the working grid; as much of it as a step can take"


def _on_grid(seen: structures.Structures, patches: Mapping[str, Any]) -> NDArray[np.float64]:
    """Sizes of the sampled images on the working grid."""
    if patches["unit"] == "px":
        longest = patches.get("longest", 0)
        if not longest:
            return seen.sizes
        factor = longest / seen.sizes[:, 1:].max(1, keepdims=True)
        return np.concatenate([seen.sizes[:, :1], seen.sizes[:, 1:] * factor], 1)
    target = np.array(patches["spacing"])
    factor = np.where(target > 0, np.nan_to_num(seen.spacings, nan=1.0) / np.where(target > 0, target, 1), 1)
    return np.asarray(seen.sizes * factor)


def _plan_network(
    base: dict[str, Any],
    why: dict[str, str],
    thick: float,
    questions: Sequence[Question],
    given: Mapping[str, Any],
) -> None:
    """``thick``: pixels of the working grid across what is outlined, see :class:`osler.structures.Structures`."""
    network, flat = base["network"], base["image"]["dims"] == 2
    boxes = all(q.kind == "detection" for q in questions)
    coarse = flat and (boxes or (thick >= 2 * _THIN and _device() == "cpu"))
    network["backbone"] = given.get("backbone", "resnet" if coarse else "unet")
    what = "boxes need" if boxes else f"what is outlined is {thick:.0f} pixels thick, and needs"
    why["network.backbone"] = (
        f"ResNet-18: {what} no map finer than a fourth of the rows and columns, where a U-Net spends most of its time"
        if coarse
        else "U-Net: hard to beat where it is planned well (Isensee 2024)"
    )
    network["pooling"], network["dropout"] = "average", 0.0
    why["network.dropout"] = "augmentation does it"
    if network["backbone"] == "resnet":
        network["options"] = {"depth": 18, "width": 64 if _device() == "cuda" else 32, "stem": "large"}
        why["network.options.width"] = "64 as published; 32 trains three times as many epochs where there is no GPU"
    if network["backbone"] in ("unet", "residual_unet"):
        network["options"] = {"width": 32 if _device() == "cuda" else 24 if flat else 16}
        why["network.options.width"] = "32 as published; fewer train more steps where there is no GPU"
        spacing = base["patches"].get("spacing", [0, 0, 0])
        if not flat and all(spacing):
            network["options"]["aspect_z"] = round(spacing[0] / spacing[2], 2)
            why["network.options.aspect_z"] = "slices this much farther apart than pixels are halved later"
    if network["backbone"] == "unet" and flat and thick >= _HALF and _device() == "cpu":
        network["options"]["stride"] = 2
        why["network.options.stride"] = f"{thick:.0f} pixels thick: half of the rows and columns show it, much faster"
    base["patches"]["deep"] = 3 if any(q.kind == "segmentation" for q in questions) else 1
    why["patches.deep"] = "coarse levels learn faster with a loss of their own (Lee 2015)"


def _plan_training(
    base: dict[str, Any], why: dict[str, str], found: planning.Fingerprint, questions: Sequence[Question]
) -> None:
    training, patches = base["training"], base["patches"]
    voxels = math.prod(base["image"]["size"]) * base["image"]["frames"]
    # ResNet's normalisation needs several images a step.
    least = 8 if base["network"]["backbone"] == "resnet" else 2
    training["batch"] = int(np.clip(_BATCH[_device()] // voxels, least, 16))
    why["training.batch"] = f"patches of {voxels:,} pixels; small batches make more steps"
    training["learning_rate"], training["weight_decay"], training["clip"] = 2e-3, 0.03, 5.0
    why["training.learning_rate"] = "AdamW: nearer to its best in few steps than SGD"
    why["training.clip"] = "one odd case must not undo an epoch"
    training["folds"] = min(5, found.patients) if found.patients < 500 and not found.split else 0
    few = f"{found.patients} patients: under 500 every one is needed for training and for checking"
    why["training.folds"] = few if training["folds"] else f"{found.patients} patients, some of them held out"
    # A stop that is chosen by validation needs one; these trainings go on to the end of their time.
    base["split"]["validation"] = 0.0
    why["split.validation"] = "nothing is chosen by it: such cases are trained or calibrated on"
    training["threads"] = torch.get_num_threads()
    why["training.threads"] = "cores of this machine"
    patches["foreground"] = 0.5 if questions[0].kind == "detection" else 0.33
    why["patches.foreground"] = "what is sought is small and rare"
    patches["overlap"] = 0.5
    why["patches.overlap"] = "as published"


def _plan_augmentation(
    base: dict[str, Any], why: dict[str, str], questions: Sequence[Question], *, slices: bool
) -> None:
    """``slices``: images have several, also where a network looks at each alone."""
    three, colour = base["image"]["dims"] == 3, base["image"]["channels"] == 3
    sided = any(word in name.lower() for q in questions for name in q.classes for word in _LEFT_OR_RIGHT)
    boxes = any(q.kind == "detection" for q in questions)
    mirrored = not sided and (boxes or not slices)
    spacing = base["patches"].get("spacing", [0, 0, 0])
    base["augmentation"] = {
        "spatial": {
            "probability": 0.8, "rotation": 15.0 if boxes else 30.0, "scale": 0.3, "stretch": 0.1, "shear": 0.05,
            "translation": 0.0, "elastic": 0.03, "elastic_probability": 0.0 if boxes else 0.2,
            "flip_x": mirrored, "flip_y": mirrored and (colour or (boxes and three)),
            **({"flip_z": True} if boxes and three and not sided else {}),
            **({"tilt": 15.0} if three else {}),
            **({"aspect_z": round(spacing[0] / spacing[2], 3)} if three and all(spacing) else {}),
        },
        "intensity": {"probability": 0.5, "brightness": 0.3, "contrast": 0.3, "gamma": 0.4},
        "blur": {"probability": 0.15, "low": 0.3, "high": 1.0},
        "noise": {"probability": 0.15, "high": 0.2},
        "lowres": {"probability": 0.15},
    }  # fmt: skip
    specific, reasons = modality.augmentations(str(base["image"]["modality"]))
    base["augmentation"] |= specific
    why |= reasons
    if sided:
        which = "not mirrored: a class name tells left from right"
    elif not mirrored:
        which = "not mirrored: outlines of volumes were better without (docs/segmentation.md)"
    else:
        which = "mirrored along the width" + (" and the height: colour pictures have no up" if colour else "")
    why["augmentation"] = f"as for nnU-Net, {which}"
    base["patches"]["mirror"] = mirrored
    why["patches.mirror"] = "the mean of two views costs nothing in training" if mirrored else "see augmentation"


def _plan_time(
    plan: Recipe,
    why: dict[str, str],
    images: tuple[int, bool],
    rate: float,
    minutes: float,
    given: Mapping[str, Any],
) -> tuple[Recipe, dict[str, str]]:
    """Patches a case, so that an epoch is long enough to be worth a look; epochs, as many as the time allows.

    ``images``: how many moments may be used for training, and whether the cohort has a test part beside them, so that
    nothing depends on folds for being checked.
    """
    chosen, (moments, tested) = given.get("training", {}), images
    # Windows are cut, moved and watched beside the step that was measured.
    possible = minutes * 60 * rate * 0.7
    folds = plan.training.folds
    if folds and tested and "folds" not in chosen and possible / folds / plan.training.batch < _STEPS:
        plan = replace(plan, training=replace(plan.training, folds=0))
        why["training.folds"] = f"no time for {folds} networks of {_STEPS} steps"
    networks = plan.training.folds or plan.training.members
    share = (plan.training.folds - 1) / plan.training.folds if plan.training.folds else 0.8
    seen = max(1, moments * share)
    if "per_case" not in given.get("patches", {}):
        per_case = max(1, round(100 * plan.training.batch / seen))
        plan = replace(plan, patches=replace(plan.patches, per_case=per_case))
        why["patches.per_case"] = f"{seen:.0f} images a network: an epoch has about 100 steps or more"
    if "epochs" not in chosen:
        epochs = int(np.clip(possible / networks / (seen * plan.patches.per_case), 3, 1000))
        plan = replace(plan, training=replace(plan.training, epochs=epochs))
        why["training.epochs"] = (
            f"{rate:.3g} patches/s on {os.cpu_count()} cores, {minutes:g} minutes for {networks} "
            f"network{'s' if networks > 1 else ''}"
        )
    return plan, why
