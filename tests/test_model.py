"""Models as files."""

from pathlib import Path

import pytest
import torch

from osler import model
from osler.case import Question
from osler.model import Model, Network
from osler.recipe import ImagePlan, NetworkPlan, Recipe

MASK = Question("mask", "segmentation", ("a",), values=((1,),))
BOXES = Question("boxes", "detection", ("a",))
LAST, FIRST = Question("z", "multiclass", ("no", "yes")), Question("a", "multiclass", ("no", "yes"))


@pytest.mark.parametrize("questions", [(LAST, FIRST), (FIRST, LAST), (MASK, BOXES), (BOXES, MASK)])
def test_heads_stay_with_their_tasks_whatever_the_names(questions: tuple[Question, ...], tmp_path: Path) -> None:
    network = NetworkPlan(backbone="unet", options={"width": 4, "depth": 3})
    plan = Recipe(ImagePlan((1, 32, 32)), {q.task: q for q in questions}, network)
    torch.manual_seed(0)
    made = Model(plan, [Network(plan).eval()])
    made.save(tmp_path / "model.safetensors")
    back = model.load(tmp_path / "model.safetensors")
    assert list(back.recipe.tasks) == [q.task for q in questions]
    x = torch.rand(2, 1, 1, 1, 32, 32)
    with torch.no_grad():
        for name, expected in made.networks[0](x).items():
            assert torch.equal(back.networks[0](x)[name], expected)
