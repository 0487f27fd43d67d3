"""Every kind of question, 2D, 3D and sequences, through train, evaluate, diagnose: no special case in the code."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import osler
from osler import diagnoses, evaluation, layouts, recipe, training

SETTINGS = recipe.settings((
    "epochs=4", "batch=8", "folds=0", "members=1", "views=1", "precision='float32'", "channels_last=false",
    "network.options.width=4", "learning_rate=0.01",
))  # fmt: skip


def quiet(line: str) -> None:
    """Nothing is printed."""


def table(folder: Path, header: str, rows: list[str]) -> Path:
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def squares(folder: Path, count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Grey images with a bright square whose brightness and side can be asked for."""
    rng = np.random.default_rng(5)
    level, side = rng.random(count), rng.integers(4, 14, count)
    for i in range(count):
        image = rng.normal(60, 8, (24, 24))
        y, x = rng.integers(0, 24 - side[i], 2)
        image[y : y + side[i], x : x + side[i]] += 30 + 140 * level[i]
        Pillow.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return level, side


def through(folder: Path, tmp: Path, settings: dict | None = None) -> tuple[dict, osler.Diagnosis]:  # type: ignore[type-arg]
    """The whole line, and what came out of it."""
    osler.train(folder, tmp / "run", recipe.merge(SETTINGS, settings or {}), say=quiet)
    evaluation.evaluate(tmp / "run", folder, tmp / "evaluation", draws=50, say=quiet)
    result = json.loads((tmp / "evaluation" / "evaluation.json").read_text())
    first = layouts.read(folder).entries[0]
    done, failed = diagnoses.diagnose_paths(
        tmp / "run", [next(iter(first.images.values())).path], tmp / "d", method="none", say=quiet
    )
    assert (done, failed) == (1, 0)
    made = osler.load_model(tmp / "run")
    return result, osler.diagnose(made, osler.read_case(next(iter(first.images.values())).path))


def test_multilabel_with_unknown_labels(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    level, side = squares(folder)
    rows = [
        f"{i},{i}.png,{int(level[i] > 0.5) if i % 5 else ''},{int(side[i] > 8) if i % 7 else ''}" for i in range(80)
    ]
    result, found = through(table(folder, "case,image,label.f.bright,label.f.large", rows), tmp_path)
    assert result["tasks"]["f"]["kind"] == "multilabel"
    assert set(result["tasks"]["f"]["classes"]) == {"bright", "large"}
    assert {f.name for f in found.answers["f"].findings} == {"bright", "large"}
    assert all(f.probability is not None and 0 <= f.probability <= 1 for f in found.answers["f"].findings)


def test_ordinal(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    level, _ = squares(folder)
    table(folder, "id,grade", [f"{i},{('low', 'middle', 'high')[int(level[i] * 3)]}" for i in range(80)])
    (folder / "manifest.csv").rename(folder / "grades.csv")
    (folder / "cohort.toml").write_text(
        'table = "grades.csv"\ncase = "id"\nimage = "{id}.png"\n'
        '[label.grade]\ncolumn = "grade"\nkind = "ordinal"\nclasses = ["low", "middle", "high"]\n'
    )
    result, found = through(folder, tmp_path)
    assert result["tasks"]["grade"]["kind"] == "ordinal"
    assert "quadratic_kappa" in result["tasks"]["grade"]["metrics"]
    assert [f.name for f in found.answers["grade"].findings] == ["low", "middle", "high"]
    assert sum(f.probability or 0 for f in found.answers["grade"].findings) == pytest.approx(1)


def test_regression(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    level, _ = squares(folder, 120)
    table(folder, "case,image,label.brightness", [f"{i},{i}.png,{30 + 140 * level[i]:.3f}" for i in range(120)])
    result, found = through(folder, tmp_path, {"training": {"epochs": 12}})
    metrics = result["tasks"]["brightness"]["metrics"]
    assert metrics["mae"]["value"] < 40, "it has learned something: the deviation of the truth is 40"
    number = found.answers["brightness"].findings[0]
    assert number.value is not None and number.interval is not None
    assert number.interval[0] <= number.value <= number.interval[1]


def test_several_questions_of_one_case(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    level, side = squares(folder)
    rows = [f"{i},{i}.png,{'yes' if level[i] > 0.5 else 'no'},{'ab'[int(side[i] > 8)]}" for i in range(80)]
    result, found = through(table(folder, "case,image,label.bright,label.size", rows), tmp_path)
    assert set(result["tasks"]) == set(found.answers) == {"bright", "size"}


def test_volumes_and_folds(tmp_path: Path) -> None:
    import nibabel

    folder = tmp_path / "c"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        volume = rng.normal(0, 1, (16, 16, 10)).astype(np.float32)
        volume[4:10, 4:10, 3:7] += 2 * (i % 2)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{i}.nii.gz")
        rows.append(f"{i},p{i // 2 * 2 + i % 2},{i}.nii.gz,{['no', 'yes'][i % 2]}")
    table(folder, "case,patient,image,label", rows)
    settings = {"training": {"folds": 2, "epochs": 6}}
    made = osler.train(folder, tmp_path / "run", recipe.merge(SETTINGS, settings), say=quiet)
    assert made.recipe.image.dims == 3 and len(made.networks) == 2
    result = evaluation.evaluate(tmp_path / "run", folder, tmp_path / "e", out_of_fold=True, draws=50, say=quiet)
    assert result["part"] == "out of fold" and result["cases"] == 40
    with pytest.raises(osler.Problem, match="has seen every case"):
        evaluation.evaluate(tmp_path / "run", folder, tmp_path / "e2", draws=50, say=quiet)


def test_sequences(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        frames = rng.normal(60, 8, (5, 1, 1, 24, 24)).astype(np.float32)
        frames[:, :, :, 6:16, 6:16] += 60 * (i % 2)
        np.save(folder / f"{i}.npy", frames)
        rows.append(f"{i},{i}.npy,{['no', 'yes'][i % 2]}")
    made = osler.train(table(folder, "case,image,label", rows), tmp_path / "run", SETTINGS, say=quiet)
    assert made.recipe.image.frames == 5
    assert osler.diagnose(made, osler.read_case(folder / "1.npy")).answers["label"].kind == "multiclass"


@pytest.mark.real_data
def test_real_dicom_of_three_modalities(real_data: Path, tmp_path: Path) -> None:
    """CT, MR and CR files of every transfer syntax, as they lie in pydicom's test set."""
    from osler import formats
    from osler.case import Source

    rows = []
    for path in sorted((real_data / "dicom" / "pydicom").rglob("*")):
        if path.is_file():
            try:
                modality = formats.read(Source(path)).modality
            except osler.Problem:
                continue
            if modality in ("CT", "MR", "CR"):
                rows.append(f"{len(rows)},{path},{'CT' if modality == 'CT' else 'other'}")
    assert len(rows) > 30
    folder = tmp_path / "c"
    folder.mkdir()
    table(folder, "case,image,label", rows)
    made = osler.train(folder, tmp_path / "run", SETTINGS, say=quiet)
    for row in rows:
        found = osler.diagnose(made, osler.read_case(row.split(",")[1]))
        assert sum(f.probability or 0 for f in found.answers["label"].findings) == pytest.approx(1)


def test_a_planned_run_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    level, _ = squares(folder)
    rows = [f"{i},{i}.png,{'yes' if level[i] > 0.5 else 'no'}" for i in range(80)]
    table(folder, "case,image,label", rows)
    made = training.train(
        folder, tmp_path / "run", recipe.settings(("network.options.width=4",)), minutes=0.02, say=quiet
    )
    text = (tmp_path / "run" / "recipe.toml").read_text()
    assert made.recipe.training.folds == 5
    assert "under 500" in text and "measured" in text and "# given" in text
