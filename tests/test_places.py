"""Findings with a place from what networks say, and what held-out cases teach about them."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from osler import doubt, localisation, places, volumes
from osler.boxes import Boxes
from osler.case import Box, Case, Finding, Question
from osler.image import Image, Spacing
from osler.localisation import Located
from osler.model import Model, Network
from osler.patches import Sample
from osler.recipe import ImagePlan, NetworkPlan, Recipe, TrainingPlan

SIZE = (1, 32, 48)
LESION = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
ORGAN = Question("mask", "segmentation", ("organ",), values=((1,),))
CELLS = Question("boxes", "detection", ("a", "b"))


def plan(question: Question, folds: int = 0) -> Recipe:
    network = NetworkPlan("unet", {"width": 4, "depth": 3})
    return Recipe(ImagePlan(SIZE), {question.task: question}, network, TrainingPlan(folds=folds))


def made(question: Question) -> Model:
    torch.manual_seed(0)
    recipe = plan(question)
    return Model(recipe, [Network(recipe).eval()], sha256="0" * 64)


def says(monkeypatch: pytest.MonkeyPatch, *, p: Any = None, boxes: Boxes | None = None) -> None:
    """Networks that say just this of every image."""

    def ask(networks: Sequence[Network], moments: Any, recipe: Recipe, person: Any = None) -> Iterator[Located]:
        name = next(name for name, question in recipe.tasks.items() if question.dense)
        for _ in moments:
            yield Located({} if p is None else {name: p}, {} if boxes is None else {name: boxes})

    monkeypatch.setattr(localisation, "ask", ask)


def probabilities(*windows: tuple[slice, slice, float]) -> np.ndarray:
    p = np.full(SIZE, 0.02, np.float32)
    for y, x, value in windows:
        p[0, y, x] = value
    return np.stack([1 - p, p])


def test_parts_are_findings_of_their_own_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, p=probabilities((slice(2, 12), slice(3, 23), 0.9), (slice(20, 24), slice(40, 44), 0.7)))
    image = Image(np.zeros((1, 1, *SIZE), np.uint8), Spacing(0.5, 0.5))
    answer = places.answer(made(LESION), image)["mask"]
    first, second = answer.findings
    assert first.box == Box((0, 2, 3), (1, 12, 23)) and second.box == Box((0, 20, 40), (1, 24, 44))
    assert first.probability == pytest.approx(0.9, abs=1e-3) and second.probability == pytest.approx(0.7, abs=1e-3)
    assert {m.name: (m.value, m.unit) for m in first.measurements}["area"] == (pytest.approx(50.0), "mm2")
    assert answer.decision == ("lesion",) and answer.uncertainty is not None
    assert answer.uncertainty.shape == (1, *SIZE)


def test_a_class_that_is_nowhere_is_said_to_be_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, p=probabilities())
    answer = places.answer(made(LESION), Image(np.zeros((1, 1, *SIZE), np.uint8)))["mask"]
    assert [(f.name, f.box) for f in answer.findings] == [("lesion", None)]
    assert answer.decision == () and answer.stated == ()


def test_a_withheld_answer_states_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, p=probabilities((slice(2, 12), slice(3, 23), 0.9)))
    answer = places.answer(made(LESION), Image(np.zeros((1, 1, *SIZE), np.uint8)), withheld=True)["mask"]
    assert answer.findings and not answer.decision and not answer.stated


def test_boxes_come_back_onto_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Boxes(
        torch.tensor([[0, 4, 6, 1, 8, 12.0], [0, 20, 20, 1, 30, 30]]), torch.tensor([0.9, 0.01]), torch.tensor([1, 0])
    )
    says(monkeypatch, boxes=found)
    answer = places.answer(made(CELLS), Image(np.zeros((1, 1, *SIZE), np.uint8)))["boxes"]
    assert [(f.name, f.box) for f in answer.findings] == [
        ("b", Box((0, 4, 6), (1, 8, 12))), ("a", Box((0, 20, 20), (1, 30, 30)))
    ]  # fmt: skip
    assert answer.decision == ("b",) and len(answer.stated) == 1


def test_so_many_boxes_of_a_class_are_listed_as_figures_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    places_of = torch.tensor([[0.0, 1, 1, 1, 3, 3]]).repeat(150, 1)
    scores = torch.linspace(0.9, 0.1, 150)
    says(monkeypatch, boxes=Boxes(places_of, scores, torch.zeros(150, dtype=torch.long)))
    answer = places.answer(made(CELLS), Image(np.zeros((1, 1, *SIZE), np.uint8)))["boxes"]
    assert len(answer.findings) == 100
    assert answer.findings[-1].probability == pytest.approx(float(scores[99]), abs=1e-4)


def held(recipe: Recipe, count: int, draw: Any) -> list[places.Held]:
    """Moments whose reader outlined what ``draw(n)`` says."""
    moments: list[places.Held] = []
    for n in range(count):
        labels = np.zeros((1, *SIZE), np.uint8)
        for y, x in draw(n):
            labels[0, 0, y, x] = 1
        case = Case(str(n), f"p{n}", {"image": Image(np.zeros((1, 1, *SIZE), np.uint8))}, maps={"mask": labels})
        moments.append((str(n), f"p{n}", Sample(tuple(volumes.read(case, recipe)))))
    return moments


def test_how_far_measurements_are_off_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    # The reader's lesion has twice the area of what is drawn, always.
    says(monkeypatch, p=probabilities((slice(10, 20), slice(10, 20), 0.9)))
    recipe = plan(LESION)
    moments = held(recipe, 50, lambda n: [(slice(10, 20), slice(10, 30))])
    model = made(LESION)
    arrays, card, _ = places.calibrate(model.networks, [moments], recipe)
    learned = places.of(Model(recipe, model.networks, arrays), 0)
    assert doubt.interval(learned.doubt, "lesion/area", 100.0) == pytest.approx((200.0, 200.0))
    assert card["mask"]["true"] == 50 and card["mask"]["dice"]["lesion"] == pytest.approx(2 / 3)
    assert doubt.chance(learned.doubt, 0.9)[0] > 0.9


def test_parts_that_are_never_true_are_no_longer_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, p=probabilities((slice(10, 20), slice(10, 20), 0.95), (slice(25, 28), slice(40, 44), 0.6)))
    recipe = plan(LESION)
    model = made(LESION)
    arrays, *_ = places.calibrate(
        model.networks, [held(recipe, 30, lambda n: [(slice(10, 20), slice(10, 20))])], recipe
    )
    known = Model(recipe, model.networks, arrays, sha256="0" * 64)
    answer = places.answer(known, Image(np.zeros((1, 1, *SIZE), np.uint8)))["mask"]
    assert [f.box for f in answer.stated] == [Box((0, 10, 10), (1, 20, 20))]
    assert len(answer.findings) == 2 and (answer.findings[1].probability or 1) < 0.5


@pytest.mark.parametrize("both", [True, False])
def test_only_the_largest_part_is_kept_where_held_out_cases_say_so(
    monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    windows = [(slice(10, 20), slice(10, 20)), (slice(25, 28), slice(40, 44))]
    says(monkeypatch, p=probabilities(*((y, x, 0.9) for y, x in windows)))
    recipe = plan(ORGAN)
    model = made(ORGAN)
    arrays, *_ = places.calibrate(
        model.networks, [held(recipe, 12, lambda n: windows if both else windows[:1])], recipe
    )
    known = Model(recipe, model.networks, arrays, sha256="0" * 64)
    answer = places.answer(known, Image(np.zeros((1, 1, *SIZE), np.uint8)))["mask"]
    (organ,) = answer.stated
    assert organ.mask is not None
    assert int(organ.mask.array.sum()) == (112 if both else 100)


@pytest.mark.parametrize("wide", [True, False])
def test_outlines_take_in_what_is_unsure_where_held_out_cases_say_so(
    monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    rim, core = (slice(8, 22), slice(8, 22)), (slice(10, 20), slice(10, 20))
    says(monkeypatch, p=probabilities((*rim, 0.49), (*core, 0.95), (slice(26, 30), slice(30, 40), 0.49)))
    recipe, model = plan(LESION), made(LESION)
    readers = held(recipe, 12, lambda n: [rim if wide else core])
    arrays, card, _ = places.calibrate(model.networks, [readers], recipe)
    known = Model(recipe, model.networks, arrays, sha256="0" * 64)
    (finding,) = places.answer(known, Image(np.zeros((1, 1, *SIZE), np.uint8)))["mask"].stated
    assert finding.mask is not None and int(finding.mask.array.sum()) == (196 if wide else 100)
    assert card["mask"]["ranked"] is wide and card["mask"]["dice"]["lesion"] == 1


def test_folds_are_asked_one_by_one_and_members_together(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def ask(networks: Sequence[Network], moments: Any, recipe: Recipe, person: Any = None) -> Iterator[Located]:
        for _ in moments:
            asked.append(len(networks))
            yield Located({"mask": probabilities()}, {})

    monkeypatch.setattr(localisation, "ask", ask)
    model = made(LESION)
    two = [model.networks[0], model.networks[0]]
    moments = held(model.recipe, 3, lambda n: [])
    places.calibrate(two, [moments[:1], moments[1:]], plan(LESION, folds=2))
    assert asked == [1, 1, 1]
    asked.clear()
    places.calibrate(two, [moments, moments], plan(LESION))
    assert asked == [2, 2, 2]


def test_what_is_found_is_as_sure_as_it_looks_and_as_its_class_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outlines keep their pixels, boxes their place: each is the less sure the likelier the class says nothing."""
    p = probabilities((slice(2, 12), slice(3, 23), 0.9))
    boxes = Boxes(torch.tensor([[0.0, 1, 2, 1, 11, 22]]), torch.tensor([0.8]), torch.tensor([0]))
    image = Image(np.zeros((1, 1, *SIZE), np.uint8))
    for question, said, sure in ((LESION, ({"mask": p}, {}), 0.9), (CELLS, ({}, {"boxes": boxes}), 0.8)):
        found = []
        for chance in (1.0, 0.25):
            monkeypatch.setattr(localisation, "ask", lambda *_, c=chance, s=said: iter([Located(*s, chance=c)]))
            (finding,) = places.answer(made(question), image)[question.task].findings
            assert finding.probability == pytest.approx(sure * chance, abs=1e-3)
            found.append(finding.box)
        assert found[0] == found[1]


LABEL = Question("label", "multiclass", ("normal", "benign"))


def linked(frames: int = 1) -> Recipe:
    tasks, network = {"label": LABEL, "mask": ORGAN}, NetworkPlan("unet", {"width": 4, "depth": 3})
    return Recipe(ImagePlan(SIZE, frames=frames), tasks, network)


def test_of_held_out_cases_no_more_is_kept_than_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def ask(networks: Sequence[Network], moments: Any, recipe: Recipe, person: Any = None) -> Iterator[Located]:
        nonlocal most
        for _ in moments:
            p = probabilities((slice(2, 12), slice(3, 23), 0.9), (slice(20, 24), slice(40, 44), 0.7))
            alive.append(weakref.ref(p))
            most = max(most, sum(one() is not None for one in alive))
            yield Located({"mask": p}, {})

    monkeypatch.setattr(localisation, "ask", ask)
    recipe = linked()
    network = Network(recipe).eval()
    windows = [(slice(2, 12), slice(3, 23))]
    _, _, answers = places.calibrate([network], [held(recipe, 9, lambda n: windows)], recipe)
    assert most <= 2
    # The largest part alone was better: the other is no finding of any case.
    assert [[f.box for f in answer["mask"].findings] for answer in answers.values()] == [
        [Box((0, 2, 3), (1, 12, 23))]
    ] * 9
    assert all(f.mask is None for answer in answers.values() for f in answer["mask"].findings)


def test_a_moment_that_stands_for_several_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, p=probabilities((slice(10, 20), slice(10, 20), 0.9)))
    recipe = linked(4)
    ((case, patient, only),) = held(recipe, 1, lambda n: [(slice(10, 20), slice(10, 20))])
    (sample,) = localisation.samples(only.moments, {}, recipe)
    assert len(sample.moments) == 4
    _, card, _ = places.calibrate([Network(recipe).eval()], [[(case, patient, sample)]], recipe)
    assert card["mask"]["held_out_findings"] == 1


def test_what_no_reader_said_does_not_count_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, p=probabilities((slice(10, 20), slice(10, 20), 0.9)))
    recipe = plan(LESION)
    moments = held(recipe, 6, lambda n: [(slice(10, 20), slice(10, 20))])
    unread = [
        (case, patient, Sample([replace(v, labels={}) for v in one.moments])) for case, patient, one in moments[:4]
    ]
    _, card, _ = places.calibrate(made(LESION).networks, [[*unread, *moments[4:]]], recipe)
    assert card["mask"]["read"] == 2 and card["mask"]["held_out_cases"] == 6
    assert card["mask"]["held_out_findings"] == 2
    (note,) = places.notes(card)
    assert note.startswith("mask: readers said where in 2 of 6 held-out cases")
    _, card, _ = places.calibrate(made(LESION).networks, [moments], recipe)
    assert not places.notes(card)


def test_a_model_without_held_out_cases_is_neutral() -> None:
    learned = places.of(made(LESION), 0)
    assert doubt.chance(learned.doubt, 0.4)[0] == pytest.approx(0.4)
    assert not learned.largest.any()


def test_findings_of_readers_become_boxes() -> None:
    findings = (
        Finding("boxes", "a", probability=1, box=Box((0, 1, 2), (1, 5, 6))),
        Finding("boxes", "b", probability=0),
        Finding("other", "a", probability=1, box=Box((0, 1, 2), (1, 5, 6))),
    )
    boxes = volumes.boxes_of(findings, CELLS, 0)
    assert boxes is not None and boxes.tolist() == [[0, 1, 2, 1, 5, 6, 0]]
    assert volumes.boxes_of((), CELLS, 0) is None


def test_the_threshold_lies_between_what_is_true_and_what_is_not() -> None:
    seen = places._Seen([0.9, 0.8, 0.3, 0.2], [True, True, False, False], ["a"] * 4)
    assert places._threshold(seen) == pytest.approx(0.55)
    assert places._threshold(places._Seen([0.9, 0.8], [True, True], ["a"] * 2)) == pytest.approx(0.4)
    assert places._threshold(places._Seen([0.9], [False], ["a"])) == 0.5
