"""Tasks that are linked: what they tell each other, what follows from what is known, and whether they agree."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor, nn

from osler import (
    cohort,
    dense_phantom,
    diagnoses,
    evaluation,
    link_planning,
    linking,
    localisation,
    model,
    patch_planning,
    patches,
    phantom_files,
    recipe,
    targets,
    training,
)
from osler.case import Answer, Box, Case, Entry, Finding, Mask, Question
from osler.checkpoints import State
from osler.cohort import Cohort, Training, Validation
from osler.fitting import Course
from osler.grid import Grid
from osler.image import Image, NoGeometry
from osler.linking import Said
from osler.model import Model, Network
from osler.patches import Sample, Truth
from osler.problem import Problem
from osler.recipe import LinkPlan, Recipe
from osler.tasks import Dense
from osler.tasks.classification import Classification
from osler.volumes import Volume

LABEL = Question("label", "multiclass", ("normal", "benign", "malignant"))
MASK = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
BOXES = Question("boxes", "detection", ("lesion",))
NOTHING = {"nothing": {"label": ("normal",)}, "something": {"label": ("benign", "malignant")}}


def plan(
    *questions: Question, size: Sequence[int] = (1, 32, 32), dims: int = 2, frames: int = 1, **links: Any
) -> Recipe:
    return recipe.build(
        {
            "image": {"size": list(size), "dims": dims, "frames": frames, "fit": "pad"},
            "tasks": {q.task: q for q in questions or (LABEL, MASK, BOXES)},
            "network": {"backbone": "unet", "options": {"width": 4, "depth": 3}},
            "patches": {"deep": 2},
            "links": {**NOTHING, **links} if any(q.task == "label" for q in questions or (LABEL,)) else links,
        }
    )


def volume(labels: NDArray[np.uint8] | None, boxes: NDArray[np.float32] | None, size: tuple[int, int, int]) -> Volume:
    return Volume(
        np.zeros((1, *size), np.float32),
        {} if labels is None else {"mask": labels},
        {} if boxes is None else {"boxes": boxes},
        (), 0, 0, Grid(size, size), NoGeometry(),
    )  # fmt: skip


def disc(size: int, radius: float, middle: tuple[float, float]) -> NDArray[np.uint8]:
    y, x = np.mgrid[:size, :size] + 0.5
    return ((y - middle[0]) ** 2 + (x - middle[1]) ** 2 <= radius**2).astype(np.uint8)[None]


# --- the network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "dims", "frames"), [((1, 32, 32), 2, 1), ((3, 32, 32), 2, 2), ((16, 16, 16), 3, 2)])
def test_links_start_at_nothing(size: tuple[int, int, int], dims: int, frames: int) -> None:
    """Before anything is learned, places are what each head says alone."""
    questions = (LABEL, MASK) if dims == 2 and size[0] > 1 else (LABEL, MASK, BOXES)
    torch.manual_seed(0)
    network = Network(plan(*questions, size=size, dims=dims, frames=frames)).eval()
    x = torch.randn(2, frames, 1, *size)
    with torch.no_grad():
        said = network.say(x)
        maps = network.decoder(network.levels(x)[network.finest :])
        alone = {name: head(maps) for name, head in zip(network.dense, network.places, strict=True)}
    torch.testing.assert_close(said.places["mask"][0], alone["mask"][0])
    if "boxes" in alone:
        torch.testing.assert_close(said.places["boxes"].logits, alone["boxes"].logits)
    assert said.answers["label"].shape == (2, 3) and len(said.opinions) == 2
    mean = torch.stack([opinion["label"] for opinion in said.opinions]).mean(0)
    torch.testing.assert_close(said.answers["label"], mean)


def test_the_chance_that_something_is_there_is_that_of_all_other_classes() -> None:
    recipe = plan()
    (nothing,) = recipe.links.nothing["label"]
    whole = {"label": Classification(LABEL)}
    outputs = torch.tensor([[1.0, 2.0, 0.5]])[:, : len(LABEL.classes)]
    p = outputs.softmax(1)[0]
    expected = 1 - float(p[LABEL.classes.index(nothing)])
    assert linking.chance(whole, {"label": outputs}, recipe) == pytest.approx(expected, abs=1e-6)
    assert linking.chance(whole, {"label": outputs}, replace(recipe, links=LinkPlan())) == 1.0


@pytest.mark.parametrize("cut", ["classes_see_places", "boxes_see_masks", "masks_see_boxes", "masks_see_classes"])
def test_a_link_hands_on_evidence_and_no_blame(cut: str) -> None:
    """What an answer sees changes it, with the link alone; its loss never reaches the answer that it saw."""
    source = {"classes_see_places": ("label", "mask"), "boxes_see_masks": ("boxes", "mask"),
              "masks_see_boxes": ("mask", "boxes"), "masks_see_classes": ("mask", "label")}[cut]  # fmt: skip
    answer, seen = source
    others = dict.fromkeys(("classes_see_places", "boxes_see_masks", "masks_see_boxes", "masks_see_classes"), False)
    x = torch.randn(1, 1, 1, 1, 32, 32)

    def asked(network: Network) -> torch.Tensor:
        said = network.say(x)
        if answer == "label":
            return said.answers["label"]
        return said.places["mask"][0] if answer == "mask" else said.places["boxes"].logits

    for there in (True, False):
        torch.manual_seed(1)
        network = Network(plan(**{**others, cut: there})).eval()
        assert network.links is not None
        for part in network.links.parameters():
            nn.init.normal_(part, std=0.1)
        head = network.heads[0] if seen == "label" else network.places[list(network.dense).index(seen)]
        before = asked(network)
        (before**2).sum().backward()  # type: ignore[no-untyped-call]
        assert not any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in head.parameters())
        with torch.no_grad():
            for part in head.parameters():
                part.add_(torch.randn_like(part))
        assert (not torch.allclose(asked(network), before)) is there


@pytest.mark.parametrize("deep", [1, 2])
def test_drafts_have_a_loss_of_their_own_while_training(deep: int) -> None:
    chosen = plan(LABEL, MASK)
    chosen = replace(chosen, patches=replace(chosen.patches, deep=deep))
    network = Network(chosen)
    x = torch.randn(2, 1, 1, 1, 32, 32)
    drafts: list[Any] = []
    network.places[0].register_forward_hook(lambda module, given, out: drafts.append(out))
    _, *others = network.train().say(x).places["mask"]
    assert len(others) == len(drafts[0]) == deep
    assert all(torch.equal(one, draft) for one, draft in zip(others, drafts[0], strict=True))
    assert len(network.eval().say(x).places["mask"]) == 1


@pytest.mark.parametrize("both", [True, False])
def test_the_class_weighs_as_much_whatever_it_sees(both: bool) -> None:
    """Whether there are two opinions or one, the loss of a network that is sure of nothing is log(3)."""
    chosen = plan(classes_see_places=both)
    network = Network(chosen)
    said = network.say(torch.randn(2, 1, 1, 1, 32, 32))
    equal = {"label": torch.zeros(2, 3)}
    said = replace(said, answers=equal, opinions=[equal for _ in said.opinions])
    truth = Truth(
        {"mask": torch.zeros(2, 1, 32, 32, dtype=torch.uint8), "boxes": [None, None]},
        {"label": torch.tensor([[0.0], [2.0]])},
    )
    loss = localisation._losses(network, said, truth, chosen)["label"]
    assert len(said.opinions) == (2 if both else 1) and float(loss) == pytest.approx(np.log(3), rel=1e-5)


class _Alone(Dense):
    """A task that knows nothing of linking."""

    def __init__(self) -> None:
        self.question = Question("where", "segmentation", ("x",), values=((1,),))

    def head(self, widths: Sequence[int], strides: Sequence[tuple[int, ...]], dims: int) -> nn.Module:
        return nn.ModuleList([nn.Conv2d(widths[0], 1, 1)])[0]

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return outputs.sum()

    def log_odds(self, outputs: Any, finding: Finding) -> Tensor:
        return outputs.sum((1, 2, 3))


def test_a_task_that_knows_nothing_of_links_works_among_them() -> None:
    whole, other = Network(plan()), _Alone()
    dense = {"where": other, "mask": whole.dense["mask"]}
    links = linking.Links(whole.tasks, dense, (4, 8, 16), 16, plan()).eval()
    maps = [torch.randn(2, width, n, n) for width, n in ((4, 32), (8, 16), (16, 8))]
    heads = {"mask": dense["mask"].head((4, 8, 16), [(1, 1), (2, 2), (4, 4)], 2),
             "where": lambda seen: seen[0].mean(1, keepdim=True)}  # fmt: skip
    said = links(maps, maps[-1], (torch.randn(2, 16), {"label": torch.randn(2, 3)}), heads)  # type: ignore[arg-type]
    torch.testing.assert_close(said.places["where"], maps[0].mean(1, keepdim=True))
    assert list(said.presence) == ["mask"]


def test_what_lies_outside_of_a_place_does_not_reach_the_second_opinion() -> None:
    """Pooled features are those of the place: a change far from it changes nothing."""
    network = Network(plan(LABEL, MASK))
    links = network.links
    assert links is not None
    where = torch.zeros(1, 1, 32, 32)
    where[..., :8, :8] = 1
    deepest, middle = torch.randn(1, network.features, 8, 8), torch.randn(1, network.decoder.widths[2], 8, 8)
    first = links._summary([where], deepest, middle, 1)
    changed = deepest.clone()
    changed[..., 4:, 4:] += 10
    torch.testing.assert_close(links._summary([where], changed, middle, 1), first)
    changed[..., :1, :1] += 10
    assert not torch.allclose(links._summary([where], changed, middle, 1), first)


@pytest.mark.parametrize("size", [(32, 32), (48, 30), (20, 64)])
def test_a_place_in_an_image_that_was_padded_is_looked_at_where_it_is(size: tuple[int, int]) -> None:
    """Seen on the network's grid and brought back as a map, a finding covers itself."""
    made = Model(plan(), [Network(plan()).eval()], sha256="0" * 64)
    full = np.zeros((1, *size), bool)
    full[0, 4:16, 8:24] = True
    seen = Finding("mask", "lesion", mask=Mask.cropped(full))
    case = Case("a", "a", {"image": Image(np.zeros((1, 1, 1, *size), np.float32))})
    asked = targets.ask(made, case, seen)
    target = asked.targets[0]
    assert isinstance(target, targets.OfPlace) and target.finding.mask is not None
    back = asked.to_image(target.finding.mask.within((1, 32, 32)).astype(np.float32))
    assert back.shape == full.shape
    assert 2 * ((back > 0.5) & full).sum() / ((back > 0.5).sum() + full.sum()) > 0.85


def test_a_box_is_drawn_where_it_is() -> None:
    task = Network(plan()).dense["boxes"]
    head = task.head((8,) * 4, [(1, 1), (2, 2), (4, 4), (8, 8)], 2).eval()
    offers = head([torch.randn(1, 8, n, n) for n in (32, 16, 8, 4)])
    logits = torch.full_like(offers.logits, -20.0)
    chosen = int(((offers.points - torch.tensor([12.0, 20.0])) ** 2).sum(1).argmin())
    logits[0, chosen] = 20.0
    shifts = torch.zeros_like(offers.shifts)
    shifts[0, chosen, 2:] = float(np.log(16 / 4)) - torch.log(offers.strides[chosen])
    shown = task.presence(offers._replace(logits=logits, shifts=shifts))
    stride = 32 // shown.shape[-1]
    middle = offers.points[chosen] / stride
    peak = shown[0, 0] > 0.4
    rows, columns = torch.nonzero(peak, as_tuple=True)
    assert abs(float(rows.float().mean()) + 0.5 - float(middle[0])) <= 1
    assert abs(float(columns.float().mean()) + 0.5 - float(middle[1])) <= 1
    assert abs(int(peak.sum()) * stride**2 - 256) <= 130


# --- what follows ------------------------------------------------------------------------------------------


def test_where_a_class_means_nothing_nothing_is_there() -> None:
    sample = Sample([volume(None, None, (1, 32, 32))], {"label": np.array([0.0], np.float32)})
    (moment,) = patches.completed(sample, plan()).moments
    assert moment.labels["mask"].shape == (1, 32, 32) and not moment.labels["mask"].any()
    assert moment.boxes["boxes"].shape == (0, 7)
    for value in (1.0, float("nan")):
        unknown = replace(sample, answers={"label": np.array([value], np.float32)})
        (moment,) = patches.completed(unknown, plan()).moments
        assert not moment.labels and not moment.boxes


def test_what_is_outlined_is_boxed() -> None:
    labels = np.maximum(disc(32, 4, (10, 10)), disc(32, 3, (24, 20)))
    sample = Sample([volume(labels, None, (1, 32, 32))], {"label": np.array([1.0], np.float32)})
    (moment,) = patches.completed(sample, plan()).moments
    assert moment.boxes["boxes"].tolist() == [[0, 6, 6, 1, 14, 14, 0], [0, 21, 17, 1, 27, 23, 0]]
    ignoring = replace(MASK, ignore=9)
    labels[0, 0, 0] = 9
    sample = Sample([volume(labels, None, (1, 32, 32))], {"label": np.array([1.0], np.float32)})
    (moment,) = patches.completed(sample, plan(LABEL, ignoring, BOXES)).moments
    assert "boxes" not in moment.boxes


def test_a_box_says_what_is_outside_and_what_is_its_core() -> None:
    truth = disc(32, 8, (16, 14))
    around = np.array([[0, 8, 6, 1, 24, 22, 0]], np.float32)
    sample = Sample([volume(None, around, (1, 32, 32))], {"label": np.array([2.0], np.float32)})
    (moment,) = patches.completed(sample, plan()).moments
    given = moment.labels["mask"]
    assert (truth[given == 1] == 1).all() and (truth[given == 0] == 0).all()
    assert (given == 1).sum() > 0.3 * truth.sum() and (given == MASK.unknown).any()
    deep = np.array([[4, 8, 6, 12, 24, 22, 0]], np.float32)
    ball = linking.cores(deep, (16, 32, 32), MASK, BOXES)
    z, y, x = np.nonzero(ball == 1)
    assert z.min() >= 5 and z.max() <= 10 and abs(y.mean() - 15.5) < 0.5 and abs(x.mean() - 13.5) < 0.5


def test_what_follows_is_learned_from_and_not_measured_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Networks are fitted on what follows from boxes; whoever calibrates sees that no reader outlined anything."""
    around = np.array([[0, 8, 6, 1, 24, 22, 0]], np.float32)
    answers = {"label": np.array([2.0], np.float32)}
    (sample,) = localisation.samples([volume(None, around, (1, 32, 32))], answers, plan())
    assert not sample.moments[0].labels
    fitted: list[Any] = []

    def fit(training: Any, validation: Any, *more: Any) -> Network:
        fitted.append((training, validation))
        return Network(plan())

    monkeypatch.setattr(localisation, "fit", fit)
    entry = Entry("a", "a", {})
    pairs = [(Training((entry,)), Validation((entry,)), None)]
    localisation.fit_all(pairs, {"a": [sample]}, plan(), tmp_path, quiet, 0.0)
    ((training, validation),) = fitted
    assert all(part[1][0].moments[0].labels["mask"].any() for part in (training, validation))


def test_a_class_weighs_by_how_often_it_comes_and_not_by_how_many_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """2 of 40 cases are outlined, all malignant, and make a quarter of the windows; one of the others is benign."""
    states: list[State] = []
    monkeypatch.setattr(localisation, "loop", lambda state, *more: states.append(state))
    chosen = plan()
    chosen = replace(
        chosen,
        patches=replace(chosen.patches, foreground=0.25, per_case=1),
        training=replace(chosen.training, balance=1.0),
    )
    samples = [
        Sample(
            [replace(volume(None, None, (1, 32, 32)), places=(np.zeros((1, 3), np.int32),) if kind == 2 else ())],
            {"label": np.array([kind], np.float32)},
        )
        for kind in (2, 2, 1, *[0] * 37)
    ]
    entries = tuple(Entry(str(i), str(i), {}) for i in range(len(samples)))
    course = Course(tmp_path, 0, 1, quiet, 0.0)
    localisation.fit((Training(entries), samples), (Validation(()), []), chosen, course)
    normal, benign, malignant = states[0].network.scale("label").tolist()
    assert malignant == pytest.approx(1 / (3 * 0.25))
    # Of three quarters of the windows one in 38, as near as ten epochs can tell; the two shares are that together.
    assert 1 / (3 * normal) + 1 / (3 * benign) == pytest.approx(0.75)
    assert 1 / (3 * benign) == pytest.approx(0.75 / 38, rel=0.4)


def test_nothing_follows_where_tasks_are_not_linked() -> None:
    around = np.array([[0, 8, 6, 1, 24, 22, 0]], np.float32)
    sample = Sample([volume(None, around, (1, 32, 32))])
    assert patches.completed(sample, plan(MASK, BOXES)) is sample


def test_nothing_is_completed_where_the_recipe_says_so() -> None:
    sample = Sample([volume(None, None, (1, 32, 32))], {"label": np.array([0.0], np.float32)})
    assert patches.completed(sample, plan(complete=False)) is sample


def test_only_a_case_that_must_show_something_contradicts_an_empty_answer() -> None:
    empty, full = torch.full((4, 1, 32, 32), 1e-3), torch.full((4, 1, 32, 32), 1e-3)
    full[:, :, :8, :8] = 0.999
    targets = {"label": torch.tensor([[0.0], [1.0], [2.0], [float("nan")]])}

    def of(where: Tensor, known: Sequence[bool]) -> float:
        said = Said({}, {}, torch.zeros(4, 1), (), {"mask": where})
        return float(linking.contradiction(said, targets, {"mask": known}, plan()))

    unknown = [False] * 4
    assert of(empty, unknown) == pytest.approx(-np.log(1e-3), rel=0.01)
    assert of(full, unknown) == pytest.approx(0, abs=0.01)
    assert of(empty, [False, True, True, False]) == 0


# --- do they agree -----------------------------------------------------------------------------------------


def class_of(name: str) -> Answer:
    findings = [Finding("label", c, "model", 0.8 if c == name else 0.1) for c in LABEL.classes]
    return Answer("label", "multiclass", tuple(findings), ())


def found(task: str, *places: tuple[float, int]) -> Answer:
    findings = [
        Finding(task, "lesion", "model", p, box=Box((0, at, at), (1, at + 8, at + 8))) for p, at in places
    ]  # fmt: skip
    kind = "segmentation" if task == "mask" else "detection"
    return Answer(task, kind, tuple(findings), (), threshold=0.5)


NONE, HERE, NEAR, FAR = (), (0.9, 3), (0.9, 5), (0.9, 20)


@pytest.mark.parametrize(
    ("label", "mask", "boxes", "torn", "says"),
    [
        ("normal", NONE, NONE, 0.0, []),
        ("normal", (0.4, 3), NONE, 0.0, []),
        ("normal", HERE, NONE, 0.0, ["label says normal, yet lesion is outlined"]),
        ("benign", NONE, HERE, 0.0, ["yet nothing is outlined"]),
        ("benign", HERE, NEAR, 0.0, []),
        ("benign", HERE, FAR, 0.0, ["boxed, not", "outlined, not"]),
        ("benign", HERE, NEAR, 1.0, ["point to different classes"]),
    ],
)
def test_disagreements(
    label: str, mask: tuple[float, int], boxes: tuple[float, int], torn: float, says: Sequence[str]
) -> None:
    answers = class_of(label), *(found(task, *[at] if at else []) for task, at in (("mask", mask), ("boxes", boxes)))
    lines = linking.disagreements({a.task: a for a in answers}, {"label": torn}, plan())
    assert len(lines) == len(says)
    assert all(part in line for part, line in zip(says, lines, strict=True))


# --- the whole line ----------------------------------------------------------------------------------------

SMALL = {
    "tasks": "all",
    "image": {"size": [1, 48, 48]},
    "network": {"backbone": "unet", "options": {"width": 4, "depth": 4}},
    "training": {
        "epochs": 2, "batch": 8, "folds": 0, "members": 1, "precision": "float32", "channels_last": False,
        "threads": 1, "learning_rate": 3e-3,
    },
    "patches": {"per_case": 1},
}  # fmt: skip


def quiet(line: str) -> None:
    """Nothing is printed."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of some cases only the class, of others only boxes or only outlines is known, and of one nothing."""
    spec = replace(dense_phantom.LESIONS, size=(1, 64, 64), classes=("nodule", "spiculated"))
    place = phantom_files.write_dense_phantom(tmp_path_factory.mktemp("cohort") / "c", spec, 60, "linked")
    lines = (place / "manifest.csv").read_text().splitlines()
    head = lines[0].split(",")
    kept: list[tuple[str, ...]] = [("label", "mask.lesion", "boxes"), ("label",), ("boxes",), ("mask.lesion",), ()]
    made = [lines[0]]
    for number, line in enumerate(lines[1:]):
        row = dict(zip(head, line.split(","), strict=True))
        known = kept[number % 5] if row["split"] != "test" else kept[0]
        made.append(
            ",".join(v if k in known or k in ("case", "patient", "image", "split") else "" for k, v in row.items())
        )
    (place / "manifest.csv").write_text("\n".join(made) + "\n")
    return place


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    training.train(folder, out, SMALL, say=quiet)
    return out


def test_any_subset_of_labels_is_learned_from(folder: Path, run: Path) -> None:
    made = model.load(run)
    assert list(made.recipe.tasks) == ["label", "mask", "boxes"] and made.recipe.linked
    # Calibrated on what readers said, and on nothing that follows from it.
    with (folder / "manifest.csv").open(newline="") as file:
        held = [row for row in csv.DictReader(file) if row["split"] == "calibration"]
    for task, column in (("mask", "mask.lesion"), ("boxes", "boxes")):
        facts = made.card["places"][task]
        assert facts["held_out_cases"] == len(held) > facts["read"] == sum(row[column] != "" for row in held)
        assert any(note.startswith(f"{task}: readers said where") for note in made.card["notes"])
    lines = (run / "history.csv").read_text().splitlines()
    assert {"label.loss", "mask.loss", "boxes.loss", "links.loss"} <= set(lines[0].split(","))
    assert all(np.isfinite([float(v) for v in line.split(",") if v]).all() for line in lines[1:])


def test_the_same_command_gives_the_same_bits_also_after_a_stop(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osler import fitting

    class Stop(Exception):
        pass

    monkeypatch.setattr(fitting, "SAVE_SECONDS", 0.0)
    before, steps = localisation._step, []

    def step(*given: object) -> float:
        steps.append(1)
        if len(steps) == 3:
            raise Stop
        return before(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(localisation, "_step", step)
    with pytest.raises(Stop):
        training.train(folder, tmp_path, SMALL, say=quiet)
    monkeypatch.setattr(localisation, "_step", before)
    assert training.train(folder, tmp_path, SMALL, say=quiet).sha256 == model.load(run).sha256


def test_an_evaluation_has_all_tasks_and_their_concordance(folder: Path, run: Path, tmp_path: Path) -> None:
    result = evaluation.evaluate(run, folder, tmp_path, draws=50, say=quiet)
    assert list(result["tasks"]) == ["label", "mask", "boxes"]
    told = result["concordance"]
    assert told["concordant"]["cases"] + told["discordant"]["cases"] == result["cases"]
    assert (tmp_path / "places.csv").exists() and "concordance" in json.loads(
        (tmp_path / "evaluation.json").read_text()
    )
    same = evaluation.evaluate(run, folder, tmp_path / "self", against=run, draws=50, say=quiet)
    for task in ("label", "mask", "boxes"):
        differences = same["comparison"]["tasks"][task]["differences"]
        assert differences and all(one["value"] == 0 for one in differences.values())


def test_a_diagnosis_says_whether_its_answers_agree(folder: Path, run: Path, tmp_path: Path) -> None:
    image = sorted((folder / "images").iterdir())[0]
    assert diagnoses.diagnose_paths(run, [image], tmp_path, say=quiet) == (1, 0)
    (place,) = (path for path in tmp_path.iterdir() if path.is_dir())
    told = json.loads((place / "diagnosis.json").read_text())
    assert set(told["answers"]) == {"label", "mask", "boxes"}
    assert told["concordance"]["agree"] is (not told["concordance"]["statements"])
    page = (place / "diagnosis.html").read_text()
    assert "Do the answers agree?" in page


def test_the_plan_sees_what_classes_mean(tmp_path: Path) -> None:
    spec = replace(dense_phantom.LESIONS, size=(1, 48, 48), classes=("nodule", "spiculated"), diameter=(6.0, 9.0))
    place = phantom_files.write_dense_phantom(tmp_path / "c", spec, 60, "linked")
    given = {"image": SMALL["image"], "training": SMALL["training"], "network": SMALL["network"]}
    plan, why = patch_planning.derive(cohort.read(place), given, 1.0)
    assert plan.links.nothing == {"label": ("normal",)} and plan.links.something == {"label": ("benign", "malignant")}
    assert "normal" in why["links.nothing.label"]


def two_things(
    folder: Path, rows: Sequence[tuple[str, bool | None, bool | None]]
) -> tuple[Cohort, dict[str, Question]]:
    """A label, whether a mass is outlined, and whether a calcification is boxed; ``None``: nobody knows."""
    lines = ["case,image,label,mask.mass,boxes"]
    Pillow.fromarray(np.zeros((16, 16), np.uint8)).save(folder / "image.png")
    Pillow.fromarray((disc(16, 4, (8, 8))[0] * 255).astype(np.uint8)).save(folder / "mass.png")
    for number, (label, mass, calcification) in enumerate(rows):
        cells = (
            {True: "mass.png", False: "none", None: ""}[mass],
            {True: "2 2 4 4 calcification", False: "none", None: ""}[calcification],
        )
        lines.append(f"{number},image.png,{label},{cells[0]},{cells[1]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    found = cohort.read(folder)
    return found, {q.task: q for q in found.questions}


def rules(folder: Path, rows: Sequence[tuple[str, bool | None, bool | None]]) -> dict[str, Any]:
    base: dict[str, Any] = {}
    link_planning.plan_links(base, {}, *two_things(folder, rows))
    return dict(base["links"])


def test_a_class_that_shows_one_of_two_things_need_not_show_both(tmp_path: Path) -> None:
    normal = [("normal", False, False)] * 12
    either = [("malignant", number % 2 == 0, number % 2 == 1) for number in range(24)]
    assert rules(tmp_path, [*normal, *either]) == {"nothing": {"label": ["normal"]}, "something": {"label": []}}
    both = [("malignant", True, True)] * 12
    assert rules(tmp_path, [*normal, *both])["something"] == {"label": ["malignant"]}


def test_what_was_not_looked_for_is_not_known_to_be_absent(tmp_path: Path) -> None:
    malignant = [("malignant", True, True)] * 12
    unknown: list[tuple[str, bool | None, bool | None]] = [("normal", False, None)] * 12
    assert rules(tmp_path, [*malignant, *unknown])["nothing"] == {}
    few: list[tuple[str, bool | None, bool | None]] = [("normal", None, False)] * 9
    assert rules(tmp_path, [*malignant, *unknown, *few])["nothing"] == {}
    assert rules(tmp_path, [*malignant, *unknown, *few, few[0]])["nothing"] == {"label": ["normal"]}


def test_a_class_that_nobody_knows_is_refused() -> None:
    signs = Question("signs", "multilabel", ("cyst", "scar"))
    with pytest.raises(Problem, match=r"links\.something\.signs is no task of the whole image whose classes exclude"):
        plan(LABEL, signs, MASK, something={"signs": ["cyst"]})
    with pytest.raises(Problem, match=r"links\.nothing\.label names 'healthy'"):
        plan(nothing={"label": ["healthy"]})
    with pytest.raises(Problem, match=r"links\.nothing\.mask is no task of the whole image"):
        plan(nothing={"mask": ["lesion"]})
    with pytest.raises(Problem, match="reach across slices"):
        plan(size=(3, 32, 32))
