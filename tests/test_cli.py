"""Bad input: one sentence that says which file, what is wrong and what to do; exit code 2; no traceback."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from osler import cli, phantom, run_folder

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = phantom.Phantom(size=24, classes=("normal", "nodule"), prevalence=(0.5, 0.5), lesion=(6.0, 9.0))
    return phantom.write_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 120)


SMALL = (
    "epochs=1", "batch=16", "width=4", "precision='float32'", "channels_last=false", "views=1", "folds=0",
    "members=1", "image.size=[1,24,24]",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    words = [
        "train",
        str(folder),
        "--out",
        str(out),
        *(w.replace("width=4", "network.options.width=4") for w in SMALL),
    ]
    assert call(words) == 0
    return out


def call(words: list[str]) -> int:
    try:
        cli.main(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *said: str) -> None:
    """Exit code 2 and, as the last line, one sentence with these words in it."""
    assert call(words) == 2
    text = capsys.readouterr().err
    last = text.strip().splitlines()[-1]
    assert last.startswith("osler: ") and last.endswith((".", "?")), text
    assert "Traceback" not in text
    for word in said:
        assert word in last, last


def grey(path: Path, size: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(RNG.integers(0, 255, (size, size), dtype=np.uint8)).save(path)


def test_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "nothing").mkdir()
    refused(capsys, ["train", str(tmp_path / "nothing"), "--out", str(tmp_path / "r")], "nothing", "empty")


def test_no_such_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", str(tmp_path / "gone"), "--out", str(tmp_path / "r")], "gone", "no such file or folder")


def test_one_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["case,image,label"]
    for i in range(12):
        grey(tmp_path / "c" / f"{i}.png")
        rows.append(f"{i},{i}.png,same")
    (tmp_path / "c" / "manifest.csv").write_text("\n".join(rows))
    refused(capsys, ["train", str(tmp_path / "c"), "--out", str(tmp_path / "r")], "same", "nothing to tell apart")


def test_three_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i, label in enumerate(["a", "a", "b"]):
        grey(tmp_path / "c" / label / f"{i}.png")
    refused(capsys, ["train", str(tmp_path / "c"), "--out", str(tmp_path / "r")], "only 3 cases")


def test_missing_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["case,image,label"]
    for i in range(12):
        grey(tmp_path / "c" / f"{i}.png")
        rows.append(f"{i},{i}.png,")
    (tmp_path / "c" / "manifest.csv").write_text("\n".join(rows))
    refused(capsys, ["train", str(tmp_path / "c"), "--out", str(tmp_path / "r")], "label")


def test_wrong_label_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["case,image,lable"]
    for i in range(12):
        grey(tmp_path / "c" / f"{i}.png")
        rows.append(f"{i},{i}.png,{i % 2}")
    (tmp_path / "c" / "manifest.csv").write_text("\n".join(rows))
    refused(capsys, ["train", str(tmp_path / "c"), "--out", str(tmp_path / "r")], "lable")


def test_bad_files_are_left_out_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Mixed sizes, four channels, zero bytes, rubbish and some unknown labels among good cases."""
    rows = ["case,image,label"]
    for i in range(40):
        grey(tmp_path / "c" / f"{i}.png", 24 + i % 3)
        rows.append(f"{i},{i}.png,{'ab'[i % 2] if i > 3 else ''}")
    Pillow.fromarray(RNG.integers(0, 255, (24, 24, 4), dtype=np.uint8)).save(tmp_path / "c" / "rgba.png")
    (tmp_path / "c" / "empty.dcm").write_bytes(b"")
    (tmp_path / "c" / "rubbish.png").write_bytes(b"not an image")
    rows += ["rgba,rgba.png,a", "empty,empty.dcm,b", "rubbish,rubbish.png,a", "gone,gone.png,a"]
    (tmp_path / "c" / "manifest.csv").write_text("\n".join(rows))
    words = ["train", str(tmp_path / "c"), "--out", str(tmp_path / "r"), *(w for w in SMALL if "width" not in w)]
    assert call([*words, "network.options.width=4"]) == 0
    said = capsys.readouterr().err
    for name in ("rgba.png", "empty.dcm", "rubbish.png", "gone.png"):
        assert f"{name}: " in said, said
    assert (tmp_path / "r" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [("epoch=3", "epochs"), ("training.epochs=many", "epochs"), ("backbone=resnext", "resnet"),
     ("epochs=0", "epochs"), ("nonsense", "key=value"), ("augmentation.blurr.probability=1", "blur"),
     ("network.options.dept=18", "depth")],
)  # fmt: skip
def test_wrong_settings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, said: str
) -> None:
    refused(capsys, ["train", str(folder), "--out", str(tmp_path / "r"), setting], said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["explain", "run", "a.png", "b.png", "c.png", "--out", "x"],
            "explain takes one image; leave out b.png, c.png",
        ),
        (["doctor", "x"], "doctor takes no more words than its own; leave out x"),
        (["train", "--out", "x"], "osler train needs COHORT; osler train --help says"),
        (["train", "cohort"], "osler train needs --out; osler train --help says"),
        (["train", "cohort", "--out", "x", "--bogus", "1"], "Unknown option: --bogus"),
    ],
)
def test_wrong_words_are_said_in_a_sentence(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    refused(capsys, words, said)


@pytest.mark.parametrize(("command", "said"), [("train", "osler train goes on"), ("evaluate", "")])
def test_what_was_stopped_says_whether_it_goes_on(
    command: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", stopped)
    assert call([command, "cohort", "--out", "x"]) == 130
    text = capsys.readouterr().err
    assert (said in text) if said else text == "stopped\n"


def test_a_problem_within_a_problem_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "manifest.csv").write_text("case,image,label\n1,gone.png,a\n2,also.png,b\n")
    words = ["train", str(tmp_path / "c"), "--out", str(tmp_path / "r")]
    refused(capsys, words, "(the first: gone.png: the table names this file, but it is not there", "table);")


def test_names_in_a_list_need_no_quotes() -> None:
    """A shell takes them away."""
    from osler import recipe

    assert recipe.settings(("image.modalities=[flair, t1c]",)) == {"image": {"modalities": ["flair", "t1c"]}}
    assert recipe.settings(("image.modalities=[4ch, T2 FLAIR,]",)) == {"image": {"modalities": ["4ch", "T2 FLAIR"]}}
    assert recipe.settings(('covariates.columns=["age"]',)) == {"covariates": {"columns": ["age"]}}
    assert recipe.settings(("image.size=[1,24,24]",)) == {"image": {"size": [1, 24, 24]}}
    # What only looks like a list stays what it is, and its type is spoken of.
    assert recipe.settings(("image.size=[[1,2]",)) == {"image": {"size": "[[1,2]"}}
    assert recipe.settings(('image.modalities=["a", b]',)) == {"image": {"modalities": '["a", b]'}}


def test_weights_are_imported_with_the_options_of_their_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors import safe_open

    from osler import catalog

    module = catalog.find("backbones", "resnet")
    state = module.build(module.Options(depth=34, width=4), channels=3, dims=2, size=(224, 224)).state_dict()
    torch.save(state, tmp_path / "w.pth")
    words = [
        "import-weights",
        str(tmp_path / "w.pth"),
        "--backbone",
        "resnet",
        "--out",
        str(tmp_path / "w.safetensors"),
    ]
    words += ["--licence", "CC0-1.0", "--source", "here"]
    refused(capsys, [*words, "width=4"], "left over", "check the backbone's options")
    assert call([*words, "depth=34", "width=4"]) == 0
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert {"depth": 34, "width": 4}.items() <= json.loads(file.metadata()["options"]).items()
    refused(capsys, [*words, "dept=34"], "no option dept")
    refused(capsys, [*words, "34"], "is not an option", "depth=34")


def test_unknown_key_in_a_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text("[training]\nepoch = 3\n")
    words = ["train", str(folder), "--out", str(tmp_path / "r"), "--recipe", str(tmp_path / "my.toml")]
    refused(capsys, words, "training.epoch", "training.epochs")


def test_broken_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my.toml").write_text("[training\nepochs = 3\n")
    words = ["train", str(folder), "--out", str(tmp_path / "r"), "--recipe", str(tmp_path / "my.toml")]
    refused(capsys, words, "my.toml", "TOML")


def test_a_model_cut_short_or_changed_by_one_bit(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run / "model.safetensors").read_bytes()
    picture = next((folder / "images").iterdir())
    for number in range(12):
        damaged = bytearray(whole)
        place = int(RNG.integers(0, len(whole)))
        if number % 3 == 0:
            damaged = damaged[:place]
        else:
            damaged[place] ^= 1 << int(RNG.integers(0, 8))
        file = tmp_path / "damaged.safetensors"
        file.write_bytes(bytes(damaged))
        refused(capsys, ["diagnose", str(file), str(picture), "--out", str(tmp_path / "d")], "damaged.safetensors")


def test_not_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    refused(capsys, ["diagnose", str(tmp_path / "run"), "x.png", "--out", str(tmp_path / "d")], "no finished model")


def test_disk_full(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint cannot be written: one sentence, nothing half-written, and the same command goes on later."""
    import errno

    from osler import tensors as files

    saved = files.save_file

    def full(tensors: object, path: Path, header: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    words = [
        "train",
        str(folder),
        "--out",
        str(tmp_path / "r"),
        *(w for w in SMALL if "width" not in w),
        "network.options.width=4",
    ]
    monkeypatch.setattr(files, "save_file", full)
    refused(capsys, words, "No space left", "free some space")
    assert not list((tmp_path / "r").rglob("*.part")) and not list((tmp_path / "r").rglob("*.safetensors"))
    monkeypatch.setattr(files, "save_file", saved)
    assert call(words) == 0


def test_diagnose_goes_on_after_a_bad_file(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = sorted((folder / "images").iterdir())[:2]
    (tmp_path / "zero.dcm").write_bytes(b"")
    words = [
        "diagnose",
        str(run),
        str(good[0]),
        str(tmp_path / "zero.dcm"),
        str(good[1]),
        "--out",
        str(tmp_path / "d"),
    ]
    assert call(words) == 2
    said = capsys.readouterr().err
    assert "zero.dcm" in said and "Traceback" not in said
    found = json.loads((tmp_path / "d" / "diagnoses.json").read_text())
    assert len(found) == 2
    names = tmp_path / "d" / "names.csv"
    assert names.stat().st_mode & 0o077 == 0
    text = (
        "".join(p.read_text() for p in (tmp_path / "d").rglob("*.json")) + (tmp_path / "d" / "index.html").read_text()
    )
    assert good[0].stem not in text


def test_evaluate_counts_how_often_and_leaves_out_what_was_seen(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (1, 2):
        assert call(["evaluate", str(run), str(folder), "--out", str(tmp_path / "e")]) == 0
        found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
        assert found["times_evaluated"] == count and found["part"] == "test"
    metric = found["tasks"]["label"]["metrics"]["auroc"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    # The same images without their splits: those of training, validation and calibration must go.
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    lines = [line.split(",") for line in (bare / "manifest.csv").read_text().splitlines()]
    column = lines[0].index("split")
    (bare / "manifest.csv").write_text("\n".join(",".join(c for i, c in enumerate(x) if i != column) for x in lines))
    assert call(["evaluate", str(run), str(bare), "--out", str(tmp_path / "e2")]) == 0
    again = json.loads((tmp_path / "e2" / "evaluation.json").read_text())
    assert again["cases"] == found["cases"]
    # What was never told is not counted.
    log = (run / "evaluations.jsonl").read_text()
    assert call(["evaluate", str(run), str(folder), "--out", str(tmp_path / "e3"), "--against", str(tmp_path)]) == 2
    assert (run / "evaluations.jsonl").read_text() == log
    assert again["tasks"]["label"]["metrics"]["auroc"]["value"] == pytest.approx(metric["value"], abs=1e-9)
    assert any("the model saw their pixels" in note for note in again["notes"])


def test_a_batch_of_one_gives_the_same_answer(run: Path, folder: Path) -> None:
    import osler
    from osler import cohort, evaluation

    made = osler.load_model(run)
    entries = cohort.read(folder).entries[:5]
    answers, known, unread = evaluation.answer_all(made, cohort.Test(entries))
    assert answers is not None and (known, unread) == (0, 0)
    together = answers.answered
    for i, entry in enumerate(entries):
        alone = osler.diagnose(made, osler.read_case(entry.images["image"].path, dict(entry.covariates)))
        for k, finding in enumerate(alone.answers["label"].findings):
            assert finding.probability == pytest.approx(together.probability["label"][i, k], abs=1e-6)


def test_an_evaluation_says_which_file_does_not_fit(run: Path, folder: Path, tmp_path: Path) -> None:
    import osler
    from osler import cohort, evaluation
    from osler.case import Source

    np.save(tmp_path / "two.npy", np.ones((1, 2, 1, 24, 24), np.float32))
    good = cohort.read(folder).entries[0]
    bad = replace(good, id="bad", images={"image": Source(tmp_path / "two.npy")})
    said: list[str] = []
    _, _, unread = evaluation.answer_all(osler.load_model(run), cohort.Test((good, bad)), said.append)
    assert unread == 1 and any("two.npy: the image has 2 channels" in line for line in said)


def test_scikit_learn_wrapper() -> None:
    import osler
    from osler.metrics.auroc import auroc

    rng = np.random.default_rng(8)
    images = rng.normal(0, 1, (180, 16, 16)).astype(np.float32)
    labels = np.array(["no", "yes"])[np.arange(180) % 2]
    images[labels == "yes", 4:12, 4:12] += 2
    fixed = ("precision='float32'", "channels_last=false", "threads=1", "folds=0", "members=1", "views=1")
    settings = ("epochs=10", "batch=16", "learning_rate=0.003", "network.options.width=8", *fixed)
    found = osler.Classifier(settings).fit(images[:140], labels[:140], groups=np.arange(140) // 2)
    p = found.predict_proba(images[140:])
    assert p.shape == (40, 2) and np.allclose(p.sum(1), 1)
    assert auroc((labels[140:] == "yes").astype(float), p[:, 1]) >= 0.9
    assert set(found.predict(images[140:])) <= {"no", "yes"}
    assert found.score(images[140:], labels[140:]) >= 0.8


def test_training_in_two_places_at_once_is_refused(folder: Path, tmp_path: Path) -> None:
    from osler.problem import Problem

    with (
        run_folder.locked(tmp_path / "r"),
        pytest.raises(Problem, match="another training"),
        run_folder.locked(tmp_path / "r"),
    ):
        pass


def test_a_run_compared_with_itself_differs_by_nothing(run: Path, folder: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(run), str(folder), "--out", str(tmp_path / "e"), "--against", str(run)]
    assert call(words) == 0
    text = (tmp_path / "e" / "evaluation.json").read_text()
    found = json.loads(text)["comparison"]["tasks"]["label"]
    values = [
        d["value"] for d in found.get("differences", found.get("metrics", found)).values() if isinstance(d, dict)
    ]
    assert values and all(value is None or abs(value) < 1e-12 for value in values)


def test_explain_writes_each_map_with_its_test(run: Path, folder: Path, tmp_path: Path) -> None:
    picture = next((folder / "images").iterdir())
    assert call(["explain", str(run), str(picture), "--out", str(tmp_path / "x"), "--method", "all"]) == 0
    found = json.loads((tmp_path / "x" / "explanation.json").read_text())["explanations"]
    assert {one["method"] for one in found} >= {"gradcam", "occlusion", "integrated_gradients"}
    for one in found:
        assert isinstance(one["passed"], bool) and one["tests"] and one["sentences"]
        assert (tmp_path / "x" / f"{one['method']}.png").exists()


def test_doctor_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "torch" in said and "cores" in said and "GFLOP/s" in said


def test_names_stay_out_of_what_leaves_the_terminal(run: Path, folder: Path, tmp_path: Path) -> None:
    private = tmp_path / "Doe_Jane_1970"
    shutil.copytree(folder, private)
    table = (private / "manifest.csv").read_text().replace("case0", "Doe_Jane_0")
    for file in sorted([*(private / "images").iterdir(), *(private / "masks").iterdir()]):
        file.rename(file.with_name(file.name.replace("case0", "Doe_Jane_0")))
    (private / "manifest.csv").write_text(table)
    assert call(["evaluate", str(run), str(private), "--out", str(tmp_path / "e")]) == 0
    for file in (tmp_path / "e").iterdir():
        if file.name != "names.csv":
            assert "Doe" not in file.read_text(errors="ignore"), file.name
