"""A small model with random weights, saved and loaded again, and images in every kind of file that is sent."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from osler import model, recipe
from osler.case import Question
from osler.model import Model, Network

pytest.importorskip("fastapi")

SIZE = 32


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pseudonyms and temporary files of a test lie below its own folder; returns that of the temporary files."""
    monkeypatch.setenv("OSLER_HOME", str(tmp_path / "home"))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model of two tasks."""
    tasks = {
        "diagnosis": Question("diagnosis", "multiclass", ("benign", "malignant")),
        "signs": Question("signs", "multilabel", ("mass", "cyst", "calcification")),
    }
    plan = recipe.Recipe(
        recipe.ImagePlan((1, SIZE, SIZE), intensity="image"),
        tasks,
        recipe.NetworkPlan("reference_cnn", pooling="neck"),
    )
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run")
    Model(plan, [Network(plan).eval()]).save(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def run_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a model that looks at two images of a case."""
    plan = recipe.Recipe(
        recipe.ImagePlan((1, SIZE, SIZE), intensity="image", modalities=("t1", "t2")),
        {"diagnosis": Question("diagnosis", "multiclass", ("benign", "malignant"))},
        recipe.NetworkPlan("reference_cnn", pooling="neck"),
    )
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("run_of_two")
    Model(plan, [Network(plan).eval()]).save(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def made(run: Path) -> Model:
    return model.load(run)


@pytest.fixture(scope="session")
def pixels() -> NDArray[np.uint8]:
    """A bright disc on noise, as large as the network sees it."""
    y, x = np.mgrid[:SIZE, :SIZE]
    disc = 120.0 * ((x - 20) ** 2 + (y - 12) ** 2 < 36)
    return (disc + np.random.default_rng(0).uniform(0, 100, (SIZE, SIZE))).astype(np.uint8)


@pytest.fixture(scope="session")
def png(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def zipped() -> Callable[[dict[str, bytes]], bytes]:
    def make(files: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return stream.getvalue()

    return make
