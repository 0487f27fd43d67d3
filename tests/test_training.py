"""The one loop: it learns, resumes to the same bits, keeps the parts apart, and says what is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from osler import checkpoints, cohort, fitting, model, phantom, recipe, training
from osler.case import Entry, Finding, Question, Source
from osler.cohort import Calibration, Training, Validation
from osler.problem import Problem

SMALL = {
    "image": {"size": [1, 24, 24]},
    "network": {"options": {"depth": 18, "width": 4}},
    "training": {
        "epochs": 2, "batch": 16, "folds": 0, "members": 1,
        "precision": "float32", "channels_last": False, "threads": 1,
    },
    "inference": {"views": 2},
}  # fmt: skip


def quiet(line: str) -> None:
    """Nothing is printed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = phantom.Phantom(size=24, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(6.0, 9.0))
    return phantom.write_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 120)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(folder, out, SMALL, say=quiet)
    return out


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"model.safetensors", "recipe.toml", "history.csv", "splits.csv", "training.html", "tensorboard"} <= names
    assert not list(finished.rglob("*.part"))
    assert "#" in (finished / "recipe.toml").read_text()


def test_tensorboard_reads_what_was_written(finished: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(finished / "tensorboard" / "network-0"))
    events.Reload()
    lines = (finished / "history.csv").read_text().splitlines()
    column = lines[0].split(",").index("loss")
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(
        [float(x.split(",")[column]) for x in lines[1:]]
    )


def test_a_model_comes_back_as_it_was_saved(finished: Path, tmp_path: Path) -> None:
    made = model.load(finished)
    made.save(tmp_path / "again.safetensors")
    again = model.load(tmp_path / "again.safetensors")
    assert again.sha256 == made.sha256
    assert recipe.to_dict(again.recipe) == recipe.to_dict(made.recipe)


def test_a_written_recipe_is_read_back(finished: Path) -> None:
    written = recipe.to_dict(recipe.build(recipe.read(finished / "recipe.toml")))
    stored = recipe.to_dict(model.load(finished).recipe)
    for form in (written, stored):
        # What covariates may be is learned from the training cases, and stands in the model alone.
        for key in ("kinds", "units", "ranges", "seen", "categories"):
            form["covariates"].pop(key)
    assert written == stored


def test_the_same_settings_give_the_same_bits(folder: Path, finished: Path, tmp_path: Path) -> None:
    again = training.train(folder, tmp_path / "again", SMALL, say=quiet)
    assert again.sha256 == model.load(finished).sha256


def test_another_seed_gives_other_weights(folder: Path, finished: Path, tmp_path: Path) -> None:
    other = recipe.merge(SMALL, {"training": {"seed": 1}})
    assert training.train(folder, tmp_path / "other", other, say=quiet).sha256 != model.load(finished).sha256


def test_a_finished_run_is_not_trained_again(folder: Path, finished: Path) -> None:
    said: list[str] = []
    training.train(folder, finished, SMALL, say=said.append)
    assert any("finished already" in line for line in said)


def test_another_request_for_the_same_folder_is_refused(folder: Path, finished: Path) -> None:
    with pytest.raises(Problem, match="other settings"):
        training.train(folder, finished, recipe.merge(SMALL, {"training": {"seed": 5}}), say=quiet)


def test_an_unfinished_run_goes_on_with_the_parts_that_it_began_with_or_not_at_all(
    folder: Path, finished: Path, tmp_path: Path
) -> None:
    """Another version may draw other parts: a network would be measured on what it has seen."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "model.safetensors").unlink()
    training.train(folder, out, SMALL, say=quiet)
    (out / "model.safetensors").unlink()
    head, *rows = (out / "splits.csv").read_text().splitlines()
    moved = [row.replace(",calibration,", ",training,") for row in rows]
    assert moved != rows
    (out / "splits.csv").write_text("\n".join([head, *moved]) + "\n")
    with pytest.raises(Problem, match=r"splits.csv: this run began with other parts .*; give another --out"):
        training.train(folder, out, SMALL, say=quiet)


def test_normalisation_is_fitted_on_the_training_part_only() -> None:
    pixels = np.random.default_rng(0).normal(7, 3, (20, 1, 1, 1, 8, 8)).astype(np.float32)
    layer = model.Normalise("cohort", 1)
    layer.fit(pixels)
    assert float(layer.mean) == pytest.approx(pixels.mean(), abs=1e-4)
    assert float(layer.std) == pytest.approx(pixels.std(), abs=1e-4)


def test_nothing_is_fitted_on_the_wrong_part(folder: Path) -> None:
    pixels = np.zeros((4, 1, 1, 1, 24, 24), np.float32)
    targets = {"label": np.zeros((4, 1), np.float32)}
    held = fitting.Examples(Validation(()), pixels, targets)
    plan = recipe.build(
        {**SMALL, "image": {"size": [1, 24, 24]}, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}}}
    )
    with pytest.raises(Exception, match=r"Training|beartype|Validation"):
        fitting.fit(held, held, plan, fitting.Course(folder, 0, 1, quiet, 0.0))


def test_the_learning_rate_follows_its_schedule() -> None:
    plan = recipe.build({"image": {"size": [1, 8, 8]}, "tasks": {"a": {"kind": "multiclass", "classes": ["x", "y"]}},
                         "training": {"learning_rate": 0.1, "warmup": 0.1}})  # fmt: skip
    rates = [fitting.rate_at(plan, step, 100) for step in range(100)]
    assert max(rates) == pytest.approx(0.1)
    assert np.argmax(rates) == 10
    assert rates[55] == pytest.approx(0.05, rel=1e-6)
    assert rates[-1] < 1e-4
    constant = replace(plan, training=replace(plan.training, schedule="constant"))
    assert fitting.rate_at(constant, 99, 100) == 0.1


def test_the_average_of_constant_weights_is_constant() -> None:
    plan = recipe.build({**SMALL, "tasks": {"a": {"kind": "multiclass", "classes": ["x", "y"]}}})
    network = model.Network(plan)
    state = checkpoints.State(
        network, {k: v.clone() for k, v in network.state_dict().items()}, torch.optim.SGD(network.parameters())
    )
    fitting._average(state, 0.9)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(state.average[name], value)


def test_a_step_without_a_finite_gradient_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = recipe.build({**SMALL, "tasks": {"label": {"kind": "multiclass", "classes": ["a", "b"]}}})
    network = model.Network(plan)
    state = checkpoints.State(
        network, {k: v.clone() for k, v in network.state_dict().items()}, fitting.optimizer_for(network, plan)
    )
    pixels = np.random.default_rng(0).normal(0, 1, (8, 1, 1, 1, 24, 24)).astype(np.float32)
    examples = fitting.Examples(Training(()), pixels, {"label": np.zeros((8, 1), np.float32)})
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    loss = type(network.tasks["label"]).loss
    with monkeypatch.context() as patched:
        patched.setattr(type(network.tasks["label"]), "loss", lambda self, out, *rest: out.sum() * float("inf"))
        fitting.step_once(state, examples, np.arange(8), plan, 0, 1)
    assert state.skipped == 1
    for name, value in network.named_parameters():
        torch.testing.assert_close(value, before[name])
    assert type(network.tasks["label"]).loss is loss
    fitting.step_once(state, examples, np.arange(8), plan, 0, 1)
    assert any((value != before[name]).any() for name, value in network.named_parameters())


# --- splits ------------------------------------------------------------------------------------------------


def _cohort(
    patients: list[str], labels: list[str], split: list[str | None] | None = None, grouping: str = "column p"
) -> cohort.Cohort:
    entries = tuple(
        Entry(f"c{i}", p, {"image": Source(Path(f"{i}.png"))}, (Finding("label", x, probability=1.0),),
              split=None if split is None else split[i])  # type: ignore[arg-type]
        for i, (p, x) in enumerate(zip(patients, labels, strict=True))
    )  # fmt: skip
    question = Question("label", "multiclass", tuple(sorted(set(labels))))
    return cohort.Cohort(Path(), entries, (question,), grouping)


def test_splits_never_cut_through_a_patient_and_keep_the_classes() -> None:
    rng = np.random.default_rng(0)
    patients = [f"p{i // 3}" for i in range(900)]
    labels = [("a", "b", "c")[k] for k in np.repeat(rng.choice(3, 300, p=[0.6, 0.3, 0.1]), 3)]
    parts = cohort.split(_cohort(patients, labels), validation=0.15, calibration=0.15, test=0.2)
    groups = [
        {e.patient for e in part.entries}
        for part in (parts.training, parts.validation, parts.calibration, parts.test)
    ]
    assert sum(len(g) for g in groups) == len(set.union(*groups)) == 300
    for part in (parts.training, parts.validation, parts.calibration, parts.test):
        share = np.mean([e.findings[0].name == "c" for e in part.entries])
        assert share == pytest.approx(labels.count("c") / 900, abs=0.04)


def test_folds_hold_each_patient_out_once() -> None:
    patients = [f"p{i // 2}" for i in range(200)]
    found = _cohort(patients, ["a", "b"] * 100)
    pairs = cohort.folds(found.entries, found.questions[0], 5)
    held = [e.id for _, part in pairs for e in part.entries]
    assert sorted(held) == sorted(e.id for e in found.entries)
    for inside, outside in pairs:
        assert isinstance(inside, Training) and isinstance(outside, Calibration)
        assert not {e.patient for e in inside.entries} & {e.patient for e in outside.entries}


def test_a_patient_in_two_given_splits_stops() -> None:
    found = _cohort(["p", "p", "q"], ["a", "b", "a"], ["train", "test", "train"])
    with pytest.raises(Problem, match="1 patients stand in two splits"):
        cohort.split(found, validation=0.1, calibration=0.1, test=0.1)


def test_a_cohort_has_the_same_hash_in_any_order_and_under_any_name() -> None:
    found = _cohort(["p", "q"], ["a", "b"])
    first = cohort.digest(found.entries, ["x", "y"])
    renamed = [replace(e, id=e.id + "new") for e in reversed(found.entries)]
    assert cohort.digest(renamed, ["y", "x"]) == first
    assert cohort.digest(renamed, ["x", "y"]) != first


# --- kills -------------------------------------------------------------------------------------------------

DRIVER = """
import os, random, signal, sys
from osler import asking, fitting, model, training
where, count, folder, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
settings = __import__("json").loads(sys.argv[5])
left = [count]
def deadly(function):
    def called(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called
fitting.SAVE_SECONDS = 0.0
if where == "step":
    fitting.step_once = deadly(fitting.step_once)
elif where == "save":
    # Between the bytes of the new file and its name: the moment in which a careless program loses both.
    os.fsync = deadly(os.fsync)
elif where == "watch":
    fitting.watch = deadly(fitting.watch)
elif where == "calibrate":
    asking.outputs = deadly(asking.outputs)
print(training.train(folder, out, settings, say=lambda line: None).sha256)
"""


def _run(where: str, count: int, folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", DRIVER, where, str(count), str(folder), str(out), json.dumps(SMALL)]
    return subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )


@pytest.mark.slow
def test_killed_25_times_it_ends_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    """Mid-epoch, mid-save, in validation and while calibrating; each kill is followed by the same command."""
    whole = _run("never", 0, folder, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    rng = np.random.default_rng(20261123)
    kills = attempt = 0
    while kills < 25:
        attempt += 1
        out = tmp_path / f"killed-{attempt}"
        for _ in range(7):
            where = str(rng.choice(["step", "step", "save", "watch", "calibrate"]))
            found = _run(where, int(rng.integers(1, 4)), folder, out)
            if found.returncode == 0:
                break
            assert found.returncode == -signal.SIGKILL, found.stderr
            kills += 1
        last = _run("never", 0, folder, out)
        assert last.returncode == 0, last.stderr
        assert last.stdout == whole.stdout
