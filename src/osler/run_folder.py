"""The folder of a run: its plan, whether it is still the same run, and that nobody else works in it."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from osler import cohort, files, model, planning, recipe
from osler.cohort import Cohort
from osler.fitting import Say
from osler.model import Model
from osler.problem import Problem
from osler.recipe import Recipe

Derive = Callable[[Cohort, Mapping[str, Any], float], tuple[Recipe, dict[str, str]]]


def settle(
    found: Cohort, out: Path, settings: dict[str, Any], minutes: float, say: Say, derive: Derive = planning.derive
) -> Recipe:
    """The recipe in the run folder if there is one, else a new one, written there with its reasons.

    Raises:
        Problem: the folder holds a run of another cohort or with other settings; or ``derive`` finds no recipe.
    """
    request = {"settings": settings, "minutes": minutes, "cohort": _listing_hash(found)}
    request_file, recipe_file = out / "request.json", out / "recipe.toml"
    if recipe_file.exists() and request_file.exists():
        before = json.loads(request_file.read_text(encoding="utf-8"))
        if before != request:
            different = [key for key in request if before.get(key) != json.loads(json.dumps(request[key]))]
            if different:
                raise Problem(
                    f"holds a run that began with other {' and '.join(different)}", path=out, fix="give another --out"
                )
        say(f"going on with the run in {out.name}")
        return recipe.build(recipe.read(recipe_file))
    say("planning")
    names = not isinstance(settings.get("tasks", {}), Mapping)
    given = {key: value for key, value in settings.items() if not (names and key == "tasks")}
    plan, reasons = derive(found, given, minutes)
    recipe.write(plan, reasons, recipe_file)
    files.replaced(request_file, json.dumps(request, indent=1))
    size = " x ".join(str(n) for n in plan.image.size)
    say(
        f"plan: {plan.network.backbone} on {size}, {plan.training.epochs} epochs of {plan.training.batch}, "
        f"{plan.training.precision}, {plan.training.folds or 'no'} folds; reasons in recipe.toml"
    )
    return plan


def _listing_hash(found: Cohort) -> str:
    return cohort.digest(found.entries, [f"{entry.id}|{entry.patient}|{entry.split}" for entry in found.entries])


def same_pixels(out: Path, digest: str) -> None:
    """A run goes on with the images that it began with.

    Raises:
        Problem: the files have changed since.
    """
    path = out / "cohort.sha256"
    if path.exists() and path.read_text(encoding="utf-8").strip() != digest:
        what = "this run began with other images, labels, covariates or times"
        raise Problem(what, path=out, fix="give another --out")
    files.replaced(path, digest + "\n")


def finished(out: Path) -> Model | None:
    """The model of a run that has ended; ``None`` where there is none, or none that can be read."""
    try:
        return model.load(out / "model.safetensors") if (out / "model.safetensors").exists() else None
    except Problem:
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """One training in a folder at a time."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "lock").open("w")
    except OSError as error:
        raise Problem(
            f"the run folder cannot be written ({error.strerror})", path=out, fix="give another --out"
        ) from error
    with lock:
        try:
            import fcntl
        except ImportError:  # Windows: no lock.
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Problem("another training is running in this folder", path=out, fix="wait for it") from error
        yield
