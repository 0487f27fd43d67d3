"""Linked tasks of sequences: who is heard together, what may disagree, and whose cases they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from osler import answers, asking, data, diagnosis, identity, localisation, model, places, recipe
from osler.case import Answer, Box, Case, Entry, Finding, Question, Source
from osler.cohort import Cohort
from osler.image import Image
from osler.linking import Said
from osler.model import Model, Network
from osler.recipe import Recipe

LABEL = Question("label", "multiclass", ("normal", "benign"))
MASK = Question("mask", "segmentation", ("lesion",), values=((1,),), separate=True)
SIZE = (1, 16, 16)


def plan(frames: int, **more: Any) -> Recipe:
    return recipe.build(
        {
            "image": {"size": list(SIZE), "frames": frames},
            "tasks": {q.task: q for q in (LABEL, MASK)},
            "network": {"backbone": "unet", "options": {"width": 4, "depth": 2}},
            **more,
        }
    )


def loop(frames: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(frames, 1, *SIZE)).astype(np.float32)


@pytest.mark.parametrize(("length", "frames"), [(1, 4), (3, 4), (4, 4), (5, 4), (23, 4), (60, 8), (9, 1), (7, 2)])
def test_every_moment_is_heard_in_a_company_as_large_as_in_training(length: int, frames: int) -> None:
    found = localisation.companies(length, frames)
    assert all(len(company) == frames and (np.diff(company) >= 0).all() for company in found)
    # The first holds what classes are answered from; each moment is in one company.
    assert found[0].tolist() == data.moments_of(Image(loop(length)), plan(frames).image).tolist()
    assert sorted(moment for company in found for moment in set(company.tolist())) == list(range(length))
    if length >= 2 * frames > 2:
        # Spread as in training: none of them is of one half only.
        assert all(company[0] < length / 2 <= company[-1] for company in found if len(set(company.tolist())) > 1)


@pytest.mark.parametrize("length", [2, 3, 7])
def test_long_and_short_loops_are_heard_as_in_training(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = plan(3)
    torch.manual_seed(0)
    network = Network(chosen).eval()
    heard: list[int] = []
    say = Network.say

    def noted(self: Network, x: torch.Tensor, *more: Any, **known: Any) -> Said:
        heard.append(x.shape[1])
        return say(self, x, *more, **known)

    monkeypatch.setattr(Network, "say", noted)
    moments = loop(length)
    found = [said.probabilities["mask"] for said in localisation.ask([network], moments, chosen)]
    assert len(found) == length and set(heard) == {3}
    # What calibration sees of these moments is what is said of them in the whole loop.
    looked = data.moments_of(Image(moments), chosen.image)
    alone = [said.probabilities["mask"] for said in localisation.ask([network], moments[looked], chosen)]
    for moment, said in zip(looked.tolist(), alone, strict=True):
        np.testing.assert_allclose(found[moment], said, atol=1e-6)


@pytest.mark.parametrize(("frame", "agree"), [(0, False), (1, True), (3, True), (4, False)])
def test_only_what_the_class_was_answered_from_can_contradict_it(
    frame: int, agree: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five moments classes look at the first and the last; concordance was counted on such."""
    chosen = plan(2, links={"nothing": {"label": LABEL.classes}})
    torch.manual_seed(0)
    made = Model(chosen, [Network(chosen).eval()], sha256="0" * 64)
    seen = Finding("mask", "lesion", "model", 0.9, box=Box((0, 2, 2), (1, 6, 6)), frame=frame)
    answer = Answer("mask", "segmentation", (seen,), (), threshold=0.5)
    monkeypatch.setattr(places, "answer", lambda *args, **named: {"mask": answer})
    monkeypatch.setattr(asking, "outputs", _of_one_mind(asking.outputs))
    found = diagnosis.diagnose(made, Case("a", "a", {"image": Image(loop(5))}))
    assert found.concordance is not None and found.concordance.agree is agree
    assert found.answers["mask"].findings == (seen,)


def _of_one_mind(outputs: Any) -> Any:
    def asked(*given: Any, **named: Any) -> asking.Outputs:
        found = outputs(*given, **named)
        found.torn["label"][:] = 0
        return found  # type: ignore[no-any-return]

    return asked


def test_cases_of_long_loops_are_found_again_in_their_folds(tmp_path: Path) -> None:
    """Training counted every moment of them (what asks where something is does), whatever classes look at."""
    import nibabel

    chosen = plan(2, training={"folds": 2})
    entries = []
    for number in range(4):
        path = tmp_path / f"{number}.nii"
        array = loop(5, number)[:, 0, 0].T[:, :, None]
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)  # type: ignore[no-untyped-call]
        label = tuple(Finding("label", c, "reader", float(c == LABEL.classes[number % 2])) for c in LABEL.classes)
        entries.append(Entry(str(number), f"p{number}", {"image": Source(path)}, label))
    trained_on = data.load(entries, chosen.image, questions=(LABEL, MASK))
    held = {
        "digest": torch.tensor([identity.short(digest) for digest in trained_on.digests]),
        "fold": torch.tensor([0, 0, 1, 1]),
        "novelty": torch.zeros(4, dtype=torch.float64),
        "outputs.label": torch.randn(4, 2, dtype=torch.float64),
        "target.label": torch.tensor([[0.0], [1.0], [0.0], [1.0]]),
    }
    model.write_tensors(tmp_path / "out_of_fold.safetensors", held, {"format": "osler-out-of-fold"})
    made = Model(chosen, [Network(chosen).eval()] * 2, sha256="0" * 64)
    found, _ = answers.out_of_fold(made, tmp_path, Cohort(tmp_path, tuple(entries), (LABEL,)), _quiet)
    assert [entry.id for entry in found.entries] == ["0", "1", "2", "3"]


def _quiet(line: str) -> None:
    """Nothing is printed."""
