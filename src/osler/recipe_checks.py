"""Whether the values of a recipe are possible, each alone and with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from osler.problem import Problem

if TYPE_CHECKING:
    from osler.recipe import Recipe


def check(recipe: Recipe) -> None:
    """That numbers lie within their limits, and that no two keys contradict each other.

    Raises:
        Problem: the first that does not hold.
    """
    _check_values(recipe)
    _check_questions(recipe)
    _check_covariates(recipe)
    if recipe.dense and len(recipe.image.modalities) > 1 and recipe.image.frames > 1:
        what = "in the recipe, image.frames goes with one image where places are asked of each moment alone"
        raise Problem(what, fix="set image.frames=1")


def _check_values(recipe: Recipe) -> None:
    plan = recipe.training
    limits = {
        "training.epochs": (plan.epochs, 1, 100_000),
        "training.batch": (plan.batch, 1, 65_536),
        "training.learning_rate": (plan.learning_rate, 1e-9, 100),
        "training.folds": (plan.folds, 0, 50),
        "training.members": (plan.members, 1, 50),
        "inference.coverage": (recipe.inference.coverage, 0.5, 0.999),
        "inference.views": (recipe.inference.views, 1, 64),
        "inference.refusals": (recipe.inference.refusals, 0.0001, 0.5),
        "network.dropout": (recipe.network.dropout, 0, 0.95),
        "image.frames": (recipe.image.frames, 1, 10_000),
        "image.channels": (recipe.image.channels, 1, 64),
        "training.clip": (plan.clip, 0, 1e9),
        "training.ema": (plan.ema, 0, 1),
        "training.balance": (plan.balance, 0, 1),
        "training.smoothing": (plan.smoothing, 0, 0.9),
        "training.warmup": (plan.warmup, 0, 1),
        "training.weight_decay": (plan.weight_decay, 0, 1e3),
        "training.patience": (plan.patience, 0, 100_000),
        "training.threads": (plan.threads, 1, 4096),
        "split.validation": (recipe.split.validation, 0, 0.9),
        "split.calibration": (recipe.split.calibration, 0, 0.9),
        "split.test": (recipe.split.test, 0, 0.9),
        "covariates.hidden": (recipe.covariates.hidden, 0, 0.9),
        "links.consistency": (recipe.links.consistency, 0, 100),
        "patches.longest": (recipe.patches.longest, 0, 65_536),
        "patches.per_case": (recipe.patches.per_case, 1, 100_000),
        "patches.foreground": (recipe.patches.foreground, 0, 1),
        "patches.overlap": (recipe.patches.overlap, 0, 0.9),
        "patches.deep": (recipe.patches.deep, 1, 8),
        **{f"patches.spacing[{axis}]": (n, 0, 1e4) for axis, n in enumerate(recipe.patches.spacing)},
        **{f"image.size[{axis}]": (n, 1, 4096) for axis, n in enumerate(recipe.image.size)},
    }
    for key, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise Problem(
                f"in the recipe, {key} = {value} is outside {low} to {high}", fix="give a value between them"
            )
    if recipe.split.validation + recipe.split.calibration + recipe.split.test >= 1:
        raise Problem("in the recipe, the held-out shares leave nothing to train on", fix="lower split.*")
    if plan.folds == 1:
        raise Problem("in the recipe, training.folds = 1 makes no sense", fix="use 0 for one model, or 2 or more")
    if plan.folds and plan.members > 1:
        raise Problem("in the recipe, folds make an ensemble already", fix="set either folds or members")
    if not recipe.tasks:
        raise Problem("the recipe asks nothing", fix="give the cohort labels, or the recipe a [tasks.NAME] table")


def _check_covariates(recipe: Recipe) -> None:
    """Each is named once, what is said is said of one of them, and the tasks can use them."""
    plan = recipe.covariates
    if plan.columns and recipe.dense and not recipe.linked:
        raise Problem(
            "in the recipe, covariates stand beside tasks that ask where something is, which cannot use them alone",
            fix="set covariates.columns=[], or ask a class, too",
        )
    if len(set(plan.columns)) < len(plan.columns):
        raise Problem("in the recipe, covariates.columns names a column twice", fix="name it once")
    for key in ("kinds", "units", "ranges", "seen", "categories"):
        strange = [name for name in getattr(plan, key) if name not in plan.columns]
        if strange:
            raise Problem(
                f"in the recipe, covariates.{key} names {strange[0]!r}, which covariates.columns does not",
                fix="name it there, too",
            )
    for name, (low, high) in plan.ranges.items():
        if not low <= high:
            raise Problem(
                f"in the recipe, covariates.ranges.{name} goes from {low:g} to {high:g}", fix="swap the two"
            )


def _check_questions(recipe: Recipe) -> None:
    """Together they can be answered, and each is whole."""
    for key in ("nothing", "something"):
        for name, classes in getattr(recipe.links, key).items():
            exclusive = name in recipe.tasks and recipe.tasks[name].kind in ("multiclass", "ordinal")
            known = recipe.tasks[name].classes if exclusive else ()
            strange = [label for label in classes if label not in known]
            if strange or not known:
                what = f"names {strange[0]!r}, which is no class of it"
                what = what if known else "is no task of the whole image whose classes exclude each other"
                raise Problem(f"in the recipe, links.{key}.{name} {what}", fix="correct it")
    if recipe.linked and recipe.image.dims == 2 and recipe.image.size[0] > 1:
        boxed = [name for name, question in recipe.tasks.items() if question.kind == "detection"]
        if boxed:
            raise Problem(
                f"{boxed[0]} looks for boxes, which reach across slices: image.dims = 2 cannot find them",
                fix="set image.dims=3",
            )
    for name, question in recipe.tasks.items():
        if question.kind == "segmentation" and len(question.values) != len(question.classes):
            what = f"in the recipe, tasks.{name}.values does not say which values of a label map make up each class"
            raise Problem(what, fix="give a list of values for each class")
