"""Learning from images alone: the loss by hand, no test patient is seen, and a training takes the weights up."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture

import osler
from osler import cohort, data, model, phantom, pretraining, recipe, store, training
from osler.case import Entry, Finding, Question, Source
from osler.inspections import duplicates
from osler.problem import Problem
from osler.weights import load_weights

SMALL: dict[str, Any] = {
    "image": {"size": [1, 20, 20]},
    "network": {"options": {"depth": 18, "width": 4}},
    "training": {"epochs": 3, "batch": 16, "precision": "float32", "channels_last": False, "threads": 1},
}
TRAINED = recipe.merge(SMALL, {"training": {"epochs": 1, "folds": 0, "members": 1}, "inference": {"views": 1}})


def quiet(line: str) -> None:
    """Nothing is printed."""


def bits(path: Path) -> str:
    """A hash of header and tensors; the bytes of the header come in any order."""
    return model.content_hash(*model.read_tensors(path))


def unlabelled(folder: Path, count: int = 40, split: str = "", shape: tuple[int, ...] = (24, 24)) -> Path:
    """A table of images without any label; every fifth patient stands in the part ``split``."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        pixels = rng.integers(0, 255, shape, dtype=np.uint8)
        name = f"{number}.png" if len(shape) == 2 else f"{number}.npy"
        if len(shape) == 2:
            Picture.fromarray(pixels).save(folder / name)
        else:
            np.save(folder / name, pixels[None, None])
        rows.append((str(number), f"p{number // 2}", name, split if number // 2 % 5 == 0 and split else "train"))
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("case", "patient", "image", "split"))
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = phantom.Phantom(size=24, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(6.0, 9.0))
    return phantom.write_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 120)


@pytest.fixture(scope="module")
def finished(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretraining.pretrain(labelled, tmp_path_factory.mktemp("weights") / "own.safetensors", SMALL, say=quiet)


# --- the loss ---------------------------------------------------------------------------------------------


def test_the_loss_by_hand() -> None:
    """Two images whose views agree and are at right angles: each view finds its fellow among three others."""
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    sharp = math.exp(1 / pretraining.TEMPERATURE)
    expected = -math.log(sharp / (sharp + 2))
    assert float(pretraining.contrast(first, first * 7)) == pytest.approx(expected, rel=1e-5)
    swapped = -math.log(1 / (sharp + 2))
    assert float(pretraining.contrast(first, first.flip(0))) == pytest.approx(swapped, rel=1e-5)


@pytest.mark.parametrize("batch", [2, 5, 16])
def test_a_network_that_says_the_same_of_all_images_has_the_loss_of_guessing(batch: int) -> None:
    same = torch.ones(batch, 8)
    assert float(pretraining.contrast(same, same)) == pytest.approx(math.log(2 * batch - 1), rel=1e-5)


def test_the_loss_is_that_of_every_pair_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    both = torch.cat([first, second])
    both = both / both.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(12):
        terms = [math.exp(float(both[i] @ both[j]) / pretraining.TEMPERATURE) for j in range(12)]
        total -= math.log(terms[(i + 6) % 12] / (sum(terms) - terms[i]))
    assert float(pretraining.contrast(first.float(), second.float())) == pytest.approx(total / 12, rel=1e-5)


# --- collapse ---------------------------------------------------------------------------------------------


def test_the_rank_of_known_vectors() -> None:
    """Equal singular values count in full: the corners of a cross in k dimensions have rank k."""
    for k in (2, 3, 7):
        assert pretraining.measure(np.concatenate([np.eye(k), -np.eye(k)])).rank == pytest.approx(k)
    line = np.outer(np.linspace(-1, 1, 20), np.ones(5))
    assert pretraining.measure(line).rank == pytest.approx(1)
    # Singular values 3 and 1: the entropy of (3/4, 1/4).
    two = np.array([[3.0, 0], [-3.0, 0], [0, 1.0], [0, -1.0]])
    assert pretraining.measure(two).rank == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_the_spread_is_one_for_directions_at_random_and_zero_for_one_vector() -> None:
    vectors = np.random.default_rng(0).normal(size=(4000, 32))
    seen = pretraining.measure(vectors)
    assert seen.spread == pytest.approx(1, abs=0.01) and not seen.collapsed
    assert pretraining.measure(np.ones((50, 8))).collapsed
    assert pretraining.measure(np.zeros((50, 8))).collapsed
    assert pretraining.measure(np.outer(np.linspace(1, 2, 50), np.arange(1.0, 9))).collapsed


def test_a_collapsed_representation_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labelled: Path
) -> None:
    monkeypatch.setattr(pretraining, "look_at", lambda network, pixels: pretraining.measure(np.ones((9, 8))))
    with pytest.raises(Problem, match=r"collapsed: effective rank .* give more images") as caught:
        pretraining.pretrain(labelled, tmp_path / "own.safetensors", SMALL, say=quiet)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "own.safetensors").exists()
    assert (tmp_path / "own.run" / "training.html").exists()


# --- from images to weights to a training ------------------------------------------------------------------


def test_the_weights_say_what_they_are(finished: Path, labelled: Path) -> None:
    header, tensors = model.read_tensors(finished)
    assert header["backbone"] == "resnet" and header["dims"] == "2" and header["channels"] == "1"
    assert json.loads(header["size"]) == [20, 20] and json.loads(header["options"])["width"] == 4
    assert header["licence"] == "own data" and header["source"].startswith("osler pretrain on ")
    assert all(value.isfinite().all() for value in tensors.values())
    folder = finished.with_suffix(".run")
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.toml", "history.csv", "training.html", "checkpoints", "tensorboard"} <= names
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and all(float(row["rank"]) > 2 for row in rows)
    assert not list(finished.parent.rglob("*.part"))


def test_a_training_takes_the_weights_up(finished: Path, labelled: Path, tmp_path: Path) -> None:
    """Backbone, options and size come from the file; before its first step the network has exactly these weights."""
    settings = {"training": TRAINED["training"], "inference": {"views": 1}}
    given = recipe.merge(settings, {"network": {"weights": str(finished)}, "training": {"learning_rate": 1e-9}})
    made = osler.train(labelled, tmp_path / "run", given, say=quiet)
    assert made.recipe.network.options["width"] == 4 and made.recipe.image.size == (1, 20, 20)
    _, tensors = model.read_tensors(finished)
    for name, value in made.networks[0].backbone.named_parameters():
        torch.testing.assert_close(value, tensors[name], rtol=1e-3, atol=1e-5)
    start = recipe.merge(
        given, {"network": {"weights": "", "backbone": "resnet", "options": {"depth": 18, "width": 4}}}
    )
    other = osler.train(
        labelled, tmp_path / "scratch", recipe.merge(start, {"image": {"size": [1, 20, 20]}}), say=quiet
    )
    name, value = next(iter(other.networks[0].backbone.named_parameters()))
    assert (value - tensors[name]).abs().max() > 1e-3


def test_it_begins_with_given_weights(finished: Path, labelled: Path, tmp_path: Path) -> None:
    given = {"network": {"weights": str(finished)}, "training": {**SMALL["training"], "learning_rate": 1e-9}}
    again = pretraining.pretrain(labelled, tmp_path / "again.safetensors", given, say=quiet)
    before, after = model.read_tensors(finished), model.read_tensors(again)
    torch.testing.assert_close(after[1]["stem.0.weight"], before[1]["stem.0.weight"], rtol=1e-3, atol=1e-5)
    assert after[0]["source"].endswith(f"beginning with weights from {before[0]['source']}")
    assert after[0]["licence"] == "own data; it began with weights under own data"


def test_no_patient_of_the_test_part_is_seen(labelled: Path, tmp_path: Path) -> None:
    """Other pixels in the test part change nothing; other pixels in the rest do."""

    def weights(name: str, change: str) -> str:
        folder = unlabelled(tmp_path / name, split="test")
        with (folder / "images.csv").open() as file:
            row = next(row for row in csv.DictReader(file) if row["split"] == change)
        pixels = np.full((24, 24), 200, np.uint8) if name != "plain" else None
        if pixels is not None:
            pixels[::2] = 17
            Picture.fromarray(pixels).save(folder / row["image"])
        return bits(pretraining.pretrain(folder, tmp_path / f"{name}.safetensors", SMALL, say=quiet))

    plain = weights("plain", "test")
    assert weights("test_changed", "test") == plain
    assert weights("train_changed", "train") != plain


def test_the_part_that_a_training_would_hold_out_is_left_out() -> None:
    """Where the cohort names no parts: the same patients that osler train keeps for the test."""
    entries = tuple(
        Entry(
            f"c{i}", f"p{i}", {"image": Source(Path(f"{i}.png"))}, (Finding("label", "ab"[i % 2], probability=1.0),)
        )
        for i in range(600)
    )
    question = Question("label", "multiclass", ("a", "b"))
    found = cohort.Cohort(Path(), entries, (question,), "column p")
    marks = np.zeros(600, duplicates.MARK)
    marks["pixels"], marks["size"] = [str(i).encode() for i in range(600)], (1, 2, 2)
    marks["small"] = np.random.default_rng(0).integers(0, 256, (600, duplicates.SIDE, duplicates.SIDE))
    pixels = store.all_of(np.zeros((600, 1, 1, 1, 2, 2), np.float32))
    loaded = data.Loaded(
        entries,
        pixels,
        tuple(f"{i:064x}" for i in range(600)),
        tuple((f"{i:064x}",) for i in range(600)),
        ("",) * 600,
        (),
        marks[:, None],
        np.zeros((600, 1), np.float32),
    )
    plan = recipe.build({**SMALL, "tasks": {"label": question}})
    expected = {e.patient for e in training.divide(found, loaded, plan)[0].test.entries}
    alone = recipe.build(
        {**SMALL, "tasks": {"self": pretraining.ITSELF}, "split": {"validation": 0, "calibration": 0, "test": 0.2}}
    )
    part, notes = pretraining.learned(found, loaded, alone)
    assert {e.patient for e in part.entries} == {e.patient for e in entries} - expected
    assert any(f"the {len(expected)} of the test part are not" in note for note in notes)


def test_volumes_without_labels(tmp_path: Path) -> None:
    """3D from end to end: the loss falls, and a 3D backbone takes the weights as they are."""
    folder = unlabelled(tmp_path / "volumes", 24, shape=(8, 16, 16))
    settings = recipe.merge(
        SMALL, {"image": {"size": [8, 16, 16], "dims": 3}, "training": {"epochs": 8, "batch": 12}}
    )
    out = pretraining.pretrain(folder, tmp_path / "own.safetensors", settings, say=quiet)
    with (tmp_path / "own.run" / "history.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert np.mean(losses[-2:]) < losses[0]
    plan = recipe.build(recipe.read(tmp_path / "own.run" / "recipe.toml"))
    backbone = model.Network(plan).backbone
    metadata = load_weights(out, backbone, "resnet")
    assert metadata["dims"] == "3"
    _, tensors = model.read_tensors(out)
    assert all(torch.equal(value, tensors[name]) for name, value in backbone.state_dict().items())
    flat = model.Network(recipe.build(recipe.merge(SMALL, {"tasks": {"self": pretraining.ITSELF}}))).backbone
    with pytest.raises(Problem, match="these weights look at volumes and the backbone at flat images"):
        load_weights(out, flat, "resnet")


@pytest.mark.slow
@pytest.mark.real_data
def test_hearts_in_3d_from_end_to_end(real_data: Path, tmp_path: Path) -> None:
    """Real volumes: the loss falls well below that of guessing, and a 3D training takes the weights up."""
    file = Path(__file__).parents[1] / "recipes" / "cohorts" / "acdc_end_diastole.toml"
    settings = recipe.merge(
        SMALL,
        {"image": {"size": [8, 32, 32], "dims": 3}, "training": {"epochs": 60, "batch": 15, "learning_rate": 3e-3}},
    )
    out = pretraining.pretrain(
        real_data / "acdc", tmp_path / "own.safetensors", settings, cohort_file=file, say=quiet
    )
    with (tmp_path / "own.run" / "history.csv").open() as table:
        losses = [float(row["loss"]) for row in csv.DictReader(table)]
    assert losses[-1] < 0.9 * losses[0] and losses[-1] < 0.9 * math.log(29)
    given = {"training": {**TRAINED["training"], "learning_rate": 1e-9}, "inference": {"views": 1}}
    given = recipe.merge(given, {"network": {"weights": str(out)}})
    made = osler.train(real_data / "acdc", tmp_path / "run", given, cohort_file=file, say=quiet)
    assert made.recipe.image.dims == 3 and made.recipe.image.size == (8, 32, 32)
    _, tensors = model.read_tensors(out)
    for name, value in made.networks[0].backbone.named_parameters():
        torch.testing.assert_close(value, tensors[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "dims"), [("convnext", 2), ("efficientnet_lite", 2), ("reference_cnn", 2), ("vit", 3)]
)
def test_every_kind_of_backbone(backbone: str, dims: int, tmp_path: Path) -> None:
    """One epoch, and the weights that come out fit the backbone of the same recipe, its neck included."""
    size = [1, 32, 32] if dims == 2 else [32, 32, 32]
    folder = unlabelled(tmp_path / "c", 16, shape=tuple(size[3 - dims :]))
    settings = {
        "image": {"size": size, "dims": dims},
        "network": {"backbone": backbone},
        "training": {**SMALL["training"], "epochs": 1, "batch": 8},
    }
    out = pretraining.pretrain(folder, tmp_path / "own.safetensors", settings, say=quiet)
    network = model.Network(recipe.build(recipe.read(tmp_path / "own.run" / "recipe.toml")))
    load_weights(out, network.backbone, backbone)
    _, tensors = model.read_tensors(out)
    for name, value in network.backbone.named_parameters():
        torch.testing.assert_close(value.detach(), tensors[name])


# --- interruptions ------------------------------------------------------------------------------------------

DRIVER = """
import json, os, signal, sys
from osler import fitting, pretraining
count, folder, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
left = [count]
def deadly(function):
    def called(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called
fitting.SAVE_SECONDS = 0.0
pretraining.step_once = deadly(pretraining.step_once)
pretraining.pretrain(folder, out, json.loads(sys.argv[4]), say=lambda line: None)
"""


def _run(count: int, folder: Path, out: Path) -> int:
    words = [sys.executable, "-c", DRIVER, str(count), str(folder), str(out), json.dumps(SMALL)]
    return subprocess.run(
        words, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    ).returncode


@pytest.mark.slow
def test_killed_in_an_epoch_it_ends_with_the_same_bits(labelled: Path, tmp_path: Path) -> None:
    (tmp_path / "killed").mkdir()
    assert _run(1000, labelled, tmp_path / "straight.safetensors") == 0
    killed = tmp_path / "killed" / "straight.safetensors"
    assert _run(4, labelled, killed) == -signal.SIGKILL
    assert _run(5, labelled, killed) == -signal.SIGKILL
    assert not killed.exists()
    assert _run(1000, labelled, killed) == 0
    assert bits(killed) == bits(tmp_path / "straight.safetensors")


def test_a_finished_one_is_not_learned_again_and_others_are_not_overwritten(finished: Path, labelled: Path) -> None:
    said: list[str] = []
    before = finished.read_bytes()
    pretraining.pretrain(labelled, finished, SMALL, say=said.append)
    assert any("finished already" in line for line in said) and finished.read_bytes() == before
    with pytest.raises(Problem, match="began with other settings"):
        pretraining.pretrain(labelled, finished, {**SMALL, "network": {"backbone": "vit"}}, say=quiet)


# --- bad input ----------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused_in_a_sentence(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"own\.pth: weights are a \.safetensors file; give --out own\.safetensors"):
        pretraining.pretrain(labelled, tmp_path / "own.pth", SMALL, say=quiet)
    (tmp_path / "there.safetensors").write_bytes(b"somebody's")
    with pytest.raises(Problem, match="there is a file of this name already"):
        pretraining.pretrain(labelled, tmp_path / "there.safetensors", SMALL, say=quiet)
    assert (tmp_path / "there.safetensors").read_bytes() == b"somebody's"
    few = unlabelled(tmp_path / "few", 6)
    with pytest.raises(Problem, match="only 6 images to learn from; give at least 16"):
        pretraining.pretrain(few, tmp_path / "few.safetensors", SMALL, say=quiet)
    with pytest.raises(Problem, match="there is no such file or folder"):
        pretraining.pretrain(tmp_path / "nowhere", tmp_path / "w.safetensors", SMALL, say=quiet)
    with pytest.raises(Problem, match="unknown key"):
        pretraining.pretrain(labelled, tmp_path / "w.safetensors", {"training": {"epoch": 3}}, say=quiet)
    with pytest.raises(Problem, match="a pretraining asks nothing"):
        pretraining.pretrain(
            labelled, tmp_path / "w.safetensors", {"tasks": {"label": {"kind": "multiclass"}}}, say=quiet
        )
    with pytest.raises(Problem, match=r"batch of 1"):
        alone = recipe.merge(SMALL, {"training": {"batch": 1}})
        pretraining.pretrain(labelled, tmp_path / "w.safetensors", alone, say=quiet)
    assert not list(tmp_path.glob("w.safetensors*"))
